"""Small scenarios of what whole pools under faults have taught, one by one (see ``small``; tests/chaos/regressions.txt)."""

from __future__ import annotations

import asyncio

from corepool.driver import ABSENT, GetKey
from corepool.errors import BackendUnavailable, OutcomeUnknown
from corepool.pool.wire import JobState, MemberState, WorkerRecord, decode
from corepool.testing import Cluster, NotInTime
from corepool.testing.atrest import AtRest
from corepool.testing.history import Tick, judge
from corepool.testing.rules import StoreRules
from tests.scenarios.looking import FOUND, POOL, QUICK, TTL, Keeper, Store, gathered, keys_of, nodes, ring
from tests.scenarios.wiretap import Request, Wiretap, both, cleanup_lock, from_, reads_job, writes_job

from .small import DIED_TOO, at_rest, pool_of
from .small_clauses import all_of_it_ended

__all__ = [
    "back_to_before_it_was_active",
    "claiming_when_erased",
    "joined_unknowingly",
    "seen_before_it_was_there",
    "stopped_in_doubt",
    "tick_in_doubt",
    "tombstone_of_a_joiner",
]


def _becomes_active(request: Request) -> bool:
    """A worker does."""
    return any(decode(op.value, WorkerRecord).state is MemberState.ACTIVE for op in request.sets("workers."))


async def joined_unknowingly(cluster: Cluster) -> None:
    """A worker has joined, and does not hear of it. Until it gives up it is given a job, and a notification for that."""
    tap = Wiretap(cluster)
    await pool_of(cluster, 1)
    client = await cluster.node(POOL, client_only=True, **QUICK)
    late = await cluster.node(POOL, **QUICK)
    sent = asyncio.Event()

    async def lose(_: Request) -> None:
        await sent.wait()
        raise OutcomeUnknown("the answer was lost")

    tap.after(both(from_(late.name), _becomes_active), lose)
    adding = asyncio.create_task(late.add_worker(Keeper()))
    await cluster.eventually(lambda: len(ring(client).workers) == 2, within=TTL)
    joiner = next(worker for worker, record in Store(cluster).workers().items() if record.node == late.node.id)
    key = next(key for key in (f"k{number}" for number in range(100)) if ring(client).owner(key) == joiner)
    dispatching = asyncio.create_task(client.dispatch_job(key, timeout=6 * TTL))
    await cluster.eventually(lambda: Store(cluster).job(key), within=TTL)
    notifying = asyncio.create_task(client.notify_worker(key, b"note"))
    await cluster.sleep(0.1 * TTL)
    sent.set()
    await gathered(adding)
    errors = await gathered(dispatching, notifying)
    assert errors == [None, None], f"what was in the inbox of one that had joined unknowingly is lost: {errors}"
    await Store(cluster).tidy()


async def tombstone_of_a_joiner(cluster: Cluster) -> None:
    """A joiner hangs before its first sign of life. It gives up just when one is about to declare it dead, who then dies."""
    tap = Wiretap(cluster)
    late, other = await pool_of(cluster, 2)
    going = asyncio.Event()

    async def give_up(_: Request) -> None:
        await going.wait()
        raise BackendUnavailable("not now")

    def begins_to_live(request: Request) -> bool:
        return any(op.when is ABSENT for op in request.sets("worker_keep_alive."))

    hanging = tap.before(both(from_(late.name), begins_to_live), give_up)
    adding = asyncio.create_task(late.add_worker(Keeper()))
    await cluster.eventually(lambda: hanging.hits, within=TTL)
    declares = both(from_(other.name), begins_to_live)  # to those of whom there was no sign at all
    declaring = tap.hold(declares)
    await asyncio.wait_for(declaring.reached(), FOUND)
    going.set()
    await gathered(adding)
    declared = tap.applied(declares, lambda request: cluster.hit_crash(request.machine))
    declaring.open()
    await cluster.eventually(lambda: declared.hits, within=TTL)
    await at_rest(cluster, 2 * DIED_TOO)


async def claiming_when_erased(cluster: Cluster) -> None:
    """A shutdown erases a worker while a claim is on its way. (Where a commit is atomic, the claim finds no record.)"""
    tap = Wiretap(cluster)
    one, other = await pool_of(cluster, 2)
    [key] = keys_of(other, 1)
    claim = tap.strand(both(from_(other.name), lambda request: any(request.sets("owned@"))), silent=True)
    call = asyncio.create_task(one.dispatch_job(key))
    await cluster.eventually(lambda: claim.request, within=TTL)
    await one.shutdown()
    claim.arrive()
    await gathered(call)
    await all_of_it_ended(cluster)


async def seen_before_it_was_there(cluster: Cluster) -> None:
    """One that wants a cleanup lock asks for it, and its question takes almost as long as a lock lasts. What it finds was taken
    just before the answer."""
    tap = Wiretap(cluster)
    dying, holder, asker = await pool_of(cluster, 3)
    [dead] = [worker.id for worker in dying.workers]

    def asks(request: Request) -> bool:
        looks = (op for op in request.ops if isinstance(op, GetKey))
        return any(op.map.startswith("worker_cleanup.") and op.key == dead for op in looks)

    asking = tap.hold(both(from_(asker.name), asks), times=1)
    taking = tap.hold(both(from_(holder.name), cleanup_lock(dead)), times=1)

    def buries(request: Request) -> bool:
        return any(op.key == dead for op in request.deletes("worker_keep_alive."))

    burying = tap.hold(both(from_(holder.name), buries))
    await cluster.crash(dying)
    await asyncio.wait_for(asking.reached(), DIED_TOO)
    await asyncio.wait_for(taking.reached(), DIED_TOO)
    await cluster.sleep(0.9 * TTL)
    taking.open()
    await asyncio.wait_for(burying.reached(), TTL)
    asking.open()
    await cluster.sleep(0.5 * TTL)
    burying.open()
    await Store(cluster).tidy()


async def stopped_in_doubt(cluster: Cluster) -> None:
    """A stop is recorded and carried out before its caller hears of either. What it then finds is nothing, and it cannot look
    again."""
    tap = Wiretap(cluster)
    pool = await pool_of(cluster, 2)
    client = await cluster.node(POOL, client_only=True, **QUICK)
    [key] = keys_of(pool[0], 1)
    await client.dispatch_job(key)

    async def lose(_: Request) -> None:
        await cluster.eventually(lambda: Store(cluster).job(key) is None, within=6 * TTL)
        tap.before(both(from_(client.name), reads_job(key)), skip)
        raise OutcomeUnknown("the answer was lost")

    def skip(_: Request) -> None:
        tap.before(both(from_(client.name), reads_job(key)), refuse)

    def refuse(_: Request) -> None:
        raise BackendUnavailable("not now")

    tap.after(both(from_(client.name), writes_job(JobState.STOPPING, key)), lose)
    [error] = await gathered(client.stop_job(key))
    assert not isinstance(error, BackendUnavailable), (
        f"9: the stop of {key} says that nothing was done, and it was: {error!r}"
    )
    await Store(cluster).tidy()


async def tick_in_doubt(cluster: Cluster) -> None:
    """A tick is lost on its way to the store, and its node does not know whether it is."""
    tap = Wiretap(cluster)
    [node] = await pool_of(cluster, 1)
    numbers: list[int] = []

    async def listen() -> None:
        async for number in node.ticker("tick", 0.2 * TTL):
            numbers.append(number)  # noqa: PERF401  each is counted as it comes

    def advances(request: Request) -> bool:
        return any(op.when is not ABSENT for op in request.sets("tickers."))

    def lose(_: Request) -> None:
        raise OutcomeUnknown("it was lost on its way")

    tap.before(advances, lose)
    listening = asyncio.create_task(listen())
    await cluster.eventually(lambda: len(numbers) > 2, within=2 * TTL)
    ticks = [Tick(name="tick", number=number, node=node.name, at=cluster.now) for number in numbers]
    judge([], [], [], settled_at=cluster.now, ticks=ticks)
    await node.close()
    await listening


async def back_to_before_it_was_active(cluster: Cluster) -> None:
    """R13. The store goes back to before a worker was ACTIVE."""
    tap = Wiretap(cluster)
    rules = StoreRules(cluster, POOL, ttl=TTL)
    await nodes(cluster, 1)
    late = await cluster.node(POOL, **QUICK)
    taken = []
    tap.before(both(from_(late.name), _becomes_active), lambda _: taken.append(cluster.checkpoint()))
    await late.add_worker(Keeper())
    await cluster.sleep(0.5)
    rules.goes_back()
    await cluster.rollback(taken[0])
    look = AtRest(cluster, POOL, went_back=True)
    try:
        await cluster.eventually(lambda: not look.problem(), within=4 * TTL)
    except NotInTime as error:
        raise AssertionError(look.problem()) from error
