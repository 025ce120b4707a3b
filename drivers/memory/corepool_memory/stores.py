"""The stores of this process, by name: what ``memory://name`` opens.

Purpose: backends of one process that name the same store share it.
Invariants:

- a named store lives as long as the process; ``memory://`` without a name is a fresh store of its own, gone with its backend;
- a store belongs to one event loop at a time: the futures of its clients do. While a backend of another loop has it open,
  opening it raises; once all of those are closed, or their loop is, the store moves to the new loop with all its data (so
  two ``asyncio.run`` in a row see the same store), and what a closed loop left open is cut.

Neighbours: ``plugin`` names :func:`open_memory` as the loader.
"""

from __future__ import annotations

import asyncio
import random as random_module
import threading
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from corepool.driver import SystemClock
from corepool.errors import BackendUnavailable
from corepool_memory.backend import MemoryBackend
from corepool_memory.options import MemoryOptions, parse_url
from corepool_memory.server import Server
from corepool_memory.transport import EmbeddedTransport

__all__ = ["open_memory"]


@attrs.define(slots=True, eq=False)
class _Store:
    """A named store: its server, the loop it belongs to now, and the transports that are open on it."""

    server: Server
    loop: asyncio.AbstractEventLoop
    transports: list[EmbeddedTransport] = attrs.field(factory=list[EmbeddedTransport])

    def move(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        """Belong to ``loop`` from now on.

        Raises:
            BackendUnavailable: another loop that is alive has it open.
        """
        if self.transports and not self.loop.is_closed():
            raise BackendUnavailable(
                f"memory://{name} is open in another event loop of this process, and a memory store belongs to one loop at a "
                f"time; close it there first, or use another name"
            )
        for transport in list(self.transports):
            transport.cut()
        self.loop = loop
        self.server.move(loop.call_later)


class _StoreTransport(EmbeddedTransport):
    """A transport that tells its store when it is closed."""

    def __init__(self, server: Server, closed: Callable[[EmbeddedTransport], None]) -> None:
        super().__init__(server, SystemClock())
        self._tell_closed = closed

    def cut(self) -> None:
        super().cut()
        self._tell_closed(self)


_stores: dict[str, _Store] = {}
_lock = threading.RLock()  # stores are opened from any thread; each is used by one loop


def _new_server(loop: asyncio.AbstractEventLoop) -> Server:
    return Server(clock=SystemClock(), call_later=loop.call_later, random=random_module.Random())


def _open_named(name: str, loop: asyncio.AbstractEventLoop) -> EmbeddedTransport:
    with _lock:
        store = _stores.get(name)
        if store is None:
            store = _stores[name] = _Store(_new_server(loop), loop)
        elif store.loop is not loop:
            store.move(name, loop)

        def closed(transport: EmbeddedTransport) -> None:
            with _lock:
                if transport in store.transports:
                    store.transports.remove(transport)

        transport = _StoreTransport(store.server, closed)
        store.transports.append(transport)
        return transport


async def open_memory(url: str, options: Mapping[str, Any]) -> MemoryBackend:
    """Open a backend on a store of this process: the named one, or a fresh one if the URL names none.

    Raises:
        InvalidUrlError, InvalidOptionError
        BackendUnavailable: another event loop of this process has the named store open.
    """
    name, parsed = parse_url(url, options)
    loop = asyncio.get_running_loop()
    transport = _open_named(name, loop) if name else EmbeddedTransport(_new_server(loop), SystemClock())
    return MemoryBackend(transport, options=parsed, url=MemoryOptions.url(parsed, name))
