"""Bad input: an error that names the value, the limit and the way out, before anything is sent."""

from __future__ import annotations

from typing import Any

import pytest

import corepool
from corepool import Job, Node

from .conftest import Pool, Recorder

ODD_KEYS = [
    "a b",
    "ключ",
    "鍵",
    "\u0000",
    "nul\u0000inside",
    "🦊",
    "a/b.c*d>e:f{g}",
    "\u202eright to left",
    "\n",
    "é",
    "e\u0301",
    "%",
]


@pytest.mark.parametrize("key", ODD_KEYS)
async def test_any_unicode_key_works(pool: Pool, key: str) -> None:
    node = await pool.node(workers=1)
    await node.dispatch_job(key, key.encode())
    assert pool.running() == {key: 1}
    await node.notify_worker(key, b"x")
    assert await node.job_payload(key) == key.encode()
    await node.stop_job(key)
    assert pool.running() == {}


async def test_keys_that_look_alike_are_different_jobs(pool: Pool) -> None:
    node = await pool.node(workers=1)
    for key in ODD_KEYS:
        await node.dispatch_job(key)
    assert sorted(await node.job_keys()) == sorted(ODD_KEYS)


@pytest.mark.parametrize("key", ["", "k" * 100_000, "\ud800", 7, None])
async def test_bad_keys(pool: Pool, key: Any) -> None:
    node = await pool.node(workers=1)
    for call in (node.dispatch_job, node.stop_job, node.notify_worker, node.retry_job, node.explain, node.job_payload):
        with pytest.raises(corepool.InvalidKeyError):
            await call(key)
    assert await node.job_keys() == []


async def test_payloads_over_the_limit(pool: Pool) -> None:
    node = await pool.node(workers=1)
    limit = node._backend.capabilities.max_value_bytes
    with pytest.raises(corepool.PayloadTooLarge, match=str(limit)):
        await node.dispatch_job("k", b"x" * (limit + 1))
    with pytest.raises(TypeError, match="bytes"):
        await node.dispatch_job("k", "text")  # type: ignore[arg-type]
    assert await node.job_keys() == []
    await node.dispatch_job("k", b"")
    with pytest.raises(corepool.PayloadTooLarge, match=str(limit)):
        await node.notify_worker("k", b"x" * (limit + 1))


@pytest.mark.parametrize("name", ["", "p" * 10_000, "\udfff"])
async def test_bad_pool_names(pool: Pool, name: str) -> None:
    node = await pool.node()
    with pytest.raises(corepool.InvalidKeyError, match="pool's name"):
        await Node.open(node._backend, name)


@pytest.mark.parametrize("bad", [-1.0, 0.0, float("nan"), float("inf"), 1e300, "soon", True])
@pytest.mark.parametrize("option", ["worker_ttl", "ack_grace_period", "call_timeout", "worker_shutdown_ttl"])
async def test_bad_durations(pool: Pool, option: str, bad: Any) -> None:
    node = await pool.node()
    with pytest.raises(corepool.InvalidOptionError, match=option):
        Node(node._backend, "p", **{option: bad})


@pytest.mark.parametrize("bad", [-1.0, float("nan"), 0.0])
async def test_bad_durations_of_calls(pool: Pool, bad: float) -> None:
    node = await pool.node(workers=1)
    with pytest.raises(corepool.InvalidOptionError, match="timeout"):
        await node.dispatch_job("k", timeout=bad)
    with pytest.raises(corepool.InvalidOptionError, match="interval"):
        await anext(node.ticker("t", bad))
    assert await node.job_keys() == []


@pytest.mark.parametrize("options", [{"max_queued_jobs": 0}, {"neighbours": 1.5}, {"max_moves_in_flight": -3}])
async def test_bad_counts(pool: Pool, options: dict[str, Any]) -> None:
    node = await pool.node()
    with pytest.raises(corepool.InvalidOptionError, match=next(iter(options))):
        Node(node._backend, "p", **options)


async def test_unknown_options_and_placements(pool: Pool) -> None:
    node = await pool.node()
    with pytest.raises(corepool.InvalidOptionError, match="worker_ttl"):
        Node(node._backend, "p", worker_tll=3)
    with pytest.raises(corepool.InvalidOptionError, match="'multiprobe' and 'jump'"):
        Node(node._backend, "p", placement="random")
    with pytest.raises(corepool.InvalidOptionError, match="place"):
        Node(node._backend, "p", placement=7)


class NoStart:
    async def stop(self, key: str) -> None: ...


class NoStop:
    async def start(self, job: Job) -> None: ...


class NotCallable:
    start = 7

    async def stop(self, key: str) -> None: ...


class WrongArguments:
    async def start(self) -> None: ...
    async def stop(self, key: str) -> None: ...


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        (NoStart(), "'start'"),
        (NoStop(), "'stop'"),
        (NotCallable(), "'start'"),
        (WrongArguments(), "argument"),
        (Recorder, "class"),
    ],
)
async def test_bad_handlers(pool: Pool, handler: Any, says: str) -> None:
    node = await pool.node()
    with pytest.raises(corepool.InvalidHandlerError, match=says):
        await node.add_worker(handler)
    assert node.workers == []
    assert node.pool_workers() == {}


async def test_a_node_that_is_not_open(pool: Pool) -> None:
    opened = await pool.node()
    node = Node(opened._backend, "p")
    with pytest.raises(corepool.NodeClosedError, match="async with"):
        await node.dispatch_job("k")
    await node.close()
    async with node:
        pass
    with pytest.raises(corepool.NodeClosedError):
        await node.add_worker(Recorder())
    with pytest.raises(corepool.NodeClosedError):
        await node.__aenter__()


async def test_a_worker_of_another_node(pool: Pool) -> None:
    first, second = await pool.node(workers=1), await pool.node()
    with pytest.raises(corepool.InvalidOptionError, match="not a worker of"):
        await second.remove_worker(first.workers[0])
