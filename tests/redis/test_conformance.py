"""The whole conformance kit on each server, as a user with the least rights, with every hook offered.

The user is the one that docs/redis.md gives: whatever the driver does beyond it fails here.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from corepool.driver import Backend
from corepool_conformance import ConformanceSuite, Harness
from corepool_conformance.proxy import TcpProxy
from corepool_redis.backend import open_redis
from corepool_redis.keys import MapKeys, StreamKeys, scope_of
from tests.servers.valkey import Server, binaries, command, running

DOCS = Path(__file__).parents[2] / "docs" / "redis.md"
PASSWORD = "a/b#c@d"


def least_rights() -> str:
    """The rules of the documented user, as ``ACL SETUSER`` takes them."""
    match = re.search(r"ACL SETUSER corepool on >\S+ (.+?)\n```", DOCS.read_text(), re.DOTALL)
    assert match is not None, "docs/redis.md gives the user"
    return match.group(1).replace("\\\n", " ")


class RedisHarness(Harness):
    """A server with its appendonly file written at once, a proxy to cut, and a look past the driver."""

    ack_wait = 0.4
    server: Server

    def __init__(self) -> None:
        self._proxy: TcpProxy | None = None

    async def begin(self, needs: Collection[str]) -> None:
        if "cut" in needs:
            self._proxy = await TcpProxy.start("127.0.0.1", self.server.port)

    async def connect(self) -> Backend:
        port = self.server.port if self._proxy is None else self._proxy.port
        return await open_redis(
            f"redis://127.0.0.1:{port}/0",
            {"username": "corepool", "password": PASSWORD, "interval": 1.0, "timeout": 2.0},
        )

    async def end(self) -> None:
        proxy, self._proxy = self._proxy, None
        if proxy is not None:
            await proxy.aclose()

    async def raw_read(self, namespace: str, map_name: str, key: str) -> bytes | None:
        found = command(self.server.port, "HGET", MapKeys.of(scope_of(namespace), map_name).data, key)
        return found if isinstance(found, bytes) else None

    async def raw_write(self, namespace: str, map_name: str, key: str, data: bytes) -> None:
        command(self.server.port, "HSET", MapKeys.of(scope_of(namespace), map_name).data, key, data)

    async def cut(self) -> None:
        assert self._proxy is not None
        await self._proxy.cut()

    async def heal(self) -> None:
        assert self._proxy is not None
        await self._proxy.heal()

    async def restart(self) -> None:
        self.server.restart()
        give_user(self.server)

    async def leaks(self, namespace: str) -> list[str]:
        """What would stay for ever. Marks, fences, wakes and the logs of what was destroyed expire by themselves."""
        pattern = re.sub(rb"([*?\[\]\\^-])", rb"\\\1", scope_of(namespace)) + b"*"
        keys = command(self.server.port, "KEYS", pattern)
        assert isinstance(keys, list)
        return [key.decode() for key in keys if command(self.server.port, "PTTL", key) == -1]

    async def members(self, namespace: str, stream: str, sink: str) -> list[str]:
        keys = StreamKeys.of(scope_of(namespace), stream)
        number = command(self.server.port, "HGET", keys.config, f"g:{sink}")
        if not isinstance(number, bytes):
            return []
        rows = command(self.server.port, "XINFO", "CONSUMERS", keys.events, b"g" + number)
        assert isinstance(rows, list)
        names = [dict(zip(row[::2], row[1::2], strict=True))[b"name"].decode() for row in rows]
        return [name for name in names if name != "~"]


def give_user(server: Server) -> None:
    """Make the documented user."""
    command(server.port, "ACL", "SETUSER", "corepool", "reset", "on", f">{PASSWORD}", *least_rights().split())


def label_of(binary: Path) -> str:
    """``Redis 7.0``: a server by the name and version that it gives itself."""
    shown = subprocess.run([binary, "--version"], capture_output=True, check=True, text=True).stdout
    match = re.match(r"(\w+) server v=(\d+\.\d+)", shown)
    assert match is not None, shown
    return " ".join(match.groups())


@pytest.fixture(autouse=True, scope="module")
def servers() -> Iterator[None]:
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, binary in binaries().items():
            server = Server(binary, Path(folder) / name, ("--appendonly", "yes", "--appendfsync", "always"))
            HARNESSES[name].server = server
            HARNESSES[name].url = f"redis://corepool:{quote(PASSWORD, safe='')}@127.0.0.1:{server.port}/0"
            found.append(server)
        with running(found):
            for server in found:
                give_user(server.start())
            yield


class _OnValkey(RedisHarness):
    pass


class _OnRedis(RedisHarness):
    """Whichever ``redis-server`` is on PATH: a report says which it was."""


HARNESSES: dict[str, type[RedisHarness]] = {"valkey": _OnValkey, "redis": _OnRedis}


class TestValkey(ConformanceSuite):
    harness = _OnValkey


if "redis" in binaries():
    _OnRedis.label = label_of(binaries()["redis"])

    class TestRedis(ConformanceSuite):
        harness = _OnRedis
