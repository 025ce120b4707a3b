"""Calls on jobs, from the caller's side: dispatch, stop, notify, retry.

Purpose: the way of a job into the pool and out of it, as its caller sees it; what each error promises is kept here.
Invariants:

- The waiter is registered before anything is sent.
- R1: only what was never claimed is withdrawn; ``DispatchTimeoutError`` is raised only after that withdrawal was applied.
- Whatever is raised but `OutcomeUnknown` leaves no job of this call behind.
- A lost answer costs time only: every wait looks at the record again.

Neighbours: ``protocol`` writes the records; workers answer through the node's inbox; `Node` is the facade.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from corepool.driver import Refusal
from corepool.errors import (
    BackendUnavailable,
    DispatchTimeoutError,
    JobExistsError,
    JobGoneError,
    JobNotFoundError,
    JobNotifyError,
    JobStartError,
    NodeClosedError,
    OutcomeUnknown,
    PoolShutdownError,
    QueueFullError,
)
from corepool.pool import transitions
from corepool.pool.calls import Call
from corepool.pool.context import NodeContext
from corepool.pool.protocol import Outcome
from corepool.pool.store import Stored
from corepool.pool.wire import Answer, JobRecord, JobState, NotifyEvent, ReplyTo, StopEvent, Verdict

__all__ = ["JobCalls"]

_FIRST_LOOK, _LONGEST_LOOK = 1.0, 8.0
"""Seconds without an answer until a caller looks at the record himself; doubles."""


class Deadline:
    """How much of a call's time is left, on this node's monotonic clock."""

    def __init__(self, context: NodeContext, seconds: float) -> None:
        self._clock = context.clock
        self._at = self._clock.monotonic() + seconds
        self.seconds = seconds

    @property
    def left(self) -> float:
        return max(0.0, self._at - self._clock.monotonic())

    def looks(self) -> Iterator[float]:
        """How long to wait for an answer before each look at the record; ends when the time is up."""
        pause = _FIRST_LOOK
        while (left := self.left) > 0:
            yield min(pause, left)
            pause = min(2 * pause, _LONGEST_LOOK)


class JobCalls:
    """The calls of one node."""

    def __init__(self, context: NodeContext) -> None:
        self._context = context

    # --- dispatch ----------------------------------------------------------------------------------------------------

    async def dispatch(self, key: str, payload: bytes, timeout: float) -> None:
        """Returns when a worker has started the job. See `Node.dispatch_job`."""
        context = self._context
        deadline = Deadline(context, timeout)
        with context.calls.open() as call:
            record, event_id = await self._admit(key, payload, call, deadline)
            try:
                await self._started(key, record, call, deadline)
            finally:
                if event_id is not None and not record.worker:
                    # The queue is bounded: an event of a job that no longer waits must not keep others out.
                    context.supervisor.tidy("tidy queue", self._tidy_queue(event_id))

    async def _admit(self, key: str, payload: bytes, call: Call, deadline: Deadline) -> tuple[JobRecord, str | None]:
        """The record is in the store and its target's doorbell has rung."""
        context = self._context
        while True:
            if context.membership.pool.shutdown:
                raise PoolShutdownError(f"the pool {context.pool!r} was shut down; {key!r} was not admitted")
            ring = context.membership.ring
            record = transitions.admit(
                context.new_id("j"),
                ring.owner(key),
                ring.revision,
                ReplyTo(context.node_id, call.number),
                context.wall(),
            )
            outcome = await self._admit_once(key, record, payload)
            if outcome.applied and outcome.refusal is None:
                return record, outcome.event_id
            if not outcome.applied and outcome.refusal is None:
                if outcome.current is not None and outcome.current.record.job_id == record.job_id:
                    return record, None  # ours: its reply was lost, and a worker has it already
                if outcome.doubtful:
                    raise JobGoneError(f"{key!r} may have been admitted, run and been stopped by now; it is not there")
                raise JobExistsError(f"a job with the key {key!r} exists already{_where(outcome.current)}")
            if outcome.applied:
                withdrawn = await self._withdraw(key, Stored(record, outcome.revision))
                if withdrawn is None or not withdrawn.applied or withdrawn.doubtful:
                    return record, None  # somebody has taken it meanwhile: wait for the answer as usual
            if outcome.refusal is Refusal.FULL:
                raise QueueFullError(
                    f"no worker is active and {context.options.max_queued_jobs} jobs wait already (max_queued_jobs); "
                    f"{key!r} was not admitted: add a worker, or raise the limit"
                )
            if deadline.left <= 0:
                raise DispatchTimeoutError(f"no worker for {key!r} within {deadline.seconds:g} s; it was never started")
            # The target left; our ring is about to show it.
            await context.calls.pause(
                min(deadline.left, context.options.poll_period / 20 * (0.5 + context.random.random()))
            )

    async def _admit_once(self, key: str, record: JobRecord, payload: bytes) -> Outcome:
        try:
            return await self._context.protocol.admit(key, record, payload)
        except asyncio.CancelledError:
            # Cancelled in the middle: nobody will wait for this job, so it is taken back, or found by the sweeper.
            self._context.supervisor.tidy(f"take back {key!r}", self._take_back(key, record.job_id))
            raise

    async def _take_back(self, key: str, job_id: str) -> None:
        await self._context.store.namespace.settle()
        stored = await self._context.store.job(key)
        if stored is not None and stored.record.job_id == job_id:
            await self._withdraw(key, stored)

    async def _withdraw(self, key: str, stored: Stored) -> Outcome | None:
        """R1: take back a job that nobody holds; None if somebody does, or it was started."""
        if not transitions.may_withdraw(stored.record):
            return None
        try:
            return await self._context.protocol.remove(key, stored)
        except BackendUnavailable as error:
            raise OutcomeUnknown(f"{key!r} was admitted and cannot be taken back now: {error}") from error

    async def _started(self, key: str, record: JobRecord, call: Call, deadline: Deadline) -> None:
        """Wait for the answer; without one, look; when the time is up, withdraw."""
        try:
            for pause in deadline.looks():
                answer = await call.answer(pause)
                if answer is not None:
                    self._judge_start(key, answer)
                    return
                if await self._looks_started(key, record):
                    return
            with self._context.calls.open() as stopping:  # the answer to a stop must not be taken for one to the start
                await self._give_up(key, record, call, stopping, deadline)
        except asyncio.CancelledError:
            self._context.supervisor.tidy(f"take back {key!r}", self._take_back(key, record.job_id))
            raise
        except NodeClosedError as error:
            raise OutcomeUnknown(f"this node was closed while {key!r} was on its way to a worker") from error
        except BackendUnavailable as error:
            raise OutcomeUnknown(
                f"{key!r} was admitted, but the backend cannot be asked what became of it: {error}"
            ) from error

    def _judge_start(self, key: str, answer: Answer) -> None:
        match answer.verdict:
            case Verdict.DONE:
                return
            case Verdict.FAILED:
                raise JobStartError(f"{key!r} did not start: {answer.text}")
            case Verdict.GONE:
                raise JobGoneError(f"{key!r} was stopped before its start was confirmed; no job is left")

    async def _looks_started(self, key: str, record: JobRecord) -> bool:
        try:
            stored = await self._context.store.job(key)
        except BackendUnavailable:
            return False  # look again later; the deadline bounds it
        if stored is None or stored.record.job_id != record.job_id:
            raise JobGoneError(f"{key!r} is gone although nobody answered; no job is left, but it may have run")
        return stored.record.started  # also if it has FAILED since: it is there, and somebody may retry it

    async def _give_up(self, key: str, record: JobRecord, call: Call, stopping: Call, deadline: Deadline) -> None:
        context = self._context
        while True:
            stored = await context.store.job(key)
            if stored is None or stored.record.job_id != record.job_id:
                answer = await call.answer(0)  # the removal's answer may be on its way
                if answer is not None:
                    return self._judge_start(key, answer)
                raise JobGoneError(f"{key!r} is gone although nobody answered; no job is left, but it may have run")
            if stored.record.started:
                return None
            if stored.record.state is JobState.PENDING:
                withdrawn = await self._withdraw(key, stored)
                if withdrawn is not None and withdrawn.applied:
                    if withdrawn.doubtful and (answer := await call.answer(0)) is not None:
                        return self._judge_start(key, answer)
                    # A worker that died over it, or gave it back, may have begun it.
                    if withdrawn.doubtful or not transitions.never_claimed(stored.record):
                        raise JobGoneError(f"{key!r} did not get started within {deadline.seconds:g} s; no job is left")
                    raise DispatchTimeoutError(
                        f"no worker started {key!r} within {deadline.seconds:g} s; it was never started and was withdrawn"
                    )
            elif stored.record.state is JobState.STARTING:
                asked = transitions.ask_stop(stored.record, context.wall())
                reply = ReplyTo(context.node_id, stopping.number)
                await context.protocol.ask_stop(key, stored, asked, reply)
            else:
                break
        await self._await_end(key, record.job_id, stopping)
        raise JobGoneError(
            f"the start of {key!r} took longer than {deadline.seconds:g} s and was stopped; no job is left"
        )

    async def _await_end(self, key: str, job_id: str, call: Call) -> None:
        """STOPPING stands in the record: wait until it is gone."""
        context = self._context
        deadline = Deadline(context, context.options.call_timeout)
        try:
            for pause in deadline.looks():
                if await call.answer(pause) is not None or await self._is_gone(key, job_id):
                    return
        except NodeClosedError as error:
            raise OutcomeUnknown(
                f"this node was closed; the stop of {key!r} is recorded and will be carried out"
            ) from error
        raise OutcomeUnknown(
            f"the stop of {key!r} stands in its record and will be carried out, but was not confirmed within "
            f"{deadline.seconds:g} s; see explain({key!r})"
        )

    async def _tidy_queue(self, event_id: str) -> None:
        await self._context.store.stream(self._context.store.queue).remove([event_id])

    # --- stop --------------------------------------------------------------------------------------------------------

    async def stop(self, key: str) -> None:
        """Returns when the job has stopped. See `Node.stop_job`."""
        with self._context.calls.open() as call:
            job_id = await self._ask_stop(key, call)
            if job_id:
                await self._await_end(key, job_id, call)

    async def _ask_stop(self, key: str, call: Call) -> str:
        """The job that was asked to stop, "" if it is gone already."""
        context = self._context
        reply = ReplyTo(context.node_id, call.number)
        job_id = ""
        in_doubt = False
        while True:
            try:
                stored = await context.store.job(key)
                if stored is None or (job_id and stored.record.job_id != job_id):
                    if job_id:
                        return ""  # gone while we asked: stopped all the same
                    raise JobNotFoundError(f"no job has the key {key!r}")
                job_id = stored.record.job_id
                match stored.record.state:
                    case JobState.PENDING | JobState.FAILED:
                        waiting = stored.record.reply  # whoever deletes an unstarted record answers its dispatcher (R1)
                        fresh = transitions.never_claimed(stored.record)
                        removal = context.protocol.remove(key, stored, [waiting], Verdict.GONE, unseen=fresh)
                        outcome = await removal
                        if outcome.applied:
                            return ""
                    case JobState.STARTING | JobState.RUNNING:
                        asked = transitions.ask_stop(stored.record, context.wall())
                        outcome = await context.protocol.ask_stop(key, stored, asked, reply)
                        if outcome.applied:
                            return job_id
                    case JobState.STOPPING:
                        bell = StopEvent(key, job_id, reply)
                        await context.forward(stored.record.worker, bell)
                        return job_id
                in_doubt = in_doubt or outcome.doubtful
            except BackendUnavailable as error:
                if not in_doubt:
                    raise  # nothing was done
                raise OutcomeUnknown(
                    f"whether the stop of {key!r} was recorded, or carried out, cannot be told now: {error}"
                ) from error

    # --- notify ------------------------------------------------------------------------------------------------------

    async def notify(self, key: str, payload: bytes) -> None:
        """Returns when the owner has handled the notification. See `Node.notify_worker`."""
        context = self._context
        deadline = Deadline(context, context.options.call_timeout)
        with context.calls.open() as call:
            job_id = await self._send_notification(key, payload, call, deadline)
            try:
                for pause in deadline.looks():
                    answer = await call.answer(pause)
                    if answer is not None:
                        return self._judge_notification(key, answer)
                    if await self._is_gone(key, job_id):
                        raise JobNotFoundError(
                            f"the job {key!r} ended before it took the notification, or while it did"
                        )
            except NodeClosedError as error:
                raise OutcomeUnknown(f"this node was closed; {key!r} may still get the notification") from error
            raise OutcomeUnknown(
                f"{key!r} did not confirm the notification within {deadline.seconds:g} s; it may still be handled"
            )

    async def _send_notification(self, key: str, payload: bytes, call: Call, deadline: Deadline) -> str:
        context = self._context
        while True:
            stored = await context.store.job(key)
            if stored is None or stored.record.state is JobState.FAILED:
                raise JobNotFoundError(f"no job with the key {key!r} runs")
            bell = NotifyEvent(key, stored.record.job_id, payload, ReplyTo(context.node_id, call.number))
            if await context.forward(stored.record.worker, bell):
                return stored.record.job_id
            if deadline.left <= 0:
                raise BackendUnavailable(
                    f"the owner of {key!r} is leaving and nobody has taken over yet; nothing was sent"
                )
            await context.calls.pause(
                min(deadline.left, context.options.poll_period / 20 * (0.5 + context.random.random()))
            )

    def _judge_notification(self, key: str, answer: Answer) -> None:
        if answer.verdict is Verdict.FAILED:
            raise JobNotifyError(f"{key!r} did not take the notification: {answer.text}")
        if answer.verdict is Verdict.GONE:
            raise JobNotFoundError(f"the job {key!r} ended before it took the notification")

    async def _is_gone(self, key: str, job_id: str) -> bool:
        try:
            stored = await self._context.store.job(key)
        except BackendUnavailable:
            return False  # look again later; the deadline bounds it
        return stored is None or stored.record.job_id != job_id

    # --- retry -------------------------------------------------------------------------------------------------------

    async def retry(self, key: str) -> None:
        """Give a FAILED job a fresh set of attempts. See `Node.retry_job`."""
        context = self._context
        while True:
            stored = await context.store.job(key)
            if stored is None:
                raise JobNotFoundError(f"no job has the key {key!r}")
            if stored.record.state is not JobState.FAILED:
                return
            ring = context.membership.ring
            record = transitions.revive(stored.record, ring.owner(key), ring.revision, context.wall())
            outcome = await context.protocol.release(key, stored, record)
            if outcome.applied:
                if outcome.event_id is None:
                    context.sweep_soon()
                return


def _where(stored: Stored | None) -> str:
    if stored is None:
        return ""
    record = stored.record
    place = f" on {record.worker}" if record.worker else ""
    return f" ({record.state.value}{place})"
