"""One job on its owner: claim, start, notify, stop, hand over, fence, review.

Purpose: everything an owner does with one key, one thing at a time, in the order it was asked for.
Invariants:

- A handler sees start and stop strictly alternating per key and worker: both are called from this one queue.
- The lease is checked immediately before handler.start, with no await in between (R3).
- A record is written only by compare-and-set on the revision last seen; a lost race means: look at what stands there.
- A stop or a fence interrupts a start or notify that is under way, and nothing else.

Neighbours: a worker puts commands; ``protocol`` writes; ``handlers`` calls the user's code.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar

from corepool.errors import Requeue
from corepool.pool import transitions
from corepool.pool.commands import Command, Fence, Fenced, HandOver, Notify, Review, Start, Stop
from corepool.pool.doorbells import Doorbell
from corepool.pool.handlers import FencingToken, Job
from corepool.pool.interruptible import Interrupted, Stretch
from corepool.pool.protocol import Outcome
from corepool.pool.store import Stored
from corepool.pool.supervisor import TRANSIENT, backoff
from corepool.pool.wire import JobState, StartEvent, Verdict

if TYPE_CHECKING:
    from corepool.pool.worker import Worker

__all__ = ["OwnedJob"]

T = TypeVar("T")


_NOTHING: Final = deque[Command](maxlen=0)
"""The queue of every job at rest: one of its own would be the largest part of it."""


class OwnedJob:
    """One key on one worker."""

    __slots__ = (
        "_at_work",
        "_began",
        "_commands",
        "_fencing",
        "_in_handler",
        "_interruptible",
        "_payload",
        "_runner",
        "_token",
        "_worker",
        "key",
        "running",
        "stored",
    )

    def __init__(self, worker: Worker, key: str) -> None:
        self.key = key
        self.running = False
        """handler.start has returned, or was interrupted, and handler.stop was not called since."""
        self.stored: Stored | None = None
        """The record as this owner last wrote it."""
        self._worker = worker
        self._payload: bytes | None = None
        self._token = 0
        self._at_work = self._began = self._fencing = self._in_handler = False
        self._commands: deque[Command] = _NOTHING
        self._runner: asyncio.Task[None] | None = None
        self._interruptible: Stretch | None = None

    @property
    def busy(self) -> bool:
        return self._runner is not None

    def put(self, command: Command) -> None:
        """Do this after what was asked before."""
        if isinstance(command, Fence):
            self._fence(command)
        else:
            self._queue().append(command)
            if isinstance(command, Stop):
                self.interrupt()
        if self._runner is None:
            self._runner = self._worker.context.supervisor.spawn(f"job {self.key!r}", self._run())

    def _queue(self) -> deque[Command]:
        self._commands = self._commands if self._commands is not _NOTHING else deque[Command]()
        return self._commands

    def interrupt(self) -> None:
        """End a start or notify, or a pause before the next attempt, that is under way."""
        if self._interruptible is not None:
            self._interruptible.interrupt()

    def _fence(self, command: Fence) -> None:
        """Before anything else: whatever waits for the backend now must not keep the handler from being stopped."""
        self._queue().appendleft(command)
        self.interrupt()
        # A runner that has not taken its first step finds the command at the head of the queue; cancelled now, it never would.
        if self._runner is not None and self._at_work and not self._in_handler and not self._fencing:
            self._fencing = True
            self._runner.cancel()

    async def _run(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._at_work = True
        try:
            while self._commands:
                command = self._commands.popleft()
                try:
                    await self._carry_out(command)
                except asyncio.CancelledError:
                    self._drop_bell(command)
                    if not self._fencing:
                        raise
                except TRANSIENT as error:
                    self._drop_bell(command)
                    self._worker.log.warning("job %r: %s: %s", self.key, type(command).__name__, error)
                    self._worker.review_soon(self.key)
                except Exception:  # a bug in one step must not keep the next from being taken; the review repairs
                    self._drop_bell(command)
                    self._worker.log.exception("job %r: %s failed", self.key, type(command).__name__)
                    self._worker.review_soon(self.key)
                if self._fencing:  # also if something on the way swallowed the cancellation
                    self._fencing = False
                    task.uncancel()
        finally:
            self._runner = None
            self._at_work = False
            self._commands = self._commands or _NOTHING
            if not self.running:
                self._worker.forget(self)

    def _drop_bell(self, command: Command) -> None:
        """Not dealt with: the event may come again."""
        bell = getattr(command, "bell", None)
        if bell is not None:
            bell.taken()

    async def _carry_out(self, command: Command) -> None:
        if self._worker.halted and not isinstance(command, Fence):
            self._drop_bell(command)  # this worker does nothing any more: others find its records
            return
        match command:
            case Start():
                await self._start(command)
            case Notify():
                await self._notify(command)
            case Stop():
                await self._stop(command)
            case HandOver():
                await self._hand_over(command.why)
            case Fence():
                await self._stop_handler()
            case Review():
                await self._review(command.found)

    # --- claim and start ---------------------------------------------------------------------------------------------

    async def _start(self, command: Start) -> None:
        worker, bell = self._worker, command.bell
        if self.running:
            if self.stored is not None and self.stored.record.job_id == command.event.record.job_id:
                await self._done(bell)  # rung twice
                return
            await self._review()  # another job under this key: the one running here is gone
        stamp = None if bell is None else bell.event.stamp
        stored = Stored(command.event.record, stamp) if stamp is not None else await self._read()
        while stored is not None:
            record = stored.record
            if record.state is not JobState.PENDING or record.worker != worker.id:
                break  # the record moved on: this doorbell is of no use any more
            if not worker.accepting:
                await self._release(stored, "worker leaves")
                break
            if not worker.lease.valid:
                if bell is not None:
                    await bell.later(worker.context.options.poll_period)
                return
            # another job may stand under this key by now, with another payload
            carried = command.event.payload if record.job_id == command.event.record.job_id else None
            outcome = await self._claim(stored, bell, read_payload=carried is None)
            if outcome.applied and self.stored is not None:
                await self._launch(self.stored, outcome.payload if carried is None else carried)
                return
            stored = outcome.current
        await self._done(bell)
        if stored is not None and transitions.is_owned_by(stored.record, worker.id) and not self.running:
            await self._review()

    async def _claim(self, prior: Stored, bell: Doorbell | None, *, read_payload: bool = True) -> Outcome:
        worker = self._worker
        record = transitions.claim(prior.record, worker.id, worker.context.generation, worker.context.wall())
        receipt = None if bell is None else bell.receipt
        claim = partial(worker.context.protocol.claim, self.key, prior, record, receipt, read_payload=read_payload)
        outcome = await self._persist("claim", claim)
        if outcome.applied:
            if bell is not None:
                bell.taken()
            self.stored = Stored(record, outcome.revision)
        return outcome

    async def _launch(self, claimed: Stored, payload: bytes | None) -> None:
        """STARTING is ours: call the handler, then say so."""
        record = claimed.record
        if payload is None:
            payload = await self._persist("payload", lambda: self._worker.context.payload(record.job_id))
        self._payload = payload
        if payload is None:  # written after the record, so it may be on its way (R4)
            await self._start_failed(claimed, "its payload is missing", again=True)
            return
        self._token = claimed.revision
        token = FencingToken(record.generation, claimed.revision)
        job = Job(self.key, payload, token, record.attempt)
        self._began = False
        try:
            error = await self._interruptibly(self._call_start(job))
        except Interrupted:
            self.running = self._began  # what had begun gets its stop
            await self._stop_handler()
            self._queue().append(Review())
            return
        if error is None:
            self.running = True
            await self._confirm(claimed)
        elif isinstance(error, Fenced):
            self._worker.review_soon(self.key)
        else:
            self._worker.log.warning(
                "handler.start(%r) failed: %r", self.key, error, extra={"job": self.key}, exc_info=error
            )
            again = record.started or isinstance(error, Requeue)
            await self._start_failed(claimed, f"{type(error).__name__}: {error}", again=again)

    async def _call_start(self, job: Job) -> None:
        if not self._worker.lease.valid or self._worker.fenced:  # R3: no await between this and the call
            raise Fenced
        self._began = True
        await self._worker.handler.start(job)

    async def _confirm(self, claimed: Stored) -> None:
        context = self._worker.context
        record = transitions.confirm(claimed.record, self._token, context.wall())
        outcome = await self._persist("confirm", lambda: context.protocol.confirm(self.key, claimed, record))
        if outcome.applied:
            self.stored = Stored(record, outcome.revision)
            self._worker.started += 1
        else:
            await self._overtaken(outcome.current)

    async def _start_failed(self, claimed: Stored, reason: str, *, again: bool) -> None:
        """R1: what was never started goes; what had started is tried again, then FAILED."""
        context, record = self._worker.context, claimed.record
        if again and record.attempt < context.options.max_start_attempts:
            pauses = backoff(context.random, context.options.start_backoff, context.options.max_start_backoff)
            pause = next(islice(pauses, record.attempt - 1, None))
            try:
                await self._interruptibly(asyncio.sleep(pause))
            except Interrupted:
                return  # what interrupted comes next in the queue, and finds the record STARTING
            await self._release(claimed, f"start failed: {reason}")
            return
        if record.started:
            failed = transitions.fail(record, reason, context.wall())
            outcome = await self._persist("fail", lambda: context.protocol.fail(self.key, claimed, failed))
        else:
            remove = partial(context.protocol.remove, unseen=self._payload is None)
            outcome = await self._persist(
                "withdraw", lambda: remove(self.key, claimed, [record.reply], Verdict.FAILED, reason)
            )
        if not outcome.applied:
            await self._overtaken(outcome.current)

    # --- stop and notify ---------------------------------------------------------------------------------------------

    async def _stop(self, command: Stop) -> None:
        event, bell, mine = command.event, command.bell, self.stored
        stamp = None if bell is None else bell.event.stamp
        stored: Stored | None
        if stamp is not None and mine is not None and mine.record.job_id == event.job_id:
            stored = Stored(transitions.ask_stop(mine.record, mine.record.wall), stamp)
        else:
            stored = await self._read()
        context = self._worker.context
        if stored is not None and stored.record.state is JobState.STOPPING and stored.record.worker == self._worker.id:
            await self._finish_stop(stored, command)
            return
        if stored is None or stored.record.job_id != event.job_id:
            await context.protocol.answer(event.reply, Verdict.DONE)
        elif stored.record.state is JobState.STOPPING:
            await context.forward(stored.record.worker, event)
        await self._done(bell)

    async def _finish_stop(self, stored: Stored, command: Stop | None = None) -> None:
        """STOPPING is ours: stop the handler, then remove the record and all that belongs to it."""
        await self._stop_handler()
        context, record = self._worker.context, stored.record
        bell = None if command is None else command.bell
        receipt = None if bell is None else bell.receipt
        replies = [] if command is None else [command.event.reply]
        unseen = self._payload is None and not record.started
        remove = partial(context.protocol.remove, self.key, stored, replies, receipt=receipt, unseen=unseen)
        outcome = await self._persist("remove", remove)
        if outcome.applied:
            self.stored = None
            if bell is not None:
                bell.taken()
            if record.reply is not None:  # its dispatcher still waits for a start that will not come
                await context.protocol.answer(record.reply, Verdict.GONE)
        elif outcome.current is None or outcome.current.record.job_id != record.job_id:
            await self._done(bell)  # a cleaner was faster: gone all the same
            for reply in replies:
                await context.protocol.answer(reply, Verdict.DONE)
        else:
            current = outcome.current
            if current.record.state is JobState.STOPPING and current.record.worker == self._worker.id:
                await self._finish_stop(current, command)  # the stamp was of an earlier writing
            else:
                await self._overtaken(current)
                await self._done(bell)

    async def _notify(self, command: Notify) -> None:
        event, bell, context = command.event, command.bell, self._worker.context
        if not self.running:
            await self._pass_notification_on(command)
            return
        verdict, text = Verdict.DONE, ""
        if not self._worker.handler.takes_notifications:
            verdict, text = Verdict.FAILED, "the handler has no notify(key, payload)"
        else:
            try:
                error = await self._interruptibly(self._worker.handler.notify(self.key, event.payload))
            except Interrupted:
                await bell.later(0.0)  # at least once: whoever owns the job next gets it again
                return
            if error is not None:
                verdict, text = Verdict.FAILED, f"{type(error).__name__}: {error}"
                self._worker.log.warning("handler.notify(%r) failed: %r", self.key, error, extra={"job": self.key})
        bell.taken()
        await context.answer_and_ack(event.reply, verdict, text, bell.ack_op())

    async def _pass_notification_on(self, command: Notify) -> None:
        event, bell, context = command.event, command.bell, self._worker.context
        stored = await self._read()
        if stored is None or stored.record.job_id != event.job_id:
            bell.taken()
            await context.answer_and_ack(event.reply, Verdict.GONE, "", bell.ack_op())
        elif stored.record.worker == self._worker.id:
            await bell.later(min(1.0, context.options.ack_grace_period / 8))  # it is about to start here
        elif await context.forward(stored.record.worker, event):
            await bell.done()
        else:
            await bell.later(min(1.0, context.options.ack_grace_period / 8))

    # --- hand over, fence, review ------------------------------------------------------------------------------------

    async def _hand_over(self, why: str) -> None:
        worker, stored = self._worker, self.stored
        if not self.running or stored is None:
            return
        ring = worker.context.membership.ring
        leaving = not worker.accepting
        if ring.owner(self.key) == worker.id or not (leaving or ring.revision > stored.record.ring):
            return  # R5: only a ring newer than the one that brought it here may take it away again
        async with worker.context.moves:
            await self._stop_handler()
            await self._release(stored, why)

    async def _release(self, prior: Stored, why: str) -> None:
        context = self._worker.context
        ring = context.membership.ring
        target = ring.owner(self.key)
        if target == self._worker.id and not self._worker.accepting:
            return  # the ring here is about to lead elsewhere: the next review lets go
        record = transitions.release(prior.record, target, ring.revision, why, context.wall())
        outcome = await self._persist("release", lambda: context.protocol.release(self.key, prior, record))
        if outcome.applied:
            self.stored = None
            self._worker.released += 1
            if outcome.event_id is None:
                context.sweep_soon()
        else:
            await self._overtaken(outcome.current)

    async def _overtaken(self, current: Stored | None) -> None:
        """Somebody changed the record meanwhile: stop what must not run here, finish what is asked of us."""
        if current is not None and transitions.is_owned_by(current.record, self._worker.id):
            if current.record.state is JobState.STOPPING:
                await self._finish_stop(current)
            else:
                self.stored = current
                self._worker.review_soon(self.key)
            return
        if current is None and await self._restored():
            return
        await self._stop_handler()
        self.stored = None

    async def _review(self, found: Stored | None = None) -> None:
        worker, context = self._worker, self._worker.context
        stored = found or await self._read()
        if stored is None or not transitions.is_owned_by(stored.record, worker.id):
            if stored is not None and stored.record.state is JobState.PENDING and stored.record.worker == worker.id:
                await self._stop_handler()
                await self._start(Start(None, StartEvent(self.key, stored.record)))
                return
            if stored is None and await self._restored():
                return
            await self._stop_handler()
            self.stored = None
            await context.disown(worker.id, self.key)
            return
        record = stored.record
        if record.state is JobState.STOPPING:
            await self._finish_stop(stored)
        elif self.running and self.stored is not None and self.stored.record.job_id == record.job_id:
            if record.state is JobState.STARTING or record.token != self._token:
                await self._confirm(stored)  # the confirmation was lost, or the store went back behind it (R13)
            else:
                self.stored = stored
        elif worker.lease.valid and worker.accepting:
            await self._stop_handler()
            async with context.claims:  # bounded: after a fence all claim at once, and keep-alives must get through
                outcome = await self._claim(stored, None)
            if not outcome.applied:
                await self._overtaken(outcome.current)
            elif self.stored is not None:
                await self._launch(self.stored, outcome.payload)
        elif not worker.accepting:
            await self._release(stored, "worker leaves")

    async def _restored(self) -> bool:
        """R13: no record, though the job runs here and the lease holds. Nobody but this owner removes such a record, so the
        store went back. The job was promised, and is written again."""
        worker, context = self._worker, self._worker.context
        if not self.running or self.stored is None or not worker.lease.valid or not worker.accepting:
            return False
        pool = await self._persist("read the pool's record", context.membership.settled_pool)
        if pool is None or pool.shutdown or pool.incarnation != context.store.incarnation:
            return False
        prior = self.stored
        record = prior.record
        if record.state is not JobState.RUNNING:
            record = transitions.confirm(record, self._token, context.wall())
        outcome = await self._persist(
            "restore", lambda: context.protocol.restore(self.key, record, self._payload or b"")
        )
        if outcome.applied:
            self.stored = Stored(record, outcome.revision)
            await context.protocol.answer(prior.record.reply, Verdict.DONE)
        elif outcome.current is not None:
            await self._overtaken(outcome.current)
        return outcome.applied or outcome.current is not None

    # --- how ---------------------------------------------------------------------------------------------------------

    async def _stop_handler(self) -> None:
        if self.running:
            self._in_handler = True
            try:
                await self._worker.handler.stop(self.key)
            finally:
                self._in_handler = False
            self.running = False

    async def _interruptibly(self, work: Coroutine[Any, Any, None]) -> BaseException | None:
        """Do this unless interrupted; what it raised.

        Raises:
            Interrupted: a stop or a fence ended it, or was there first.
        """
        if self._commands and any(isinstance(command, Stop | Fence) for command in self._commands):
            work.close()
            raise Interrupted
        self._interruptible, self._in_handler = Stretch(), True
        try:
            return await self._interruptible.run(work)
        finally:
            self._interruptible, self._in_handler = None, False

    async def _read(self) -> Stored | None:
        return await self._persist("read", lambda: self._worker.context.store.job(self.key))

    def _persist(self, what: str, attempt: Callable[[], Awaitable[T]]) -> Coroutine[Any, Any, T]:
        """Until the backend answers; but not beyond the lease, after which others decide."""
        worker = self._worker
        return worker.context.supervisor.persist(("job", self.key, what), attempt, lambda: not worker.lease.valid)

    async def _done(self, bell: Doorbell | None) -> None:
        if bell is not None:
            await bell.done()
