"""Group commit: callers share a script, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from corepool.driver import (
    ABSENT,
    REVISION,
    Ack,
    Append,
    Appended,
    Change,
    Commit,
    CommitResult,
    DeleteKey,
    Entry,
    GetKey,
    NewEvent,
    Op,
    SetKey,
    Snapshot,
    StreamConfig,
)
from corepool.errors import OutcomeUnknown, WireError
from corepool_redis.backend import RedisNamespace
from corepool_redis.keys import MapKeys, StreamKeys, scope_of
from tests.redis.conftest import Connect
from tests.redis.fake import serving
from tests.servers.valkey import Server, command


def text(server: Server, *args: str | bytes) -> str:
    """What the server answers to a command, as text."""
    reply = command(server.port, *args)
    assert isinstance(reply, bytes)
    return reply.decode()


def scripts_run(server: Server, command_name: str = "evalsha") -> int:
    """How many scripts the server has run by now."""
    for line in text(server, "INFO", "commandstats").splitlines():
        if line.startswith(f"cmdstat_{command_name}:"):
            return int(line.split("calls=")[1].split(",")[0])
    return 0


async def test_the_first_of_a_turn_leaves_at_once_and_the_others_as_one_script(
    own_server: Server, connect: Connect
) -> None:
    space = (await connect(own_server.url)).namespace("group")
    await asyncio.gather(
        *(space.map("m").set(f"first{n}", b"") for n in range(2))
    )  # so that the server knows the script
    before = scripts_run(own_server)
    commits = await asyncio.gather(*(space.map("m").set(f"k{n}", b"%d" % n) for n in range(8)))
    assert scripts_run(own_server) == before + 2
    revisions = [commit.revision for commit in commits]
    assert revisions == list(range(revisions[0], revisions[0] + 8)), "in the order in which they were handed in"


async def test_a_group_whose_script_is_unknown_goes_once_more_as_a_whole(own_server: Server, connect: Connect) -> None:
    space = (await connect(own_server.url)).namespace("unknown")
    command(own_server.port, "SCRIPT", "FLUSH")
    await asyncio.gather(*(space.map("m").set(f"first{n}", b"") for n in range(8)))
    assert scripts_run(own_server, "eval") == 2, "one of each script"
    command(own_server.port, "SCRIPT", "FLUSH")
    calls = [asyncio.ensure_future(space.map("m").set(f"k{n}", b"")) for n in range(8)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # sent, and not yet refused
    calls[3].cancel()
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert [number for number, commit in enumerate(done) if isinstance(commit, BaseException)] == [3]
    assert await space.map("m").get("k3") is None, "who was cancelled is not sent again"
    assert await space.map("m").get("k4") is not None


async def test_a_large_group_is_several_scripts(own_server: Server, connect: Connect) -> None:
    space = (await connect(own_server.url)).namespace("group")
    await asyncio.gather(
        *(space.map("m").set(f"first{n}", b"") for n in range(2))
    )  # so that the server knows the script
    before = scripts_run(own_server)
    await asyncio.gather(*(space.map("m").set(f"k{n}", b"") for n in range(64)))
    many = scripts_run(own_server) - before
    await asyncio.gather(*(space.map("m").set(f"k{n}", b"x" * 150_000) for n in range(4)))
    assert many == 1 + 8
    assert scripts_run(own_server) == before + many + 4


async def test_a_refused_section_leaves_its_neighbours_alone(space: RedisNamespace) -> None:
    await space.stream("s").create()

    def admit(key: str) -> Sequence[SetKey | Append | GetKey]:
        return [
            SetKey("attention", key, b"listed"),
            SetKey("jobs", key, b"record", ABSENT),
            Append("s", NewEvent("start", key.encode()), stamp=1),
            GetKey("attention", key),
        ]

    first, again, other = await asyncio.gather(*(space.commit(admit(key)) for key in ("a", "a", "b")))
    assert (first.stopped, again.stopped, other.stopped) == (None, 1, None)
    head = await space.map("attention").set("c", b"")
    listed = await space.map("attention").get_many(["a", "b"])
    assert [entry.revision for entry in listed.values()] == [head.revision - 2, head.revision - 1], (
        "what the refused section had prepared took no revision"
    )
    events = await space.stream("s").range()
    jobs = await space.map("jobs").get_many(["a", "b"])
    assert [(event.payload, event.stamp) for event in events] == [
        (b"a", jobs["a"].revision),
        (b"b", jobs["b"].revision),
    ]


async def test_a_section_sees_what_the_one_before_it_did(space: RedisNamespace) -> None:
    m = space.map("m")
    await space.map("other").set("k", b"0")
    await space.map("other").destroy()  # a script that the server does not know yet would come too late
    await m.set("k", b"0")
    made, destroyed, after, lost, later = await asyncio.gather(
        m.set("k", b"1"), m.destroy(), m.set("k", b"2", ABSENT), m.set("k", b"3", REVISION(1)), m.set("l", b"4")
    )
    assert destroyed is None
    assert made.applied
    assert after.applied
    assert after.previous is None
    assert not lost.applied
    assert lost.previous is not None
    assert lost.previous.value == b"2"
    assert made.revision < after.revision < later.revision
    assert {entry.key: entry.value async for entry in m.scan()} == {"k": b"2", "l": b"4"}


async def test_an_event_without_a_stamp_does_not_end_its_section(space: RedisNamespace) -> None:
    await space.stream("s").create()
    done = await space.commit([Append("s", NewEvent("e", b"")), *(SetKey("m", f"k{n}", b"") for n in range(20))])
    assert len(done.results) == 21
    assert len(await space.map("m").get_many([f"k{n}" for n in range(20)])) == 20


async def test_a_foreign_key_in_one_section_is_told_to_its_caller_alone(server: Server, space: RedisNamespace) -> None:
    command(server.port, "HSET", MapKeys.of(scope_of(space.name), "theirs").data, "", "foreign")
    ops = [
        [SetKey("ours", "a", b"1"), SetKey("more", "a", b"1")],
        [SetKey("theirs", "k", b""), SetKey("ours", "x", b"")],
    ]
    good, bad, fine = await asyncio.gather(
        space.commit(ops[0]), space.commit(ops[1]), space.map("ours").set("b", b"2"), return_exceptions=True
    )
    assert not isinstance(good, BaseException)
    assert isinstance(bad, WireError)
    assert not isinstance(fine, BaseException)
    assert {entry.key async for entry in space.map("ours").scan()} == {"a", "b"}


async def test_who_was_cancelled_before_the_group_left_is_not_in_it(space: RedisNamespace) -> None:
    m = space.map("m")
    calls = [asyncio.ensure_future(m.set(f"k{n}", b"")) for n in range(3)]
    asyncio.get_running_loop().call_soon(calls[1].cancel)  # after they have handed in, before the group leaves
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(done[1], asyncio.CancelledError)
    assert {entry.key async for entry in m.scan()} == {"k0", "k2"}


async def test_who_is_cancelled_later_takes_nobody_with_him(space: RedisNamespace) -> None:
    m = space.map("m")
    await m.set("first", b"")
    calls = [asyncio.ensure_future(m.set(f"k{n}", b"%d" % n)) for n in range(8)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # sent by now
    for call in calls[::2]:
        call.cancel()
    done = await asyncio.gather(*calls, return_exceptions=True)
    for number, commit in enumerate(done):
        if number % 2:
            assert not isinstance(commit, BaseException)
            entry = await m.get(f"k{number}")
            assert entry is not None
            assert (entry.value, entry.revision) == (b"%d" % number, commit.revision)


async def test_a_lost_group_is_unknown_to_each_writer_and_read_again(connect: Connect) -> None:
    def answer(words: list[bytes]) -> bytes | None:
        if words[0] == b"EVALSHA" and len(fake.writers) == 1:
            fake.cut()
            return None
        return b"*2\r\n:-1\r\n$-1\r\n" if words[0] == b"EVALSHA" else b"+OK\r\n"

    async with serving(answer) as fake:
        space = (await connect(f"redis://127.0.0.1:{fake.port}/0")).namespace("lost")
        outcomes = await asyncio.gather(
            space.map("m").set("a", b""), space.map("m").set("b", b""), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [OutcomeUnknown, OutcomeUnknown]


@pytest.mark.parametrize("name", ["m", "other"])
async def test_the_log_ends_with_its_watchers_and_begins_with_the_next(
    server: Server, space: RedisNamespace, name: str
) -> None:
    m, keys = space.map(name), MapKeys.of(scope_of(space.name), name)
    await m.set("k", b"0")

    def marked() -> bool:
        return text(server, "HGET", keys.data, "").endswith(":w")

    assert not marked()
    watch = m.watch()
    assert isinstance(await anext(watch), Snapshot)
    assert marked()
    await m.set("k", b"1")
    assert isinstance(await anext(watch), Change)
    await watch.aclose()
    command(server.port, "DEL", keys.log)  # as when it expires
    await m.set("k", b"2")
    assert not marked()
    await space.commit([SetKey(name, "k", b"3"), SetKey(name, "l", b"3")])
    assert command(server.port, "EXISTS", keys.log) == 0
    watch = m.watch()
    snapshot = await anext(watch)
    assert isinstance(snapshot, Snapshot)
    assert {entry.key: entry.value for entry in snapshot.entries} == {"k": b"3", "l": b"3"}
    await space.commit([SetKey(name, "k", b"4"), SetKey(name, "l", b"4")])
    changes = [await anext(watch), await anext(watch)]
    assert [change.value for change in changes if isinstance(change, Change)] == [b"4", b"4"]
    await watch.aclose()


async def together(space: RedisNamespace, *commits: Sequence[Op]) -> list[CommitResult | BaseException]:
    """Commit these in one run of the script: with something under way, they leave at the end of the turn as one group."""
    await space.commit([SetKey("warm", "a", b""), SetKey("warm", "b", b"")])  # the server knows the script
    first = asyncio.ensure_future(space.commit([GetKey("warm", "a")]))
    await asyncio.sleep(0)
    done = await asyncio.gather(*(space.commit(ops) for ops in commits), return_exceptions=True)
    await first
    return done


async def test_what_a_stopped_section_had_begun_is_taken_back(server: Server, space: RedisNamespace) -> None:
    """A map that it had begun, a stream's length, a deletion, an acknowledgement: the next section finds them as before."""
    stream = space.stream("s")
    await stream.create(StreamConfig(max_length=2))
    await stream.append(NewEvent("held", b""))
    await space.map("full").set("k", b"1")
    sink = await stream.sink("sink")
    [delivery] = await sink.receive()
    stopping = [
        SetKey("fresh", "k", b"lost"),
        SetKey("gone", "k", b"lost"),
        DeleteKey("full", "k"),
        Ack(delivery.receipt),
        Append("s", NewEvent("lost", b"")),
        SetKey("full", "other", b"", REVISION(1)),
    ]
    following = [
        GetKey("fresh", "k"),
        SetKey("fresh", "l", b"first"),
        SetKey("gone", "k", b"", REVISION(1), optional=True),
        GetKey("full", "k"),
        Append("s", NewEvent("kept", b"")),
        Ack(delivery.receipt),
    ]
    once_more = [SetKey("full", "l", b""), Ack(delivery.receipt)]
    stopped, after, again = await together(space, stopping, following, once_more)
    assert isinstance(stopped, CommitResult)
    assert stopped.stopped == 5
    assert isinstance(after, CommitResult)
    nothing, made, gone, held, appended, acked = after.results
    assert gone == Commit(False, 0, None), "there is no such map, and no revision of it to wait for"
    assert after.stopped is None
    assert nothing is None
    assert isinstance(made, Commit)
    assert made.applied
    assert isinstance(held, Entry)
    assert held.value == b"1"
    assert isinstance(appended, Appended)
    assert appended.id is not None, "the stream had room for one"
    assert acked is True
    assert isinstance(again, CommitResult)
    assert again.results[1] is False, "acknowledged in the same run"
    assert {entry.key async for entry in space.map("fresh").scan()} == {"l"}
    assert [event.name for event in await stream.range()] == ["kept"]
    head = text(server, "HGET", MapKeys.of(scope_of(space.name), "fresh").data, "")
    assert int(head.partition("-")[0]) == made.revision
    await sink.aclose()


async def test_a_stream_in_whose_place_something_else_stands_fails_its_section_alone(
    server: Server, space: RedisNamespace
) -> None:
    keys = StreamKeys.of(scope_of(space.name), "theirs")
    await space.stream("theirs").create()
    command(server.port, "DEL", keys.events)
    command(server.port, "SET", keys.events, "foreign")
    bad, good = await together(
        space,
        [SetKey("m", "bad", b""), Append("theirs", NewEvent("e", b""))],
        [SetKey("m", "good", b""), SetKey("m", "bad", b"now", ABSENT)],
    )
    assert isinstance(bad, WireError)
    assert isinstance(good, CommitResult)
    assert good.stopped is None
    assert {entry.key: entry.value async for entry in space.map("m").scan()} == {"good": b"", "bad": b"now"}


async def test_sections_in_one_run_see_each_other(space: RedisNamespace) -> None:
    await space.map("m").set("k", b"0")
    one, two, three = await together(
        space,
        [DeleteKey("m", "k"), SetKey("n", "k", b"1")],
        [GetKey("m", "k"), SetKey("m", "k", b"2", ABSENT)],
        [SetKey("m", "k", b"3", ABSENT, optional=True), GetKey("n", "k")],
    )
    assert isinstance(one, CommitResult)
    assert isinstance(two, CommitResult)
    assert isinstance(three, CommitResult)
    assert two.stopped is None
    assert two.results[0] is None
    refused, other = three.results
    assert isinstance(refused, Commit)
    assert not refused.applied
    assert refused.previous is not None
    assert refused.previous.value == b"2"
    assert isinstance(other, Entry)
    assert other.value == b"1"
    entry = await space.map("m").get("k")
    assert entry is not None
    assert entry.revision == refused.previous.revision


async def test_a_lone_set_and_one_in_a_group_answer_alike(space: RedisNamespace) -> None:
    m = space.map("m")
    assert await m.set("k", b"1", REVISION(7)) == Commit(False, 0, None)
    born = await m.set("k", b"1", ABSENT)
    assert born.applied
    refused = await m.set("k", b"2", ABSENT)
    assert refused == Commit(False, born.revision, Entry("k", b"1", born.revision))
    grown = await m.set("k", b"2", REVISION(born.revision))
    assert grown == Commit(True, born.revision + 1, Entry("k", b"1", born.revision))
    [other] = await together(space, [SetKey("m", "k", b"3", REVISION(grown.revision))])
    assert isinstance(other, CommitResult)
    assert other.results == (Commit(True, grown.revision + 1, Entry("k", b"2", grown.revision)),)


async def test_a_stopped_section_acknowledges_nothing(space: RedisNamespace) -> None:
    stream = space.stream("s")
    await stream.create()
    await stream.append(NewEvent("e", b""))
    sink = await stream.sink("sink")
    [delivery] = await sink.receive()
    stopped, kept = await together(
        space, [Ack(delivery.receipt), SetKey("m", "k", b"", REVISION(1))], [SetKey("m", "l", b"")]
    )
    assert isinstance(stopped, CommitResult)
    assert stopped.stopped == 1
    assert not isinstance(kept, BaseException)
    assert await sink.ack([delivery.receipt]) == [True]
    await sink.aclose()


async def test_the_head_of_a_map_is_that_of_the_last_section_that_took_place(
    server: Server, space: RedisNamespace
) -> None:
    good, stopped = await together(
        space, [SetKey("m", "k", b"1")], [SetKey("m", "l", b"2"), SetKey("m", "k", b"3", REVISION(1))]
    )
    assert isinstance(good, CommitResult)
    assert isinstance(stopped, CommitResult)
    [made] = good.results
    assert isinstance(made, Commit)
    head = text(server, "HGET", MapKeys.of(scope_of(space.name), "m").data, "")
    assert int(head.partition("-")[0]) == made.revision
