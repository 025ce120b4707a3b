"""What a map answers from its replica: synchronous, local, possibly old.

Purpose: the half of `ReplicatedMap` that never speaks to the store (with the waits and subscriptions on the replica).
Invariants: a read is one step, and costs a dictionary look-up; a map without a replica refuses each of them and names the
remedy. Views show the values that could be decoded.
Neighbours: base of :class:`corepool.rmap.replicated.ReplicatedMap`; reads :class:`corepool.rmap.replica.Replica`.
"""

from __future__ import annotations

import random
from collections.abc import ItemsView, KeysView
from types import MappingProxyType
from typing import Generic, NamedTuple, NoReturn, TypeVar, overload

from corepool.driver import Clock, MapStore, decode_counter, decode_list
from corepool.errors import InvalidOptionError, UnsupportedCapability
from corepool.rmap.codecs import Codec
from corepool.rmap.feed import Feed
from corepool.rmap.replica import Replica
from corepool.rmap.subscriptions import Changes, MapSnapshot, Subscription

__all__ = ["Held", "LocalReads"]

T = TypeVar("T")
D = TypeVar("D")


class Held(NamedTuple, Generic[T]):
    """A value, and the revision of the commit that wrote it."""

    value: T
    revision: int


class LocalReads(Generic[T]):
    """Reads from the replica, and waits on it."""

    def __init__(
        self, store: MapStore, codec: Codec[T], *, replicated: bool, clock: Clock, rng: random.Random, value_ops: bool
    ) -> None:
        self._store = store
        self._codec = codec
        self._random = rng
        self._value_ops = value_ops
        self._replica: Replica[T] = Replica(store.name, codec)
        self._feed = Feed(store, self._replica, clock, rng) if replicated else None
        self._closed = False

    @property
    def name(self) -> str:
        """The map's name."""
        return self._store.name

    @property
    def store(self) -> MapStore:
        """What it stands on: raw values, conditions on revisions."""
        return self._store

    @property
    def closed(self) -> bool:
        """Whether `aclose` was called, or the backend was closed: the replica is frozen."""
        return self._closed or self._replica.ended

    # --- local reads: synchronous ---------------------------------------------------------------------------------------

    def _need_replica(self, what: str) -> None:
        if self._feed is None:
            self._refuse(what)

    def _refuse(self, what: str) -> NoReturn:
        raise UnsupportedCapability(
            f"map {self.name!r} was joined with replicated=False and has no replica for {what}; "
            f"use fetch(), fetch_many() or scan(), or join it with replicated=True"
        )

    @property
    def revision(self) -> int:
        """The revision the replica has reached (0: the map never held anything)."""
        self._need_replica("revision")
        return self._replica.revision

    @property
    def generation(self) -> int:
        """How often the store was seen to go back since this map was joined. It never falls."""
        self._need_replica("generation")
        return self._replica.generation

    @property
    def undecodable(self) -> int:
        """How many values could not be decoded so far and were set aside."""
        return self._replica.undecodable

    @property
    def restarts(self) -> int:
        """How often the watch failed by an error of its own and was replaced."""
        return self._feed.restarts if self._feed else 0

    @property
    def fed_at(self) -> float:
        """When the last event arrived, on the clock's ``monotonic``: for health checks."""
        if self._feed is None:
            self._refuse("fed_at")
        return self._feed.fed_at

    @property
    def waiting(self) -> int:
        """How many calls wait for a revision."""
        return self._replica.waiting

    @overload
    def get(self, key: str) -> T | None: ...

    @overload
    def get(self, key: str, default: D) -> T | D: ...

    def get(self, key: str, default: D | None = None) -> T | D | None:
        """The value in the replica, or ``default``. What others wrote may not have arrived yet: see `fetch`."""
        if self._feed is None:
            self._refuse("get()")
        return self._replica.values.get(key, default)

    def __getitem__(self, key: str) -> T:
        if self._feed is None:
            self._refuse("[]")
        return self._replica.values[key]

    def __contains__(self, key: object) -> bool:
        self._need_replica("in")
        return key in self._replica.values

    def __len__(self) -> int:
        self._need_replica("len()")
        return len(self._replica.values)

    def keys(self) -> KeysView[str]:
        """A live view of the keys whose values can be read. Copy it before an await."""
        self._need_replica("keys()")
        return MappingProxyType(self._replica.values).keys()

    def items(self) -> ItemsView[str, T]:
        """A live view of keys and values. Copy it before an await."""
        self._need_replica("items()")
        return MappingProxyType(self._replica.values).items()

    def entry(self, key: str) -> Held[T] | None:
        """The value in the replica with the revision that wrote it (that of a snapshot's entry is the entry's own)."""
        self._need_replica("entry()")
        if key not in self._replica.values:
            return None
        return Held(self._replica.values[key], self._replica.raw[key].revision)

    def get_list(self, key: str) -> list[T]:
        """The list in the replica that `append_values` made; empty if there is none.

        Raises:
            WireError: the value is not a list.
        """
        self._need_replica("get_list()")
        entry = self._replica.raw.get(key)
        return [] if entry is None else self._decode_list(entry.value)

    def get_counter(self, key: str) -> int:
        """The counter in the replica that `increment` made; 0 if there is none.

        Raises:
            WireError: the value is not a counter.
        """
        self._need_replica("get_counter()")
        entry = self._replica.raw.get(key)
        return 0 if entry is None else decode_counter(entry.value)

    def set_aside(self) -> dict[str, bytes]:
        """The values in the replica that could not be decoded (or are lists that only `get_list` reads), as they are."""
        self._need_replica("set_aside()")
        return {key: entry.value for key, entry in self._replica.raw.items() if key not in self._replica.values}

    def snapshot(self) -> MapSnapshot[T]:
        """A copy of the replica, with its revision."""
        self._need_replica("snapshot()")
        return self._replica.snapshot()

    # --- listening and waiting ------------------------------------------------------------------------------------------

    def subscribe(self) -> Subscription:
        """Hear that something changed. Coalescing: unread, it costs one slot and holds up nobody."""
        self._need_replica("subscribe()")
        return self._replica.subscribe()

    def changes(self, limit: int = 1024) -> Changes[T]:
        """Get every change, after a snapshot; on more than ``limit`` unread ones `Lagged` and a snapshot instead."""
        self._need_replica("changes()")
        if limit < 1:
            raise InvalidOptionError(f"changes() needs room for at least 1 change, not {limit}")
        return self._replica.changes(limit)

    async def wait_for_revision(self, revision: int, *, generation: int | None = None) -> None:
        """Return once the replica has reached ``revision``, as counted in ``generation`` (default: the current one).

        Raises:
            OutcomeUnknown: the store went back (larger generation): the revision may never come.
            BackendUnavailable: the map is closed, or was while waiting.
        """
        self._need_replica("wait_for_revision()")
        await self._replica.wait(revision, self._replica.generation if generation is None else generation)

    def _decode_list(self, data: bytes) -> list[T]:
        return [self._codec.decode(element) for element in decode_list(data)]
