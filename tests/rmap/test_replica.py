"""The replica, its waiters and its feed, on a store whose watch can be made to lag, fail, go back and end."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from corepool.driver import Change, Cleared, Entry, Snapshot, SystemClock
from corepool.errors import BackendUnavailable, OutcomeUnknown, WireError
from corepool.rmap import BYTES, JSON, TEXT, Lagged, MapChange, MapCleared, MapSnapshot, ReplicatedMap
from corepool.rmap.replica import Replica

if TYPE_CHECKING:
    from tests.rmap.conftest import FakeStore

    Opened = Callable[..., Any]


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition; the test's own timeout bounds it."""
    while not condition():
        await asyncio.sleep(0)


async def soon(awaitable: Any) -> Any:
    async with asyncio.timeout(5):
        return await awaitable


async def settled() -> None:
    """Let everything run that can run without an event from outside."""
    for _ in range(20):
        await asyncio.sleep(0)


# --- waiters ---------------------------------------------------------------------------------------------------------


async def test_set_and_wait_returns_when_the_replica_has_the_write_and_not_before(
    store: FakeStore, opened: Opened
) -> None:
    rmap = await opened()
    store.holding = True
    task = asyncio.create_task(rmap.set_and_wait("k", "v"))
    await until(lambda: rmap.waiting)
    await settled()
    assert not task.done()
    assert rmap.get("k") is None
    store.release()
    assert (await soon(task)).applied
    assert rmap["k"] == "v"
    assert rmap.waiting == 0


async def test_a_write_overwritten_before_it_was_seen_still_returns(store: FakeStore, opened: Opened) -> None:
    rmap = await opened()
    store.holding = True
    task = asyncio.create_task(rmap.set_and_wait("k", "mine"))
    await until(lambda: rmap.waiting)
    store.held.clear()  # the backend coalesces: only the later write reaches the watch
    store.put("k", b"theirs")
    store.release()
    await soon(task)
    assert rmap["k"] == "theirs"


async def test_two_waits_for_the_same_key_and_value_both_return(store: FakeStore, opened: Opened) -> None:
    rmap = await opened()
    store.holding = True
    tasks = [asyncio.create_task(rmap.set_and_wait("k", "same")) for _ in range(2)]
    await until(lambda: rmap.waiting == 2)
    store.release()
    one, two = await soon(asyncio.gather(*tasks))
    assert one.revision != two.revision


async def test_a_cancelled_set_and_wait_leaks_no_waiter_and_disturbs_no_other(store: FakeStore, opened: Opened) -> None:
    rmap = await opened()
    store.holding = True
    tasks = [asyncio.create_task(rmap.set_and_wait("k", str(n))) for n in range(5)]
    await until(lambda: rmap.waiting == 5)
    for task in tasks[1::2]:
        task.cancel()
    await soon(asyncio.gather(*tasks[1::2], return_exceptions=True))
    assert rmap.waiting == 3
    store.release()
    await soon(asyncio.gather(*tasks[0::2]))
    assert rmap.waiting == 0


async def test_waiters_resolve_in_revision_order_whatever_order_they_came_in() -> None:
    replica: Replica[bytes] = Replica("m", BYTES)
    replica.apply(Snapshot(0, ()))
    revisions = list(range(1, 101))
    random.Random(7).shuffle(revisions)
    done: list[int] = []

    async def wait(revision: int) -> None:
        await replica.wait(revision, 0)
        done.append(revision)

    tasks = [asyncio.create_task(wait(revision)) for revision in revisions]
    await until(lambda: replica.waiting == 100)
    for upto in (10, 11, 60, 100):
        replica.apply(Change(upto, "k", b""))
        await settled()
        assert sorted(done) == list(range(1, upto + 1))
        assert replica.waiting == 100 - upto
    await soon(asyncio.gather(*tasks))


async def test_a_refused_set_and_wait_returns_when_the_replica_shows_why(store: FakeStore, opened: Opened) -> None:
    from corepool.driver import ABSENT

    rmap = await opened()
    store.holding = True
    store.put("k", b"theirs")
    task = asyncio.create_task(rmap.set_and_wait("k", "mine", when=ABSENT))
    await until(lambda: rmap.waiting)
    store.release()
    written = await soon(task)
    assert not written
    assert written.previous == "theirs"
    assert rmap["k"] == "theirs"


async def test_close_ends_every_wait_with_an_error(store: FakeStore, opened: Opened) -> None:
    rmap = await opened()
    store.holding = True
    written = asyncio.create_task(rmap.set_and_wait("k", "v"))
    waited = asyncio.create_task(rmap.wait_for_revision(99))
    await until(lambda: rmap.waiting == 2)
    await soon(rmap.aclose())
    with pytest.raises(OutcomeUnknown, match="has revision 1 in the store"):
        await soon(written)
    with pytest.raises(BackendUnavailable):
        await soon(waited)
    with pytest.raises(BackendUnavailable):
        await soon(rmap.wait_for_revision(99))


# --- a store that went back ------------------------------------------------------------------------------------------


async def test_a_larger_generation_accepts_an_older_revision_and_fails_the_waiters(
    store: FakeStore, opened: Opened
) -> None:
    rmap = await opened()
    for n in range(5):
        await soon(rmap.set_and_wait(f"k{n}", "v"))
    waiter = asyncio.create_task(rmap.wait_for_revision(50))
    await until(lambda: rmap.waiting)
    store.go_back(2, {"k0": b"v"})
    with pytest.raises(OutcomeUnknown):
        await soon(waiter)
    assert (rmap.revision, rmap.generation, list(rmap.keys())) == (2, 1, ["k0"])
    with pytest.raises(OutcomeUnknown):  # a revision of the generation before means nothing any more
        await soon(rmap.wait_for_revision(4, generation=0))
    await soon(rmap.set_and_wait("new", "v"))
    assert (rmap.revision, rmap["new"]) == (3, "v")


async def test_a_write_acknowledged_before_the_store_went_back_does_not_wait_for_ever(
    store: FakeStore, opened: Opened
) -> None:
    rmap = await opened()
    await soon(rmap.set_and_wait("k", "v"))
    stop = asyncio.Event()

    async def hold_the_reply() -> None:
        store.before_write = None
        store.go_back(0, {})
        store.revision = 10  # the write gets revision 11, the replica hears of the loss before the reply comes
        await stop.wait()

    store.before_write = hold_the_reply
    task = asyncio.create_task(rmap.set_and_wait("k", "w"))
    await until(lambda: rmap.generation == 1)
    store.holding = True
    stop.set()
    with pytest.raises(OutcomeUnknown):
        await soon(task)


async def test_a_write_with_a_revision_already_passed_is_noticed(store: FakeStore, opened: Opened) -> None:
    """The store went back and the watch has not noticed: comparing the numbers would say "seen" of an unseen write."""
    rmap = await opened()
    for n in range(5):
        await soon(rmap.set_and_wait("k", str(n)))
    store.holding = True
    store.revision = 1
    with pytest.raises(OutcomeUnknown, match="went back"):
        await soon(rmap.set_and_wait("k", "lost?"))


# --- the order of events ---------------------------------------------------------------------------------------------


async def test_the_replica_never_goes_back_within_a_generation() -> None:
    replica: Replica[bytes] = Replica("m", BYTES)
    replica.apply(Snapshot(5, (Entry("a", b"5", 5),)))
    replica.apply(Change(4, "a", b"4"))
    replica.apply(Change(5, "b", b"again"))
    replica.apply(Cleared(3))
    replica.apply(Snapshot(4, ()))
    assert (replica.revision, replica.values) == (5, {"a": b"5"})
    replica.apply(Change(6, "a", None))
    assert (replica.revision, replica.values, replica.raw) == (6, {}, {})


async def test_a_watch_without_a_snapshot_is_refused() -> None:
    replica: Replica[bytes] = Replica("m", BYTES)
    with pytest.raises(WireError, match="without a snapshot"):
        replica.apply(Change(1, "a", b""))
    assert replica.revision == 0


async def test_a_snapshot_of_the_state_that_is_there_is_no_news() -> None:
    replica: Replica[bytes] = Replica("m", BYTES)
    replica.apply(Snapshot(5, (Entry("a", b"5", 5),)))
    subscription = replica.subscribe()
    replica.apply(Snapshot(5, (Entry("a", b"5", 5),)))
    assert not subscription.pending


# --- the feed --------------------------------------------------------------------------------------------------------


async def test_a_watch_that_raises_is_logged_and_replaced_without_a_gap(
    store: FakeStore, opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    rmap = await opened()
    waiter = asyncio.create_task(rmap.wait_for_revision(1))
    store.watches[0].queue.put_nowait(RuntimeError("the driver has a bug"))
    await until(lambda: store.watches[0].closed)
    store.put("missed", b"v")  # while nobody watches
    await soon(waiter)
    assert rmap["missed"] == "v"
    assert (rmap.restarts, rmap.generation, len(store.watches)) == (1, 0, 2)
    record = next(record for record in caplog.records if record.levelno >= logging.ERROR)
    assert "fake" in record.getMessage()
    assert "the driver has a bug" in caplog.text


async def test_a_replacing_watch_with_an_older_state_counts_as_going_back(store: FakeStore, opened: Opened) -> None:
    rmap = await opened()
    for n in range(3):
        await soon(rmap.set_and_wait("k", str(n)))
    store.watches[0].queue.put_nowait(RuntimeError("lost"))
    await until(lambda: store.watches[0].closed)
    store.revision, store.entries = 1, {"k": Entry("k", b"0", 1)}
    await until(lambda: rmap.generation)
    assert (rmap.revision, rmap["k"]) == (1, "0")


async def test_an_error_of_the_first_watch_is_the_callers(store: FakeStore) -> None:
    store.watch_error = ValueError("bad name")
    before = asyncio.all_tasks()
    with pytest.raises(ValueError, match="bad name"):
        await soon(ReplicatedMap.open(store, codec=TEXT, clock=SystemClock(), random=random.Random(1)))
    assert asyncio.all_tasks() == before


async def test_a_cancelled_open_leaves_no_task_and_no_watch(store: FakeStore) -> None:
    before = asyncio.all_tasks()
    store.snapshot = lambda: None  # type: ignore[method-assign,assignment]  # the first snapshot never comes ...

    class Silent(type(store.watch())):  # type: ignore[misc]
        async def __anext__(self) -> Any:
            await asyncio.Event().wait()

    watches: list[Silent] = []

    def watch() -> Silent:
        watches.append(Silent())
        return watches[-1]

    store.watch = watch  # type: ignore[method-assign]
    task = asyncio.create_task(ReplicatedMap.open(store, codec=TEXT, clock=SystemClock(), random=random.Random(1)))
    await until(lambda: watches)
    await settled()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(task)
    assert asyncio.all_tasks() == before
    assert watches[0].closed


async def test_a_watch_that_cannot_close_does_not_hold_up_close(store: FakeStore, opened: Opened) -> None:
    rmap = await opened()
    store.watches[0].close_error = RuntimeError("cannot close")
    await soon(rmap.aclose())
    assert rmap.closed


async def test_a_watch_that_ends_freezes_the_replica_and_ends_the_listeners(store: FakeStore, opened: Opened) -> None:
    rmap = await opened()
    await soon(rmap.set_and_wait("k", "v"))
    subscription, changes = rmap.subscribe(), rmap.changes()
    waiter = asyncio.create_task(rmap.wait_for_revision(9))
    await until(lambda: rmap.waiting)
    store.watches[0].queue.put_nowait(None)  # the backend was closed
    with pytest.raises(BackendUnavailable):
        await soon(waiter)
    assert rmap.closed
    assert rmap["k"] == "v"
    assert [each async for each in subscription] == []
    assert [type(each) async for each in changes] == [MapSnapshot]
    with pytest.raises(BackendUnavailable):
        await rmap.set("k", "w")


async def test_the_feed_gives_other_tasks_a_turn(store: FakeStore, opened: Opened) -> None:
    rmap = await opened()
    for n in range(2000):
        store.put("k", str(n).encode())
    seen: list[int] = []
    while rmap.revision < 2000:
        await asyncio.sleep(0)
        seen.append(rmap.revision)
    assert len(seen) >= 4


async def test_the_feed_outlives_the_task_that_opened_the_map(store: FakeStore, opened: Opened) -> None:
    async def opener() -> Any:
        async with asyncio.timeout(5):
            return await opened()

    rmap = await asyncio.create_task(opener())
    await soon(rmap.set_and_wait("k", "v"))
    assert rmap["k"] == "v"


# --- values that cannot be decoded -----------------------------------------------------------------------------------


async def test_an_undecodable_value_is_set_aside_and_counted_and_the_next_ones_come(
    store: FakeStore, opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    store.put("old", b"\xff")
    rmap = await opened()
    assert rmap.undecodable == 1
    store.put("bad", b"\xfe")
    store.put("good", b"v")
    await soon(rmap.wait_for_revision(3))
    assert dict(rmap.items()) == {"good": "v"}
    assert "bad" not in rmap
    assert rmap.set_aside() == {"old": b"\xff", "bad": b"\xfe"}
    assert rmap.undecodable == 2
    assert "'bad'" in caplog.text
    store.put("bad", b"fine")
    await soon(rmap.wait_for_revision(4))
    assert rmap["bad"] == "fine"


async def test_a_good_value_overwritten_by_a_bad_one_is_not_shown_any_more(store: FakeStore, opened: Opened) -> None:
    rmap = await opened(JSON)
    await soon(rmap.set_and_wait("k", {"a": 1}))
    changes = rmap.changes()
    store.put("k", b"{")
    await soon(rmap.wait_for_revision(2))
    assert rmap.get("k") is None
    assert [await anext(changes), await anext(changes)] == [
        MapSnapshot(1, 0, {"k": {"a": 1}}),
        MapChange(2, "k", None),
    ]


async def test_a_codec_that_raises_anything_does_not_stop_the_feed(store: FakeStore, opened: Opened) -> None:
    class Picky:
        def encode(self, value: int) -> bytes:
            return str(value).encode()

        def decode(self, data: bytes) -> int:
            if data == b"7":
                raise ZeroDivisionError
            return int(data)

    rmap = await opened(Picky())
    store.put("a", b"7")
    store.put("b", b"8")
    await soon(rmap.wait_for_revision(2))
    assert dict(rmap.items()) == {"b": 8}
    assert rmap.restarts == 0
    with pytest.raises(WireError):
        await rmap.fetch("a")
    assert await rmap.fetch_many(["a", "b"]) == {"b": 8}
    assert [item async for item in rmap.scan()] == [("b", 8)]
    assert (await rmap.delete("a")).previous is None  # the write's own result is not lost over it


async def test_a_reconnecting_watch_counts_a_bad_value_once(store: FakeStore, opened: Opened) -> None:
    rmap = await opened()
    store.put("bad", b"\xff")
    await soon(rmap.wait_for_revision(1))
    store.emit(store.snapshot())
    store.put("x", b"y")
    await soon(rmap.wait_for_revision(2))
    assert rmap.undecodable == 1


# --- subscriptions ---------------------------------------------------------------------------------------------------


async def test_a_subscription_coalesces(store: FakeStore, opened: Opened) -> None:
    rmap = await opened()
    subscription = rmap.subscribe()
    for n in range(100):
        store.put("k", str(n).encode())
    await soon(rmap.wait_for_revision(100))
    assert await soon(subscription.changed())
    assert rmap["k"] == "99"
    assert not subscription.pending
    waiting = asyncio.create_task(subscription.changed())
    await settled()
    assert not waiting.done()
    store.put("k", b"more")
    assert await soon(waiting)


async def test_a_subscription_announces_the_last_change_before_it_ends(store: FakeStore, opened: Opened) -> None:
    rmap = await opened()
    subscription = rmap.subscribe()
    await soon(rmap.set_and_wait("k", "v"))
    await rmap.aclose()
    assert [each async for each in subscription] == [None]
    assert not await soon(subscription.changed())


async def test_closing_a_subscription_ends_its_wait_and_forgets_it(store: FakeStore, opened: Opened) -> None:
    rmap = await opened()
    with rmap.subscribe() as subscription:
        waiting = asyncio.create_task(subscription.changed())
        await settled()
    assert not await soon(waiting)
    subscription.close()
    await soon(rmap.set_and_wait("k", "v"))
    assert not subscription.pending


async def test_changes_gives_each_change_in_order(store: FakeStore, opened: Opened) -> None:
    rmap = await opened()
    async with rmap.changes() as changes:
        await rmap.set("a", "1")
        await rmap.set("a", "2")
        await rmap.delete("a")
        await rmap.clear()
        await soon(rmap.wait_for_revision(4))
        got = [await soon(anext(changes)) for _ in range(5)]
    assert got == [
        MapSnapshot(0, 0, {}),
        MapChange(1, "a", "1"),
        MapChange(2, "a", "2"),
        MapChange(3, "a", None),
        MapCleared(4),
    ]
    assert [each async for each in changes] == []


async def test_a_slow_reader_of_changes_gets_lagged_then_a_snapshot_then_goes_on(
    store: FakeStore, opened: Opened
) -> None:
    rmap = await opened()
    changes = rmap.changes(limit=8)
    for n in range(100):
        store.put(f"k{n % 10}", str(n).encode())
    await soon(rmap.wait_for_revision(100))
    lagged = await soon(anext(changes))
    store.put("between", b"v")  # in the snapshot or behind it, but not lost and not twice
    await soon(rmap.wait_for_revision(101))
    assert lagged == Lagged(101)
    snapshot = await soon(anext(changes))
    assert isinstance(snapshot, MapSnapshot)
    assert snapshot.revision == 100
    assert snapshot.entries == {f"k{n % 10}": str(n) for n in range(90, 100)}
    assert await soon(anext(changes)) == MapChange(101, "between", "v")


async def test_changes_tells_when_the_store_went_back(store: FakeStore, opened: Opened) -> None:
    rmap = await opened()
    await soon(rmap.set_and_wait("k", "v"))
    changes = rmap.changes()
    store.go_back(0, {})
    await until(lambda: rmap.generation)
    assert [await soon(anext(changes)) for _ in range(2)] == [MapSnapshot(1, 0, {"k": "v"}), MapSnapshot(0, 1, {})]


async def test_a_snapshot_is_not_touched_by_later_changes(store: FakeStore, opened: Opened) -> None:
    rmap = await opened()
    await soon(rmap.set_and_wait("k", "v"))
    snapshot = rmap.snapshot()
    await soon(rmap.set_and_wait("k", "w"))
    assert snapshot == MapSnapshot(1, 0, {"k": "v"})
