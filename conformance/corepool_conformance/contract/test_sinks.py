"""Sinks: each event to one member, redelivery, receipts, members that vanish (S2, S3, M4, M6)."""

from __future__ import annotations

import asyncio
import time

import pytest

from corepool.driver import NEWEST, After, NewEvent, Since, SinkStore, StreamConfig, StreamStore
from corepool.errors import BackendUnavailable, InvalidOptionError, OutcomeUnknown
from corepool_conformance.contract.test_streams import fill
from corepool_conformance.kit import Contract, Kit, PromiseBroken, promise
from corepool_conformance.victim import Victim
from corepool_conformance.waiting import consume, is_next_pending, payloads

SLACK = 5.0
"""Seconds a delivery may be late on a busy machine."""


class TestSinks(Contract):
    async def _joined(self, kit: Kit, stream: StreamStore, name: str = "workers") -> SinkStore:
        return await kit.within(10, stream.sink(name, ack_wait=kit.ack_wait), "joining a sink", "M4")

    # --- S2 ----------------------------------------------------------------------------------------------------------

    @promise("S2")
    async def test_each_event_goes_to_one_member(self, kit: Kit) -> None:
        streams = await kit.streams(3)
        sinks = [await self._joined(kit, stream) for stream in streams]
        await fill(streams[0], 90)
        got: list[str] = []

        async def work(sink: SinkStore) -> None:
            while True:
                batch = await sink.receive(7)
                assert 1 <= len(batch) <= 7
                assert all(delivery.attempt == 1 for delivery in batch)
                acks = await sink.ack([delivery.receipt for delivery in batch])
                assert acks == [True] * len(batch)
                got.extend(payloads(batch))

        tasks = [kit.spawn(work(sink)) for sink in sinks]

        async def all_there() -> bool:
            for task in tasks:
                if task.done():
                    task.result()
            return len(got) >= 90

        await kit.eventually(all_there, "90 events to reach three members", "S2", within=10)
        assert sorted(got) == sorted(f"e{number}" for number in range(90)), "an event was lost or given twice"
        assert await streams[0].length() == 0, "a work stream with one sink does not hold what was acked"

    @promise("S2", "STREAMS")
    async def test_one_member_gets_the_order_of_the_stream(self, kit: Kit) -> None:
        stream, writer = await kit.streams(2)
        sink = await self._joined(kit, stream)
        waiting = kit.spawn(sink.receive(10))
        assert await is_next_pending(kit, waiting, 0.1), "receive waits until there is something"
        await fill(writer, 1, "first")
        first = await kit.within(5, waiting, "a waiting receive", "M3")
        assert payloads(first) == ["first0"], "receive does not wait for max_events"
        await sink.ack([first[0].receipt])
        await fill(writer, 40)
        assert payloads(await consume(kit, sink, 40)) == [f"e{number}" for number in range(40)]

    @promise("S2")
    async def test_an_unacked_event_comes_again(self, kit: Kit) -> None:
        stream, other = await kit.streams(2)
        sink, second = await self._joined(kit, stream), await self._joined(kit, other)
        await fill(stream, 1)
        holders = [kit.spawn(sink.receive()), kit.spawn(second.receive())]
        began = time.monotonic()
        done, pending = await asyncio.wait(holders, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        assert len(done) == 1, "one event was given to two members, or to none"
        (delivery,) = done.pop().result()
        (waiting,) = pending
        assert delivery.attempt == 1
        loser = second if waiting is holders[1] else sink
        (again,) = await kit.within(kit.ack_wait * 2 + SLACK, waiting, "an unacked event to be delivered again", "S2")
        assert again.event == delivery.event
        assert again.attempt >= 2
        early = kit.ack_wait * 0.9 - (time.monotonic() - began)
        assert early <= 0, f"delivered again {early:.2f} s before ack_wait was over"
        assert await loser.ack([again.receipt]) == [True]

    @promise("S2")
    async def test_an_acked_event_never_comes_again(self, kit: Kit) -> None:
        stream = await kit.stream()
        sink = await self._joined(kit, stream)
        await fill(stream, 3)
        deliveries = await consume(kit, sink, 3)
        assert await sink.ack([delivery.receipt for delivery in deliveries]) == [False] * 3, "acked already"
        assert await sink.ack([]) == []
        more = kit.spawn(sink.receive())
        assert await is_next_pending(kit, more, 2.5 * kit.ack_wait), (
            "an event was delivered again after its ack said True"
        )
        assert not await sink.nack(deliveries[0].receipt)
        assert not await sink.extend(deliveries[0].receipt)
        assert await is_next_pending(kit, more, 0.2), "a nack revived an event that was acked"

    @promise("S2")
    async def test_any_connection_may_ack(self, kit: Kit) -> None:
        stream = await kit.stream()
        sink = await self._joined(kit, stream)
        await fill(stream, 2)
        first, second = await consume(kit, sink, 2, ack=False)
        elsewhere = await self._joined(kit, await kit.stream(backend=await kit.backend()))
        assert await elsewhere.ack([first.receipt]) == [True], "a receipt is a string: any process may ack with it"
        assert await elsewhere.extend(second.receipt)
        assert await elsewhere.ack([second.receipt]) == [True]
        more = kit.spawn(sink.receive())
        assert await is_next_pending(kit, more, 1.5 * kit.ack_wait)
        assert await stream.length() == 0

    @promise("S2")
    async def test_nack_gives_back(self, kit: Kit) -> None:
        stream = await kit.stream()
        sink = await self._joined(kit, stream)
        await fill(stream, 1)
        (delivery,) = await kit.within(5, sink.receive(), "a delivery", "S2")
        assert await sink.nack(delivery.receipt) is True
        began = time.monotonic()
        (again,) = await kit.within(5, sink.receive(), "an event that was given back", "S2")
        assert time.monotonic() - began < max(kit.ack_wait * 0.8, 0.5), "nack without delay waits for nothing"
        assert again.attempt >= 2
        delay = 0.6
        began = time.monotonic()
        assert await sink.nack(again.receipt, delay) is True
        (third,) = await kit.within(delay + SLACK, sink.receive(), "an event that was given back with a delay", "S2")
        waited = time.monotonic() - began
        assert waited >= delay * 0.9, f"delivered again after {waited:.2f} s, the delay was {delay} s"
        assert await sink.ack([third.receipt]) == [True]

    @promise("S2")
    async def test_extend_keeps_a_delivery(self, kit: Kit) -> None:
        stream, other = await kit.streams(2)
        sink, second = await self._joined(kit, stream), await self._joined(kit, other)
        await fill(stream, 1)
        holders = {kit.spawn(sink.receive()): sink, kit.spawn(second.receive()): second}
        done, pending = await asyncio.wait(holders, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        assert len(done) == 1
        holder = done.pop()
        (delivery,) = holder.result()
        (waiting,) = pending
        for _ in range(6):
            assert await is_next_pending(kit, waiting, 0.4 * kit.ack_wait), "delivered to another in spite of extend"
            assert await holders[holder].extend(delivery.receipt) is True
        assert await holders[holder].ack([delivery.receipt]) == [True]
        assert await is_next_pending(kit, waiting, 1.5 * kit.ack_wait), "delivered again after its ack said True"

    @promise("S2", capability="strict_receipts")
    async def test_a_receipt_that_is_no_longer_current(self, kit: Kit) -> None:
        stream, other = await kit.streams(2)
        slow = await self._joined(kit, stream)
        await fill(stream, 1)
        (old,) = await kit.within(5, slow.receive(), "a delivery", "S2")
        fast = await self._joined(kit, other)
        (current,) = await kit.within(kit.ack_wait * 2 + SLACK, fast.receive(), "an unacked event to come again", "S2")
        assert current.event.id == old.event.id
        strict = (await kit.capabilities()).strict_receipts
        extended = await slow.extend(old.receipt)
        acked = await slow.ack([old.receipt])
        if strict:
            assert not extended, "extend honoured a receipt whose event somebody else has"
            assert acked == [False], "the ack of another's delivery was honoured"
            assert not await slow.nack(old.receipt), "nack honoured a receipt whose event somebody else has"
            assert await fast.extend(current.receipt), "the current receipt was spoiled by the old one"
            assert await fast.ack([current.receipt]) == [True]
        elif acked == [True]:
            assert await fast.ack([current.receipt]) in ([True], [False])
        else:
            assert await fast.ack([current.receipt]) == [True]
        more = kit.spawn(fast.receive())
        assert await is_next_pending(kit, more, 1.5 * kit.ack_wait), "delivered again after an ack that said True"

    @promise("S2", "WIRE")
    async def test_a_receipt_that_was_never_given(self, kit: Kit) -> None:
        stream = await kit.stream()
        sink = await self._joined(kit, stream)
        await fill(stream, 1)
        for receipt in ("", "x", "0-0", "\x00☃", "a:b:c:d:e", "$JS.ACK.a.b.1.1.1.1.1", "*", ">", "1" * 300):
            assert await sink.ack([receipt]) == [False], f"ack of {receipt!r}"
            assert await sink.nack(receipt) is False, f"nack of {receipt!r}"
            assert await sink.extend(receipt) is False, f"extend of {receipt!r}"
        (delivery,) = await consume(kit, sink, 1, ack=False)
        assert await sink.ack(["x", delivery.receipt, "y"]) == [False, True, False]

    @promise("S2", "STREAMS")
    async def test_sinks_are_independent(self, kit: Kit) -> None:
        stream = await kit.stream()
        await stream.create()
        one, two = await self._joined(kit, stream, "one"), await self._joined(kit, stream, "two")
        await fill(stream, 10)
        expected = [f"e{number}" for number in range(10)]
        assert payloads(await consume(kit, one, 10)) == expected
        assert payloads(await consume(kit, two, 10)) == expected

    @promise("STREAMS")
    async def test_where_a_sink_starts(self, kit: Kit) -> None:
        stream = await kit.stream()
        ids = await fill(stream, 2, "old")
        await asyncio.sleep(0.05)  # so that the times differ, however coarse the store's clock is
        ids += await fill(stream, 2, "recent")
        border = (await stream.range())[2].timestamp
        newest = await stream.sink("newest", start=NEWEST, ack_wait=kit.ack_wait)
        oldest = await stream.sink("oldest", ack_wait=kit.ack_wait)
        after = await stream.sink("after", start=After(ids[1]), ack_wait=kit.ack_wait)
        since = await stream.sink("since", start=Since(border), ack_wait=kit.ack_wait)
        late = await stream.sink("newest", ack_wait=kit.ack_wait)  # the first member's start counts
        await fill(stream, 2, "new")
        events = ["old0", "old1", "recent0", "recent1", "new0", "new1"]
        assert payloads(await consume(kit, oldest, 6)) == events
        assert payloads(await consume(kit, after, 4)) == events[2:]
        assert payloads(await consume(kit, since, 4)) == events[2:]
        await newest.aclose()
        assert payloads(await consume(kit, late, 2)) == ["new0", "new1"]

    @promise("S2")
    async def test_a_different_ack_wait_changes_nothing_for_others(self, kit: Kit) -> None:
        stream, other = await kit.streams(2)
        sink = await self._joined(kit, stream)
        await fill(stream, 1)
        await kit.within(5, sink.receive(), "a delivery", "S2")
        try:
            stranger = await other.sink("workers", ack_wait=kit.ack_wait * 60)
        except InvalidOptionError:
            stranger = await self._joined(kit, other)
        (again,) = await kit.within(
            kit.ack_wait * 2 + SLACK, stranger.receive(), "the event, after the first ack_wait", "S2"
        )
        assert await stranger.ack([again.receipt]) == [True]

    @promise("S2")
    async def test_a_sealed_or_bounded_stream_frees_room_by_ack(self, kit: Kit) -> None:
        stream = await kit.stream()
        await stream.create(StreamConfig(max_length=2))
        sink = await self._joined(kit, stream)
        for number in range(6):
            await stream.append(NewEvent("e", b"%d" % number))
            await consume(kit, sink, 1)
        assert await stream.length() == 0

    # --- S3 ----------------------------------------------------------------------------------------------------------

    @promise("S3")
    async def test_what_a_leaving_member_held_goes_to_others(self, kit: Kit) -> None:
        stream, other = await kit.streams(2)
        leaver, stayer = await self._joined(kit, stream), await self._joined(kit, other)
        await fill(stream, 5)
        held = await kit.within(5, leaver.receive(3), "deliveries", "S2")
        await kit.within(5, leaver.aclose(), "leaving a sink", "CLOSE")
        await leaver.aclose()
        got = await consume(kit, stayer, 5, within=kit.ack_wait * 3 + SLACK, promise="S3")
        assert sorted(payloads(got)) == [f"e{number}" for number in range(5)]
        assert {delivery.event.id for delivery in held} <= {delivery.event.id for delivery in got}

    @promise("S3")
    async def test_what_a_closed_connection_held_goes_to_others(self, kit: Kit) -> None:
        backend = await kit.backend()
        lost = await self._joined(kit, await kit.stream(backend=backend))
        stream = await kit.stream(backend=await kit.backend())
        await fill(stream, 3)
        await kit.within(5, lost.receive(2), "deliveries", "S2")
        await kit.within(5, backend.aclose(), "closing a connection that holds deliveries", "CLOSE")
        sink = await self._joined(kit, stream)
        got = await consume(kit, sink, 3, within=kit.ack_wait * 3 + SLACK, promise="S3")
        assert sorted(payloads(got)) == ["e0", "e1", "e2"], "what a closed connection had received was forgotten"

    @promise("S3", multi_process=True, deadline=60)
    async def test_what_a_killed_process_held_goes_to_others(self, kit: Kit) -> None:
        stream = await kit.stream()
        await fill(stream, 12)
        await self._kill_a_member(kit, 5)
        sink = await self._joined(kit, stream)
        got = await consume(kit, sink, 12, within=kit.ack_wait * 3 + SLACK, promise="S3")
        if missing := {f"e{number}" for number in range(12)} - set(payloads(got)):
            raise PromiseBroken(
                "S3", f"a member was killed while it held 5 events; never delivered again: {sorted(missing)}"
            )

    @promise("S3", multi_process=True, needs=("members",), deadline=60)
    async def test_a_killed_member_is_forgotten(self, kit: Kit) -> None:
        stream = await kit.stream()
        await fill(stream, 4)
        await self._kill_a_member(kit, 2)
        sink = await self._joined(kit, stream)
        await consume(kit, sink, 4, within=kit.ack_wait * 3 + SLACK, promise="S3")

        async def one_left() -> bool:
            return len(await kit.harness.members(kit.namespace_name, "s", "workers")) <= 1

        await kit.eventually(
            one_left, "the books of a vanished member to be closed", "S3", within=3 * kit.ack_wait + SLACK
        )

    async def _kill_a_member(self, kit: Kit, count: int) -> None:
        victim = await Victim.start(kit, "s", "workers", count)
        await victim.kill()

    # --- destroyed streams -------------------------------------------------------------------------------------------

    @promise("S5", "STREAMS", deadline=40)
    async def test_a_sink_waits_for_the_next_life(self, kit: Kit) -> None:
        stream, writer = await kit.streams(2)
        sink = await self._joined(kit, stream)
        await fill(writer, 2, "old")
        old = await consume(kit, sink, 1, ack=False)
        await writer.destroy()
        assert await sink.ack([old[0].receipt]) == [False], "the receipt of a destroyed stream was honoured"
        receiving = kit.spawn(sink.receive())
        assert await is_next_pending(kit, receiving, 0.2), "a receive ended although the stream is gone"
        await fill(writer, 3, "new")
        first = await kit.within(10, receiving, "the next life of a stream", "S5")
        assert payloads(first) == ["new0"]
        await sink.ack([first[0].receipt])
        assert payloads(await consume(kit, sink, 2)) == ["new1", "new2"]

    # --- M6, close ---------------------------------------------------------------------------------------------------

    @promise("M6", "S2", deadline=45)
    async def test_a_cancelled_receive_loses_nothing(self, kit: Kit) -> None:
        stream, writer = await kit.streams(2)
        sink = await self._joined(kit, stream)
        writing = kit.spawn(fill(writer, 100))
        got: set[str] = set()
        end = time.monotonic() + 20 * kit.harness.patience
        while len(got) < 100:
            if time.monotonic() > end:
                raise PromiseBroken("M6", f"receives were cancelled, and {100 - len(got)} of 100 events never came")
            task = asyncio.ensure_future(sink.receive(5))
            if len(got) < 90 and kit.random.random() < 0.6:
                await asyncio.sleep(kit.random.choice((0, 0, 0.001, 0.003)))
                task.cancel()
            try:
                batch = await kit.within(5 + 2 * kit.ack_wait, task, "a receive after cancelled ones", "M6")
            except asyncio.CancelledError:
                continue
            await sink.ack([delivery.receipt for delivery in batch])
            got.update(payloads(batch))
        await writing
        assert got == {f"e{number}" for number in range(100)}

    @promise("CLOSE")
    async def test_closing_a_sink_ends_its_receive(self, kit: Kit) -> None:
        stream = await kit.stream()
        sink = await self._joined(kit, stream)
        waiting = kit.spawn(sink.receive())
        await kit.a_moment()
        await kit.within(5, sink.aclose(), "closing a sink while a receive waits", "CLOSE")
        with pytest.raises(BackendUnavailable):
            await kit.within(5, waiting, "the pending receive of a closed sink", "CLOSE")
        with pytest.raises(BackendUnavailable):
            await kit.within(5, sink.receive(), "a receive on a closed sink", "CLOSE")

    @promise("S2", needs=("cut",), deadline=60)
    async def test_a_sink_loses_nothing_with_its_connection(self, kit: Kit) -> None:
        stream = await kit.stream(backend=await kit.backend())
        sink = await self._joined(kit, stream)
        await fill(stream, 40)
        got: set[str] = set()
        cuts = 0
        end = time.monotonic() + 30 * kit.harness.patience
        while len(got) < 40:
            if time.monotonic() > end:
                raise PromiseBroken("S2", f"{40 - len(got)} of 40 events never came after the connection was cut")
            batch = await kit.within(20, sink.receive(4), "a receive over a lost connection", "S2")
            if cuts < 3:
                cuts += 1
                await kit.harness.cut()
                await kit.a_moment()
                await kit.harness.heal()
            try:
                await sink.ack([delivery.receipt for delivery in batch])
            except (BackendUnavailable, OutcomeUnknown):  # the events come again, or are done; both count below
                continue
            got.update(payloads(batch))
        assert got == {f"e{number}" for number in range(40)}
