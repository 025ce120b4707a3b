"""NATS servers and backends for the tests of the NATS driver."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from corepool.driver import open_backend
from corepool_nats.backend import NatsBackend
from corepool_nats.namespace import NatsNamespace
from tests.nats.relay import Relay
from tests.servers.nats import NatsCluster, NatsServer

Open: TypeAlias = Callable[..., Awaitable[NatsBackend]]
Start: TypeAlias = Callable[..., NatsServer]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A server that all tests share: nobody kills it."""
    server = NatsServer(directory=tmp_path_factory.mktemp("nats"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a server of the test's own, with whatever configuration."""
    servers: list[NatsServer] = []

    def make(config: str = "", **options: Any) -> NatsServer:
        made = NatsServer(directory=tmp_path, name=f"own{len(servers)}", config=config, **options)
        servers.append(made)
        made.start()
        return made

    yield make
    for each in servers:
        each.kill()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsCluster]:
    """Three servers. A test that kills one starts it again."""
    cluster = NatsCluster(directory=tmp_path_factory.mktemp("cluster"))
    cluster.start()
    yield cluster
    cluster.stop()


@pytest.fixture
async def open_nats() -> AsyncIterator[Open]:
    """Open backends that are closed when the test ends."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(where: NatsServer | NatsCluster | Relay | str, **options: Any) -> NatsBackend:
            backend = await open_backend(where if isinstance(where, str) else where.url, **options)
            assert isinstance(backend, NatsBackend)
            stack.push_async_callback(backend.aclose)
            return backend

        yield make


@pytest.fixture
async def relay(server: NatsServer) -> AsyncIterator[Relay]:
    """A relay in front of the shared server."""
    async with Relay(server.port) as relay:
        yield relay


@pytest.fixture
def name() -> str:
    """A namespace nobody else uses."""
    return f"t-{secrets.token_hex(6)}"


def space_of(backend: NatsBackend, name: str) -> NatsNamespace:
    """The driver's own namespace object, for tests that look inside."""
    space = backend.namespace(name)
    assert isinstance(space, NatsNamespace)
    return space
