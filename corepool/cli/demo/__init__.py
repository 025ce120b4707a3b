"""``corepool demo``: the main job of the project, running, on any backend, with its promises measured.

Purpose: three nodes, a few hundred jobs of real work, a node that joins, one that crashes, one that leaves.
Invariants: ``lost`` and ``doubled`` are counted from what the handlers themselves recorded (:mod:`corepool.cli.demo.ledger`),
never from what the pool says of itself.
Neighbours: ``story`` is the plot, ``stage`` runs nodes (tasks of this process on ``memory://``, processes elsewhere),
``handler`` does the work, ``view`` shows it.
"""
