"""Small scenarios of calls: what a caller is told of a job whose fate hangs on one moment (see ``small``)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from corepool import Job, JobGoneError, JobStartError
from corepool.errors import BackendUnavailable, OutcomeUnknown
from corepool.pool.wire import JobState
from corepool.testing import Cluster, NotInTime
from corepool.testing.history import Dispatch, judge
from tests.scenarios.looking import FOUND, POOL, QUICK, TTL, Store, gathered, keeper, keys_of
from tests.scenarios.wiretap import Request, Wiretap, appends, both, from_, reads_job, removes_job, writes_job

from .small import at_rest, pool_of

__all__ = [
    "asked_and_stopped",
    "asker_left",
    "begun_by_the_dead",
    "cancelled_while_it_moves",
    "dispatched_while_it_ends",
    "failing_at_once",
    "given_up_while_it_moves",
    "late_after_the_answer",
    "withdrawn_in_doubt",
]


def _judge(cluster: Cluster) -> None:
    """What dispatchers were told, against what handlers did (invariants 1 to 5). Nobody stopped anything."""
    dispatches = [
        Dispatch(
            key=call.arguments[0],
            payload=call.arguments[1],
            invoked=call.invoked,
            returned=call.returned,
            error=call.error,
        )
        for call in cluster.calls
        if call.name == "dispatch_job"
    ]
    judge(dispatches, [], cluster.recorder.effects(), settled_at=cluster.now)


async def withdrawn_in_doubt(cluster: Cluster) -> None:
    """R1. A dispatcher whose time is up takes its job back, and never hears whether it did. It did not: a worker had just
    claimed the job, ran it, and was asked to stop it."""
    tap = Wiretap(cluster)
    pool = await pool_of(cluster, 2)
    client = await cluster.node(POOL, client_only=True, **QUICK)
    [key] = keys_of(pool[0], 1)
    bells, answers = tap.hold_feed(pool[0].name, "sink owner of worker:"), tap.hold_feed(client.name, "sink ")
    withdrawing, stopped = asyncio.Event(), asyncio.Event()

    async def lose(_: Request) -> None:
        withdrawing.set()
        await stopped.wait()
        raise OutcomeUnknown("it was lost on its way")

    tap.before(both(from_(client.name), removes_job(key)), lose)
    call = asyncio.create_task(client.dispatch_job(key, timeout=0.2 * TTL))
    await withdrawing.wait()
    bells.release()
    await cluster.eventually(lambda: cluster.running(key), within=TTL)
    await pool[1].stop_job(key)
    stopped.set()
    [error] = await gathered(call)
    assert isinstance(error, JobGoneError), f"3: the dispatch of {key} raised {type(error).__name__}, but it started"
    answers.release()
    await Store(cluster).tidy()


async def begun_by_the_dead(cluster: Cluster) -> None:
    """R1. A worker dies while it starts a job, and the bell of the next one is late: the dispatcher's time is up while the
    record is PENDING again, not started as far as it says."""
    tap = Wiretap(cluster)
    pool = await pool_of(cluster, 2)
    client = await cluster.node(POOL, client_only=True, **QUICK)
    [key] = keys_of(pool[0], 1)

    async def hang(_: Job) -> None:
        await asyncio.Event().wait()

    keeper(pool[0]).on_start = hang
    bells = tap.hold_feed(pool[1].name, "sink owner of worker:")
    call = asyncio.create_task(client.dispatch_job(key, timeout=FOUND + TTL))
    await cluster.eventually(lambda: cluster.owners(key), within=TTL)
    await cluster.crash(pool[0])
    await gathered(call)
    _judge(cluster)
    bells.release()
    await Store(cluster).tidy()


async def _moves_unheard(
    cluster: Cluster, tap: Wiretap
) -> tuple[str, asyncio.Task[None], asyncio.Event, Callable[[], None]]:
    """A job has started, which its dispatcher has not heard; about to look, it is held up. Meanwhile the job moves: its record
    is PENDING. The event lets the look fail; what comes last lets the next owner hear its bell."""
    pool = await pool_of(cluster, 2)
    client = await cluster.node(POOL, client_only=True, **QUICK)
    [key] = keys_of(pool[0], 1)
    tap.hold_feed(client.name, "sink ")
    bells = tap.hold_feed(pool[1].name, "sink owner of worker:")
    looked = asyncio.Event()

    async def refuse(_: Request) -> None:
        await looked.wait()
        raise BackendUnavailable("not now")

    look = tap.before(both(from_(client.name), reads_job(key)), refuse)
    call = asyncio.create_task(client.dispatch_job(key, timeout=0.2 * TTL))
    await cluster.eventually(lambda: look.hits, within=TTL)
    await pool[0].remove_worker(pool[0].workers[0])
    job = Store(cluster).job(key)
    assert job is not None
    assert (job.state, job.started) == (JobState.PENDING, True)
    return key, call, looked, bells.release


async def given_up_while_it_moves(cluster: Cluster) -> None:
    """R1. A dispatcher has heard of no start when its time is up. What it finds is PENDING, but had started."""
    key, call, looked, ring = await _moves_unheard(cluster, Wiretap(cluster))
    looked.set()
    [error] = await gathered(call)
    ring()
    if error is None:
        await cluster.eventually(lambda: cluster.running(key), within=TTL)
    _judge(cluster)
    await Store(cluster).tidy()


async def cancelled_while_it_moves(cluster: Cluster) -> None:
    """R1. The same, and the dispatcher's caller is cancelled meanwhile: what had started is not taken back."""
    key, call, _, ring = await _moves_unheard(cluster, Wiretap(cluster))
    call.cancel()
    await gathered(call)
    await cluster.sleep(0.2 * TTL)  # what takes it back, if anything does, is through
    ring()
    try:
        await cluster.eventually(lambda: cluster.running(key), within=FOUND)
    except NotInTime as error:
        raise AssertionError(f"2 (R1): {key} had started, and was taken back by its dispatcher") from error
    await Store(cluster).tidy()


async def late_after_the_answer(cluster: Cluster) -> None:
    """R2. The connection breaks under a new record. Its dispatcher comes back on another, finds nothing, and raises that no job
    is left. Then the record arrives after all, unless the dispatcher has seen to it that it cannot. (Where a commit goes step
    by step, payload and bell come after the record and were never sent: nothing starts, but the key is taken.)"""
    tap = Wiretap(cluster)
    await pool_of(cluster, 2)
    client = await cluster.node(POOL, client_only=True, **QUICK)
    key = "k0"
    record = tap.strand(both(from_(client.name), writes_job(JobState.PENDING, key)))
    [error] = await gathered(client.dispatch_job(key))
    assert isinstance(error, JobGoneError), f"dispatch of {key!r} ended with {error!r}"
    record.arrive()
    await cluster.sleep(0.1 * TTL)  # a start, if there is one, takes less; to the sweeper's next look it is longer
    _judge(cluster)
    assert Store(cluster).job(key) is None, f"3: dispatch of {key!r} raised JobGoneError, but its record is there"
    await Store(cluster).tidy()


async def failing_at_once(cluster: Cluster) -> None:
    """The answer to a dispatch is there before the dispatch knows that it was sent."""
    tap = Wiretap(cluster)
    pool = await pool_of(cluster, 2)
    client = await cluster.node(POOL, client_only=True, **QUICK)

    async def fail(job: Job) -> None:
        raise ValueError(job.key)

    for node in pool:
        keeper(node).on_start = fail
    sent = tap.hold_answer(both(from_(client.name), writes_job(JobState.PENDING)))
    for number in range(3):
        call = asyncio.create_task(client.dispatch_job(f"k{number}"))
        await sent.reached(number + 1)
        await cluster.sleep(0.5)
        sent.open()
        [error] = await gathered(call)
        assert isinstance(error, JobStartError), f"the answer to a dispatch was not heard: {error!r}"
    await Store(cluster).tidy()


async def asked_and_stopped(cluster: Cluster) -> None:
    """A dispatcher whose time is up asks for the stop of a start that hangs. When it looks again, the stop is done."""
    tap = Wiretap(cluster)
    pool = await pool_of(cluster, 2)
    [key] = keys_of(pool[0], 1)

    async def hang(_: Job) -> None:
        await asyncio.Event().wait()

    keeper(pool[0]).on_start = hang
    asked = tap.hold_answer(
        both(from_(pool[1].name), appends("stop"))
    )  # the doorbell: where operations go singly, the last
    call = asyncio.create_task(pool[1].dispatch_job(key, timeout=0.2 * TTL))
    await asked.reached()
    await cluster.eventually(lambda: Store(cluster).job(key) is None, within=TTL)
    await cluster.sleep(0.1 * TTL)  # the stop's answer is there
    asked.open()
    [error] = await gathered(call)
    assert isinstance(error, JobGoneError), f"2: the dispatch of {key} ended with {error!r}, and nothing had started it"
    await Store(cluster).tidy()


async def asker_left(cluster: Cluster) -> None:
    """A client leaves while its job starts: nobody makes its inbox anew to answer it."""
    pool = await pool_of(cluster, 2)
    client = await cluster.node(POOL, client_only=True, **QUICK)
    [key] = keys_of(pool[0], 1)
    left = asyncio.Event()

    async def wait(_: Job) -> None:
        await left.wait()

    keeper(pool[0]).on_start = wait
    call = asyncio.create_task(client.dispatch_job(key))
    await cluster.eventually(lambda: cluster.owners(key), within=TTL)
    await client.close()
    await gathered(call)
    left.set()
    await cluster.eventually(lambda: cluster.running(key), within=TTL)
    await at_rest(cluster, FOUND)


async def dispatched_while_it_ends(cluster: Cluster) -> None:
    """R6. The inboxes and the queue are gone, the records are still to be removed: now a node dispatches a job."""
    tap = Wiretap(cluster)
    one, other = await pool_of(cluster, 2)
    emptied = tap.hold_answer(both(from_(one.name), lambda request: request.calls("destroy", "queue.")))
    ending = asyncio.create_task(one.shutdown())
    await emptied.reached()
    call = asyncio.create_task(other.dispatch_job("k0", timeout=4 * TTL))
    await cluster.sleep(0.1 * TTL)
    emptied.open()
    await gathered(ending, call)
    await cluster.sleep(TTL)  # whoever has not heard of the end finds its keep-alive gone, and comes back

    def left() -> list[str]:
        maps, streams = cluster.world.server.contents().get(POOL, ([], []))
        return [name for name in (*maps, *streams) if name.endswith(".1")]

    try:
        await cluster.eventually(lambda: not left(), within=FOUND)
    except NotInTime as error:
        raise AssertionError(f"10 (R6): after a shutdown there is still {left()}") from error
