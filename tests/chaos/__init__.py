"""The chaos runner, ``make chaos``: it kills processes and checks that no accepted event is lost or out of order.

Reading order: ``house`` starts the processes as ``make run`` does, ``stream`` plays Lytics and records the calls that
got a 200, ``schedule`` and ``faults`` decide which process fails when, ``wire`` observes the sandbox ODP, ``judge``
compares, and ``table`` reports. ``hook`` changes single processes: a wrong clock, or a mutation of the service.
"""
