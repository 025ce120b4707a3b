"""Streams and readers, on whatever backend ``COREPOOL_TEST_URL`` names."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from corepool.driver import NEWEST, OLDEST, After, Backend, Since, StreamConfig, StreamKind, open_backend
from corepool.errors import (
    BackendUnavailable,
    InvalidKeyError,
    InvalidOptionError,
    PayloadTooLarge,
    StreamFull,
    StreamSealed,
)
from corepool.streaming import Message, Reader, Stream
from tests.waiting import soon, until

NewStream = Callable[..., Stream]

ODD = [" ", "\u00e9", "e\u0301", "\U0001f600", "a\0b", "*", ">", "a.b", "/", ":", "{x}", "\n", "%00"]


async def take(reader: Reader, count: int) -> list[Message]:
    return [await soon(anext(reader)) for _ in range(count)]


async def fill(stream: Stream, count: int, first: int = 0) -> list[str]:
    ids = [await soon(stream.add("e", b"%d" % n, topic=f"t{n % 3}")) for n in range(first, first + count)]
    assert None not in ids
    return ids  # type: ignore[return-value]


# --- streams ---------------------------------------------------------------------------------------------------------


async def test_events_come_back_with_growing_ids_and_the_stores_time(new_stream: NewStream) -> None:
    stream = new_stream()
    assert not await soon(stream.exists())
    assert await soon(stream.length()) == 0
    ids = await fill(stream, 20)
    assert ids == sorted(set(ids))
    events = await soon(stream.range(limit=100))
    assert [(event.id, event.name, event.payload, event.topic) for event in events] == [
        (ids[n], "e", b"%d" % n, f"t{n % 3}") for n in range(20)
    ]
    assert [event.timestamp for event in events] == sorted(event.timestamp for event in events)
    assert await soon(stream.length()) == 20
    assert [event.id for event in await soon(stream.range(ids[4], 3))] == ids[5:8]
    assert [event.id for event in await soon(stream.read_now(ids[0]))] == ids[1:]


async def test_read_now_goes_through_all_pages(new_stream: NewStream) -> None:
    stream = new_stream()
    ids = await fill(stream, 230)
    assert [event.id for event in await soon(stream.read_now())] == ids


async def test_remove(new_stream: NewStream) -> None:
    stream = new_stream()
    ids = await fill(stream, 5)
    assert await soon(stream.remove(ids[1], ids[3])) == 2
    assert await soon(stream.remove(ids[1])) == 0
    assert [event.id for event in await soon(stream.range())] == [ids[0], ids[2], ids[4]]


async def test_only_if_exists_never_makes_a_stream(new_stream: NewStream) -> None:
    for config in (StreamConfig(), StreamConfig(max_length=5)):
        stream = new_stream(config=config)
        assert await soon(stream.add("e", b"", only_if_exists=True)) is None
        assert not await soon(stream.exists())
        assert await soon(stream.create())
        assert not await soon(stream.create())
        assert await soon(stream.add("e", b"", only_if_exists=True))
        await soon(stream.destroy())
        assert await soon(stream.add("e", b"", only_if_exists=True)) is None
        assert not await soon(stream.exists())
        await soon(stream.destroy())


async def test_a_sealed_stream_takes_no_more_and_can_be_read(new_stream: NewStream) -> None:
    for config in (StreamConfig(), StreamConfig(max_length=50)):
        stream = new_stream(config=config)
        ids = await fill(stream, 2)
        await soon(stream.seal())
        with pytest.raises(StreamSealed):
            await soon(stream.add("e", b""))
        assert await soon(stream.add("e", b"", only_if_exists=True)) is None
        assert [event.id for event in await soon(stream.range())] == ids
        assert await soon(stream.exists())


async def test_a_full_work_stream_rejects_and_one_life_later_still_does(new_stream: NewStream) -> None:
    stream = new_stream(config=StreamConfig(max_length=3))
    for _ in range(2):
        await fill(stream, 3)
        with pytest.raises(StreamFull):
            await soon(stream.add("e", b""))
        assert await soon(stream.length()) == 3
        await soon(stream.destroy())  # the next add makes it again, with its configuration


async def test_a_full_log_drops_its_oldest(new_stream: NewStream) -> None:
    stream = new_stream(config=StreamConfig(kind=StreamKind.LOG, max_length=3))
    ids = await fill(stream, 5)
    assert [event.id for event in await soon(stream.range())] == ids[2:]


async def test_ids_grow_across_destruction(new_stream: NewStream) -> None:
    stream = new_stream()
    before = await fill(stream, 3)
    await soon(stream.destroy())
    await soon(stream.destroy())
    assert await soon(stream.length()) == 0
    assert (await fill(stream, 1))[0] > before[-1]


@pytest.mark.parametrize("text", ODD)
async def test_odd_names_and_topics_come_back(new_stream: NewStream, text: str) -> None:
    stream, other = new_stream(text), new_stream(text + text)
    await soon(stream.add(text, text.encode(), topic=text))
    await soon(other.add("other", b""))
    (event,) = await soon(stream.range())
    assert (event.name, event.payload, event.topic) == (text, text.encode(), text)


@pytest.mark.parametrize("bad", ["", "\ud800", "n" * 100_000, None, b"x"])
async def test_bad_names_are_refused_and_append_nothing(backend: Backend, new_stream: NewStream, bad: Any) -> None:
    with pytest.raises(InvalidKeyError):
        Stream(backend, bad)
    with pytest.raises(InvalidKeyError):
        Stream(backend, "name", namespace=bad)
    stream = new_stream()
    with pytest.raises(InvalidKeyError):
        await soon(stream.add(bad, b""))
    if bad != "":  # an event without a topic has the topic ""
        with pytest.raises(InvalidKeyError):
            await soon(stream.add("e", b"", topic=bad))
    assert await soon(stream.length()) == 0


async def test_a_payload_over_the_limit_is_refused(backend: Backend, new_stream: NewStream) -> None:
    stream = new_stream()
    limit = backend.capabilities.max_value_bytes
    await soon(stream.add("e", b"x" * limit))
    with pytest.raises(PayloadTooLarge):
        await soon(stream.add("e", b"x" * (limit + 1)))
    for payload in ("text", None):
        with pytest.raises(TypeError):
            await soon(stream.add("e", payload))  # type: ignore[arg-type]
    assert await soon(stream.length()) == 1


# --- where a reader starts -------------------------------------------------------------------------------------------


async def test_oldest_reads_what_was_and_what_comes(new_stream: NewStream) -> None:
    stream = new_stream()
    ids = await fill(stream, 5)
    async with await stream.reader(start=OLDEST) as reader:
        assert [message.id for message in await take(reader, 5)] == ids
        ids = await fill(stream, 5)
        assert [message.id for message in await take(reader, 5)] == ids


async def test_newest_reads_what_comes(new_stream: NewStream) -> None:
    stream = new_stream()
    before = await fill(stream, 5)
    async with await stream.reader(start=NEWEST) as reader:
        first = asyncio.create_task(anext(reader))
        added: list[str] = []
        while not first.done():  # until the backend has noted the position
            added += await fill(stream, 1)
            await asyncio.sleep(0.01)
        got = (await soon(first)).id
        assert got in added
        assert got not in before
        assert [message.id for message in await take(reader, len(added) - added.index(got) - 1)] == added[
            added.index(got) + 1 :
        ]


async def test_after_reads_what_follows_an_id_also_of_an_event_that_is_gone(new_stream: NewStream) -> None:
    stream = new_stream()
    ids = await fill(stream, 6)
    await soon(stream.remove(ids[2]))
    async with await stream.reader(start=After(ids[2])) as reader:
        assert [message.id for message in await take(reader, 3)] == ids[3:]


async def test_since_reads_from_a_time(new_stream: NewStream) -> None:
    stream = new_stream()
    await fill(stream, 3)
    await asyncio.sleep(0.02)  # the store's timestamps must differ for a time to stand between
    ids = await fill(stream, 3)
    events = await soon(stream.range())
    async with await stream.reader(start=Since(events[3].timestamp)) as reader:
        assert [message.id for message in await take(reader, 3)] == ids
    async with await stream.reader(start=Since(0.0)) as reader:
        assert [message.id for message in await take(reader, 6)] == [event.id for event in events]


# --- reading ---------------------------------------------------------------------------------------------------------


async def test_readers_are_independent(new_stream: NewStream, other_backend: Backend) -> None:
    stream = new_stream()
    ids = await fill(stream, 10)
    theirs = Stream(other_backend, stream.name)
    async with await stream.reader() as one, await theirs.reader() as two:
        assert [message.id for message in await take(one, 10)] == ids
        assert [message.id for message in await take(two, 10)] == ids
    assert await soon(stream.length()) == 10


async def test_a_small_buffer_reads_everything_in_order(new_stream: NewStream) -> None:
    stream = new_stream()
    ids = await fill(stream, 300)
    async with await stream.reader(buffer=1) as reader:
        assert [message.id for message in await take(reader, 300)] == ids


async def test_an_unread_reader_blocks_nobody(new_stream: NewStream) -> None:
    stream = new_stream()
    unread = [await stream.reader(buffer=1) for _ in range(5)]
    ids = await fill(stream, 300)
    async with await stream.reader() as reader:
        assert [message.id for message in await take(reader, 300)] == ids
    for each in unread:
        await soon(each.aclose())
        assert [message async for message in each] == []


async def test_several_streams_are_merged_each_in_its_order(new_stream: NewStream) -> None:
    one, two, three = new_stream(), new_stream(), new_stream()
    async with await one.reader(buffer=4) as reader:
        assert await soon(reader.add_stream(two))
        assert not await soon(reader.add_stream(two))
        ids = {one.name: await fill(one, 50), two.name: await fill(two, 50)}
        seen: dict[str, list[str]] = {one.name: [], two.name: [], three.name: []}
        for message in await take(reader, 60):
            seen[message.stream].append(message.id)
        ids[three.name] = await fill(three, 10)
        await soon(reader.add_stream(three))  # while running
        for message in await take(reader, 50):
            seen[message.stream].append(message.id)
        assert seen == ids
        assert reader.streams == [one.key, two.key, three.key]


async def test_a_removed_stream_is_heard_no_more(new_stream: NewStream) -> None:
    one, two = new_stream(), new_stream()
    async with await one.reader() as reader:
        await soon(reader.add_stream(two))
        await fill(two, 3)
        await take(reader, 3)
        assert await soon(reader.remove_stream(two))
        assert not await soon(reader.remove_stream(two))
        await fill(two, 3)
        ids = await fill(one, 1)
        assert [message.id for message in await take(reader, 1)] == ids
        await soon(reader.add_stream(two, start=OLDEST))
        assert [message.stream for message in await take(reader, 6)] == [two.name] * 6


async def test_streams_of_one_name_in_two_namespaces_are_two(backend: Backend, new_stream: NewStream) -> None:
    one = new_stream()
    two = Stream(backend, one.name, namespace="elsewhere")
    async with await one.reader() as reader:
        assert await soon(reader.add_stream(two))
        await soon(two.add("two", b""))
        (message,) = await take(reader, 1)
        assert (message.namespace, message.name) == ("elsewhere", "two")
    await soon(two.destroy())


async def test_topics_are_filtered(new_stream: NewStream) -> None:
    stream = new_stream()
    await fill(stream, 30)
    await soon(stream.add("e", b"last", topic="t/last"))
    async with await stream.reader(topics="t1", patterns="t/*") as reader:
        got = await take(reader, 11)
        assert [message.topic for message in got] == ["t1"] * 10 + ["t/last"]
        assert [int(message.payload) for message in got[:10]] == list(range(1, 30, 3))


async def test_several_tasks_share_a_reader(new_stream: NewStream) -> None:
    stream = new_stream()
    got: list[str] = []
    reader = await stream.reader(buffer=2)

    async def follow() -> None:
        while (message := await anext(reader, None)) is not None:
            got.append(message.id)

    tasks = [asyncio.create_task(follow()) for _ in range(4)]
    ids = await fill(stream, 100)
    await until(lambda: len(got) >= 100)
    await soon(reader.aclose())
    await soon(asyncio.gather(*tasks))
    assert sorted(got) == ids


async def test_cancelled_takes_lose_nothing(new_stream: NewStream) -> None:
    stream = new_stream()
    got: list[str] = []
    async with await stream.reader(buffer=3) as reader:
        ids = await fill(stream, 50)
        while len(got) < 50:
            task = asyncio.create_task(anext(reader))
            for _ in range(len(got) % 4):
                await asyncio.sleep(0)
            task.cancel()
            (result,) = await asyncio.gather(task, return_exceptions=True)
            if isinstance(result, Message):
                got.append(result.id)
            else:
                got.append((await soon(anext(reader))).id)
    assert got == ids


async def test_close_ends_a_waiting_iteration(new_stream: NewStream) -> None:
    stream = new_stream()
    reader = await stream.reader()
    waiting = asyncio.create_task(anext(reader))
    await asyncio.sleep(0)
    await soon(asyncio.gather(reader.aclose(), reader.aclose()))
    with pytest.raises(StopAsyncIteration):
        await soon(waiting)
    with pytest.raises(BackendUnavailable):
        await soon(reader.add_stream(stream))


async def test_closing_the_backend_ends_the_iteration(backend_url: str, new_stream: NewStream) -> None:
    ours = new_stream()
    ids = await fill(ours, 2)
    backend = await soon(open_backend(backend_url))
    reader = await soon(Stream(backend, ours.name).reader())
    assert [message.id for message in await take(reader, 2)] == ids
    waiting = asyncio.create_task(anext(reader))
    await asyncio.sleep(0)
    await soon(backend.aclose())
    with pytest.raises(StopAsyncIteration):
        await soon(waiting)
    await soon(reader.aclose())


async def test_a_reader_lives_on_in_the_streams_next_life(new_stream: NewStream) -> None:
    stream = new_stream()
    async with await stream.reader() as reader:
        before = await fill(stream, 2)
        assert [message.id for message in await take(reader, 2)] == before
        await soon(stream.destroy())
        after = await fill(stream, 2)
        assert [message.id for message in await take(reader, 2)] == after


async def test_a_closed_reader_leaves_no_task(new_stream: NewStream) -> None:
    stream = new_stream()
    reader = await stream.reader()
    await fill(stream, 1)
    await take(reader, 1)
    await soon(reader.aclose())
    await until(lambda: not [task for task in asyncio.all_tasks() if "corepool stream pump" in task.get_name()])


@pytest.mark.parametrize("options", [{"buffer": 0}, {"topics": [1]}, {"patterns": [1]}])
async def test_bad_options_are_refused(new_stream: NewStream, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError):
        await soon(new_stream().reader(**options))
