"""Which worker a key belongs to.

Purpose: a pure function from a set of workers and a key to a worker, the same on every node and in every process.
Invariants: deterministic (no process-dependent hash); the order in which workers joined does not matter to ``rendezvous``.
Neighbours: ``membership`` builds a placer per ring; nothing else chooses workers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

from corepool.errors import InvalidOptionError

__all__ = ["JumpHash", "Placement", "Placer", "Rendezvous", "placement_by_name"]

_MASK = (1 << 64) - 1


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


class Placer(Protocol):
    """A placement for one set of workers."""

    def owner(self, key: str) -> str:
        """The worker that the key belongs to."""
        ...


class Placement(Protocol):
    """A strategy: given workers (never empty, sorted), a `Placer`. Must be a pure function."""

    def place(self, workers: Sequence[str], previous: Placer | None) -> Placer:
        """``previous`` is the placer of the ring before, whose cached work may be reused; it must not change the result."""
        ...


# --- rendezvous: the default -----------------------------------------------------------------------------------------

_SLOTS = 1 << 20  # many more than keys per cluster: a slot hardly ever holds two keys, so slots add no imbalance


def _weight(seed: int, slot: int) -> int:
    # A multiplicative mix (after splitmix64) is enough: the seeds are digests already.
    weight = ((seed ^ ((slot + 1) * 0x9E3779B97F4A7C15)) * 0xD6E8FEB86659FD93) & _MASK
    return ((weight ^ (weight >> 32)) * 0xD6E8FEB86659FD93) & _MASK


class _RendezvousPlacer:
    """Highest-random-weight hashing over slots, each slot decided when it is first asked for, then remembered."""

    __slots__ = ("_decided", "_seeds", "_workers")

    def __init__(self, workers: Sequence[str], previous: _RendezvousPlacer | None) -> None:
        self._workers = tuple(workers)
        self._seeds = tuple(_digest(worker) for worker in workers)
        self._decided: dict[int, str] = {} if previous is None else self._carry_over(previous)

    def owner(self, key: str) -> str:
        slot = _digest(key) % _SLOTS
        worker = self._decided.get(slot)
        if worker is None:
            worker = self._decided[slot] = self._decide(slot)
        return worker

    def _decide(self, slot: int) -> str:
        best, chosen = -1, ""
        for seed, worker in zip(self._seeds, self._workers, strict=True):
            weight = _weight(seed, slot)
            if weight > best:
                best, chosen = weight, worker
        return chosen

    def _carry_over(self, previous: _RendezvousPlacer) -> dict[int, str]:
        # A join can only win slots and a leave only frees its own: what neither touches stays as it was decided.
        before = frozenset(previous._workers)
        now = frozenset(self._workers)
        joined = [(seed, name) for seed, name in zip(self._seeds, self._workers, strict=True) if name not in before]
        decided: dict[int, str] = {}
        seeds = dict(zip(self._workers, self._seeds, strict=True))
        for slot, worker in previous._decided.items():
            if worker not in now:
                continue
            best = _weight(seeds[worker], slot)
            for seed, name in joined:
                weight = _weight(seed, slot)
                if weight > best or (weight == best and name < worker):
                    best, worker = weight, name
            decided[slot] = worker
        return decided


class Rendezvous:
    """Highest random weight (Thaler and Ravishankar, 1998): a join or leave moves the ideal share and nothing else.

    The first look at a key costs O(workers), every further one O(1).
    """

    def place(self, workers: Sequence[str], previous: Placer | None) -> Placer:
        return _RendezvousPlacer(workers, previous if isinstance(previous, _RendezvousPlacer) else None)

    def __repr__(self) -> str:
        return "Rendezvous()"


# --- jump hash -------------------------------------------------------------------------------------------------------


class _JumpPlacer:
    __slots__ = ("_workers",)

    def __init__(self, workers: Sequence[str]) -> None:
        self._workers = tuple(workers)

    def owner(self, key: str) -> str:
        state, bucket, candidate = _digest(key), -1, 0
        while candidate < len(self._workers):
            bucket = candidate
            state = (state * 2862933555777941757 + 1) & _MASK
            candidate = int((bucket + 1) * ((1 << 31) / ((state >> 33) + 1)))
        return self._workers[bucket]


class JumpHash:
    """Jump consistent hash (Lamping and Veach, 2014) over the sorted workers: moves nearly everything when the first of
    them leaves. For pools whose workers only ever join at the end."""

    def place(self, workers: Sequence[str], previous: Placer | None) -> Placer:
        del previous
        return _JumpPlacer(workers)

    def __repr__(self) -> str:
        return "JumpHash()"


def placement_by_name(value: str | Placement) -> Placement:
    """Raises:
    InvalidOptionError: no placement has that name.
    """
    if not isinstance(value, str):
        if not callable(getattr(value, "place", None)):
            raise InvalidOptionError(f"a placement has a method place(workers, previous); {value!r} has none")
        return value
    match value:
        case "rendezvous":
            return Rendezvous()
        case "jump":
            return JumpHash()
        case _:
            raise InvalidOptionError(f"no placement is called {value!r}; there are 'rendezvous' and 'jump'")
