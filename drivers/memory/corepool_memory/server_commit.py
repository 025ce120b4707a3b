"""Batches: several operations of one namespace, all or nothing.

Purpose: decide a batch on a sketch of what it would change, then apply it, so that a batch that stops has changed nothing
and nobody was told of it.
Invariants:

- every operation is decided on the state that the operations before it leave behind;
- deciding changes nothing but counters (a stopped batch leaves gaps in revisions and ids, never a number used twice);
- applying cannot fail, and nothing runs between deciding and applying.

Neighbours: `Server.commit`. A backend without the capability calls it with one operation at a time, and hands over the
``earlier`` results, to which ``Append.stamp`` may refer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from corepool.driver import (
    Ack,
    Append,
    Appended,
    Commit,
    CommitResult,
    DeleteKey,
    Entry,
    GetKey,
    Op,
    OpResult,
    Refusal,
    SetKey,
)
from corepool_memory.server_maps import MapSpace
from corepool_memory.server_streams import StreamSpace

__all__ = ["commit"]


def commit(maps: MapSpace, streams: StreamSpace, ops: Sequence[Op], earlier: Sequence[OpResult] = ()) -> CommitResult:
    """Apply ``ops`` in order, or none of them if a condition does not hold."""
    return _Batch(maps, streams, earlier).run(ops)


class _Batch:
    """A batch that is being decided, and the sketch of what its operations so far would change."""

    __slots__ = ("_acked", "_added", "_entries", "_maps", "_results", "_revisions", "_skip", "_steps", "_streams")

    def __init__(self, maps: MapSpace, streams: StreamSpace, earlier: Sequence[OpResult]) -> None:
        self._maps = maps
        self._streams = streams
        self._results: list[OpResult] = list(earlier)
        self._skip = len(earlier)
        self._entries: dict[tuple[str, str], Entry | None] = {}
        self._revisions: dict[str, int] = {}
        self._added: dict[str, int] = {}  # events by stream
        self._acked: set[str] = set()
        self._steps: list[Callable[[], object]] = []

    def run(self, ops: Sequence[Op]) -> CommitResult:
        for index, op in enumerate(ops):
            match op:
                case SetKey() | DeleteKey():
                    went = self._write(op)
                case GetKey(map=name, key=key):
                    self._results.append(self._entry(name, key))
                    continue
                case Append():
                    went = self._append(op)
                case Ack(receipt=receipt):
                    self._results.append(self._ack(receipt))
                    continue
            if not went and not op.optional:
                return CommitResult(tuple(self._results[self._skip :]), index)
        for step in self._steps:
            step()
        return CommitResult(tuple(self._results[self._skip :]))

    # --- maps ---------------------------------------------------------------------------------------------------------

    def _entry(self, name: str, key: str) -> Entry | None:
        place, entries = (name, key), self._entries
        return entries[place] if place in entries else self._maps.get(name, key)

    def _write(self, op: SetKey | DeleteKey) -> bool:
        maps, name, key, entries = self._maps, op.map, op.key, self._entries
        place = (name, key)
        previous = entries[place] if place in entries else maps.get(name, key)
        wanted = op.when.revision
        if wanted is not None and wanted != (0 if previous is None else previous.revision):
            self._results.append(Commit(False, self._refused_at(op), previous))
            return False
        if previous is None and isinstance(op, DeleteKey):
            self._results.append(Commit(True, self._revision_of(name), None))
            return True
        maps.revision += 1
        revision = maps.revision
        if isinstance(op, SetKey):
            entries[place] = entry = Entry(key, op.value, revision)
            self._steps.append(partial(maps.put, name, entry))
        else:
            entries[place] = None
            self._steps.append(partial(maps.drop, name, key, revision))
        self._revisions[name] = revision
        self._results.append(Commit(True, revision, previous))
        return True

    def _revision_of(self, name: str) -> int:
        revision = self._revisions.get(name)
        return self._maps.revision_of(name) if revision is None else revision

    def _refused_at(self, op: SetKey | DeleteKey) -> int:
        """A revision that shows the refusal: none if this very batch, which stops here, made it."""
        if not op.optional and (op.map, op.key) in self._entries:
            return 0
        return self._revision_of(op.map) if op.optional else self._maps.revision_of(op.map)

    # --- streams ------------------------------------------------------------------------------------------------------

    def _append(self, op: Append) -> bool:
        state = self._streams.state(op.stream)
        added = self._added.get(op.stream, 0)
        refusal = Refusal.MISSING if state is None else state.refusal(added=added)
        if state is None or refusal is not None:
            self._results.append(Appended(None, refusal))
            return False
        stamp = None if op.stamp is None else self._results[op.stamp]
        event = self._streams.make_event(
            op.event, stamp.revision if isinstance(stamp, Commit) and stamp.applied else None
        )
        self._added[op.stream] = added + 1
        self._steps.append(partial(state.add, event))
        self._results.append(Appended(event.id))
        return True

    def _ack(self, receipt: str) -> bool:
        acked = self._acked
        sink, event_id = self._streams.receipts.current.get(receipt, (None, ""))
        if sink is None or receipt in acked:
            return False
        acked.add(receipt)
        if sink.stream.frees(event_id, acked):
            name = sink.stream.name
            self._added[name] = self._added.get(name, 0) - 1
        self._steps.append(partial(sink.ack, receipt))
        return True
