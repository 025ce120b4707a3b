"""A server on a Unix socket: a pool lives there, and whoever names the wrong path is told which."""

from __future__ import annotations

import re
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from corepool.errors import BackendUnavailable
from corepool_redis.backend import open_redis
from tests.redis.conftest import Connect, fresh
from tests.redis.lives import live
from tests.servers.valkey import Server, command, running


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose name leaves room for a socket; that of ``tmp_path`` does not everywhere."""
    with tempfile.TemporaryDirectory(prefix="corepool-") as folder:
        yield Path(folder)


@pytest.fixture
def listening(binary: Path, tmp_path: Path, short: Path) -> Iterator[Server]:
    server = Server(binary, tmp_path / "server", socket=short / "a b.sock")
    with running([server]):
        yield server.start()


async def test_a_pool_lives_on_a_unix_socket(listening: Server) -> None:
    await live(f"unix://{listening.socket}".replace(" ", "%20"))


async def test_all_connections_go_through_the_socket(listening: Server, connect: Connect) -> None:
    command(listening.port, "ACL", "SETUSER", "u", "on", ">p/w", "allkeys", "allcommands")
    backend = await connect(f"unix://u:p%2Fw@{listening.socket}?db=2".replace(" ", "%20"))
    assert backend.url == f"unix://***@{listening.socket}?db=2"
    space = backend.namespace(fresh())
    watch = space.map("m").watch()
    await anext(watch)
    sink = await space.stream("s").sink("g")
    clients = command(listening.port, "CLIENT", "LIST")
    assert isinstance(clients, bytes)
    ours = [line for line in clients.decode().splitlines() if f"name=corepool-{backend.client} " in line]
    assert len(ours) >= 2
    for line in ours:
        assert "addr=127.0.0.1:" not in line
        assert f"{listening.socket}:0" in line
        assert " db=2 " in line
        assert " user=u " in line
    await sink.aclose()
    await watch.aclose()


async def test_a_wrong_path_is_told(short: Path) -> None:
    dead = short / "dead.sock"
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(dead))
    for path, why in (
        (short / "nowhere.sock", "No such file or directory"),
        (dead, "Connection refused"),
        (short / ("x" * 200), "AF_UNIX path too long"),
    ):
        with pytest.raises(BackendUnavailable, match=re.escape(f"cannot reach the server: {path}: {why}")):
            await open_redis(f"unix://{path}", {"connect_timeout": 0.3})
