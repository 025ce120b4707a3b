"""Sentinel and cluster: the primary moves while watches, sinks and writers run."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from corepool.driver import Change, Cleared, NewEvent, Snapshot
from corepool.errors import BackendUnavailable, OutcomeUnknown
from corepool_redis.backend import RedisBackend, RedisNamespace, open_redis
from corepool_redis.keys import scope_of
from corepool_redis.routes import slot_of
from corepool_redis.watch import RedisWatch
from tests.redis.conftest import fresh
from tests.servers.valkey import Server, binaries, command, running, start_cluster, start_sentinel
from tests.waiting import until

pytestmark = pytest.mark.timeout(90)


class Replica:
    """What a watch makes of a map."""

    def __init__(self, watch: RedisWatch) -> None:
        self.state: dict[str, bytes] = {}
        self.revision = self.generation = self.snapshots = 0
        self._task = asyncio.ensure_future(self._follow(watch))

    async def _follow(self, watch: RedisWatch) -> None:
        async for event in watch:
            match event:
                case Snapshot():
                    assert event.revision >= self.revision or event.generation > self.generation
                    self.state = {entry.key: entry.value for entry in event.entries}
                    self.generation = event.generation
                    self.snapshots += 1
                case Change(key=key, value=value):
                    assert event.revision > self.revision
                    if value is None:
                        self.state.pop(key, None)
                    else:
                        self.state[key] = value
                case Cleared():
                    self.state.clear()
            self.revision = event.revision

    async def reaches(self, revision: int, within: float = 15.0) -> None:
        async with asyncio.timeout(within):
            while self.revision < revision:
                if self._task.done():
                    self._task.result()
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@contextlib.asynccontextmanager
async def opened(url: str, count: int = 2) -> AsyncIterator[list[RedisBackend]]:
    backends = [await open_redis(url, {"timeout": 1.0, "connect_timeout": 2.0, "interval": 1.0}) for _ in range(count)]
    try:
        yield backends
    finally:
        await asyncio.gather(*(backend.aclose() for backend in backends))


async def write_for(space: RedisNamespace, seconds: float, acked: dict[str, bytes]) -> float:
    """Write until the time is up; returns the longest time without an acknowledged write."""
    items, number, longest = space.map("m"), 0, 0.0
    start = last = time.monotonic()
    while time.monotonic() - start < seconds:
        number += 1
        key, value = f"k{number % 50}", b"%d" % number
        try:
            await items.set(key, value)
        except (BackendUnavailable, OutcomeUnknown):
            await asyncio.sleep(0.01)
            continue
        longest = max(longest, time.monotonic() - last)
        last = time.monotonic()
        acked[key] = value
        await asyncio.sleep(0.001)
    return longest


async def compare(space: RedisNamespace, replica: Replica) -> None:
    last = await space.map("m").set("last", b"")
    await replica.reaches(last.revision)
    assert replica.state == {entry.key: entry.value async for entry in space.map("m").scan()}


@pytest.mark.parametrize("death", ["crash", "isolation"])
async def test_sentinel_failover_with_a_watch_a_sink_and_a_writer(binary: Path, tmp_path: Path, death: str) -> None:
    servers, sentinels = start_sentinel(binary, tmp_path)
    with running([*sentinels, *servers]):
        hosts = ",".join(f"127.0.0.1:{one.port}" for one in sentinels)
        async with opened(f"redis+sentinel://{hosts}/pool/0") as (one, two):
            space, other = one.namespace(name := fresh()), two.namespace(name)
            replica = Replica(other.map("m").watch())
            await space.stream("s").create()
            sink = await other.stream("s").sink("g", ack_wait=5.0)
            await space.stream("s").append(NewEvent("e", b"before"))
            assert (await asyncio.wait_for(sink.receive(), 5))[0].event.payload == b"before"
            acked: dict[str, bytes] = {}
            writing = asyncio.ensure_future(write_for(space, 8.0, acked))
            await until(lambda: len(acked) > 10)
            if death == "crash":
                servers[0].kill()
            else:
                servers[0].pause()  # its sockets stay open: only the watchdog finds out
            gap = await writing
            print(f"{death}: {len(acked)} keys, {gap:.1f} s without a write, {replica.snapshots} snapshots")
            assert gap < 7, "writing went on after the failover"
            await compare(other, replica)
            await append(space, b"after")
            async with asyncio.timeout(20):
                while b"after" not in [delivery.event.payload for delivery in await sink.receive(8)]:
                    pass
            await replica.stop()


async def append(space: RedisNamespace, payload: bytes) -> None:
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(BackendUnavailable):
                await space.stream("s").append(NewEvent("e", payload))
                return


async def test_a_primary_that_becomes_a_replica_refuses_and_is_left(tmp_path: Path) -> None:
    servers, sentinels = start_sentinel(binaries()["valkey"], tmp_path)  # Sentinels take their time: once is enough
    with running([*sentinels, *servers]):
        hosts = ",".join(f"127.0.0.1:{one.port}" for one in sentinels)
        async with opened(f"redis+sentinel://{hosts}/pool", 1) as (backend,):
            space = backend.namespace(fresh())
            replica = Replica(space.map("m").watch())
            await space.map("m").set("k", b"v")
            command(sentinels[0].port, "SENTINEL", "FAILOVER", "pool")  # orderly: nobody dies
            async with asyncio.timeout(40):
                while not is_replica(servers[0]):
                    await write_for(space, 0.2, {})
            await write_for(space, 1.0, acked := {})
            assert acked
            await compare(space, replica)
            await replica.stop()


def is_replica(server: Server) -> bool:
    role = command(server.port, "ROLE")
    return isinstance(role, list) and role[0] == b"slave"


async def test_no_sentinel_knows_the_service(binary: Path, tmp_path: Path) -> None:
    servers, sentinels = start_sentinel(binary, tmp_path, sentinels=1)
    with running([*sentinels, *servers]), pytest.raises(BackendUnavailable, match="no such service"):
        await open_redis(f"redis+sentinel://127.0.0.1:{sentinels[0].port}/other", {"connect_timeout": 0.5})


# --- cluster ---------------------------------------------------------------------------------------------------------


def nodes_of(servers: list[Server]) -> dict[str, Server]:
    found: dict[str, Server] = {}
    for server in servers:
        name = command(server.port, "CLUSTER", "MYID")
        assert isinstance(name, bytes)
        found[name.decode()] = server
    return found


def owner(servers: list[Server], slot: int) -> Server:
    rows = command(servers[0].port, "CLUSTER", "SLOTS")
    assert isinstance(rows, list)
    (port,) = [row[2][1] for row in rows if row[0] <= slot <= row[1]]
    return next(server for server in servers if server.port == port)


async def migrate(servers: list[Server], slot: int, target: Server, pause: float = 0.05) -> None:
    """Move a slot with all its keys, slowly enough for calls to come in between: so many seconds for a key."""
    names = {server.port: name for name, server in nodes_of(servers).items()}
    source = owner(servers, slot)
    command(target.port, "CLUSTER", "SETSLOT", slot, "IMPORTING", names[source.port])
    command(source.port, "CLUSTER", "SETSLOT", slot, "MIGRATING", names[target.port])
    while True:
        keys = command(source.port, "CLUSTER", "GETKEYSINSLOT", slot, 1)
        assert isinstance(keys, list)
        if not keys:
            break
        with contextlib.suppress(RuntimeError):  # gone meanwhile
            command(source.port, "MIGRATE", "127.0.0.1", target.port, keys[0], 0, 5000)
        await asyncio.sleep(pause)  # a large slot takes its time: calls come while some keys are here and some there
    for server in (target, source, *servers):
        command(server.port, "CLUSTER", "SETSLOT", slot, "NODE", names[target.port])


async def test_a_cluster_serves_namespaces_on_all_its_nodes(binary: Path, tmp_path: Path) -> None:
    servers: list[Server] = []
    with running(servers):
        servers += start_cluster(binary, tmp_path)
        async with opened(f"redis+cluster://127.0.0.1:{servers[0].port}", 1) as (backend,):
            used: set[int] = set()
            for n in range(12):
                space = backend.namespace(f"{n}-{fresh()}")
                used.add(owner(servers, slot_of(scope_of(space.name))).port)
                await space.map("m").set("k", b"v")
                stream = space.stream("s")
                await stream.append(NewEvent("e", b"x"))
                sink = await stream.sink("g")
                (delivery,) = await asyncio.wait_for(sink.receive(), 5)
                assert await sink.ack([delivery.receipt]) == [True]
                watch = space.map("m").watch()
                assert isinstance(await asyncio.wait_for(anext(watch), 5), Snapshot)
                await watch.aclose()
                await sink.aclose()
                await space.settle()
            assert len(used) == 3


async def test_a_slot_moves_while_everything_runs(binary: Path, tmp_path: Path) -> None:
    servers: list[Server] = []
    with running(servers):
        servers += start_cluster(binary, tmp_path)
        async with opened(f"redis+cluster://127.0.0.1:{servers[1].port}") as (one, two):
            space, other = one.namespace(name := fresh()), two.namespace(name)
            replica = Replica(other.map("m").watch())
            await space.stream("s").create()
            sink = await other.stream("s").sink("g", ack_wait=10.0)
            got: list[bytes] = []

            async def receive() -> None:
                while True:
                    got.extend(delivery.event.payload for delivery in await sink.receive(16))

            receiving = asyncio.ensure_future(receive())
            acked: dict[str, bytes] = {}
            writing = asyncio.ensure_future(write_for(space, 5.0, acked))
            sent: list[bytes] = []

            async def send() -> None:
                while not writing.done():
                    payload = b"%d" % len(sent)
                    with contextlib.suppress(BackendUnavailable):
                        await space.stream("s").append(NewEvent("e", payload))
                        sent.append(payload)
                    await asyncio.sleep(0.01)

            sending = asyncio.ensure_future(send())
            slot = slot_of(scope_of(name))
            for _ in range(2):
                before = len(sent)
                await until(lambda before=before: len(sent) > before + 20)  # type: ignore[misc]
                here = owner(servers, slot)
                await migrate(servers, slot, next(server for server in servers if server is not here))
            gap = await writing
            await sending
            print(
                f"two moves of the slot: {len(acked)} keys, {gap:.2f} s without a write, {replica.snapshots} snapshots"
            )
            await compare(other, replica)
            stored = {entry.key: entry.value async for entry in space.map("m").scan()}
            assert all(stored[key] == value for key, value in acked.items()), "an acknowledged write was lost"
            async with asyncio.timeout(15):
                while set(got) != set(sent):
                    await asyncio.sleep(0.05)
            assert replica.generation == 0
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)
            await replica.stop()
