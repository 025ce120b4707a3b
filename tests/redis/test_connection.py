"""The command connection: order, cancellation, unknown outcomes, bounds, fences."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable

import pytest
import uvloop

from corepool.driver import NewEvent
from corepool.errors import BackendUnavailable, OutcomeUnknown, UnsupportedServer
from corepool_redis import resp
from corepool_redis.backend import open_redis
from corepool_redis.connection import Endpoint
from corepool_redis.handshake import Settings
from corepool_redis.link import Link
from corepool_redis.resp import ProtocolError, PythonReader, ReplyError, encode, new_reader
from corepool_redis.routes import FixedRoute
from corepool_redis.scripts import Script
from tests.redis.conftest import Connect, fresh
from tests.redis.fake import HELLO, proxying, serving
from tests.servers.valkey import Server
from tests.waiting import until


def make_link(port: int, **settings: object) -> Link:
    route = FixedRoute(Endpoint("127.0.0.1", port))
    merged = Settings(**{"timeout": 1.0, "connect_timeout": 1.0, **settings})  # type: ignore[arg-type]
    return Link(route, merged, epochs=itertools.count(1), rng=random.Random(1), client="c")


def echo(words: list[bytes]) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(words[-1]), words[-1])


# --- the protocol ----------------------------------------------------------------------------------------------------

REPLIES = (
    b"+OK\r\n:-42\r\n$-1\r\n$0\r\n\r\n*-1\r\n*3\r\n$1\r\na\r\n*1\r\n:1\r\n$-1\r\n-ERR no\r\n*0\r\n$4\r\n\r\n\r\n\r\n"
)


@pytest.mark.parametrize("make", [PythonReader, new_reader])
@pytest.mark.parametrize("step", [1, 2, 5, 1000])
def test_both_readers_give_the_same(make: Callable[[], resp.Reader], step: int) -> None:
    reader, found = make(), []
    for at in range(0, len(REPLIES), step):
        reader.feed(REPLIES[at : at + step])
        while (reply := reader.gets()) is not resp.INCOMPLETE:
            found.append(str(reply) if isinstance(reply, ReplyError) else reply)
    assert found == [b"OK", -42, None, b"", None, [b"a", [1], None], "ERR no", [], b"\r\n\r\n"]


@pytest.mark.parametrize("make", [PythonReader, new_reader])
def test_what_is_no_protocol_is_refused(make: Callable[[], resp.Reader]) -> None:
    reader = make()
    reader.feed(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(ProtocolError):
        reader.gets()


# --- order and cancellation ------------------------------------------------------------------------------------------


async def test_commands_of_one_tick_go_out_in_one_write() -> None:
    async with serving(echo) as fake:
        link = make_link(fake.port)
        await link.command("ECHO", "warm")
        before = len(fake.chunks)
        assert await asyncio.gather(*(link.command("ECHO", str(n)) for n in range(50))) == [
            b"%d" % n for n in range(50)
        ]
        assert len(fake.chunks) - before == 1
        link.close()


async def test_three_thousand_random_cancellations_cross_no_reply(server: Server) -> None:
    link = make_link(server.port, max_in_flight=64)
    chance, cancelled, crossed = random.Random(7), 0, 0

    async def call(number: int) -> None:
        nonlocal crossed
        if await link.command("ECHO", f"{number}") != b"%d" % number:
            crossed += 1

    number = 0
    while cancelled < 3000:
        calls = [asyncio.ensure_future(call(number + n)) for n in range(100)]
        number += 100
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
        for task in chance.sample(calls, 60):
            if task.cancel():
                cancelled += 1
        await asyncio.gather(*calls, return_exceptions=True)
    assert crossed == 0
    assert await link.command("ECHO", "last") == b"last"
    link.close()
    print(f"{number} calls, {cancelled} cancelled, {crossed} crossed")


async def test_a_reply_that_nobody_asked_for_ends_the_connection() -> None:
    async with serving(lambda words: b"+one\r\n+two\r\n" if words[0] == b"ECHO" else b"+PONG\r\n") as fake:
        link = make_link(fake.port)
        assert await link.command("ECHO", "x") == b"one"
        assert await link.command("PING") == b"PONG"
        assert link.generation == 2, "the second reply could have been taken for that of a later call"
        link.close()


# --- outcomes --------------------------------------------------------------------------------------------------------


async def test_a_write_in_flight_at_a_disconnect_is_unknown_and_a_read_is_repeated() -> None:
    async with serving(lambda words: None if words[0] in (b"EVALSHA", b"GET") else b"+PONG\r\n") as fake:
        link = make_link(fake.port)
        write = asyncio.ensure_future(link.run(Script.named("fence"), (), (), scope=b"s:"))
        read = asyncio.ensure_future(link.command("GET", "k"))
        while len(fake.commands) < 3:
            await asyncio.sleep(0.001)
        fake.answer = lambda words: b"+again\r\n"
        fake.cut()
        with pytest.raises(OutcomeUnknown):
            await write
        assert await read == b"again"
        assert link.unsettled == {b"s:"}
        assert [words[0] for words in fake.commands].count(b"EVALSHA") == 1, "a write is never sent again"
        link.close()


async def test_the_outcome_of_a_cancelled_write_is_remembered_as_unknown() -> None:
    async with serving(lambda words: None) as fake:
        link = make_link(fake.port)
        write = asyncio.ensure_future(link.run(Script.named("fence"), (), (), scope=b"s:"))
        while len(fake.commands) < 2:
            await asyncio.sleep(0.001)
        write.cancel()
        await asyncio.gather(write, return_exceptions=True)
        fake.cut()
        await until(lambda: link.unsettled)
        assert link.unsettled == {b"s:"}
        link.close()


async def test_without_a_server_nothing_is_sent_and_the_error_says_so() -> None:
    link = make_link(1, timeout=0.2)
    for call in (link.command("GET", "k"), link.run(Script.named("fence"), (), (), scope=b"s:")):
        with pytest.raises(BackendUnavailable):
            await call
    assert link.unsettled == set()
    link.close()


async def test_a_mute_server_is_given_up_in_time() -> None:
    async with serving(lambda words: None) as fake:
        link = make_link(fake.port, timeout=0.2)
        started = asyncio.get_running_loop().time()
        with pytest.raises(OutcomeUnknown, match="did not answer"):
            await link.run(Script.named("fence"), (), (), scope=b"s:")
        with pytest.raises(BackendUnavailable):
            await link.command("GET", "k")
        assert asyncio.get_running_loop().time() - started < 1.5
        link.close()


async def test_a_script_that_the_server_forgot_is_sent_as_text(server: Server) -> None:
    seen: list[bytes] = []

    def answer(words: list[bytes]) -> bytes:
        seen.append(words[0])
        return b"-NOSCRIPT No matching script.\r\n" if words[0] == b"EVALSHA" else b":1\r\n"

    async with serving(answer) as fake:
        link = make_link(fake.port)
        assert await link.run(Script.named("fence"), (), (), scope=b"s:") == 1
        assert seen == [b"EVALSHA", b"EVAL"]
        link.close()


@pytest.mark.parametrize("refusal", ["LOADING wait", "READONLY no", "TRYAGAIN later", "FENCED no"])
async def test_what_was_refused_as_a_whole_is_repeated(refusal: str) -> None:
    answers = iter([f"-{refusal}\r\n".encode()] * 2)

    async with serving(lambda words: next(answers, b":1\r\n")) as fake:
        link = make_link(fake.port)
        assert await link.run(Script.named("fence"), (), (), scope=b"s:") == 1
        link.close()


@pytest.mark.parametrize(
    "refusal", ["OOM command not allowed", "MISCONF no disk", "NOREPLICAS none", "NOPERM no right"]
)
async def test_what_an_operator_must_mend_is_certainly_not_applied(refusal: str) -> None:
    async with serving(lambda words: f"-{refusal}\r\n".encode()) as fake:
        link = make_link(fake.port)
        with pytest.raises(BackendUnavailable, match=r"Nothing was applied"):
            await link.run(Script.named("fence"), (), (), scope=b"s:")
        link.close()


async def test_a_call_is_asked_where_its_slot_is_going() -> None:
    async with serving(echo) as target:
        asks = 0

        def redirect(words: list[bytes]) -> bytes:
            nonlocal asks
            asks += 1
            return b"-ASK 7 127.0.0.1:%d\r\n" % target.port if words[-1] != b"here" else b"+here\r\n"

        async with serving(redirect) as source:
            link = make_link(source.port)
            assert await link.command("ECHO", "there") == b"there"
            assert await link.command("ECHO", "here") == b"here"
            assert await link.command("ECHO", "again") == b"again"
            assert [words[0] for words in target.commands] == [b"HELLO", b"ASKING", b"ECHO", b"ASKING", b"ECHO"]
            assert asks == 3, "each call asks once, and goes where it is told"
            link.close()


# --- bounds ----------------------------------------------------------------------------------------------------------


async def test_commands_in_flight_are_bounded_and_the_room_is_given_back() -> None:
    most = 0
    waiting: list[bytes] = []

    def answer(words: list[bytes]) -> None:
        nonlocal most
        waiting.append(words[-1])
        most = max(most, len(waiting))

    async with serving(answer) as fake:
        link = make_link(fake.port, max_in_flight=8)
        await link.ready()
        calls = [asyncio.ensure_future(link.command("ECHO", str(n))) for n in range(50)]
        for number in random.Random(3).sample(range(50), 20):
            calls[number].cancel()
        answered = 0
        async with asyncio.timeout(5):
            while not all(call.done() for call in calls):
                for word in waiting:
                    fake.writers[0].write(echo([word]))
                answered += len(waiting)
                waiting.clear()
                await asyncio.sleep(0.001)
        assert most <= 8
        for number, call in enumerate(calls):
            assert call.cancelled() or call.result() == b"%d" % number
        fake.answer = echo
        assert await asyncio.gather(*(link.command("ECHO", "x") for _ in range(16))) == [b"x"] * 16
        link.close()


# --- the handshake ---------------------------------------------------------------------------------------------------


async def test_a_replica_is_never_used() -> None:
    async with serving(lambda words: b"+PONG\r\n") as fake:
        fake.hello = HELLO.replace(b"$6\r\nmaster", b"$7\r\nreplica")
        link = make_link(fake.port, timeout=0.2)
        with pytest.raises(BackendUnavailable, match="not a primary"):
            await link.command("PING")
        fake.hello = HELLO
        assert await make_waiting(link) == b"PONG"
        link.close()


async def make_waiting(link: Link) -> object:
    async with asyncio.timeout(5):
        while True:
            try:
                return await link.command("PING")
            except BackendUnavailable:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("hidden", [(), (b"ROLE",), (b"ROLE", b"INFO")])
@pytest.mark.parametrize("primary", [True, False])
async def test_a_proxy_that_hides_the_role_is_asked_otherwise(hidden: tuple[bytes, ...], primary: bool) -> None:
    def answer(words: list[bytes]) -> bytes:
        if words[0] in hidden:
            return b"-NOPERM no right\r\n"
        match words[0]:
            case b"ROLE":
                return b"*1\r\n$6\r\nmaster\r\n" if primary else b"*1\r\n$5\r\nslave\r\n"
            case b"INFO":
                return echo([b"role:master\r\n" if primary else b"role:slave\r\n"])
            case b"DEL":
                return b":0\r\n" if primary else b"-READONLY You can't write against a read only replica.\r\n"
            case _:
                return b"+PONG\r\n"

    async with serving(answer) as fake:
        fake.hello = b"*2\r\n$7\r\nversion\r\n$5\r\n7.0.0\r\n"
        link = make_link(fake.port, timeout=0.2)
        if primary:
            assert await link.command("PING") == b"PONG"
        else:
            with pytest.raises(BackendUnavailable):
                await link.command("PING")
        link.close()


@pytest.mark.parametrize("version", ["6.0.16", "5.0.7"])
async def test_a_server_that_is_too_old_is_named(version: str) -> None:
    def answer(words: list[bytes]) -> bytes:
        if words[0] == b"HELLO":
            return b"-ERR unknown command `HELLO`\r\n"
        return echo([b"# Server\r\nredis_version:%b\r\n" % version.encode()])

    async with serving(answer) as fake:
        if version.startswith("6"):
            fake.hello = HELLO.replace(b"$5\r\n7.0.0", b"$6\r\n6.0.16")
        else:
            fake.hello = None
        link = make_link(fake.port)
        with pytest.raises(UnsupportedServer, match=version):
            await link.command("PING")
        link.close()


async def test_wrong_credentials_are_told_at_once_and_not_repeated() -> None:
    async with serving(lambda words: b"-WRONGPASS invalid username-password pair\r\n") as fake:
        fake.hello = None
        link = make_link(fake.port, username="u", password="hunter2")
        with pytest.raises(BackendUnavailable, match="credentials") as caught:
            await link.command("PING")
        assert "hunter2" not in str(caught.value) + repr(link) + repr(Settings(password="hunter2"))
        link.close()


# --- the fence (R2) --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settled", [True, False])
async def test_after_settle_a_write_that_still_lies_in_a_buffer_is_refused(
    server: Server, connect: Connect, settled: bool
) -> None:
    async with proxying(server.port) as proxy:
        backend = await connect(f"redis://127.0.0.1:{proxy.port}", timeout=0.3)
        space = backend.namespace(fresh())
        items = space.map("m")
        await items.set("before", b"1")
        proxy.hold()
        with pytest.raises(OutcomeUnknown):
            await items.set("k", b"late")
        assert await items.get("k") is None, "on a new connection"
        if settled:
            await space.settle()
        assert proxy.held
        await proxy.release()
        late = (await connect()).namespace(space.name).map("m")
        there = await late.get("k") is not None
        assert there == (not settled), "without the fence the danger is real"
        assert (await items.set("k", b"fresh")).applied, "later writes of the same client pass"


async def test_settle_without_anything_unknown_is_one_round_trip() -> None:
    async with serving(lambda words: b"+PONG\r\n") as fake:
        link = make_link(fake.port)
        await link.ready()
        before = len(fake.commands)
        await link.settle(b"s:")
        assert fake.commands[before:] == [[b"PING"]]
        link.close()


@pytest.mark.parametrize("how", [encode, resp.python_encode])
def test_a_command_is_encoded_by_length(how: Callable[..., bytes]) -> None:
    assert how(("SET", b"\r\n", 7, "é")) == b"*4\r\n$3\r\nSET\r\n$2\r\n\r\n\r\n$1\r\n7\r\n$2\r\n\xc3\xa9\r\n"


def test_the_driver_runs_on_uvloop(server: Server) -> None:
    async def scenario() -> None:
        backend = await open_redis(server.url, {})
        space = backend.namespace(fresh())
        watch = space.map("m").watch()
        await anext(watch)
        commit = await space.map("m").set("k", b"x" * 300_000)
        assert (await anext(watch)).revision == commit.revision
        await space.stream("s").append(NewEvent("e", b"x"))
        sink = await space.stream("s").sink("g")
        assert (await sink.receive())[0].event.payload == b"x"
        await backend.aclose()

    uvloop.run(asyncio.wait_for(scenario(), 10))


async def test_the_driver_runs_without_hiredis(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corepool_redis.connection.new_reader", PythonReader)
    monkeypatch.setattr("corepool_redis.resp._pack", resp.python_encode)
    space = (await connect()).namespace(fresh())
    items = space.map("m")
    watch = items.watch()
    await anext(watch)
    commits = await asyncio.gather(*(items.set(f"k{n}", b"\r\n" * n) for n in range(100)))
    for _ in range(100):
        event = await asyncio.wait_for(anext(watch), 5)
    assert event.revision == max(commit.revision for commit in commits)
    assert len([entry async for entry in items.scan()]) == 100
