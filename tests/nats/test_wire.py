"""The wire: how what arrives is cut, who gets it, and what goes out."""

from __future__ import annotations

import asyncio
import logging

import pytest
from nats.errors import ProtocolError

from corepool_nats.link import Link, NotSent
from corepool_nats.url import parse_url
from corepool_nats.wire import Message, Wire, _Splitter, command, headers_of
from tests.nats.conftest import Open
from tests.servers.nats import NatsServer

STREAM = (
    b"INFO {}\r\n"
    b"MSG a.b 1 5\r\nh\r\nlo\r\n"
    b"PING\r\n"
    b"HMSG a.b 1 re.ply 23 25\r\nNATS/1.0\r\nName: val\r\n\r\nok\r\n"
    b"MSG a.c 1 re.ply 0\r\n\r\n"
    b"MSG nobody 7 2\r\nxx\r\n"
    b"HMSG s 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n"
    b"-ERR 'no'\r\n"
)
MESSAGES = [
    Message("a.b", "", b"h\r\nlo", {}),
    Message("a.b", "re.ply", b"ok", {"Name": "val"}),
    Message("a.c", "re.ply", b"", {}),
    Message("s", "", b"", {"Status": "503"}),
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 1000])
async def test_however_it_arrives_it_is_cut_the_same(size: int) -> None:
    wire, got, others = Wire(), list[Message](), list[bytes]()
    wire.listen("whatever", got.append)
    splitter = _Splitter(wire)
    for at in range(0, len(STREAM), size):
        splitter.feed(STREAM[at : at + size], others.append)
    assert got == MESSAGES
    assert others == [b"INFO {}\r\n", b"PING\r\n", b"-ERR 'no'\r\n"]
    assert splitter.idle


@pytest.mark.parametrize("line", [b"MSG a\r\n", b"MSG a 1 x\r\n", b"HMSG a 1 5\r\n", b"MSG\r\n", b"P" * (2 << 20)])
async def test_what_no_server_sends_is_an_error(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        _Splitter(Wire()).feed(line, lambda _: None)


async def test_a_receiver_that_fails_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    wire, got = Wire(), list[Message]()

    def failing(message: Message) -> None:
        got.append(message)
        raise LookupError(message.subject)

    async def waiting(message: Message) -> None:
        got.append(message)
        await asyncio.sleep(0)

    async def quick(message: Message) -> None:
        got.append(message)

    for receiver in (failing, waiting, quick):
        wire.listen("whatever", receiver)
    with caplog.at_level(logging.ERROR):
        for sid in (b"1", b"2", b"3"):
            wire.deliver(sid, b"s", b"", b"", b"")
    assert len(got) == 3
    assert len(caplog.records) == 2, "the one that raises and the one that waits are told of"
    wire.unlisten(b"3")
    wire.deliver(b"3", b"s", b"", b"", b"")
    assert len(got) == 3


@pytest.mark.parametrize(
    ("raw", "headers"),
    [
        (b"NATS/1.0\r\n\r\n", {}),
        (b"NATS/1.0\r\nA:b\r\nC:  d: e \r\nno colon\r\n\r\n", {"A": "b", "C": "d: e"}),
        (b"NATS/1.0 404\r\n\r\n", {"Status": "404"}),
        (b"NATS/1.0 404 No Messages\r\n\r\n", {"Status": "404", "Description": "No Messages"}),
        (
            b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 7\r\n\r\n",
            {"Status": "100", "Description": "Idle Heartbeat", "Nats-Last-Consumer": "7"},
        ),
        ("NATS/1.0\r\nA: ä\r\n\r\n".encode() + b"B: \xff\r\n\r\n", {"A": "ä", "B": "\ufffd"}),
    ],
)
def test_headers_are_read(raw: bytes, headers: dict[str, str]) -> None:
    assert headers_of(raw) == headers


def test_commands_are_written() -> None:
    assert command("s", "", None, b"body") == (b"PUB s  4\r\nbody\r\n", 4)
    whole, size = command("s", "r", {"A": "ä"}, b"body")
    assert whole == "HPUB s r 19 23\r\nNATS/1.0\r\nA: ä\r\n\r\nbody\r\n".encode()
    assert size == 23


async def test_messages_come_from_the_socket_itself(server: NatsServer, open_nats: Open) -> None:
    """Large ones, many at once, and those of another connection; nats-py's reader sees none of them."""
    one, two = await open_nats(server), await open_nats(server)
    here = await one._client.link(one._client.deadline())
    there = await two._client.link(two._client.deadline())
    read: list[bytes] = []
    parse = here._nc._ps.parse

    async def parsed(data: bytes = b"") -> None:
        read.append(data)
        await parse(data)

    here._nc._ps.parse = parsed  # type: ignore[method-assign]
    inbox, got, enough = here.new_inbox(), list[Message](), asyncio.Event()

    def take(message: Message) -> None:
        got.append(message)
        if len(got) == 300:
            enough.set()

    stop = await here.subscribe(inbox, take)
    await here._nc.rtt(timeout=5)  # so that the reader reads something
    await here.request("$JS.API.INFO", b"", timeout=5)  # behind the subscription: the server has it now
    for number in range(300):
        there.post(inbox, b"%d" % number + b"x" * (200_000 if number % 100 == 0 else 10), {"N": str(number)})
    async with asyncio.timeout(20):
        await enough.wait()
    assert [message.headers["N"] for message in got] == [str(number) for number in range(300)]
    assert {len(message.data) for message in got} == {200_001, 200_003, 11, 12, 13}
    assert not any(b"MSG " in each for each in read)
    await stop()


async def test_a_server_that_makes_no_sense_ends_the_link() -> None:
    """After the handshake it sends half a message and then something else."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"version":"2.11.0","max_payload":1048576,"headers":true,"proto":1}\r\n')
        async for line in reader:
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")
            if line.startswith(b"SUB"):
                writer.write(b"MSG a 1 not-a-number\r\n")
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    link = Link(parse_url(f"nats://127.0.0.1:{port}", {}), f"nats://127.0.0.1:{port}")
    await link.open()
    async with asyncio.timeout(10):
        await link.ended.wait()
    with pytest.raises(NotSent):
        link.post("s", b"")
    await link.close()
    listening.close()
