"""A node's life: joining, its background loops, what happens when it is declared dead, leaving.

Purpose: DESIGN 4.5. Everything that runs in the background of a node is started and ended here.
Invariants: R11: the node's record is written first and removed last; keep-alives go on until the last job is handed over;
an id that was declared dead is never used again: node and workers come back under new ones, after their handlers stopped.
Neighbours: `Node` is the facade; the parts do the work.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from corepool.driver import Backend, Delivery, NewEvent, SinkStore, StreamConfig, StreamKind, check_name
from corepool.errors import BackendUnavailable, CorepoolError, NodeClosedError, PoolShutdownError
from corepool.pool.acks import LateAcks
from corepool.pool.cleanup import Cleanup
from corepool.pool.context import NodeContext, PoolLog, new_id
from corepool.pool.incarnation import clear_incarnation, current_incarnation
from corepool.pool.lease import Lease
from corepool.pool.liveness import Liveness
from corepool.pool.membership import Membership, open_pool_map
from corepool.pool.options import NodeOptions
from corepool.pool.protocol import JobProtocol
from corepool.pool.router import Router
from corepool.pool.store import INBOX, PoolStore
from corepool.pool.supervisor import TRANSIENT, Supervisor
from corepool.pool.sweeper import Sweeper
from corepool.pool.wire import ANSWER, PING, Answer, MemberState, NodeRecord
from corepool.pool.worker import Worker

__all__ = ["Session"]

NODE_SINK = "owner"
_BATCH = 256


class Session:
    """One node in one incarnation of a pool."""

    def __init__(self, context: NodeContext) -> None:
        self.context = context
        self.workers: dict[str, Worker] = {}
        self.ended: CorepoolError | None = None
        self.abandoned = False
        self.inbox_heard_at = context.clock.monotonic()
        self.pings: dict[bytes, asyncio.Future[None]] = {}
        self._sink: SinkStore | None = None
        self._acks: LateAcks | None = None
        self._loops: list[asyncio.Task[Any]] = []
        self._rebirth: asyncio.Task[None] | None = None
        self._identity = asyncio.Lock()
        self.router = Router(context)
        self.cleanup = Cleanup(context)
        self.sweeper = Sweeper(context, self.cleanup)
        self._generations = context.membership.generations
        self._pool_generation = context.generation
        self._be_born()

    def _be_born(self) -> None:
        context = self.context
        self.lease = Lease(
            context.store,
            context.store.node_keep_alive,
            context.node_id,
            context.clock,
            context.options.fence_after,
        )
        self.liveness = Liveness(
            context, self.lease, self.workers, self.cleanup.bury, self._declared_dead, self._rolled_back
        )

    # --- joining -----------------------------------------------------------------------------------------------------

    @classmethod
    async def open(cls, backend: Backend, pool: str, options: NodeOptions, log: PoolLog) -> Session:
        """Join the pool's current incarnation, or begin a new one."""
        check_name("a pool's name", pool, backend.capabilities)
        namespace = backend.namespace(pool)
        pool_map = await open_pool_map(namespace, backend)
        membership: Membership | None = None
        try:
            record, ended = await current_incarnation(pool_map)
            store = PoolStore(namespace, backend.capabilities, record.incarnation, log)
            membership = await Membership.join(store, options.placement, pool_map, backend)
            node_id = new_id("n", backend.random)
            supervisor = Supervisor(f"{pool}/{node_id}", backend.random, log)
            session = cls(
                NodeContext(backend, pool, node_id, options, store, membership, supervisor, log.at(node=node_id))
            )
            try:
                await session._join()
            except BaseException:
                await supervisor.close()  # whatever ended the join must not leave half of it behind
                raise
        except BaseException:
            await (pool_map.aclose() if membership is None else membership.close())  # as above
            raise
        if ended is not None:
            old = PoolStore(namespace, backend.capabilities, ended.incarnation, log)
            protocol = JobProtocol(old, backend.clock, options.ack_grace_period / 2)
            supervisor.spawn("clear the last incarnation", clear_incarnation(old, protocol))
        return session

    async def _join(self) -> None:
        await self._announce()
        spawn = self.context.supervisor.loop
        self._loops = [
            spawn("keep-alive", lambda: self.liveness.keep_alive()),
            spawn("leases", lambda: self.liveness.guard_leases()),
            spawn("sweeper", self.sweeper.turn),
            spawn("rebalance", self._rebalance),
            spawn("pool", self._follow_pool),
            spawn("inbox", self._take_answers),
        ]

    async def _announce(self) -> None:
        """R11: record first, then inbox and keep-alive, then ACTIVE."""
        context, store = self.context, self.context.store
        client_only = context.options.client_only
        await context.membership.put_node(context.node_id, NodeRecord(MemberState.JOINING, client_only, context.wall()))
        inbox = store.stream(store.node_inbox(context.node_id))
        await inbox.create(INBOX)
        await inbox.append(NewEvent("init", b""), only_if_exists=True)
        await store.stream(store.queue).create(StreamConfig(StreamKind.WORK, context.options.max_queued_jobs))
        renewal = self.lease.renewal()
        self.lease.begin(await store.map(store.node_keep_alive).set(context.node_id, renewal.value, renewal.when))
        grace = context.options.ack_grace_period
        self._sink = await inbox.sink(NODE_SINK, ack_wait=grace)
        self._acks = LateAcks(self._sink, context.supervisor, grace / 8)
        if not await context.membership.change_node(context.node_id, MemberState.ACTIVE):
            self.lease.dead = True
            await self._close_inbox()
            await inbox.destroy()
            await store.map(store.node_keep_alive).delete(context.node_id)
            raise BackendUnavailable(
                f"joining took longer than worker_ttl ({context.options.worker_ttl:g} s); try again"
            )

    # --- workers -----------------------------------------------------------------------------------------------------

    async def add_worker(self, handler: Any) -> Worker:
        """A new worker; runs as a task of the node's, so that a cancelled caller leaves nothing half made."""
        async with self._identity:  # a worker's record names its node, which must not change meanwhile
            return await self._add_worker(handler)

    async def _add_worker(self, handler: Any) -> Worker:
        worker = Worker(self.context, self.context.new_id("w"), handler)
        self.workers[worker.id] = worker
        try:
            await worker.join()
        except CorepoolError:
            # It may be active by now and hold jobs, if the answer to its last step was lost: it leaves like any other.
            worker.removed = True
            await self.remove_worker(worker, self.context.options.worker_shutdown_ttl)
            raise
        if self.context.membership.pool.shutdown:  # R6: look again after writing
            await self._discard(worker)
            raise self.ended or PoolShutdownError(f"the pool {self.context.pool!r} was shut down")
        if self.ended is not None:  # closed meanwhile: it may have jobs already, and leaves like any other
            worker.removed = True
            await self.remove_worker(worker, self.context.options.worker_shutdown_ttl)
            raise self.ended
        if len(self.workers) == 1:
            self._loops.append(self.context.supervisor.loop("router", self.router.turn))
        self.liveness.beat_soon()
        return worker

    async def remove_worker(self, worker: Worker, timeout: float) -> bool:
        """Hand its jobs over, then remove it. False: not all of it could be done in time; others will finish it."""
        context, store = self.context, self.context.store
        deadline = context.clock.monotonic() + timeout
        try:
            async with asyncio.timeout(timeout):
                await store.namespace.settle()  # nothing of the worker may be applied after it was removed
                await context.membership.change_worker(worker.id, MemberState.LEAVING)
                worker.accepting = (
                    False  # not before the ring here leads elsewhere, or its jobs would come back at once
                )
                handed_over = await worker.hand_all_over(max(0.01, deadline - context.clock.monotonic()))
                await worker.close_inbox()
                if handed_over:
                    await store.stream(store.worker_inbox(worker.id)).seal()  # nothing more comes in from here on
                    await self._release_leftovers(worker)
                    await self.cleanup.drain_inbox(store.worker_inbox(worker.id))
                    await store.map(store.owned(worker.id)).destroy()
                    self.workers.pop(worker.id, None)  # the last job is gone: the keep-alives may end
                    await store.map(store.worker_keep_alive).delete(worker.id)
                    await context.membership.remove_worker(worker.id)
        except (TimeoutError, *TRANSIENT) as error:
            context.log.warning("worker %s did not leave in order (%r); others will finish it", worker.id, error)
            handed_over = False
        worker.accepting = False
        if not handed_over:
            await worker.stop_all_handlers(max(0.01, deadline - context.clock.monotonic()))
            await worker.close_inbox()
        self.workers.pop(worker.id, None)
        return handed_over

    async def _release_leftovers(self, worker: Worker) -> None:
        """Starts that reached the inbox and were not taken: their records go on at once."""
        async for _, attention in self.context.store.attentions():
            if attention.worker == worker.id:
                stored = await self.context.store.job(attention.key)
                if stored is not None:
                    await self.cleanup.move_on(attention.key, stored, worker.id, "worker leaves")

    async def _discard(self, worker: Worker) -> None:
        """Stop and erase a worker without handing anything over."""
        worker.accepting = False
        await worker.stop_all_handlers(self.context.options.worker_shutdown_ttl)
        await worker.close_inbox()
        self.workers.pop(worker.id, None)
        await self._erase(worker)

    async def _erase(self, worker: Worker) -> None:
        store = self.context.store
        try:
            await worker.close_inbox()
            await store.namespace.settle()  # a claim that is on its way must not list its key after this
            await store.map(store.owned(worker.id)).destroy()
            await store.stream(store.worker_inbox(worker.id)).destroy()
            await store.map(store.worker_keep_alive).delete(worker.id)
            await self.context.membership.remove_worker(worker.id)
        except TRANSIENT as error:
            self.context.log.warning("worker %s could not be removed (%s); others will bury it", worker.id, error)

    # --- declared dead -----------------------------------------------------------------------------------------------

    def _declared_dead(self, lease: Lease) -> None:
        if self.ended is not None:
            return
        if lease is self.lease:
            if self._rebirth is None or self._rebirth.done():
                self._rebirth = self.context.supervisor.spawn("rebirth", self._reborn())
            return
        worker = self.workers.get(lease.holder)
        if worker is not None:
            self.context.supervisor.spawn(f"replace {worker.id}", self._replace(worker))

    async def _replace(self, worker: Worker) -> None:
        """R7: the worker comes back under a new id, once nothing of the old one runs here."""
        if self.workers.pop(worker.id, None) is None:
            return
        worker.accepting = False
        await worker.stop_all_handlers(self.context.options.worker_shutdown_ttl)
        await worker.close_inbox()
        await self.context.supervisor.persist(
            "clear", lambda: self._clear_after(worker.id), lambda: self.ended is not None
        )
        if worker.removed or self.ended is not None:
            return
        pause = self.context.options.poll_period
        while self.ended is None:
            try:
                worker.successor = await self.add_worker(worker.user_handler)
            except TRANSIENT as error:
                self.context.log.warning("worker %s cannot come back yet: %s", worker.id, error)
                await asyncio.sleep(pause)
            else:
                self.context.log.warning("worker %s came back as %s", worker.id, worker.successor.id)
                return

    async def _clear_after(self, worker: str) -> None:
        """What a claim of the old id may have written after its cleaner was through; before that it is the cleaner's."""
        context, store = self.context, self.context.store
        await store.namespace.settle()
        if await context.membership.is_gone(worker):
            await store.map(store.owned(worker)).destroy()

    async def _reborn(self) -> None:
        """The node was declared dead: its inbox is gone or going. It comes back under a new id, workers and all."""
        async with self._identity:
            await self._take_new_identity()

    async def _take_new_identity(self) -> None:
        context = self.context
        old = list(self.workers.values())
        for worker in old:
            worker.lease.dead = True
            worker.accepting = False
        await asyncio.gather(*(worker.stop_all_handlers(context.options.worker_shutdown_ttl) for worker in old))
        gone = context.node_id
        while self.ended is None:
            await self._close_inbox()  # the dead id's, or one of an attempt that failed: nothing rings there any more
            # A new id for each attempt: what an earlier one left half made is buried by others, under its own name.
            context.node_id = context.new_id("n")
            context.log = context.log.at(node=context.node_id)
            self._be_born()
            try:
                await self._announce()
                break
            except TRANSIENT as error:
                context.log.warning("node %s cannot come back yet: %s", gone, error)
                await asyncio.sleep(context.options.poll_period)
        context.log.warning("node %s came back as %s", gone, context.node_id)
        context.calls.look_again()  # answers went to the old inbox
        for worker in old:
            context.supervisor.spawn(f"replace {worker.id}", self._replace(worker))

    def _rolled_back(self) -> None:
        """R13: the store lost acknowledged writes."""
        self.context.supervisor.spawn("raise generation", self._raise_generation())

    async def _raise_generation(self) -> None:
        membership = self.context.membership
        seen = await membership.settled_pool()
        if seen is not None and not seen.shutdown and seen.generation == self._pool_generation:
            self.context.log.error("the store lost acknowledged writes; raising the pool's generation")
            changed = msgspec.structs.replace(seen, generation=seen.generation + 1)
            await membership.change_pool(seen, changed)

    # --- loops -------------------------------------------------------------------------------------------------------

    async def _take_answers(self) -> None:
        if self._sink is None or self._acks is None:
            await asyncio.sleep(self.context.options.poll_period / 10)  # being reborn
            return
        sink, acks = self._sink, self._acks
        try:
            deliveries = await sink.receive(_BATCH)
        except BackendUnavailable:
            if sink is self._sink:
                raise
            return
        self.inbox_heard_at = self.context.clock.monotonic()
        for delivery in deliveries:
            self._deliver(delivery)
            acks.add(delivery.receipt)

    def _deliver(self, delivery: Delivery) -> None:
        event = delivery.event
        if event.name == ANSWER:
            answer = self.context.store.decoded(event.payload, Answer, "the node's inbox")
            if answer is not None:
                self.context.calls.deliver(answer)
        elif event.name == PING:
            heard = self.pings.pop(event.payload, None)
            if heard is not None and not heard.done():
                heard.set_result(None)

    async def _rebalance(self) -> None:
        """Level-triggered: on every change of the ring, and on a timer."""
        subscription = self.context.membership.watch_workers()
        try:
            while True:
                for worker in list(self.workers.values()):
                    worker.rebalance()
                try:
                    async with asyncio.timeout(self.context.options.ack_grace_period):
                        await subscription.changed()
                except TimeoutError:
                    continue
        finally:
            subscription.close()

    async def _follow_pool(self) -> None:
        """Shutdown and generations, as the pool's own record tells them."""
        context = self.context
        subscription = context.membership.watch_pool()
        try:
            while True:
                pool = context.membership.pool
                if pool.shutdown or pool.incarnation != context.store.incarnation:
                    self.end(PoolShutdownError(f"the pool {context.pool!r} was shut down"))
                    return await asyncio.sleep(context.options.worker_ttl)
                if pool.generation != self._pool_generation:
                    self._pool_generation = pool.generation
                    context.supervisor.spawn("reassert", self._reassert())
                if context.membership.generations != self._generations:
                    self._generations = context.membership.generations
                    self._rolled_back()
                try:
                    async with asyncio.timeout(context.options.poll_period):
                        await subscription.changed()
                except TimeoutError:
                    continue
        finally:
            subscription.close()

    async def _reassert(self) -> None:
        """R13: the store went back. Say again that this node and its workers are active, and compare their jobs (R9)."""
        context, members = self.context, self.context.membership

        async def everything() -> None:
            await members.change_node(context.node_id, MemberState.ACTIVE)
            for worker in list(self.workers.values()):
                if worker.accepting:
                    await members.change_worker(worker.id, MemberState.ACTIVE)
                await worker.review()

        await context.supervisor.persist("reassert", everything, lambda: self.ended is not None)

    # --- leaving -----------------------------------------------------------------------------------------------------

    def end(self, error: CorepoolError) -> None:
        """Accept nothing more; whoever waits gets ``error``."""
        if self.ended is None:
            self.ended = error
            self.context.calls.close(error)
            for ticker in list(self.context.tickers):
                ticker.stop()
            if isinstance(error, PoolShutdownError):
                self.context.supervisor.spawn("shut down", self.shut_down_here())

    async def shut_down_here(self) -> None:
        """The pool ends: stop every job of this node and erase its workers. The records are the shutdown's to remove."""
        workers = list(self.workers.values())
        await asyncio.gather(*(self._discard(worker) for worker in workers))

    async def leave(self, timeout: float) -> None:
        """Hand everything over and go. Bounded; what is left is taken over by others."""
        if self.abandoned:
            return
        context, store = self.context, self.context.store
        deadline = context.clock.monotonic() + timeout
        self.end(NodeClosedError("the node is closed"))
        handed_over = await asyncio.gather(
            *(self.remove_worker(worker, timeout) for worker in list(self.workers.values()))
        )
        try:
            async with asyncio.timeout(max(1.0, deadline - context.clock.monotonic())):
                await self._stop_loops()
                if all(handed_over):
                    await self.cleanup.drain_inbox(store.node_inbox(context.node_id))
                    await store.map(store.node_keep_alive).delete(context.node_id)
                    await context.membership.remove_node(context.node_id)
        except (TimeoutError, *TRANSIENT) as error:
            context.log.warning("node %s did not leave in order (%r); others will bury it", context.node_id, error)
        await self.abandon()

    async def _stop_loops(self) -> None:
        await self.context.supervisor.cancel(*self._loops)
        self._loops.clear()
        await self.router.close()
        await self._close_inbox()

    async def _close_inbox(self) -> None:
        if self._acks is not None:
            self._acks.close()
            self._acks = None
        if self._sink is not None:
            await self._sink.aclose()
            self._sink = None

    async def abandon(self) -> None:
        """End every task and feed of this node at once, and write nothing. Idempotent."""
        self.abandoned = True
        self.end(NodeClosedError("the node is closed"))
        await self.context.supervisor.close()
        for worker in list(self.workers.values()):
            await worker.close_inbox()
        await self._stop_loops()
        await self.context.membership.close()
