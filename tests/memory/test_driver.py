"""The client side: maps and batches, embedded and on a wire that is slow and breaks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from corepool.driver import (
    ABSENT,
    Ack,
    Append,
    Appended,
    AppendValues,
    Change,
    Commit,
    CommitResult,
    Delete,
    DeleteKey,
    GetKey,
    Increment,
    NewEvent,
    Refusal,
    Set,
    SetKey,
    Snapshot,
    open_backend,
)
from corepool.errors import (
    BackendUnavailable,
    InvalidKeyError,
    InvalidOptionError,
    OutcomeUnknown,
    PayloadTooLarge,
    UnsupportedCapability,
)
from corepool_memory import maps as maps_module
from corepool_memory.feeds import Feed, Feeds

EVENT = NewEvent("e", b"p")


async def test_what_is_wrong_is_refused_before_anything_is_sent(world: Any) -> None:
    wire, backend = world.wire()
    namespace = backend.namespace("ns")
    store, stream = namespace.map("m"), namespace.stream("s")
    large = b"x" * (backend.capabilities.max_value_bytes + 1)
    long = "k" * (backend.capabilities.max_key_bytes + 1)
    sink = await stream.sink("g")
    sent = len(wire.log)
    attempts: list[tuple[type[Exception], Callable[[], Awaitable[object]]]] = [
        (InvalidKeyError, lambda: store.get("")),
        (InvalidKeyError, lambda: store.get_many(["ok", ""])),
        (InvalidKeyError, lambda: store.set(long, b"")),
        (PayloadTooLarge, lambda: store.set("k", large)),
        (TypeError, lambda: store.set("k", cast("bytes", "text"))),
        (InvalidKeyError, lambda: store.delete("\ud800")),
        (InvalidKeyError, lambda: store.apply([Set("ok", b""), Delete("")])),
        (PayloadTooLarge, lambda: store.apply([Set("ok", large)])),
        (InvalidKeyError, lambda: store.update("", Increment(1))),
        (PayloadTooLarge, lambda: stream.append(NewEvent("e", large))),
        (InvalidKeyError, lambda: stream.append(NewEvent("", b""))),
        (InvalidKeyError, lambda: stream.append(NewEvent("e", b"", "\ud800"))),
        (InvalidKeyError, lambda: stream.sink("")),
        (InvalidOptionError, lambda: stream.sink("g", ack_wait=0.0)),
        (InvalidOptionError, lambda: stream.sink("g", ack_wait=float("nan"))),
        (InvalidOptionError, lambda: stream.range(limit=-1)),
        (InvalidOptionError, lambda: sink.nack("r", -1.0)),
        (InvalidOptionError, lambda: sink.receive(0)),
        (InvalidKeyError, lambda: namespace.commit([SetKey("", "k", b"")])),
        (InvalidKeyError, lambda: namespace.commit([SetKey("m", "", b"")])),
        (PayloadTooLarge, lambda: namespace.commit([SetKey("m", "k", large)])),
        (InvalidKeyError, lambda: namespace.commit([DeleteKey("m", long)])),
        (InvalidKeyError, lambda: namespace.commit([GetKey("m", long)])),
        (InvalidKeyError, lambda: namespace.commit([Append("", EVENT)])),
        (InvalidOptionError, lambda: namespace.commit([Append("s", EVENT, stamp=0)])),
        (InvalidOptionError, lambda: namespace.commit([GetKey("m", "k"), Append("s", EVENT, stamp=0)])),
        (PayloadTooLarge, lambda: namespace.commit([GetKey("m", "k")] * 1025)),
    ]
    for error, attempt in attempts:
        with pytest.raises(error):
            await attempt()
    for name in ("", "n" * 2000):
        for make in (backend.namespace, namespace.map, namespace.stream):
            with pytest.raises(InvalidKeyError):
                make(name)
    assert len(wire.log) == sent


async def test_maps_over_a_wire(world: Any) -> None:
    _, backend = world.wire()
    store = backend.namespace("ns").map("m")
    assert store.name == "m"
    assert backend.namespace("ns").name == "ns"
    commit = await store.set("k", b"1", ABSENT)
    assert commit == Commit(True, 1, None)
    assert not (await store.set("k", b"2", ABSENT)).applied
    assert (await store.update("n", Increment(3))).value == b"3"
    assert list(await store.get_many(["k", "n", "x"])) == ["k", "n"]
    assert [entry.key async for entry in store.scan("n")] == ["n"]
    assert [item.applied for item in await store.apply([Delete("k"), Set("k", b"3", ABSENT)])] == [True, True]
    assert (await store.delete("k")).applied
    assert (await store.clear()).applied
    await store.destroy()
    assert world.server.contents() == {}


async def test_value_operations_can_be_switched_off() -> None:
    backend = await open_backend("memory://", value_ops=False)
    store = backend.namespace("ns").map("m")
    assert not backend.capabilities.value_ops
    with pytest.raises(UnsupportedCapability):
        await store.update("k", AppendValues((b"a",)))
    assert await store.get("k") is None
    await backend.aclose()


# --- commits ---------------------------------------------------------------------------------------------------------


async def test_an_atomic_commit_is_one_request(world: Any) -> None:
    wire, backend = world.wire()
    result = await backend.namespace("ns").commit([SetKey("m", "a", b"1"), SetKey("m", "b", b"2")])
    assert [item.applied for item in result.results if isinstance(item, Commit)] == [True, True]
    assert wire.log == ["commit"]


async def test_without_atomic_commit_each_operation_is_a_request_and_others_come_between(world: Any) -> None:
    wire, backend = world.wire(atomic_commit=False)
    other = world.server.maps("ns")
    wire.fail = lambda what: other.set("m", "b", b"theirs") and None if what == "commit SetKey" else None
    namespace = backend.namespace("ns")
    result = await namespace.commit([SetKey("m", "a", b"1"), SetKey("m", "b", b"mine", ABSENT), SetKey("m", "c", b"3")])
    assert wire.log == ["commit SetKey", "commit SetKey"]
    assert result.stopped == 1
    assert len(result.results) == 2
    assert [entry.key for entry in other.entries("m")] == ["b", "a"], "the prefix stays"


async def test_embedded_without_atomic_commit_lets_others_come_between() -> None:
    backend = await open_backend("memory://", atomic_commit=False)
    namespace = backend.namespace("ns")
    commit = asyncio.create_task(namespace.commit([SetKey("m", str(index), b"") for index in range(3)]))
    counts = []
    while not commit.done():
        counts.append(len(await namespace.map("m").get_many(["0", "1", "2"])))
        await asyncio.sleep(0)
    assert [count for count in (1, 2) if count in counts] == [1, 2]
    await backend.aclose()


async def test_stamps_and_acks_without_atomic_commit(world: Any) -> None:
    _, backend = world.wire(atomic_commit=False)
    namespace = backend.namespace("ns")
    stream = namespace.stream("s")
    await stream.create()
    sink = await stream.sink("g")
    result = await namespace.commit([SetKey("m", "k", b"1"), GetKey("m", "k"), Append("s", EVENT, stamp=0)])
    (delivery,) = await sink.receive()
    assert isinstance(result.results[0], Commit)
    assert delivery.event.stamp == result.results[0].revision
    result = await namespace.commit([Ack(delivery.receipt), Ack(delivery.receipt), Append("none", EVENT)])
    assert result == CommitResult((True, False, Appended(None, Refusal.MISSING)), 2)
    await backend.aclose()


@pytest.mark.parametrize(
    ("fail_at", "fate", "error", "left"),
    [
        (0, "drop", BackendUnavailable, []),
        (1, "drop", OutcomeUnknown, ["a"]),
        (0, "lose", OutcomeUnknown, ["a"]),
        (1, "lose", OutcomeUnknown, ["a", "b"]),
    ],
)
async def test_a_commit_that_breaks_off_says_whether_anything_was_applied(
    world: Any, fail_at: int, fate: str, error: type[Exception], left: list[str]
) -> None:
    wire, backend = world.wire(atomic_commit=False)
    wire.fail = lambda what: fate if len(wire.log) == fail_at + 1 else None
    with pytest.raises(error):
        await backend.namespace("ns").commit([SetKey("m", "a", b""), SetKey("m", "b", b""), SetKey("m", "c", b"")])
    assert [entry.key for entry in world.server.maps("ns").entries("m")] == left


async def test_a_commit_that_only_reads_has_no_unknown_outcome(world: Any) -> None:
    for options in ({}, {"atomic_commit": False}):
        wire, backend = world.wire(**options)
        wire.fail = lambda what: "lose"
        with pytest.raises(BackendUnavailable):
            await backend.namespace("ns").commit([GetKey("m", "a")])


# --- watches ---------------------------------------------------------------------------------------------------------


async def test_a_watch_over_a_wire_that_is_cut_goes_on_with_a_snapshot(world: Any) -> None:
    wire, backend = world.wire()
    store, other = backend.namespace("ns").map("m"), world.server.maps("ns")
    watch = store.watch()
    assert await anext(watch) == Snapshot(0, ())
    await store.set("a", b"1")
    assert await anext(watch) == Change(1, "a", b"1")
    waiting = asyncio.create_task(anext(watch))
    await asyncio.sleep(0)
    wire.cut()
    other.set("m", "b", b"2")
    snapshot = await waiting
    assert (snapshot.revision, len(snapshot.entries)) == (2, 2)
    wire.cut()  # nobody waits: the next reader finds out
    other.set("m", "c", b"3")
    assert (await anext(watch)).revision == 3
    assert world.server.listener_count() == 1
    await watch.aclose()
    await backend.aclose()
    assert world.server.listener_count() == 0


async def test_an_unread_watch_holds_little_blocks_nobody_and_misses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps_module, "WATCH_BUFFER", 5)
    backend = await open_backend("memory://")
    store = backend.namespace("ns").map("m")
    lazy: Any = store.watch()
    eager = store.watch()
    for watch in (lazy, eager):
        assert (await anext(watch)).revision == 0
    for index in range(20):
        await store.set("k", b"%d" % index)
        assert await anext(eager) == Change(index + 1, "k", b"%d" % index)
        assert len(lazy._events) <= 5
    event = await anext(lazy)
    assert isinstance(event, Snapshot)
    assert (event.revision, event.entries[0].value) == (20, b"19")
    await store.set("k", b"more")
    assert await anext(lazy) == Change(21, "k", b"more")
    await backend.aclose()


async def test_closing_ends_a_watch_that_waits_and_one_that_does_not() -> None:
    for close_backend in (False, True):
        backend = await open_backend("memory://")
        store = backend.namespace("ns").map("m")
        watch = store.watch()
        await anext(watch)
        await store.set("a", b"1")
        waiters = [asyncio.create_task(anext(watch)) for _ in range(2)]
        await asyncio.sleep(0)
        await (backend.aclose() if close_backend else watch.aclose())
        results = await asyncio.wait_for(asyncio.gather(*waiters, return_exceptions=True), 5)
        assert [type(result) for result in results] == [Change, StopAsyncIteration]
        assert [event async for event in watch] == []
        unused = store.watch()
        await watch.aclose()
        await backend.aclose()
        await backend.aclose()
        assert [event async for event in unused] == []


async def test_after_closing_every_call_says_so() -> None:
    backend = await open_backend("memory://")
    namespace = backend.namespace("ns")
    await backend.aclose()
    for call in (namespace.map("m").get("k"), namespace.commit([]), namespace.settle()):
        with pytest.raises(BackendUnavailable, match="closed"):
            await call


async def test_a_cancelled_watch_loses_nothing() -> None:
    backend = await open_backend("memory://")
    store = backend.namespace("ns").map("m")
    watch = store.watch()
    await anext(watch)
    for index in range(5):
        waiting = asyncio.create_task(anext(watch))
        await asyncio.sleep(0)
        await store.set("k", b"%d" % index)
        waiting.cancel()  # woken and cancelled in the same turn
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (await anext(watch)).revision == index + 1
    await backend.aclose()


async def test_a_cancelled_call_disturbs_nobody(world: Any) -> None:
    wire, backend = world.wire()
    store = backend.namespace("ns").map("m")
    await store.set("a", b"1")
    wire.held = True
    cancelled = asyncio.create_task(store.get("a"))
    other = asyncio.create_task(store.get("absent"))
    await asyncio.sleep(0)
    cancelled.cancel()
    wire.release()
    assert await other is None


async def test_waiting_for_a_feed_that_is_closed_does_not_wait(world: Any) -> None:
    feeds = Feeds(world.wire()[0])
    feed: Feed[int] = Feed(feeds, "f", attach=lambda: lambda server, push: lambda: None, receive=lambda message: None)
    feed.close()
    await asyncio.wait_for(feed.wait(), 5)


async def test_a_caller_that_polls_does_not_starve_the_others() -> None:
    backend = await open_backend("memory://")
    store = backend.namespace("ns").map("m")

    async def poll() -> None:
        while await store.get("k") is None:
            pass

    polling = asyncio.create_task(poll())
    await asyncio.sleep(0)
    await store.set("k", b"")
    await asyncio.wait_for(polling, 5)
    await backend.aclose()
