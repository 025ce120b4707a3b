"""Small scenarios without faults, for what chaos hits too rarely: each forces the one interleaving a safeguard is there for.

With the safeguard they pass. Without it they end with a violation, by the recorder, by the rules of the store, by the judge of
histories, or by the sentence that stands here.
Neighbours: ``small_calls`` has those of calls, and stands on the same ground.
"""

from __future__ import annotations

import asyncio
from typing import Any

from corepool import Job
from corepool.driver import ABSENT
from corepool.errors import BackendUnavailable, CorepoolError
from corepool.pool.store import INBOX
from corepool.pool.wire import JobState, MemberState, NodeRecord, NotifyEvent, decode, event
from corepool.testing import Cluster, ClusterNode, NotInTime
from corepool.testing.atrest import AtRest
from corepool.testing.rules import StoreRules
from tests.scenarios.looking import FOUND, POOL, TTL, Keeper, Store, gathered, keeper, keys_of, nodes, ring
from tests.scenarios.wiretap import Match, Request, Wiretap, appends, both, cleanup_lock, from_, renews, writes_job

__all__ = [
    "answered_late",
    "asleep_while_claiming",
    "asleep_with_the_lock",
    "at_rest",
    "back_in_two_attempts",
    "cut_off",
    "late_after_the_burial",
    "leaving_alone",
    "leaving_slowly",
    "leaving_while_fenced",
    "many_workers_far_away",
    "notified_when_failed",
    "notified_while_dead",
    "overlooked",
    "pool_of",
    "refused_at_the_last_step",
    "two_rings",
    "two_take_over",
    "waiting_when_cut_off",
]

DIED_TOO = 3 * FOUND
"""Until a cleaner's death is found, and its lock was seen to be stale, by one who looks at it twice."""


async def pool_of(cluster: Cluster, count: int, **options: Any) -> list[ClusterNode]:
    """So many nodes with a worker each, under the rules of the store."""
    StoreRules(cluster, POOL, ttl=TTL)
    return await nodes(cluster, count, **options)


async def at_rest(cluster: Cluster, within: float) -> None:
    """Everything is where it belongs in time, and nothing else is there (invariants 10 to 12)."""
    look = AtRest(cluster, POOL)
    try:
        await cluster.eventually(lambda: not look.problem(), within=within)
    except NotInTime as error:
        raise AssertionError(look.problem()) from error


async def asleep_while_claiming(cluster: Cluster) -> None:
    """R3. An owner is paused when the answer to its claim has come, and wakes up long after its lease ran out: to call the
    handler is the first thing it does. (Where a commit goes step by step, a later answer is the first.)"""
    tap = Wiretap(cluster)
    pool = await pool_of(cluster, 3)
    [key] = keys_of(pool[0], 1)
    claim = both(from_(pool[0].name), writes_job(JobState.STARTING, key))

    async def fall_asleep(request: Request) -> None:
        cluster.hit_pause(request.machine)
        await asyncio.sleep(0)  # a machine is paused between two steps of a task, not within one

    hook = tap.after(claim, fall_asleep)
    call = asyncio.create_task(pool[1].dispatch_job(key, timeout=6 * TTL))
    await cluster.eventually(lambda: [node for node in cluster.running(key) if node is not pool[0]], within=FOUND + TTL)
    assert hook.hits == 1
    await cluster.resume(pool[0])
    await gathered(call)
    await Store(cluster).tidy()


async def two_rings(cluster: Cluster) -> None:
    """R5. A job is handed to one who does not know yet that the former owner leaves, and whose ring names that one still."""
    tap = Wiretap(cluster)
    pool = await pool_of(cluster, 3)
    leaver, *stayers = pool
    keys = keys_of(leaver, 8)
    for key in keys:
        await leaver.dispatch_job(key)
    held = [tap.hold_feed(node.name, "watch workers") for node in stayers]
    leaving = asyncio.create_task(leaver.close())
    await cluster.eventually(lambda: all(cluster.running(key) not in ([], [leaver]) for key in keys), within=TTL)
    await cluster.sleep(2 * TTL)  # each looks again where its jobs belong
    for feed in held:
        feed.release()
    await leaving
    await Store(cluster).tidy()


async def _one_dies(cluster: Cluster, pool: list[ClusterNode]) -> tuple[str, list[str]]:
    keys = keys_of(pool[0], 3)
    for key in keys:
        await pool[0].dispatch_job(key)
    [worker] = pool[0].workers
    await cluster.crash(pool[0])
    return worker.id, keys


async def asleep_with_the_lock(cluster: Cluster) -> None:
    """R12. A cleaner falls asleep before its last step, and wakes up when another has its lock."""
    tap = Wiretap(cluster)
    pool = await pool_of(cluster, 5)
    dead = pool[0].workers[0].id
    last: Match = lambda request: any(op.key == dead for op in request.deletes("workers."))  # noqa: E731
    first = tap.hold(last, times=1)
    await _one_dies(cluster, pool)
    await asyncio.wait_for(first.reached(), DIED_TOO)
    sleeper = first.seen[0].machine
    await cluster.pause(sleeper)
    second = tap.hold(last, times=1)
    await asyncio.wait_for(second.reached(), DIED_TOO)
    first.open()
    await cluster.resume(sleeper)
    await cluster.sleep(0.5)
    second.open()
    await Store(cluster).tidy()


async def two_take_over(cluster: Cluster) -> None:
    """R12. A cleaner dies with the lock in its hand; two others find it stale at once, and one takes it before the other."""
    tap = Wiretap(cluster)
    pool = await pool_of(cluster, 5)
    dead = pool[0].workers[0].id
    died = tap.applied(cleanup_lock(dead), lambda request: cluster.hit_crash(request.machine))
    await _one_dies(cluster, pool)
    await cluster.eventually(lambda: died.hits, within=DIED_TOO)
    came: list[str] = []
    both_there, taken = asyncio.Event(), asyncio.Event()

    def touches_lock(request: Request) -> bool:
        written = [op.key for op in request.sets("worker_cleanup.")]
        return dead in written or any(op.key == dead for op in request.deletes("worker_cleanup."))

    async def one_by_one(request: Request) -> None:
        if request.machine not in came:
            came.append(request.machine)
        if len(came) > 1:
            both_there.set()
        await (both_there if request.machine == came[0] else taken).wait()

    def took(request: Request) -> None:
        if came and request.machine == came[0]:
            taken.set()

    tap.before(touches_lock, one_by_one, times=100)
    tap.applied(cleanup_lock(dead), took, times=100)
    await asyncio.wait_for(taken.wait(), 2 * DIED_TOO)
    await Store(cluster).tidy()


async def _buried_asleep(cluster: Cluster, node: ClusterNode) -> None:
    """It is paused until others have buried it. When it resumes it comes back, under a new id."""
    dead = node.node.id
    await cluster.pause(node)
    await cluster.eventually(lambda: dead not in Store(cluster).map("nodes"), within=DIED_TOO)


async def back_in_two_attempts(cluster: Cluster) -> None:
    """A node that was declared dead comes back. Its first attempt takes so long that it is declared dead as well; the second
    has its record and inbox when whoever buries the first removes what leads to them."""
    tap = Wiretap(cluster)
    late, other = await pool_of(cluster, 2)
    await _buried_asleep(cluster, late)

    def begins_to_live(request: Request) -> bool:
        return any(op.when is ABSENT for op in request.sets("node_keep_alive."))

    living = tap.hold(both(from_(late.name), begins_to_live))
    await cluster.resume(late)
    await asyncio.wait_for(living.reached(), TTL)
    first = late.node.id

    def removes_first(request: Request) -> bool:
        return any(op.key == first for op in request.deletes("node_keep_alive."))

    removing = tap.hold(both(from_(other.name), removes_first))
    await asyncio.wait_for(removing.reached(), FOUND)
    second = tap.applied(both(from_(late.name), lambda request: request.calls("create", "node:")), lambda _: None)
    living.open()
    await cluster.eventually(lambda: second.hits, within=TTL)
    removing.open()
    await at_rest(cluster, DIED_TOO)


async def refused_at_the_last_step(cluster: Cluster) -> None:
    """A node that was declared dead comes back, and listens already to its new inbox when the last step of its first attempt
    fails. The second announces another."""
    tap = Wiretap(cluster)
    late, _ = await pool_of(cluster, 2)
    await _buried_asleep(cluster, late)

    def becomes_active(request: Request) -> bool:
        return any(decode(op.value, NodeRecord).state is MemberState.ACTIVE for op in request.sets("nodes."))

    async def refuse(_: Request) -> None:
        await cluster.sleep(0.1 * TTL)  # until somebody waits for what the inbox brings
        raise BackendUnavailable("not now")

    refused = tap.before(both(from_(late.name), becomes_active), refuse)
    await cluster.resume(late)
    await cluster.eventually(lambda: refused.hits, within=TTL)
    await at_rest(cluster, DIED_TOO)


async def notified_while_dead(cluster: Cluster) -> None:
    """A notification lies in the inbox of one who died: whoever cleans up passes it on."""
    pool = await pool_of(cluster, 3)
    [key] = keys_of(pool[0], 1)
    await pool[1].dispatch_job(key)
    await cluster.crash(pool[0])
    try:
        await pool[1].notify_worker(key, b"note")
    except CorepoolError as error:
        raise AssertionError(f"a notification in the inbox of the dead was lost: {error!r}") from error
    [owner] = cluster.running(key)
    assert isinstance(owner, ClusterNode)
    assert (key, b"note") in keeper(owner).notes
    await Store(cluster).tidy()


async def waiting_when_cut_off(cluster: Cluster) -> None:
    """A worker waits for the store, in the middle of what it does with a job, when it is cut off: its lease does not wait."""
    tap = Wiretap(cluster)
    pool = await pool_of(cluster, 3)
    [key] = keys_of(pool[0], 1)
    await pool[1].dispatch_job(key)
    answering = tap.hold(both(from_(pool[0].name), appends("answer")))
    call = asyncio.create_task(pool[1].notify_worker(key, b"note"))
    await answering.reached()
    await cluster.partition(pool[0])
    await cluster.eventually(lambda: cluster.running(key) not in ([], [pool[0]]), within=FOUND + TTL)
    await cluster.heal(pool[0])
    answering.open()
    await gathered(call)
    await Store(cluster).tidy()


async def cut_off(cluster: Cluster) -> None:
    """R8. A worker is cut off, for longer than its lease lasts."""
    pool = await pool_of(cluster, 3)
    [key] = keys_of(pool[0], 1)
    await pool[1].dispatch_job(key)
    await cluster.partition(pool[0])
    await cluster.eventually(lambda: cluster.running(key) not in ([], [pool[0]]), within=FOUND + TTL)
    await cluster.heal(pool[0])
    await Store(cluster).tidy()


async def answered_late(cluster: Cluster) -> None:
    """R8. A worker is cut off just after it has renewed, and hears of it late: its lease counts from when it asked."""
    tap = Wiretap(cluster)
    pool = await pool_of(cluster, 3)
    [key] = keys_of(pool[0], 1)
    await pool[1].dispatch_job(key)
    renewed = tap.hold_answer(both(from_(pool[0].name), renews()))
    await asyncio.wait_for(renewed.reached(), TTL)
    await cluster.sleep(0.01 * TTL)
    await cluster.partition(pool[0])
    await cluster.sleep(0.35 * TTL)  # a little longer, and it would give up waiting for it
    renewed.open()
    await cluster.eventually(lambda: cluster.running(key) not in ([], [pool[0]]), within=FOUND + TTL)
    await cluster.heal(pool[0])
    await Store(cluster).tidy()


async def leaving_alone(cluster: Cluster) -> None:
    """The store is not there for a moment when a worker leaves; its node is the only one."""
    tap = Wiretap(cluster)
    [node] = await pool_of(cluster, 1)
    worker = await node.add_worker(Keeper())
    for number in range(6):
        await node.dispatch_job(f"k{number}")

    def refuse(_: Request) -> None:
        raise BackendUnavailable("not now")

    tap.before(lambda request: any(op.key == worker.id for op in request.sets("workers.")), refuse)
    await node.remove_worker(worker)
    await at_rest(cluster, FOUND + 4 * TTL)


async def leaving_while_fenced(cluster: Cluster) -> None:
    """A worker cannot renew, and fences itself: what it owned by its records is not running any more. Now it is removed."""
    tap = Wiretap(cluster)
    pool = await pool_of(cluster, 3)
    [key] = keys_of(pool[0], 1)
    await pool[1].dispatch_job(key)
    [worker] = pool[0].workers
    beats = tap.hold(both(from_(pool[0].name), renews()))
    await cluster.eventually(lambda: worker.fenced, within=TTL)
    await pool[0].remove_worker(worker)
    try:
        await cluster.eventually(lambda: cluster.running(key), within=2 * FOUND)
    except NotInTime as error:
        raise AssertionError(f"10: {key} is RUNNING by its record, its owner has gone, and nobody finds it") from error
    beats.open()
    await at_rest(cluster, DIED_TOO)


async def many_workers_far_away(cluster: Cluster) -> None:
    """A node with many workers is far away from the store: each round trip is short beside a lease, all in turn are not."""
    tap = Wiretap(cluster)
    pool = await pool_of(cluster, 2)
    keys = keys_of(pool[0], 3)
    for _ in range(11):
        await pool[0].add_worker(Keeper())
    await cluster.eventually(lambda: all(len(ring(node).workers) == 13 for node in pool), within=TTL)
    for key in keys:
        await pool[1].dispatch_job(key)
    alive = Store(cluster).keep_alives().keys()

    async def far(_: Request) -> None:
        await cluster.sleep(0.1 * TTL)

    tap.before(from_(pool[0].name), far, times=1_000_000)
    await cluster.sleep(4 * TTL)
    moved = [key for key in keys if len(cluster.history(key)) > 1]
    assert not moved, f"{moved} were fenced, though every worker is well"
    assert Store(cluster).keep_alives().keys() == alive, "workers were declared dead, though every one is well"


async def late_after_the_burial(cluster: Cluster) -> None:
    """A worker is dead and buried. Now arrives what it had sent before: its inbox is made, and its list of keys."""
    pool = await pool_of(cluster, 3)
    dead, _ = await _one_dies(cluster, pool)
    await cluster.eventually(lambda: dead not in Store(cluster).workers(), within=DIED_TOO)
    server = cluster.world.server
    server.streams(POOL).create(f"worker:{dead}.1", INBOX)
    server.maps(POOL).set(f"owned@{dead}.1", "k0", b"j")
    await at_rest(cluster, DIED_TOO)


async def notified_when_failed(cluster: Cluster) -> None:
    """A notification waits in the queue. Until it is routed the next owner could not start the job, and it is FAILED."""
    pool = await pool_of(cluster, 2, max_start_attempts=1)
    [key] = keys_of(pool[0], 1)
    await pool[1].dispatch_job(key)

    async def fail(job: Job) -> None:
        raise ValueError(job.key)

    keeper(pool[1]).on_start = fail
    await pool[0].close()
    store = Store(cluster)
    await cluster.eventually(lambda: (record := store.job(key)) and record.state is JobState.FAILED, within=FOUND)
    record = store.job(key)
    assert record is not None
    waiting = event(NotifyEvent(key, record.job_id, b"note", None))
    cluster.world.server.streams(POOL).append("queue.1", waiting, only_if_exists=True)
    await at_rest(cluster, FOUND)


async def overlooked(cluster: Cluster) -> None:
    """A job is on its way, its doorbell is lost, and so is the entry that would lead the sweeper to it."""
    tap = Wiretap(cluster)
    pool = await pool_of(cluster, 2, full_scan_interval=2 * TTL)
    [key] = keys_of(pool[0], 1)
    held = tap.hold_feed(pool[0].name, "sink owner of worker:")
    call = asyncio.create_task(pool[1].dispatch_job(key, timeout=60 * TTL))
    await cluster.eventually(lambda: held.held, within=TTL)
    server, inbox = cluster.world.server, f"worker:{pool[0].workers[0].id}.1"
    for name in Store(cluster).map("attention"):
        server.maps(POOL).delete("attention.1", name)
    server.streams(POOL).remove(inbox, [event.id for event in server.streams(POOL).range(inbox, "", 100)])
    held.held.clear()
    held.release()
    await cluster.reset(pool[0])  # what was on the wire is lost with its connection
    try:
        await cluster.eventually(lambda: cluster.running(key), within=8 * TTL)
    except NotInTime as error:
        raise AssertionError(f"10: {key} is on its way, and nobody looks after it") from error
    await gathered(call)
    await Store(cluster).tidy()


async def leaving_slowly(cluster: Cluster) -> None:
    """Handing over takes longer than a lease lasts: each stop takes its time, and only a few are made at once."""
    pool = await pool_of(cluster, 3, max_moves_in_flight=1)
    keys = keys_of(pool[0], 4)
    for key in keys:
        await pool[1].dispatch_job(key)

    async def slowly(_: str) -> None:
        await asyncio.sleep(0.6 * TTL)  # of virtual time

    keeper(pool[0]).on_stop = slowly
    await pool[0].close()
    assert all(len(cluster.running(key)) == 1 for key in keys)
    await Store(cluster).tidy()
