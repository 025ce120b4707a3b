"""Maps on NATS: writes that a clear overtook, traces that are swept, stores that went back."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterable
from typing import Any
from unittest.mock import AsyncMock

import msgspec
import pytest

from corepool.driver import ABSENT, REVISION, Change, Cleared, Commit, Entry, SetKey, Snapshot
from corepool_nats import api, mapfeed
from corepool_nats.client import Target
from corepool_nats.held import Cache, Held
from corepool_nats.link import Link
from corepool_nats.names import MapSubjects
from corepool_nats.namespace import NatsNamespace
from corepool_nats.records import Reads, Record
from corepool_nats.writes import Blind, Writes, stretches
from tests.nats.conftest import Open, Start, space_of
from tests.servers.nats import NatsServer
from tests.waiting import until


async def call(space: NatsNamespace, what: str, body: Any = None) -> dict[str, Any]:
    """An API call that bypasses the driver's meaning of things."""
    client = space.client
    link = await client.link(client.deadline())
    data = msgspec.json.encode(body) if body is not None else b""
    reply = await link.request(f"$JS.API.{what}", data, timeout=5)
    return msgspec.json.decode(reply.data)  # type: ignore[no-any-return]


async def messages(space: NatsNamespace, subject: str) -> int:
    """How many messages the store holds on a subject of the maps."""
    info = await call(space, f"STREAM.INFO.{space.assets.maps.asset}", {"subjects_filter": subject})
    return sum((info["state"].get("subjects") or {}).values())


# --- a clear overtakes -----------------------------------------------------------------------------------------------


async def test_a_write_that_a_clear_overtook_is_refused(server: NatsServer, open_nats: Open, name: str) -> None:
    """The purge of a clear comes later, so the server still holds the old entry and lets the write pass."""
    one, two = await open_nats(server), await open_nats(server)
    m, other = one.namespace(name).map("m"), two.namespace(name).map("m")
    watch = other.watch()
    await anext(watch)
    first = await m.set("k", b"1")
    cleared = await other.clear()
    late = await m.set("k", b"2", REVISION(first.revision))
    assert not late.applied
    assert late.previous is None
    assert late.revision == cleared.revision
    gone = await m.delete("k", REVISION(first.revision))
    assert not gone.applied
    assert await other.get("k") is None
    assert await m.get("k") is None
    assert [entry async for entry in other.scan()] == []
    again = await m.set("k", b"3", ABSENT)
    assert again.applied
    seen = [await anext(watch) for _ in range(3)]
    assert seen == [Change(first.revision, "k", b"1"), Cleared(cleared.revision), Change(again.revision, "k", b"3")]


async def test_removing_what_a_clear_removed_stores_nothing(server: NatsServer, open_nats: Open, name: str) -> None:
    """Neither after a clear of this process, nor after one that it saw or that a watch told it of."""
    one, two = await open_nats(server), await open_nats(server)
    m, other = one.namespace(name).map("m"), two.namespace(name).map("m")
    watch = m.watch()
    await anext(watch)
    for store, clearer in ((m, m), (m, other), (other, m)):
        first = await store.set("k", b"1")
        cleared = await clearer.clear()
        if store is other:
            assert await store.get("k") is None
        assert await anext(watch) == Change(first.revision, "k", b"1")
        assert await anext(watch) == Cleared(cleared.revision)
        gone = await store.delete("k")
        assert gone.applied
        assert gone.previous is None
        assert gone.revision == cleared.revision
    again = await m.clear(REVISION(cleared.revision))
    assert again.applied, "the map's newest commit is the clear"
    assert await anext(watch) == Cleared(again.revision)


async def test_a_void_message_that_stays_counts_for_nobody(
    server: NatsServer, open_nats: Open, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def crash(self: Writes, sequence: int, deadline: float) -> None:
        """The writer dies between its write and taking the void message away."""

    monkeypatch.setattr(Writes, "_discard", crash)
    one, two = await open_nats(server), await open_nats(server)
    m, other = one.namespace(name).map("m"), two.namespace(name).map("m")
    first = await m.set("k", b"1")
    await other.clear()
    assert not (await m.set("k", b"2", REVISION(first.revision))).applied
    fresh = (await open_nats(server)).namespace(name).map("m")
    assert await fresh.get("k") is None
    assert await fresh.get_many(["k"]) == {}
    watch = fresh.watch()
    snapshot = await anext(watch)
    assert isinstance(snapshot, Snapshot)
    assert snapshot.entries == ()
    replaced = await fresh.set("k", b"3")
    assert replaced.applied
    assert replaced.previous is None, "what is void was never there"
    assert await anext(watch) == Change(replaced.revision, "k", b"3")


async def test_without_the_probe_an_overtaken_write_would_count(
    server: NatsServer, open_nats: Open, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The safeguard switched off."""

    async def never(self: Writes, m: object, base: int, stored: object, deadline: float) -> int:
        return 0

    monkeypatch.setattr(Writes, "_overtaken", never)
    one, two = await open_nats(server), await open_nats(server)
    m, other = one.namespace(name).map("m"), two.namespace(name).map("m")
    first = await m.set("k", b"1")
    await other.clear()
    late = await m.set("k", b"2", REVISION(first.revision))
    assert late.applied, "the server alone does not refuse it"
    assert await other.get("k") is None, "and the readers void it: writer and readers would disagree"


async def test_a_marker_read_before_its_key_is_read_again(
    server: NatsServer, open_nats: Open, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reading takes keys and markers in any order: here a clear, and the write that it makes void, come in between."""
    monkeypatch.setattr(Writes, "_discard", AsyncMock())  # the writer dies before it takes the void message away
    one, two = await open_nats(server), await open_nats(server)
    m, other = one.namespace(name).map("m"), two.namespace(name).map("m")
    first = await m.set("k", b"1")
    fresh = (await open_nats(server)).namespace(name)
    newest, meddled = Reads.newest, list[bool]()

    async def markers_first(self: Reads, target: Target, subjects: Iterable[str], deadline: float) -> dict[str, Record]:
        if self is not fresh.reads:
            return await newest(self, target, subjects, deadline)
        keys, markers = [[each for each in subjects if each.endswith(".r") is mark] for mark in (False, True)]
        found = await newest(self, target, markers, deadline)
        if not meddled:
            await other.clear()
            meddled.append((await m.set("k", b"2", REVISION(first.revision))).applied)
        return found | await newest(self, target, keys, deadline)

    monkeypatch.setattr(Reads, "newest", markers_first)
    assert await fresh.map("m").get("k") is None
    assert meddled == [False]


# --- traces ----------------------------------------------------------------------------------------------------------


async def test_tombstones_are_swept(server: NatsServer, open_nats: Open, name: str) -> None:
    backend = await open_nats(server, tombstone_grace=1.0)
    space = space_of(backend, name)
    m = space.map("m")
    subjects = space.space.map("m")
    for number in range(30):
        await m.set(f"k{number}", b"v")
    for number in range(30):
        await m.delete(f"k{number}")
    assert await messages(space, subjects.every_key) == 60
    newest = await space.reads.one(space.assets.maps, {"last_by_subj": subjects.everything}, space.client.deadline())
    assert newest is not None

    async def swept() -> bool:
        return await messages(space, subjects.every_key) == 2  # the newest tombstone, and what it removed

    await until(swept)
    kept = await space.reads.one(space.assets.maps, {"last_by_subj": subjects.everything}, space.client.deadline())
    assert kept is not None
    assert kept.sequence == newest.sequence, "the newest message of a map is its revision and stays"
    assert (await m.set("k3", b"again", ABSENT)).applied
    assert (await m.clear(REVISION((await m.set("k4", b"v")).revision))).applied


async def test_tombstones_of_a_crashed_process_are_met_and_swept(
    server: NatsServer, open_nats: Open, name: str
) -> None:
    crashed = await open_nats(server)
    m = crashed.namespace(name).map("m")
    for number in range(10):
        await m.set(f"k{number}", b"v")
        await m.delete(f"k{number}")
    await m.set("last", b"v")
    await crashed.aclose()
    backend = await open_nats(server, tombstone_grace=1.0)
    space = space_of(backend, name)
    watch = space.map("m").watch()
    await anext(watch)

    async def swept() -> bool:
        return await messages(space, space.space.map("m").every_key) == 1

    await until(swept)


async def test_a_cleared_map_is_purged_later_and_a_destroyed_one_leaves_nothing(
    server: NatsServer, open_nats: Open, name: str
) -> None:
    backend = await open_nats(server, tombstone_grace=1.0)
    space = space_of(backend, name)
    m, gone = space.map("m"), space.map("gone")
    for number in range(10):
        await m.set(f"k{number}", b"v")
        await gone.set(f"k{number}", b"v")
    await m.clear()
    await gone.destroy()
    assert await messages(space, space.space.map("gone").every_key) == 0

    async def purged() -> bool:
        left = await messages(space, space.space.map("m").every_key)
        return left == 0 and await messages(space, space.space.map("gone").everything) == 0

    await until(purged)
    assert await messages(space, space.space.map("m").marker) == 1


async def test_a_watch_that_lags_begins_anew(
    server: NatsServer, open_nats: Open, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than half the tombstones' grace behind: a tombstone may be swept before it is seen."""
    feeds: list[mapfeed.MapFeed] = []
    original = mapfeed.MapFeed.open

    async def opened(self: mapfeed.MapFeed, attempt: int = 0) -> None:
        feeds.append(self)
        await original(self, attempt)

    monkeypatch.setattr(mapfeed.MapFeed, "open", opened)
    m = (await open_nats(server)).namespace(name).map("m")
    watch = m.watch()
    assert isinstance(await anext(watch), Snapshot)
    feeds[0]._caught_up -= 10_000  # as if this process had been stopped for so long
    for number in range(200):
        await asyncio.gather(*(m.set(f"k{number}-{n}", b"v") for n in range(20)))
        if len(feeds) > 1:
            break
    assert len(feeds) > 1


def test_the_cache_is_bounded_and_never_goes_back() -> None:
    cache, m = Cache(most=3, most_bytes=1000), MapSubjects("cp.x.m.m")
    for number in range(5):
        cache.put(f"s{number}", Held(number + 1, b"x"))
    assert cache.get(m, "s0") is None
    assert cache.get(m, "s4") == Held(5, b"x")
    cache.put("s4", Held(3, b"old"))
    assert cache.get(m, "s4") == Held(5, b"x")
    cache.put("big", Held(9, b"x" * 2000))
    assert cache.get(m, "big") is None
    cache.put("s5", Held(10, b"y"))
    cache.drop("s5")
    assert cache.get(m, "s5") is None
    assert cache._bytes == sum(len(held.value or b"") for held in cache._held.values())


def test_the_cache_knows_of_clears() -> None:
    cache, m, other = Cache(), MapSubjects("cp.x.m.m"), MapSubjects("cp.x.m.other")
    cache.put("before", Held(4, b"x"))
    cache.put("after", Held(6, b"x"))
    cache.put("void", Held(7, b"x", only_if=4))
    cache.cleared(m, 5)
    cache.cleared(m, 3)
    assert cache.get(m, "before") == Held(4, None)
    assert cache.get(m, "after") == Held(6, b"x")
    assert cache.get(m, "void") == Held(7, None)
    assert cache.get(other, "before") == Held(4, b"x")
    cache.clear()
    cache.put("before", Held(4, b"x"))
    assert cache.get(m, "before") == Held(4, b"x"), "after the store went back sequences mean nothing"


def test_stretches_end_where_something_came_between() -> None:
    m = MapSubjects("cp.x.m.m")
    writes = [("a", 5), ("b", 6), ("a", 7), ("c", 8), ("d", 10), ("e", 11)]
    blind = [(number, Blind(m, key, m.key(key), sequence)) for number, (key, sequence) in enumerate(writes)]
    assert [[index for index, _ in stretch] for stretch in stretches(blind)] == [[0, 1], [2, 3], [4, 5]]


async def test_a_commit_tells_what_its_unconditional_writes_replaced(
    server: NatsServer, open_nats: Open, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several writes at once, one key twice, a clear before some of them; and another writer in between."""
    one, two = await open_nats(server), await open_nats(server)
    space, other = one.namespace(name), two.namespace(name)
    first = await other.map("m").set("a", b"1")
    await other.map("gone").set("x", b"1")
    await other.map("gone").clear()
    ops = [
        SetKey("m", "a", b"2"),
        SetKey("gone", "x", b"2"),
        SetKey("m", "a", b"3"),
        SetKey("m", "new", b"1"),
        SetKey("gone", "y", b"1", ABSENT),
    ]
    done = [each for each in (await space.commit(ops)).results if isinstance(each, Commit)]
    assert [each.previous for each in done] == [
        Entry("a", b"1", first.revision),
        None,
        Entry("a", b"2", done[0].revision),
        None,
        None,
    ]
    original, meddled = Writes.send, list[Commit]()

    async def send(self: Writes, subject: str, *rest: Any) -> int:
        if subject.endswith(".k.b") and not meddled:
            meddled.append(await other.map("m").set("b", b"theirs"))
        return await original(self, subject, *rest)

    monkeypatch.setattr(Writes, "send", send)
    done = [
        each
        for each in (await space.commit([SetKey("m", "a", b"4"), SetKey("m", "b", b"ours")])).results
        if isinstance(each, Commit)
    ]
    assert done[1].previous == Entry("b", b"theirs", meddled[0].revision)


async def test_what_an_unconditional_write_replaced_is_found_in_a_long_history(
    server: NatsServer, open_nats: Open, name: str
) -> None:
    space = (await open_nats(server, history=600)).namespace(name)
    m = space.map("m")
    last = [await m.set("k", b"%d" % number) for number in range(300)][-1]
    for value in (b"again", b"and again"):
        results = (await space.commit([SetKey("m", "k", value), SetKey("m", "new", value)])).results
        done = [each for each in results if isinstance(each, Commit)]
        assert done[0].previous is not None
        assert done[0].previous.revision == last.revision
        last = done[0]
    assert (await m.delete("k")).applied
    result = (await space.commit([SetKey("m", "k", b"after"), SetKey("m", "new", b"after")])).results[0]
    assert isinstance(result, Commit)
    assert result.previous is None, "a tombstone is no entry"


async def test_writes_sent_together_share_a_connection(
    server: NatsServer, open_nats: Open, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends when the first is not written yet: the second must not overtake it on the next connection."""
    space = (await open_nats(server)).namespace(name)
    await space.map("m").set("a", b"1")
    original, cuts = Writes.send, list[str]()

    async def send(self: Writes, subject: str, value: bytes | None, deadline: float, on: Link) -> int:
        if subject.endswith(".k.b") and not cuts:
            cuts.append(subject)
            on.kill("cut")
        return await original(self, subject, value, deadline, on)

    monkeypatch.setattr(Writes, "send", send)
    result = await space.commit([SetKey("m", "a", b"2"), SetKey("m", "b", b"2"), SetKey("m", "c", b"2", ABSENT)])
    done = [each for each in result.results if isinstance(each, Commit)]
    assert cuts
    assert [each.applied for each in done] == [True, True, True]
    assert done[0].revision < done[1].revision < done[2].revision
    assert done[0].previous is not None


# --- a store that went back ------------------------------------------------------------------------------------------


async def test_revisions_go_on_when_the_stream_is_made_again(server: NatsServer, open_nats: Open, name: str) -> None:
    backend = await open_nats(server, heartbeat=0.3)
    space = space_of(backend, name)
    m = space.map("m")
    watch = m.watch()
    await anext(watch)
    before = await m.set("k", b"1")
    assert await anext(watch) == Change(before.revision, "k", b"1")
    await call(space, f"STREAM.DELETE.{space.assets.maps.asset}")
    async with asyncio.timeout(10):
        snapshot = await anext(watch)
    assert isinstance(snapshot, Snapshot)
    assert snapshot.entries == ()
    assert snapshot.generation == 1, "the store lost what was acknowledged"
    assert not (await m.set("k", b"2", REVISION(before.revision))).applied
    after = await m.set("k", b"2")
    assert after.revision > before.revision
    assert after.previous is None


async def test_a_restored_backup_is_noticed(start: Start, open_nats: Open, name: str) -> None:
    server = start()
    backend = await open_nats(server, heartbeat=0.3)
    m = backend.namespace(name).map("m")
    old = await m.set("k", b"old")
    server.stop()
    backup = server.directory / "backup"
    shutil.copytree(server.directory / server.name, backup)
    server.start()
    watch = m.watch()
    await anext(watch)
    written = [(await m.set("k", b"new%d" % number)).revision for number in range(5)]
    newest = old.revision
    while newest < written[-1]:
        newest = (await anext(watch)).revision
    server.kill()
    shutil.rmtree(server.directory / server.name)
    shutil.copytree(backup, server.directory / server.name)
    server.start()
    async with asyncio.timeout(15):
        snapshot = await anext(watch)
    assert isinstance(snapshot, Snapshot)
    assert snapshot.generation == 1
    assert snapshot.revision < newest
    assert [(entry.key, entry.value) for entry in snapshot.entries] == [("k", b"old")]
    entry = await m.get("k")
    assert entry is not None
    assert entry.value == b"old"
    replaced = await m.set("k", b"newer")
    assert replaced.previous == entry, "what was remembered of the lost messages is forgotten"


async def test_a_conditional_clear_is_exact_under_writes(server: NatsServer, open_nats: Open, name: str) -> None:
    one, two = await open_nats(server), await open_nats(server)
    m, other = one.namespace(name).map("m"), two.namespace(name).map("m")
    cleared = 0
    for number in range(60):
        base = await m.set("k", b"1")
        clearing = asyncio.ensure_future(m.clear(REVISION(base.revision)))
        await asyncio.sleep(number % 6 * 0.0005)
        written = await other.set("x", b"1")
        commit = await clearing
        entry = await m.get("x")
        if commit.applied:
            cleared += 1
            assert (entry is None) == (written.revision < commit.revision)
            assert written.revision > commit.revision, "it was not the newest commit any more"
        else:
            assert entry is not None
        await m.clear()
    assert cleared, "at least one was not overtaken"


def test_errors_of_the_server_name_a_remedy() -> None:
    error = api.explain(api.ApiError(400, 10077, "maximum bytes exceeded"), "storing")
    assert "max_bytes" in str(error)
