"""Nodes and workers that join, leave, crash, hang and come back, in real time, on any backend."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

import corepool
from corepool import Job
from corepool.pool import Placer
from corepool.pool.commands import Fence, Review
from corepool.pool.incarnation import flag_shutdown
from corepool.pool.liveness import NODE, WORKER, Member, Suspect

from .conftest import QUICK, Pool, Recorder, eventually

TTL = QUICK["worker_ttl"]


async def settled(pool: Pool, keys: list[str], within: float = 15.0) -> None:
    """Every key runs exactly once, and where the ring says."""
    await eventually(lambda: pool.running() == dict.fromkeys(keys, 1), within)


async def dispatch_all(node: corepool.Node, count: int) -> list[str]:
    keys = [f"k{n}" for n in range(count)]
    await asyncio.gather(*(node.dispatch_job(key) for key in keys))
    return keys


async def test_a_joiner_gets_its_share(pool: Pool) -> None:
    first = await pool.node(workers=1)
    keys = await dispatch_all(first, 100)
    await pool.node(workers=1)
    await eventually(lambda: len(pool.handlers[1].running) > 30)
    await settled(pool, keys)
    moved = pool.handlers[1].starts
    assert len(moved) == len({job.key for job in moved}), "a job moved twice"
    assert sorted(pool.handlers[0].stops) == sorted(job.key for job in moved)
    for job in moved:
        told = await first.explain(job.key)
        assert told is not None
        assert [move.why for move in told.moves] == ["dispatched", "belongs elsewhere"]


async def test_tokens_grow_when_jobs_move(pool: Pool) -> None:
    first = await pool.node(workers=1)
    await dispatch_all(first, 20)
    before = {key: job.fencing_token for key, job in pool.handlers[0].running.items()}
    await pool.node(workers=1)
    await first.remove_worker(first.workers[0])
    await eventually(lambda: len(pool.handlers[1].running) == 20)
    assert all(job.fencing_token > before[key] for key, job in pool.handlers[1].running.items())


async def test_a_leaver_hands_everything_over_before_it_goes(pool: Pool) -> None:
    first = await pool.node(workers=1)
    second = await pool.node(workers=1)
    keys = await dispatch_all(first, 60)
    await second.close()
    assert pool.handlers[1].running == {}
    await settled(pool, keys)
    assert list(first.pool_workers()) == [first.workers[0].id]


async def test_closing_an_idle_node_takes_milliseconds(pool: Pool) -> None:
    await pool.node(workers=1)
    idle = await pool.node(workers=1)
    began = time.perf_counter()
    await idle.close()
    assert time.perf_counter() - began < 2.0, "not the 5 s of a blocked read, on a slow machine either"


async def test_the_last_worker_leaves_and_jobs_wait_for_the_next(pool: Pool) -> None:
    node = await pool.node(workers=1)
    keys = await dispatch_all(node, 20)
    await node.remove_worker(node.workers[0])
    assert pool.running() == {}
    assert sorted(await node.job_keys()) == sorted(keys)
    await pool.worker(node)
    await settled(pool, keys)


async def test_a_crashed_nodes_jobs_run_elsewhere(pool: Pool) -> None:
    nodes = [await pool.node(workers=1) for _ in range(3)]
    keys = await dispatch_all(nodes[0], 90)
    healthy = {key for handler in pool.handlers[:2] for key in handler.running}
    await nodes[2].abandon()
    crashed = pool.handlers.pop(2)
    assert crashed.running
    began = time.perf_counter()
    await settled(pool, keys)
    assert time.perf_counter() - began < 2 * TTL + 2
    assert not set(pool.handlers[0].stops + pool.handlers[1].stops), "a healthy worker's job was moved"
    assert all(len([j for j in h.starts if j.key in healthy]) == len(healthy & set(h.running)) for h in pool.handlers)
    await eventually(lambda: len(nodes[0].pool_workers()) == 2)
    store = nodes[0]._open().context.store
    async with asyncio.timeout(10):
        while len(nodes[0]._open().context.membership.nodes()) > 2:
            await asyncio.sleep(0.02)
        while [entry async for entry in store.map(store.worker_cleanup).scan()]:
            await asyncio.sleep(0.02)
    assert not [e async for e in store.map(store.node_keep_alive).scan() if e.key not in {n.id for n in nodes[:2]}]


async def test_a_stop_asked_for_while_the_owner_is_dead_is_carried_out(pool: Pool) -> None:
    alive = await pool.node(workers=1)
    doomed = await pool.node(workers=1)
    keys = await dispatch_all(alive, 20)
    victims = sorted(pool.handlers[1].running)
    await doomed.abandon()
    pool.handlers.pop(1)
    await asyncio.gather(*(alive.stop_job(key) for key in victims))
    await settled(pool, [key for key in keys if key not in victims])
    assert not {job.key for job in pool.handlers[0].starts} & set(victims)


async def test_a_notification_in_a_dead_owners_inbox_reaches_the_next(pool: Pool) -> None:
    alive = await pool.node(workers=1)
    doomed = await pool.node(workers=1)
    await dispatch_all(alive, 20)
    victims = sorted(pool.handlers[1].running)
    await doomed.abandon()
    await asyncio.gather(*(alive.notify_worker(key, b"are you there?") for key in victims))
    heard = [key for key, _ in pool.handlers[0].notified]
    assert set(heard) == set(victims)
    pool.handlers.pop(1)


async def test_jobs_of_a_worker_that_dies_with_the_whole_pool_wait_for_a_new_one(pool: Pool) -> None:
    only = await pool.node(workers=1)
    keys = await dispatch_all(only, 10)
    await only.abandon()
    pool.handlers.clear()
    await pool.node(workers=1)
    await settled(pool, keys)


async def test_a_worker_that_cannot_renew_fences_itself_and_comes_back(pool: Pool) -> None:
    node = await pool.node(workers=1)
    keys = await dispatch_all(node, 10)
    worker = node.workers[0]
    lease = worker.lease
    lease._confirmed_at = node._backend.clock.monotonic() - 10 * TTL  # as if no renewal had been confirmed for long
    node._open().liveness._lost.set()
    await eventually(lambda: sorted(pool.handlers[0].stops) == sorted(keys))
    await settled(pool, keys)
    assert node.workers == [worker]
    tokens = [job.fencing_token for job in pool.handlers[0].starts if job.key == keys[0]]
    assert tokens == sorted(set(tokens))


async def test_a_worker_that_was_declared_dead_comes_back_under_a_new_id(pool: Pool) -> None:
    node = await pool.node(workers=1)
    other = await pool.node(workers=1)
    keys = await dispatch_all(node, 30)
    worker = node.workers[0]
    session = other._open()
    context = session.context
    while True:  # the tombstone is a compare-and-set: a renewal in between makes it fail
        entry = await context.store.map(context.store.worker_keep_alive).get(worker.id)
        if entry is None:
            break
        session.cleanup.bury(Suspect(Member(WORKER, worker.id), entry.revision))
        await asyncio.sleep(0.05)
    await eventually(lambda: worker.current() is not worker)
    await settled(pool, keys)
    assert worker.id not in node.pool_workers()
    assert worker.current().id in node.pool_workers()
    await node.remove_worker(worker)
    assert node.workers == []
    await eventually(lambda: len(pool.handlers[1].running) == 30)


async def test_a_node_that_was_declared_dead_comes_back_under_a_new_id(pool: Pool) -> None:
    node = await pool.node(workers=1)
    other = await pool.node(workers=1)
    keys = await dispatch_all(node, 30)
    session = other._open()
    store = session.context.store
    old = node.id
    for kind, name, id_ in ((WORKER, store.worker_keep_alive, node.workers[0].id), (NODE, store.node_keep_alive, old)):
        while True:
            entry = await store.map(name).get(id_)
            if entry is None:
                break
            session.cleanup.bury(Suspect(Member(kind, id_), entry.revision))
            await asyncio.sleep(0.05)
    await eventually(lambda: node.id != old)
    await settled(pool, keys)
    assert (await node.health()).healthy
    await node.stop_job(keys[0])
    await node.dispatch_job(keys[0])
    await settled(pool, keys)


async def test_close_is_idempotent_concurrent_and_from_a_handler(pool: Pool) -> None:
    node = await pool.node(workers=1)
    other = await pool.node(workers=1)

    async def close_own_node(key: str, payload: bytes) -> None:
        await node.close()

    await dispatch_all(other, 20)
    pool.handlers[0].on_notify = close_own_node
    key = sorted(pool.handlers[0].running)[0]
    await other.notify_worker(key, b"close")
    await asyncio.gather(node.close(), node.close())
    await node.close()
    await eventually(lambda: len(pool.handlers[1].running) == 20)
    assert pool.handlers[0].running == {}
    with pytest.raises(corepool.NodeClosedError):
        await node.dispatch_job("k")


async def test_two_nodes_close_at_once(pool: Pool) -> None:
    nodes = [await pool.node(workers=1) for _ in range(3)]
    keys = await dispatch_all(nodes[0], 60)
    await asyncio.gather(nodes[1].close(), nodes[2].close())
    await settled(pool, keys)
    assert len(pool.handlers[0].running) == 60


async def test_closing_does_not_wait_for_a_hanging_start(pool: Pool) -> None:
    other = await pool.node()
    node = await pool.node(workers=1, worker_shutdown_ttl=1.0)

    async def hang(job: Job) -> None:
        await asyncio.Event().wait()

    pool.handlers[0].on_start = hang
    dispatch = asyncio.create_task(other.dispatch_job("k", timeout=20))
    await eventually(lambda: bool(pool.handlers[0].starts))
    began = time.perf_counter()
    await node.close()
    assert time.perf_counter() - began < 3.0
    await pool.worker(other)
    await dispatch
    assert pool.handlers[1].running.keys() == {"k"}


async def test_a_failed_job_waits_for_retry_or_stop(pool: Pool) -> None:
    first = await pool.node(workers=1, max_start_attempts=2)
    await first.dispatch_job("k")

    async def fail(job: Job) -> None:
        raise ValueError("not here")

    second = await pool.node(max_start_attempts=2)
    _, handler = await pool.worker(second, fail)
    await first.remove_worker(first.workers[0])
    async with asyncio.timeout(10):
        while (told := await second.explain("k")) is None or told.state is not corepool.JobState.FAILED:
            await asyncio.sleep(0.02)
    assert "not here" in told.reason
    handler.on_start = None
    await second.retry_job("k")
    await eventually(lambda: "k" in handler.running)
    await second.retry_job("k")  # runs: nothing to retry
    await second.stop_job("k")
    assert await second.job_keys() == []
    with pytest.raises(corepool.JobNotFoundError):
        await second.retry_job("k")


async def test_shutdown_ends_the_pool_everywhere_and_a_new_one_begins(pool: Pool) -> None:
    nodes = [await pool.node(workers=1) for _ in range(3)]
    await dispatch_all(nodes[0], 60)
    await asyncio.gather(nodes[1].shutdown(), nodes[1].shutdown())
    assert pool.running() == {}
    for node in nodes:
        with pytest.raises((corepool.PoolShutdownError, corepool.NodeClosedError)):
            await node.dispatch_job("k")
    fresh = await pool.node(workers=1)
    assert await fresh.job_keys() == []
    await fresh.dispatch_job("k1", b"again")
    assert pool.running() == {"k1": 1}
    assert list(fresh.pool_workers()) == [fresh.workers[0].id]


async def test_shutdown_of_a_pool_with_a_dead_node(pool: Pool) -> None:
    nodes = [await pool.node(workers=1, worker_shutdown_ttl=6.0) for _ in range(3)]
    await dispatch_all(nodes[0], 30)
    await nodes[2].abandon()
    pool.handlers.pop(2)
    await nodes[0].shutdown()
    assert pool.running() == {}
    fresh = await pool.node(workers=1)
    assert await fresh.job_keys() == []


async def test_what_a_crashed_shutdown_left_is_cleared_by_the_next_incarnation(pool: Pool) -> None:
    node = await pool.node(workers=1)
    await dispatch_all(node, 10)
    context = node._open().context
    await node.abandon()
    fresh_backend = await corepool.open_backend(pool.url)
    pool.backends.append(fresh_backend)
    old_jobs = fresh_backend.namespace(pool.name).map(context.store.jobs)
    watcher = await pool.node()
    await flag_shutdown(watcher._open().context.membership, context.store.incarnation)
    await watcher.abandon()
    fresh = await pool.node(workers=1)
    assert fresh._open().context.store.incarnation == context.store.incarnation + 1
    async with asyncio.timeout(10):
        while [entry async for entry in old_jobs.scan()]:
            await asyncio.sleep(0.02)
    await fresh.dispatch_job("k1")


async def test_cancelling_add_worker_kills_and_leaks_nothing(pool: Pool) -> None:
    node = await pool.node()
    handler = Recorder()
    pool.handlers.append(handler)
    adding = asyncio.create_task(node.add_worker(handler))
    await asyncio.sleep(0)
    adding.cancel()
    await asyncio.wait([adding])
    await eventually(lambda: len(node.workers) == 1 and bool(node._open().context.membership.ring))
    await node.dispatch_job("k")
    assert handler.running.keys() == {"k"}


async def test_jump_hash_and_a_placement_of_ones_own(pool: Pool) -> None:
    node = await pool.node(workers=3, placement="jump")
    keys = await dispatch_all(node, 60)
    await settled(pool, keys)
    assert all(handler.running for handler in pool.handlers)

    class First:
        def place(self, workers: Sequence[str]) -> Placer:
            return Only(workers[0])

    class Only:
        def __init__(self, worker: str) -> None:
            self.worker = worker

        def owner(self, key: str) -> str:
            return self.worker

    other = Pool(pool.url)
    node = await other.node(workers=3, placement=First())
    await dispatch_all(node, 20)
    assert sorted(len(handler.running) for handler in other.handlers) == [0, 0, 20]
    await other.close()


async def test_a_fence_that_meets_a_runner_before_its_first_step(pool: Pool) -> None:
    node = await pool.node(workers=1)
    await node.dispatch_job("k")
    (worker,) = node.workers
    job = worker._jobs["k"]
    await eventually(lambda: not job.busy)
    job.put(Review())
    job.put(Fence())
    await eventually(lambda: pool.handlers[0].stops == ["k"])
    await worker.review()
    await eventually(lambda: pool.running() == {"k": 1})
