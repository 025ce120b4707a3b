"""What the contract's tests cannot see of sinks: what they ask the server for, what a lost reply leaves, second sinks."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from corepool.driver import Ack, NewEvent, StreamConfig, StreamKind
from corepool.errors import OutcomeUnknown
from corepool_redis.backend import RedisBackend, RedisNamespace
from corepool_redis.keys import StreamKeys, scope_of
from corepool_redis.members import RedisSink
from corepool_redis.sinks import SinkReader
from tests.redis.conftest import Connect, blocked, fresh
from tests.servers.valkey import Server, command
from tests.waiting import until


def sinks_of(backend: RedisBackend) -> SinkReader:
    (hub,) = backend._hubs.values()
    return hub.sinks


def consumers(server: Server, space: RedisNamespace, stream: str = "s", group: str = "g0") -> dict[str, int]:
    """The members on the server's books and how much each holds."""
    rows: Any = command(server.port, "XINFO", "CONSUMERS", StreamKeys.of(scope_of(space.name), stream).events, group)
    facts = [dict(zip(row[::2], row[1::2], strict=True)) for row in rows]
    return {row[b"name"].decode(): row[b"pending"] for row in facts}


def asks(server: Server, backend: RedisBackend) -> bool:
    """Whether the backend waits at the server for events of its sinks. (Redis 7.0 lists no consumer before its first event.)"""
    return blocked(server, "xreadgroup", backend.client) > 0


async def drain(sink: RedisSink, count: int, within: float = 10.0) -> list[bytes]:
    found: list[bytes] = []
    async with asyncio.timeout(within):
        while len(found) < count:
            deliveries = await sink.receive(count - len(found))
            found += [delivery.event.payload for delivery in deliveries]
            assert all(await sink.ack([delivery.receipt for delivery in deliveries]))
    return found


async def test_a_member_that_does_not_receive_is_given_nothing(server: Server, connect: Connect) -> None:
    idle, busy = await connect(), await connect()
    space = idle.namespace(fresh())
    await space.stream("s").create()
    lazy = await space.stream("s").sink("g")
    keen = await busy.namespace(space.name).stream("s").sink("g")
    receiving = asyncio.ensure_future(lazy.receive())
    await until(lambda: asks(server, idle))
    receiving.cancel()
    for n in range(50):
        await space.stream("s").append(NewEvent("e", b"%d" % n))
    found = await drain(keen, 49)
    assert len(set(found)) >= 49, "at most the one event of the cancelled receive waits for its member"
    held = consumers(server, space).get(idle.client, 0)
    assert held <= 1


async def test_what_a_broken_connection_swallowed_is_found_in_the_own_pending_list(
    server: Server, connect: Connect
) -> None:
    backend = await connect()
    space = backend.namespace(fresh())
    stream = space.stream("s")
    await stream.create()
    sink = await stream.sink("g", ack_wait=60.0)
    # what XREADGROUP gives to a socket that ends before the reply comes
    receiving = asyncio.ensure_future(sink.receive())
    await until(lambda: asks(server, backend))
    events = StreamKeys.of(scope_of(space.name), "s").events
    reader = sinks_of(backend)._reader
    await stream.append(NewEvent("e", b"first"))
    assert (await receiving)[0].event.payload == b"first"
    await stream.append(NewEvent("e", b"lost"))
    command(server.port, "XREADGROUP", "GROUP", "g0", backend.client, "STREAMS", events, ">")
    assert consumers(server, space) == {backend.client: 2}
    reader.drop("as if the network had broken")
    started = time.monotonic()
    (delivery,) = await asyncio.wait_for(sink.receive(), 5)
    assert delivery.event.payload == b"lost"
    assert delivery.attempt == 1
    assert time.monotonic() - started < 2, "long before its ack_wait"
    assert await sink.ack([delivery.receipt]) == [True]


async def test_six_thousand_events_over_broken_connections_come_once_each(own_server: Server, connect: Connect) -> None:
    backend, writer = await connect(own_server.url), await connect(own_server.url)
    space = backend.namespace(fresh())
    stream, out = space.stream("s"), writer.namespace(space.name).stream("s")
    await stream.create()
    sink = await stream.sink("g", ack_wait=60.0)
    reader = sinks_of(backend)._reader
    kills, seen = 0, list[bytes]()

    async def write() -> None:
        for n in range(60):
            await asyncio.gather(*(out.append(NewEvent("e", b"%d" % (n * 100 + i))) for i in range(100)))

    async def kill() -> None:
        nonlocal kills
        while kills < 200:
            if reader.connected:
                reader.drop("killed by the test")
                kills += 1
            await asyncio.sleep(0.005)

    async def read() -> None:
        while len(seen) < 6000:
            deliveries = await sink.receive(32)
            seen.extend(delivery.event.payload for delivery in deliveries)
            assert all(await sink.ack([delivery.receipt for delivery in deliveries]))

    async with asyncio.timeout(50), asyncio.TaskGroup() as group:
        group.create_task(write())
        group.create_task(kill())
        group.create_task(read())
    print(f"6000 events, {kills} kills: {6000 - len(set(seen))} lost, {len(seen) - len(set(seen))} doubled")
    assert len(seen) == len(set(seen)) == 6000
    assert await stream.length() == 0


async def test_a_vanished_member_is_freed_before_it_is_forgotten(own_server: Server, connect: Connect) -> None:
    gone, heir = await connect(own_server.url), await connect(own_server.url)
    space = gone.namespace(fresh())
    stream = space.stream("s")
    for n in range(300):  # more than one page of the burial
        await stream.append(NewEvent("e", b"%d" % n))
    first = await stream.sink("g", ack_wait=0.5)
    assert len(await first.receive(300)) == 300
    assert consumers(own_server, space)[gone.client] == 300
    sinks_of(gone)._closed = True  # a crash: nothing of it goes on, nothing is said
    for task in sinks_of(gone)._tasks:
        task.cancel()
    second = await heir.namespace(space.name).stream("s").sink("g", ack_wait=0.5)
    found = await drain(second, 300)
    assert sorted(map(int, found)) == list(range(300))
    await until(lambda: gone.client not in consumers(own_server, space))


async def test_burying_a_member_frees_what_it_holds_first(own_server: Server, connect: Connect) -> None:
    """Deleting a consumer drops what it holds. Its ack_wait is far away here: only the burial can save the events."""
    gone, heir = await connect(own_server.url), await connect(own_server.url)
    space = gone.namespace(fresh())
    stream = space.stream("s")
    for n in range(300):  # more than one page
        await stream.append(NewEvent("e", b"%d" % n))
    first = await stream.sink("g", ack_wait=60.0)
    assert len(await first.receive(300)) == 300
    for task in sinks_of(gone)._tasks:
        task.cancel()
    command(own_server.port, "ZADD", StreamKeys.of(scope_of(space.name), "s").members(0), 1, gone.client)
    second = await heir.namespace(space.name).stream("s").sink("g", ack_wait=60.0)
    assert sorted(map(int, await drain(second, 300))) == list(range(300))
    assert gone.client not in consumers(own_server, space)


async def test_a_receipt_is_void_once_the_same_member_has_the_event_again(connect: Connect) -> None:
    space = (await connect()).namespace(fresh())
    await space.stream("s").append(NewEvent("e", b"x"))
    sink = await space.stream("s").sink("g", ack_wait=2.0)  # longer than all that follows the second delivery takes
    (old,) = await sink.receive()
    (new,) = await asyncio.wait_for(sink.receive(), 10)
    assert await sink.ack([old.receipt]) == [False]
    assert (await space.commit([Ack(old.receipt)])).results == (False,)
    assert not await sink.extend(old.receipt)
    assert not await sink.nack(old.receipt)
    assert await sink.ack([new.receipt, new.receipt]) == [True, False]


async def test_what_a_lost_round_took_is_found_at_once(connect: Connect) -> None:
    """The round claims an event and its reply is lost with the command connection."""
    backend = await connect()
    space = backend.namespace(fresh())
    await space.stream("s").append(NewEvent("e", b"x"))
    sink = await space.stream("s").sink("g", ack_wait=2.0)
    (old,) = await sink.receive()
    run, lost = sinks_of(backend)._command.run, 0

    async def losing(script: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal lost
        reply: Any = await run(script, *args, **kwargs)
        if script.name == "sink-tend" and not lost and len(reply[0]) > 2:
            lost += 1
            raise OutcomeUnknown("the reply was lost")
        return reply

    sinks_of(backend)._command.run = losing  # type: ignore[method-assign]
    started = time.monotonic()
    (new,) = await asyncio.wait_for(sink.receive(), 10)
    assert lost == 1
    assert new.attempt == old.attempt + 1, "this very delivery, and not only the next one"
    assert time.monotonic() - started < 3.5


async def test_ids_grow_over_a_destruction_and_a_clock_that_went_back(server: Server, space: RedisNamespace) -> None:
    stream = space.stream("s")
    first = await stream.append(NewEvent("e", b""))
    await stream.destroy()
    second = await stream.append(NewEvent("e", b""))
    await stream.destroy()
    command(server.port, "HSET", scope_of(space.name) + b"h", "i", "9999999999999-7")
    third = await stream.append(NewEvent("e", b""))
    assert first is not None
    assert second is not None
    assert third == "0009999999999999-0000000008"
    assert first < second < third


async def test_a_zombie_can_neither_extend_nor_ack_nor_give_back(connect: Connect) -> None:
    zombie, other = await connect(), await connect()
    space = zombie.namespace(fresh())
    await space.stream("s").append(NewEvent("e", b"x"))
    first = await space.stream("s").sink("g", ack_wait=2.0)  # longer than all that follows the second delivery takes
    second = await other.namespace(space.name).stream("s").sink("g", ack_wait=2.0)
    (old,) = await first.receive()
    await first.aclose()
    (new,) = await asyncio.wait_for(second.receive(), 10)
    assert new.attempt == old.attempt + 1
    member = await space.stream("s").sink("g", ack_wait=2.0)
    assert await member.ack([old.receipt]) == [False]
    assert not await member.extend(old.receipt)
    assert not await member.nack(old.receipt)
    assert await member.ack([new.receipt]) == [True], "any process may ack with the receipt that is current"


async def test_a_nack_wakes_another_backend_at_once(server: Server, connect: Connect) -> None:
    one, two = await connect(), await connect()
    space = one.namespace(fresh())
    await space.stream("s").append(NewEvent("e", b"x"))
    first = await space.stream("s").sink("g", ack_wait=30.0)
    (delivery,) = await first.receive()
    second = await two.namespace(space.name).stream("s").sink("g", ack_wait=30.0)
    waiting = asyncio.ensure_future(second.receive())
    await until(lambda: asks(server, two))
    started = time.monotonic()
    assert await first.nack(delivery.receipt)
    assert (await asyncio.wait_for(waiting, 10))[0].event.payload == b"x"
    assert time.monotonic() - started < 3, "not only at the next look, after an interval of 5 s"


async def test_a_stream_with_two_sinks_drops_an_event_that_both_have_acked(connect: Connect) -> None:
    space = (await connect()).namespace(fresh())
    stream, log = space.stream("s"), space.stream("l")
    await log.create(StreamConfig(StreamKind.LOG, 10))
    for n in range(3):
        await stream.append(NewEvent("e", b"%d" % n))
        await log.append(NewEvent("e", b"%d" % n))
    a, b = await stream.sink("a"), await stream.sink("b")
    only = await log.sink("a")
    assert await drain(a, 3) == [b"0", b"1", b"2"]
    assert await stream.length() == 3, "b has not had them"
    assert await drain(b, 3) == [b"0", b"1", b"2"]
    assert await stream.length() == 0
    await drain(only, 3)
    assert await log.length() == 3, "a log keeps what was acked"


async def test_the_next_life_of_a_stream_is_taken_from_its_beginning(server: Server, connect: Connect) -> None:
    backend = await connect()
    space = backend.namespace(fresh())
    stream, other = space.stream("s"), space.stream("other")
    await stream.create()
    await other.create()
    sink, beside = await stream.sink("g"), await other.sink("g")
    waiting = asyncio.ensure_future(sink.receive())
    waiting_beside = asyncio.ensure_future(beside.receive())
    await until(lambda: asks(server, backend))
    await stream.destroy()
    await other.append(NewEvent("e", b"beside"))
    assert (await asyncio.wait_for(waiting_beside, 5))[0].event.payload == b"beside", "one gone stream fails no other"
    assert await stream.append(NewEvent("e", b"never"), only_if_exists=True) is None
    await stream.append(NewEvent("e", b"again"))
    assert (await asyncio.wait_for(waiting, 5))[0].event.payload == b"again"


async def test_an_entry_of_another_program_blocks_nothing(server: Server, connect: Connect) -> None:
    space = (await connect()).namespace(fresh())
    stream = space.stream("s")
    await stream.create()
    sink, reading = await stream.sink("g"), stream.read()
    command(server.port, "XADD", StreamKeys.of(scope_of(space.name), "s").events, "*", "foreign", b"\xff")
    await stream.append(NewEvent("e", b"ours"))
    assert (await asyncio.wait_for(sink.receive(), 5))[0].event.payload == b"ours"
    assert (await asyncio.wait_for(anext(reading), 5)).payload == b"ours"


async def test_closing_frees_what_was_fetched_and_leaves_no_member(own_server: Server, connect: Connect) -> None:
    one, two = await connect(own_server.url), await connect(own_server.url)
    space = one.namespace(fresh())
    stream = space.stream("s")
    await stream.create()
    first = await stream.sink("g", ack_wait=60.0)
    waiting = asyncio.ensure_future(first.receive())
    await until(lambda: blocked(own_server, "xreadgroup"))
    waiting.cancel()  # the blocked call still asks for its event: it is fetched, and nobody takes it
    await asyncio.gather(waiting, return_exceptions=True)
    await stream.append(NewEvent("e", b"x"))
    async with asyncio.timeout(5):
        while consumers(own_server, space).get(one.client) != 1 or not first.sink.held:
            await asyncio.sleep(0.005)
    second = await two.namespace(space.name).stream("s").sink("g", ack_wait=60.0)
    receiving = asyncio.ensure_future(second.receive())
    await until(lambda: asks(own_server, two))
    assert not receiving.done()
    await first.aclose()
    (delivery,) = await asyncio.wait_for(receiving, 10)  # not only after its ack_wait of 60 s
    assert await second.ack([delivery.receipt]) == [True]
    assert one.client not in consumers(own_server, space)
