"""Small scenarios of members and their entries: joining, watching, burying, sweeping (see ``small``)."""

from __future__ import annotations

import asyncio

from corepool.errors import CorepoolError, OutcomeUnknown
from corepool.pool import transitions
from corepool.pool.wire import JobState
from corepool.testing import Cluster, ClusterNode, NotInTime
from corepool.testing.rules import StoreRules
from tests.scenarios.looking import FOUND, FOUND_ONE, POOL, QUICK, TTL, Keeper, Store, gathered, keys_of, nodes, ring
from tests.scenarios.wiretap import Match, Request, Wiretap, both, from_, renews, writes_job

from .small import DIED_TOO, at_rest, pool_of

__all__ = [
    "added_behind_the_end",
    "admitted_behind_the_end",
    "all_of_it_ended",
    "back_before_its_cleaner",
    "buried",
    "dead_in_a_row",
    "joined_after_the_loss",
    "listed_again",
    "taken_away_by_the_ring",
    "unheard",
]


def _left_of_jobs(cluster: Cluster) -> list[str]:
    """What an ended pool has left of jobs and workers. (A node that has not heard of the end may be there still.)"""
    maps, streams = cluster.world.server.contents().get(POOL, ([], []))
    mine = ("jobs", "job_payloads", "attention", "owned@", "workers", "worker:")
    return [name for name in (*maps, *streams) if name.startswith(mine) and name.endswith(".1")]


async def all_of_it_ended(cluster: Cluster) -> None:
    try:
        await cluster.eventually(lambda: not _left_of_jobs(cluster), within=FOUND)
    except NotInTime as error:
        raise AssertionError(f"10 (R6): after a shutdown there is still {_left_of_jobs(cluster)}") from error


async def admitted_behind_the_end(cluster: Cluster) -> None:
    """R6. A dispatcher is so slow that its record comes when the shutdown has looked at all records. Then it finds no inbox.
    (Where a commit is atomic, that inbox keeps the record out.)"""
    tap = Wiretap(cluster)
    one, other = await pool_of(cluster, 2)
    written = tap.hold(both(from_(other.name), writes_job(JobState.PENDING)))
    call = asyncio.create_task(other.dispatch_job("k0", timeout=4 * TTL))
    await written.reached()
    await one.shutdown()
    written.open()
    await gathered(call)
    await all_of_it_ended(cluster)


async def added_behind_the_end(cluster: Cluster) -> None:
    """R6. A node that has not heard of the shutdown adds a worker, and gives it a job."""
    tap = Wiretap(cluster)
    [one] = await pool_of(cluster, 1)
    late = await cluster.node(POOL, **QUICK)
    news = tap.hold_feed(late.name, "watch shutdown")
    beats = tap.hold(both(from_(late.name), renews("node")))  # they would tell it, too
    await one.shutdown()
    try:
        await late.add_worker(Keeper())
        await late.dispatch_job("k0", timeout=TTL)
    except CorepoolError:
        pass  # it found out: all is well
    news.release()
    await cluster.sleep(0.1 * TTL)
    beats.open()
    await all_of_it_ended(cluster)


async def unheard(cluster: Cluster) -> None:
    """R7. A renewal is applied, and its answer is lost. The next one finds what its holder has written itself."""
    tap = Wiretap(cluster)
    pool = await pool_of(cluster, 2)
    [key] = keys_of(pool[0], 1)
    await pool[1].dispatch_job(key)
    held = Store(cluster).keep_alives().keys()

    def lose(_: Request) -> None:
        raise OutcomeUnknown("the answer was lost")

    lost = tap.after(both(from_(pool[0].name), renews()), lose, times=2)
    await cluster.eventually(lambda: not lost.times, within=TTL)
    await cluster.sleep(TTL)
    assert Store(cluster).keep_alives().keys() == held, "6 (R7): members were given up, though every one is well"
    assert len(cluster.history(key)) == 1, f"6 (R7): {key} was taken from its owner, which is well"
    await Store(cluster).tidy()


async def _taken_over(cluster: Cluster, keys: list[str], survivors: list[ClusterNode], within: float) -> None:
    def all_run() -> bool:
        return all(any(node in survivors for node in cluster.running(key)) for key in keys)

    began = cluster.now
    try:
        await cluster.eventually(all_run, within=within)
    except NotInTime as error:
        raise AssertionError(f"11 (R10): after {cluster.now - began:g} s a death is not found") from error


async def taken_away_by_the_ring(cluster: Cluster) -> None:
    """R10. A node dies. Shortly before its one watcher has waited long enough, others join between the two: they know nothing
    of the silence so far."""
    options = {"neighbours": 1}
    one, other = await pool_of(cluster, 2, **options)
    # Ids are drawn evenly, so where there is more room between the two, somebody joins soon.
    places = {node: int(node.node.id[1:], 16) for node in (one, other)}
    watcher, dead = (one, other) if (places[other] - places[one]) % (1 << 80) >= 1 << 79 else (other, one)
    keys = keys_of(dead, 1)
    await watcher.dispatch_job(keys[0])
    died, lost = cluster.now, dead.node.id
    await cluster.crash(dead)
    await cluster.sleep(0.5 * TTL)

    def still_next() -> bool:
        members = sorted(Store(cluster).map("nodes"))
        return members[(members.index(watcher.node.id) + 1) % len(members)] == lost

    while still_next():
        await cluster.node(POOL, client_only=True, **{**QUICK, **options})
    await _taken_over(cluster, keys, [watcher], died + FOUND_ONE - cluster.now)
    await Store(cluster).tidy()


async def dead_in_a_row(cluster: Cluster) -> None:
    """R10. Three of five die at once, each the only one to watch the next."""
    pool = sorted(await pool_of(cluster, 5, neighbours=1), key=lambda node: node.node.id)
    keys = [key for node in pool[1:4] for key in keys_of(node, 1)]
    for key in keys:
        await pool[0].dispatch_job(key)
    for node in pool[1:4]:
        await cluster.crash(node)
    await _taken_over(cluster, keys, [pool[0], pool[4]], FOUND)
    await Store(cluster).tidy()


async def buried(cluster: Cluster) -> None:
    """R11. A worker dies, and is buried."""
    pool = await pool_of(cluster, 2)
    keys = keys_of(pool[0], 2)
    for key in keys:
        await pool[1].dispatch_job(key)
    await cluster.crash(pool[0])
    await _taken_over(cluster, keys, [pool[1]], FOUND)
    await Store(cluster).tidy()


async def back_before_its_cleaner(cluster: Cluster) -> None:
    """R12. A cleaner is about to destroy an inbox, so slow that another buries the dead meanwhile. The worker comes back.
    Then the cleaner goes on."""
    tap = Wiretap(cluster)
    pool = await pool_of(cluster, 4)
    away = pool[0]
    dead = away.workers[0].id
    [key] = keys_of(away, 1)
    await pool[1].dispatch_job(key)
    destroys: Match = lambda request: request.calls("destroy", f"worker:{dead}.")  # noqa: E731
    slow = tap.hold(destroys, times=1)
    await cluster.pause(away)
    await asyncio.wait_for(slow.reached(), DIED_TOO)
    await cluster.eventually(lambda: dead not in Store(cluster).workers(), within=DIED_TOO)
    await cluster.resume(away)
    await cluster.eventually(lambda: any(worker.lease.valid for worker in away.workers), within=FOUND)
    await cluster.eventually(lambda: all(len(ring(node).workers) == 4 for node in pool), within=TTL)
    slow.open()
    await cluster.sleep(0.1 * TTL)
    inboxes = cluster.world.server.streams(POOL)
    lost = [worker.id for worker in away.workers if not inboxes.exists(f"worker:{worker.id}.1")]
    assert not lost, f"6 (R12): the inbox of {lost} is destroyed, though it is alive"
    await at_rest(cluster, DIED_TOO)


async def listed_again(cluster: Cluster) -> None:
    """R12. A mover lists a job and is so slow with its record that the sweeper drops the entry again; while it does, the record
    comes, and the entry with it anew. The doorbell is lost: only the entry leads to the job."""
    tap = Wiretap(cluster)
    mover, heir = await pool_of(cluster, 2)
    [key] = keys_of(mover, 1)
    await heir.dispatch_job(key)
    job = Store(cluster).job(key)
    assert job is not None
    entry = f"{job.job_id}/{job.epoch + 1}"
    moving = tap.hold(both(from_(mover.name), writes_job(JobState.PENDING, key)))
    dropping = tap.hold(lambda request: any(op.key == entry for op in request.deletes("attention.")))
    bells = tap.hold_feed(heir.name, "sink owner of worker:")
    leaving = asyncio.create_task(mover.remove_worker(mover.workers[0]))
    await moving.reached()
    server = cluster.world.server
    if entry not in Store(cluster).map(
        "attention"
    ):  # an atomic commit brings it with the record: a store that went back
        server.maps(POOL).set("attention.1", entry, transitions.attention(key, job))
    await asyncio.wait_for(dropping.reached(), 4 * TTL)
    moving.open()
    await leaving
    inbox = f"worker:{heir.workers[0].id}.1"
    server.streams(POOL).remove(inbox, [event.id for event in server.streams(POOL).range(inbox, "", 100)])
    bells.held.clear()
    bells.release()
    await cluster.reset(heir)  # what was on the wire is lost with its connection
    dropping.open()
    try:
        await cluster.eventually(lambda: cluster.running(key), within=4 * TTL)
    except NotInTime as error:
        raise AssertionError(f"11 (R12): {key} is on its way, and no entry leads to it any more") from error
    await Store(cluster).tidy()


async def joined_after_the_loss(cluster: Cluster) -> None:
    """R13. The store went back, and everybody knows. Who joins afterwards has seen nothing of it, and gets a job."""
    rules = StoreRules(cluster, POOL, ttl=TTL)
    one, other = pool = await nodes(cluster, 2)
    before = cluster.checkpoint()
    await cluster.sleep(0.5 * TTL)  # there are renewals to lose
    rules.goes_back()
    await cluster.rollback(before)
    contexts = [node.node._open().context for node in pool]
    await cluster.eventually(lambda: all(context.generation for context in contexts), within=2 * TTL)
    [key] = keys_of(one, 1)
    await other.dispatch_job(key)
    joiner = await cluster.node(POOL, worker=Keeper(), **QUICK)
    await gathered(one.close(), other.close())
    assert cluster.running(key) == [joiner]
    await Store(cluster).tidy()
