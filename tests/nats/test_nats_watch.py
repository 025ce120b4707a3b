"""Watches on NATS: whatever ends a feed, the watch goes on, and never with half a clear."""

from __future__ import annotations

import asyncio
import time

import pytest

from corepool.driver import Change, MapStore, Set, Snapshot, Watch, WatchEvent
from corepool_nats import watch as watch_module
from corepool_nats.feed import Feed
from corepool_nats.link import Message
from corepool_nats.mapfeed import MapFeed
from corepool_nats.namespace import NatsNamespace
from tests.nats.conftest import Open, Start, space_of
from tests.nats.relay import Relay
from tests.nats.test_nats_maps import call
from tests.servers.nats import NatsServer
from tests.waiting import until


async def next_event(watch: Watch, within: float = 10.0) -> WatchEvent:
    async with asyncio.timeout(within):
        return await anext(watch)


async def reaches(watch: Watch, store: MapStore, within: float = 10.0) -> float:
    """Write, and read until the watch has it; how long the watch took."""
    commit = await store.set("probe", b"x")
    began = time.monotonic()
    while (await next_event(watch, within)).revision < commit.revision:
        pass
    return time.monotonic() - began


async def test_a_deleted_consumer_is_replaced(server: NatsServer, open_nats: Open, name: str) -> None:
    backend = await open_nats(server, heartbeat=0.4)
    space = space_of(backend, name)
    m = space.map("m")
    watch = m.watch()
    assert isinstance(await next_event(watch), Snapshot)
    asset = space.assets.maps.asset
    consumers = (await call(space, f"CONSUMER.NAMES.{asset}"))["consumers"]
    assert len(consumers) == 1
    await call(space, f"CONSUMER.DELETE.{asset}.{consumers[0]}")
    await m.set("k", b"v")
    began = time.monotonic()
    event = await next_event(watch)
    assert isinstance(event, Snapshot)
    assert [entry.key for entry in event.entries] == ["k"]
    assert time.monotonic() - began < 3, "noticed within 2.5 heartbeats"


async def test_kill_and_restart_of_the_server(start: Start, open_nats: Open, name: str) -> None:
    server = start()
    m = (await open_nats(server)).namespace(name).map("m")
    watch = m.watch()
    await next_event(watch)
    for _ in range(5):
        await m.set("k", b"v")
        server.restart()
        took = await reaches(watch, m)
        print(f"the watch had a write {took * 1000:.0f} ms after it was acknowledged by the restarted server")
        assert took < 5


async def test_a_server_that_does_not_answer_is_left(start: Start, open_nats: Open, name: str) -> None:
    server = start()
    backend = await open_nats(server, heartbeat=0.4, ping=0.3, timeout=20)
    m = backend.namespace(name).map("m")
    watch = m.watch()
    await next_event(watch)
    server.pause()
    writing = asyncio.create_task(m.set("k", b"v"))
    await until(lambda: backend._client.connections._link is None)
    server.resume()
    assert (await writing).applied
    assert await reaches(watch, m) < 5


async def no_consumers(space: NatsNamespace) -> bool:
    return not (await call(space, f"CONSUMER.NAMES.{space.assets.maps.asset}"))["consumers"]


async def test_nothing_is_kept_for_a_watch_that_is_gone(server: NatsServer, open_nats: Open, name: str) -> None:
    backend = await open_nats(server)
    space = space_of(backend, name)
    for _ in range(5):
        watch = space.map("m").watch()
        await next_event(watch)
        await watch.aclose()
        assert [entry async for entry in space.map("m").scan()] == []
    await until(lambda: no_consumers(space), otherwise=lambda: "consumers of closed watches are left")


async def test_consumers_of_a_vanished_process_disappear(
    relay: Relay, server: NatsServer, open_nats: Open, name: str
) -> None:
    vanishing = await open_nats(relay)
    watch = vanishing.namespace(name).map("m").watch()
    await next_event(watch)
    relay.refuse = True
    relay.cut()  # it is not heard of again
    space = space_of(await open_nats(server), name)
    await until(lambda: no_consumers(space), 30, lambda: "the consumer of a vanished process is left")


async def test_a_gap_ends_a_feed(server: NatsServer, open_nats: Open, name: str) -> None:
    """One delivery is lost on the way: the next one shows it."""
    m = (await open_nats(server)).namespace(name).map("m")
    watch = m.watch()
    await next_event(watch)
    original = Feed._take
    lost: list[Message] = []

    def lossy(self: Feed, message: Message) -> None:
        if not lost:
            lost.append(message)
            return
        original(self, message)

    feed = watch._feed._feed  # type: ignore[attr-defined]
    receivers = feed._link._nc._receivers
    receivers[max(receivers, key=int)] = lambda message: lossy(feed, message)
    await m.set("a", b"1")
    await m.set("b", b"2")
    event = await next_event(watch)
    assert lost
    assert isinstance(event, Snapshot)
    assert {entry.key for entry in event.entries} >= {"a", "b"}


async def test_a_purge_under_a_joiner_does_not_hold_it_up(server: NatsServer, open_nats: Open, name: str) -> None:
    """A consumer that was about to deliver what is purged goes on by one message per new message only: the joiner must not
    wait for that. Destroying purges at once."""
    writer = (await open_nats(server)).namespace(name).map("m")
    joiner = (await open_nats(server)).namespace(name).map("m")
    keys = [f"k{number}" for number in range(60)]
    worst = 0.0
    for _ in range(60):
        await writer.apply([Set(key, b"v") for key in keys])
        destroying = asyncio.ensure_future(writer.destroy())
        while True:
            last = destroying.done()
            watch = joiner.watch()
            began = time.monotonic()
            snapshot = await next_event(watch)
            worst = max(worst, time.monotonic() - began)
            await watch.aclose()
            assert isinstance(snapshot, Snapshot)
            assert len(snapshot.entries) in (0, 60), "half a clear was seen"
            if last:
                assert snapshot.entries == ()
                break
        await destroying
    print(f"the slowest of the joins took {worst * 1000:.0f} ms")
    assert worst < 4


async def test_an_unread_watch_is_bounded(
    server: NatsServer, open_nats: Open, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "MOST_UNREAD", 100)
    m = (await open_nats(server)).namespace(name).map("m")
    watch = m.watch()
    await next_event(watch)
    newest = 0
    for at in range(0, 400, 50):
        newest = (await m.apply([Set(f"k{number % 30}", b"%d" % number) for number in range(at, at + 50)]))[-1].revision
    assert len(watch._queue) <= 101  # type: ignore[attr-defined]
    events: list[WatchEvent] = []
    while not events or events[-1].revision < newest:
        events.append(await next_event(watch))
    assert isinstance(events[0], Snapshot | Change)
    assert any(isinstance(event, Snapshot) for event in events), "a snapshot stands for what was not read"
    replica: dict[str, bytes] = {}
    for event in events:
        if isinstance(event, Snapshot):
            replica = {entry.key: entry.value for entry in event.entries}
        elif isinstance(event, Change) and event.value is not None:
            replica[event.key] = event.value
    assert replica == {key: entry.value for key, entry in (await m.get_many(sorted(replica))).items()}


async def test_one_fence_is_not_enough(server: NatsServer, open_nats: Open, name: str) -> None:
    """The snapshot is complete when the second fence has come, not before: both are awaited."""
    seen: list[str] = []
    space = space_of(await open_nats(server), name)
    await space.map("m").set("k", b"v")
    link = await space.client.link(space.client.deadline())
    feed = MapFeed(space.assets, link, space.space.map("m"), space.cache)
    take = feed._take

    def noting(record) -> None:  # type: ignore[no-untyped-def]
        seen.append(record.data.decode() if record.subject == feed._fence else record.subject)
        take(record)

    feed._feed._handler = noting
    await feed.open()
    await feed.close()
    assert seen == [space.space.map("m").key("k"), "1", "2"]
