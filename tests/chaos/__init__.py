"""The chaos runner, ``make chaos``: whatever dies, nothing accepted is lost and nothing comes out of order.

Read it in this order: ``house`` starts the processes as ``make run`` does, ``stream`` plays Lytics and remembers what
got a 200, ``schedule`` and ``faults`` say what dies when, ``wire`` watches the sandbox ODP, ``judge`` compares, and
``table`` tells. ``hook`` bends single processes: a clock that is wrong, a bridge that is broken on purpose.
"""
