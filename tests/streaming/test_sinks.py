"""Sinks, on whatever backend ``COREPOOL_TEST_URL`` names."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from corepool.driver import NEWEST, After, Backend, open_backend
from corepool.errors import BackendUnavailable, InvalidKeyError, InvalidOptionError
from corepool.streaming import Received, Sink, Stream
from tests.waiting import soon, until

NewStream = Callable[..., Stream]

SHORT = 1.0
"""An ``ack_wait`` in seconds that every backend can keep and a test can wait for."""


async def take(sink: Sink, count: int = 1) -> list[Received]:
    taken: list[Received] = []
    for _ in range(count):
        received = await soon(sink.receive())
        assert received is not None
        taken.append(received)
    return taken


async def fill(stream: Stream, count: int) -> list[str]:
    ids = [await soon(stream.add("e", b"%d" % n, topic=f"t{n % 3}")) for n in range(count)]
    assert None not in ids
    return ids  # type: ignore[return-value]


async def emptied(stream: Stream) -> None:
    """Until every event of the stream is acked."""
    async with asyncio.timeout(20):
        while await stream.length():
            await asyncio.sleep(0.005)


async def nothing_comes(sink: Sink, seconds: float) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(seconds):
            received = await sink.receive()
            raise AssertionError(f"{received} came again")


# --- delivering ------------------------------------------------------------------------------------------------------


async def test_an_acked_event_is_gone(new_stream: NewStream) -> None:
    stream = new_stream()
    ids = await fill(stream, 3)
    async with await stream.sink("g", ack_wait=SHORT) as sink:
        received = await take(sink, 3)
        assert [each.id for each in received] == ids
        assert [(each.stream, each.name, each.payload, each.attempt) for each in received] == [
            (stream.name, "e", b"%d" % n, 1) for n in range(3)
        ]
        assert await soon(sink.ack(received[0]))
        assert await soon(sink.ack_many(received[1:])) == [True, True]
        assert await soon(stream.length()) == 0
        await nothing_comes(sink, 1.5 * SHORT)


async def test_each_event_goes_to_one_member(new_stream: NewStream, other_backend: Backend) -> None:
    stream = new_stream()
    theirs = Stream(other_backend, stream.name)
    members = [await (stream if n % 2 else theirs).sink("g", buffer=2) for n in range(4)]
    got: list[list[str]] = [[] for _ in members]

    async def work(number: int) -> None:
        async for received in members[number]:
            await asyncio.sleep(0)
            assert await members[number].ack(received)
            got[number].append(received.id)

    tasks = [asyncio.create_task(work(n)) for n in range(4)]
    ids = await fill(stream, 200)
    await emptied(stream)
    await until(lambda: sum(map(len, got)) >= 200)
    for member in members:
        await soon(member.aclose())
    await soon(asyncio.gather(*tasks))
    assert sorted(id_ for each in got for id_ in each) == ids


async def test_two_sinks_get_everything_each(new_stream: NewStream) -> None:
    stream = new_stream()
    async with await stream.sink("one") as one, await stream.sink("two") as two:
        ids = await fill(stream, 10)
        for sink in (one, two):
            received = await take(sink, 10)
            assert [each.id for each in received] == ids
            assert all(await soon(sink.ack_many(received)))


async def test_the_first_members_start_counts(new_stream: NewStream) -> None:
    stream = new_stream()
    ids = await fill(stream, 4)
    async with await stream.sink("after", start=After(ids[1])) as one, await stream.sink("after") as two:
        async with asyncio.timeout(20):
            first = await asyncio.gather(
                *(asyncio.create_task(_first(each)) for each in (one, two)), return_exceptions=True
            )
        seen = sorted(each.id for each in first if isinstance(each, Received))
        assert set(seen) <= set(ids[2:])
        assert seen
    async with await stream.sink("newest", start=NEWEST) as sink:
        later = await fill(stream, 2)
        assert [each.id for each in await take(sink, 2)] == later


async def _first(sink: Sink) -> Received | None:
    async with asyncio.timeout(0.5):
        return await sink.receive()


# --- again -----------------------------------------------------------------------------------------------------------


async def test_what_is_not_acked_in_time_comes_again(new_stream: NewStream) -> None:
    stream = new_stream()
    (event_id,) = await fill(stream, 1)
    async with await stream.sink("g", ack_wait=SHORT) as sink:
        (first,) = await take(sink)
        (again,) = await take(sink)
        assert (first.id, again.id) == (event_id, event_id)
        assert (first.attempt, again.attempt >= 2) == (1, True)
        assert await soon(sink.ack(again))
        await nothing_comes(sink, 1.5 * SHORT)


async def test_a_receipt_that_is_no_longer_current_acks_nothing(backend: Backend, new_stream: NewStream) -> None:
    stream = new_stream()
    await fill(stream, 1)
    async with await stream.sink("g", ack_wait=SHORT) as sink:
        (first,) = await take(sink)
        (again,) = await take(sink)
        late = await soon(sink.ack(first))
        if backend.capabilities.strict_receipts:
            assert not late
            assert not await soon(sink.extend(first))
            assert not await soon(sink.nack(first))
            assert await soon(stream.length()) == 1
            assert await soon(sink.ack(again))
        assert await soon(stream.length()) == 0


async def test_a_nack_brings_it_again_at_once(new_stream: NewStream) -> None:
    stream = new_stream()
    (event_id,) = await fill(stream, 1)
    async with await stream.sink("g") as sink:
        (first,) = await take(sink)
        assert await soon(sink.nack(first))
        async with asyncio.timeout(10):  # well below the ack_wait of 30 s
            (again,) = await take(sink)
        assert (again.id, again.attempt >= 2) == (event_id, True)
        assert await soon(sink.ack(again))


async def test_a_nack_with_a_delay_brings_it_later(new_stream: NewStream) -> None:
    stream = new_stream()
    await fill(stream, 1)
    async with await stream.sink("g") as sink:
        (first,) = await take(sink)
        loop = asyncio.get_running_loop()
        before = loop.time()
        assert await soon(sink.nack(first, delay=0.5))
        (again,) = await take(sink)
        assert loop.time() - before >= 0.45
        assert await soon(sink.ack(again))


async def test_extending_keeps_it(new_stream: NewStream) -> None:
    stream = new_stream()
    await fill(stream, 1)
    async with await stream.sink("g", ack_wait=SHORT) as sink, await stream.sink("g", ack_wait=SHORT) as other:
        receiving = [asyncio.create_task(each.receive()) for each in (sink, other)]
        await until(lambda: any(task.done() for task in receiving))
        holder = sink if receiving[0].done() else other
        received = next(task for task in receiving if task.done()).result()
        assert received is not None
        waiting = next(task for task in receiving if not task.done())
        for _ in range(6):
            await asyncio.sleep(SHORT / 3)  # the ack_wait is the server's: twice as long must really pass
            assert await soon(holder.extend(received))
        assert not waiting.done()
        assert await soon(holder.ack(received))
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_keep_extends_by_itself(new_stream: NewStream) -> None:
    stream = new_stream()
    await fill(stream, 1)
    async with await stream.sink("g", ack_wait=SHORT) as sink:
        (received,) = await take(sink)
        async with sink.keep(received) as keeping:
            await nothing_comes(sink, 2 * SHORT)
            assert not keeping.lost
            assert await soon(sink.ack(received))
    assert await soon(stream.length()) == 0


async def test_any_process_may_ack_with_a_receipt(new_stream: NewStream, other_backend: Backend) -> None:
    stream = new_stream()
    theirs = Stream(other_backend, stream.name)
    await fill(stream, 2)
    async with await stream.sink("g", ack_wait=SHORT) as sink, await theirs.sink("g", ack_wait=SHORT) as other:
        receiving = [asyncio.create_task(each.receive()) for each in (sink, other)]
        await until(lambda: any(task.done() for task in receiving))
        holder, helper = (sink, other) if receiving[0].done() else (other, sink)
        received = next(task for task in receiving if task.done()).result()
        assert received is not None
        assert await soon(helper.ack(received.receipt))
        assert holder.name == helper.name
        for task in receiving:
            task.cancel()
        await asyncio.gather(*receiving, return_exceptions=True)


async def test_a_member_that_leaves_gives_its_events_to_others(new_stream: NewStream, other_backend: Backend) -> None:
    stream = new_stream()
    theirs = Stream(other_backend, stream.name)
    ids = await fill(stream, 10)
    first = await stream.sink("g", ack_wait=SHORT, buffer=10)
    await take(first, 2)  # handed out, never acked
    await soon(first.aclose())
    async with await theirs.sink("g", ack_wait=SHORT) as other:
        seen: set[str] = set()
        while seen != set(ids):
            (received,) = await take(other)
            assert await soon(other.ack(received))
            seen.add(received.id)
    assert await soon(stream.length()) == 0


async def test_a_member_whose_backend_closed_loses_nothing(backend_url: str, new_stream: NewStream) -> None:
    stream = new_stream()
    ids = await fill(stream, 10)
    backend = await soon(open_backend(backend_url))
    gone = await soon(Stream(backend, stream.name).sink("g", ack_wait=SHORT, buffer=4))
    await take(gone, 1)
    await soon(backend.aclose())
    async with asyncio.timeout(20):
        rest = [received.id async for received in gone]  # what was fetched already may still come; then it ends
    assert set(rest) <= set(ids)
    await soon(gone.aclose())
    async with await stream.sink("g", ack_wait=SHORT) as other:
        seen: set[str] = set()
        while seen != set(ids):
            (received,) = await take(other)
            await soon(other.ack(received))
            seen.add(received.id)


# --- streams that come and go ----------------------------------------------------------------------------------------


async def test_several_streams_come_and_go_while_it_runs(new_stream: NewStream) -> None:
    one, two, three = new_stream(), new_stream(), new_stream()
    async with await one.sink("g") as sink:
        assert await soon(sink.add_stream(two))
        assert not await soon(sink.add_stream(two))
        assert sink.streams == [one.key, two.key]
        got: dict[str, list[str]] = {one.name: [], two.name: [], three.name: []}

        async def work() -> None:
            async for received in sink:
                assert await sink.ack(received)
                got[received.stream].append(received.id)

        worker = asyncio.create_task(work())
        ids = {one.name: await fill(one, 20), two.name: await fill(two, 20), three.name: await fill(three, 20)}
        await until(lambda: got[one.name] == ids[one.name] and got[two.name] == ids[two.name])
        assert got[three.name] == []
        await soon(sink.add_stream(three))
        await until(lambda: got == ids)
        assert await soon(sink.remove_stream(two))
        assert not await soon(sink.remove_stream(two))
        await fill(two, 3)
        ids[one.name] += await fill(one, 3)
        await until(lambda: got == ids)
        assert await soon(two.length()) == 3
        await soon(sink.add_stream(two))
        await until(lambda: len(got[two.name]) == 23)
        await soon(sink.aclose())
        await soon(worker)


async def test_a_removed_streams_events_go_to_other_members_and_can_still_be_acked(
    new_stream: NewStream, other_backend: Backend
) -> None:
    stream, rest = new_stream(), new_stream()
    ids = await fill(stream, 5)
    sink = await stream.sink("g", buffer=5)
    await soon(sink.add_stream(rest))
    (held,) = await take(sink)
    await soon(sink.remove_stream(stream))
    async with await Stream(other_backend, stream.name).sink("g") as other:
        received = await take(other, 4)  # at once, though ack_wait is 30 s
        assert sorted(each.id for each in received) == [id_ for id_ in ids if id_ != held.id]
        assert all(await soon(other.ack_many(received)))
    assert not await soon(sink.extend(held))
    assert await soon(sink.ack(held))
    assert await soon(stream.length()) == 0
    await soon(sink.aclose())


async def test_acking_after_close(new_stream: NewStream) -> None:
    stream = new_stream()
    await fill(stream, 2)
    sink = await stream.sink("g")
    received = await take(sink, 2)
    await soon(sink.aclose())
    assert await soon(sink.ack(received[0]))
    assert await soon(sink.ack(received[1].receipt))
    assert await soon(stream.length()) == 0
    with pytest.raises(BackendUnavailable):
        await soon(sink.add_stream(stream))


async def test_a_sink_lives_on_in_the_streams_next_life(new_stream: NewStream) -> None:
    stream = new_stream()
    async with await stream.sink("g") as sink:
        await fill(stream, 1)
        (received,) = await take(sink)
        await soon(stream.destroy())
        assert not await soon(sink.ack(received))
        (event_id,) = await fill(stream, 1)
        (received,) = await take(sink)
        assert received.id == event_id
        assert await soon(sink.ack(received))


# --- topics, bounds, cancellation ------------------------------------------------------------------------------------


async def test_unwanted_topics_are_acked_and_never_come_again(new_stream: NewStream) -> None:
    stream = new_stream()
    ids = await fill(stream, 30)
    async with await stream.sink("g", ack_wait=SHORT, topics="t1") as sink:
        received = await take(sink, 10)
        assert [each.id for each in received] == ids[1::3]
        assert all(await soon(sink.ack_many(received)))
        await emptied(stream)


async def test_an_unread_sink_blocks_nobody(new_stream: NewStream) -> None:
    stream = new_stream()
    unread = [await stream.sink(f"unread {n}", buffer=2) for n in range(3)]
    await fill(stream, 100)
    async with await stream.sink("read") as sink:
        assert all(await soon(sink.ack_many(await take(sink, 100))))
    for each in unread:
        await soon(each.aclose())


async def test_cancelled_receives_lose_nothing(new_stream: NewStream) -> None:
    stream = new_stream()
    got: list[str] = []
    async with await stream.sink("g", buffer=3) as sink:
        ids = await fill(stream, 40)
        while len(got) < 40:
            task = asyncio.create_task(sink.receive())
            for _ in range(len(got) % 4):
                await asyncio.sleep(0)
            task.cancel()
            (result,) = await asyncio.gather(task, return_exceptions=True)
            received = result if isinstance(result, Received) else (await take(sink))[0]
            assert await soon(sink.ack(received))
            got.append(received.id)
    assert got == ids


async def test_several_tasks_share_a_member(new_stream: NewStream) -> None:
    stream = new_stream()
    got: list[str] = []
    sink = await stream.sink("g", buffer=4)

    async def work() -> None:
        async for received in sink:
            assert await sink.ack(received)
            got.append(received.id)

    workers = [asyncio.create_task(work()) for _ in range(5)]
    ids = await fill(stream, 100)
    await until(lambda: len(got) >= 100)
    await soon(sink.aclose())
    await soon(asyncio.gather(*workers))
    assert sorted(got) == ids


async def test_close_ends_a_waiting_receive(new_stream: NewStream) -> None:
    sink = await new_stream().sink("g")
    waiting = asyncio.create_task(sink.receive())
    await asyncio.sleep(0)
    await soon(asyncio.gather(sink.aclose(), sink.aclose()))
    assert await soon(waiting) is None
    assert [received async for received in sink] == []


async def test_a_closed_sink_leaves_no_task(new_stream: NewStream) -> None:
    stream = new_stream()
    await fill(stream, 3)
    async with await stream.sink("g") as sink:
        await soon(sink.ack((await take(sink))[0]))
    names = ("corepool stream", "corepool sink")
    await until(lambda: not [task for task in asyncio.all_tasks() if task.get_name().startswith(names)])


@pytest.mark.parametrize("name", ["", "\ud800", "n" * 100_000, None])
async def test_a_bad_sink_name_is_refused(new_stream: NewStream, name: Any) -> None:
    stream = new_stream()
    await fill(stream, 1)
    before = asyncio.all_tasks()
    with pytest.raises(InvalidKeyError):
        await soon(stream.sink(name))
    assert not [task for task in asyncio.all_tasks() - before if "corepool sink" in task.get_name()]


@pytest.mark.parametrize(
    "options",
    [{"buffer": 0}, {"ack_wait": 0.0}, {"ack_wait": -1.0}, {"ack_wait": float("nan")}, {"ack_wait": float("inf")}],
)
async def test_bad_options_are_refused(new_stream: NewStream, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError):
        await soon(new_stream().sink("g", **options))


@pytest.mark.parametrize("name", [" ", "\u00e9", "a\0b", "*.>", "{x}:"])
async def test_odd_sink_names_do_not_meet(new_stream: NewStream, name: str) -> None:
    stream = new_stream(name)
    ids = await fill(stream, 2)
    for each in (name, name + name):
        async with await stream.sink(each) as sink:
            received = await take(sink, 2)
            assert [one.id for one in received] == ids
            assert all(await soon(sink.ack_many(received)))
            if each == name:
                # The stream dropped what its only sink had done with; the other sink needs events of its own.
                ids = await fill(stream, 2)
