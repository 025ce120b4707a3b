"""Where the primary is: fixed, known to Sentinels, or the owner of a cluster slot.

Purpose: give :mod:`corepool_redis.link` the endpoint to try next.
Invariants: a route only proposes; that the endpoint is a primary is checked on the socket itself (``greet``), because every
directory of primaries is behind at the moment of a failover.
Neighbours: made by :mod:`corepool_redis.backend` from the URL.
"""

from __future__ import annotations

import asyncio
import binascii
from collections.abc import Sequence
from typing import Protocol

import attrs

from corepool.errors import BackendUnavailable
from corepool_redis.connection import ConnectionLost, Endpoint, open_connection
from corepool_redis.handshake import Settings, ask, greet, text
from corepool_redis.resp import Reply, ReplyError

__all__ = ["ClusterRoute", "FixedRoute", "Route", "SentinelRoute", "slot_of"]

_SLOTS = 16384


class Route(Protocol):
    """How to find the server to talk to."""

    async def resolve(self) -> Endpoint:
        """The endpoint to try next.

        Raises:
            BackendUnavailable: nobody who could know it answers.
            OSError: likewise.
        """
        ...

    def moved(self, endpoint: Endpoint) -> None:
        """A server said that the primary is there."""
        ...


@attrs.define(slots=True)
class FixedRoute:
    """One server, always the same."""

    endpoint: Endpoint

    async def resolve(self) -> Endpoint:
        return self.endpoint

    def moved(self, endpoint: Endpoint) -> None:
        raise BackendUnavailable(
            f"{self.endpoint} belongs to a cluster and points to {endpoint}; open it with redis+cluster:// instead"
        )


async def _query(endpoint: Endpoint, settings: Settings, *args: str) -> Reply:
    """Ask a server one question on a socket of its own; a mute server must not use up the time of the ones after it."""
    async with asyncio.timeout(settings.connect_timeout / 3):
        connection = await open_connection(
            endpoint, tls=settings.tls, on_reply=lambda: None, on_lost=lambda _connection, _slots: None
        )
        try:
            await greet(connection, settings, primary=False, select=False)
            return await ask(connection, settings, *args)
        finally:
            connection.abort("the question is answered")


@attrs.define(slots=True)
class SentinelRoute:
    """The primary that the first answering Sentinel names. A Sentinel that answered is asked first the next time."""

    sentinels: list[Endpoint]
    service: str
    settings: Settings

    async def resolve(self) -> Endpoint:
        reasons: list[str] = []
        for sentinel in tuple(self.sentinels):
            try:
                reply = await _query(sentinel, self.settings, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)
            except (OSError, TimeoutError, ConnectionLost, BackendUnavailable) as error:
                reasons.append(f"{sentinel}: {error}")
                continue
            if isinstance(reply, list) and len(reply) == 2:
                self.sentinels.remove(sentinel)
                self.sentinels.insert(0, sentinel)
                return Endpoint(text(reply[0]), int(text(reply[1])))
            reasons.append(
                f"{sentinel}: {reply}" if isinstance(reply, ReplyError) else f"{sentinel} knows no such service"
            )
        raise BackendUnavailable(f"no Sentinel names a primary of {self.service!r} ({'; '.join(reasons)})")

    def moved(self, endpoint: Endpoint) -> None:
        raise BackendUnavailable(f"the primary belongs to a cluster and points to {endpoint}; use redis+cluster://")


def slot_of(key: bytes) -> int:
    """The cluster slot of a key: CRC16 (XMODEM) of its hash tag."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return binascii.crc_hqx(key, 0) % _SLOTS


@attrs.define(slots=True)
class ClusterRoute:
    """The primary that owns one slot. ``nodes`` is shared by all slots' routes and grows with what the cluster tells."""

    nodes: list[Endpoint]
    slot: int
    settings: Settings
    _next: Endpoint | None = None

    async def resolve(self) -> Endpoint:
        if self._next is not None:
            hint, self._next = self._next, None
            return hint
        reasons: list[str] = []
        for node in tuple(self.nodes):
            try:
                reply = await _query(node, self.settings, "CLUSTER", "SLOTS")
            except (OSError, TimeoutError, ConnectionLost, BackendUnavailable) as error:
                reasons.append(f"{node}: {error}")
                continue
            if isinstance(reply, ReplyError) or not isinstance(reply, list):
                reasons.append(f"{node}: {reply!r}")
                continue
            owner = self._owner(reply, node)
            if owner is not None:
                return owner
            reasons.append(f"{node} knows no owner of slot {self.slot}")
        raise BackendUnavailable(f"no cluster node names the owner of slot {self.slot} ({'; '.join(reasons)})")

    def _owner(self, ranges: Sequence[Reply], asked: Endpoint) -> Endpoint | None:
        owner: Endpoint | None = None
        for row in ranges:
            if not isinstance(row, list) or len(row) < 3:
                continue
            first, last, *servers = row
            for index, server in enumerate(servers):
                if not isinstance(server, list) or len(server) < 2 or not isinstance(server[1], int):
                    continue
                # an empty or unknown host means: the one you asked
                host = text(server[0]) if server[0] not in (None, b"", b"?") else asked.host
                endpoint = Endpoint(host, server[1])
                if endpoint not in self.nodes:
                    self.nodes.append(endpoint)
                if index == 0 and isinstance(first, int) and isinstance(last, int) and first <= self.slot <= last:
                    owner = endpoint
        return owner

    def moved(self, endpoint: Endpoint) -> None:
        self._next = endpoint
