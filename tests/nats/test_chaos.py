"""Chaos, with figures printed: servers, connections and members are killed while work goes on."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from corepool.driver import (
    ABSENT,
    Append,
    Appended,
    Change,
    Cleared,
    Delivery,
    MapStore,
    NewEvent,
    SetKey,
    Snapshot,
    Watch,
)
from corepool.errors import BackendUnavailable, OutcomeUnknown
from corepool_nats.backend import NatsBackend
from tests.nats.conftest import Open, Start, space_of
from tests.servers.nats import NatsCluster, NatsServer

pytestmark = pytest.mark.timeout(240)

WRITERS = 4
WRITES = 20_000
KILLS = 10
CUTS = 100
EVENTS = 6_000
MEMBER_KILLS = 100
DISPATCHES = 1_000


class Replica:
    """Follows a watch and checks that it never goes back."""

    def __init__(self, watch: Watch) -> None:
        self.state: dict[str, bytes] = {}
        self.revision = -1
        self.snapshots = 0
        self.history: list[tuple[int, str, bytes | None]] = []
        self._watch = watch
        self.task = asyncio.ensure_future(self._follow())

    async def _follow(self) -> None:
        async for event in self._watch:
            if isinstance(event, Snapshot):
                assert event.generation == 0, "nothing was lost"
                assert event.revision >= self.revision
                self.snapshots += 1
                self.state = {entry.key: entry.value for entry in event.entries}
            else:
                assert event.revision > self.revision, f"{event.revision} after {self.revision}"
                if isinstance(event, Cleared):
                    self.state = {}
                elif event.value is None:
                    self.state.pop(event.key, None)
                else:
                    self.state[event.key] = event.value
                if isinstance(event, Change):
                    self.history.append((event.revision, event.key, event.value))
            self.revision = event.revision

    async def reaches(self, revision: int, within: float = 30) -> None:
        end = time.monotonic() + within
        while self.revision < revision:
            assert not self.task.done(), self.task
            assert time.monotonic() < end, f"the replica stays at {self.revision}, the map is at {revision}"
            await asyncio.sleep(0.01)


def cut(backend: NatsBackend) -> bool:
    """End the backend's connection, as a broken network would."""
    link = backend._client.connections._link
    if link is None or link.ended.is_set():
        return False
    link.kill("cut by the test")
    return True


async def test_writes_over_kills_and_cuts(start: Start, open_nats: Open, name: str) -> None:
    server = start()
    backends = [await open_nats(server, heartbeat=0.5) for _ in range(WRITERS)]
    reader = await open_nats(server, heartbeat=0.5)
    replicas = [Replica(each.namespace(name).map("m").watch()) for each in (reader, reader, backends[0])]
    acknowledged: dict[str, tuple[int, bytes | None]] = {}
    revisions: set[int] = set()
    unknown = refused = written = 0
    chance = random.Random(7)

    async def write(number: int, m: MapStore) -> None:
        """Each writer has keys of its own: what it was told last is what must stand there."""
        nonlocal unknown, refused, written
        doubtful: set[str] = set()
        for n in range(WRITES // WRITERS):
            key, value = f"w{number}-{chance.randrange(300)}", b"%d" % n
            remove = chance.random() < 0.1
            try:
                commit = await (m.delete(key) if remove else m.set(key, value))
            except OutcomeUnknown:
                unknown += 1
                doubtful.add(key)
                acknowledged.pop(key, None)
            except BackendUnavailable:
                refused += 1
            else:
                written += 1
                doubtful.discard(key)
                if not remove or commit.previous is not None:
                    assert commit.revision not in revisions, "two commits with one revision"
                    revisions.add(commit.revision)
                acknowledged[key] = (commit.revision, None if remove else value)
            if chance.random() < 0.002:
                await asyncio.sleep(0)

    began = time.monotonic()
    writing = asyncio.gather(*(write(n, each.namespace(name).map("m")) for n, each in enumerate(backends)))
    kills = cuts = 0
    while not writing.done():
        done = (written + unknown + refused) / WRITES
        if kills < KILLS and done > (kills + 0.5) / (KILLS + 1):
            await asyncio.to_thread(server.restart)
            kills += 1
        if cuts < CUTS and done > cuts / CUTS:
            cuts += cut(chance.choice([*backends, reader]))
        await asyncio.sleep(0.002)
    await writing
    took = time.monotonic() - began
    m = reader.namespace(name).map("m")
    last = await m.set("last", b"")
    stored = {entry.key: entry.value async for entry in m.scan()}
    wrong = {key: (known, stored.get(key)) for key, (_, known) in acknowledged.items() if stored.get(key) != known}
    for replica in replicas:
        await replica.reaches(last.revision)
        assert replica.state == stored, "a replica differs from the store"
    print(
        f"{WRITES} writes by {WRITERS} writers in {took:.0f} s over {kills} kills of the server and {cuts} cut connections: "
        f"{written} acknowledged, {unknown} unknown, {refused} refused; {len(wrong)} keys wrong, "
        f"{sum(replica.snapshots for replica in replicas)} snapshots by 3 watches, all equal to the store"
    )
    assert not wrong, wrong
    assert (kills, cuts) == (KILLS, CUTS)
    shared = set(replicas[0].history) & set(replicas[1].history)
    assert [each for each in replicas[0].history if each in shared] == [
        each for each in replicas[1].history if each in shared
    ], "two replicas saw one order"


async def test_events_over_kills_of_members(start: Start, open_nats: Open, name: str) -> None:
    server = start()
    producer = await open_nats(server)
    stream = producer.namespace(name).stream("s")
    await stream.create()
    got: set[str] = set()
    done: set[str] = set()
    doubled = again = killed = 0

    async def consume(backend: NatsBackend) -> None:
        nonlocal doubled, again
        sink = await backend.namespace(name).stream("s").sink("workers", ack_wait=1.0)
        while True:
            deliveries: list[Delivery] = await sink.receive(20)
            texts = [delivery.event.payload.decode() for delivery in deliveries]
            doubled += len(done.intersection(texts))
            again += len(got.intersection(texts))
            got.update(texts)
            await asyncio.sleep(0)
            try:
                acks = await sink.ack([delivery.receipt for delivery in deliveries])
            except OutcomeUnknown:
                continue  # done, or given out again
            done.update(text for text, acked in zip(texts, acks, strict=True) if acked)

    async def member() -> tuple[NatsBackend, asyncio.Task[None]]:
        backend = await open_nats(server)
        return backend, asyncio.ensure_future(consume(backend))

    async def produce() -> None:
        for number in range(EVENTS):
            await stream.append(NewEvent("e", b"%d" % number))

    began = time.monotonic()
    members = [await member() for _ in range(4)]
    producing = asyncio.ensure_future(produce())
    chance = random.Random(3)
    while not producing.done() or await stream.length():
        assert time.monotonic() - began < 150, f"{EVENTS - len(got)} events never came"
        if killed < MEMBER_KILLS and len(got) > killed * EVENTS // MEMBER_KILLS:
            backend, task = members.pop(chance.randrange(len(members)))
            backend._client.connections._link.kill("killed by the test")  # type: ignore[union-attr]  # no goodbye
            task.cancel()
            await asyncio.wait([task])
            await backend.aclose()
            killed += 1
            members.append(await member())
        await asyncio.sleep(0.002)
    await producing
    for _, task in members:
        task.cancel()
        await asyncio.wait([task])
    left = await stream.length()
    print(
        f"{EVENTS} events, {killed} of the members killed, in {time.monotonic() - began:.0f} s: "
        f"{EVENTS - len(got)} lost, {again} given out again, {doubled} of these after an ack that said True, "
        f"{left} left in the stream"
    )
    assert killed == MEMBER_KILLS
    assert got == {str(number) for number in range(EVENTS)}
    assert doubled == 0, "an event was delivered again after its ack said True"
    assert left == 0


async def leader_of(cluster: NatsCluster, backend: NatsBackend, asset: str) -> NatsServer:
    from tests.nats.test_nats_maps import call

    space = next(iter(backend._namespaces.values()))
    info = await call(space, f"STREAM.INFO.{asset}")
    return cluster.server(info["cluster"]["leader"])


async def test_a_leader_is_killed_amid_dispatches(cluster: NatsCluster, open_nats: Open, name: str) -> None:
    """Record, payload and event of a job, in one commit; the leader of the records dies in the middle of them."""
    dispatchers = [await open_nats(cluster, replicas=3, timeout=30) for _ in range(4)]
    worker = await open_nats(cluster, replicas=3, timeout=30)
    space = space_of(worker, name)
    queue = space.stream("queue")
    await queue.create()
    await space.map("jobs").set("warm", b"up")
    sink = await queue.sink("nodes", ack_wait=10)
    heard: dict[str, list[int | None]] = {}
    outcomes: dict[str, str] = {}

    async def listen() -> None:
        while True:
            deliveries = await sink.receive(50)
            for delivery in deliveries:
                heard.setdefault(delivery.event.payload.decode(), []).append(delivery.event.stamp)
            try:
                await sink.ack([delivery.receipt for delivery in deliveries])
            except OutcomeUnknown:
                continue

    async def dispatch(number: int) -> None:
        key = f"job{number}"
        each = dispatchers[number % 4].namespace(name)
        try:
            result = await each.commit(
                [
                    SetKey("jobs", key, b"%d" % number, ABSENT),
                    SetKey("payloads", key, b"x" * 200),
                    Append("queue", NewEvent("start", key.encode()), stamp=0),
                ]
            )
        except OutcomeUnknown:
            outcomes[key] = "unknown"
        except BackendUnavailable:
            outcomes[key] = "refused"
        else:
            assert result.stopped is None, f"{key}: {result}"
            assert isinstance(result.results[2], Appended)
            outcomes[key] = "done"

    listening = asyncio.ensure_future(listen())
    leader = await leader_of(cluster, worker, space.assets.maps.asset)
    began = time.monotonic()
    slowest = 0.0
    gate = asyncio.Semaphore(16)

    async def one(number: int) -> None:
        nonlocal slowest
        async with gate:
            if number == DISPATCHES // 2:
                leader.kill()
            started = time.monotonic()
            await dispatch(number)
            slowest = max(slowest, time.monotonic() - started)

    try:
        await asyncio.gather(*(one(number) for number in range(DISPATCHES)))
        took = time.monotonic() - began
        leader.start()
        done = {key for key, outcome in outcomes.items() if outcome == "done"}
        end = time.monotonic() + 40
        while not done <= set(heard):
            assert not listening.done(), listening
            assert time.monotonic() < end, f"{len(done - set(heard))} acknowledged jobs were never heard of"
            await asyncio.sleep(0.05)
        entries = await space.map("jobs").get_many([f"job{number}" for number in range(DISPATCHES)])
        payloads = await space.map("payloads").get_many([f"job{number}" for number in range(DISPATCHES)])
    finally:
        leader.start()
        listening.cancel()
        await asyncio.wait([listening])
    missing = {key for key in done if key not in entries or key not in payloads}
    stamps = {key: set(heard[key]) for key in done}
    doubled = {key for key, seen in stamps.items() if len(seen) > 1}
    print(
        f"{DISPATCHES} dispatches, the leader killed in the middle, {took:.0f} s: {len(done)} done, "
        f"{sum(outcome == 'unknown' for outcome in outcomes.values())} unknown, "
        f"{sum(outcome == 'refused' for outcome in outcomes.values())} refused, {len(missing)} lost, "
        f"{len(doubled)} doubled; the slowest call took {slowest:.1f} s"
    )
    assert len(outcomes) == DISPATCHES, "every call returned"
    assert not missing
    assert not doubled
    assert all(entries[key].revision in stamps[key] for key in done)
