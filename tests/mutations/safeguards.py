"""Other safeguards, switched off: what no R-rule names, and what chaos has taught."""

from __future__ import annotations

from copy import copy
from typing import Any, cast

import msgspec

from corepool.driver import ALWAYS, REVISION, Append, DeleteKey, Entry, SetKey
from corepool.errors import OutcomeUnknown
from corepool.pool import transitions
from corepool.pool.calls import Call
from corepool.pool.cleanup import Cleanup, CleanupLock
from corepool.pool.commands import Command
from corepool.pool.context import NodeContext
from corepool.pool.dispatch import JobCalls
from corepool.pool.job import OwnedJob
from corepool.pool.liveness import WORKER, Liveness, Member, Suspect
from corepool.pool.protocol import JobProtocol, Outcome
from corepool.pool.router import Router
from corepool.pool.session import Session
from corepool.pool.store import INBOX, Stored
from corepool.pool.sweeper import Sweeper
from corepool.pool.ticker import Ticker
from corepool.pool.wire import JobState, NotifyEvent
from corepool.pool.worker import Worker
from corepool.rmap.replica import Replica

from .mutant import Change, Mutant, amended, changed, misled, one_id
from .rules import nothing, without_doubt
from .small import (
    back_in_two_attempts,
    late_after_the_burial,
    leaving_alone,
    leaving_slowly,
    leaving_while_fenced,
    many_workers_far_away,
    notified_when_failed,
    notified_while_dead,
    overlooked,
    refused_at_the_last_step,
    waiting_when_cut_off,
)
from .small_calls import asked_and_stopped, asker_left, failing_at_once
from .small_found import (
    back_to_before_it_was_active,
    claiming_when_erased,
    joined_unknowingly,
    seen_before_it_was_there,
    stopped_in_doubt,
    tick_in_doubt,
    tombstone_of_a_joiner,
)

__all__ = ["SAFEGUARDS"]


# --- calls -----------------------------------------------------------------------------------------------------------


def _registered_late(admit: Any) -> Any:
    async def admitted(self: JobCalls, key: str, payload: bytes, call: Call, deadline: Any) -> Any:
        calls = self._context.calls._calls
        calls.pop(call.number)
        try:
            return await admit(self, key, payload, call, deadline)
        finally:
            calls[call.number] = call

    return admitted


def _one_call_for_both(
    calls: Any, key: str, record: Any, call: Call, _stopping: Call, deadline: Any
) -> tuple[Any, ...]:
    return calls, key, record, call, call, deadline


def _over_another(protocol: Any, key: str, job_id: str, before: Any, write: Any, after: Any) -> tuple[Any, ...]:
    return (
        protocol,
        key,
        job_id,
        before,
        msgspec.structs.replace(write, when=ALWAYS) if isinstance(write, SetKey) else write,
        after,
    )


# --- workers and nodes -----------------------------------------------------------------------------------------------


def _beat_ends_first(remove_worker: Any) -> Any:
    async def left(self: Session, worker: Worker, timeout: float) -> bool:
        self.workers.pop(worker.id, None)
        done: bool = await remove_worker(self, worker, timeout)
        return done

    return left


def _waits_for_the_store(self: OwnedJob, command: Command) -> None:
    self._queue().appendleft(command)
    self.interrupt()


def _deaf_after_a_failure(announce: Any) -> Any:
    async def announced(self: Session) -> None:
        try:
            await announce(self)
        except BaseException:  # cancellation included: the mutant is deaf however the announcement ended
            self._sink = None  # forgotten, but still listened to
            raise

    return announced


def _own_are_nobodys(whom_to_watch: Any) -> Any:
    def watched(self: Liveness) -> dict[Member, None]:
        wanted: dict[Member, None] = whom_to_watch(self)
        workers, me = self._context.membership.workers(), self._context.node_id
        for member in list(wanted):
            record = workers.get(member.id) if member.kind == WORKER else None
            if record is not None and record.node == me:
                del wanted[member]
        return wanted

    return watched


def _unknowing_are_erased(remove_worker: Any) -> Any:
    async def removed(self: Session, worker: Worker, timeout: float) -> bool:
        if worker.removed and not worker._loops:
            await self._discard(worker)
            return True
        done: bool = await remove_worker(self, worker, timeout)
        return done

    return removed


async def _erase_at_once(self: Session, worker: Worker) -> None:
    store = self.context.store
    await store.map(store.owned(worker.id)).destroy()
    await store.stream(store.worker_inbox(worker.id)).destroy()
    await store.map(store.worker_keep_alive).delete(worker.id)
    await self.context.membership.remove_worker(worker.id)


async def _compare_only(self: Session) -> None:
    for worker in list(self.workers.values()):
        await worker.review()


# --- cleanup ---------------------------------------------------------------------------------------------------------


async def _destroy_undrained(self: Cleanup, name: str) -> None:
    await self._context.store.stream(name).destroy()


async def _tombstone_first(self: Cleanup, suspect: Suspect) -> None:
    lock = CleanupLock(self._context, suspect.member.id)
    tombstone = await self._tombstone(suspect)
    if tombstone is not None and await lock.take(self._locks_seen):
        bury = self._bury_worker if suspect.member.kind == WORKER else self._bury_node
        await bury(suspect.member.id, tombstone, lock)


class _StoppedClock:
    """A clock that stands still."""

    def __init__(self, clock: Any) -> None:
        self._now = clock.monotonic()

    def monotonic(self) -> float:
        now: float = self._now
        return now


def _counts_from_the_question(take: Any) -> Any:
    async def taken(self: CleanupLock, seen: dict[str, tuple[int, float]]) -> bool:
        context = self._context
        self._context = copy(context)
        self._context.clock = cast("Any", _StoppedClock(context.clock))
        try:
            done: bool = await take(self, seen)
        finally:
            self._context = context
        return done

    return taken


def _no_grave(self: CleanupLock) -> DeleteKey:
    return self.release_op()


def _stops_are_moved(move_on: Any) -> Any:
    async def moved(self: Cleanup, key: str, stored: Stored, worker: str, why: str) -> bool:
        if stored.record.state is not JobState.STOPPING or stored.record.worker != worker:
            done: bool = await move_on(self, key, stored, worker, why)
            return done
        ring = self._context.membership.ring
        record = transitions.release(stored.record, ring.owner(key), ring.revision, why, self._context.wall())
        return (await self._context.protocol.release(key, stored, record)).applied

    return moved


def _revives_inboxes(transition: Any) -> Any:
    async def reviving(self: JobProtocol, key: str, job_id: str, before: Any, write: Any, after: Any) -> Outcome:
        for op in after:
            if isinstance(op, Append):
                await self._store.stream(op.stream).create(INBOX)
        outcome: Outcome = await transition(self, key, job_id, before, write, after)
        return outcome

    return reviving


def _circles(route: Any) -> Any:
    async def routed(self: Router, delivery: Any) -> bool:
        event = self._context.store.decoded(delivery.event.payload, NotifyEvent, "the queue")
        stored = None if event is None else await self._context.store.job(event.key)
        if stored is not None and stored.record.state is JobState.FAILED:
            return False
        done: bool = await route(self, delivery)
        return done

    return routed


# --- maps and tickers ------------------------------------------------------------------------------------------------


async def _fires_in_doubt(self: Ticker, entry: Entry, number: int) -> bool:
    try:
        return (await self._map.set(self._name, self._record(number), REVISION(entry.revision))).applied
    except OutcomeUnknown:
        return True


def _keeps_what_went(apply_change: Any) -> Any:
    def applied(self: Replica[Any], event: Any) -> Any:
        return None if event.value is None else apply_change(self, event)

    return applied


SAFEGUARDS = [
    Mutant(
        rule="the waiter is registered before the append",
        breaks="an answer that is faster than the caller is dropped",
        changes=(changed(JobCalls, "_admit", _registered_late),),
        caught=r"the answer to a dispatch was not heard",
        scenario=failing_at_once,
        kinds=("atomic",),
    ),
    Mutant(
        rule="the answer to a stop is not the answer to a start",
        breaks="a dispatcher that gave up hears that its stop is done, and takes it for the start's success",
        changes=(misled(JobCalls, "_give_up", _one_call_for_both),),
        caught=r"2: the dispatch of .* nothing had started it",
        scenario=asked_and_stopped,
    ),
    Mutant(
        rule="an unknown outcome is not another's job",
        breaks="JobExistsError for a job of the caller's own, which had been admitted, run and gone",
        changes=(amended(JobProtocol, "admit", without_doubt),),
        caught=r"[34]: .*JobExistsError",
    ),
    Mutant(
        rule="a stop in doubt is not nothing",
        breaks="BackendUnavailable, nothing was done, for a stop that was carried out",
        changes=(amended(JobProtocol, "ask_stop", without_doubt),),
        caught=r"9: the stop of .* nothing was done, and it was",
        scenario=stopped_in_doubt,
    ),
    Mutant(
        rule="compare-and-set",
        breaks="a record is written over whatever stands there by now",
        changes=(misled(JobProtocol, "_transition", _over_another),),
        caught=r"4: the record of .* (was overwritten|went from)|4: .* came back under the job_id",
    ),
    Mutant(
        rule="keep-alives end after the last hand-over",
        breaks="a worker that leaves slowly is declared dead while its handlers run",
        changes=(changed(Session, "remove_worker", _beat_ends_first),),
        caught=r"start\(.* two live owners",
        scenario=leaving_slowly,
    ),
    Mutant(
        rule="who is fenced hands nothing over",
        breaks="a worker that is removed while it is fenced drops the list of its jobs, which its cleaner needs",
        changes=(amended(Worker, "hand_all_over", lambda _done: True),),
        caught=r"10: .* its owner has gone, and nobody finds it",
        scenario=leaving_while_fenced,
    ),
    Mutant(
        rule="who may have joined leaves in order",
        breaks="a worker that does not know that it has joined is erased with what it was given",
        changes=(changed(Session, "remove_worker", _unknowing_are_erased),),
        caught=r"what was in the inbox of one that had joined unknowingly is lost",
        scenario=joined_unknowingly,
    ),
    Mutant(
        rule="a claim on its way is settled before its worker is erased",
        breaks="it lists its key after the list was removed, and nobody removes that again",
        changes=(Change(Session, "_erase", _erase_at_once),),
        caught=r"10 \(R6\): after a shutdown there is still .*owned@",
        scenario=claiming_when_erased,
        kinds=("steps",),
    ),
    Mutant(
        rule="a worker says again that it is active",
        breaks="after a store that went back to before that, it stays JOINING for ever",
        changes=(Change(Session, "_reassert", _compare_only),),
        caught=r"11: not active in workers",
        scenario=back_to_before_it_was_active,
    ),
    Mutant(
        rule="a fence interrupts a call of the backend",
        breaks="a worker waits for the store before it stops its handler; the lease does not",
        changes=(Change(OwnedJob, "_fence", _waits_for_the_store),),
        caught=r"start\(.* two live owners",
        scenario=waiting_when_cut_off,
    ),
    Mutant(
        rule="a new id for each attempt to come back",
        breaks="a node comes back under an id that others are burying",
        changes=(changed(NodeContext, "new_id", one_id("n")),),
        caught=r"11 \(R11\): the record of .* went before its inbox node:",
        scenario=back_in_two_attempts,
    ),
    Mutant(
        rule="a node listens to the inbox that it announces",
        breaks="one that came back in its second attempt hears no answer any more",
        changes=(changed(Session, "_announce", _deaf_after_a_failure),),
        caught=r"11: \d+ events wait in node:",
        scenario=refused_at_the_last_step,
    ),
    Mutant(
        rule="a node watches what it left behind itself",
        breaks="on a lone node nobody finishes what a failed leave began",
        changes=(changed(Liveness, "_whom_to_watch", _own_are_nobodys),),
        caught=r"11: workers\.1 and who is alive differ",
        scenario=leaving_alone,
    ),
    Mutant(
        rule="keep-alives go out side by side",
        breaks="where each write is a round trip, the time of a beat grows with the number of suspects, until nobody can renew",
        changes=(Change(Liveness, "_side_by_side", Liveness._in_one_commit),),
        caught=r".* though every (worker|one) is well",
        scenario=many_workers_far_away,
        kinds=("steps",),
    ),
    Mutant(
        rule="an inbox is drained before its worker is removed",
        breaks="a notification for the dead is lost with the inbox",
        changes=(Change(Cleanup, "drain_inbox", _destroy_undrained),),
        caught=r"a notification in the inbox of the dead was lost",
        scenario=notified_while_dead,
    ),
    Mutant(
        rule="the lock comes before the tombstone of one without a keep-alive",
        breaks="who dies in between leaves a tombstone that nobody can list",
        changes=(Change(Cleanup, "_bury", _tombstone_first),),
        caught=r"11: worker_keep_alive\.1 and who is alive differ",
        scenario=tombstone_of_a_joiner,
    ),
    Mutant(
        rule="a lock is not seen before it is there",
        breaks="a question that takes long makes a lock look stale that was taken just now",
        changes=(changed(CleanupLock, "take", _counts_from_the_question),),
        caught=r"6: .* took the cleanup lock",
        scenario=seen_before_it_was_there,
    ),
    Mutant(
        rule="a grave is closed later",
        breaks="what a late request of the dead makes after the burial is found by nobody",
        changes=(Change(CleanupLock, "bury_op", _no_grave),),
        caught=r"11: (streams|indexes)",
        scenario=late_after_the_burial,
    ),
    Mutant(
        rule="the full scan",
        breaks="a record whose doorbell and attention entry are both lost is found by nobody",
        changes=(Change(Sweeper, "full_scan", nothing),),
        caught=r"10: .* nobody looks after it",
        scenario=overlooked,
    ),
    Mutant(
        rule="a stop survives its owner",
        breaks="a cleaner gives a job that is to be stopped to a next owner",
        changes=(changed(Cleanup, "move_on", _stops_are_moved),),
        caught=r"4: the record of .* went from stopping to pending",
    ),
    Mutant(
        rule="a destroyed inbox is not revived",
        breaks="a doorbell for one who left makes its inbox anew",
        changes=(changed(JobProtocol, "_transition", _revives_inboxes),),
        caught=r"11( \(R11\))?: .*(inbox|streams)",
        scenario=asker_left,
    ),
    Mutant(
        rule="a notification for a job that FAILED is answered",
        breaks="it circles in the queue, some times in each second, for ever",
        changes=(changed(Router, "_route_notification", _circles),),
        caught=r"11: 1 events wait in the queue",
        scenario=notified_when_failed,
    ),
    Mutant(
        rule="a tick in doubt is looked up",
        breaks="a tick whose write was lost fires, and fires again where it is written",
        changes=(Change(Ticker, "_advance", _fires_in_doubt),),
        caught=r"8: tick \d+ .* fired on",
        scenario=tick_in_doubt,
    ),
    Mutant(
        rule="a replica equals the store at its revision",
        breaks="a node goes on seeing a member that has left",
        changes=(changed(Replica, "_apply_change", _keeps_what_went),),
        caught=r"7: the replica of",
    ),
]
