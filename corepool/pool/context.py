"""What the parts of one node share.

Purpose: the node's sources (clock, randomness), its store, members, tasks and calls in one place, and the few small
operations that several parts need.
Invariants: nothing here reads a clock, makes an id or draws a random number but through the backend's own sources; that is
what makes a simulated run a function of its seed.
Neighbours: made by ``Node.open``; every part of the pool holds it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Any

import msgspec

from corepool.driver import Append, Appended, Backend, Clock, Op
from corepool.pool.calls import Calls
from corepool.pool.membership import Membership
from corepool.pool.options import NodeOptions
from corepool.pool.protocol import JobProtocol
from corepool.pool.store import PoolStore
from corepool.pool.supervisor import Supervisor
from corepool.pool.wire import Answer, NotifyEvent, ReplyTo, StopEvent, Verdict, event

if TYPE_CHECKING:
    from corepool.pool.ticker import Ticker

__all__ = ["NodeContext", "PoolLog", "new_id"]

_CLAIMS_AT_ONCE = 32
"""Of jobs that are claimed again after a fence or an outage."""
_MOST_HOPS = 32  # a notification that was forwarded so often runs after a job that never stays anywhere


class PoolLog(logging.LoggerAdapter[logging.Logger]):
    """The pool's logger with pool, node, worker and job as fields."""

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        kwargs["extra"] = {**(self.extra or {}), **kwargs.get("extra", {})}
        return msg, kwargs

    def at(self, **fields: str) -> PoolLog:
        """The same logger with more fields."""
        return PoolLog(self.logger, {**(self.extra or {}), **fields})


class NodeContext:
    """Shared by the parts of one node."""

    def __init__(
        self,
        backend: Backend,
        pool: str,
        node_id: str,
        options: NodeOptions,
        store: PoolStore,
        membership: Membership,
        supervisor: Supervisor,
        log: PoolLog,
    ) -> None:
        self.backend = backend
        self.pool = pool
        self.node_id = node_id
        self.options = options
        self.store = store
        self.membership = membership
        self.supervisor = supervisor
        self.log = log
        self.clock: Clock = backend.clock
        self.random: random.Random = backend.random
        self.protocol = JobProtocol(store, backend.clock, options.ack_grace_period / 2)
        self.calls = Calls()
        self.claims = asyncio.Semaphore(_CLAIMS_AT_ONCE)
        self.moves = asyncio.Semaphore(options.max_moves_in_flight)
        self.sweep_wanted = asyncio.Event()
        self.tickers: dict[Ticker, None] = {}

    @property
    def generation(self) -> int:
        return self.membership.pool.generation

    def wall(self) -> float:
        """For people only: never compared with another machine's."""
        return self.clock.wall()

    def new_id(self, prefix: str) -> str:
        return new_id(prefix, self.random)

    def sweep_soon(self) -> None:
        """A record was left without a doorbell: do not wait for the sweeper's period."""
        self.sweep_wanted.set()

    async def payload(self, job_id: str) -> bytes | None:
        entry = await self.store.map(self.store.payloads).get(job_id)
        return None if entry is None else entry.value

    async def disown(self, worker: str, key: str) -> None:
        """The worker's own index no longer names the key."""
        await self.store.map(self.store.owned(worker)).delete(key)

    async def forward(self, worker: str, bell: StopEvent | NotifyEvent) -> bool:
        """Pass an event on to the worker that it concerns now. False: nobody is there to take it."""
        if isinstance(bell, NotifyEvent):
            if bell.hops >= _MOST_HOPS:
                return False
            bell = msgspec.structs.replace(bell, hops=bell.hops + 1)
        append = Append(self.store.destination(worker), event(bell), optional=True)
        result = (await self.store.namespace.commit([append])).results[0]
        return isinstance(result, Appended) and result.id is not None

    async def answer_and_ack(self, reply: ReplyTo | None, verdict: Verdict, text: str, ack: Op) -> None:
        """The answer to a call, and the acknowledgement of the event that asked, in one round trip."""
        ops: list[Op] = [ack]
        if reply is not None:
            answer = event(Answer(reply.call, verdict, text))
            ops.insert(0, Append(self.store.node_inbox(reply.node), answer, optional=True))
        await self.store.namespace.commit(ops)


def new_id(prefix: str, rng: random.Random) -> str:
    """An id that is never used again: 80 random bits."""
    return f"{prefix}{rng.getrandbits(80):020x}"
