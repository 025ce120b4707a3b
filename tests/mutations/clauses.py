"""Single clauses of R1 to R13, switched off: what the rest of its rule does not keep."""

from __future__ import annotations

from copy import copy
from typing import Any

import msgspec

from corepool.driver import ALWAYS
from corepool.pool import transitions
from corepool.pool.cleanup import Cleanup, CleanupLock
from corepool.pool.context import NodeContext
from corepool.pool.dispatch import JobCalls
from corepool.pool.lease import Lease, Renewal
from corepool.pool.liveness import Liveness
from corepool.pool.membership import Membership
from corepool.pool.protocol import Outcome
from corepool.pool.store import PoolStore, Stored
from corepool.pool.wire import JobRecord, JobState, PoolRecord
from corepool.pool.worker import Worker
from corepool_memory.maps import MemoryMap

from .mutant import Change, Mutant, changed, misled, one_id
from .small_calls import cancelled_while_it_moves, given_up_while_it_moves
from .small_clauses import (
    added_behind_the_end,
    admitted_behind_the_end,
    back_before_its_cleaner,
    buried,
    dead_in_a_row,
    joined_after_the_loss,
    listed_again,
    taken_away_by_the_ring,
    unheard,
)

__all__ = ["CLAUSES"]


# --- R1, R6 ----------------------------------------------------------------------------------------------------------


class _SeesNoStart(PoolStore):
    """To whom a record that is PENDING never looks started."""

    async def job(self, key: str) -> Stored | None:
        stored = await super().job(key)
        if stored is None or stored.record.state is not JobState.PENDING:
            return stored
        return msgspec.structs.replace(stored, record=msgspec.structs.replace(stored.record, started=False))


def _by_one_who_sees_no_start(give_up: Any) -> Any:
    async def given_up(self: JobCalls, *arguments: Any) -> None:
        context = copy(self._context)
        context.store = copy(context.store)
        context.store.__class__ = _SeesNoStart
        await give_up(JobCalls(context), *arguments)

    return given_up


def _whatever_nobody_holds(record: JobRecord) -> bool:
    return record.state is JobState.PENDING


class _KeepsIt(JobCalls):
    """Goes on as if it had taken back what it admitted."""

    async def _withdraw(self, key: str, stored: Stored) -> Outcome | None:
        return Outcome(True, 0, None)


def _by_one_who_keeps_it(admit: Any) -> Any:
    return lambda self, *arguments: admit(_KeepsIt(self._context), *arguments)


def _as_it_was(join: Any) -> Any:
    async def joined(self: Any) -> None:
        context = self.context
        self.context = copy(context)
        self.context.membership = copy(context.membership)
        self.context.membership.__class__ = _LooksNotAgain
        try:
            await join(self)
        finally:
            self.context = context

    return joined


class _LooksNotAgain(Membership):
    async def settled_pool(self) -> PoolRecord | None:
        return self.pool


# --- R7, R10 ---------------------------------------------------------------------------------------------------------


def _given_up(self: Lease, _entry: Any) -> Renewal:
    self.dead = True
    return Renewal.LOST


def _forgets_whom_it_watched(whom_to_watch: Any) -> Any:
    def watched(self: Liveness) -> Any:
        self._watched = {}
        return whom_to_watch(self)

    return watched


def _never_alarmed(looked: Any) -> Any:
    def looks(self: Liveness, *arguments: Any) -> None:
        looked(self, *arguments)
        self._wide = False

    return looks


# --- R11 to R13 ------------------------------------------------------------------------------------------------------


def _record_goes_first(bury_worker: Any) -> Any:
    async def bury(self: Cleanup, worker: str, tombstone: int, lock: CleanupLock) -> None:
        await self._context.membership.remove_worker(worker)
        await bury_worker(self, worker, tombstone, lock)

    return bury


def _entry_by_its_name(entries: MemoryMap, key: str, when: Any = ALWAYS) -> tuple[Any, ...]:
    return entries, key, ALWAYS if entries.name.startswith("attention.") else when


def _own_count(context: NodeContext) -> int:
    return max(context.membership.generations)


CLAUSES = [
    Mutant(
        rule="R1.started",
        breaks="a job that had started is taken back while it moves, and its dispatcher is told that it never did",
        changes=(changed(JobCalls, "_give_up", _by_one_who_sees_no_start),),
        caught=r"3: .* DispatchTimeoutError.* but it started",
        scenario=given_up_while_it_moves,
    ),
    Mutant(
        rule="R1.cancelled",
        breaks="a dispatch whose caller was cancelled takes back a job that had started, while it moves",
        changes=(Change(transitions, "may_withdraw", _whatever_nobody_holds),),
        caught=r"2 \(R1\): .* was taken back by its dispatcher",
        scenario=cancelled_while_it_moves,
    ),
    Mutant(
        rule="R6.withdraw",
        breaks="a dispatcher that finds no inbox leaves its record behind, and goes on",
        changes=(changed(JobCalls, "_admit", _by_one_who_keeps_it),),
        caught=r"10 \(R6\): after a shutdown there is still",
        scenario=admitted_behind_the_end,
        kinds=("steps",),
    ),
    Mutant(
        rule="R6.again",
        breaks="a worker joins a pool that has ended, and is given a job that no shutdown looks for any more",
        changes=(changed(Worker, "join", _as_it_was),),
        caught=r"10 \(R6\): after a shutdown there is still",
        scenario=added_behind_the_end,
    ),
    Mutant(
        rule="R7.nonce",
        breaks="who finds its own renewal, of which it never heard, takes itself for dead",
        changes=(Change(Lease, "found", _given_up),),
        caught=r"6 \(R7\): .* (is|are|one is) well",
        scenario=unheard,
    ),
    Mutant(
        rule="R10.handover",
        breaks="a death is found late, because the silence so far was seen by one whom the ring has sent elsewhere since",
        changes=(changed(Liveness, "_whom_to_watch", _forgets_whom_it_watched),),
        caught=r"11 \(R10\): .* a death is not found",
        scenario=taken_away_by_the_ring,
    ),
    Mutant(
        rule="R10.alarm",
        breaks="of several who die at once each is found only after the one before it is buried",
        changes=(changed(Liveness, "_looked", _never_alarmed),),
        caught=r"11 \(R10\): .* a death is not found",
        scenario=dead_in_a_row,
    ),
    Mutant(
        rule="R11.cleanup",
        breaks="a cleaner that dies after the record went leaves an inbox that nobody can list",
        changes=(changed(Cleanup, "_bury_worker", _record_goes_first),),
        caught=r"11 \(R11\): the record of .* went before its inbox",
        scenario=buried,
    ),
    Mutant(
        rule="R12.inbox",
        breaks="an inbox's name is used again: a slow cleaner destroys the one of a worker that lives",
        changes=(changed(NodeContext, "new_id", one_id("w")),),
        caught=r"6 \(R12\): the inbox of .* is alive",
        scenario=back_before_its_cleaner,
    ),
    Mutant(
        rule="R12.entry",
        breaks="the sweeper drops an entry that was written again since it looked",
        changes=(misled(MemoryMap, "delete", _entry_by_its_name),),
        caught=r"11 \(R12\): .* no entry leads to it any more",
        scenario=listed_again,
    ),
    Mutant(
        rule="R13.local",
        breaks="each node counts generations for itself: who joined later gives smaller tokens",
        changes=(Change(NodeContext, "generation", property(_own_count)),),
        caught=r"5: the record of .* went back|start\(.* tokens of a key only grow",
        scenario=joined_after_the_loss,
    ),
]
