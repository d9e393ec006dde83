"""The soak, ``make soak``: a steady rate for hours, and whether anything grows.

Reading order: ``run`` sends, deploys, restarts PostgreSQL and compares memberships, ``samples`` measures every ten
seconds, ``curves`` makes curves of the samples and judges them, ``page`` writes docs/soak.md and its pictures. The
processes are those of ``tests.chaos.house``.
"""
