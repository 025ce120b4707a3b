"""Streams and sinks on NATS: lives, bounds, consumers, and what crashes leave behind."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from corepool.driver import NewEvent, SinkStore, StreamConfig, StreamKind
from corepool.errors import InvalidOptionError, OutcomeUnknown, StreamFull
from corepool_nats.namespace import NatsNamespace
from corepool_nats.registry import Known, Registries
from corepool_nats.sink import NatsSink
from tests.nats.conftest import Open, Start, space_of
from tests.nats.test_nats_maps import call
from tests.servers.nats import NatsServer
from tests.waiting import until

EVENT = NewEvent("e", b"x")


async def receive(sink: SinkStore, most: int = 1, within: float = 10.0) -> list[str]:
    """Receive and acknowledge; the payloads."""
    async with asyncio.timeout(within):
        deliveries = await sink.receive(most)
    assert await sink.ack([delivery.receipt for delivery in deliveries]) == [True] * len(deliveries)
    return [delivery.event.payload.decode() for delivery in deliveries]


async def consumers(space: NatsNamespace) -> list[str]:
    return (await call(space, f"CONSUMER.NAMES.{space.assets.streams.asset}"))["consumers"] or []


async def asked(space: NatsNamespace) -> bool:
    """Whether a sink of the namespace has a request at the server that waits for an event."""
    infos = [await call(space, f"CONSUMER.INFO.{space.assets.streams.asset}.{each}") for each in await consumers(space)]
    return any(info.get("num_waiting") for info in infos)


async def held(space: NatsNamespace) -> dict[str, int]:
    """All messages of all logical streams, by subject."""
    info = await call(space, f"STREAM.INFO.{space.assets.streams.asset}", {"subjects_filter": ">"})
    subjects: dict[str, int] = info["state"].get("subjects") or {}
    subjects.pop(space.space.streams_fence, None)
    return subjects


# --- lives -----------------------------------------------------------------------------------------------------------


async def test_a_destruction_that_was_left_half_done_is_finished(
    server: NatsServer, open_nats: Open, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = space_of(await open_nats(server), name)
    stream = space.stream("s")
    for _ in range(5):
        await stream.append(EVENT)
    sink = await stream.sink("w", ack_wait=5)
    await sink.receive()
    original = Registries._finish

    async def crash(self: Registries, subjects: object, known: Known, deadline: float) -> None:
        raise OutcomeUnknown("the process dies after the registry said that the stream is gone")

    monkeypatch.setattr(Registries, "_finish", crash)
    with pytest.raises(OutcomeUnknown):
        await stream.destroy()
    monkeypatch.setattr(Registries, "_finish", original)
    other = space_of(await open_nats(server), name)
    again = other.stream("s")
    assert not await again.exists()
    assert await again.length() == 0
    assert await again.range() == []
    assert await again.append(EVENT, only_if_exists=True) is None
    assert await again.append(NewEvent("e", b"next life")) is not None
    assert [event.payload for event in await again.range()] == [b"next life"]
    assert await consumers(other) == [], "the consumer of the earlier life is left"


async def test_a_late_purge_does_not_reach_the_next_life(server: NatsServer, open_nats: Open, name: str) -> None:
    space = space_of(await open_nats(server), name)
    stream = space.stream("s")
    await stream.append(EVENT)
    subjects = space.space.stream("s")
    late: list[Known] = []
    original = space.registries._finish

    async def slow(subjects: Any, known: Known, deadline: float) -> None:
        late.append(known)
        await original(subjects, known, deadline)

    space.registries._finish = slow  # type: ignore[method-assign]
    await stream.destroy()
    await stream.append(NewEvent("e", b"next life"))
    await original(subjects, late[0], space.client.deadline())  # the same purge, once more, too late
    assert [event.payload for event in await stream.range()] == [b"next life"]
    assert await stream.append(EVENT) is not None


async def test_what_a_sink_of_an_absent_stream_leaves(server: NatsServer, open_nats: Open, name: str) -> None:
    space = space_of(await open_nats(server), name)
    stream = space.stream("s")
    one, two = await stream.sink("one", ack_wait=5), await stream.sink("two", ack_wait=5)
    assert not await stream.exists(), "joining makes nothing exist"
    assert await stream.append(EVENT, only_if_exists=True) is None
    await stream.append(NewEvent("e", b"first"))
    assert await receive(one) == ["first"]
    assert await receive(two) == ["first"], "an event is not removed by one sink while another one wants it"
    await stream.destroy()
    assert await held(space) == {}
    assert await consumers(space) == []


async def test_a_namespace_makes_two_streams_and_a_consumer_per_sink(
    server: NatsServer, open_nats: Open, name: str
) -> None:
    space = space_of(await open_nats(server), name)
    for number in range(20):
        await space.map(f"m{number}").set("k", b"v")
        await space.stream(f"s{number}").append(EVENT)
    sinks = [await space.stream(f"s{number}").sink("w", ack_wait=5) for number in range(5)]
    names = (await call(space, "STREAM.NAMES", {"subject": f"cp.{space.space.token}.>"}))["streams"]
    assert sorted(names) == sorted([space.assets.maps.asset, space.assets.streams.asset])
    assert len(await consumers(space)) == len(sinks)
    members = [await space.stream("s0").sink("w", ack_wait=5) for _ in range(5)]
    assert len(await consumers(space)) == len(sinks), "members cost no consumer"
    for sink in [*sinks, *members]:
        await sink.aclose()
    for number in range(20):
        await space.stream(f"s{number}").destroy()
    assert await consumers(space) == []
    assert await held(space) == {}


# --- bounds ----------------------------------------------------------------------------------------------------------


async def test_a_bounded_stream_is_exact_with_removals_in_between(
    server: NatsServer, open_nats: Open, name: str
) -> None:
    one, two = space_of(await open_nats(server), name), space_of(await open_nats(server), name)
    stream = one.stream("s")
    await stream.create(StreamConfig(max_length=7))
    sink = await two.stream("s").sink("w", ack_wait=30)
    done, full, worst = 0, 0, 0
    producing = True

    async def produce(space: NatsNamespace) -> None:
        nonlocal done, full
        for _ in range(60):
            try:
                await space.stream("s").append(EVENT)
                done += 1
            except StreamFull:
                full += 1
                await asyncio.sleep(0.002)

    async def watch_length() -> None:
        nonlocal worst
        while producing:
            worst = max(worst, await stream.length())

    async def consume() -> None:
        while producing or await stream.length():
            await asyncio.sleep(0.01)  # slower than those who append: the bound is met
            try:
                await receive(sink, 2, within=0.3)
            except TimeoutError:
                continue

    watching, consuming = asyncio.ensure_future(watch_length()), asyncio.ensure_future(consume())
    await asyncio.gather(produce(one), produce(two), produce(one))
    producing = False
    await asyncio.gather(watching, consuming)
    assert worst <= 7, f"a stream of at most 7 events held {worst}"
    assert full, "the bound was never met"
    assert done + full == 180


async def test_a_log_keeps_its_newest(server: NatsServer, open_nats: Open, name: str) -> None:
    space = space_of(await open_nats(server), name)
    stream = space.stream("s")
    await stream.create(StreamConfig(StreamKind.LOG, 3))
    sink = await stream.sink("w", ack_wait=5)
    for number in range(5):
        await stream.append(NewEvent("e", b"%d" % number))
    assert [event.payload for event in await stream.range()] == [b"2", b"3", b"4"]
    assert await receive(sink, 3) == ["2", "3", "4"]
    assert await stream.length() == 3, "a log keeps what was acknowledged"


async def test_a_work_stream_with_two_sinks_is_trimmed(
    server: NatsServer, open_nats: Open, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("corepool_nats.namespace._TRIM_EVERY", 0.0)
    space = space_of(await open_nats(server), name)
    stream = space.stream("s")
    await stream.create()
    one, two = await stream.sink("one", ack_wait=5), await stream.sink("two", ack_wait=5)
    for number in range(6):
        await stream.append(NewEvent("e", b"%d" % number))
    got: list[str] = []
    while len(got) < 6:
        got += await receive(one, 6)
    assert await stream.length() == 6, "the other sink has not acknowledged"
    got = []
    while len(got) < 5:
        got += await receive(two, 5 - len(got))

    async def trimmed(left: int) -> bool:
        subjects, deadline = space.space.stream("s"), space.client.deadline()
        registry = (await space.registries.load(subjects, deadline)).registry
        assert registry is not None
        await space.trim(subjects, registry, deadline)
        return await stream.length() == left

    await until(lambda: trimmed(1), otherwise=lambda: "what both have acknowledged is kept")
    assert await receive(two) == ["5"]
    await until(lambda: trimmed(0), otherwise=lambda: "what both have acknowledged is kept")


# --- sinks -----------------------------------------------------------------------------------------------------------


async def test_a_deleted_consumer_is_made_again(server: NatsServer, open_nats: Open, name: str) -> None:
    space = space_of(await open_nats(server), name)
    stream = space.stream("s")
    sink = await stream.sink("w", ack_wait=5)
    await stream.append(NewEvent("e", b"1"))
    assert await receive(sink) == ["1"]
    waiting = asyncio.create_task(receive(sink))
    await until(lambda: asked(space))
    (consumer,) = await consumers(space)
    await call(space, f"CONSUMER.DELETE.{space.assets.streams.asset}.{consumer}")
    await stream.append(NewEvent("e", b"2"))
    assert await waiting == ["2"]


async def test_another_ack_wait_is_refused(server: NatsServer, open_nats: Open, name: str) -> None:
    stream = (await open_nats(server)).namespace(name).stream("s")
    await stream.sink("w", ack_wait=5)
    with pytest.raises(InvalidOptionError, match="5 s"):
        await stream.sink("w", ack_wait=6)


async def test_what_lay_here_too_long_is_not_given_out(server: NatsServer, open_nats: Open, name: str) -> None:
    """A cancelled receive left a delivery here; by the time of the next one the server has given it to somebody else."""
    one, two = await open_nats(server), await open_nats(server)
    stream = one.namespace(name).stream("s")
    sink = await stream.sink("w", ack_wait=1.0)
    waiting = asyncio.create_task(sink.receive())
    await until(lambda: asked(space_of(one, name)))
    waiting.cancel()
    await asyncio.wait([waiting])
    await stream.append(NewEvent("e", b"1"))  # goes to the request that was left open
    other = await two.namespace(name).stream("s").sink("w", ack_wait=1.0)
    async with asyncio.timeout(5):
        (delivery,) = await other.receive()
    assert delivery.attempt == 2
    late = asyncio.create_task(sink.receive())
    done, _ = await asyncio.wait([late], timeout=0.3)  # nothing may come: there is no event to wait for
    assert not done, "an event that somebody else works on was given out a second time"
    assert await other.ack([delivery.receipt]) == [True]
    late.cancel()
    await asyncio.wait([late])


async def test_a_leaving_member_gives_back_at_once(server: NatsServer, open_nats: Open, name: str) -> None:
    backend = await open_nats(server)
    stream = backend.namespace(name).stream("s")
    sink = await stream.sink("w", ack_wait=30)
    assert isinstance(sink, NatsSink)
    waiting = asyncio.create_task(sink.receive())
    await until(lambda: asked(space_of(backend, name)))
    waiting.cancel()
    await asyncio.wait([waiting])
    await stream.append(NewEvent("e", b"1"))
    await until(lambda: sink._pull is not None and sink._pull.arrived)
    await sink.aclose()
    other = await stream.sink("w", ack_wait=30)
    assert await receive(other, within=5) == ["1"]


async def test_sinks_and_readers_outlive_the_server(start: Start, open_nats: Open, name: str) -> None:
    server = start()
    space = (await open_nats(server)).namespace(name)
    stream, other = space.stream("s"), space.stream("other")
    sink, reading = await stream.sink("w", ack_wait=2), other.read()
    for number in range(4):
        text = f"{number}"
        receiving, reader = asyncio.create_task(receive(sink, within=20)), asyncio.ensure_future(anext(reading))
        await until(lambda: asked(space))
        server.restart()
        await stream.append(NewEvent("e", text.encode()))
        await other.append(NewEvent("e", text.encode()))
        assert await receiving == [text]
        async with asyncio.timeout(20):
            assert (await reader).payload.decode() == text
    assert await stream.length() == 0


async def test_a_foreign_event_is_left_aside(server: NatsServer, open_nats: Open, name: str) -> None:
    space = space_of(await open_nats(server), name)
    stream = space.stream("s")
    await stream.create()
    sink, reading = await stream.sink("w", ack_wait=2), stream.read()
    link = await space.client.link(space.client.deadline())
    await link.request(space.space.stream("s").events, b"not of corepool", timeout=2)
    await stream.append(NewEvent("e", b"ours"))
    async with asyncio.timeout(5):
        assert (await anext(reading)).payload == b"ours"
    assert await receive(sink, 5) == ["ours"]
    more = asyncio.create_task(sink.receive())
    assert await asyncio.wait([more], timeout=2.5) == (set(), {more})
    more.cancel()
    (consumer,) = [each for each in await consumers(space) if each.startswith("cp-k-")]
    info = await call(space, f"CONSUMER.INFO.{space.assets.streams.asset}.{consumer}")
    assert info["num_ack_pending"] == 0, "it is delivered again and again"
