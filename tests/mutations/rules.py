"""R1 to R13 of DESIGN 4, switched off."""

from __future__ import annotations

from typing import Any

import msgspec

from corepool.driver import ABSENT, ALWAYS, DeleteKey, SetKey
from corepool.pool import dispatch, job, node, transitions
from corepool.pool.cleanup import Cleanup, CleanupLock
from corepool.pool.commands import HandOver
from corepool.pool.handlers import FencingToken
from corepool.pool.job import OwnedJob
from corepool.pool.lease import Lease
from corepool.pool.liveness import WORKER, Suspect, Watcher
from corepool.pool.membership import Membership
from corepool.pool.protocol import JobProtocol, Outcome
from corepool.pool.session import Session
from corepool.pool.store import Stored
from corepool.pool.sweeper import Sweeper
from corepool.pool.wire import JobRecord, JobState, MemberState, ReplyTo, Verdict, WorkerRecord
from corepool.pool.worker import Worker
from corepool_memory.backend import MemoryNamespace

from .mutant import Change, Mutant, amended, changed, misled
from .small import answered_late, asleep_while_claiming, asleep_with_the_lock, cut_off, two_rings, two_take_over
from .small_calls import begun_by_the_dead, dispatched_while_it_ends, late_after_the_answer, withdrawn_in_doubt

__all__ = ["RULES", "nothing", "without_doubt"]


async def nothing(*_arguments: Any, **_options: Any) -> None:
    """Instead of a step that is left out."""
    return


def _whatever_stands_there(write: SetKey | DeleteKey) -> SetKey | DeleteKey:
    return msgspec.structs.replace(write, when=ALWAYS)


def without_doubt(outcome: Outcome | None) -> Outcome | None:
    return outcome and msgspec.structs.replace(outcome, doubtful=False)


# --- R1 --------------------------------------------------------------------------------------------------------------


async def _fail_by_removing(self: JobProtocol, key: str, prior: Stored, _record: JobRecord) -> Outcome:
    return await self.remove(key, prior, [], Verdict.FAILED, "it failed to start")


def _delete_while_starting(ask_stop: Any) -> Any:
    async def ask(self: JobProtocol, key: str, prior: Stored, record: JobRecord, reply: ReplyTo) -> Outcome:
        if prior.record.state is JobState.STARTING and not prior.record.started:
            return await self.remove(key, prior)
        outcome: Outcome = await ask_stop(self, key, prior, record, reply)
        return outcome

    return ask


def _not_started(record: JobRecord) -> bool:
    return record.state is JobState.PENDING and not record.started


# --- R3, R4, R5 ------------------------------------------------------------------------------------------------------


async def _call_start_anyway(self: OwnedJob, asked: Any) -> None:
    self._began = True
    await self._worker.handler.start(asked)


def _coarse_token(generation: int, _revision: int) -> FencingToken:
    return FencingToken(generation, 1)


async def _collect_unread(self: Sweeper, entry: Any, attention: Any, *_: Any) -> None:
    store = self._context.store
    await store.namespace.commit([DeleteKey(store.payloads, attention.job_id), DeleteKey(store.attention, entry.key)])


def _attention_last(
    protocol: Any, key: str, job_id: str, before: list[Any], write: Any, after: list[Any]
) -> tuple[Any, ...]:
    return protocol, key, job_id, [], write, [*after, *before]


def _stamp_of_the_future(record: Any, target: str, ring: int, *rest: Any) -> tuple[Any, ...]:
    return record, target, ring + 1000, *rest


def _rebalance_by_any_ring(self: Worker) -> None:
    ring = self.context.membership.ring
    for key, owned in list(self._jobs.items()):
        if owned.running and not owned.busy and ring and ring.owner(key) != self.id and owned.stored is not None:
            owned.put(HandOver("belongs elsewhere"))


async def _hand_over_by_any_ring(self: OwnedJob, why: str) -> None:
    stored = self.stored
    if not self.running or stored is None or self._worker.context.membership.ring.owner(self.key) == self._worker.id:
        return
    async with self._worker.context.moves:
        await self._stop_handler()
        await self._release(stored, why)


# --- R6 to R9 --------------------------------------------------------------------------------------------------------


async def _no_flag(*_arguments: Any) -> bool:
    return False


def _half_a_tombstone(tombstone: Any) -> Any:
    async def unmarked(self: Cleanup, suspect: Suspect) -> int | None:
        if suspect.member.kind == WORKER:
            return suspect.revision
        found: int | None = await tombstone(self, suspect)
        return found

    return unmarked


def _from_the_answer(answered: Any) -> Any:
    def counted(self: Lease, commit: Any) -> Any:
        result = answered(self, commit)
        if commit.applied:
            self._confirmed_at = self._clock.monotonic()
        return result

    return counted


async def _no_review(_self: Worker, **_options: Any) -> int:
    return 0


# --- R10 to R13 ------------------------------------------------------------------------------------------------------


def _gaps_are_silence(self: Watcher, now: float) -> None:
    self._polled_at = now


def _record_first(remove_worker: Any) -> Any:
    async def left(self: Session, worker: Worker, timeout: float) -> bool:
        await self.context.membership.remove_worker(worker.id)
        done: bool = await remove_worker(self, worker, timeout)
        return done

    return left


def _record_last(change_worker: Any) -> Any:
    async def changed_to(self: Membership, worker: str, state: MemberState) -> bool:
        if state is MemberState.ACTIVE and self.worker(worker) is None:
            nodes = [name for name in self.nodes() if name]
            await self._workers.set_and_wait(worker, WorkerRecord(nodes[0], state, 0.0))
            return True
        done: bool = await change_worker(self, worker, state)
        return done

    return changed_to


async def _delete_and_create(self: CleanupLock, seen: dict[str, tuple[int, float]]) -> bool:
    entry = await self._map.get(self._member)
    now = self._context.clock.monotonic()
    if entry is not None:
        revision, since = seen.get(self._member, (0, now))
        if revision != entry.revision:
            revision, since = entry.revision, now
        seen[self._member] = (revision, since)
        if now - since <= self._context.options.worker_ttl:
            return False
        await self._map.delete(self._member)
    return await self._write(ABSENT)


def _deaf(*_arguments: Any) -> None:
    return None


RULES = [
    Mutant(
        rule="R1.failed",
        breaks="a job that had run is removed when it cannot be started again: nobody is told, and it is gone",
        changes=(Change(JobProtocol, "fail", _fail_by_removing),),
        caught=r"2 \(R1\): .* had started before",
    ),
    Mutant(
        rule="R1.starting",
        breaks="a dispatcher whose time is up deletes the record under an owner that is calling the handler",
        changes=(changed(JobProtocol, "ask_stop", _delete_while_starting),),
        caught=r"3 \(R1\): .* removed the record of",
    ),
    Mutant(
        rule="R1.claimed",
        breaks="never confirmed is taken for never started: the caller is told that nothing ever ran",
        changes=(Change(transitions, "never_claimed", _not_started),),
        caught=r"3: .* DispatchTimeoutError .* but it started",
        scenario=begun_by_the_dead,
    ),
    Mutant(
        rule="R1.withdrawn",
        breaks="a withdrawal of which nobody knows whether it removed the record is told as 'never started'",
        changes=(amended(dispatch.JobCalls, "_withdraw", without_doubt),),
        caught=r"3: .* DispatchTimeoutError, but it started",
        scenario=withdrawn_in_doubt,
    ),
    Mutant(
        rule="R2",
        breaks="a write of unknown outcome is taken for lost while it is still on its way",
        changes=(Change(MemoryNamespace, "settle", nothing),),
        caught=r"3: dispatch of .* raised JobGoneError.*, but (it started|its record is there)",
        scenario=late_after_the_answer,
    ),
    Mutant(
        rule="R3",
        breaks="handler.start is called by one whose lease ran out while it waited for the answer to its claim",
        changes=(Change(OwnedJob, "_call_start", _call_start_anyway),),
        caught=r"start\(.* (two live owners|tokens of a key only grow)",
        scenario=asleep_while_claiming,
        kinds=("atomic",),
    ),
    Mutant(
        rule="R3.token",
        breaks="the token says only how often the job moved: two claims of one epoch cannot be told apart",
        changes=(Change(job, "FencingToken", _coarse_token),),
        caught=r"start\(.* tokens of a key only grow",
    ),
    Mutant(
        rule="R4",
        breaks="payloads are collected without a look at the record that may still name them",
        changes=(Change(Sweeper, "_attend", _collect_unread),),
        caught=r"1[01]: (payloads and jobs differ|k\d is pending)",
    ),
    Mutant(
        rule="R4.order",
        breaks="who dies between the record and its attention entry leaves a job that nobody looks after",
        changes=(
            misled(JobProtocol, "_transition", _attention_last),
            Change(Sweeper, "full_scan", nothing),  # the backstop would find it, in its own time
        ),
        caught=r"1[01]: (k\d is (pending|starting|stopping)|payloads and jobs differ)",
    ),
    Mutant(
        rule="R5",
        breaks="two owners that see different rings send a job to and fro",
        changes=(
            Change(Worker, "rebalance", _rebalance_by_any_ring),
            Change(OwnedJob, "_hand_over", _hand_over_by_any_ring),
        ),
        caught=r"R5: .* had brought it there",
        scenario=two_rings,
    ),
    Mutant(
        rule="R5.stamp",
        breaks="a mover claims to know more than it does: nobody may move the job on when the ring really changes",
        changes=(misled(transitions, "release", _stamp_of_the_future),),
        caught=r"R5: .* which does not exist yet",
    ),
    Mutant(
        rule="R6",
        breaks="the pool is emptied before anybody is told: what is dispatched meanwhile stays",
        changes=(Change(node, "flag_shutdown", _no_flag),),
        caught=r"10 \(R6\): after a shutdown",
        scenario=dispatched_while_it_ends,
    ),
    Mutant(
        rule="R7",
        breaks="jobs are taken from a worker that was only slow, and knows nothing of it",
        changes=(changed(Cleanup, "_tombstone", _half_a_tombstone),),
        caught=r"6 \(R7\): .* (without a tombstone|nobody had declared dead)",
    ),
    Mutant(
        rule="R7.renew",
        breaks="who was declared dead overwrites its tombstone, and goes on with jobs that others have",
        changes=(amended(Lease, "renewal", _whatever_stands_there),),
        caught=r"6 \(R7\): .* gives a sign of life",
    ),
    Mutant(
        rule="R8",
        breaks="a worker that is cut off goes on after others may have taken its jobs",
        changes=(Change(Worker, "fence", _deaf),),
        caught=r"start\(.* two live owners",
        scenario=cut_off,
    ),
    Mutant(
        rule="R8.sent",
        breaks="the lease counts from the answer: a worker whose answer was late goes on after others have taken its jobs",
        changes=(changed(Lease, "answered", _from_the_answer),),
        caught=r"start\(.* two live owners",
        scenario=answered_late,
    ),
    Mutant(
        rule="R9",
        breaks="what an owner lost track of (after a fence, an unknown outcome) never runs again",
        changes=(Change(Worker, "review", _no_review),),
        caught=r"10: k\d is RUNNING by its record, and runs on \[\]|11: the index of",
    ),
    Mutant(
        rule="R10",
        breaks="after an outage of the store everybody takes everybody for dead",
        changes=(Change(Watcher, "poll_succeeded", _gaps_are_silence),),
        caught=r"6: .* declared .* dead .* after a sign of life",
        scenario="outage",
    ),
    Mutant(
        rule="R11.leave",
        breaks="a leaver that dies after its record went leaves an inbox and keep-alive that nobody can list",
        changes=(changed(Session, "remove_worker", _record_first),),
        caught=r"11 \(R11\): the record of .* went before its inbox",
    ),
    Mutant(
        rule="R11.join",
        breaks="a joiner that dies before its record is there leaves an inbox and keep-alive that nobody can list",
        changes=(
            Change(Membership, "put_worker", nothing),
            changed(Membership, "change_worker", _record_last),
        ),
        caught=r"11 \(R11\): .* gives a sign of life before it has a record",
    ),
    Mutant(
        rule="R12.release",
        breaks="a cleaner that slept past its lock removes the one of its successor",
        changes=(
            amended(CleanupLock, "release_op", _whatever_stands_there),
            amended(CleanupLock, "bury_op", _whatever_stands_there),
        ),
        caught=r"6 \(R12\): .* removed the cleanup lock",
        scenario=asleep_with_the_lock,
    ),
    Mutant(
        rule="R12.takeover",
        breaks="a stale lock is deleted and made anew: of two that find it stale, one deletes the other's",
        changes=(Change(CleanupLock, "take", _delete_and_create),),
        caught=r"6( \(R12\))?: .* (removed|took) the cleanup lock",
        scenario=two_take_over,
    ),
    Mutant(
        rule="R13",
        breaks="nobody notices that the store went back: old revisions are given again, as tokens too",
        changes=(Change(Session, "_rolled_back", _deaf),),
        caught=r"5: .* with a token that is not the largest",
        scenario="rollback",
    ),
]
