"""A stand-in for the Optimizely Data Platform: strict, stateful, scriptable. Start it with `python -m sandbox.odp`.

Imports run one way, from the last floor to the first:

1. `wire` (requests, responses, faults) and `account` (what one account holds), which don't know each other
2. `world` (the state of one sandbox)
3. `api` (ODP's endpoints)
4. the modules in this folder, which serve all of it over HTTP
"""
