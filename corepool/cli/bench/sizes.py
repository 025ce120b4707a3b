"""How much is measured, and the goals that the figures are held to."""

from __future__ import annotations

import attrs

from corepool.cli.bench.figures import Goal

__all__ = ["GOALS", "QUICK", "USUAL", "Sizes"]


@attrs.frozen(slots=True, kw_only=True)
class Sizes:
    """How many samples are taken.

    samples: of each time, in ``rounds`` that take turns with the floor. rate: operations of each rate.
    jobs: started for each rate of the pool. many: jobs that lie on the worker for the second rate.
    idle_nodes, idle_seconds: pools that do nothing, and how long each is watched.
    payload: bytes of a value.
    """

    samples: int = 2000
    rounds: int = 4
    rate: int = 20_000
    gets: int = 200_000
    calls: int = 600
    jobs: int = 10_000
    many: int = 10_000
    callers: int = 16
    dispatchers: int = 64
    idle_nodes: tuple[int, ...] = (1, 3, 10)
    idle_seconds: float = 18.0
    payload: int = 100


USUAL = Sizes()
QUICK = Sizes(
    samples=100, rounds=2, rate=400, gets=10_000, calls=30, jobs=100, many=200, idle_nodes=(1, 3), idle_seconds=1.0
)

_EVERYWHERE = {
    "same_with_many_jobs": Goal("at least 0.85 x the rate without them", least=0.85),
}
_IDLE = {f"idle_commands_{nodes}": Goal("at most 2 a second", most=2.0, of_ratio=False) for nodes in (1, 3, 10)} | {
    f"connections_{nodes}": Goal("at most 3", most=3.0, of_ratio=False) for nodes in (1, 3, 10)
}

GOALS: dict[str, dict[str, Goal]] = {
    "redis": {
        **_EVERYWHERE,
        **_IDLE,
        "set": Goal("at most 2 x PING", most=2.0),
        "sets_per_second": Goal("at least 4 x redis-py's pool", least=4.0),
        "propagation": Goal("at most 5 x PING", most=5.0),
        "dispatch": Goal("at most 12 x PING", most=12.0),
        "starts_per_second": Goal("at least 5,000 a second", least=5000.0, of_ratio=False),
    },
    "memory": {
        **_EVERYWHERE,
        "get": Goal("under 1 µs", most=1000.0, of_ratio=False),
        "starts_per_second": Goal("at least 3,000 a second", least=3000.0, of_ratio=False),
    },
    "nats": {**_EVERYWHERE},
}
"""The project's own goals by driver; they were set for a server on the same machine, pinned cores and uvloop."""
