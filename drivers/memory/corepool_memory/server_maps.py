"""The maps of one namespace, as the server holds them.

Purpose: the meaning of :mod:`corepool.driver.maps` in pure, synchronous code: no task, no clock, no waiting.
Invariants:

- one revision counter serves all maps of the namespace, so a map that was destroyed and forgotten, and is used again, goes
  on with larger revisions without leaving anything behind but ``_floor``, the largest revision that was forgotten;
- a map keeps its entries in an insertion-ordered dict, so whatever is listed is a function of the writes alone;
- watchers are told of a commit in revision order, before the call that made it returns. Their tuple is replaced, never
  changed in place: a watcher may detach while it is being told.

Neighbours: `Server` owns one `MapSpace` per namespace; :mod:`~corepool_memory.server_commit` decides batches on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from corepool.driver import (
    ALWAYS,
    Change,
    Cleared,
    Commit,
    Delete,
    Entry,
    Set,
    Snapshot,
    Updated,
    ValueOp,
    WatchEvent,
    When,
    Write,
    apply_value_op,
)
from corepool.errors import PayloadTooLarge
from corepool_memory.transport import Detach, Push

__all__ = ["MapSpace", "MapState", "SavedMaps", "holds"]


def holds(when: When, entry: Entry | None) -> bool:
    """Whether a key's condition holds for the entry that is there."""
    wanted = when.revision
    if wanted is None:
        return True
    if wanted == 0:
        return entry is None
    return entry is not None and entry.revision == wanted


@attrs.define(slots=True, eq=False)
class _Watcher:
    push: Push[WatchEvent]


@attrs.define(slots=True, eq=False)
class MapState:
    """One map. ``disposable``: nothing is lost if it is forgotten while nobody watches it and it is empty."""

    revision: int
    entries: dict[str, Entry] = attrs.field(factory=dict[str, Entry])
    watchers: tuple[_Watcher, ...] = ()
    disposable: bool = True

    def put(self, entry: Entry) -> None:
        self.entries[entry.key] = entry
        self.revision = entry.revision
        self.disposable = False
        if self.watchers:
            self._tell(Change(entry.revision, entry.key, entry.value))

    def drop(self, key: str, revision: int) -> None:
        del self.entries[key]
        self.revision = revision
        if self.watchers:
            self._tell(Change(revision, key, None))

    def clear(self, revision: int) -> None:
        self.entries.clear()
        self.revision = revision
        self._tell(Cleared(revision))

    def snapshot(self, generation: int) -> Snapshot:
        return Snapshot(self.revision, tuple(self.entries.values()), generation)

    def _tell(self, event: WatchEvent) -> None:
        for watcher in self.watchers:
            watcher.push(event)


@attrs.frozen(slots=True)
class SavedMaps:
    """A checkpoint of a `MapSpace`: the counters, and (revision, entries) by map."""

    revision: int
    floor: int
    maps: dict[str, tuple[int, dict[str, Entry]]]


class MapSpace:
    """The maps of one namespace. ``revision`` is the newest of all of them."""

    __slots__ = ("_floor", "_maps", "generation", "revision")

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.revision = 0
        self._floor = 0
        self._maps: dict[str, MapState] = {}

    # --- reading ------------------------------------------------------------------------------------------------------

    def get(self, name: str, key: str) -> Entry | None:
        state = self._maps.get(name)
        return None if state is None else state.entries.get(key)

    def get_many(self, name: str, keys: Sequence[str]) -> dict[str, Entry]:
        state = self._maps.get(name)
        if state is None:
            return {}
        return {key: state.entries[key] for key in keys if key in state.entries}

    def entries(self, name: str, prefix: str = "") -> list[Entry]:
        """All entries whose key starts with ``prefix``, at one instant."""
        state = self._maps.get(name)
        if state is None:
            return []
        if not prefix:
            return list(state.entries.values())
        return [entry for key, entry in state.entries.items() if key.startswith(prefix)]

    def revision_of(self, name: str) -> int:
        """The revision of the map's newest commit; of one that was forgotten or never used, one at which it is empty."""
        state = self._maps.get(name)
        return self._floor if state is None else state.revision

    def names(self) -> list[str]:
        """The maps that hold something."""
        return [name for name, state in self._maps.items() if state.entries]

    # --- writing ------------------------------------------------------------------------------------------------------

    def set(self, name: str, key: str, value: bytes, when: When = ALWAYS) -> Commit:
        previous = self.get(name, key)
        if not holds(when, previous):
            return Commit(False, self.revision_of(name), previous)
        return Commit(True, self._put(name, key, value), previous)

    def delete(self, name: str, key: str, when: When = ALWAYS) -> Commit:
        previous = self.get(name, key)
        if not holds(when, previous):
            return Commit(False, self.revision_of(name), previous)
        if previous is None:  # nothing changes, and the map's own revision shows that
            return Commit(True, self.revision_of(name), None)
        self.revision += 1
        self.drop(name, key, self.revision)
        return Commit(True, self.revision, previous)

    def apply(self, name: str, writes: Sequence[Write]) -> list[Commit]:
        """Independent writes in order; one that is refused does not stop the others."""
        commits: list[Commit] = []
        for write in writes:
            match write:
                case Set(key=key, value=value, when=when):
                    commits.append(self.set(name, key, value, when))
                case Delete(key=key, when=when):
                    commits.append(self.delete(name, key, when))
        return commits

    def update(self, name: str, key: str, op: ValueOp, limit: int) -> Updated:
        """An atomic value operation.

        Raises:
            WireError, OverflowError: see `corepool.driver.apply_value_op`.
            PayloadTooLarge: the new value would be over ``limit`` bytes.
        """
        previous = self.get(name, key)
        value = apply_value_op(None if previous is None else previous.value, op)
        if previous is not None and previous.value == value:
            return Updated(value, previous.revision, previous)
        if len(value) > limit:
            raise PayloadTooLarge(
                f"the value would grow to {len(value)} bytes, over the backend's limit of {limit}; spread it over several keys"
            )
        return Updated(value, self._put(name, key, value), previous)

    def clear(self, name: str, when: When = ALWAYS) -> Commit:
        current = self.revision_of(name)
        state = self._maps.get(name)
        empty = state is None or not state.entries
        wanted = when.revision
        if wanted is not None and not (empty if wanted == 0 else wanted == current):
            return Commit(False, current, None)
        if state is None or empty:
            return Commit(True, current, None)
        self.revision += 1
        state.clear(self.revision)
        return Commit(True, self.revision, None)

    def destroy(self, name: str) -> None:
        state = self._maps.get(name)
        if state is not None:
            self.clear(name)
            state.disposable = True
            self._forget_if_idle(name, state)

    def put(self, name: str, entry: Entry) -> None:
        """Store an entry of a batch that has been decided."""
        self.state(name).put(entry)

    def drop(self, name: str, key: str, revision: int) -> None:
        """Remove an entry, as a batch has decided."""
        self.state(name).drop(key, revision)

    def state(self, name: str) -> MapState:
        """The map, made if need be."""
        state = self._maps.get(name)
        if state is None:
            state = self._maps[name] = MapState(self._floor)
        return state

    def _put(self, name: str, key: str, value: bytes) -> int:
        self.revision += 1
        self.put(name, Entry(key, value, self.revision))
        return self.revision

    # --- watching -----------------------------------------------------------------------------------------------------

    def watch(self, name: str, push: Push[WatchEvent]) -> Detach:
        """Feed ``push`` with a snapshot and every later commit, until the detacher is called."""
        state = self.state(name)
        watcher = _Watcher(push)
        state.watchers = (*state.watchers, watcher)

        def detach() -> None:
            state.watchers = tuple(other for other in state.watchers if other is not watcher)
            self._forget_if_idle(name, state)

        push(state.snapshot(self.generation))
        return detach

    def watcher_count(self) -> int:
        return sum(len(state.watchers) for state in self._maps.values())

    def _forget_if_idle(self, name: str, state: MapState) -> None:
        if state.disposable and not state.entries and not state.watchers and self._maps.get(name) is state:
            self._floor = max(self._floor, state.revision)
            del self._maps[name]

    # --- losing acknowledged writes -----------------------------------------------------------------------------------

    def save(self) -> SavedMaps:
        return SavedMaps(
            self.revision,
            self._floor,
            {name: (state.revision, dict(state.entries)) for name, state in self._maps.items() if not state.disposable},
        )

    def restore(self, saved: SavedMaps | None, generation: int) -> None:
        """Go back to ``saved`` (None: to nothing); every watcher gets a snapshot with the larger generation (R13)."""
        saved = saved or SavedMaps(0, 0, {})
        watched = {name: state for name, state in self._maps.items() if state.watchers}
        self.generation, self.revision, self._floor = generation, saved.revision, saved.floor
        self._maps = {}
        for name, (revision, entries) in saved.maps.items():
            state = watched.pop(name, None) or MapState(revision)
            state.revision, state.entries, state.disposable = revision, dict(entries), False
            self._maps[name] = state
        for name, state in watched.items():
            state.revision, state.entries, state.disposable = saved.floor, {}, True
            self._maps[name] = state
        for state in self._maps.values():
            for watcher in state.watchers:
                watcher.push(state.snapshot(generation))
