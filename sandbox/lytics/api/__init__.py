"""A stand-in for Lytics' REST API over the state that the sender keeps. Start it: `python -m sandbox.lytics.api`."""
