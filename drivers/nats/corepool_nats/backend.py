"""The backend object: one connection to NATS, its namespaces, its preflight.

Purpose: `corepool.driver.Backend`, and the opener that the plugin names.
Invariants: a server that is too old, has JetStream off, or takes too small messages is refused when it is opened, with
the reason and the remedy; nothing here shows a credential.
Neighbours: `Client` below, `NatsNamespace` above; findings are :mod:`corepool_nats.preflight`'s.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Any

import attrs

from corepool.driver import Backend, Capabilities, Clock, Finding, Namespace, check_name
from corepool.errors import UnsupportedServer
from corepool_nats.assets import check_jetstream
from corepool_nats.client import Client
from corepool_nats.link import Link
from corepool_nats.namespace import NatsNamespace
from corepool_nats.plugin import CAPABILITIES, HEADER_ROOM
from corepool_nats.preflight import preflight
from corepool_nats.url import Settings, parse_url

__all__ = ["NatsBackend", "open_nats"]

_LEAST_VALUE = 64 * 1024


class NatsBackend:
    """See `corepool.driver.Backend`."""

    def __init__(self, client: Client, capabilities: Capabilities) -> None:
        self._client = client
        self._capabilities = capabilities
        self._namespaces: dict[str, NatsNamespace] = {}
        self._closing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<NatsBackend {self.url}>"

    @property
    def url(self) -> str:
        return self._client.settings.redacted

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def clock(self) -> Clock:
        return self._client.clock

    @property
    def random(self) -> random.Random:
        return self._client.random

    def namespace(self, name: str) -> Namespace:
        check_name("a namespace's name", name, self._capabilities)
        space = self._namespaces.get(name)
        if space is None:
            space = self._namespaces[name] = NatsNamespace(self._client, name, self._capabilities)
        return space

    async def preflight(self) -> list[Finding]:
        return await preflight(self._client, list(self._namespaces.values()))

    async def aclose(self) -> None:
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="corepool-nats-close")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self._client.closed.set()
        await self._client.aclose()
        await asyncio.gather(*(space.aclose() for space in self._namespaces.values()))


async def open_nats(url: str, options: Mapping[str, Any]) -> Backend:
    """Open a backend.

    Raises:
        InvalidUrlError, InvalidOptionError, UnsupportedServer, BackendUnavailable
    """
    settings: Settings = parse_url(url, options)
    client = Client(settings)
    await client.open()
    try:
        deadline = client.deadline()
        await check_jetstream(client, deadline)
        room = _room(await client.link(deadline))
        capabilities = attrs.evolve(
            CAPABILITIES, max_value_bytes=min(room, 64 << 20), durable=settings.storage == "file"
        )
    except BaseException:  # whatever ends the checks, cancellation included, must not leak the connection
        await client.aclose()
        raise
    return NatsBackend(client, capabilities)


def _room(link: Link) -> int:
    """How large a value may be.

    Raises:
        UnsupportedServer: too small.
    """
    room = link.max_payload - HEADER_ROOM
    if room < _LEAST_VALUE:
        raise UnsupportedServer(
            f"the server's max_payload of {link.max_payload} leaves {max(room, 0)} bytes for a value, corepool needs "
            f"{_LEAST_VALUE}; raise max_payload to at least {_LEAST_VALUE + HEADER_ROOM} (1MB is the default)"
        )
    return room
