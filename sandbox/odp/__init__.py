"""A stand-in for the Optimizely Data Platform: strict, stateful, scriptable. Start it with `python -m sandbox.odp`."""
