"""The backend: connections, namespaces, batches.

Purpose: :class:`corepool.driver.Backend` on a primary, on whatever Sentinels call the primary, or on a cluster.
Invariants: at most three connections at a time (commands, XREAD, XREADGROUP), the last two only once something is followed or
a sink joined; on a cluster three for each namespace in use: it lives in one slot, and a blocked read stays on one node.
Closing ends what is fed first, then the connections; it is bounded and waits for nobody (M4).
Neighbours: :mod:`corepool_redis.plugin` names :func:`open_redis`; everything else of the driver is put together here.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random as random_module
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from corepool.driver import (
    Ack,
    Append,
    Capabilities,
    Clock,
    CommitResult,
    DeleteKey,
    Finding,
    GetKey,
    Op,
    OpResult,
    SetKey,
    SystemClock,
    check_name,
)
from corepool.errors import BackendUnavailable, CorepoolError, InvalidOptionError, PayloadTooLarge
from corepool_redis.capabilities import capabilities
from corepool_redis.commit import Batch, Space, read_appended, read_commit, read_entry
from corepool_redis.feeds import FeedReader
from corepool_redis.handshake import Settings
from corepool_redis.keys import Receipt, scope_of, wake_key
from corepool_redis.link import Link, Refused
from corepool_redis.maps import RedisMap
from corepool_redis.preflight import look
from corepool_redis.resp import Reply
from corepool_redis.routes import ClusterRoute, FixedRoute, Route, SentinelRoute, slot_of
from corepool_redis.sinks import SinkReader
from corepool_redis.streams import RedisStream
from corepool_redis.url import Location, parse

__all__ = ["RedisBackend", "RedisNamespace", "open_redis"]


class _Hub:
    """The three connections to one primary, and who uses them."""

    def __init__(self, route: Route, settings: Settings, scope: bytes, backend: RedisBackend) -> None:
        epochs, interval = itertools.count(1), backend.options.interval

        def link() -> Link:
            return Link(route, settings, epochs=epochs, rng=backend.random, client=backend.client)

        self.link = link()
        self.spaces: dict[bytes, Space] = {}
        self.feeds = FeedReader(self.link, link(), scope, interval)
        self.sinks = SinkReader(self.link, link(), interval, backend.random)

    async def close(self) -> None:
        await asyncio.gather(self.sinks.close(), self.feeds.close())
        if self.link.connected:
            wakes = [wake_key(scope, self.link.client, reader) for scope in self.spaces for reader in "rg"]
            with contextlib.suppress(CorepoolError, Refused, TimeoutError):  # they expire by themselves
                async with asyncio.timeout(0.5):
                    await asyncio.gather(*(self.link.command("DEL", wake) for wake in wakes))
        self.link.close()


class RedisNamespace:
    """All maps and streams of one name, in one slot. See :class:`corepool.driver.Namespace`."""

    def __init__(self, hub: _Hub, space: Space, name: str) -> None:
        self._hub = hub
        self._space = space
        self._name = name

    def __repr__(self) -> str:
        return f"<RedisNamespace {self._name!r}>"

    @property
    def name(self) -> str:
        return self._name

    def map(self, name: str) -> RedisMap:
        check_name("a map's name", name, self._space.capabilities)
        return RedisMap(self._space, self._hub.feeds, name)

    def stream(self, name: str) -> RedisStream:
        check_name("a stream's name", name, self._space.capabilities)
        return RedisStream(self._space, self._hub.feeds, self._hub.sinks, name)

    async def commit(self, ops: Sequence[Op]) -> CommitResult:
        most = self._space.capabilities.max_commit_ops
        if len(ops) > most:
            raise PayloadTooLarge(f"a commit of {len(ops)} operations is over the backend's limit of {most}; split it")
        if not ops:
            return CommitResult(())
        batch = Batch(self._space)
        for index, op in enumerate(ops):
            _add(batch, ops, index, op)
        stopped, results = await batch.run()
        done = _read_results(ops, results)
        if stopped is None:
            for op, result in zip(ops, done, strict=True):
                if isinstance(op, Ack) and result and (receipt := Receipt.parse(op.receipt)) is not None:
                    self._hub.sinks.settled(self._space.scope, receipt)
        return CommitResult(done, stopped)

    async def settle(self) -> None:
        await self._space.link.settle(self._space.scope)


def _add(batch: Batch, ops: Sequence[Op], index: int, op: Op) -> None:
    match op:
        case SetKey():
            batch.set(op.map, op.key, op.value, op.when, optional=op.optional)
        case DeleteKey():
            batch.delete(op.map, op.key, op.when, optional=op.optional)
        case GetKey():
            batch.get(op.map, op.key)
        case Append(stamp=stamp):
            if stamp is not None and not (0 <= stamp < index and isinstance(ops[stamp], SetKey | DeleteKey)):
                raise InvalidOptionError(
                    f"operation {index}: stamp={stamp} is not the index of an earlier SetKey or DeleteKey"
                )
            batch.append(op.stream, op.event, stamp=stamp, optional=op.optional, create=False)
        case Ack():
            batch.ack(op.receipt)


def _read_results(ops: Sequence[Op], results: Sequence[Reply]) -> tuple[OpResult, ...]:
    """The results of the operations up to the one that stopped the commit, if one did."""
    done: list[OpResult] = []
    at = 0
    for op in ops:
        if at >= len(results):
            break
        match op:
            case SetKey() | DeleteKey():
                done.append(read_commit(op.key, results, at))
                at += 3
                continue
            case GetKey():
                done.append(read_entry(op.key, results[at]))
            case Append():
                done.append(read_appended(results[at]))
            case Ack():
                done.append(results[at] == 1)
        at += 1
    return tuple(done)


class RedisBackend:
    """An open connection. See :class:`corepool.driver.Backend`."""

    def __init__(self, location: Location) -> None:
        self.options = location.options
        self.client = os.urandom(8).hex()
        self._location = location
        self._capabilities = capabilities(location.options.max_value_bytes)
        self._clock = SystemClock()
        self._random = random_module.Random()  # ids and jitter, no secrets
        self._hubs: dict[bytes, _Hub] = {}
        self._nodes = list(location.endpoints)
        self._closing: asyncio.Task[None] | None = None
        options = location.options
        self.settings = Settings(
            username=options.username,
            password=options.password,
            database=options.db,
            client_name=f"corepool-{self.client}",
            tls=location.tls,
            timeout=options.timeout,
            connect_timeout=options.connect_timeout,
            max_in_flight=options.max_in_flight,
        )

    def __repr__(self) -> str:
        return f"<RedisBackend {self.url}>"

    @property
    def url(self) -> str:
        return self._location.shown

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def clock(self) -> Clock:
        return self._clock

    @property
    def random(self) -> random_module.Random:
        return self._random

    def namespace(self, name: str) -> RedisNamespace:
        check_name("a namespace's name", name, self._capabilities)
        scope = scope_of(name)
        hub = self._hub(scope)
        space = hub.spaces.get(scope)
        if space is None:  # one for all who name it: what they commit together leaves together
            space = Space.of(scope, hub.link, self._capabilities, self._random, self.options.log_length)
            hub.spaces[scope] = space
        return RedisNamespace(hub, space, name)

    def _hub(self, scope: bytes) -> _Hub:
        key = scope if self._location.scheme == "redis+cluster" else b""
        hub = self._hubs.get(key)
        if hub is None:
            if self._closing is not None:
                raise BackendUnavailable("the backend is closed")
            hub = self._hubs[key] = _Hub(self._route(scope), self.settings, scope, self)
        return hub

    def _route(self, scope: bytes) -> Route:
        location, options = self._location, self.options
        match location.scheme:
            case "redis+cluster":
                return ClusterRoute(self._nodes, slot_of(scope), self.settings)
            case "redis+sentinel":
                settings = attrs.evolve(
                    self.settings, username=options.sentinel_username, password=options.sentinel_password
                )
                return SentinelRoute(list(location.endpoints), location.service, settings)
            case _:
                return FixedRoute(location.endpoints[0])

    async def ready(self) -> None:
        """Connect, so that a wrong URL shows at once and not at the first call.

        Raises:
            BackendUnavailable, UnsupportedServer
        """
        await self._hub(_PROBE).link.ready(self.options.connect_timeout)

    async def preflight(self) -> list[Finding]:
        return await look(self._hub(_PROBE).link, self.namespace)

    async def aclose(self) -> None:
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close(), name="corepool-redis-close")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        await asyncio.gather(*(hub.close() for hub in self._hubs.values()))
        self._hubs.clear()


_PROBE = scope_of("corepool-preflight")


async def open_redis(url: str, options: Mapping[str, Any]) -> RedisBackend:
    """Open a backend: the loader that the plugin names.

    Raises:
        InvalidUrlError, InvalidOptionError: before anything is sent.
        BackendUnavailable: nobody answers, or the credentials were refused.
        UnsupportedServer: the server is older than 6.2.
    """
    backend = RedisBackend(parse(url, options))
    try:
        await backend.ready()
    except BaseException:  # cancelled or refused: no task and no socket may stay
        await backend.aclose()
        raise
    return backend
