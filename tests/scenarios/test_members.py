"""Named scenarios: joining and leaving."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from corepool import PoolShutdownError
from corepool.driver import GetKey
from corepool.pool.commands import Review
from corepool.pool.wire import MemberState, WorkerRecord, decode
from corepool.testing import Cluster

from .conftest import Simulated
from .looking import POOL, QUICK, TTL, Keeper, Store, gathered, keeper, keys_of, nodes, ring
from .wiretap import Request, Wiretap, both, from_

KEYS = [f"k{number}" for number in range(40)]


def test_a_joiner_gets_its_share_although_its_records_arrive_one_by_one(simulated: Simulated) -> None:
    """Every node hears of every change of the ring at a time of its own, and so does the joiner itself. Nothing but the
    joiner's share moves, and that once."""

    async def scenario(cluster: Cluster) -> None:
        tap = Wiretap(cluster)
        pool = await nodes(cluster, 3)
        for key in KEYS:
            await pool[0].dispatch_job(key)
        before = {key: cluster.running(key) for key in KEYS}
        feeds = [tap.hold_feed(node.name, "watch workers.") for node in pool] + [tap.hold_feed("late", "watch ")]

        async def trickle() -> None:
            while True:
                feeds[cluster.choose(len(feeds), "whose feed")].release(1)
                cluster.sometimes("the nodes disagreed about the ring", len({ring(node).workers for node in pool}) > 1)
                await cluster.sleep(0.05)

        trickling = asyncio.create_task(trickle())
        late = await cluster.node(POOL, worker=Keeper(), name="late", **QUICK)
        await cluster.sleep(TTL)
        trickling.cancel()
        await gathered(trickling)
        for feed in feeds:
            feed.release()
        share = {key for key in KEYS if ring(pool[0]).owner(key) == late.workers[0].id}
        assert share
        await cluster.eventually(lambda: all(cluster.running(key) == [late] for key in share), within=2 * TTL)
        await Store(cluster).tidy()
        for key in KEYS:
            assert cluster.running(key) == ([late] if key in share else before[key])
            assert len(cluster.history(key)) == (2 if key in share else 1)

    simulated(scenario, reaches=["the nodes disagreed about the ring"])


def test_one_who_is_still_joining_is_given_nothing(simulated: Simulated) -> None:
    """R11: its record says JOINING until its inbox is there. Dispatches meanwhile go to the others."""

    async def scenario(cluster: Cluster) -> None:
        tap = Wiretap(cluster)
        pool = await nodes(cluster, 2)
        gate = tap.hold(lambda request: request.machine == "late" and _worker_state(request) is MemberState.ACTIVE)
        joining = asyncio.create_task(cluster.node(POOL, worker=Keeper(), name="late", **QUICK))
        await gate.reached()
        for key in KEYS:
            await pool[0].dispatch_job(key)
        states = [record.state for record in Store(cluster).workers().values()]
        cluster.sometimes("jobs were dispatched while one was joining", MemberState.JOINING in states)
        assert {machine.name for key in KEYS for machine in cluster.running(key)} == {node.name for node in pool}
        gate.open()
        late = await joining
        await cluster.eventually(lambda: any(cluster.running(key) == [late] for key in KEYS), within=2 * TTL)
        await Store(cluster).tidy()
        assert all(len(cluster.running(key)) == 1 for key in KEYS)

    simulated(scenario, reaches=["jobs were dispatched while one was joining"])


def _worker_state(request: Request) -> MemberState | None:
    for op in request.sets("workers."):
        return decode(op.value, WorkerRecord).state
    return None


def test_the_caller_of_add_worker_is_cancelled(simulated: Simulated) -> None:
    """At each request of the way in turn. The worker belongs to the node, so it joins all the same, and leaves with it."""

    async def scenario(cluster: Cluster) -> None:
        tap = Wiretap(cluster)
        node = await cluster.node(POOL, **QUICK)
        store = Store(cluster)
        cuts = 0
        for cut in range(12):
            sent = 0
            call: asyncio.Task[Any]

            def count(_: Request, cut: int = cut) -> None:
                nonlocal sent
                sent += 1
                if sent == cut + 1:
                    call.cancel()  # noqa: B023  the hook of this turn, and of no other

            hook = tap.before(lambda request: request.task.endswith("/add worker"), count, times=100)
            call = asyncio.create_task(node.add_worker(Keeper()))
            [result] = await gathered(call)
            cuts += isinstance(result, asyncio.CancelledError)
            hook.times = 0
            await cluster.eventually(partial(_are_active, store, cut + 1), within=1.0)
            assert len(node.workers) == cut + 1
        cluster.sometimes("it was cancelled at every request of the way", cuts >= 6)
        for key in KEYS:
            await node.dispatch_job(key)
        assert all(len(cluster.running(key)) == 1 for key in KEYS)
        await node.close()
        assert _active(store) == 0
        left = [text for text in store.untidy() if not text.startswith("attention")]
        assert sorted(left) == sorted(f"{key} is pending" for key in KEYS), (
            "nobody is there to take them: nothing else is left"
        )

    simulated(scenario, seeds=2, reaches=["it was cancelled at every request of the way"])


def _are_active(store: Store, count: int) -> bool:
    return _active(store) == count


def _active(store: Store) -> int:
    return sum(record.state is MemberState.ACTIVE for record in store.workers().values())


@pytest.mark.parametrize("inside", ["start", "stop", "notify"])
@pytest.mark.parametrize("call", ["close", "shutdown"])
def test_the_end_is_asked_for_twice_and_from_inside_a_handler(simulated: Simulated, call: str, inside: str) -> None:
    """The handler's call returns at once (it cannot wait for its own end); the others wait for the one closing there is."""

    async def scenario(cluster: Cluster) -> None:
        client = await cluster.node(POOL, client_only=True, **QUICK)
        owner, other = await nodes(cluster, 2)
        [key] = keys_of(owner, 1)
        handler, node = keeper(owner), owner.node
        asked: list[float] = []

        async def end(*_: object) -> None:
            began = cluster.now
            await getattr(node, call)()
            asked.append(cluster.now - began)
            await asyncio.sleep(0.1)

        if inside != "start":
            await client.dispatch_job(key)
        handler.on_start = end if inside == "start" else None
        handler.on_stop = end
        handler.on_notify = end if inside == "notify" else None
        work = {"start": client.dispatch_job, "stop": client.stop_job, "notify": client.notify_worker}[inside]
        began = cluster.now
        working = asyncio.create_task(work(key))
        await cluster.eventually(lambda: asked, within=5.0)
        cluster.sometimes("the end began inside a handler", bool(asked))
        ends = [owner.run(getattr(node, call)) for _ in range(2)] + [owner.run(node.close)]
        results = await gathered(*ends)
        assert results == [None, None, None]
        assert set(asked) == {0.0}, "a handler waited for its own end"
        assert cluster.now - began < QUICK["worker_shutdown_ttl"] / 2
        assert owner.tasks() == []
        [result] = await gathered(working)
        if call == "close":
            assert result is None
            await Store(cluster).tidy()
            assert cluster.running(key) == ([] if inside == "stop" else [other])
        else:
            await cluster.eventually(lambda: not cluster.owners(key), within=TTL)
            with pytest.raises(PoolShutdownError):
                await client.dispatch_job("another")
            assert Store(cluster).jobs() == {}

    simulated(scenario, seeds=3, reaches=["the end began inside a handler"])


def test_closing_while_the_backend_is_away(simulated: Simulated) -> None:
    """Close is bounded whatever happens; what it could not hand over is taken over."""

    async def scenario(cluster: Cluster) -> None:
        pool = await nodes(cluster, 3, worker_shutdown_ttl=4.0)
        keys = keys_of(pool[0], 4)
        for key in keys:
            await pool[1].dispatch_job(key)
        await cluster.partition(pool[0])
        cut_off = cluster.world.network.link(pool[0].name).blocked
        began = cluster.now
        await pool[0].close()
        assert cluster.now - began <= 3 * 4.0
        cluster.sometimes("a node closed that was cut off", cut_off)
        await cluster.heal()
        await cluster.eventually(lambda: all(len(cluster.running(key)) == 1 for key in keys), within=4 * TTL)
        await Store(cluster).tidy()
        assert pool[0].tasks() == []

    simulated(scenario, reaches=["a node closed that was cut off"])


def test_a_worker_leaves_when_nothing_is_under_way_on_it(simulated: Simulated) -> None:
    """While a leaving worker looks for the last time whether anything is left, one of its jobs is looked at again."""

    async def scenario(cluster: Cluster) -> None:
        tap = Wiretap(cluster)
        leaving, _ = await nodes(cluster, 2)
        [worker], [key] = leaving.workers, keys_of(leaving, 1)
        looks = both(from_(leaving.name), lambda request: request.calls("entries", "owned@"))
        looked = tap.hold_answer(looks)
        removing = asyncio.create_task(leaving.remove_worker(worker))
        await looked.reached()
        reads = both(from_(leaving.name), lambda request: any(isinstance(op, GetKey) for op in request.ops))
        read = tap.hold(reads, times=1)
        worker.put(key, Review())
        await read.reached()
        looked.open()
        await cluster.sleep(1.0)
        assert not removing.done()
        read.open()
        await removing
        await Store(cluster).tidy()

    simulated(scenario)
