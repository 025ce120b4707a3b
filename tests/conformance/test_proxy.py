"""The kit's proxy: bytes pass, a cut resets everything and lets nothing through, healing opens it again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from corepool_conformance import UrlHarness
from corepool_conformance.proxy import TcpProxy


@pytest.fixture
async def echo() -> AsyncIterator[int]:
    """A server that sends back what it is sent; its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1000):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            return  # what a cut does to a server
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def ask(port: int, text: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(text)
        return await asyncio.wait_for(reader.readexactly(len(text)), 5)
    finally:
        writer.transport.abort()


async def test_bytes_pass(echo: int) -> None:
    proxy = await TcpProxy.start("127.0.0.1", echo)
    assert await ask(proxy.port, b"x" * 300_000) == b"x" * 300_000
    await proxy.aclose()
    with pytest.raises(OSError):
        await ask(proxy.port, b"closed")


async def test_a_cut_resets_and_refuses_until_it_is_healed(echo: int) -> None:
    proxy = await TcpProxy.start("127.0.0.1", echo)
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"before")
    assert await reader.readexactly(6) == b"before"
    await proxy.cut()
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        writer.write(b"during")
        await asyncio.wait_for(reader.readexactly(6), 5)
    writer.transport.abort()
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await ask(proxy.port, b"refused")
    await proxy.heal()
    assert await ask(proxy.port, b"after") == b"after"
    await proxy.aclose()


@pytest.mark.parametrize(
    ("url", "offered"),
    [
        ("redis://host:6379/0", True),
        ("redis://user:p%40ss@host:6379/0", True),
        ("redis://host/0", False),
        ("nats://a:4222,b:4222", False),
        ("redis+sentinel://a:1,b:2/name", False),
        ("unix:///run/redis.sock", False),
        ("memory://", False),
        ("sqlite:///tmp/a.db", False),
    ],
)
def test_cuts_are_offered_where_a_proxy_can_stand(url: str, offered: bool) -> None:
    assert UrlHarness(url).offers("cut") is offered


def test_a_routed_url_keeps_all_but_the_address() -> None:
    harness = UrlHarness("redis://user:p%40ss@host:6379/3?a=b")
    assert harness.routed(5) == "redis://user:p%40ss@127.0.0.1:5/3?a=b"
    assert harness.address() == ("host", 6379)
