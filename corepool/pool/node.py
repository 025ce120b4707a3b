"""The node: a process's membership in a pool, and all that its user calls.

Purpose: the public face; each method checks its input, names its errors, and passes on.
Invariants: nothing is sent before the input was checked; close and shutdown are idempotent, bounded in time, and safe to
call at once, from a handler, and after cancellation.
Neighbours: ``session`` lives the node's life, ``dispatch`` makes its calls, ``explain`` and ``health`` look.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Self, TypeVar

from corepool.driver import Backend, check_duration, check_key, check_value
from corepool.errors import ClientOnlyError, InvalidOptionError, NodeClosedError
from corepool.pool.context import NodeContext, PoolLog
from corepool.pool.dispatch import JobCalls
from corepool.pool.explain import Explanation, Health, explain, health
from corepool.pool.handlers import JobHandler, check_handler
from corepool.pool.incarnation import clear_incarnation, flag_shutdown
from corepool.pool.options import NodeOptions
from corepool.pool.schedule import Producer, Schedule
from corepool.pool.session import Session
from corepool.pool.telemetry import open_telemetry
from corepool.pool.ticker import Ticker
from corepool.pool.wire import WorkerRecord
from corepool.pool.worker import Worker

__all__ = ["Node"]

T = TypeVar("T")


class Node:
    """A node of a pool: dispatches, notifies and stops jobs, and holds the workers that run them.

    Use it as ``async with Node(backend, "feeds") as node:``; leaving the block hands its jobs over and closes it. Nodes of one
    pool share a backend and a pool name. Options: see `NodeOptions`; all durations are seconds.

    Raises:
        InvalidOptionError: an option is unknown or out of its range.
        InvalidKeyError: the pool's name is empty or too long.
    """

    def __init__(self, backend: Backend, pool: str, **options: Any) -> None:
        try:
            self.options = NodeOptions(**options)
        except TypeError as error:
            known = ", ".join(name for name in NodeOptions.__slots__ if not name.startswith("_"))
            raise InvalidOptionError(f"{error}; the options of a node are: {known}") from None
        self.pool = pool
        self._backend = backend
        self._log = PoolLog(logging.getLogger("corepool.pool"), {"pool": pool})
        self._telemetry = open_telemetry(pool, backend.clock)
        self._session: Session | None = None
        self._calls: JobCalls | None = None
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, backend: Backend, pool: str, **options: Any) -> Self:
        """A node that is part of the pool already; the caller closes it."""
        return await cls(backend, pool, **options).__aenter__()

    async def __aenter__(self) -> Self:
        if self._session is not None:
            raise NodeClosedError("a node is entered once; make a new one")
        self._session = await Session.open(self._backend, self.pool, self.options, self._log)
        self._calls = JobCalls(self._session.context)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        if self._session is None:
            return f"<Node of {self.pool!r}, not entered>"
        state = "closed" if self._session.ended is not None else "open"
        return f"<Node {self._session.context.node_id} of {self.pool!r}, {state}, {len(self._session.workers)} workers>"

    @property
    def id(self) -> str:
        """This node's id. It changes if the node was declared dead and came back (R7)."""
        return self._open().context.node_id

    # --- workers -----------------------------------------------------------------------------------------------------

    async def add_worker(self, handler: JobHandler) -> Worker:
        """Add a worker that runs jobs with ``handler``; returns when it is part of the ring. Jobs that belong to it by
        placement move to it.

        Cancelling the call cancels nothing: the worker belongs to the node.

        Raises:
            InvalidHandlerError: the handler lacks ``start`` or ``stop``.
            ClientOnlyError: the node was opened with ``client_only=True``.
            NodeClosedError, PoolShutdownError, BackendUnavailable
        """
        check_handler(handler)
        if self.options.client_only:
            raise ClientOnlyError("this node was opened with client_only=True and holds no workers; open another one")
        session = self._open()
        return await self._of_the_node("add worker", session, session.add_worker(self._telemetry.handler(handler)))

    async def remove_worker(self, worker: Worker) -> None:
        """Hand the worker's jobs over to others and remove it; at most ``worker_shutdown_ttl`` seconds, then others finish.

        Raises:
            InvalidOptionError: the worker is not this node's.
        """
        session = self._open()
        worker = worker.current()
        if worker.context is not session.context:
            raise InvalidOptionError(f"{worker!r} is not a worker of {self!r}")
        worker.removed = True
        if worker.id in session.workers:
            work = session.remove_worker(worker, self.options.worker_shutdown_ttl)
            await self._of_the_node("remove worker", session, work)

    @property
    def workers(self) -> list[Worker]:
        """The workers of this node."""
        return [] if self._session is None else list(self._session.workers.values())

    def pool_workers(self) -> dict[str, WorkerRecord]:
        """All workers of the pool by id, as far as this node has heard."""
        return self._open().context.membership.workers()

    # --- jobs --------------------------------------------------------------------------------------------------------

    async def dispatch_job(self, key: str, payload: bytes = b"", *, timeout: float | None = None) -> None:
        """Give the pool a job; returns when a worker has started it.

        timeout: seconds to wait; ``call_timeout`` unless told. A cancelled call takes the job back if no worker has it yet.

        Raises:
            JobExistsError: the key has a job already.
            JobStartError: the handler's ``start`` failed; no job is left.
            DispatchTimeoutError: it was certainly never started; no job is left.
            JobGoneError: it was stopped meanwhile, or its start took too long; no job is left, but it may have run.
            QueueFullError: there is no worker and too many jobs wait.
            OutcomeUnknown: the backend went away at the wrong moment; look before dispatching again.
            InvalidKeyError, PayloadTooLarge, NodeClosedError, PoolShutdownError, BackendUnavailable: nothing was sent.
        """
        check_key(key, self._backend.capabilities)
        check_value(payload, self._backend.capabilities)
        with self._telemetry.call("dispatch_job", key):
            await self._jobs().dispatch(key, payload, self._timeout(timeout))

    async def stop_job(self, key: str) -> None:
        """Stop a job, wherever it is; returns when it has stopped. The wish is durable: it outlives this node and the owner.

        Raises:
            JobNotFoundError: no job has the key.
            OutcomeUnknown: the wish is recorded and will be carried out, but was not confirmed within ``call_timeout``.
            InvalidKeyError, NodeClosedError, PoolShutdownError, BackendUnavailable: nothing was done.
        """
        check_key(key, self._backend.capabilities)
        with self._telemetry.call("stop_job", key):
            await self._jobs().stop(key)

    async def notify_worker(self, key: str, payload: bytes = b"") -> None:
        """Notify the job's owner; returns when its handler has handled it. At least once; a caller that awaits each call is
        heard in order, also while the job moves.

        Raises:
            JobNotFoundError: no job has the key, or it ended first.
            JobNotifyError: the handler has no ``notify``, or it failed.
            OutcomeUnknown: not confirmed within ``call_timeout``; it may still be handled.
            InvalidKeyError, PayloadTooLarge, NodeClosedError, PoolShutdownError, BackendUnavailable
        """
        check_key(key, self._backend.capabilities)
        check_value(payload, self._backend.capabilities)
        with self._telemetry.call("notify_worker", key):
            await self._jobs().notify(key, payload)

    async def retry_job(self, key: str) -> None:
        """Give a FAILED job a fresh set of attempts; does nothing to one that has not failed.

        Raises:
            JobNotFoundError: no job has the key.
        """
        check_key(key, self._backend.capabilities)
        with self._telemetry.call("retry_job", key):
            await self._jobs().retry(key)

    async def job_keys(self) -> list[str]:
        """The keys of all jobs of the pool, sorted. Reads every record: for people and tests."""
        context = self._open().context
        return sorted([entry.key async for entry in context.store.jobs_map.scan()])

    async def job_payload(self, key: str) -> bytes | None:
        """The payload a job was dispatched with, or None if there is no such job."""
        check_key(key, self._backend.capabilities)
        context = self._open().context
        stored = await context.store.job(key)
        return None if stored is None else await context.payload(stored.record.job_id)

    async def explain(self, key: str) -> Explanation | None:
        """What is known of a job: state, owner, token, history of its moves and why. None if there is no such job."""
        check_key(key, self._backend.capabilities)
        return await explain(self._open().context, key)

    async def health(self, *, timeout: float = 5.0) -> Health:
        """Whether this node works: its leases are renewed *and* an event sent to its own inbox arrives within ``timeout``."""
        check_duration("timeout", timeout)
        return await health(self._open(), timeout)

    # --- time --------------------------------------------------------------------------------------------------------

    async def ticker(self, name: str, interval: float) -> AsyncIterator[int]:
        """Ticks of a name: each fires on exactly one node of the pool, about every ``interval`` seconds. Yields its number;
        ends with the node.

        Raises:
            InvalidOptionError: the interval is not a positive duration.
        """
        check_duration("interval", interval)
        ticker = Ticker(self._open().context, name, interval)
        async with ticker:
            async for number in ticker:
                yield number

    async def schedule(self, producer: Producer, interval: float) -> Schedule:
        """Ask ``producer`` for a plan about every ``interval`` seconds, on one node of the pool at a time, and carry it out:
        jobs to start, jobs to stop. Ends everywhere when the producer raises `corepool.ScheduleStop`.

        Raises:
            InvalidOptionError: the interval is not a positive duration, or the producer has no name or plan.
        """
        check_duration("interval", interval)
        session = self._open()
        schedule = Schedule(session.context, self._jobs(), producer, interval)
        schedule.begin()
        return schedule

    # --- ending ------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Hand all jobs over and leave the pool, within ``worker_shutdown_ttl`` seconds. Idempotent; a second call waits for
        the first. Called from one of this node's own handlers it begins closing and returns at once."""
        if self._session is None:
            return
        await self._end(self._session.leave(self.options.worker_shutdown_ttl))

    async def shutdown(self) -> None:
        """End the pool: stop every job on every node, remove every record. Nodes that are open get `PoolShutdownError` from
        then on; a node that is opened afterwards begins the pool's next incarnation. Idempotent, bounded."""
        session = self._session
        if session is None:
            raise NodeClosedError("a node that was not entered cannot shut its pool down")
        await self._end(self._shut_down(session))

    async def abandon(self) -> None:
        """End as a crash would: no handler is stopped, nothing is handed over, nothing is written. For drills and demos;
        others take the jobs over after ``worker_ttl``."""
        if self._session is not None:
            await self._session.abandon()

    async def _end(self, work: Any) -> None:
        session = self._session
        assert session is not None
        failed = self._closing is not None and self._closing.done() and not self._closing.cancelled()
        if self._closing is None or (failed and self._closing.exception() is not None):
            self._closing = asyncio.get_running_loop().create_task(work, name=f"{self.pool}/close")
        else:
            work.close()
        if any(asyncio.current_task() in worker.handler.active for worker in session.workers.values()):
            return  # a handler of ours: it cannot wait for its own end
        await asyncio.shield(self._closing)

    async def _shut_down(self, session: Session) -> None:
        context: NodeContext = session.context
        limit = self.options.worker_shutdown_ttl
        try:
            async with asyncio.timeout(limit):
                first = await context.supervisor.persist(
                    "shutdown", lambda: flag_shutdown(context.membership, context.store.incarnation), lambda: False
                )
                watch = context.membership.watch_workers()
                while first and context.membership.workers():
                    await watch.changed()  # each node stops its own; the dead are buried
        except TimeoutError:
            self._log.warning("not every worker confirmed the shutdown within %g s", limit)
        began = context.clock.monotonic()
        await context.supervisor.persist(
            "shutdown",
            lambda: clear_incarnation(context.store, context.protocol),
            lambda: context.clock.monotonic() - began > limit,
        )
        await session.leave(limit)

    # --- how ---------------------------------------------------------------------------------------------------------

    async def _of_the_node(self, name: str, session: Session, work: Coroutine[Any, Any, T]) -> T:
        """The result of a task of the node's. Its caller may be cancelled without it; if the node ends first, so does it."""
        task = session.context.supervisor.spawn(name, work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if task.cancelled() and (caller is None or not caller.cancelling()):
                raise session.ended or NodeClosedError("the node is closed") from None
            raise

    def _open(self) -> Session:
        if self._session is None:
            raise NodeClosedError("the node is not open; use 'async with Node(...)' or 'await Node.open(...)'")
        if self._session.ended is not None:
            raise self._session.ended
        return self._session

    def _jobs(self) -> JobCalls:
        self._open()
        assert self._calls is not None
        return self._calls

    def _timeout(self, timeout: float | None) -> float:
        if timeout is None:
            return self.options.call_timeout
        check_duration("timeout", timeout)
        return timeout
