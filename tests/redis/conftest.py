"""Fixtures: one server of each kind for the session, and backends that are closed again."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from corepool_redis.backend import RedisBackend, RedisNamespace, open_redis
from tests.servers.valkey import Server, binaries, command, running

Connect = Callable[..., Awaitable[RedisBackend]]


@pytest.fixture(scope="session", params=sorted(binaries()))
def binary(request: pytest.FixtureRequest) -> Path:
    """Each server that is there: Valkey always, Redis if it is on PATH."""
    return binaries()[request.param]


@pytest.fixture(scope="session")
def server(binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server shared by all tests that do not break it; each test has namespaces of its own."""
    one = Server(binary, tmp_path_factory.mktemp("server"), ("--appendonly", "yes", "--appendfsync", "everysec"))
    with running([one]):
        yield one.start()


@pytest.fixture
def own_server(binary: Path, tmp_path: Path) -> Iterator[Server]:
    """A server for this test alone."""
    one = Server(binary, tmp_path / "server", ("--appendonly", "yes", "--appendfsync", "everysec"))
    with running([one]):
        yield one.start()


@pytest.fixture
async def connect(server: Server) -> AsyncIterator[Connect]:
    """Open backends, on the shared server unless told otherwise; they are closed at the end of the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def open_one(url: str | None = None, **options: Any) -> RedisBackend:
            backend = await open_redis(url or server.url, options)
            stack.push_async_callback(backend.aclose)
            return backend

        yield open_one


@pytest.fixture
async def space(connect: Connect) -> RedisNamespace:
    """A fresh namespace."""
    return (await connect()).namespace(fresh())


def blocked(server: Server, call: str, client: str = "") -> int:
    """How many connections, of one backend or of all, wait in a blocking call (``xread``, ``xreadgroup``) at this moment."""
    clients = command(server.port, "CLIENT", "LIST")
    assert isinstance(clients, bytes)
    marks = (f"cmd={call} ", "flags=b", f"name=corepool-{client}")
    return sum(1 for line in clients.decode().splitlines() if all(mark in line for mark in marks))


def fresh() -> str:
    """A name that nobody has used."""
    return f"test-{secrets.token_hex(6)}"
