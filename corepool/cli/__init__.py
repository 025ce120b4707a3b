"""The ``corepool`` command (extra ``cli``).

Purpose: the pool for people and scripts: try it, run workers, dispatch and look at jobs, replay a simulated failure.
Invariants: what a script reads is on standard output alone (one JSON object, or one per line) and everything else on standard
error; colours only on a terminal; an exit code says what the caller can do (:mod:`corepool.cli.exits`); Ctrl-C cleans up.
Neighbours: uses the public names of corepool; nothing imports it. ``main`` alone may be imported without the extra.
"""
