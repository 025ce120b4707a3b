"""What a plain round trip of each driver is, and what its server counts.

Purpose: the floor of a figure is the least that any client of the same server can need: PING on the driver's own connection for
Redis, a plain request and its reply for NATS, a turn of the event loop in memory.
Invariants: a driver nobody has told this module about is measured all the same, without floors and without counts.
Neighbours: the contract of drivers offers no raw commands, rightly: the floors reach into our drivers from here, and only here.
"""

# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
from __future__ import annotations

import asyncio
import importlib.util
import re
import secrets
import time
from collections import Counter
from typing import Any, Protocol

from corepool.driver import Backend, MapStore

__all__ = ["Floor", "floor_of"]

POOL_CALLERS = 16


class Floor(Protocol):
    """The floor of one driver."""

    family: str
    """The driver: ``redis``, ``nats``, ``memory`` or its scheme."""
    text: str
    """The floor in words; empty if none is known."""
    uncounted: str
    """Why `commands` or `connections` give None."""

    async def sample(self, count: int) -> list[float]:
        """So many plain round trips, in seconds each."""
        ...

    async def rate(self, store: MapStore, value: bytes, count: int) -> float | str:
        """Sets per second of the same script with a common client library and 16 callers, or why there is none."""
        ...

    async def commands(self, backend: Backend) -> int | None:
        """Commands this backend's connections have sent so far, or None if nobody counts them."""
        ...

    async def inside(self, backend: Backend) -> int | None:
        """The same as the server counts them, what its scripts do included; None if it does not count that."""
        ...

    async def connections(self, backend: Backend) -> int | None:
        """Connections this backend has now, or None."""
        ...

    async def aclose(self) -> None: ...


async def floor_of(backend: Backend, other: Backend) -> Floor:
    """The floor of a driver. other: a second connection to the same store."""
    module = type(backend).__module__.split(".", 1)[0]
    match module:
        case "corepool_redis":
            return RedisFloor(backend)
        case "corepool_nats":
            return await NatsFloor.open(backend, other)
        case "corepool_memory":
            return MemoryFloor()
        case _:
            return NoFloor(backend.url.partition(":")[0])


class NoFloor:
    """Of a driver this module does not know."""

    text = ""
    uncounted = "nobody counts this driver's commands and connections"

    def __init__(self, family: str) -> None:
        self.family = family

    async def sample(self, count: int) -> list[float]:
        return []

    async def rate(self, store: MapStore, value: bytes, count: int) -> float | str:
        return "no other client of this driver's store is known"

    async def commands(self, backend: Backend) -> int | None:
        return None

    async def inside(self, backend: Backend) -> int | None:
        return None

    async def connections(self, backend: Backend) -> int | None:
        return None

    async def aclose(self) -> None:
        return None


class MemoryFloor(NoFloor):
    """One turn of the event loop."""

    text = "a turn of the event loop"
    uncounted = "the store is in this process: there are no connections to send commands on"

    def __init__(self) -> None:
        super().__init__("memory")

    async def sample(self, count: int) -> list[float]:
        turns: list[float] = []
        for _ in range(count):
            began = time.perf_counter()
            for _ in range(10):  # a clock is too coarse for a single one
                await asyncio.sleep(0)
            turns.append((time.perf_counter() - began) / 10)
        return turns


class RedisFloor(NoFloor):
    """PING on the connection that the driver's own commands use; redis-py with a pool for rates; the server's own counts."""

    text = "PING on the same connection"

    def __init__(self, backend: Any) -> None:
        super().__init__("redis")
        self._link = backend.namespace(f"bench-{secrets.token_hex(4)}")._space.link
        self._settings = backend.settings
        self._sent: Counter[Any] | None = None
        self._send: Any = None

    async def sample(self, count: int) -> list[float]:
        found: list[float] = []
        for _ in range(count):
            began = time.perf_counter()
            await self._link.command("PING")
            found.append(time.perf_counter() - began)
        return found

    async def rate(self, store: MapStore, value: bytes, count: int) -> float | str:
        if importlib.util.find_spec("redis") is None:
            return "redis-py is not installed; run: pip install redis"
        if self._settings.tls is not None:
            return "not measured over TLS"
        from redis.asyncio import BlockingConnectionPool, Connection, Redis, UnixDomainSocketConnection

        arguments = await self._script_of(store, value)
        endpoint = (await self._link.ready()).endpoint
        where = {"path": endpoint.path} if endpoint.path else {"host": endpoint.host, "port": endpoint.port}
        kind: type[Any] = UnixDomainSocketConnection if endpoint.path else Connection
        settings = self._settings
        login = {"username": settings.username, "password": settings.password, "db": settings.database}
        pool = BlockingConnectionPool(connection_class=kind, max_connections=POOL_CALLERS, **where, **login)
        client: Any = Redis(connection_pool=pool)  # redis-py leaves its commands without types
        try:
            numbers = iter(range(count))

            async def caller() -> None:
                for _ in numbers:
                    await client.execute_command(*arguments)

            await client.execute_command(*arguments)
            began = time.perf_counter()
            await asyncio.gather(*(caller() for _ in range(POOL_CALLERS)))
            return count / (time.perf_counter() - began)
        finally:
            await client.aclose()
            await pool.disconnect()

    async def _script_of(self, store: MapStore, value: bytes) -> list[bytes]:
        """The command a set is, to the byte: seen on its way to the socket, so that it stays true when the driver changes."""
        from corepool_redis.resp import new_reader

        connection = await self._link.ready()
        seen: list[bytes] = []
        send = connection.send

        def tapped(command: bytes, **more: Any) -> Any:
            seen.append(command)
            return send(command, **more)

        connection.send = tapped
        try:
            await store.set("floor", value)
        finally:
            del connection.send
        reader = new_reader()  # a command is an array of strings, as a reply could be
        reader.feed(seen[0])
        command: Any = reader.gets()
        return list(command)

    async def _clients(self, backend: Any) -> list[str]:
        listed = (await self._link.command("CLIENT", "LIST")).decode()
        name = f" name=corepool-{backend.client} "
        return [line for line in listed.splitlines() if name in line]

    async def commands(self, backend: Any) -> int | None:
        """What its connections have sent since the first look at any."""
        if self._sent is None:
            self._count()
        assert self._sent is not None
        links = [link for hub in backend._hubs.values() for link in (hub.link, hub.feeds._reader, hub.sinks._reader)]
        return sum([self._sent[await link.ready()] for link in links if link.connected])

    def _count(self) -> None:
        """Count at the socket: what servers count per client holds the commands inside of scripts too."""
        from corepool_redis.connection import Connection

        self._sent = sent = Counter[Any]()
        send = self._send = Connection.send

        def counted(connection: Connection, command: bytes, **more: Any) -> Any:
            sent[connection] += 1
            return send(connection, command, **more)

        patched: Any = Connection
        patched.send = counted

    async def aclose(self) -> None:
        if self._sent is not None:
            from corepool_redis.connection import Connection

            patched: Any = Connection
            patched.send = self._send

    async def inside(self, backend: Backend) -> int | None:
        """What the server has executed for these connections, inside of scripts too; None if it does not count that."""
        counts = [re.search(r" tot-cmds=(\d+)", line) for line in await self._clients(backend)]
        if counts and all(counts):
            return sum(int(count.group(1)) for count in counts if count)
        return None

    async def connections(self, backend: Backend) -> int | None:
        return len(await self._clients(backend))


class NatsFloor(NoFloor):
    """A request on one connection, answered on another; what the client library counts."""

    text = "a plain request and its reply"

    def __init__(self, link: Any, subject: str, stop: Any) -> None:
        super().__init__("nats")
        self._link = link
        self._subject = subject
        self._stop = stop

    @classmethod
    async def open(cls, backend: Any, other: Any) -> NatsFloor:
        link, answerer = [await each._client.link(each._client.deadline()) for each in (backend, other)]
        subject = answerer.new_inbox()

        async def answer(message: Any) -> None:
            await answerer.send(message.reply, b"")

        stop = await answerer.subscribe(subject, answer)
        floor = cls(link, subject, stop)
        for _ in range(100):  # the subscription is on its way on another connection
            try:
                await link.request(subject, b"", timeout=1.0)
            except Exception:  # noqa: BLE001  nobody listens yet: of several kinds, and all mean try again
                await asyncio.sleep(0.01)
            else:
                break
        return floor

    async def sample(self, count: int) -> list[float]:
        found: list[float] = []
        for _ in range(count):
            began = time.perf_counter()
            await self._link.request(self._subject, b"", timeout=5.0)
            found.append(time.perf_counter() - began)
        return found

    async def commands(self, backend: Any) -> int | None:
        link = await backend._client.link(backend._client.deadline())
        return int(link._nc.stats["out_msgs"])

    async def connections(self, backend: Any) -> int | None:
        return 1 if await backend._client.link(backend._client.deadline()) else 0

    async def aclose(self) -> None:
        await self._stop()
