"""Chaos, with figures printed: connections, members and the server itself are killed while work goes on."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from corepool.driver import Change, NewEvent, Snapshot
from corepool.errors import BackendUnavailable, OutcomeUnknown
from corepool_redis.backend import RedisBackend, RedisNamespace
from corepool_redis.keys import StreamKeys, scope_of
from tests.redis.conftest import Connect, fresh
from tests.redis.test_failover import Replica
from tests.servers.valkey import Server, command
from tests.waiting import until

pytestmark = pytest.mark.timeout(120)
REPOSITORY = Path(__file__).parents[2]
KILLS = 200
"""Work goes on until there were so many."""


async def test_twenty_thousand_writes_over_two_hundred_kills(own_server: Server, connect: Connect) -> None:
    backends = [await connect(own_server.url) for _ in range(4)]
    reader = await connect(own_server.url)
    name, chance = fresh(), random.Random(1)
    replicas = [Replica(reader.namespace(name).map("m").watch()) for _ in range(2)]
    log: list[int] = []
    watch = reader.namespace(name).map("m").watch()

    async def note() -> None:
        async for event in watch:
            if isinstance(event, Change):
                log.append(event.revision)
            elif isinstance(event, Snapshot) and log:
                log.append(-event.revision)

    noting = asyncio.ensure_future(note())
    unknown = refused = written = kills = 0

    async def write(space: RedisNamespace) -> None:
        nonlocal unknown, refused, written
        items = space.map("m")
        for n in itertools.count():
            if n >= 5000 and kills >= KILLS:
                return
            written += 1
            try:
                await items.set(f"k{chance.randrange(4000)}", b"%d" % n)
            except OutcomeUnknown:
                unknown += 1
            except BackendUnavailable:
                refused += 1

    writing = asyncio.gather(*(write(backend.namespace(name)) for backend in backends))
    while kills < KILLS:
        clients = command(own_server.port, "CLIENT", "LIST", "TYPE", "normal")
        assert isinstance(clients, bytes)
        lines = [line for line in clients.decode().splitlines() if "name=corepool-" in line]
        for line in chance.sample(lines, min(2, len(lines))):
            with contextlib.suppress(RuntimeError):
                kills += int(str(command(own_server.port, "CLIENT", "KILL", "ID", line.split()[0].removeprefix("id="))))
        while written < 20_000 * kills / KILLS:  # evenly over all writes
            await asyncio.sleep(0.001)
    await writing
    items = reader.namespace(name).map("m")
    last = await items.set("last", b"")
    stored = {entry.key: entry.value async for entry in items.scan()}
    for replica in replicas:
        await replica.reaches(last.revision)
        assert replica.state == stored
    while not log or abs(log[-1]) < last.revision:
        await asyncio.sleep(0.01)
    gaps = sum(1 for a, b in itertools.pairwise(log) if b > 0 and b != abs(a) + 1)
    snapshots = [*(replica.snapshots for replica in replicas), 1 + sum(1 for one in log if one < 0)]  # of each watch
    print(f"{written} writes, {kills} kills: {unknown} unknown, {refused} refused, snapshots {snapshots}, {gaps} gaps")
    assert gaps == 0
    assert max(snapshots) <= 10
    assert kills >= KILLS
    assert written >= 20_000
    for task in (noting, *(replica._task for replica in replicas)):
        task.cancel()
    await asyncio.gather(noting, *(replica._task for replica in replicas), return_exceptions=True)


def crash(backend: RedisBackend) -> None:
    """End it as SIGKILL would: its sockets break, nothing of it goes on, and it tells nobody."""
    (hub,) = backend._hubs.values()
    for task in (*hub.sinks._tasks, *hub.sinks._asides):
        task.cancel()
    hub.sinks._sinks.clear()  # so that closing, at the end of the test, does not leave in order after all
    hub.sinks._reader.close()
    hub.link.close()


async def test_six_thousand_events_with_two_hundred_members_crashing(own_server: Server, connect: Connect) -> None:
    """Members in this process: cheap enough to crash 200 times. With real processes: the next test."""
    writer = await connect(own_server.url)
    space = writer.namespace(fresh())
    stream = space.stream("s")
    await stream.create()
    seen: list[bytes] = []
    again = sent = crashes = 0

    async def work(backend: RedisBackend) -> None:
        nonlocal again
        sink = await backend.namespace(space.name).stream("s").sink("g", ack_wait=1.0)
        while True:
            deliveries = await sink.receive(8)
            seen.extend(delivery.event.payload for delivery in deliveries)  # the effect first, then the ack
            again += sum(1 for delivery in deliveries if delivery.attempt > 1)
            await sink.ack([delivery.receipt for delivery in deliveries])

    async def start() -> tuple[RedisBackend, asyncio.Task[None]]:
        backend = await connect(own_server.url)
        return backend, asyncio.ensure_future(work(backend))

    async def write() -> None:
        nonlocal sent
        while sent < 6000 or crashes < KILLS:
            await asyncio.gather(*(stream.append(NewEvent("e", b"%d" % (sent + i))) for i in range(10)))
            sent += 10
            await asyncio.sleep(0.005)

    alive = [await start() for _ in range(3)]
    writing, dead = asyncio.ensure_future(write()), list[asyncio.Task[None]]()
    while crashes < KILLS:
        backend, task = alive.pop(0)
        crash(backend)
        task.cancel()
        dead.append(task)
        alive.append(await start())
        before = len(seen)
        await until(lambda before=before: len(seen) >= before + 12)  # type: ignore[misc]
        crashes += 1
    await writing
    async with asyncio.timeout(30):
        while await stream.length():
            await asyncio.sleep(0.02)
    lost, doubled = sent - len(set(seen)), len(seen) - len(set(seen))
    print(f"{sent} events, {crashes} members crashed: {lost} lost, {doubled} doubled, {again} redelivered")
    assert lost == 0
    assert doubled <= again <= crashes * 8, "only what a crashed member held comes again"
    rows = command(own_server.port, "XINFO", "CONSUMERS", StreamKeys.of(scope_of(space.name), "s").events, "g0")
    assert isinstance(rows, list)
    async with asyncio.timeout(3):
        while len(rows) > 4:  # the three that live, and nobody of the dead
            await asyncio.sleep(0.05)
            rows = command(own_server.port, "XINFO", "CONSUMERS", StreamKeys.of(scope_of(space.name), "s").events, "g0")
            assert isinstance(rows, list)
    for _, task in alive:
        task.cancel()
    await asyncio.gather(*dead, *(task for _, task in alive), return_exceptions=True)


MEMBER = """
import asyncio, sys
from corepool_redis.backend import open_redis
async def main(url, name):
    backend = await open_redis(url, {})
    sink = await backend.namespace(name).stream("s").sink("g", ack_wait=1.0)
    while True:
        deliveries = await sink.receive(20)
        for delivery in deliveries:  # the effect first, then the ack: at least once
            print(delivery.event.payload.decode(), delivery.attempt, flush=True)
        await sink.ack([delivery.receipt for delivery in deliveries])
asyncio.run(main(*sys.argv[1:]))
"""


async def test_no_event_is_lost_with_a_member_that_is_killed(own_server: Server, connect: Connect) -> None:
    """Processes, killed with SIGKILL in the middle of their work, one after the other."""
    backend = await connect(own_server.url)
    space = backend.namespace(fresh())
    stream = space.stream("s")
    await stream.create()
    seen: list[tuple[int, int]] = []
    tasks: set[asyncio.Task[None]] = set()
    processes: list[asyncio.subprocess.Process] = []

    async def listen(process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            words = line.split()
            if len(words) == 2 and line.endswith(b"\n"):
                seen.append((int(words[0]), int(words[1])))

    async def start() -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", MEMBER, own_server.url, space.name),
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
        processes.append(process)
        tasks.add(asyncio.ensure_future(listen(process)))
        return process

    sent = kills = 0

    async def write() -> None:
        nonlocal sent
        while sent < 6000 or kills < 12:
            await asyncio.gather(*(stream.append(NewEvent("e", b"%d" % (sent + i))) for i in range(100)))
            sent += 100
            await asyncio.sleep(0.05)

    try:
        alive = [await start() for _ in range(3)]
        writing = asyncio.ensure_future(write())
        while kills < 12:
            before = len(seen)
            await until(lambda before=before: len(seen) >= before + 50)  # type: ignore[misc]
            victim = alive.pop(0)
            victim.send_signal(signal.SIGKILL)
            kills += 1
            alive.append(await start())
        await writing
        async with asyncio.timeout(60):
            while len({number for number, _ in seen}) < sent or await stream.length():
                await asyncio.sleep(0.05)
        doubled = len(seen) - sent
        again = sum(1 for _, attempt in seen if attempt > 1)
        print(f"{sent} events, {kills} members killed: 0 lost, {doubled} doubled, {again} redelivered")
        assert doubled <= again <= kills * 20 * 2, "doubles only after a crash, and no more than a batch of each"
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await asyncio.gather(*(process.wait() for process in processes), *tasks)


async def test_the_server_killed_and_restarted_loses_nothing_that_was_acknowledged(
    own_server: Server, connect: Connect
) -> None:
    backend, watcher = await connect(own_server.url, timeout=2.0), await connect(own_server.url, timeout=2.0)
    space = backend.namespace(fresh())
    items, stream = space.map("m"), space.stream("s")
    await stream.create()
    replica = Replica(watcher.namespace(space.name).map("m").watch())
    acked: set[int] = set()
    unsure: set[int] = set()

    async def write(worker: int) -> None:
        for n in range(worker, 1000, 8):
            while True:
                try:
                    await items.set(f"k{n}", b"")
                    await stream.append(NewEvent("e", b"%d" % n))
                    acked.add(n)
                except BackendUnavailable:
                    await asyncio.sleep(0.02)
                    continue
                except OutcomeUnknown:
                    unsure.add(n)
                break
            await asyncio.sleep(0.005)

    writing = asyncio.gather(*(write(worker) for worker in range(8)))
    for _ in range(3):
        before = len(acked)
        await until(lambda before=before: len(acked) > before + 100)  # type: ignore[misc]
        own_server.restart()
    await writing
    stored = {entry.key async for entry in items.scan()}
    events = {int(event.payload) for event in await stream.range(limit=5000)}
    lost = [n for n in acked if f"k{n}" not in stored or n not in events]
    print(f"{len(acked)} acknowledged over 3 restarts, {len(unsure)} unknown: {len(lost)} lost")
    assert lost == []
    last = await items.set("last", b"")
    await replica.reaches(last.revision)
    assert set(replica.state) == stored | {"last"}
    assert replica.generation == 0, "nothing was lost, so the history is the same"
    await replica.stop()
