"""What the contract's tests cannot see: the change log, lost history, full memory."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from corepool.driver import (
    ABSENT,
    Ack,
    Append,
    AppendValues,
    Change,
    Cleared,
    DeleteKey,
    Entry,
    Increment,
    NewEvent,
    RemoveValues,
    Set,
    SetKey,
    Snapshot,
    WatchEvent,
    apply_value_op,
)
from corepool.errors import BackendUnavailable, WireError
from corepool_conformance.proxy import TcpProxy
from corepool_redis import watch as watch_module
from corepool_redis.backend import RedisNamespace
from corepool_redis.keys import EventId, MapKeys, StreamKeys, scope_of
from corepool_redis.watch import LogEntry, RedisWatch
from tests.redis.conftest import Connect, fresh
from tests.servers.valkey import Server, command


async def following(watch: RedisWatch, within: float = 5.0) -> WatchEvent:
    async with asyncio.timeout(within):
        return await anext(watch)


def keys_of(space: RedisNamespace, name: str = "m") -> MapKeys:
    return MapKeys.of(scope_of(space.name), name)


# --- the log ---------------------------------------------------------------------------------------------------------


async def test_nothing_is_logged_before_somebody_watches(server: Server, space: RedisNamespace) -> None:
    items = space.map("m")
    await items.set("k", b"v")
    assert command(server.port, "EXISTS", keys_of(space).log) == 0
    watch = items.watch()
    await following(watch)
    await items.set("k", b"w")
    assert isinstance(await following(watch), Change)
    assert 0 < int(str(command(server.port, "PTTL", keys_of(space).log))) <= 3_600_000, (
        "a log that nobody follows expires"
    )


async def test_the_log_is_bounded_and_who_falls_behind_gets_a_snapshot(server: Server, connect: Connect) -> None:
    space = (await connect(log_length=100)).namespace(fresh())
    items, watch = space.map("m"), space.map("m").watch()
    await following(watch)
    for part in range(20):
        await items.apply([Set(f"k{n}", b"%d" % part) for n in range(250)])
    assert int(str(command(server.port, "XLEN", keys_of(space).log))) < 500
    seen = [await following(watch)]
    while seen[-1].revision < (await items.set("end", b"")).revision - 1:
        seen.append(await following(watch))
        if isinstance(seen[-1], Snapshot) and len(seen[-1].entries) >= 250:
            break
    assert any(isinstance(event, Snapshot) for event in seen)


async def test_the_first_entry_of_a_map_leads_on_from_nothing(space: RedisNamespace) -> None:
    items = space.map("m")
    watch = items.watch()
    assert await following(watch) == Snapshot(0, ())
    commit = await items.set("k", b"v")
    assert commit.revision > 1_700_000_000_000_000, "a map begins at the server's time in microseconds"
    assert await following(watch) == Change(commit.revision, "k", b"v")


async def test_a_destroyed_map_goes_on_without_a_gap_or_a_new_generation(space: RedisNamespace) -> None:
    items = space.map("m")
    watch = items.watch()
    await following(watch)
    first = await items.set("k", b"v")
    await items.destroy()
    again = await items.set("k", b"w")
    assert again.revision > first.revision
    assert isinstance(await following(watch), Change)
    assert isinstance(await following(watch), Cleared)
    assert await following(watch) == Change(again.revision, "k", b"w")


async def test_a_destroyed_map_leaves_nothing_that_stays(server: Server, space: RedisNamespace) -> None:
    items = space.map("m")
    watch = items.watch()
    await following(watch)
    await items.set("k", b"v")
    await items.destroy()
    keys = command(server.port, "KEYS", scope_of(space.name) + b"*")
    assert isinstance(keys, list)
    assert [key for key in keys if command(server.port, "PTTL", key) == -1] == []


async def test_revisions_grow_over_a_clock_that_went_back(server: Server, space: RedisNamespace) -> None:
    items = space.map("m")
    await items.set("k", b"v")
    future = 9_000_000_000_000_000
    command(server.port, "HSET", keys_of(space).data, "", f"{future}-7:5")
    assert (await items.set("k", b"w")).revision == future + 1
    await items.destroy()
    assert (await items.set("k", b"x")).revision > future + 1, "the mark outlives the map"


# --- lost history ----------------------------------------------------------------------------------------------------


async def replica(watch: RedisWatch) -> dict[str, bytes]:
    snapshot = await following(watch)
    assert isinstance(snapshot, Snapshot)
    return {entry.key: entry.value for entry in snapshot.entries}


@pytest.mark.parametrize("loss", ["flushall", "delete", "log"])
async def test_what_emits_no_entry_is_found_by_the_check(own_server: Server, connect: Connect, loss: str) -> None:
    space = (await connect(own_server.url, interval=0.2)).namespace(fresh())
    items = space.map("m")
    watch = items.watch()
    await following(watch)
    last = await items.set("k", b"v")
    await following(watch)
    keys = keys_of(space)
    match loss:
        case "flushall":
            command(own_server.port, "FLUSHALL")
        case "delete":
            command(own_server.port, "DEL", keys.data, keys.log)
        case _:
            command(own_server.port, "DEL", keys.log)
    event = await following(watch)
    assert isinstance(event, Snapshot)
    if loss == "log":
        assert (event.revision, event.generation) == (last.revision, 0), "nothing was lost but the log"
    else:
        assert (event.revision, event.generation, event.entries) == (0, 1, ())
    commit = await items.set("k", b"w")
    assert await following(watch) == Change(commit.revision, "k", b"w")


async def test_a_map_made_anew_behind_the_watch_is_another_generation(own_server: Server, connect: Connect) -> None:
    space = (await connect(own_server.url, interval=0.2)).namespace(fresh())
    items = space.map("m")
    watch = items.watch()
    await following(watch)
    await items.set("old", b"v")
    await following(watch)
    command(own_server.port, "FLUSHALL")
    await items.set("new", b"v")  # a larger revision than any before: only the birth tells
    event = await following(watch)
    assert isinstance(event, Snapshot)
    assert [entry.key for entry in event.entries] == ["new"]
    assert event.generation == 1


async def test_after_a_reconnect_another_history_is_not_followed(own_server: Server, connect: Connect) -> None:
    """As after a failover that lost five writes and took 25 others: the revisions fit, the nonces do not."""
    proxy = await TcpProxy.start("127.0.0.1", own_server.port)
    backend = await connect(f"redis://127.0.0.1:{proxy.port}", interval=60.0)
    space = backend.namespace(fresh())
    items = space.map("m")
    watch = items.watch()
    await following(watch)
    for n in range(10):
        last = (await items.set("k", b"%d" % n)).revision
        await following(watch)
    keys = keys_of(space)
    await proxy.cut()
    kept: Any = command(own_server.port, "XRANGE", keys.log, "-", "+")
    head: Any = command(own_server.port, "HGET", keys.data, "")
    command(own_server.port, "DEL", keys.log)
    for entry_id, fields in kept[:-5]:
        command(own_server.port, "XADD", keys.log, entry_id, *fields)
    for n in range(1, 26):
        command(own_server.port, "XADD", keys.log, f"{last - 5 + n}-{n}", "sk", f"other{n}")
    command(own_server.port, "HSET", keys.data, "", b"%d-25:%b" % (last + 20, head.split(b":")[1]))
    command(own_server.port, "HSET", keys.data, "k", f"{last + 20}:other25")
    await proxy.heal()
    event = await following(watch)
    assert isinstance(event, Snapshot), "reading on by revision alone would skip what the new history has in between"
    assert (event.generation, event.revision) == (1, last + 20)
    assert [entry.value for entry in event.entries] == [b"other25"]
    await backend.aclose()
    await proxy.aclose()


async def test_connections_that_break_cost_no_snapshot(own_server: Server, connect: Connect) -> None:
    space = (await connect(own_server.url)).namespace(fresh())
    writer = (await connect(own_server.url)).namespace(space.name).map("m")
    watch = space.map("m").watch()
    await following(watch)
    for n in range(10):
        own_server.kill_clients("ID", str(await reader_of(own_server, space)))
        commit = await put(writer, b"%d" % n)
        assert await following(watch) == Change(commit, "k", b"%d" % n)


async def reader_of(server: Server, space: RedisNamespace) -> int:
    """The id of the connection that blocks in XREAD."""
    async with asyncio.timeout(5):
        while True:
            clients = command(server.port, "CLIENT", "LIST")
            assert isinstance(clients, bytes)
            for line in clients.decode().splitlines():
                if "cmd=xread " in line:
                    return int(line.split()[0].removeprefix("id="))
            await asyncio.sleep(0.005)


async def put(items: Any, value: bytes) -> int:
    async with asyncio.timeout(5):
        while True:
            try:
                return int((await items.set("k", value)).revision)
            except BackendUnavailable:
                await asyncio.sleep(0.01)


async def test_a_gap_in_the_log_leads_to_a_snapshot(space: RedisNamespace) -> None:
    items = space.map("m")
    watch = items.watch()
    await following(watch)
    first = await items.set("k", b"v")
    await following(watch)
    for missing in (2, 3):
        watch.offer(LogEntry(EventId(first.revision + missing, 1), b"s", "k", b"w", None))
        assert await following(watch) == Snapshot(first.revision, (Entry("k", b"v", first.revision),))
    watch.offer(LogEntry(EventId(first.revision + 9, 1), b"s", "k", b"w", first.revision - 1))
    assert isinstance(await following(watch), Snapshot), "the first entry of a life that began after another revision"


# --- a watch that nobody reads ---------------------------------------------------------------------------------------


async def test_an_unread_watch_holds_a_bounded_amount(space: RedisNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "MOST_EVENTS", 50)
    items = space.map("m")
    unread, read = items.watch(), items.watch()
    await following(unread)
    await following(read)
    for n in range(200):
        last = await items.set(f"k{n}", b"")
    while (await following(read)).revision < last.revision:
        pass
    assert len(unread._events) <= 50
    event = await following(unread)
    assert isinstance(event, Snapshot)
    assert len(event.entries) == 200


# --- value operations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "op",
    [Increment(1), Increment(0), AppendValues((b"a", b"")), AppendValues((b"a",), unique=True), RemoveValues((b"a",))],
)
@pytest.mark.parametrize(
    "value",
    [
        *[
            None,
            b"",
            b"0",
            b"-0",
            b"007",
            b"-9",
            b"9223372036854775807",
            b"99999999999999999999",
            b"1:a,",
            b"1:a,1:a,0:,",
        ],
        *[b"01:a,", b"1:a", b"2:a,", b"x", b"-", b"1:a,x", b"3:1:a,", b"12345678901234:a,", b"\xff"],
    ],
)
async def test_value_operations_equal_the_reference(space: RedisNamespace, op: Any, value: bytes | None) -> None:
    items = space.map("m")
    if value is not None:
        await items.set("k", value)
    expected: object
    try:
        expected = apply_value_op(value, op)
    except (WireError, OverflowError) as error:
        expected = type(error)
    try:
        found: object = (await items.update("k", op)).value
    except (WireError, OverflowError) as error:
        found = type(error)
    if value == b"-0" and isinstance(expected, bytes):
        assert isinstance(found, bytes)
        assert int(found) == int(expected)
    else:
        assert found == expected


# --- full memory -----------------------------------------------------------------------------------------------------


async def test_a_full_server_refuses_growth_whole_and_lets_everything_drain(
    own_server: Server, connect: Connect
) -> None:
    space = (await connect(own_server.url)).namespace(fresh())
    items, stream = space.map("m"), space.stream("s")
    watch = items.watch()
    await following(watch)
    await items.set("k", b"v")
    await stream.append(NewEvent("e", b"1"))
    await stream.append(NewEvent("e", b"2"))
    sink = await stream.sink("g", ack_wait=5.0)
    (first,) = await sink.receive()
    command(own_server.port, "CONFIG", "SET", "maxmemory", "1mb")
    with pytest.raises(BackendUnavailable, match="memory is full"):
        await items.set("k", b"w")
    with pytest.raises(BackendUnavailable, match="memory is full"):
        await space.commit([DeleteKey("m", "k"), Ack(first.receipt), SetKey("m", "other", b"x", ABSENT)])
    with pytest.raises(BackendUnavailable, match="memory is full"):
        await space.commit([SetKey("m", "other", b"x"), Append("s", NewEvent("e", b"3"))])
    entry = await items.get("k")
    assert entry is not None, "nothing of the refused commits was applied"
    assert await sink.extend(first.receipt)
    assert (await space.commit([DeleteKey("m", "k"), Ack(first.receipt)])).results[1] is True
    (second,) = await sink.receive()
    assert await sink.nack(second.receipt)
    (second,) = await sink.receive()
    assert await sink.ack([second.receipt]) == [True]
    assert (await items.clear()).applied
    fresh_watch = items.watch()
    assert await replica(fresh_watch) == {}
    await stream.destroy()
    await items.destroy()


async def test_a_head_of_another_program_changes_nothing(server: Server, space: RedisNamespace) -> None:
    command(server.port, "HSET", keys_of(space).data, "", "foreign")
    for call in (space.map("m").set("k", b"v"), space.map("m").clear(), space.map("m").update("k", Increment(1))):
        with pytest.raises(WireError):
            await call
    assert command(server.port, "HLEN", keys_of(space).data) == 1


async def test_a_stream_of_another_type_stops_the_whole_commit(server: Server, space: RedisNamespace) -> None:
    await space.stream("s").create()
    events = StreamKeys.of(scope_of(space.name), "s").events
    command(server.port, "DEL", events)
    command(server.port, "SET", events, "foreign")
    with pytest.raises(WireError):
        await space.commit([SetKey("m", "k", b"v"), Append("s", NewEvent("e", b""))])
    assert await space.map("m").get("k") is None
