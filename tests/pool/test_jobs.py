"""The life of a job, in real time, on any backend: dispatch, start, notify, stop, retry."""

from __future__ import annotations

import asyncio
import threading

import pytest

import corepool
from corepool import Job

from .conftest import Pool, Recorder, eventually


async def test_a_job_runs_on_one_worker_until_it_is_stopped(pool: Pool) -> None:
    node = await pool.node(workers=2)
    await node.dispatch_job("k", b"payload")
    (owner,) = pool.owners("k")
    assert owner.running["k"].payload == b"payload"
    assert owner.running["k"].attempt == 1
    assert await node.job_keys() == ["k"]
    assert await node.job_payload("k") == b"payload"
    await node.stop_job("k")
    assert pool.owners("k") == []
    assert owner.stops == ["k"]
    assert await node.job_keys() == []
    assert await node.job_payload("k") is None


async def test_a_second_dispatch_of_a_live_key_is_refused(pool: Pool) -> None:
    node = await pool.node(workers=1)
    await node.dispatch_job("k")
    with pytest.raises(corepool.JobExistsError, match="'k'"):
        await node.dispatch_job("k")
    await node.stop_job("k")
    await node.dispatch_job("k")
    assert pool.running() == {"k": 1}


async def test_of_two_concurrent_dispatches_one_wins(pool: Pool) -> None:
    nodes = [await pool.node(workers=1) for _ in range(3)]
    results = await asyncio.gather(*(node.dispatch_job("k") for node in nodes * 3), return_exceptions=True)
    assert results.count(None) == 1
    assert sum(isinstance(result, corepool.JobExistsError) for result in results) == len(results) - 1
    assert pool.running() == {"k": 1}


async def test_dispatch_and_stop_from_a_client(pool: Pool) -> None:
    await pool.node(workers=1)
    client = await pool.node(client_only=True)
    await client.dispatch_job("k")
    assert pool.running() == {"k": 1}
    await client.notify_worker("k", b"hello")
    assert pool.handlers[0].notified == [("k", b"hello")]
    await client.stop_job("k")
    assert pool.running() == {}
    with pytest.raises(corepool.ClientOnlyError):
        await client.add_worker(Recorder())


async def test_stop_and_notify_without_a_job(pool: Pool) -> None:
    node = await pool.node(workers=1)
    with pytest.raises(corepool.JobNotFoundError, match="'k'"):
        await node.stop_job("k")
    with pytest.raises(corepool.JobNotFoundError, match="'k'"):
        await node.notify_worker("k")
    assert await node.explain("k") is None


async def test_tokens_of_a_key_grow(pool: Pool) -> None:
    node = await pool.node(workers=1)
    tokens = []
    for _ in range(3):
        await node.dispatch_job("k")
        tokens.append(pool.handlers[0].running["k"].fencing_token)
        await node.stop_job("k")
    assert tokens == sorted(set(tokens))
    assert [int(token) for token in tokens] == sorted({int(token) for token in tokens})


async def test_a_failing_start_reaches_the_dispatcher_and_leaves_nothing(pool: Pool) -> None:
    node = await pool.node(workers=1)

    async def fail(job: Job) -> None:
        raise ValueError("no such feed")

    pool.handlers[0].on_start = fail
    with pytest.raises(corepool.JobStartError, match="no such feed"):
        await node.dispatch_job("k")
    assert await node.job_keys() == []
    pool.handlers[0].on_start = None
    await node.dispatch_job("k")
    assert pool.handlers[0].stops == []


async def test_requeue_asks_for_another_try(pool: Pool) -> None:
    node = await pool.node(workers=1)
    attempts = []

    async def once_more(job: Job) -> None:
        attempts.append(job.attempt)
        if len(attempts) < 3:
            raise corepool.Requeue("not yet")

    pool.handlers[0].on_start = once_more
    await node.dispatch_job("k")
    assert attempts == [1, 2, 3]


async def test_requeue_without_end_fails_the_dispatch(pool: Pool) -> None:
    node = await pool.node(workers=1, max_start_attempts=3)

    async def never(job: Job) -> None:
        raise corepool.Requeue("never")

    pool.handlers[0].on_start = never
    with pytest.raises(corepool.JobStartError, match="never"):
        await node.dispatch_job("k")
    assert len(pool.handlers[0].starts) == 3
    assert await node.job_keys() == []


async def test_a_hanging_start_times_out_and_is_stopped(pool: Pool) -> None:
    node = await pool.node(workers=1)

    async def hang(job: Job) -> None:
        await asyncio.Event().wait()

    pool.handlers[0].on_start = hang
    with pytest.raises(corepool.JobGoneError, match="'k'"):
        await node.dispatch_job("k", timeout=0.3)
    assert pool.handlers[0].stops == ["k"]
    assert await node.job_keys() == []


async def test_without_a_worker_a_dispatch_times_out_and_never_runs(pool: Pool) -> None:
    node = await pool.node()
    with pytest.raises(corepool.DispatchTimeoutError, match="never started"):
        await node.dispatch_job("k", timeout=0.2)
    assert await node.job_keys() == []
    await pool.worker(node)
    await node.dispatch_job("other")
    assert pool.running() == {"other": 1}


async def test_jobs_wait_for_a_first_worker(pool: Pool) -> None:
    node = await pool.node()
    waiting = [asyncio.create_task(node.dispatch_job(f"k{n}")) for n in range(10)]
    async with asyncio.timeout(5):
        while len(await node.job_keys()) < 10:
            await asyncio.sleep(0.01)
    assert not any(task.done() for task in waiting)
    await pool.worker(node)
    await asyncio.gather(*waiting)
    assert len(pool.running()) == 10


async def test_a_full_queue_refuses(pool: Pool) -> None:
    node = await pool.node(max_queued_jobs=3)
    waiting = [asyncio.create_task(node.dispatch_job(f"k{n}")) for n in range(3)]
    async with asyncio.timeout(5):
        while len(await node.job_keys()) < 3:
            await asyncio.sleep(0.01)
    with pytest.raises(corepool.QueueFullError, match="max_queued_jobs"):
        await node.dispatch_job("one too many")
    assert "one too many" not in await node.job_keys()
    await pool.worker(node)
    await asyncio.gather(*waiting)


async def test_jobs_that_gave_up_waiting_leave_room_in_the_queue(pool: Pool) -> None:
    node = await pool.node(max_queued_jobs=2)
    for n in range(4):
        with pytest.raises(corepool.DispatchTimeoutError):
            await node.dispatch_job(f"k{n}", timeout=0.05)


async def test_stop_during_start_stops(pool: Pool) -> None:
    node = await pool.node(workers=1)
    begun = asyncio.Event()

    async def slow(job: Job) -> None:
        begun.set()
        await asyncio.Event().wait()

    pool.handlers[0].on_start = slow
    dispatch = asyncio.create_task(node.dispatch_job("k"))
    await begun.wait()
    await node.stop_job("k")
    with pytest.raises(corepool.JobGoneError):
        await dispatch
    assert pool.handlers[0].stops == ["k"]
    assert await node.job_keys() == []


async def test_two_stops_at_once_both_return(pool: Pool) -> None:
    nodes = [await pool.node(workers=1) for _ in range(2)]
    await nodes[0].dispatch_job("k")
    results = await asyncio.gather(*(node.stop_job("k") for node in nodes * 2), return_exceptions=True)
    assert all(result is None or isinstance(result, corepool.JobNotFoundError) for result in results)
    assert None in results
    assert pool.running() == {}


async def test_a_stop_that_raises_or_hangs_still_stops(pool: Pool) -> None:
    node = await pool.node(workers=1, worker_shutdown_ttl=0.3)
    handler = pool.handlers[0]

    async def fail(key: str) -> None:
        raise RuntimeError("cannot stop")

    handler.on_stop = fail
    await node.dispatch_job("k")
    await node.stop_job("k")
    assert await node.job_keys() == []

    async def hang(key: str) -> None:
        await asyncio.Event().wait()

    handler.running.clear()
    handler.on_stop = hang
    await node.dispatch_job("k")
    await node.stop_job("k")
    assert await node.job_keys() == []
    handler.on_stop = None


async def test_notifications_of_one_caller_arrive_in_order(pool: Pool) -> None:
    await pool.node(workers=2)
    client = await pool.node(client_only=True)
    await client.dispatch_job("k")
    for n in range(20):
        await client.notify_worker("k", b"%d" % n)
    (owner,) = pool.owners("k")
    assert [payload for _, payload in owner.notified] == [b"%d" % n for n in range(20)]


async def test_a_failing_notify_is_told(pool: Pool) -> None:
    node = await pool.node(workers=1)
    await node.dispatch_job("k")

    async def fail(key: str, payload: bytes) -> None:
        raise ValueError("bad news")

    pool.handlers[0].on_notify = fail
    with pytest.raises(corepool.JobNotifyError, match="bad news"):
        await node.notify_worker("k", b"x")
    assert pool.running() == {"k": 1}


async def test_a_handler_without_notify(pool: Pool) -> None:
    class Silent:
        async def start(self, job: Job) -> None: ...
        async def stop(self, key: str) -> None: ...

    node = await pool.node()
    await node.add_worker(Silent())
    await node.dispatch_job("k")
    with pytest.raises(corepool.JobNotifyError, match="no notify"):
        await node.notify_worker("k", b"x")


async def test_a_hanging_notify_does_not_hold_up_a_stop(pool: Pool) -> None:
    node = await pool.node(workers=1)
    await node.dispatch_job("k")
    begun = asyncio.Event()

    async def hang(key: str, payload: bytes) -> None:
        begun.set()
        await asyncio.Event().wait()

    pool.handlers[0].on_notify = hang
    notify = asyncio.create_task(node.notify_worker("k", b"x"))
    await begun.wait()
    await node.stop_job("k")
    with pytest.raises(corepool.JobNotFoundError):
        await notify
    assert pool.handlers[0].stops == ["k"]


async def test_plain_functions_run_in_a_thread(pool: Pool) -> None:
    threads: list[threading.Thread] = []

    class Plain:
        def start(self, job: Job) -> None:
            threads.append(threading.current_thread())

        def stop(self, key: str) -> None:
            threads.append(threading.current_thread())

        def notify(self, key: str, payload: bytes) -> None:
            threads.append(threading.current_thread())

    node = await pool.node()
    await node.add_worker(Plain())
    await node.dispatch_job("k")
    await node.notify_worker("k")
    await node.stop_job("k")
    assert len(threads) == 3
    assert threading.main_thread() not in threads


async def test_a_handler_that_calls_its_node_back(pool: Pool) -> None:
    node = await pool.node(workers=2)

    async def spawn_another(job: Job) -> None:
        if job.key == "first":
            await node.dispatch_job("second", b"from first")

    for handler in pool.handlers:
        handler.on_start = spawn_another
    await node.dispatch_job("first")
    assert pool.running() == {"first": 1, "second": 1}


async def test_a_handler_that_stops_its_own_job_in_start(pool: Pool) -> None:
    node = await pool.node(workers=1)

    async def suicide(job: Job) -> None:
        await node.stop_job(job.key)

    pool.handlers[0].on_start = suicide
    with pytest.raises(corepool.JobGoneError):
        await node.dispatch_job("k")
    assert pool.handlers[0].stops == ["k"]
    assert await node.job_keys() == []


async def test_explain_tells_owner_token_and_history(pool: Pool) -> None:
    node = await pool.node(workers=1)
    await node.dispatch_job("k")
    told = await node.explain("k")
    assert told is not None
    assert told.state is corepool.JobState.RUNNING
    assert told.owner == node.workers[0].id == told.belongs_to
    assert told.owner_node == node.id
    assert told.owner_state == "active"
    assert told.token == pool.handlers[0].running["k"].fencing_token
    assert [move.why for move in told.moves] == ["dispatched"]


async def test_cancelling_a_dispatch_takes_back_what_nobody_claimed(pool: Pool) -> None:
    node = await pool.node()
    dispatch = asyncio.create_task(node.dispatch_job("k"))
    async with asyncio.timeout(5):
        while await node.job_keys() != ["k"]:
            await asyncio.sleep(0.01)
    dispatch.cancel()
    await asyncio.wait([dispatch])
    assert dispatch.cancelled()
    async with asyncio.timeout(5):
        while await node.job_keys():
            await asyncio.sleep(0.01)


async def test_undecodable_events_are_set_aside(pool: Pool) -> None:
    node = await pool.node(workers=1)
    store = node._open().context.store
    inbox = store.stream(store.worker_inbox(node.workers[0].id))
    for name in ("start", "stop", "notify", "who knows"):
        await inbox.append(corepool.driver.NewEvent(name, b"\xff\x00 not msgpack"))
    await node.dispatch_job("k")
    assert pool.running() == {"k": 1}
    assert (await node.health()).undecodable == 3


async def test_an_undecodable_record_is_no_job_of_ours_but_stays(pool: Pool) -> None:
    node = await pool.node(workers=1)
    store = node._open().context.store
    await store.jobs_map.set("k", b"\xff\xff")
    with pytest.raises(corepool.JobExistsError):
        await node.dispatch_job("k")
    assert await node.explain("k") is None
    entry = await store.jobs_map.get("k")
    assert entry is not None
    assert entry.value == b"\xff\xff"


async def test_health_is_more_than_being_alive(pool: Pool) -> None:
    node = await pool.node(workers=1)
    health = await node.health()
    assert health.healthy
    assert health.round_trip is not None
    assert health.fenced == ()
    assert health.restarts == 0
    await node._open()._sink.aclose()  # type: ignore[union-attr]  events do not flow any more
    health = await node.health(timeout=0.2)
    assert not health.healthy
    assert health.round_trip is None


async def test_many_jobs_from_many_callers(pool: Pool) -> None:
    # A lease that outlasts the load: 300 calls at once may keep a keep-alive waiting for longer than a second's lease allows.
    nodes = [await pool.node(workers=2, worker_ttl=10.0) for _ in range(3)]
    keys = [f"k{n}" for n in range(300)]
    await asyncio.gather(*(nodes[n % 3].dispatch_job(key, key.encode()) for n, key in enumerate(keys)))
    assert pool.running() == dict.fromkeys(keys, 1)
    for handler in pool.handlers:
        assert all(job.payload == key.encode() for key, job in handler.running.items())
    await asyncio.gather(*(nodes[n % 3].stop_job(key) for n, key in enumerate(keys)))
    await eventually(lambda: pool.running() == {})
    assert await nodes[0].job_keys() == []
