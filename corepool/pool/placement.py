"""Which worker a key belongs to.

Purpose: a pure function from a set of workers and a key to a worker, the same on every node and in every process.
Invariants: deterministic (no process-dependent hash); the order in which workers joined does not matter to ``multiprobe``.
Neighbours: ``membership`` builds a placer per ring; nothing else chooses workers.
"""

from __future__ import annotations

import functools
import hashlib
from bisect import bisect_left
from collections.abc import Sequence
from typing import Protocol

from corepool.errors import InvalidOptionError

__all__ = ["JumpHash", "MultiProbe", "Placement", "Placer", "placement_by_name"]

_MASK = (1 << 64) - 1


class Placer(Protocol):
    """A placement for one set of workers."""

    def owner(self, key: str) -> str:
        """The worker that the key belongs to."""
        ...


class Placement(Protocol):
    """A strategy: given workers (never empty, sorted), a `Placer`. Must be a pure function of them."""

    def place(self, workers: Sequence[str]) -> Placer: ...


# --- multi-probe consistent hashing: the default ----------------------------------------------------------------------

_POINTS = 256
"""Points of a worker on the circle."""
_PROBES = 6
"""Looks of a key at the circle. With one the load of a worker would vary by 1/16 (standard deviation); with six, by 1/53."""
_REMEMBERED = 1000
"""Keys whose owner is kept: a job is looked up by its dispatcher, by its worker and whenever the ring was looked at."""
_INDEX_BITS = 16
"""A point's low bits hold its worker's index: one sorted list of numbers is all there is to search."""


@functools.lru_cache(maxsize=4096)
def _points(worker: str) -> tuple[int, ...]:
    """Where a worker stands on the circle: eight points a digest."""
    found: list[int] = []
    for block in range(_POINTS // 8):
        digest = hashlib.blake2b(worker.encode(), digest_size=64, salt=block.to_bytes(16, "big")).digest()
        found += (int.from_bytes(digest[at : at + 8], "big") >> _INDEX_BITS << _INDEX_BITS for at in range(0, 64, 8))
    return tuple(found)


class _Circle:
    __slots__ = ("_circle", "_found", "_workers")

    def __init__(self, workers: tuple[str, ...]) -> None:
        if len(workers) >= 1 << _INDEX_BITS:
            raise InvalidOptionError(
                f"multiprobe places on fewer than {1 << _INDEX_BITS} workers, not on {len(workers)}"
            )
        self._workers = workers
        self._circle = sorted(point | index for index, worker in enumerate(workers) for point in _points(worker))
        self._found: dict[str, str] = {}

    def owner(self, key: str) -> str:
        owner = self._found.get(key)
        if owner is None:
            if len(self._found) >= _REMEMBERED:
                self._found.clear()
            owner = self._found[key] = self._find(key)
        return owner

    def _find(self, key: str) -> str:
        circle = self._circle
        digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
        probe, step = int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")
        nearest, chosen = _MASK + 1, 0
        for _ in range(_PROBES):
            at = bisect_left(circle, probe)
            point = circle[at] if at < len(circle) else circle[0]
            distance = (point - probe) & _MASK
            if distance < nearest:
                nearest, chosen = distance, point
            probe = (probe + step) & _MASK
        return self._workers[chosen & ((1 << _INDEX_BITS) - 1)]


@functools.lru_cache(maxsize=16)
def _circle(workers: tuple[str, ...]) -> _Circle:
    """One for all nodes of this process: they see the same rings."""
    return _Circle(workers)


class MultiProbe:
    """Multi-probe consistent hashing (Appleton and O'Reilly, 2015): a join takes its share and a leave frees its own, nothing
    else moves, and the load is even to a few percent. A lookup costs O(log workers)."""

    def place(self, workers: Sequence[str]) -> Placer:
        return _circle(tuple(workers))

    def __repr__(self) -> str:
        return "MultiProbe()"


# --- jump hash -------------------------------------------------------------------------------------------------------


class _JumpPlacer:
    __slots__ = ("_workers",)

    def __init__(self, workers: Sequence[str]) -> None:
        self._workers = tuple(workers)

    def owner(self, key: str) -> str:
        state = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")
        bucket, candidate = -1, 0
        while candidate < len(self._workers):
            bucket = candidate
            state = (state * 2862933555777941757 + 1) & _MASK
            candidate = int((bucket + 1) * ((1 << 31) / ((state >> 33) + 1)))
        return self._workers[bucket]


class JumpHash:
    """Jump consistent hash (Lamping and Veach, 2014) over the sorted workers: moves nearly everything when the first of
    them leaves. For pools whose workers only ever join at the end."""

    def place(self, workers: Sequence[str]) -> Placer:
        return _JumpPlacer(workers)

    def __repr__(self) -> str:
        return "JumpHash()"


def placement_by_name(value: str | Placement) -> Placement:
    """Raises:
    InvalidOptionError: no placement has that name.
    """
    if not isinstance(value, str):
        if not callable(getattr(value, "place", None)):
            raise InvalidOptionError(f"a placement has a method place(workers); {value!r} has none")
        return value
    match value:
        case "multiprobe":
            return MultiProbe()
        case "jump":
            return JumpHash()
        case _:
            raise InvalidOptionError(f"no placement is called {value!r}; there are 'multiprobe' and 'jump'")
