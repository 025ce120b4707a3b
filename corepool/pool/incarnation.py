"""The pool's incarnations: opening the current one, ending it, clearing what an ended one left.

Purpose: R6. After a shutdown nothing of the old pool can come back, even if the shutdown crashed halfway.
Invariants: the pool's record changes only by compare-and-set; the flag is set first, then inboxes and queue are destroyed,
and only then the records are scanned and removed, so that a dispatcher finds either the flag, or no inbox, or is found by
the scan; every other name carries the incarnation.
Neighbours: ``session`` opens with it; ``Node.shutdown`` ends with it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec

from corepool.driver import Namespace
from corepool.pool.membership import POOL_KEY, Membership
from corepool.pool.protocol import JobProtocol
from corepool.pool.store import PoolStore
from corepool.pool.wire import PoolRecord, Verdict
from corepool.rmap import ReplicatedMap

__all__ = ["clear_incarnation", "current_incarnation", "flag_shutdown"]


async def current_incarnation(pool: ReplicatedMap[PoolRecord]) -> tuple[PoolRecord, PoolRecord | None]:
    """The open incarnation's record; and the ended one's that this call followed up, whose remains are to be cleared."""
    while True:
        seen = await pool.fetch(POOL_KEY)
        if seen is None:
            fresh, ended = PoolRecord(1), None
            written = await pool.set_if_absent(POOL_KEY, fresh)
        elif seen.shutdown:
            fresh, ended = PoolRecord(seen.incarnation + 1, seen.generation), seen
            written = await pool.test_and_set(POOL_KEY, seen, fresh)
        else:
            return seen, None
        if written.applied:
            await pool.wait_for_revision(written.revision)
            return fresh, ended


async def flag_shutdown(membership: Membership, incarnation: int) -> bool:
    """Set the flag. False: this incarnation had ended already."""
    while True:
        seen = await membership.settled_pool()
        if seen is None or seen.incarnation != incarnation or seen.shutdown:
            return False
        if await membership.change_pool(seen, msgspec.structs.replace(seen, shutdown=True)):
            return True


async def _keys(namespace: Namespace, name: str) -> AsyncIterator[str]:
    async for entry in namespace.map(name).scan():
        yield entry.key


async def clear_incarnation(store: PoolStore, protocol: JobProtocol) -> int:
    """Remove all that an ended incarnation left, and answer whoever still waits. How many jobs there were.

    Safe to call again, and by several at once.
    """
    namespace = store.namespace
    workers = {key: None async for key in _keys(namespace, store.workers)}
    nodes = [key async for key in _keys(namespace, store.nodes)]
    for inbox in (*map(store.worker_inbox, workers), store.queue):
        await namespace.stream(inbox).destroy()
    jobs = 0
    keys = [key async for key in _keys(namespace, store.jobs)]
    for key in keys:
        stored = await store.job(key)
        while stored is not None:
            if stored.record.worker:
                workers[stored.record.worker] = None  # its own record may be gone by now, and its list still be there
            outcome = await protocol.remove(key, stored, [stored.record.reply], Verdict.GONE)
            stored = None if outcome.applied else outcome.current
        jobs += 1
    for node in nodes:
        await namespace.stream(store.node_inbox(node)).destroy()
    for name in (*map(store.owned, workers), *store.known_maps()):
        await namespace.map(name).destroy()
    return jobs
