"""Streams: appending, reading, sealing, destroying (S1, S4, S5, M3, M4, M6)."""

from __future__ import annotations

import asyncio
import math
import time

import pytest

from corepool.driver import (
    NEWEST,
    OLDEST,
    After,
    Append,
    Appended,
    NewEvent,
    Refusal,
    Since,
    StreamConfig,
    StreamKind,
    StreamStore,
)
from corepool.errors import BackendUnavailable, OutcomeUnknown, StreamFull, StreamSealed
from corepool_conformance.kit import Contract, Kit, PromiseBroken, promise
from corepool_conformance.waiting import is_next_pending, numbered, payloads, take


async def fill(stream: StreamStore, count: int, prefix: str = "e") -> list[str]:
    """Append numbered events; their ids."""
    ids = [await stream.append(event) for event in numbered(count, prefix)]
    return [known for known in ids if known is not None]


async def _push(stream: StreamStore, stop: asyncio.Event) -> None:
    while not stop.is_set():
        await stream.append(NewEvent("e", b"x"), only_if_exists=True)


async def append_until_acknowledged(kit: Kit, stream: StreamStore, number: int) -> str:
    """Append until one append is acknowledged."""
    ids: list[str | None] = []

    async def works() -> bool:
        try:
            ids.append(await stream.append(NewEvent("e", b"probe%d" % number)))
        except (BackendUnavailable, OutcomeUnknown):  # what the cut did; any other error breaks M5
            return False
        return True

    await kit.eventually(works, "an append after the connection was healed", "M3", within=15)
    assert ids[-1] is not None
    return ids[-1]


class TestStreams(Contract):
    # --- S1 ----------------------------------------------------------------------------------------------------------

    @promise("S1", "STREAMS")
    async def test_events_come_back_as_they_were(self, kit: Kit) -> None:
        stream = await kit.stream()
        events = [
            NewEvent("name", b"payload"),
            NewEvent("ünï ☃ \U0001f9a6", bytes(range(256)), "tópic.with*>:\n"),
            NewEvent("n", b""),
            NewEvent("n", b"\r\n\x00", "t"),
        ]
        ids = [await stream.append(event) for event in events]
        read = await take(kit, stream.read(), len(events))
        assert [NewEvent(event.name, event.payload, event.topic) for event in read] == events
        assert [event.id for event in read] == ids
        assert all(event.stamp is None for event in read)
        assert all(math.isfinite(event.timestamp) and event.timestamp >= 0 for event in read)
        assert await stream.range() == read

    @promise("S1")
    async def test_ids_grow_in_append_order(self, kit: Kit) -> None:
        streams = await kit.streams(2)
        ids = [await streams[number % 2].append(event) for number, event in enumerate(numbered(150))]
        texts = [known for known in ids if known is not None]
        assert len(texts) == 150
        assert texts == sorted(set(texts)), "ids do not increase, compared as strings, in append order"

    @promise("S1")
    async def test_many_writers_make_one_order(self, kit: Kit) -> None:
        streams = await kit.streams(3)
        each = 40
        lists = await kit.gather(*(fill(stream, each, f"w{n}-") for n, stream in enumerate(streams)))
        events = await take(kit, streams[0].read(), each * len(streams))
        ids = [event.id for event in events]
        assert ids == sorted(ids), "events are not read in the order of their ids"
        assert sorted(ids) == sorted(known for ids in lists for known in ids)
        for number, mine in enumerate(lists):
            assert mine == sorted(mine), f"writer {number}: a later append got a smaller id"
            order = [text for text in payloads(events) if text.startswith(f"w{number}-")]
            assert order == [f"w{number}-{at}" for at in range(each)]

    @promise("S1", "S5")
    async def test_ids_grow_across_destroy_and_creation(self, kit: Kit) -> None:
        stream = await kit.stream()
        newest = ""
        for life in range(4):
            ids = await fill(stream, 3, f"life{life}-")
            assert ids[0] > newest, f"the first id of life {life} is {ids[0]}, the last one before was {newest}"
            newest = ids[-1]
            await stream.destroy()

    # --- existence ---------------------------------------------------------------------------------------------------

    @promise("STREAMS")
    async def test_create_and_exists(self, kit: Kit) -> None:
        stream = await kit.stream()
        assert not await stream.exists()
        assert await stream.length() == 0
        assert await stream.range() == []
        assert await stream.create(StreamConfig(StreamKind.WORK, 2)) is True
        assert await stream.exists()
        assert await stream.create(StreamConfig(StreamKind.WORK, 100)) is False
        await fill(stream, 2)
        with pytest.raises(StreamFull):
            await stream.append(NewEvent("e", b"third"))

    @promise("STREAMS")
    async def test_append_creates(self, kit: Kit) -> None:
        stream = await kit.stream()
        assert await stream.append(NewEvent("e", b"x")) is not None
        assert await stream.exists()
        assert await stream.length() == 1

    @promise("S5")
    async def test_append_only_if_exists(self, kit: Kit) -> None:
        stream = await kit.stream()
        assert await stream.append(NewEvent("e", b"x"), only_if_exists=True) is None
        assert not await stream.exists()
        await stream.create()
        assert await stream.append(NewEvent("e", b"x"), only_if_exists=True) is not None
        assert await stream.length() == 1

    @promise("STREAMS")
    async def test_concurrent_create_has_one_winner(self, kit: Kit) -> None:
        for round_number in range(5):
            streams = await kit.streams(1, f"s{round_number}")
            made = await kit.gather(*(streams[0].create() for _ in range(6)))
            assert sum(made) == 1, f"{sum(made)} of 6 concurrent creates say that they made the stream"

    # --- reading -----------------------------------------------------------------------------------------------------

    @promise("STREAMS")
    async def test_readers_are_independent_and_complete(self, kit: Kit) -> None:
        streams = await kit.streams(2)
        await fill(streams[0], 150)
        expected = [f"e{number}" for number in range(150)]
        readings = [stream.read(OLDEST) for stream in streams * 2]
        for read in await kit.gather(*(take(kit, reading, 150) for reading in readings)):
            assert payloads(read) == expected

    @promise("STREAMS", "M3")
    async def test_a_reader_waits_for_what_comes(self, kit: Kit) -> None:
        stream, writer = await kit.streams(2)
        reading = stream.read()
        first = kit.spawn(anext(reading))
        assert await is_next_pending(kit, first, 0.1), "there is nothing to read yet"
        await fill(writer, 1)
        assert (await kit.within(5, first, "a waiting reader to get its event", "M3")).payload == b"e0"
        writing = kit.spawn(fill(writer, 100, "n"))
        assert payloads(await take(kit, reading, 100)) == [f"n{number}" for number in range(100)]
        await writing

    @promise("STREAMS")
    async def test_start_after_an_id(self, kit: Kit) -> None:
        stream = await kit.stream()
        ids = await fill(stream, 6)
        assert payloads(await take(kit, stream.read(After(ids[2])), 3)) == ["e3", "e4", "e5"]
        await stream.remove([ids[1], ids[3]])
        assert payloads(await take(kit, stream.read(After(ids[1])), 3)) == ["e2", "e4", "e5"]
        assert payloads(await take(kit, stream.read(After(ids[3])), 2)) == ["e4", "e5"]
        late = kit.spawn(anext(stream.read(After(ids[5]))))
        assert await is_next_pending(kit, late, 0.1)
        await fill(stream, 1, "late")
        assert (await kit.within(5, late, "the event after the last", "M3")).payload == b"late0"

    @promise("STREAMS")
    async def test_start_at_a_time(self, kit: Kit) -> None:
        stream = await kit.stream()
        await fill(stream, 2, "old")
        await asyncio.sleep(0.05)  # a time must pass for one to stand between them
        await fill(stream, 3, "new")
        events = await stream.range()
        border = events[2].timestamp
        assert border > events[1].timestamp, "the store's clock did not move in 50 ms"
        assert payloads(await take(kit, stream.read(Since(border)), 3)) == ["new0", "new1", "new2"]
        assert payloads(await take(kit, stream.read(Since(0.0)), 5))[0] == "old0"
        later = kit.spawn(anext(stream.read(Since(events[-1].timestamp + 3600))))
        assert await is_next_pending(kit, later, 0.1)

    @promise("STREAMS")
    async def test_start_at_the_newest(self, kit: Kit) -> None:
        stream = await kit.stream()
        await fill(stream, 5, "old")
        reading = stream.read(NEWEST)
        first = kit.spawn(anext(reading))
        sent = 0
        while not first.done():  # where the reader begins is known once it yields: then nothing may be missing
            await stream.append(NewEvent("e", b"new%d" % sent))
            sent += 1
            await asyncio.wait([first], timeout=0.05)
            assert sent < 200, "a reader from NEWEST yields nothing"
        began = first.result().payload.decode()
        assert began.startswith("new"), f"a reader from NEWEST yielded {began!r}, which was there before"
        rest = payloads(await take(kit, reading, sent - 1 - int(began[3:])))
        assert rest == [f"new{number}" for number in range(int(began[3:]) + 1, sent)]

    @promise("STREAMS")
    async def test_range(self, kit: Kit) -> None:
        stream = await kit.stream()
        ids = await fill(stream, 12)
        assert payloads(await stream.range()) == [f"e{number}" for number in range(12)]
        assert payloads(await stream.range(limit=5)) == ["e0", "e1", "e2", "e3", "e4"]
        assert payloads(await stream.range(after=ids[4], limit=3)) == ["e5", "e6", "e7"]
        assert await stream.range(after=ids[-1]) == []
        await stream.remove([ids[5]])
        assert payloads(await stream.range(after=ids[5], limit=1)) == ["e6"]
        began = time.monotonic()
        assert await (await kit.stream("absent")).range() == []
        assert time.monotonic() - began < 3, "range never waits"

    @promise("STREAMS")
    async def test_remove_and_length(self, kit: Kit) -> None:
        stream = await kit.stream()
        ids = await fill(stream, 5)
        assert await stream.length() == 5
        assert await stream.remove([ids[1], ids[3]]) == 2
        assert await stream.remove([ids[1], ids[2]]) == 1, "only what was there is counted"
        assert await stream.remove([]) == 0
        assert await stream.length() == 2
        assert payloads(await stream.range()) == ["e0", "e4"]
        assert await (await kit.stream("absent")).remove([ids[0]]) == 0

    @promise("STREAMS")
    async def test_streams_are_apart(self, kit: Kit) -> None:
        names = ["a", "a.b", "a:b", "a*", "*", ">", "a b", "A", "ä"]
        streams = [await kit.stream(name) for name in names]
        for stream in streams:
            await stream.append(NewEvent("e", stream.name.encode()))
        await streams[0].destroy()
        for stream in streams[1:]:
            assert payloads(await stream.range()) == [stream.name]

    # --- S4 ----------------------------------------------------------------------------------------------------------

    @promise("S4")
    async def test_a_full_work_stream_rejects(self, kit: Kit) -> None:
        stream = await kit.stream()
        await stream.create(StreamConfig(StreamKind.WORK, 3))
        ids = await fill(stream, 3)
        for only_if_exists in (False, True):
            with pytest.raises(StreamFull):
                await stream.append(NewEvent("e", b"over"), only_if_exists=only_if_exists)
        assert payloads(await stream.range()) == ["e0", "e1", "e2"], "a full work stream lost or took an event"
        await stream.remove([ids[0]])
        assert await stream.append(NewEvent("e", b"fits")) is not None
        with pytest.raises(StreamFull):
            await stream.append(NewEvent("e", b"over"))

    @promise("S4")
    async def test_a_full_work_stream_rejects_under_races(self, kit: Kit) -> None:
        streams = await kit.streams(4)
        await streams[0].create(StreamConfig(StreamKind.WORK, 10))

        async def push(stream: StreamStore, number: int) -> str | None:
            try:
                return await stream.append(NewEvent("e", b"%d" % number))
            except StreamFull:
                return None

        ids = await kit.gather(*(push(streams[number % 4], number) for number in range(40)))
        taken = [known for known in ids if known is not None]
        held = [event.id for event in await streams[0].range()]
        if len(taken) != 10 or sorted(taken) != held:
            raise PromiseBroken(
                "S4", f"max_length is 10, {len(taken)} appends were acknowledged, {len(held)} events are held"
            )

    @promise("S4")
    async def test_a_log_drops_its_oldest(self, kit: Kit) -> None:
        stream = await kit.stream()
        await stream.create(StreamConfig(StreamKind.LOG, 5))
        reading = stream.read()
        await fill(stream, 3)
        assert payloads(await take(kit, reading, 3)) == ["e0", "e1", "e2"]
        await fill(stream, 40, "n")
        assert payloads(await stream.range()) == [f"n{number}" for number in range(35, 40)]
        assert await stream.length() == 5
        seen = [
            (await kit.within(5, anext(reading), "a reader to go on after a log dropped events", "M3")).payload.decode()
        ]
        while seen[-1] != "n39":
            seen.append((await kit.within(5, anext(reading), "the rest of a log", "M3")).payload.decode())
        numbers = [int(text[1:]) for text in seen]
        assert numbers == sorted(set(numbers)), f"out of order or twice: {numbers}"
        assert numbers[-5:] == [35, 36, 37, 38, 39]

    # --- seal and destroy --------------------------------------------------------------------------------------------

    @promise("STREAMS", "S5")
    async def test_a_sealed_stream_takes_nothing_and_can_be_drained(self, kit: Kit) -> None:
        stream, other = await kit.streams(2)
        await stream.seal()
        assert not await stream.exists(), "sealing an absent stream makes nothing"
        ids = await fill(stream, 4)
        sink = await stream.sink("drain", ack_wait=kit.ack_wait)
        await other.seal()
        await other.seal()
        assert await stream.exists()
        with pytest.raises(StreamSealed):
            await stream.append(NewEvent("e", b"late"))
        assert await other.append(NewEvent("e", b"late"), only_if_exists=True) is None
        assert await stream.create() is False
        assert payloads(await take(kit, stream.read(), 4)) == ["e0", "e1", "e2", "e3"]
        assert await stream.remove([ids[0]]) == 1
        got: list[str] = []
        while len(got) < 3:
            batch = await kit.within(5, sink.receive(10), "draining a sealed stream", "S2")
            got += payloads(batch)
            await sink.ack([delivery.receipt for delivery in batch])
        assert got == ["e1", "e2", "e3"]
        assert await stream.length() == 0
        await stream.destroy()
        assert not await stream.exists()
        assert await stream.append(NewEvent("e", b"new life")) is not None, "destroy ends the seal too"

    @promise("S5")
    async def test_destroy_leaves_nothing(self, kit: Kit) -> None:
        stream, other = await kit.streams(2)
        await stream.destroy()
        await stream.create(StreamConfig(StreamKind.WORK, 2))
        await fill(stream, 2)
        await stream.destroy()
        await stream.destroy()
        for one in (stream, other):
            assert not await one.exists()
            assert await one.length() == 0
            assert await one.range() == []
            assert await one.append(NewEvent("e", b"x"), only_if_exists=True) is None
        namespace = await kit.namespace()
        result = await namespace.commit([Append("s", NewEvent("e", b"x"))])
        assert result.results == (Appended(None, Refusal.MISSING),)
        assert not await stream.exists()
        await fill(stream, 3, "next")  # the configuration of the earlier life is gone too
        assert payloads(await stream.range()) == ["next0", "next1", "next2"]

    @promise("S5")
    async def test_nothing_revives_a_destroyed_stream(self, kit: Kit) -> None:
        streams = await kit.streams(4)
        for round_number in range(12):
            await streams[0].create()
            stop = asyncio.Event()
            pushers = [kit.spawn(_push(stream, stop)) for stream in streams[1:]]
            await asyncio.sleep(kit.random.random() * 0.01)
            await kit.within(5, streams[0].destroy(), "destroy under load", "M4")
            alive = await streams[0].exists()
            held = await streams[0].length()
            await asyncio.sleep(0.005)
            stop.set()
            await kit.gather(*pushers)
            if alive or held or await streams[0].exists() or await streams[0].length():
                raise PromiseBroken("S5", f"round {round_number}: the stream came back after destroy was acknowledged")

    @promise("S5", "M3")
    async def test_a_reader_waits_for_the_next_life(self, kit: Kit) -> None:
        stream, writer = await kit.streams(2)
        await fill(writer, 2, "old")
        reading = stream.read()
        assert payloads(await take(kit, reading, 2)) == ["old0", "old1"]
        waiting = kit.spawn(anext(reading))
        assert await is_next_pending(kit, waiting, 0.05)
        await writer.destroy()
        assert await is_next_pending(kit, waiting, 0.1), "a reader does not end when its stream is destroyed"
        await fill(writer, 3, "new")
        assert (await kit.within(10, waiting, "the next life of a stream", "M3")).payload == b"new0"
        assert payloads(await take(kit, reading, 2)) == ["new1", "new2"]

    # --- M4, M6, close -----------------------------------------------------------------------------------------------

    @promise("M4")
    async def test_an_unread_reader_blocks_nobody(self, kit: Kit) -> None:
        stream, writer = await kit.streams(2)
        await fill(writer, 1)
        unread = stream.read()
        await kit.within(5, anext(unread), "the first event", "M3")
        other = stream.read()
        for number in range(600):
            await kit.within(5, writer.append(NewEvent("e", b"%d" % number + b"x" * 1000)), "an append", "M4")
        assert len(await take(kit, other, 601)) == 601
        assert await kit.within(5, stream.length(), "a call beside an unread reader", "M4") == 601
        rest = await take(kit, unread, 600)
        assert [event.payload.rstrip(b"x") for event in rest] == [b"%d" % number for number in range(600)]

    @promise("M4")
    async def test_many_waiting_readers_and_sinks_block_nothing(self, kit: Kit) -> None:
        backend = await kit.main()
        streams = [await kit.stream(f"s{number}", backend) for number in range(40)]
        for stream in streams:
            await stream.create()
        readers = [kit.spawn(anext(stream.read())) for stream in streams]
        sinks = await kit.gather(*(stream.sink("g", ack_wait=kit.ack_wait) for stream in streams))
        receives = [kit.spawn(sink.receive()) for sink in sinks]
        m = await kit.map(backend=backend)
        for number in range(20):
            await kit.within(2, m.set("k", b"%d" % number), "a write beside 80 waiting calls", "M4")
        for stream in streams:
            await kit.within(2, stream.append(NewEvent("e", stream.name.encode())), "an append", "M4")
        for stream, event in zip(streams, await kit.gather(*readers), strict=True):
            assert event.payload.decode() == stream.name
        for stream, deliveries in zip(streams, await kit.gather(*receives), strict=True):
            assert payloads(deliveries) == [stream.name]

    @promise("M6")
    async def test_a_cancelled_read_loses_no_event(self, kit: Kit) -> None:
        stream, writer = await kit.streams(2)
        reading = stream.read()
        writing = kit.spawn(fill(writer, 150))
        got: list[str] = []
        while len(got) < 150:
            task = asyncio.ensure_future(anext(reading))
            if kit.random.random() < 0.5:
                await asyncio.sleep(kit.random.choice((0, 0, 0.001)))
                task.cancel()
            try:
                got.append((await kit.within(5, task, "the next event", "M6")).payload.decode())
            except asyncio.CancelledError:
                continue
        await writing
        assert got == [f"e{number}" for number in range(150)]

    @promise("CLOSE")
    async def test_closing_a_reader_ends_its_iteration(self, kit: Kit) -> None:
        stream = await kit.stream()
        reading = stream.read()
        waiting = kit.spawn(anext(reading, None))
        await kit.a_moment()
        await kit.within(5, reading.aclose(), "closing a reader", "CLOSE")
        assert await kit.within(5, waiting, "the pending read of a closed reader", "CLOSE") is None
        await reading.aclose()
        with pytest.raises(StopAsyncIteration):
            await kit.within(5, anext(reading), "reading a closed reader", "CLOSE")

    @promise("M3", needs=("cut",), deadline=60)
    async def test_a_reader_loses_nothing_with_its_connection(self, kit: Kit) -> None:
        backend = await kit.backend()
        stream = await kit.stream(backend=backend)
        await stream.create()
        reading = stream.read()
        acknowledged: list[str] = []
        for round_number in range(3):
            acknowledged += await fill(stream, 5, f"r{round_number}-")
            await kit.harness.cut()
            await kit.a_moment(0.1)
            await kit.harness.heal()

            acknowledged.append(await append_until_acknowledged(kit, stream, round_number))
        seen: list[str] = []
        while not seen or seen[-1] != acknowledged[-1]:
            seen.append((await kit.within(20, anext(reading), "a reader after its connection was healed", "M3")).id)
        assert seen == sorted(set(seen)), "a reader went back or gave an event twice"
        if missing := sorted(set(acknowledged) - set(seen)):
            raise PromiseBroken("M3", f"a reader skipped {len(missing)} acknowledged events: {missing[:5]}")
