"""The benchmarks, ``make bench``: what the bridge does on one machine, and what that machine could do at best.

Read it in this order: ``scenarios`` says what is measured, ``house`` starts what it takes by the project's own means,
``load`` makes calls for ``sender`` (over HTTP) and ``limit`` (straight into PostgreSQL), ``double`` is the ODP they end
at, ``baseline`` and ``peers`` are what others would run in our place, and ``results`` tells. ``search`` stands alone.
"""
