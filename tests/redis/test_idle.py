"""What a backend costs that does nothing, and a node with default options: commands per second and connections."""

from __future__ import annotations

import asyncio
import contextlib
import re

import pytest

from corepool import Node
from corepool.cli.bench.floors import RedisFloor
from corepool_redis.backend import RedisBackend
from tests.pool.conftest import Recorder
from tests.redis.conftest import Connect, blocked, fresh
from tests.servers.valkey import Server, command
from tests.waiting import until

IDLE = 11.0
"""Seconds: more than the 10 s after which one node sweeps for all, the 6 s after which each renews, and the 5 s after which a
backend looks at its server."""


def count(server: Server, what: str) -> int:
    info = command(server.port, "INFO")
    assert isinstance(info, bytes)
    match = re.search(rf"{what}:(\d+)".encode(), info)
    assert match is not None
    return int(match.group(1))


def calls(server: Server) -> int:
    """Commands of clients; what scripts call inside counts as well here, so the bound is one for the server's work."""
    info = command(server.port, "INFO", "commandstats")
    assert isinstance(info, bytes)
    return sum(
        int(number)
        for name, number in re.findall(rb"cmdstat_([^:]+):calls=(\d+)", info)
        if name in (b"evalsha", b"eval", b"xread", b"xreadgroup", b"ping", b"hget", b"xack", b"xadd")
    )


async def test_an_idle_backend_is_quiet(own_server: Server, connect: Connect) -> None:
    before = count(own_server, "connected_clients")
    backend = await connect(own_server.url)
    space = backend.namespace(fresh())
    watches = [space.map(f"m{n}").watch() for n in range(6)]
    for watch in watches:
        await anext(watch)
    streams = [space.stream(f"s{n}") for n in range(3)]
    for stream in streams:
        await stream.create()
    sinks = [await stream.sink("g", ack_wait=20.0) for stream in streams]
    waiting = [asyncio.ensure_future(anext(watch)) for watch in watches]
    waiting += [asyncio.ensure_future(sink.receive()) for sink in sinks]  # type: ignore[misc]
    await until(lambda: count(own_server, "connected_clients") - before == 3)
    await asyncio.sleep(0.5)  # what the joining set going comes to rest
    start = calls(own_server)
    await asyncio.sleep(6.0)  # what is measured is a rate in real time, over more than one interval of 5 s
    assert count(own_server, "connected_clients") - before == 3
    rate = (calls(own_server) - start) / 6.0
    print(f"6 watches and 3 sinks, idle: {rate:.2f} commands/s on 3 connections")
    assert rate <= 2.0
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


def told(number: int | None) -> int:
    assert number is not None
    return number


async def test_an_idle_node_is_quiet_whatever_the_number_of_nodes(own_server: Server, connect: Connect) -> None:
    """Pools of 1, 3 and 10 nodes with default options, each on a backend of its own, counted at the socket as they send."""
    floor = RedisFloor(await connect(own_server.url))
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(floor.aclose)
        pools: dict[int, list[tuple[RedisBackend, Node]]] = {}
        for size in (1, 3, 10):
            name = fresh()
            backends = [await connect(own_server.url) for _ in range(size)]
            pools[size] = [(backend, await stack.enter_async_context(Node(backend, name))) for backend in backends]
        everybody = [one for pool in pools.values() for one in pool]
        await asyncio.gather(*(node.add_worker(Recorder()) for _, node in everybody))
        for size, pool in pools.items():
            await until(lambda size=size, pool=pool: all(len(node.pool_workers()) == size for _, node in pool))  # type: ignore[misc]
        await asyncio.sleep(1.0)  # joining rings a few more bells
        before = [told(await floor.commands(backend)) for backend, _ in everybody]
        await asyncio.sleep(IDLE)
        after = [told(await floor.commands(backend)) for backend, _ in everybody]
        sent = {id(node): late - early for (_, node), early, late in zip(everybody, before, after, strict=True)}
        for size, pool in pools.items():
            rates = [sent[id(node)] / IDLE for _, node in pool]
            connections = [told(await floor.connections(backend)) for backend, _ in pool]
            print(
                f"{size} idle: {min(rates):.2f} to {max(rates):.2f} commands/s on {max(connections)} connections each"
            )
            assert 0 < min(rates) <= max(rates) <= 2.0
            assert max(connections) <= 3


async def test_connections_are_opened_when_they_are_needed(own_server: Server, connect: Connect) -> None:
    before = count(own_server, "connected_clients")
    backend = await connect(own_server.url)
    space = backend.namespace(fresh())
    await space.map("m").set("k", b"v")
    assert count(own_server, "connected_clients") - before == 1
    watch = space.map("m").watch()
    await anext(watch)
    async with asyncio.timeout(5):
        while count(own_server, "connected_clients") - before != 2:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("used", [True, False])
async def test_closing_is_quick_and_leaves_no_task(own_server: Server, connect: Connect, used: bool) -> None:
    tasks = len(asyncio.all_tasks())
    backend = await connect(own_server.url)
    if used:
        space = backend.namespace(fresh())
        watch = space.map("m").watch()
        await anext(watch)
        stream = space.stream("s")
        await stream.create()
        sink = await stream.sink("g")
        waiting = [asyncio.ensure_future(anext(watch)), asyncio.ensure_future(sink.receive())]
        await until(lambda: blocked(own_server, "xread") and blocked(own_server, "xreadgroup"))
    started = asyncio.get_running_loop().time()
    await backend.aclose()
    await backend.aclose()
    assert asyncio.get_running_loop().time() - started < 2.5, "not a block's duration, which is 5 s"
    if used:
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(result).__name__ for result in results] == ["StopAsyncIteration", "BackendUnavailable"]
    assert len(asyncio.all_tasks()) - tasks <= 1, "the finished closing task at most"
