"""Named scenarios: clocks that lie, backends that go away or go back, and owners that sleep."""

from __future__ import annotations

import asyncio

import pytest

from corepool.pool.wire import JobState
from corepool.testing import Cluster
from corepool_memory.server import Checkpoint

from .conftest import Simulated
from .looking import FOUND, FOUND_ONE, POLL, POOL, QUICK, TTL, Store, keys_of, nodes
from .wiretap import Wiretap, both, from_, writes_job

HOUR = 3600.0


def test_a_keep_alive_from_the_future_kills_nobody(simulated: Simulated) -> None:
    """Wall clocks are hours apart and jump. No decision compares a timestamp with another machine's clock."""

    async def scenario(cluster: Cluster) -> None:
        pool = await nodes(cluster, 3)
        keys = keys_of(pool[0], 2) + keys_of(pool[1], 2)
        for key in keys:
            await pool[2].dispatch_job(key)
        before = Store(cluster).workers()
        for jump in (10 * HOUR, -10 * HOUR, 0.0, 1000 * HOUR):
            await cluster.skew(pool[cluster.choose(3, "which")], jump)
            await cluster.skew(pool[0], -jump)
            await cluster.sleep(4 * TTL)
        walls = [keep_alive.wall for keep_alive in Store(cluster).keep_alives().values()]
        cluster.sometimes("keep-alives were hours apart", max(walls) - min(walls) > HOUR)
        assert Store(cluster).workers() == before
        assert all(len(cluster.history(key)) == 1 for key in keys)
        assert not any(keep_alive.dead for keep_alive in Store(cluster).keep_alives().values())

    simulated(scenario, reaches=["keep-alives were hours apart"])


def test_a_keep_alive_from_the_future_hides_no_dead_worker(simulated: Simulated) -> None:
    """The last sign of life of the dead lies hours ahead. It is found in the usual time."""

    async def scenario(cluster: Cluster) -> None:
        pool = await nodes(cluster, 3)
        keys = keys_of(pool[0], 4)
        for key in keys:
            await pool[2].dispatch_job(key)
        await cluster.skew(pool[0], 10 * HOUR)
        await cluster.skew(pool[1], -5 * HOUR)
        await cluster.sleep(2 * TTL)
        [worker] = pool[0].workers
        await cluster.crash(pool[0])
        ahead = Store(cluster).keep_alives()[worker.id].wall - max(
            Store(cluster).keep_alives()[other.id].wall for node in pool[1:] for other in node.workers
        )
        cluster.sometimes("the dead one's last keep-alive was from the future", ahead > HOUR)
        await cluster.eventually(lambda: all(len(cluster.running(key)) == 1 for key in keys), within=FOUND)
        await Store(cluster).tidy()

    simulated(scenario, reaches=["the dead one's last keep-alive was from the future"])


def test_a_dead_worker_is_found_in_time(simulated: Simulated) -> None:
    """The bound for one death, at any moment of everybody's periods."""

    async def scenario(cluster: Cluster) -> None:
        pool = await nodes(cluster, 3)
        keys = keys_of(pool[0], 4)
        for key in keys:
            await pool[2].dispatch_job(key)
        await cluster.sleep(2 * TTL + POLL * cluster.choose(10, "when") / 10)
        await cluster.crash(pool[0])
        await cluster.eventually(lambda: all(len(cluster.running(key)) == 1 for key in keys), within=FOUND_ONE)
        await Store(cluster).tidy()

    simulated(scenario, seeds=10)


@pytest.mark.parametrize("outage", [0.4 * TTL, 0.9 * TTL, 1.5 * TTL, 4 * TTL])
def test_an_outage_of_the_whole_backend_kills_nobody(simulated: Simulated, outage: float) -> None:
    """Nobody can renew for longer than worker_ttl, and so nobody could be seen to. Everybody goes on under the old id
    (R10), also in the eyes of the first to come back; whoever had to fence itself takes its jobs up again under a larger
    token."""

    async def scenario(cluster: Cluster) -> None:
        pool = await nodes(cluster, 5)
        keys = [key for node in pool for key in keys_of(node, 2)]
        for key in keys:
            await pool[0].dispatch_job(key)
        await cluster.sleep(TTL)
        before = {worker.id for node in pool for worker in node.workers}
        where = {key: cluster.running(key) for key in keys}
        await cluster.partition()
        await cluster.sleep(outage)
        fenced = all(cluster.running(key) == [] for key in keys)
        cluster.sometimes("everybody fenced itself", fenced)
        cluster.sometimes("nobody noticed", not fenced)
        assert fenced == (outage > 0.75 * TTL)
        for node in pool:  # one after the other: the first to come back sees nobody else renew
            await cluster.heal(node)
            await cluster.sleep(0.3)
        await cluster.eventually(lambda: {key: cluster.running(key) for key in keys} == where, within=2 * TTL)
        await cluster.sleep(4 * TTL)
        assert {worker.id for node in pool for worker in node.workers} == before == set(Store(cluster).workers())
        assert {key: cluster.running(key) for key in keys} == where
        for key in keys:
            tokens = [tenure.token for tenure in cluster.history(key)]
            assert tokens == sorted(set(tokens))
            assert all(tenure.machine == where[key][0].name for tenure in cluster.history(key))
        await Store(cluster).tidy()

    simulated(scenario, reaches=["everybody fenced itself" if outage > 0.75 * TTL else "nobody noticed"])


def test_a_dead_worker_is_found_after_an_outage(simulated: Simulated) -> None:
    """It died while nobody could look. The outage is forgiven to those who come back, not to those who do not."""

    async def scenario(cluster: Cluster) -> None:
        pool = await nodes(cluster, 4)
        keys = keys_of(pool[0], 4)
        for key in keys:
            await pool[1].dispatch_job(key)
        await cluster.partition()
        await cluster.sleep(2 * TTL)
        await cluster.crash(pool[0])
        cluster.sometimes("one died during the outage", not pool[0].alive)
        await cluster.heal()
        await cluster.eventually(lambda: all(len(cluster.running(key)) == 1 for key in keys), within=FOUND)
        await Store(cluster).tidy()
        assert len(Store(cluster).workers()) == 3

    simulated(scenario, reaches=["one died during the outage"])


@pytest.mark.parametrize("lost", ["the record", "the record before its owner knows", "the confirmation", "a renewal"])
def test_the_store_goes_back(simulated: Simulated, lost: str) -> None:
    """R13: it lost acknowledged writes. The generation grows, tokens go on growing though revisions are given again, and a
    running job that the store forgot is written again."""

    async def scenario(cluster: Cluster) -> None:
        tap = Wiretap(cluster)
        pool = await nodes(cluster, 3)
        early, late = keys_of(pool[0], 2)
        await pool[1].dispatch_job(early, b"early")
        await cluster.sleep(2 * TTL)
        store = Store(cluster)
        taken: list[Checkpoint] = []
        if lost == "the confirmation":
            tap.before(writes_job(JobState.RUNNING, late), lambda _: taken.append(cluster.checkpoint()))
        else:
            taken.append(cluster.checkpoint())
        if lost == "a renewal":
            await cluster.sleep(TTL)
        else:
            await pool[1].dispatch_job(late, b"late")
            if lost != "the record before its owner knows":
                await cluster.sleep(0.5)  # all answers have arrived
        generation = store.pool().generation
        await cluster.rollback(taken[0])
        cluster.sometimes("the store forgot a job that runs", late not in store.jobs() and bool(cluster.running(late)))
        await cluster.eventually(lambda: store.pool().generation > generation, within=2 * TTL)
        keys = (early,) if lost == "a renewal" else (early, late)
        await cluster.eventually(lambda: set(store.jobs()) == set(keys), within=2 * TTL)
        await store.tidy()
        for key in keys:
            assert len(cluster.running(key)) == 1, key
            assert await pool[2].job_payload(key) == (b"early" if key == early else b"late")
        last = cluster.history(early)[-1].token
        await pool[1].stop_job(early)
        await pool[1].dispatch_job(early, b"again")
        assert cluster.history(early)[-1].token > last
        await store.tidy()

    simulated(scenario, reaches=["the store forgot a job that runs"] if lost.startswith("the record") else [])


def test_an_owner_sleeps_beyond_its_lease(simulated: Simulated) -> None:
    """Then only the token protects: the later owner's is larger, and the sleeper stops as soon as it wakes up."""

    async def scenario(cluster: Cluster) -> None:
        pool = await nodes(cluster, 3)
        [key] = keys_of(pool[0], 1)
        await pool[1].dispatch_job(key)
        await cluster.pause(pool[0])
        await cluster.eventually(lambda: len(cluster.running(key)) == 2, within=FOUND)
        first, second = cluster.history(key)
        cluster.sometimes("two held one job, one of them asleep", first.ended is None and second.running is not None)
        assert second.token > first.token
        await cluster.sleep(float(cluster.choose(4, "longer")) * TTL)
        await cluster.resume(pool[0])
        await cluster.eventually(lambda: first.ended is not None, within=1.0)
        await Store(cluster).tidy()
        assert len(cluster.running(key)) == 1
        assert len(Store(cluster).workers()) == 3, "the sleeper came back under a new id"

    simulated(scenario, reaches=["two held one job, one of them asleep"])


def test_a_sleeper_confirms_a_job_that_was_taken_from_it(simulated: Simulated) -> None:
    """It falls asleep inside handler.start and wakes up as somebody else's job: its confirmation is refused, and it stops."""

    async def scenario(cluster: Cluster) -> None:
        tap = Wiretap(cluster)
        client = await cluster.node(POOL, client_only=True, **QUICK)
        pool = await nodes(cluster, 3)
        [key] = keys_of(pool[0], 1)
        confirming = tap.hold(both(from_(pool[0].name), writes_job(JobState.RUNNING, key)), times=1)
        call = asyncio.create_task(client.dispatch_job(key))
        await confirming.reached()
        await cluster.pause(pool[0])
        confirming.open()
        await call
        [owner] = [node for node in cluster.running(key) if node is not pool[0]]
        cluster.sometimes("another started what one was starting", len(cluster.history(key)) == 2)
        await cluster.resume(pool[0])
        await Store(cluster).tidy()
        assert cluster.running(key) in ([owner], [pool[0]])
        first, *_, last = cluster.history(key)
        assert first.ended is not None
        assert last.token > first.token

    simulated(scenario, reaches=["another started what one was starting"])
