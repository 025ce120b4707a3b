"""The life of a small pool, for every way to reach a server: what the pool needs of a scheme, end to end."""

from __future__ import annotations

import asyncio

from tests.pool.conftest import Pool, eventually

__all__ = ["live"]

JOBS = 30


async def live(url: str) -> None:
    """Two nodes: jobs start, are notified and stopped; one node dies, another one joins, and the first hands all over."""
    pool = Pool(url)
    try:
        first, second = [await pool.node(workers=1) for _ in range(2)]
        keys = [f"k{number}" for number in range(JOBS)]
        await asyncio.gather(*(first.dispatch_job(key, key.encode()) for key in keys))
        assert pool.running() == dict.fromkeys(keys, 1)
        assert all(handler.running for handler in pool.handlers), "the placement gives each its share"
        assert {job.payload.decode() for handler in pool.handlers for job in handler.starts} == set(keys)

        await asyncio.gather(*(second.notify_worker(key, b"news") for key in keys))
        heard = sorted(told for handler in pool.handlers for told in handler.notified)
        assert heard == sorted((key, b"news") for key in keys)

        await asyncio.gather(*(second.stop_job(key) for key in keys[: JOBS // 3]))
        left = dict.fromkeys(keys[JOBS // 3 :], 1)
        assert pool.running() == left

        await second.abandon()
        assert pool.handlers.pop().running, "somebody must take them over"
        await eventually(lambda: pool.running() == left)

        await pool.node(workers=1)
        await eventually(lambda: bool(pool.handlers[1].running) and pool.running() == left)
        await first.close()
        assert not pool.handlers[0].running
        await eventually(lambda: pool.running() == left)
    finally:
        await pool.close()
