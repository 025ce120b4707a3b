"""The pool's queue: what waits while there is no worker.

Purpose: starts (and notifications) without a target are kept in the pool's own stream, which all nodes that have workers
share as one sink; whoever takes one routes it to the worker that the ring names.
Invariants: the record decides: an event whose record moved on is acknowledged and dropped; an event is acknowledged only
after the record was routed; while there is no worker it goes back.
Neighbours: runs on every node that has workers; the sweeper does the same for records whose event was lost.
"""

from __future__ import annotations

from corepool.driver import Delivery, SinkStore
from corepool.pool import transitions
from corepool.pool.context import NodeContext
from corepool.pool.wire import NOTIFY, START, JobState, NotifyEvent, StartEvent, Verdict

__all__ = ["Router"]

ROUTER_SINK = "router"
_BATCH = 32


class Router:
    """Routes what waits in the queue, on a node that has workers."""

    def __init__(self, context: NodeContext) -> None:
        self._context = context
        self._sink: SinkStore | None = None
        self.routed = 0

    async def turn(self) -> None:
        """Take some waiting events and route each."""
        context = self._context
        if self._sink is None:
            queue = context.store.stream(context.store.queue)
            self._sink = await queue.sink(ROUTER_SINK, ack_wait=context.options.ack_grace_period)
        for delivery in await self._sink.receive(_BATCH):
            if await self._route(delivery):
                await self._sink.ack([delivery.receipt])
            else:
                await self._sink.nack(delivery.receipt, context.options.poll_period / 4)

    async def _route(self, delivery: Delivery) -> bool:
        """Whether the event is done with."""
        match delivery.event.name:
            case name if name == START:
                return await self._route_start(delivery)
            case name if name == NOTIFY:
                return await self._route_notification(delivery)
            case _:
                return True

    async def _route_start(self, delivery: Delivery) -> bool:
        context = self._context
        event = context.store.decoded(delivery.event.payload, StartEvent, "the queue")
        if event is None:
            return True
        stored = await context.store.job(event.key)
        while stored is not None and stored.record.job_id == event.record.job_id:
            record = stored.record
            if record.state is not JobState.PENDING or record.worker:
                return True
            ring = context.membership.ring
            target = ring.owner(event.key)
            if not target:
                return False
            released = transitions.release(record, target, ring.revision, "a worker appeared", context.wall())
            outcome = await context.protocol.release(event.key, stored, released)
            if outcome.applied:
                self.routed += 1
                if outcome.event_id is None:
                    context.sweep_soon()
                return True
            stored = outcome.current
        return True

    async def _route_notification(self, delivery: Delivery) -> bool:
        context = self._context
        event = context.store.decoded(delivery.event.payload, NotifyEvent, "the queue")
        if event is None:
            return True
        stored = await context.store.job(event.key)
        if stored is None or stored.record.job_id != event.job_id or stored.record.state is JobState.FAILED:
            await context.protocol.answer(event.reply, Verdict.GONE)
            return True
        return bool(stored.record.worker) and await context.forward(stored.record.worker, event)

    async def close(self) -> None:
        """Leave the sink; what is unacknowledged goes to the others."""
        if self._sink is not None:
            await self._sink.aclose()
            self._sink = None
