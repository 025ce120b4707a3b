"""Readers and sinks on a scripted backend: pumps that fail, deliveries that grow old, closings that hang."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from corepool.driver import NEWEST, OLDEST, After, StreamConfig
from corepool.errors import BackendUnavailable, InvalidOptionError, OutcomeUnknown, StreamSealed
from corepool.streaming import Sink, Stream
from corepool.streaming import sink as sink_module
from tests.waiting import soon, until

if TYPE_CHECKING:
    from tests.streaming.conftest import FakeBackend, FakeMember


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def stream(fake: FakeBackend, name: str = "s") -> Stream:
    return Stream(fake, name)  # type: ignore[arg-type]


async def sink_of(fake: FakeBackend, **options: Any) -> tuple[Sink, FakeMember]:
    sink = await stream(fake).sink("g", **options)
    return sink, fake.stores["s"].members[0]


# --- readers ---------------------------------------------------------------------------------------------------------


async def test_a_reading_that_raises_is_logged_and_goes_on_after_the_last_event(
    fake: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    async with await stream(fake).reader(topics="t") as reader:
        readings = fake.stores["s"].readings
        readings[0].queue.put_nowait(fake.event(1, "t"))
        readings[0].queue.put_nowait(fake.event(2, "unwanted"))
        readings[0].queue.put_nowait(RuntimeError("the driver has a bug"))
        assert (await soon(anext(reader))).id == "0001"
        await until(lambda: len(readings) == 2)
        assert readings[0].closed
        assert [reading.start for reading in readings] == [OLDEST, After("0002")]
        readings[1].queue.put_nowait(fake.event(3, "t"))
        assert (await soon(anext(reader))).id == "0003"
    assert "fake/s" in caplog.text
    assert "the driver has a bug" in caplog.text


async def test_a_full_buffer_stops_the_fetching(fake: FakeBackend) -> None:
    async with await stream(fake).reader(buffer=3) as reader:
        reading = fake.stores["s"].readings[0]
        for n in range(10):
            reading.queue.put_nowait(fake.event(n))
        await settled()
        assert reading.queue.qsize() == 7
        await soon(anext(reader))
        await settled()
        assert reading.queue.qsize() == 6
        assert [(await soon(anext(reader))).id for _ in range(9)] == [f"{n:04}" for n in range(1, 10)]


async def test_a_busy_stream_starves_no_other(fake: FakeBackend) -> None:
    async with await stream(fake, "busy").reader(buffer=50) as reader:
        await reader.add_stream(stream(fake, "quiet"))
        for n in range(50):
            fake.stores["busy"].readings[0].queue.put_nowait(fake.event(n))
        await settled()
        fake.stores["quiet"].readings[0].queue.put_nowait(fake.event(0))
        await settled()
        assert "quiet" in [(await soon(anext(reader))).stream for _ in range(2)]


async def test_the_start_reaches_the_driver(fake: FakeBackend) -> None:
    async with await stream(fake).reader(start=NEWEST):
        assert fake.stores["s"].readings[0].start == NEWEST


async def test_a_reader_ends_when_all_its_streams_have_ended(fake: FakeBackend) -> None:
    async with await stream(fake, "a").reader() as reader:
        await reader.add_stream(stream(fake, "b"))
        fake.stores["a"].readings[0].queue.put_nowait(None)
        fake.stores["b"].readings[0].queue.put_nowait(fake.event(1))
        fake.stores["b"].readings[0].queue.put_nowait(None)
        async with asyncio.timeout(5):
            assert [message.stream async for message in reader] == ["b"]


async def test_a_reader_without_streams_waits_for_one(fake: FakeBackend) -> None:
    async with await stream(fake, "a").reader() as reader:
        assert await reader.remove_stream(stream(fake, "a"))
        waiting = asyncio.create_task(anext(reader))
        await settled()
        assert not waiting.done()
        await reader.add_stream(stream(fake, "b"))
        fake.stores["b"].readings[0].queue.put_nowait(fake.event(1))
        assert (await soon(waiting)).stream == "b"


# --- what grows old in a sink's buffer -------------------------------------------------------------------------------


async def test_a_fresh_delivery_is_handed_out_as_it_is(fake: FakeBackend) -> None:
    sink, member = await sink_of(fake, ack_wait=10.0)
    member.queue.put_nowait([fake.delivery(1)])
    assert (await soon(sink.receive())).receipt == "receipt 1"
    assert member.extended == []
    await sink.aclose()


async def test_a_delivery_that_waited_long_is_extended_before_it_is_handed_out(fake: FakeBackend) -> None:
    sink, member = await sink_of(fake, ack_wait=10.0)
    member.queue.put_nowait([fake.delivery(1), fake.delivery(2), fake.delivery(3)])
    member.extend_answer = lambda receipt: receipt != "receipt 2"
    await settled()
    fake.clock.now += 5.0
    assert [(await soon(sink.receive())).receipt for _ in range(2)] == ["receipt 1", "receipt 3"]
    assert member.extended == ["receipt 1", "receipt 2", "receipt 3"]
    await sink.aclose()


async def test_a_delivery_that_cannot_be_extended_now_is_left_to_come_again(fake: FakeBackend) -> None:
    sink, member = await sink_of(fake, ack_wait=10.0)
    member.queue.put_nowait([fake.delivery(1)])
    await settled()
    fake.clock.now += 5.0

    def unreachable(receipt: str) -> bool:
        raise OutcomeUnknown("the reply was lost")

    member.extend_answer = unreachable
    receiving = asyncio.create_task(sink.receive())
    await settled()
    member.queue.put_nowait([fake.delivery(2)])
    assert (await soon(receiving)).receipt == "receipt 2"
    await sink.aclose()


async def test_cancelling_a_receive_that_extends_loses_nothing(fake: FakeBackend) -> None:
    sink, member = await sink_of(fake, ack_wait=10.0)
    member.queue.put_nowait([fake.delivery(1), fake.delivery(2)])
    await settled()
    fake.clock.now += 5.0

    async def slow() -> bool:
        await asyncio.Event().wait()
        return True

    member.extend_answer = lambda receipt: slow()
    receiving = asyncio.create_task(sink.receive())
    await settled()
    receiving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await receiving
    member.extend_answer = lambda receipt: True
    assert [(await soon(sink.receive())).receipt for _ in range(2)] == ["receipt 1", "receipt 2"]
    await sink.aclose()


async def test_a_sink_fetches_no_more_than_fits(fake: FakeBackend) -> None:
    sink, member = await sink_of(fake, buffer=4)
    member.queue.put_nowait([fake.delivery(n) for n in range(3)])
    member.queue.put_nowait([fake.delivery(3)])
    await settled()
    assert member.asked == [4, 1]
    await soon(sink.receive())
    await settled()
    assert member.asked == [4, 1, 1]
    await sink.aclose()


# --- topics ----------------------------------------------------------------------------------------------------------


async def test_unwanted_events_are_acked_and_an_ack_that_fails_stops_nothing(
    fake: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    sink, member = await sink_of(fake, topics="wanted")
    member.ack_error = OutcomeUnknown("the reply was lost")
    member.queue.put_nowait([fake.delivery(1, "other")])
    await settled()
    member.ack_error = None
    member.queue.put_nowait([fake.delivery(1, "other"), fake.delivery(2, "wanted"), fake.delivery(3, "other")])
    assert (await soon(sink.receive())).receipt == "receipt 2"
    await settled()
    assert member.acked == ["receipt 1", "receipt 3"]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]  # expected: no pump was restarted
    await sink.aclose()


# --- leaving ---------------------------------------------------------------------------------------------------------


async def test_closing_gives_back_what_was_fetched_and_not_handed_out(fake: FakeBackend) -> None:
    sink, member = await sink_of(fake)
    member.queue.put_nowait([fake.delivery(n) for n in range(3)])
    await soon(sink.receive())
    await soon(asyncio.gather(sink.aclose(), sink.aclose()))
    assert member.nacked == ["receipt 1", "receipt 2"]
    assert member.closed
    assert await soon(sink.receive()) is None


async def test_removing_a_stream_gives_back_and_leaves(fake: FakeBackend) -> None:
    sink, member = await sink_of(fake)
    await sink.add_stream(stream(fake, "other"))
    member.queue.put_nowait([fake.delivery(n) for n in range(3)])
    await settled()
    assert await soon(sink.remove_stream(stream(fake)))
    assert not await soon(sink.remove_stream(stream(fake)))
    assert member.nacked == ["receipt 0", "receipt 1", "receipt 2"]
    assert member.closed
    assert sink.streams == [("fake", "other")]
    fake.stores["other"].members[0].queue.put_nowait([fake.delivery(7)])
    assert (await soon(sink.receive())).stream == "other"
    await sink.aclose()


async def test_a_backend_that_hangs_or_fails_does_not_hold_up_close(
    fake: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink_module, "_CLOSE_TIMEOUT", 0.05)
    sink, member = await sink_of(fake)
    await sink.add_stream(stream(fake, "other"))
    member.queue.put_nowait([fake.delivery(1)])
    member.nack_hangs = True
    member.close_error = RuntimeError("the driver has a bug")
    await settled()
    await soon(sink.aclose())
    assert member.closed
    assert fake.stores["other"].members[0].closed


async def test_a_cancelled_removal_is_finished_all_the_same(fake: FakeBackend) -> None:
    sink, member = await sink_of(fake)
    removing = asyncio.create_task(sink.remove_stream(stream(fake)))
    await asyncio.sleep(0)
    removing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await removing
    await until(lambda: member.closed)
    await soon(sink.aclose())


async def test_closing_while_joining_leaves_no_member(fake: FakeBackend) -> None:
    sink, _ = await sink_of(fake)
    other = stream(fake, "other")
    fake.stores["other"].joining = asyncio.Event()
    adding = asyncio.create_task(sink.add_stream(other))
    await settled()
    assert not await soon(sink.add_stream(other))  # on its way already: no second member
    await soon(sink.aclose())
    fake.stores["other"].joining.set()
    with pytest.raises(BackendUnavailable):
        await soon(adding)
    assert [member.closed for member in fake.stores["other"].members] == [True]
    with pytest.raises(BackendUnavailable):
        await sink.add_stream(other)


async def test_removing_while_joining_leaves_no_member(fake: FakeBackend) -> None:
    sink, _ = await sink_of(fake)
    other = stream(fake, "other")
    fake.stores["other"].joining = asyncio.Event()
    adding = asyncio.create_task(sink.add_stream(other))
    await settled()
    assert await soon(sink.remove_stream(other))
    fake.stores["other"].joining.set()
    assert not await soon(adding)
    assert [member.closed for member in fake.stores["other"].members] == [True]
    await sink.aclose()


async def test_a_cancelled_sink_call_leaves_nothing(fake: FakeBackend) -> None:
    one = stream(fake)
    fake.stores["s"].joining = asyncio.Event()
    opening = asyncio.create_task(one.sink("g"))
    await settled()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert fake.stores["s"].members == []


async def test_a_sink_ends_when_its_backend_does(fake: FakeBackend) -> None:
    sink, member = await sink_of(fake)
    member.queue.put_nowait([fake.delivery(1)])
    member.queue.put_nowait(fake.gone())
    async with asyncio.timeout(5):
        assert [received.receipt async for received in sink] == ["receipt 1"]
    await sink.aclose()


async def test_a_member_that_raises_is_asked_again(fake: FakeBackend, caplog: pytest.LogCaptureFixture) -> None:
    sink, member = await sink_of(fake)
    member.queue.put_nowait(RuntimeError("the driver has a bug"))
    member.queue.put_nowait([fake.delivery(1)])
    assert (await soon(sink.receive())).receipt == "receipt 1"
    assert "the driver has a bug" in caplog.text
    await sink.aclose()


# --- keep ------------------------------------------------------------------------------------------------------------


async def test_keep_extends_until_the_block_ends_and_outlives_failures(fake: FakeBackend) -> None:
    sink, member = await sink_of(fake, ack_wait=0.03)
    member.queue.put_nowait([fake.delivery(1)])
    received = await soon(sink.receive())
    answers = iter([RuntimeError("a bug"), OutcomeUnknown("lost"), True])

    def answer(receipt: str) -> bool:
        one = next(answers, True)
        if isinstance(one, Exception):
            raise one
        return one

    member.extend_answer = answer
    async with sink.keep(received) as keeping:
        await until(lambda: len(member.extended) >= 4)
        assert not keeping.lost
    count = len(member.extended)
    await asyncio.sleep(0.05)  # nothing may come, for several times the pause between two extensions
    assert len(member.extended) == count
    await sink.aclose()


async def test_keep_says_when_the_delivery_is_lost(fake: FakeBackend) -> None:
    sink, member = await sink_of(fake, ack_wait=0.03)
    member.queue.put_nowait([fake.delivery(1)])
    received = await soon(sink.receive())
    member.extend_answer = lambda receipt: False
    async with sink.keep(received) as keeping:
        await until(lambda: keeping.lost)
    await sink.aclose()


# --- receipts --------------------------------------------------------------------------------------------------------


async def test_a_bare_receipt_of_a_sink_with_several_streams_needs_the_stream(fake: FakeBackend) -> None:
    sink, member = await sink_of(fake)
    assert await sink.ack("r0")
    other = stream(fake, "other")
    await sink.add_stream(other)
    for call in (sink.ack("r1"), sink.nack("r1"), sink.extend("r1")):
        with pytest.raises(InvalidOptionError, match="stream="):
            await call
    assert await sink.ack("r2", stream=other)
    assert await sink.ack_many(["r3", "r4"], stream=stream(fake)) == [True, True]
    assert (member.acked, fake.stores["other"].members[0].acked) == (["r0", "r3", "r4"], ["r2"])
    await sink.aclose()


@pytest.mark.parametrize("delay", [-1.0, float("nan"), float("inf")])
async def test_a_bad_delay_is_refused(fake: FakeBackend, delay: float) -> None:
    sink, member = await sink_of(fake)
    with pytest.raises(InvalidOptionError):
        await sink.nack("r", delay=delay)
    assert member.nacked == []
    await sink.aclose()


# --- adding with a configuration ---------------------------------------------------------------------------------------


async def test_an_add_goes_on_when_the_stream_is_destroyed_under_it(fake: FakeBackend) -> None:
    """Somebody makes the stream between append and create, and destroys it again before the second append."""
    bounded = Stream(fake, "s", config=StreamConfig(max_length=3))  # type: ignore[arg-type]
    store = fake.stores["s"]
    store.others_create = 1
    assert await soon(bounded.add("e", b"")) == "0001"
    assert store.created == [bounded.config]


async def test_an_add_to_a_sealed_stream_with_a_configuration_says_so(fake: FakeBackend) -> None:
    bounded = Stream(fake, "s", config=StreamConfig(max_length=3))  # type: ignore[arg-type]
    await bounded.create()
    fake.stores["s"].sealed = True
    with pytest.raises(StreamSealed):
        await soon(bounded.add("e", b""))
