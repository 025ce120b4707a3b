"""The replicated map's store: the protocol a driver implements, and its value types.

Purpose: say exactly what a map on a backend promises, and nothing of how it is done.
Invariants (each has a test of the same name in the conformance kit):

- **M1 order.** Commits of one map are totally ordered by an integer revision, and every watcher sees them in that order.
- **M2 atomicity.** A conditional write is decided and applied atomically against that order. A lost race is a value
  (``Commit.applied`` is False), never an exception.
- **M3 no gaps.** After a commit with revision r is acknowledged, every live watch eventually yields a state at or past r,
  whatever happened to its connection. A watch never goes back, except with a larger ``Snapshot.generation``.
- **M4 no blocking.** A watch that nobody reads blocks no writer, no other watch and no close.
- **M5 outcome.** A write that raises is certainly not applied (`BackendUnavailable`) or unknown (`OutcomeUnknown`).
- **M6 cancellation.** A cancelled call leaves the connection usable; no later call receives its reply.

Neighbours: implemented by drivers, used by ``corepool.rmap`` and ``corepool.pool``. Values are ``bytes``, keys ``str``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol, Self, TypeAlias

import msgspec

__all__ = [
    "ABSENT",
    "ALWAYS",
    "REVISION",
    "AppendValues",
    "Change",
    "Cleared",
    "Commit",
    "Delete",
    "Entry",
    "Increment",
    "MapStore",
    "RemoveValues",
    "Set",
    "Snapshot",
    "Updated",
    "ValueOp",
    "Watch",
    "WatchEvent",
    "When",
    "Write",
]


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One key's value and the revision of the commit that wrote it."""

    key: str
    value: bytes
    revision: int


class When(msgspec.Struct, frozen=True, gc=False):
    """A write's condition: ``None`` always, ``0`` the key is absent, ``n > 0`` the key's entry has revision n.

    For ``clear`` the revision is the map's own: the map's newest commit has revision n (or: the map is empty).
    """

    revision: int | None


ALWAYS = When(None)
ABSENT = When(0)


def REVISION(n: int) -> When:  # noqa: N802  a constructor of a constant, spelled like ALWAYS and ABSENT
    """The condition "the entry is the one of revision n"."""
    if n <= 0:
        raise ValueError(f"a revision is a positive integer, not {n}")
    return When(n)


class Commit(msgspec.Struct, frozen=True, gc=False):
    """What became of a write.

    applied: whether the condition held and the write took effect.
    revision: if applied, the write's own revision. If not, a revision at which the refusal was true: a replica that has
        reached it shows why (0 if there is none to wait for).
    previous: the entry that stood there just before the write was decided; if not applied, the one that stood in the way.

    Deleting an absent key or clearing an empty map changes nothing, counts as applied, and may return the map's current
    revision. Whatever revision it returns, every watch reaches it (M3).
    """

    applied: bool
    revision: int
    previous: Entry | None


class Set(msgspec.Struct, frozen=True, gc=False):
    """A write for :meth:`MapStore.apply`: set key to value."""

    key: str
    value: bytes
    when: When = ALWAYS


class Delete(msgspec.Struct, frozen=True, gc=False):
    """A write for :meth:`MapStore.apply`: remove the key."""

    key: str
    when: When = ALWAYS


Write: TypeAlias = Set | Delete


# --- atomic value operations: the capability ``value_ops`` -----------------------------------------------------------


class Increment(msgspec.Struct, frozen=True, gc=False):
    """Add ``by`` to a decimal counter (absent counts as 0). Counters are 64-bit signed."""

    by: int


class AppendValues(msgspec.Struct, frozen=True, gc=False):
    """Append to a list (see :mod:`corepool.driver.values`); with ``unique`` only those it does not hold yet."""

    values: tuple[bytes, ...]
    unique: bool = False


class RemoveValues(msgspec.Struct, frozen=True, gc=False):
    """Remove every occurrence of each value from a list. A list that becomes empty stays, as an empty list."""

    values: tuple[bytes, ...]


ValueOp: TypeAlias = Increment | AppendValues | RemoveValues


class Updated(msgspec.Struct, frozen=True, gc=False):
    """The result of an atomic value operation: the new value and the revision that wrote it.

    An operation that changes nothing (all values were there already) writes nothing; ``revision`` is then the entry's.
    """

    value: bytes
    revision: int
    previous: Entry | None


# --- watching --------------------------------------------------------------------------------------------------------


class Snapshot(msgspec.Struct, frozen=True, gc=False):
    """The whole map at a revision (0: the map never held anything).

    generation: grows, for this watch, each time the store was found to have gone back (it lost acknowledged writes, was
        restored or recreated). Only then may ``revision`` be smaller than what the watch has yielded before.
    """

    revision: int
    entries: tuple[Entry, ...]
    generation: int = 0


class Change(msgspec.Struct, frozen=True, gc=False):
    """One key changed: to ``value``, or to nothing if that is None."""

    revision: int
    key: str
    value: bytes | None


class Cleared(msgspec.Struct, frozen=True, gc=False):
    """Every key of the map is gone, in one step."""

    revision: int


WatchEvent: TypeAlias = Snapshot | Change | Cleared


class Watch(Protocol):
    """A live feed of one map: first a Snapshot, then Change and Cleared in strictly increasing revision (M1, M3).

    Every commit past a Snapshot is yielded, unless a later Snapshot covers it: a replica equals the map at each revision that
    the watch yields.
    When the feed is lost the driver reconnects by itself and yields a new Snapshot: iteration never raises
    for a lost connection. It ends when the watch or its backend is closed.
    """

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> WatchEvent: ...

    async def aclose(self) -> None:
        """End the watch; a pending ``__anext__`` ends with ``StopAsyncIteration``. Idempotent."""
        ...


class MapStore(Protocol):
    """One named map on a backend. Cheap to make; holds no connection of its own.

    Every method raises `BackendUnavailable` (not applied) or, for writes, `OutcomeUnknown`; `InvalidKeyError` and
    `PayloadTooLarge` before anything is sent.
    """

    @property
    def name(self) -> str: ...

    async def get(self, key: str) -> Entry | None:
        """The entry, linearizable: sees every write acknowledged before the call began."""
        ...

    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        """The entries that exist, by key, in one round trip. Each is linearizable on its own."""
        ...

    async def set(self, key: str, value: bytes, when: When = ALWAYS) -> Commit:
        """Write the key if the condition holds (M2)."""
        ...

    async def delete(self, key: str, when: When = ALWAYS) -> Commit:
        """Remove the key if the condition holds (M2)."""
        ...

    async def clear(self, when: When = ALWAYS) -> Commit:
        """Remove all keys in one step: no reader, watch or joiner ever sees half a clear.

        The condition speaks of the map, not of a key: see :class:`When`. ``previous`` is None. If not applied, ``revision``
        is the map's current one. Revisions go on increasing.
        """
        ...

    async def apply(self, writes: Sequence[Write]) -> list[Commit]:
        """Several independent writes in one round trip, applied in order; one that is refused does not stop the others."""
        ...

    async def update(self, key: str, op: ValueOp) -> Updated:
        """An atomic value operation. Raises `UnsupportedCapability` without the capability ``value_ops``;
        `WireError` if the value is not a counter or list, `OverflowError` if a counter would leave 64 bits. What raises
        changes nothing."""
        ...

    def scan(self, prefix: str = "") -> AsyncIterator[Entry]:
        """Entries whose key starts with ``prefix``, in any order.

        Every key that was there during the whole scan is yielded exactly once; one that came or went meanwhile may be.
        """
        ...

    def watch(self) -> Watch:
        """A new feed of this map."""
        ...

    async def destroy(self) -> None:
        """Clear, and free what the backend holds. If the map is used again its revisions still go on increasing."""
        ...
