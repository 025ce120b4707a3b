"""Commits: several operations, in order, stopping at the first condition that does not hold.

Purpose: `Namespace.commit` without atomicity, in as few sequential round trips as is safe.

**What may travel together.** With one replica, unconditional map writes and the conditional one that follows them are sent at
once, without waiting in between: they go over one connection to one stream, whose server stores them in that order, so what is
stored is always a prefix. What is lost with the connection is not sent again behind what follows it: the group is
finished one by one. What such writes replaced is read afterwards, in one request if nothing came between them, and
beside the next operations. With several replicas a change of leader could lose an earlier write and keep a later one, so there
each operation waits for the one before it. Reads, appends (which may refuse) and acknowledgements (which must not overtake)
always wait; neighbouring reads, and neighbouring acknowledgements, go together.

**What is looked up ahead.** What later operations must know before they can be sent is read beside the first ones: the
registries for acknowledgements (sinks need them as of the beginning of the call), and into the cache the entries that
removals and conditional writes name (their guards find out whether they still stand). An absence seen early counts for
nothing: it is looked for again.

Invariants: the results are of a prefix; when anything was applied, a failure is `OutcomeUnknown`.
Neighbours: :mod:`corepool_nats.namespace` holds the parts; the single operations are those of writes, streams and sinks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

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
    When,
    check_key,
    check_name,
    check_value,
)
from corepool.errors import BackendUnavailable, InvalidOptionError, OutcomeUnknown, PayloadTooLarge
from corepool_nats.names import MapSubjects, StreamSubjects
from corepool_nats.receipts import read_receipt
from corepool_nats.registry import Known
from corepool_nats.sink import acknowledge
from corepool_nats.streams import check_event
from corepool_nats.writes import Blind, stretches

if TYPE_CHECKING:
    from corepool_nats.namespace import NatsNamespace

__all__ = ["check_ops", "run_commit"]

_MapWrite: TypeAlias = SetKey | DeleteKey


def check_ops(space: NatsNamespace, ops: Sequence[Op], most: int) -> None:
    """Check a whole commit before anything is sent.

    Raises:
        InvalidKeyError, InvalidOptionError, PayloadTooLarge
    """
    if len(ops) > most:
        raise PayloadTooLarge(f"a commit of {len(ops)} operations; at most {most} fit into one: make two of it")
    for at, op in enumerate(ops):
        match op:
            case SetKey() | DeleteKey() | GetKey():
                check_name("a map's name", op.map, space.capabilities)
                check_key(op.key, space.capabilities)
                if isinstance(op, SetKey):
                    check_value(op.value, space.capabilities)
            case Append():
                check_name("a stream's name", op.stream, space.capabilities)
                check_event(op.event, space)
                if op.stamp is not None and not (0 <= op.stamp < at and isinstance(ops[op.stamp], SetKey | DeleteKey)):
                    raise InvalidOptionError(
                        f"operation {at} is stamped by operation {op.stamp}, which is no earlier write"
                    )
            case Ack():
                pass


async def run_commit(space: NatsNamespace, ops: Sequence[Op], deadline: float) -> CommitResult:
    """Apply the operations.

    Raises:
        BackendUnavailable, OutcomeUnknown
    """
    run = _Run(space, ops, deadline)
    try:
        return await run.run()
    except BackendUnavailable as error:
        if run.applied:
            raise OutcomeUnknown(f"a part of the commit was applied, then: {error}") from None
        raise
    finally:
        await run.put_away()


class _Run:
    def __init__(self, space: NatsNamespace, ops: Sequence[Op], deadline: float) -> None:
        self._space = space
        self._ops = ops
        self._deadline = deadline
        self._results: list[OpResult] = []
        self._looking: list[tuple[list[int], asyncio.Task[list[Commit]]]] = []
        """The operations whose unconditional writes replaced something that is being read."""
        self._warming: asyncio.Task[object] | None = None
        self._registries: dict[StreamSubjects, asyncio.Task[Known]] = {}
        self.applied = False

    async def run(self) -> CommitResult:
        if any(isinstance(op, SetKey | DeleteKey | GetKey) for op in self._ops):
            asset = await self._space.assets.get(self._space.assets.maps, self._deadline)
            together = asset.replicas == 1
        else:
            together = False
        if len(self._ops) > 1:
            self._look_ahead()
        stopped: int | None = None
        while stopped is None and (at := len(self._results)) < len(self._ops):
            op = self._ops[at]
            if at and self._warming is not None and isinstance(op, SetKey | DeleteKey):
                await asyncio.wait([self._warming])
            match op:
                case DeleteKey(when=When(revision=None)) if together:
                    await self._delete(at)
                case SetKey() | DeleteKey():
                    end = self._group(at) if together else at + 1
                    await self._write(at, end)
                case GetKey():
                    reads = self._like(at, GetKey)
                    self._results += await asyncio.gather(*(self._get(cast("GetKey", each)) for each in reads))
                case Append():
                    self._results.append(await self._append(op))
                case Ack():
                    acks = self._like(at, Ack)
                    receipts = [cast("Ack", each).receipt for each in acks]
                    self._results += await acknowledge(self._space, receipts, self._deadline, self._registries)
                    self.applied = True
            last = len(self._results) - 1
            if self._stops(self._ops[last], self._results[last]):
                stopped = last
        for places, task in self._looking:
            for index, commit in zip(places, await task, strict=True):
                self._results[index] = commit
        return CommitResult(tuple(self._results), stopped)

    async def put_away(self) -> None:
        tasks: list[asyncio.Task[Any]] = [*(task for _, task in self._looking), *self._registries.values()]
        if self._warming is not None:
            tasks.append(self._warming)
        await _end(tasks)
        for task in tasks:
            if not task.cancelled():
                task.exception()  # whoever needed it has asked

    def _look_ahead(self) -> None:
        """Begin to read what operations after the first will need."""
        first, *later = self._ops
        places: dict[str, MapSubjects] = {}
        for op in later:
            if isinstance(op, DeleteKey) or (isinstance(op, SetKey) and op.when.revision):
                m = self._space.space.map(op.map)
                subject = m.key(op.key)
                known = self._space.cache.get(m, subject)
                if known is None or known.value is None or op.when.revision not in (None, known.sequence):
                    places[subject] = m
            elif isinstance(op, Ack):
                receipt = read_receipt(self._space.space, op.receipt)
                if receipt is not None and not isinstance(first, Ack) and receipt.subjects not in self._registries:
                    self._registries[receipt.subjects] = asyncio.create_task(
                        self._space.registries.load(receipt.subjects, self._deadline), name="corepool-nats-ahead"
                    )
        if places and not isinstance(first, DeleteKey):  # neighbouring removals read all of theirs together
            self._warming = asyncio.create_task(
                self._space.writes.look_at(places, self._deadline), name="corepool-nats-ahead"
            )

    def _like(self, at: int, kind: type[Op]) -> list[Op]:
        """The operation and its followers of the same kind."""
        end = at
        while end < len(self._ops) and isinstance(self._ops[end], kind):
            end += 1
        return list(self._ops[at:end])

    def _stops(self, op: Op, result: OpResult) -> bool:
        match op, result:
            case (SetKey() | DeleteKey(), Commit(applied=False)):
                return not op.optional
            case (Append(), Appended(id=None)):
                return not op.optional
            case _:
                return False

    # --- writes ------------------------------------------------------------------------------------------------------

    def _group(self, at: int) -> int:
        """The end of the unconditional writes from here on, and of the conditional one after them, if that need not read
        before it writes: a read would overtake the writes before it."""
        end = at
        while end < len(self._ops):
            op = self._ops[end]
            if not isinstance(op, SetKey | DeleteKey) or (isinstance(op, DeleteKey) and op.when.revision is None):
                break
            if op.when.revision is not None:
                m = self._space.space.map(op.map)
                sends = self._space.writes.sends_first(m, m.key(op.key), isinstance(op, DeleteKey), op.when)
                return end + 1 if sends or end == at else end
            end += 1
        return end

    async def _write(self, at: int, end: int) -> None:
        """Write a group; what its lost connection kept from being stored is written one by one."""
        ops = [cast("_MapWrite", op) for op in self._ops[at:end]]
        if len(ops) > 1:
            await self._write_together(at, ops)
        for op in ops[len(self._results) - at :]:
            subjects = self._space.space.map(op.map)
            value = op.value if isinstance(op, SetKey) else None
            commit = await self._space.writes.write(subjects, op.key, value, op.when, self._deadline)
            self._took(commit)

    async def _delete(self, at: int) -> None:
        """Remove neighbouring keys unconditionally: read those at once that are not known, then remove what is there, in
        order."""
        ops: list[DeleteKey] = []
        places: dict[str, MapSubjects] = {}
        for op in self._ops[at:]:
            if not (isinstance(op, DeleteKey) and op.when.revision is None):
                break
            subjects = self._space.space.map(op.map)
            if subjects.key(op.key) in places:
                break
            places[subjects.key(op.key)] = subjects
            ops.append(op)
        known = await self._space.writes.known_at(places, self._deadline)
        if len(ops) == 1:
            ((subject, subjects),) = places.items()
            self._took(await self._space.writes.remove(subjects, ops[0].key, *known[subject], self._deadline))
            return
        tasks = [
            asyncio.create_task(
                self._space.writes.remove(subjects, op.key, *known[subject], self._deadline),
                name="corepool-nats-remove",
            )
            for op, (subject, subjects) in zip(ops, places.items(), strict=True)
        ]
        try:
            await asyncio.wait(tasks)
        finally:
            await _end(tasks)
        failed: BaseException | None = None
        for task in tasks:
            error = task.exception()
            self.applied = self.applied or error is None or not isinstance(error, BackendUnavailable)
            failed = failed or error
        if failed is not None:
            raise failed
        self._results += [task.result() for task in tasks]

    def _took(self, commit: Commit) -> None:
        self._results.append(commit)
        self.applied = self.applied or commit.applied

    async def _write_together(self, at: int, ops: Sequence[_MapWrite]) -> None:
        """Tasks begin in the order in which they are made, and each sends in its first step."""
        link = await self._space.client.link(self._deadline)
        tasks: list[asyncio.Task[int] | asyncio.Task[Commit]] = []
        writes = self._space.writes
        try:
            for op in ops:
                m = self._space.space.map(op.map)
                if isinstance(op, SetKey) and op.when.revision is None:
                    tasks.append(asyncio.create_task(writes.send(m.key(op.key), op.value, self._deadline, link)))
                else:
                    value = op.value if isinstance(op, SetKey) else None
                    tasks.append(asyncio.create_task(writes.write(m, op.key, value, op.when, self._deadline, on=link)))
            await asyncio.wait(tasks)
        finally:
            await _end(tasks)
        self._collect(at, ops, tasks)

    def _collect(
        self, at: int, ops: Sequence[_MapWrite], tasks: Sequence[asyncio.Task[int] | asyncio.Task[Commit]]
    ) -> None:
        """Take the results up to the first that was not stored.

        Raises:
            OutcomeUnknown: of one of them, or a later one was stored although an earlier was not.
        """
        failed = False
        blind: list[tuple[int, Blind]] = []
        for index, (op, task) in enumerate(zip(ops, tasks, strict=True)):
            error = task.exception()
            if error is not None and not isinstance(error, BackendUnavailable):
                self.applied = True
                raise error
            if error is not None:
                failed = True
                continue
            if failed:
                raise OutcomeUnknown("of several writes sent together, an earlier one was lost and a later one stored")
            result = task.result()
            if isinstance(result, Commit):
                self._took(result)
                continue
            self._took(Commit(True, result, None))
            subjects: MapSubjects = self._space.space.map(op.map)
            blind.append((at + index, Blind(subjects, op.key, subjects.key(op.key), result)))
        for stretch in stretches(blind):
            looking = self._space.writes.followed([each for _, each in stretch], self._deadline)
            task_ = asyncio.create_task(looking, name="corepool-nats-look")
            self._looking.append(([index for index, _ in stretch], task_))

    # --- the others --------------------------------------------------------------------------------------------------

    async def _get(self, op: GetKey) -> Entry | None:
        subjects = self._space.space.map(op.map)
        held, marker = await self._space.writes.look(subjects, subjects.key(op.key), self._deadline)
        return held.entry(op.key, marker) if held is not None else None

    async def _append(self, op: Append) -> Appended:
        stamp: int | None = None
        if op.stamp is not None:
            written = self._results[op.stamp]
            stamp = written.revision if isinstance(written, Commit) else None
        subjects = self._space.space.stream(op.stream)
        done = await self._space.appends.append(subjects, op.event, stamp, self._deadline)
        if not isinstance(done, Appended):
            return Appended(None, Refusal.MISSING)
        self.applied = self.applied or done.id is not None
        return done


async def _end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel what is not done yet, and wait until it is."""
    running = [task for task in tasks if not task.done()]
    for task in running:
        task.cancel()
    if running:
        await asyncio.wait(running)
