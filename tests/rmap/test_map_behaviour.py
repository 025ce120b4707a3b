"""What a replicated map promises, on whatever backend the tests run: reads, writes, waits, conditions, clearing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from corepool.driver import ABSENT, REVISION, Backend
from corepool.errors import (
    WireError,
)
from corepool.rmap import BYTES, JSON, TEXT, Held, Lagged, MapChange, MapCleared, MapSnapshot, ReplicatedMap
from tests.rmap.joining import ODD, Join
from tests.waiting import soon, until

# --- reading and writing ---------------------------------------------------------------------------------------------


async def test_a_write_is_seen_by_its_writer_at_once_and_by_others_soon(join: Join) -> None:
    mine, theirs = await join(), await join(other=True)
    written = await soon(mine.set_and_wait("k", "v"))
    assert written.applied
    assert written.previous is None
    assert mine["k"] == mine.get("k") == "v"
    assert mine.entry("k") == Held("v", written.revision)
    assert await soon(theirs.fetch("k")) == "v"
    await soon(theirs.wait_for_revision(written.revision))
    assert theirs["k"] == "v"
    assert theirs.snapshot() == mine.snapshot()


async def test_local_reads(join: Join) -> None:
    rmap = await join()
    for key, value in (("a", "1"), ("b", "2")):
        await soon(rmap.set_and_wait(key, value))
    assert (len(rmap), sorted(rmap.keys()), dict(rmap.items())) == (2, ["a", "b"], {"a": "1", "b": "2"})
    assert "a" in rmap
    assert "c" not in rmap
    assert rmap.get("c") is None
    assert rmap.get("c", "default") == "default"
    assert rmap.entry("c") is None
    with pytest.raises(KeyError):
        rmap["c"]
    with pytest.raises((TypeError, AttributeError)):
        rmap.items().mapping["a"] = "3"  # a view is no way to write


async def test_a_joiner_sees_everything_at_once(join: Join) -> None:
    mine = await join()
    for n in range(200):
        await mine.set(f"k{n}", str(n))
    theirs = await join(other=True)
    assert dict(theirs.items()) == {f"k{n}": str(n) for n in range(200)}


async def test_delete_and_its_result(join: Join) -> None:
    rmap = await join()
    await soon(rmap.set_and_wait("k", "v"))
    deleted = await soon(rmap.delete("k"))
    assert (deleted.applied, deleted.previous) == (True, "v")
    await soon(rmap.wait_for_revision(deleted.revision))
    assert "k" not in rmap
    again = await soon(rmap.delete("k"))
    assert (again.applied, again.previous) == (True, None)


async def test_conditions_on_revisions(join: Join) -> None:
    rmap = await join()
    first = await soon(rmap.set("k", "1", when=ABSENT))
    assert first
    assert not await soon(rmap.set("k", "x", when=ABSENT))
    assert not await soon(rmap.delete("k", when=REVISION(first.revision + 1000)))
    second = await soon(rmap.set("k", "2", when=REVISION(first.revision)))
    assert second.revision > first.revision
    assert (second.applied, second.previous) == (True, "1")
    refused = await soon(rmap.set("k", "3", when=REVISION(first.revision)))
    assert (refused.applied, refused.previous) == (False, "2")
    await soon(rmap.wait_for_revision(refused.revision))
    assert rmap["k"] == "2"


@pytest.mark.parametrize("key", ODD)
async def test_odd_keys_and_values_come_back(join: Join, key: str) -> None:
    rmap, theirs = await join(), await join(other=True)
    for value in ("", key, key * 3):
        written = await soon(rmap.set_and_wait(key, value))
        assert rmap[key] == value
        assert await soon(rmap.fetch(key)) == value
        await soon(theirs.wait_for_revision(written.revision))
        assert dict(theirs.items()) == {key: value}


async def test_odd_keys_do_not_meet(join: Join) -> None:
    rmap = await join()
    for key in ODD:
        await rmap.set(key, f"value of {key}")
    written = await soon(rmap.set_and_wait("last", "v"))
    theirs = await join(other=True)
    assert dict(theirs.items()) == {**{key: f"value of {key}" for key in ODD}, "last": "v"}
    assert theirs.revision == written.revision


@pytest.mark.parametrize("name", [" ", "é\U0001f600", "a\0b", "a.b*>", "maps", "{x}"])
async def test_odd_names_do_not_meet(join: Join, fresh: str, name: str) -> None:
    one, two = await join(name=fresh + name), await join(name=fresh + name + name)
    await soon(one.set_and_wait("k", "one"))
    await soon(two.set_and_wait("k", "two"))
    assert (one["k"], two["k"]) == ("one", "two")
    for rmap in (one, two):
        await soon(rmap.destroy())


@pytest.mark.parametrize(
    ("codec", "value"),
    [(TEXT, "é\0"), (BYTES, bytes(range(256))), (JSON, {"a": [1, None, "é", 2.5]}), (JSON, None), (JSON, [])],
)
async def test_codecs(join: Join, codec: Any, value: Any) -> None:
    rmap, theirs = await join(codec=codec), await join(codec=codec, other=True)
    written = await soon(rmap.set_and_wait("k", value))
    await soon(theirs.wait_for_revision(written.revision))
    assert rmap["k"] == theirs["k"] == await soon(theirs.fetch("k")) == value


async def test_a_value_of_another_codec_is_set_aside(join: Join) -> None:
    reader, writer = await join(codec=JSON), await join(codec=BYTES, other=True)
    await writer.set("bad", b"\xff")
    good = await soon(writer.set("good", b"1"))
    await soon(reader.wait_for_revision(good.revision))
    assert dict(reader.items()) == {"good": 1}
    assert reader.undecodable == 1
    assert reader.set_aside() == {"bad": b"\xff"}
    with pytest.raises(WireError):
        await soon(reader.fetch("bad"))


# --- waiting ---------------------------------------------------------------------------------------------------------


async def test_set_and_wait_returns_however_much_it_is_overwritten(join: Join) -> None:
    mine, theirs = await join(), await join(other=True)
    stop = False

    async def overwrite() -> None:
        while not stop:
            await theirs.set("k", "theirs")
            await asyncio.sleep(0)

    overwriting = asyncio.create_task(overwrite())
    try:
        for _ in range(100):
            written = await soon(mine.set_and_wait("k", "mine"))
            assert mine.revision >= written.revision
    finally:
        stop = True
        await soon(overwriting)


async def test_many_waits_for_the_same_key_and_value(join: Join) -> None:
    mine, theirs = await join(), await join(other=True)
    written = await soon(asyncio.gather(*(one.set_and_wait("k", "v") for one in (mine, theirs) for _ in range(50))))
    assert len({each.revision for each in written}) == 100
    assert mine.waiting == theirs.waiting == 0


async def test_a_cancelled_set_and_wait_leaves_no_waiter_and_a_usable_map(join: Join) -> None:
    rmap = await join()
    for n in range(20):
        tasks = [asyncio.create_task(rmap.set_and_wait("k", f"{n}.{i}")) for i in range(5)]
        for _ in range(n % 4):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await soon(asyncio.gather(*tasks, return_exceptions=True))
        assert rmap.waiting == 0
    await soon(rmap.set_and_wait("k", "last"))
    assert rmap["k"] == "last"


# --- the deadlock: nobody who does not read may hold up anybody ----------------------------------------------------------


async def test_unread_subscriptions_block_neither_writes_nor_close(join: Join) -> None:
    rmap, theirs = await join(), await join(other=True)
    unread = [one.subscribe() for one in (rmap, theirs) for _ in range(10)]
    unread_changes = [one.changes(limit=4) for one in (rmap, theirs) for _ in range(10)]
    for n in range(300):
        await soon(rmap.set_and_wait(f"k{n % 7}", str(n)))
    await soon(theirs.wait_for_revision(rmap.revision))
    await soon(asyncio.gather(rmap.aclose(), theirs.aclose()))
    assert [[each async for each in subscription] for subscription in unread] == [[None]] * 20
    for changes in unread_changes:
        lagged, snapshot = [each async for each in changes]
        assert isinstance(lagged, Lagged)
        assert isinstance(snapshot, MapSnapshot)
        assert snapshot.entries == dict(rmap.items())


async def test_a_subscriber_that_stopped_reading_blocks_nobody(join: Join) -> None:
    rmap = await join()
    subscription = rmap.subscribe()
    never = asyncio.Event()

    async def read_one_and_hang() -> None:
        async for _ in subscription:
            await never.wait()

    reader = asyncio.create_task(read_one_and_hang())
    for n in range(200):
        await soon(rmap.set_and_wait("k", str(n)))
    await soon(rmap.aclose())
    never.set()
    await soon(reader)


async def test_a_subscriber_sees_the_last_state(join: Join) -> None:
    rmap, theirs = await join(), await join(other=True)
    seen: list[str | None] = []

    async def look() -> None:
        while await subscription.changed():
            seen.append(rmap.get("k"))

    subscription = rmap.subscribe()
    looker = asyncio.create_task(look())
    for n in range(200):
        await theirs.set("k", str(n))
    await until(lambda: rmap.get("k") == "199")
    await until(lambda: seen and seen[-1] == "199")
    subscription.close()
    await soon(looker)
    numbers = [int(each) for each in seen if each is not None]
    assert numbers == sorted(numbers)


async def test_changes_replayed_give_the_map(join: Join) -> None:
    rmap, theirs = await join(), await join(other=True)
    await soon(rmap.set_and_wait("before", "v"))
    changes = rmap.changes(limit=100_000)
    for n in range(100):
        await theirs.set(f"k{n % 5}", str(n))
        if n % 9 == 0:
            await theirs.delete(f"k{n % 4}")
        if n == 50:
            await theirs.clear()
    last = await soon(theirs.set_and_wait("last", "v"))
    await soon(rmap.wait_for_revision(last.revision))
    await soon(rmap.aclose())
    replayed: dict[str, str] = {}
    revision = -1
    async for event in changes:
        assert not isinstance(event, Lagged)
        assert event.revision > revision
        revision = event.revision
        match event:
            case MapSnapshot():
                replayed = dict(event.entries)
            case MapChange(value=None):
                replayed.pop(event.key, None)
            case MapChange():
                replayed[event.key] = event.value
            case MapCleared():
                replayed.clear()
    assert replayed == dict(rmap.items())
    assert revision == last.revision


async def test_slow_and_fast_readers_of_changes_end_in_the_same_state(join: Join) -> None:
    rmap = await join()
    changes = rmap.changes(limit=3)
    state: dict[str, str | None] = {}
    lagged = 0

    async def follow() -> None:
        nonlocal state, lagged
        async for event in changes:
            if isinstance(event, MapSnapshot):
                state = dict(event.entries)
            elif isinstance(event, MapChange):
                state[event.key] = event.value
            elif isinstance(event, Lagged):
                lagged += event.missed
            await asyncio.sleep(0.002)  # slower than the writer

    follower = asyncio.create_task(follow())
    for n in range(200):
        await soon(rmap.set_and_wait(f"k{n % 5}", str(n)))
    await until(lambda: state == dict(rmap.items()))
    assert lagged
    await changes.aclose()
    await soon(follower)


# --- conditions under contention -------------------------------------------------------------------------------------


async def test_of_many_set_if_absent_one_wins(join: Join) -> None:
    maps = [await join(other=bool(n % 2)) for n in range(4)]
    for round_ in range(20):
        results = await soon(asyncio.gather(*(one.set_if_absent(f"k{round_}", str(n)) for n, one in enumerate(maps))))
        winners = [n for n, result in enumerate(results) if result]
        assert len(winners) == 1
        assert {result.previous for result in results} == {None, str(winners[0])}


async def test_test_and_set_is_a_lock_free_counter(join: Join) -> None:
    maps = [await join(other=bool(n % 2)) for n in range(4)]
    await soon(maps[0].set("n", "0"))

    async def add(one: ReplicatedMap[str], times: int) -> None:
        while times:
            now = await one.fetch("n")
            assert now is not None
            if await one.test_and_set("n", now, str(int(now) + 1)):
                times -= 1

    await soon(asyncio.gather(*(add(one, 10) for one in maps)))
    assert await soon(maps[0].fetch("n")) == "40"


async def test_of_many_test_and_delete_one_wins(join: Join) -> None:
    maps = [await join(other=bool(n % 2)) for n in range(4)]
    for _ in range(10):
        await soon(maps[0].set("k", "v"))
        assert not await soon(maps[1].test_and_delete("k", "w"))
        results = await soon(asyncio.gather(*(one.test_and_delete("k", "v") for one in maps)))
        assert sum(map(bool, results)) == 1


@pytest.mark.parametrize("native", [False, True], ids=["by conditional writes", "as the backend declares"])
async def test_concurrent_lists_and_counters_lose_nothing(
    join: Join, backend: Backend, other_backend: Backend, fresh: str, native: bool
) -> None:
    maps: list[ReplicatedMap[str]] = []
    for one in (backend, other_backend):
        store = one.namespace("maps").map(fresh)
        value_ops = native and one.capabilities.value_ops
        maps.append(
            await soon(ReplicatedMap.open(store, codec=TEXT, clock=one.clock, random=one.random, value_ops=value_ops))
        )
    await soon(asyncio.gather(*(one.increment("n", 2) for one in maps for _ in range(20))))
    await soon(asyncio.gather(*(one.append_values("l", f"{i}.{n}") for i, one in enumerate(maps) for n in range(10))))
    await soon(asyncio.gather(*(one.append_unique_values("u", f"{n % 5}") for one in maps for n in range(10))))
    await soon(
        asyncio.gather(*(one.remove_values("l", f"{i}.{n}") for i, one in enumerate(maps) for n in range(0, 10, 2)))
    )
    last = await soon(maps[0].set("last", "v"))
    for one in maps:
        await soon(one.wait_for_revision(last.revision))
        assert one.get_counter("n") == 80
        assert sorted(one.get_list("l")) == sorted(f"{i}.{n}" for i in range(2) for n in range(1, 10, 2))
        assert sorted(one.get_list("u")) == [str(n) for n in range(5)]
        await soon(one.aclose())


async def test_atomic_operations_and_conditional_writes_give_the_same(join: Join, backend: Backend, fresh: str) -> None:
    async def run(one: ReplicatedMap[str], key: str) -> list[Any]:
        return [
            await one.increment(f"{key}n", -3),
            await one.increment(f"{key}n", 0),
            await one.increment(f"{key}zero", 0),
            await one.append_values(f"{key}l", "a", "", "\0", "a"),
            await one.append_unique_values(f"{key}l", "a", "b", "b"),
            await one.remove_values(f"{key}l", "a", "zz"),
            await one.remove_values(f"{key}absent", "x"),
            await one.append_values(f"{key}l"),
            await one.fetch(f"{key}absent"),
            await one.fetch(f"{key}zero"),
            await one.fetch(f"{key}l"),
        ]

    native = await join()
    store = backend.namespace("maps").map(fresh)
    by_writes = await soon(ReplicatedMap.open(store, codec=TEXT, clock=backend.clock, random=backend.random))
    assert await soon(run(native, "1")) == await soon(run(by_writes, "2"))
    await soon(by_writes.aclose())


# --- clear and destroy -----------------------------------------------------------------------------------------------


async def test_nobody_sees_half_a_clear(join: Join) -> None:
    mine, theirs = await join(), await join(other=True)
    sizes: list[int] = []

    async def look() -> None:
        while await subscription.changed():
            sizes.append(len(theirs))

    keys = [f"k{n}" for n in range(50)]
    for key in keys:
        await mine.set(key, "v")
    full = await soon(mine.set_and_wait("k0", "v"))
    await soon(theirs.wait_for_revision(full.revision))
    subscription = theirs.subscribe()
    looker = asyncio.create_task(look())
    cleared = await soon(mine.clear())
    assert cleared
    assert await soon(mine.fetch_many(keys)) == {}
    await soon(theirs.wait_for_revision(cleared.revision))
    await until(lambda: sizes)
    subscription.close()
    await soon(looker)
    assert set(sizes) == {0}


async def test_test_and_clear_spares_what_it_has_not_seen(join: Join) -> None:
    mine, theirs = await join(), await join(other=True)
    seen = await soon(mine.set_and_wait("k", "v"))
    await soon(theirs.set("other", "unseen"))
    refused = await soon(mine.test_and_clear(seen.revision))
    assert not refused
    assert await soon(mine.fetch("other")) == "unseen"
    assert await soon(mine.test_and_clear(refused.revision))
    assert await soon(mine.fetch_many(["k", "other"])) == {}


async def test_clear_and_destroy_keep_revisions_growing(join: Join) -> None:
    mine, theirs = await join(), await join(other=True)
    revision = 0
    for wipe in (mine.clear, mine.destroy, mine.destroy, mine.clear):
        written = await soon(mine.set_and_wait("k", "v"))
        assert written.revision > revision
        revision = written.revision
        await soon(wipe())
        assert await soon(mine.fetch("k")) is None
        await soon(theirs.wait_for_revision(revision))
        await until(lambda: "k" not in theirs)
    assert mine.generation == theirs.generation == 0
