"""The benchmarks, ``make bench``: how fast the bridge is on one machine, as a ratio to what that machine can do.

``scenarios`` lists measurements. ``house`` starts servers and processes with the project's own means. ``load`` makes
calls, over HTTP (``sender``) or straight into PostgreSQL (``limit``). ``double`` stands in for ODP. ``baseline`` is a
simple implementation to compare with. ``results`` prints and writes the figures. ``search`` runs alone.
"""
