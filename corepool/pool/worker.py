"""A worker: its inbox, its lease, and the jobs it owns.

Purpose: take doorbells, hand each to the job it concerns, and keep the set of owned jobs true.
Invariants: an event that cannot be decoded is set aside and acknowledged, and never blocks those behind it; a worker that is
fenced or dead starts nothing; a dead id is never used again (R7).
Neighbours: ``job`` does the work of one key; ``liveness`` renews the lease and fences; ``lifecycle`` adds and removes.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from corepool.driver import NewEvent, SinkStore
from corepool.errors import BackendUnavailable, PoolShutdownError
from corepool.pool import transitions
from corepool.pool.commands import Command, Fence, HandOver, Notify, Review, Start, Stop
from corepool.pool.context import NodeContext
from corepool.pool.doorbells import Doorbell, Doorbells
from corepool.pool.handlers import HandlerCalls
from corepool.pool.job import OwnedJob
from corepool.pool.lease import Lease
from corepool.pool.store import INBOX
from corepool.pool.wire import INIT, NOTIFY, START, STOP, MemberState, NotifyEvent, StartEvent, StopEvent, WorkerRecord

__all__ = ["Worker"]

T = TypeVar("T")

INBOX_SINK = "owner"
_BATCH = 64


class Worker:
    """One worker of a node. Users hold it to remove it, and to see what it does."""

    def __init__(self, context: NodeContext, worker_id: str, handler: Any) -> None:
        self.context = context
        self.id = worker_id
        self.log = context.log.at(worker=worker_id)
        self.user_handler = handler
        self.handler = HandlerCalls(handler, context.options.worker_shutdown_ttl, self.log)
        self.lease = Lease(
            context.store,
            context.store.worker_keep_alive,
            worker_id,
            context.clock,
            context.options.fence_after,
        )
        self.fenced = False
        self.halted = False
        self.accepting = True
        self.removed = False
        """Its user removed it: it does not come back if it is declared dead meanwhile."""
        self.successor: Worker | None = None
        """What it came back as, after it was declared dead (R7)."""
        self.started = 0
        self.released = 0
        self._jobs: dict[str, OwnedJob] = {}
        self._sink: SinkStore | None = None
        self._loops: list[asyncio.Task[Any]] = []
        self._idle = asyncio.Event()
        self._idle.set()

    def __repr__(self) -> str:
        state = "dead" if self.lease.dead else "fenced" if self.fenced else "active" if self.accepting else "leaving"
        return f"<Worker {self.id} {state}, {len(self._jobs)} jobs>"

    @property
    def keys(self) -> list[str]:
        """The keys that run here now."""
        return sorted(key for key, job in self._jobs.items() if job.running)

    def current(self) -> Worker:
        """What this worker is now: itself, or what it came back as."""
        return self if self.successor is None else self.successor.current()

    # --- joining and leaving -----------------------------------------------------------------------------------------

    async def join(self) -> None:
        """R11: record first (JOINING), then inbox and keep-alive, then ACTIVE."""
        context, store = self.context, self.context.store
        await context.membership.put_worker(self.id, self._record(MemberState.JOINING))
        inbox = store.stream(store.worker_inbox(self.id))
        await inbox.create(INBOX)
        await inbox.append(NewEvent(INIT, b""), only_if_exists=True)
        renewal = self.lease.renewal()
        self.lease.begin(await store.map(store.worker_keep_alive).set(self.id, renewal.value, renewal.when))
        self._sink = await inbox.sink(INBOX_SINK, ack_wait=context.options.ack_grace_period)
        pool = await context.membership.settled_pool()
        if pool is None or pool.shutdown or pool.incarnation != store.incarnation:
            # R6: read after the record was written and before anyone may give us a job: a shutdown that set its flag later
            # finds the record, and destroys the inbox.
            raise PoolShutdownError(f"the pool {context.pool!r} was shut down")
        if not await context.membership.change_worker(self.id, MemberState.ACTIVE):
            # So slow that it was declared dead and buried before it was born: what it has made since goes as well.
            self.lease.dead = True
            await self.close_inbox()
            await inbox.destroy()
            await store.map(store.worker_keep_alive).delete(self.id)
            raise BackendUnavailable(
                f"joining took longer than worker_ttl ({context.options.worker_ttl:g} s); try again"
            )
        self._loops.append(context.supervisor.loop(f"inbox {self.id}", self._take_doorbells))
        self._loops.append(context.supervisor.loop(f"review {self.id}", self._review_now_and_then))

    def _record(self, state: MemberState) -> WorkerRecord:
        return WorkerRecord(self.context.node_id, state, self.context.wall())

    async def hand_all_over(self, timeout: float) -> bool:
        """Let go of every job; True when none is left. After half the time, what hangs is interrupted."""
        try:
            async with asyncio.timeout(timeout / 2):
                for job in list(self._jobs.values()):
                    job.put(HandOver("worker leaves"))
                await self._idle.wait()
        except TimeoutError:
            for job in list(self._jobs.values()):
                job.put(Fence())
        try:
            async with asyncio.timeout(timeout / 2):
                await self._idle.wait()
                # What is ours by record but does not run here (R9) is let go of too; a review passes over what is busy.
                while await self.review() or not self._idle.is_set():
                    await self._idle.wait()
        except TimeoutError:
            return False
        # Who is fenced writes nothing: its records still name it, and its list of them is what others find them by (R7).
        return not (self.fenced or self.lease.dead)

    async def stop_all_handlers(self, timeout: float) -> bool:
        """Stop every handler for good, write nothing, and wait until nothing runs here. False: something did not end."""
        self.fenced = self.halted = True
        for job in list(self._jobs.values()):
            job.put(Fence())
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def close_inbox(self) -> None:
        """Take no more doorbells."""
        await self.context.supervisor.cancel(*self._loops)
        self._loops.clear()
        if self._sink is not None:
            await self._sink.aclose()
            self._sink = None

    # --- fencing -----------------------------------------------------------------------------------------------------

    def fence(self) -> None:
        """R8: the lease may have run out; stop every handler before anyone may take the jobs."""
        if not self.fenced:
            self.log.warning("worker %s fences itself: no keep-alive was confirmed in time", self.id)
            self.fenced = True
            for job in list(self._jobs.values()):
                job.put(Fence())

    def unfence(self) -> None:
        """The lease holds again: find out what became of the jobs (R9)."""
        if self.fenced and not self.halted and not self.lease.dead:
            self.fenced = False
            self.log.warning("worker %s holds its lease again", self.id)
            self.context.supervisor.spawn(f"review {self.id}", self.review())

    # --- doorbells ---------------------------------------------------------------------------------------------------

    async def _take_doorbells(self) -> None:
        assert self._sink is not None
        bells = Doorbells(self._sink)
        while True:
            for delivery in await self._sink.receive(_BATCH):
                bell = bells.take(delivery)
                if bell is not None:
                    command = self._command(bell)
                    if command is None:
                        await bell.done()
                    else:
                        self._job(command.event.key).put(command)

    def _command(self, bell: Doorbell) -> Start | Stop | Notify | None:
        match bell.event.name:
            case name if name == START:
                start = self._decoded(bell, StartEvent)
                return None if start is None else Start(bell, start)
            case name if name == STOP:
                stop = self._decoded(bell, StopEvent)
                return None if stop is None else Stop(bell, stop)
            case name if name == NOTIFY:
                notify = self._decoded(bell, NotifyEvent)
                return None if notify is None else Notify(bell, notify)
            case name if name == INIT:
                return None
            case name:
                self.log.warning("set aside an event of an unknown kind: %r", name)
                return None

    def _decoded(self, bell: Doorbell, kind: type[T]) -> T | None:
        return self.context.store.decoded(bell.event.payload, kind, f"the inbox of {self.id}")

    # --- jobs --------------------------------------------------------------------------------------------------------

    def _job(self, key: str) -> OwnedJob:
        job = self._jobs.get(key)
        if job is None:
            job = self._jobs[key] = OwnedJob(self, key)
            self._idle.clear()
        return job

    def forget(self, job: OwnedJob) -> None:
        """Nothing of this job runs or waits here any more."""
        if self._jobs.get(job.key) is job:
            del self._jobs[job.key]
            if not self._jobs:
                self._idle.set()

    def put(self, key: str, command: Command) -> None:
        self._job(key).put(command)

    def rebalance(self) -> None:
        """Compare where the jobs are with where they belong."""
        ring = self.context.membership.ring
        for key, job in list(self._jobs.items()):
            stored = job.stored
            newer = stored is not None and ring.revision > stored.record.ring  # R5
            if newer and job.running and not job.busy and ring and ring.owner(key) != self.id:
                job.put(HandOver("belongs elsewhere"))

    def review_soon(self, key: str) -> None:
        """Look at one job again, after a pause."""
        self.context.supervisor.spawn(f"review {key!r}", self._review_later(key))

    async def _review_later(self, key: str) -> None:
        await asyncio.sleep(self.context.options.poll_period)
        if not self.lease.dead and (self.accepting or key in self._jobs):
            self.put(key, Review())

    async def _review_now_and_then(self) -> None:
        await asyncio.sleep(4 * self.context.options.ack_grace_period * (0.75 + self.context.random.random() / 2))
        await self.review()

    async def review(self) -> int:
        """R9: compare what this worker owns with what runs here; each difference goes to its job. How many there were."""
        context = self.context
        if self.fenced or self.lease.dead:
            return 0
        owned = {entry.key: None async for entry in context.store.map(context.store.owned(self.id)).scan()}
        keys = sorted({**owned, **dict.fromkeys(self._jobs)})
        records = await context.store.jobs_of(keys)
        differences = 0
        for key in keys:
            job = self._jobs.get(key)
            if job is not None and job.busy:
                continue
            stored = records.get(key)
            mine = stored is not None and transitions.is_owned_by(stored.record, self.id)
            same = job is not None and job.running and job.stored == stored
            if not (mine and same):
                self.put(key, Review(stored if mine and job is None else None))
                differences += 1
        return differences
