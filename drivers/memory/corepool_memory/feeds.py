"""The client's end of a feed: a buffer to fill, and consumers that wait for it.

Purpose: what watches, readings and sink members have in common.
Invariants: receiving never blocks and never calls back into the transport, except to close a feed that is full; a cancelled
consumer takes nothing with it; once closed, every waiting consumer wakes up and later ones do not wait; what a feed that was
replaced still delivers is not heard.
Neighbours: used by ``maps`` and ``streams``; `Feeds` lets the backend close what its user left open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from corepool_memory.transport import Attach, Detach, Transport

__all__ = ["Feed", "Feeds"]

M = TypeVar("M")


class Feeds:
    """The open feeds of one backend, in the order in which they were opened."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.closed = False
        self._closers: dict[int, Callable[[], None]] = {}
        self._count = 0

    def add(self, close: Callable[[], None]) -> int:
        self._count += 1
        self._closers[self._count] = close
        return self._count

    def remove(self, number: int) -> None:
        self._closers.pop(number, None)

    def close(self) -> None:
        self.closed = True
        for close in list(self._closers.values()):
            close()


class Feed(Generic[M]):
    """A feed that is opened (again) whenever somebody waits and there is none.

    attach: makes the server-side half, from where the consumer stands now.
    receive: takes a message into whatever the consumer reads. May call :meth:`drop`.
    opened: called after each opening, to tell the server again what it must know.
    """

    def __init__(
        self,
        feeds: Feeds,
        what: str,
        *,
        attach: Callable[[], Attach[M]],
        receive: Callable[[M], None],
        opened: Callable[[], None] | None = None,
    ) -> None:
        self._feeds = feeds
        self._what = what
        self._attach = attach
        self._receive = receive
        self._opened = opened
        self._waiters: list[asyncio.Future[None]] = []
        self._detach: Detach | None = None
        self._incarnation = 0
        self._heard = 0  # messages, of all incarnations
        self._number: int | None = None
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether the consumer or its backend is closed."""
        return self._closed or self._feeds.closed

    @property
    def waited_for(self) -> bool:
        """Whether a consumer waits."""
        return bool(self._waiters)

    def open(self) -> None:
        """Have a feed, unless there is one or the consumer is closed."""
        if self._detach is not None or self.closed:
            return
        if self._number is None:
            self._number = self._feeds.add(self.close)
        self._incarnation += 1
        incarnation = self._incarnation

        def receive(message: M) -> None:
            if incarnation == self._incarnation:
                self._heard += 1
                self._receive(message)
                self._wake()

        def lost() -> None:
            if incarnation == self._incarnation:
                self._detach = None
                if self._waiters:
                    self.open()

        detach = self._feeds.transport.listen(self._what, self._attach(), receive, lost)
        if incarnation != self._incarnation:  # dropped already, by a message that came at once
            detach()
            return
        self._detach = detach
        if self._opened is not None:
            self._opened()

    def drop(self) -> None:
        """End the feed but not the consumer: the next :meth:`wait` opens another."""
        self._incarnation += 1
        detach, self._detach = self._detach, None
        if detach is not None:
            detach()

    async def wait(self) -> None:
        """Return once a message came since the call, or the consumer is closed. The caller then looks, and may wait again."""
        heard = self._heard
        self.open()
        if self._heard != heard or self.closed:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def close(self) -> None:
        """End the consumer, and wake whoever waits. Idempotent."""
        self._closed = True
        if self._number is not None:
            self._feeds.remove(self._number)
        self.drop()
        self._wake()

    def _wake(self) -> None:
        """Wake all: a waiter that is cancelled in this very moment must not be the only one that knew."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
