"""Listening to a map, alone: who waits is woken, what waits is bounded, and an end is an end."""

from __future__ import annotations

import asyncio

import pytest

from corepool.rmap.subscriptions import Changes, Lagged, MapChange, MapSnapshot, Subscription
from tests.waiting import soon

LIMIT = 3


class Listened:
    """A listing of changes, and the map that it comes from."""

    def __init__(self) -> None:
        self.revision = 0
        self.closed: list[object] = []
        self.changes: Changes[str] = Changes(LIMIT, self.snapshot, self.closed.append)

    def snapshot(self) -> MapSnapshot[str]:
        return MapSnapshot(self.revision, 0, {"k": str(self.revision)})

    def change(self) -> MapChange[str]:
        self.revision += 1
        event = MapChange(self.revision, "k", str(self.revision))
        self.changes.push(event)
        return event


@pytest.fixture
async def listened() -> Listened:
    one = Listened()
    assert await soon(anext(one.changes)) == MapSnapshot(0, 0, {"k": "0"})
    return one


async def waiting(listened: Listened) -> asyncio.Task[object]:
    task = asyncio.create_task(anext(listened.changes, None))  # type: ignore[arg-type]
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done(), "there is nothing to read"
    return task


async def test_a_reader_that_waits_hears_of_each_change(listened: Listened) -> None:
    for _ in range(3):
        reading = await waiting(listened)
        event = listened.change()
        assert await soon(reading) == event


async def test_a_reader_that_waits_hears_of_the_end(listened: Listened) -> None:
    reading = await waiting(listened)
    listened.changes.end()
    assert await soon(reading) is None
    reading = asyncio.create_task(anext(listened.changes, None))  # type: ignore[arg-type]
    assert await soon(reading) is None, "and goes on hearing of it"


async def test_closing_drops_what_waits_and_tells_the_map_once_per_call(listened: Listened) -> None:
    reading = await waiting(listened)
    await listened.changes.aclose()
    assert await soon(reading) is None
    assert listened.closed == [listened.changes]
    other = Listened()
    other.change()
    await other.changes.aclose()
    other.change()
    assert [event async for event in other.changes] == []


async def test_the_end_of_the_map_comes_after_what_waits(listened: Listened) -> None:
    event = listened.change()
    listened.changes.end()
    listened.change()  # too late
    assert [each async for each in listened.changes] == [event]


async def test_as_many_as_fit_are_kept(listened: Listened) -> None:
    events = [listened.change() for _ in range(LIMIT)]
    assert [await soon(anext(listened.changes)) for _ in range(LIMIT)] == events


@pytest.mark.parametrize("more", [1, 6])
async def test_one_more_drops_them_all_and_a_snapshot_of_now_follows(listened: Listened, more: int) -> None:
    for _ in range(LIMIT + more):
        listened.change()
    assert await soon(anext(listened.changes)) == Lagged(LIMIT + more)
    later = listened.change()
    assert await soon(anext(listened.changes)) == MapSnapshot(LIMIT + more, 0, {"k": str(LIMIT + more)})
    assert await soon(anext(listened.changes)) == later
    (await waiting(listened)).cancel()


async def test_a_subscription_announces_any_number_of_changes_once() -> None:
    closed: list[object] = []
    subscription = Subscription(closed.append)
    looking = asyncio.create_task(subscription.changed())
    await asyncio.sleep(0)
    assert not looking.done()
    for _ in range(3):
        subscription.notify()
    assert subscription.pending
    assert await soon(looking)
    assert not subscription.pending
    looking = asyncio.create_task(subscription.changed())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not looking.done(), "three changes, one announcement"
    subscription.notify()
    assert await soon(looking)
    subscription.notify()
    subscription.close()
    assert [await soon(subscription.changed()) for _ in range(3)] == [True, False, False], (
        "the last change, then the end"
    )
    assert closed == [subscription]


async def test_blocks_end_what_they_began(listened: Listened) -> None:
    async with listened.changes as changes:
        assert changes is listened.changes
    assert listened.closed == [changes]
    assert [each async for each in changes] == []
    closed: list[object] = []
    with Subscription(closed.append) as subscription:
        subscription.notify()
    assert closed == [subscription]
    assert [each async for each in subscription] == [None]


async def test_closing_a_subscription_ends_a_wait() -> None:
    subscription = Subscription(lambda _: None)
    looking = asyncio.create_task(subscription.changed())
    await asyncio.sleep(0)
    subscription.close()
    assert not await soon(looking)
