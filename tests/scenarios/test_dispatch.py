"""Named scenarios: dispatching."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from corepool import JobExistsError, NodeClosedError
from corepool.pool.wire import Attention, JobState, encode
from corepool.testing import Cluster
from corepool_memory.sim.errors import NodeCrashed

from .conftest import Simulated
from .looking import FOUND, POOL, QUICK, TTL, Store, gathered, keeper, keys_of, nodes
from .wiretap import Wiretap, both, from_, removes_job, writes_job, writes_payload


def test_one_key_dispatched_by_several_nodes_at_once(simulated: Simulated) -> None:
    """All dispatchers have read that the key is free and sent their records before any of them is written."""

    async def scenario(cluster: Cluster) -> None:
        tap = Wiretap(cluster)
        pool = await nodes(cluster, 4)
        gate = tap.hold(writes_job(JobState.PENDING, "k"))
        calls = asyncio.create_task(gathered(*(node.dispatch_job("k", node.name.encode()) for node in pool)))
        await gate.reached(4)
        cluster.sometimes("four records of one key were on their way at once", len(gate.waiting) == 4)
        gate.open()
        results = await calls
        [winner] = [node for node, result in zip(pool, results, strict=True) if result is None]
        assert sum(isinstance(result, JobExistsError) for result in results) == 3, results
        [tenure] = cluster.history("k")
        assert tenure.payload == winner.name.encode()
        cluster.sometimes("another than the first won", winner.name != gate.seen[0].machine)
        await Store(cluster).tidy()
        await pool[0].stop_job("k")
        await Store(cluster).tidy()
        assert len(cluster.history("k")) == 1

    simulated(
        scenario, seeds=8, reaches=["four records of one key were on their way at once", "another than the first won"]
    )


def test_a_payload_left_behind_refuses_no_later_dispatch(simulated: Simulated) -> None:
    """The owner dies when the record of its job is gone and the payload is not. The key must be free, and the payload must
    go."""

    async def scenario(cluster: Cluster) -> None:
        tap = Wiretap(cluster)
        client = await cluster.node(POOL, client_only=True, **QUICK)
        pool = await nodes(cluster, 3)
        store = Store(cluster)
        [key] = keys_of(pool[0], 1)
        await client.dispatch_job(key, b"old")
        tap.applied(both(from_(pool[0].name), removes_job(key)), lambda _: cluster.hit_crash(pool[0].name))
        await client.stop_job(key)
        if simulated.atomic:  # such a commit leaves nothing: put there what another way of dying would have left
            rest = {"job_payloads": ("jold", b"old"), "attention": ("jold/0", encode(Attention(key, "jold", "wold")))}
            for name, (entry, value) in rest.items():
                await client.run(partial(client.backend.namespace(POOL).map(f"{name}.1").set, entry, value))
        cluster.sometimes("a payload outlived its record", not store.jobs() and len(store.map("job_payloads")) == 1)
        await client.dispatch_job(key, b"new")
        assert await client.job_payload(key) == b"new"
        assert cluster.history(key)[-1].payload == b"new"
        await store.tidy()
        assert await client.job_payload(key) == b"new"

    simulated(scenario, reaches=["a payload outlived its record"])


CUTS = {
    "before the record is sent": ("before", writes_job(JobState.PENDING, "k")),
    "when the record is written": ("applied", writes_job(JobState.PENDING, "k")),
    "before the claim is sent": ("before", writes_job(JobState.STARTING, "k")),
    "when the claim is written": ("applied", writes_job(JobState.STARTING, "k")),
    "in handler.start": ("start", None),
    "before the confirmation is sent": ("before", writes_job(JobState.RUNNING, "k")),
    "when the confirmation is written": ("applied", writes_job(JobState.RUNNING, "k")),
    "when the doorbell rings": ("applied", lambda request: any(getattr(op, "stamp", None) == 1 for op in request.ops)),
}
NOBODY_HAD_IT = ("before the record is sent", "before the claim is sent")


@pytest.mark.parametrize("cut", CUTS)
def test_the_caller_of_dispatch_is_cancelled(simulated: Simulated, cut: str) -> None:
    """Whenever the caller is cancelled: the job runs once or is gone, nothing of it is left, and the key works again."""
    moment, match = CUTS[cut]

    async def scenario(cluster: Cluster) -> None:
        tap = Wiretap(cluster)
        client = await cluster.node(POOL, client_only=True, **QUICK)
        pool = await nodes(cluster, 2)
        store = Store(cluster)
        call: asyncio.Task[None] | None = None

        def cancel(_: object) -> None:
            assert call is not None
            call.cancel()

        async def cancel_and_linger(request: object) -> None:
            cancel(request)
            await asyncio.sleep(0.05)

        if match is None:
            for node in pool:
                keeper(node).on_start = cancel_and_linger
        elif moment == "before":
            tap.before(match, cancel_and_linger)
        else:
            tap.applied(match, cancel)
        call = asyncio.create_task(client.dispatch_job("k", b"payload"))
        [result] = await gathered(call)
        cluster.sometimes("the caller was cancelled", isinstance(result, asyncio.CancelledError))
        cluster.sometimes("the caller was told before", result is None)
        await store.tidy()
        running = cluster.running("k")
        assert len(running) == len(store.jobs()) <= 1
        assert len(cluster.history("k")) <= 1
        assert not running or cut not in NOBODY_HAD_IT, "a cancelled call takes the job back if no worker has it yet"
        for node in pool:
            keeper(node).on_start = None
        if running:
            with pytest.raises(JobExistsError):
                await pool[0].dispatch_job("k")
            await pool[1].stop_job("k")
        await pool[0].dispatch_job("k", b"again")
        assert len(cluster.running("k")) == 1
        await store.tidy()

    simulated(scenario, reaches=["the caller was cancelled"])


def test_the_caller_of_dispatch_is_cancelled_while_there_is_no_worker(simulated: Simulated) -> None:
    """The job waits in the pool's queue, which is bounded: nothing of it may keep others out, or start when a worker comes."""

    async def scenario(cluster: Cluster) -> None:
        client = await cluster.node(POOL, client_only=True, **{**QUICK, "max_queued_jobs": 2})
        store = Store(cluster)
        for turn in range(4):
            calls = [asyncio.create_task(client.dispatch_job(f"k{turn}-{number}")) for number in range(2)]
            await cluster.sleep(0.2)
            cluster.sometimes("the queue was full", len(store.jobs()) == 2)
            for call in calls:
                call.cancel()
            assert all(isinstance(result, asyncio.CancelledError) for result in await gathered(*calls))
            await cluster.eventually(lambda: not store.jobs(), within=1.0)
        await nodes(cluster, 1)
        await store.tidy()
        await client.dispatch_job("another")
        assert [key for key in cluster.recorder.tenures if cluster.history(key)] == ["another"]

    simulated(scenario, reaches=["the queue was full"])


@pytest.mark.parametrize("call", ["dispatch_job", "notify_worker"])
def test_a_call_between_two_tries_ends_as_its_node_closes(simulated: Simulated, call: str) -> None:
    """The worker that it wants takes nothing more, and the ring does not show it yet: the call tries again and again."""

    async def scenario(cluster: Cluster) -> None:
        closing, other = await nodes(cluster, 2)
        [key] = keys_of(other, 1)
        if call == "notify_worker":
            await other.dispatch_job(key)
        cluster.world.server.streams(POOL).seal(f"worker:{other.workers[0].id}.1")
        asked = asyncio.create_task(getattr(closing, call)(key))
        await cluster.sleep(0.5)
        assert not asked.done()
        await closing.close()  # which finds what is left on its machine
        [error] = await gathered(asked)
        assert isinstance(error, NodeClosedError), error

    simulated(scenario)


def test_a_payload_that_comes_after_its_job_was_given_up_is_collected(simulated: Simulated) -> None:
    """A dispatcher dies when it has sent the payload, on a connection that is slow to carry it. Meanwhile a worker finds the
    record without a payload, and withdraws the job. (Where a commit is all or nothing, all of it comes late: the job runs.)"""

    async def scenario(cluster: Cluster) -> None:
        tap = Wiretap(cluster)
        await nodes(cluster, 2, max_start_attempts=2)
        client = await cluster.node(POOL, client_only=True, **QUICK)
        store = Store(cluster)
        sends = both(from_(client.name), writes_payload())
        tap.before(sends, lambda _: cluster.hit_crash(client.name))
        stray = tap.strand(sends)
        [error] = await gathered(client.dispatch_job("k", b"late"))
        assert isinstance(error, NodeCrashed)
        assert ("k" in store.jobs()) is not simulated.atomic
        await cluster.eventually(lambda: not store.jobs(), within=FOUND + 2 * QUICK["ack_grace_period"])
        await cluster.sleep(2.5 * QUICK["ack_grace_period"])  # the collector has looked, and found nothing to collect
        stray.arrive()
        cluster.sometimes("the payload came last", bool(store.map("job_payloads")) and not store.jobs())
        await store.tidy()

    simulated(scenario, reaches=[] if simulated.atomic else ["the payload came last"])


def test_a_doorbell_s_payload_is_of_its_own_job(simulated: Simulated) -> None:
    """While a claim is on its way, the job is taken back, and another one stands under its key when the claim is refused."""

    async def scenario(cluster: Cluster) -> None:
        tap = Wiretap(cluster)
        pool = await nodes(cluster, 2)
        [key] = keys_of(pool[0], 1)
        claim = tap.hold(both(from_(pool[0].name), writes_job(JobState.STARTING, key)), times=1)
        first = asyncio.create_task(pool[1].dispatch_job(key, b"the first", timeout=0.2 * TTL))
        await claim.reached()
        [error] = await gathered(first)
        assert error is not None
        second = asyncio.create_task(pool[1].dispatch_job(key, b"the second"))
        await cluster.eventually(lambda: Store(cluster).job(key) is not None, within=TTL)
        claim.open()
        await second
        assert keeper(pool[0]).running == {key: b"the second"}
        cluster.sometimes("a claim found another job under its key")
        await Store(cluster).tidy()

    simulated(scenario, reaches=["a claim found another job under its key"])
