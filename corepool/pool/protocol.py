"""Each transition of a job record as one commit, and what to do when nobody knows whether it was applied.

Purpose: the order of writing (R4: attention entry, record, payload, event) and the resolution of unknown outcomes (R2), once.
Invariants: exactly one write of a commit is conditional on the record's revision, and everything hinges on it; what comes
before it is harmless if it stays alone, what comes after it is idempotent and found again through ``attention`` if it is
lost. Nothing here depends on a commit being atomic.
Neighbours: ``transitions`` says which record comes next; dispatch, job, moves, cleanup and sweeper call this.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from corepool.driver import (
    ABSENT,
    REVISION,
    Ack,
    Append,
    Appended,
    Clock,
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
from corepool.errors import BackendUnavailable, OutcomeUnknown
from corepool.pool.store import PoolStore, Stored
from corepool.pool.transitions import attention, attention_key, is_owned_by
from corepool.pool.wire import (
    Answer,
    JobRecord,
    JobState,
    ReplyTo,
    StartEvent,
    StopEvent,
    Verdict,
    encode,
    event,
)

__all__ = ["JobProtocol", "Outcome"]


_CARRIED_BYTES = 1024
"""A payload up to this size goes with its doorbell."""


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """What became of a transition.

    applied: the record is now what was wanted, at ``revision``.
    current: if not applied, what stands there instead (None: no record).
    doubtful: it is known only after an unknown outcome. If not applied now, it may have been for a while; if it was a
        removal, the record is gone, but perhaps by another hand.
    refusal: the doorbell's stream refused. With an atomic backend nothing was applied then; otherwise the record was.
    results: of the operations after the record, as far as they were carried out.
    """

    applied: bool
    revision: int
    current: Stored | None
    refusal: Refusal | None = None
    results: tuple[OpResult, ...] = ()
    doubtful: bool = False

    @property
    def payload(self) -> bytes | None:
        """Of a claim: the job's payload, None if it is missing."""
        for result in self.results:
            if isinstance(result, Entry):
                return result.value
        return None

    @property
    def event_id(self) -> str | None:
        """Of the event that was appended."""
        for result in self.results:
            if isinstance(result, Appended):
                return result.id
        return None


class JobProtocol:
    """The transitions of job records on one pool's store."""

    def __init__(self, store: PoolStore, clock: Clock, slow: float) -> None:
        """slow: seconds after which a sweeper may have forgotten an entry that was written ahead of its record."""
        self._store = store
        self._clock = clock
        self._slow = slow

    # --- the transitions, in the order of a job's life ---

    async def admit(self, key: str, record: JobRecord, payload: bytes) -> Outcome:
        """A new job: refused if the key has a record (``current``), or if its target's inbox is gone or the queue full."""
        store = self._store
        carried = payload if store.atomic and len(payload) <= _CARRIED_BYTES else None
        return await self._transition(
            key,
            record.job_id,
            [self._attend(key, record)],
            SetKey(store.jobs, key, encode(record), ABSENT),
            [
                SetKey(store.payloads, record.job_id, payload),
                Append(store.destination(record.worker), event(StartEvent(key, record, carried)), stamp=1),
            ],
        )

    async def claim(
        self, key: str, prior: Stored, record: JobRecord, receipt: str | None, *, read_payload: bool = True
    ) -> Outcome:
        """PENDING (or, after fencing, one's own STARTING or RUNNING) becomes STARTING."""
        store = self._store
        before: list[Op] = [SetKey(store.owned(record.worker), key, record.job_id.encode())]
        if prior.record.state is JobState.RUNNING:
            before.insert(0, self._attend(key, record))
        after: list[Op] = [GetKey(store.payloads, record.job_id)] if read_payload else []
        if receipt is not None:
            after.append(Ack(receipt))
        write = SetKey(store.jobs, key, encode(record), REVISION(prior.revision))
        return await self._transition(key, record.job_id, before, write, after)

    async def confirm(self, key: str, prior: Stored, record: JobRecord) -> Outcome:
        """STARTING becomes RUNNING, and the dispatcher is answered."""
        write = SetKey(self._store.jobs, key, encode(record), REVISION(prior.revision))
        after = [self._unattend(prior.record), *self._answers([prior.record.reply], Verdict.DONE)]
        return await self._transition(key, record.job_id, [], write, after)

    async def release(self, key: str, prior: Stored, record: JobRecord) -> Outcome:
        """The record becomes PENDING for its next owner, whose doorbell rings; the previous one no longer owns it."""
        store = self._store
        after: list[Op] = [
            Append(
                store.destination(record.worker),
                event(StartEvent(key, record)),
                stamp=1,
                optional=True,  # the bell of one who just left: whoever lets go need not wait, the sweeper finds the record
            )
        ]
        if is_owned_by(prior.record, prior.record.worker):
            after.append(DeleteKey(store.owned(prior.record.worker), key))
        if prior.record.state is not JobState.RUNNING:
            after.append(self._unattend(prior.record))
        write = SetKey(store.jobs, key, encode(record), REVISION(prior.revision))
        return await self._transition(key, record.job_id, [self._attend(key, record)], write, after)

    async def ask_stop(self, key: str, prior: Stored, record: JobRecord, reply: ReplyTo) -> Outcome:
        """STARTING or RUNNING becomes STOPPING; its owner's doorbell rings."""
        store = self._store
        bell = event(StopEvent(key, record.job_id, reply))
        return await self._transition(
            key,
            record.job_id,
            [self._attend(key, record)],
            SetKey(store.jobs, key, encode(record), REVISION(prior.revision)),
            [Append(store.worker_inbox(record.worker), bell, stamp=1, optional=True)],
        )

    async def fail(self, key: str, prior: Stored, record: JobRecord) -> Outcome:
        """The record becomes FAILED: nobody owns it."""
        write = SetKey(self._store.jobs, key, encode(record), REVISION(prior.revision))
        after = [DeleteKey(self._store.owned(prior.record.worker), key), self._unattend(prior.record)]
        return await self._transition(key, record.job_id, [], write, after)

    async def remove(
        self,
        key: str,
        prior: Stored,
        replies: Sequence[ReplyTo | None] = (),
        verdict: Verdict = Verdict.DONE,
        text: str = "",
        receipt: str | None = None,
        unseen: bool = False,
    ) -> Outcome:
        """The record goes, then all that belongs to it; whoever waits is answered.

        unseen: somebody else than its dispatcher removes a job whose payload nobody has seen. It may be on its way yet, so
            the entry that leads to it stays, for the collector (R4).
        """
        store, record = self._store, prior.record
        looked_after = record.state not in (JobState.RUNNING, JobState.FAILED)
        after: list[Op] = [DeleteKey(store.payloads, record.job_id)]
        if is_owned_by(record, record.worker):
            after.append(DeleteKey(store.owned(record.worker), key))
        if not unseen:
            after.append(self._unattend(record))
        after.extend(self._answers(replies, verdict, text))
        if receipt is not None:
            after.append(Ack(receipt))
        before = [] if looked_after else [self._attend(key, record)]  # or a crash here would leak the payload (R4)
        write = DeleteKey(store.jobs, key, REVISION(prior.revision))
        return await self._transition(key, record.job_id, before, write, after)

    async def restore(self, key: str, record: JobRecord, payload: bytes) -> Outcome:
        """R13: write a running job again that the store has forgotten, unless somebody took its key meanwhile."""
        store = self._store
        keep = SetKey(store.payloads, record.job_id, payload)
        before = [self._attend(key, record), SetKey(store.owned(record.worker), key, record.job_id.encode())]
        if not store.atomic:
            # Only this owner has the payload, and may be cut off after the record. Before it, the collector may take it
            # away again (R4). So it is written on both sides.
            before.append(keep)
        write = SetKey(store.jobs, key, encode(record), ABSENT)
        return await self._transition(key, record.job_id, before, write, [keep, self._unattend(record)])

    async def ring(self, key: str, stored: Stored) -> bool:
        """Ring the target's or owner's doorbell again. False: nobody is there to hear it."""
        record = stored.record
        if record.state is JobState.STOPPING:
            bell = event(StopEvent(key, record.job_id, None))
        else:
            bell = event(StartEvent(key, record))
        append = Append(self._store.destination(record.worker), bell, optional=True)
        result = (await self._store.namespace.commit([append])).results[0]
        return isinstance(result, Appended) and result.id is not None

    async def answer(self, reply: ReplyTo | None, verdict: Verdict, text: str = "") -> None:
        """Answer somebody who waits; if his inbox is gone, so is he."""
        ops = self._answers([reply], verdict, text)
        if ops:
            await self._store.namespace.commit(ops)

    # --- how ---

    def _attend(self, key: str, record: JobRecord) -> Op:
        return SetKey(self._store.attention, attention_key(record), attention(key, record))

    def _unattend(self, record: JobRecord) -> Op:
        return DeleteKey(self._store.attention, attention_key(record))

    def _answers(self, replies: Sequence[ReplyTo | None], verdict: Verdict, text: str = "") -> list[Op]:
        return [
            Append(self._store.node_inbox(reply.node), event(Answer(reply.call, verdict, text)), optional=True)
            for reply in replies
            if reply is not None
        ]

    async def _transition(
        self, key: str, job_id: str, before: list[Op], write: SetKey | DeleteKey, after: list[Op]
    ) -> Outcome:
        hinge = len(before)
        sent = self._clock.monotonic()
        try:
            result = await self._store.namespace.commit([*before, write, *after])
        except OutcomeUnknown:
            return await self._resolve(key, job_id, before, write, after)
        commit = result.results[hinge]
        assert isinstance(commit, Commit)
        if result.stopped == hinge:
            previous = commit.previous
            if isinstance(write, SetKey) and previous is not None and previous.value == write.value:
                return await self._complete(previous.revision, after)  # an earlier try of ours had been applied
            return Outcome(False, commit.revision, self._store.stored(previous))
        rest = result.results[hinge + 1 :]
        if not self._store.atomic and before and self._clock.monotonic() - sent > self._slow:
            await self._store.namespace.commit(before)  # listed so long before the record that it may be listed no more
        if result.stopped is None:
            return Outcome(True, commit.revision, None, None, rest)
        if self._store.atomic:
            return Outcome(False, 0, None, _refusal(result))
        return Outcome(True, commit.revision, None, _refusal(result), rest)

    async def _resolve(
        self, key: str, job_id: str, before: list[Op], write: SetKey | DeleteKey, after: list[Op]
    ) -> Outcome:
        """R2: only once the write can no longer be applied does its absence mean that it was not."""
        try:
            await self._store.namespace.settle()
            entry = await self._store.jobs_map.get(key)
            current = self._store.stored(entry)
            if isinstance(write, SetKey):
                # Values are unique per transition (job_id, epoch, attempt, state), so equality means "mine".
                applied = entry is not None and entry.value == write.value
            else:
                # Gone, by this hand or another: the end is the same.
                applied = current is None or current.record.job_id != job_id
            revision = entry.revision if entry is not None else 0
            if not applied:
                return Outcome(False, revision, current, doubtful=True)
            outcome = await self._complete(revision, [*before, *after])
            # A record that is as it was wanted is so by this hand; one that is gone may be so by another's.
            return msgspec.structs.replace(outcome, doubtful=isinstance(write, DeleteKey))
        except BackendUnavailable as error:
            raise OutcomeUnknown(f"whether the record of {key!r} was changed cannot be told now: {error}") from error

    async def _complete(self, revision: int, after: list[Op]) -> Outcome:
        """The record is as wanted; do (again) what follows it."""
        rest = [msgspec.structs.replace(op, stamp=None) if isinstance(op, Append) else op for op in after]
        if not rest:
            return Outcome(True, revision, None)
        result = await self._store.namespace.commit(rest)
        return Outcome(True, revision, None, _refusal(result), result.results)


def _refusal(result: CommitResult) -> Refusal | None:
    if result.stopped is None:
        return None
    stopped_by = result.results[result.stopped]
    assert isinstance(stopped_by, Appended)
    return stopped_by.refusal
