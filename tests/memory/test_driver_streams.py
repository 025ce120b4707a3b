"""The client side: readings and sinks, embedded and on a wire that is slow and breaks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from corepool.driver import (
    NEWEST,
    Delivery,
    NewEvent,
    Since,
    StreamConfig,
    StreamKind,
    open_backend,
)
from corepool.errors import BackendUnavailable, InvalidOptionError, StreamFull, StreamSealed
from corepool_memory import streams as streams_module


def event(name: object) -> NewEvent:
    return NewEvent(str(name), b"")


async def take(reading: Any, count: int) -> list[str]:
    return [(await asyncio.wait_for(anext(reading), 5)).name for _ in range(count)]


async def test_streams_over_a_wire(world: Any) -> None:
    _, backend = world.wire()
    stream = backend.namespace("ns").stream("s")
    assert stream.name == "s"
    assert not await stream.exists()
    assert await stream.append(event("no"), only_if_exists=True) is None
    assert await stream.create(StreamConfig(max_length=2))
    first = await stream.append(event(1))
    assert await stream.append(event(2), only_if_exists=True)
    with pytest.raises(StreamFull):
        await stream.append(event(3))
    assert await stream.length() == 2
    assert [item.name for item in await stream.range(first or "")] == ["2"]
    assert await stream.remove([first or ""]) == 1
    await stream.seal()
    with pytest.raises(StreamSealed):
        await stream.append(event(3))
    await stream.destroy()
    assert world.server.contents() == {}
    with pytest.raises(InvalidOptionError, match="max_length"):
        await stream.create(StreamConfig(max_length=0))


# --- readings --------------------------------------------------------------------------------------------------------


async def test_a_reading_longer_than_its_window(monkeypatch: pytest.MonkeyPatch, world: Any) -> None:
    monkeypatch.setattr(streams_module, "READ_WINDOW", 4)
    embedded = await open_backend("memory://")
    for backend in (embedded, world.wire()[1]):
        stream = backend.namespace("ns").stream("s")
        for index in range(10):
            await stream.append(event(index))
        reading: Any = stream.read()
        assert await take(reading, 6) == list("012345")
        for index in range(10, 20):
            await stream.append(event(index))
            assert len(reading._events) <= 4
        assert await take(reading, 14) == [str(index) for index in range(6, 20)]
        waiting = asyncio.create_task(anext(reading))
        await asyncio.sleep(0)
        await stream.append(event("last"))
        assert (await waiting).name == "last"
        await backend.aclose()


async def test_a_reading_over_a_wire_that_is_cut_misses_and_doubles_nothing(world: Any) -> None:
    wire, backend = world.wire()
    streams = world.server.streams("ns")
    stream = backend.namespace("ns").stream("s")
    await stream.append(event("old"))
    newest, oldest = stream.read(NEWEST), stream.read()
    await stream.length()  # in order behind the readings: they are attached now
    for index in range(5):
        streams.append("s", event(index))
        if index % 2:
            wire.cut()
            await asyncio.sleep(0)
        streams.append("s", event(f"{index}b"))
    expected = [f"{index}{half}" for index in range(5) for half in ("", "b")]
    assert await take(newest, 10) == expected
    assert await take(oldest, 11) == ["old", *expected]
    await backend.aclose()


async def test_a_reading_starts_where_it_was_opened() -> None:
    backend = await open_backend("memory://")
    stream = backend.namespace("ns").stream("s")
    await stream.append(event("before"))
    reading = stream.read(NEWEST)
    await stream.append(event("after"))
    assert await take(reading, 1) == ["after"]
    await reading.aclose()
    assert [item async for item in reading] == []
    await backend.aclose()


async def test_closing_ends_a_reading_that_waits() -> None:
    backend = await open_backend("memory://")
    reading = backend.namespace("ns").stream("s").read()
    waiting = asyncio.create_task(anext(reading))
    await asyncio.sleep(0)
    await backend.aclose()
    with pytest.raises(StopAsyncIteration):
        await waiting


async def test_a_log_that_outruns_its_reader_makes_it_go_on_with_the_oldest_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams_module, "READ_WINDOW", 2)
    backend = await open_backend("memory://")
    stream = backend.namespace("ns").stream("s")
    await stream.create(StreamConfig(StreamKind.LOG, 3))
    reading = stream.read()
    for index in range(9):
        await stream.append(event(index))
    assert await take(reading, 5) == ["0", "1", "6", "7", "8"]
    await backend.aclose()


async def test_a_reading_that_waits_for_a_time_waits_for_it_over_a_cut(world: Any) -> None:
    wire, backend = world.wire()
    streams = world.server.streams("ns")
    reading = backend.namespace("ns").stream("s").read(Since(world.time.wall() + 5))
    waiting = asyncio.create_task(anext(reading))
    for name in ("too early", "too early as well"):
        await backend.namespace("ns").stream("s").length()  # behind the reading: it is attached
        streams.append("s", event(name))
        wire.cut()
        await asyncio.sleep(0)
    world.time.now += 10
    streams.append("s", event("now"))
    assert (await asyncio.wait_for(waiting, 5)).name == "now"
    await backend.aclose()


# --- sinks -----------------------------------------------------------------------------------------------------------


async def test_a_delivery_wakes_whoever_waits(world: Any) -> None:
    _, backend = world.wire()
    stream = backend.namespace("ns").stream("s")
    sink = await stream.sink("g")
    waiting = asyncio.create_task(sink.receive(5))
    await asyncio.sleep(0)
    await stream.append(event(1))
    (delivery,) = await waiting
    assert await sink.extend(delivery.receipt)
    assert await sink.nack(delivery.receipt)
    (again,) = await sink.receive()
    assert (again.attempt, again.event.id) == (2, delivery.event.id)
    assert await sink.ack([delivery.receipt, again.receipt]) == [False, True]
    await backend.aclose()


async def test_several_receives_of_one_member() -> None:
    backend = await open_backend("memory://")
    stream = backend.namespace("ns").stream("s")
    sink = await stream.sink("g")
    waiting = [asyncio.create_task(sink.receive()) for _ in range(3)]
    await asyncio.sleep(0)
    for index in range(3):
        await stream.append(event(index))
    got = await asyncio.wait_for(asyncio.gather(*waiting), 5)
    assert sorted(item.event.name for batch in got for item in batch) == ["0", "1", "2"]
    await backend.aclose()


async def test_a_cancelled_receive_swallows_nothing() -> None:
    """Neither when it is cancelled while it waits, nor in the turn in which it was woken."""
    backend = await open_backend("memory://")
    stream = backend.namespace("ns").stream("s")
    one, two = await stream.sink("g"), await stream.sink("g")
    waiting = asyncio.create_task(one.receive())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await stream.append(event("a"))
    (delivery,) = await asyncio.wait_for(two.receive(), 5)  # at once: the demand of the first was withdrawn
    assert (delivery.event.name, delivery.attempt) == ("a", 1)
    waiting = asyncio.create_task(one.receive())
    await asyncio.sleep(0)
    await stream.append(event("b"))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    (delivery,) = await asyncio.wait_for(one.receive(), 5)
    assert (delivery.event.name, delivery.attempt) == ("b", 1)
    await backend.aclose()


async def test_what_came_too_late_is_not_handed_out_after_its_time(world: Any, until: Callable[..., Any]) -> None:
    wire, backend = world.wire()
    stream = backend.namespace("ns").stream("s")
    one, two = await stream.sink("g", ack_wait=10.0), await stream.sink("g", ack_wait=10.0)
    waiting = asyncio.create_task(one.receive())
    await until(lambda: "want" in wire.log)
    wire.held = True
    world.server.streams("ns").append("s", event("a"))  # on its way to a receive that is cancelled now
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    wire.release()
    await until(lambda: one._buffer)
    heir = asyncio.create_task(two.receive())
    await until(lambda: wire.log.count("want") == 3)
    world.time.advance(10.5)
    (delivery,) = await heir
    assert delivery.attempt == 2
    late = asyncio.create_task(one.receive())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not late.done(), "it went to the other member"
    await backend.aclose()
    with pytest.raises(BackendUnavailable):
        await late


async def test_a_member_that_lost_its_connection_asks_again(world: Any, until: Callable[..., Any]) -> None:
    wire, backend = world.wire()
    stream, streams = backend.namespace("ns").stream("s"), world.server.streams("ns")
    await stream.create()
    sink = await stream.sink("g", start=NEWEST, ack_wait=10.0)
    waiting = asyncio.create_task(sink.receive(3))
    await until(lambda: wire.log.count("want") == 1)
    wire.cut()
    streams.append("s", event("while cut"))
    (delivery,) = await waiting
    assert delivery.event.name == "while cut"
    assert await sink.ack([delivery.receipt]) == [True]
    waiting = asyncio.create_task(sink.receive(3))
    await until(lambda: wire.log.count("want") == 3)
    wire.held = True
    streams.append("s", event("lost on the way"))
    wire.cut()
    wire.release()
    await until(lambda: wire.log.count("want") == 4)
    world.time.advance(10.5)
    (delivery,) = await waiting
    assert (delivery.event.name, delivery.attempt) == ("lost on the way", 2)
    assert len(streams.state("s").sinks["g"].members) == 1
    await backend.aclose()
    assert streams.state("s").sinks["g"].members == []


async def test_a_member_asks_for_no_more_than_is_received() -> None:
    backend = await open_backend("memory://")
    stream = backend.namespace("ns").stream("s")
    one, two = await stream.sink("g"), await stream.sink("g")
    for index in range(3):
        await stream.append(event(index))
    assert [item.event.name for item in await one.receive(2)] == ["0", "1"]
    for index in range(3, 5):
        await stream.append(event(index))
    assert [item.event.name for item in await one.receive()] == ["2"]
    assert [item.event.name for item in await asyncio.wait_for(two.receive(9), 5)] == ["3", "4"]
    await backend.aclose()


async def test_a_member_misses_nothing_of_a_life_that_began_while_it_was_cut_off(world: Any) -> None:
    wire, backend = world.wire()
    streams = world.server.streams("ns")
    stream = backend.namespace("ns").stream("s")
    await stream.append(event("before"))
    sink = await stream.sink("g", start=NEWEST)
    await stream.length()
    wire.cut()
    streams.destroy("s")
    streams.append("s", event("next life"))
    (delivery,) = await asyncio.wait_for(sink.receive(), 5)
    assert delivery.event.name == "next life"
    await backend.aclose()


async def test_what_an_old_connection_still_does_cannot_hit_the_new_one(world: Any) -> None:
    """Requests of a broken connection may arrive after those of the next: the old feed must not take the place of the new."""
    streams = world.server.streams("ns")
    wire, backend = world.wire()
    attach: list[Any] = []
    listen = wire.listen

    def spying(what: str, attacher: Any, *rest: Any) -> Any:
        attach.append(attacher)
        return listen(what, attacher, *rest)

    wire.listen = spying
    stream = backend.namespace("ns").stream("s")
    sink = await stream.sink("g")
    wire.cut()
    waiting = asyncio.create_task(sink.receive())
    while len(attach) < 2:
        await asyncio.sleep(0)
    await stream.length()  # behind the second attach
    late = attach[0](world.server, lambda batch: None)
    late()
    streams.append("s", event("a"))
    (delivery,) = await asyncio.wait_for(waiting, 5)
    assert delivery.event.name == "a"
    await backend.aclose()


async def test_leaving_gives_back_what_nobody_received(world: Any, until: Callable[..., Any]) -> None:
    _, backend = world.wire()
    stream = backend.namespace("ns").stream("s")
    leaving, staying = await stream.sink("g"), await stream.sink("g")
    for name in ("read", "unread"):
        await stream.append(event(name))
    waiting = asyncio.create_task(leaving.receive(2))
    await until(lambda: len(leaving._buffer) == 2)
    (kept,) = leaving._take(1)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await leaving.aclose()
    await leaving.aclose()
    (delivery,) = await asyncio.wait_for(staying.receive(5), 5)
    assert delivery.event.name == "unread"
    assert await staying.ack([kept.receipt]) == [True], "who still works on what was received may still ack"
    with pytest.raises(BackendUnavailable, match="closed"):
        await leaving.receive()
    await backend.aclose()


async def test_closing_ends_a_receive_that_waits() -> None:
    for close_backend in (False, True):
        backend = await open_backend("memory://")
        sink = await backend.namespace("ns").stream("s").sink("g")
        waiting = asyncio.create_task(sink.receive())
        await asyncio.sleep(0)
        await (backend.aclose() if close_backend else sink.aclose())
        with pytest.raises(BackendUnavailable):
            await asyncio.wait_for(waiting, 5)
        await backend.aclose()


async def test_a_sink_waits_for_the_next_life_of_its_stream() -> None:
    backend = await open_backend("memory://")
    stream = backend.namespace("ns").stream("s")
    await stream.create()
    sink = await stream.sink("g", start=NEWEST)
    waiting = asyncio.create_task(sink.receive())
    await asyncio.sleep(0)
    await stream.destroy()
    await asyncio.sleep(0)
    assert not await stream.exists()
    await stream.append(event("next life"))
    (delivery,) = await asyncio.wait_for(waiting, 5)
    assert delivery.event.name == "next life"
    await backend.aclose()


async def test_redelivery_on_a_real_loop() -> None:
    backend = await open_backend("memory://")
    stream = backend.namespace("ns").stream("s")
    await stream.append(event("a"))
    one, two = await stream.sink("g", ack_wait=0.05), await stream.sink("g", ack_wait=0.05)
    (first,) = await one.receive()
    (second,) = await asyncio.wait_for(two.receive(), 5)
    assert isinstance(first, Delivery)
    assert (first.attempt, second.attempt) == (1, 2)
    assert await one.ack([first.receipt]) == [False]
    await backend.aclose()
