"""One socket to a server, used by many callers at once.

Purpose: all commands of a loop tick go out in one write; replies are matched to callers by their order.
Invariants:

- Each command sent has one slot in a queue; the n-th reply belongs to the n-th slot, whatever became of its caller. A cancelled
  caller leaves its slot in place and the reply is dropped there, so no later caller can receive it (M6).
- When the socket ends, every slot ends: as :class:`ConnectionLost` with ``sent`` False only if not one byte of the command
  can have reached the server (M5).
- The oldest slot is watched: a server that does not answer in time is given up, never waited for without an end.
- Nothing here reconnects or repeats a command: that is for :mod:`corepool_redis.link`, which knows what may be repeated.

Neighbours: :mod:`corepool_redis.resp` below, :mod:`corepool_redis.link` above.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from typing import cast

import attrs

from corepool_redis.resp import INCOMPLETE, ProtocolError, Reply, new_reader

__all__ = ["Connection", "ConnectionLost", "Endpoint", "Slot", "open_connection"]


@attrs.frozen(slots=True)
class Endpoint:
    """Where a server listens: a host and port, or the path of a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        return self.path or (f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}")


class ConnectionLost(Exception):
    """The socket ended before the reply came. ``sent``: the command may have reached the server."""

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.sent = sent


class Slot:
    """The place of one command in the order of replies."""

    __slots__ = ("future", "patience", "scope", "sent", "since")

    def __init__(self, future: asyncio.Future[Reply], scope: bytes | None, patience: float, since: float) -> None:
        self.future = future
        self.scope = scope  # for a write: what must be fenced if its outcome stays unknown
        self.patience = patience
        self.since = since
        self.sent = False


class Connection(asyncio.Protocol):
    """A multiplexed connection. Make one with :func:`open_connection`.

    on_reply: called for every slot that ends, so that the owner can bound how many there are.
    on_lost: called once, with the slots that were open, after their callers were told.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        endpoint: Endpoint,
        *,
        on_reply: Callable[[], None],
        on_lost: Callable[[Connection, Sequence[Slot]], None],
    ) -> None:
        self.endpoint = endpoint
        self.epoch = 0
        self.closed = False
        self._loop = loop
        self.on_reply = on_reply
        self._on_lost = on_lost
        self._reader = new_reader()
        self._slots: deque[Slot] = deque()
        self._unsent: list[bytes] = []
        self._unsent_slots: list[Slot] = []
        self._transport: asyncio.Transport | None = None
        self._flushing = False
        self._paused = False
        self._watchdog: asyncio.TimerHandle | None = None
        self._reason = ""
        self._retiring = False

    # --- what the link calls ------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """How many commands wait for their reply."""
        return len(self._slots)

    def send(
        self, command: bytes, *, patience: float, scope: bytes | None = None, at_once: bool = False
    ) -> asyncio.Future[Reply]:
        """Queue a command; the future ends with its reply (an error of the server is a value) or :class:`ConnectionLost`.

        patience: seconds this command may take once it is the oldest; a blocking read's own block is added by the caller.
        scope: set for writes; handed back in ``on_lost`` if the outcome is unknown.
        at_once: write it, and what was queued before, now and not at the end of this turn of the loop.
        """
        future: asyncio.Future[Reply] = self._loop.create_future()
        if self.closed:
            future.set_exception(ConnectionLost(self._reason or "the connection is closed", sent=False))
            self.on_reply()
            return future
        slot = Slot(future, scope, patience, self._loop.time())
        self._slots.append(slot)
        self._unsent.append(command)
        self._unsent_slots.append(slot)
        if at_once:
            self._flush()
        elif not self._flushing and not self._paused:
            self._flushing = True
            self._loop.call_soon(self._flush_later)
        if self._watchdog is None:
            self._watchdog = self._loop.call_later(patience, self._watch)
        elif self._watchdog.when() > slot.since + patience:
            self._watchdog.cancel()
            self._watchdog = self._loop.call_later(patience, self._watch)
        return future

    def abort(self, reason: str) -> None:
        """Give the socket up at once; idempotent."""
        self._lose(reason)

    def retire(self) -> None:
        """Close once everything that was sent is answered."""
        self._retiring = True
        if not self._slots:
            self._lose("the server is no longer the primary")

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # a stream protocol is only ever given a stream transport, but uvloop's are no subclasses of asyncio's
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not INCOMPLETE:
                if not self._slots:
                    self._lose(f"{self.endpoint} answered what nobody asked")
                    return
                self._settle(self._slots.popleft(), reply)  # type: ignore[arg-type]
                if self._slots:  # the next one is the oldest now, and its time runs from here
                    self._slots[0].since = self._loop.time()
            if self._retiring and not self._slots:
                self._lose("the server is no longer the primary")
        except ProtocolError as error:
            self._lose(f"{self.endpoint} broke the protocol: {error}")

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose(f"the connection to {self.endpoint} was lost" + (f" ({exc})" if exc else ""))

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._flush()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _settle(self, slot: Slot, reply: Reply) -> None:
        if not slot.future.done():  # else its caller was cancelled: the reply ends here (M6)
            slot.future.set_result(reply)
        self.on_reply()

    def _flush(self) -> None:
        if self.closed or self._paused or not self._unsent or self._transport is None:
            return
        for slot in self._unsent_slots:
            slot.sent = True
        data = self._unsent[0] if len(self._unsent) == 1 else b"".join(self._unsent)
        self._unsent.clear()
        self._unsent_slots.clear()
        self._transport.write(data)

    def _flush_later(self) -> None:
        self._flushing = False
        self._flush()

    def _watch(self) -> None:
        self._watchdog = None
        if not self._slots or self.closed:
            return
        oldest = self._slots[0]
        left = oldest.since + oldest.patience - self._loop.time()
        if left <= 0:
            self._lose(f"{self.endpoint} did not answer within {oldest.patience:g} s")
            return
        self._watchdog = self._loop.call_later(left, self._watch)

    def _lose(self, reason: str) -> None:
        if self.closed:
            return
        self.closed = True
        self._reason = reason
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        if self._transport is not None:
            self._transport.abort()
        slots = list(self._slots)
        self._slots.clear()
        self._unsent.clear()
        self._unsent_slots.clear()
        for slot in slots:
            if not slot.future.done():
                slot.future.set_exception(ConnectionLost(reason, sent=slot.sent))
            self.on_reply()
        self._on_lost(self, slots)


async def open_connection(
    endpoint: Endpoint,
    *,
    tls: ssl.SSLContext | None,
    on_reply: Callable[[], None],
    on_lost: Callable[[Connection, Sequence[Slot]], None],
) -> Connection:
    """Connect a socket. The caller bounds the time.

    Raises:
        OSError: refused, unreachable, or (as ssl.SSLError) a certificate that does not fit.
    """
    loop = asyncio.get_running_loop()

    def factory() -> Connection:
        return Connection(loop, endpoint, on_reply=on_reply, on_lost=on_lost)

    if endpoint.path:
        try:
            _, connection = await loop.create_unix_connection(
                factory, endpoint.path, ssl=tls, server_hostname=endpoint.host if tls else None
            )
        except OSError as error:  # of a host the loop says which, of a path it does not
            raise OSError(f"{endpoint}: {error.strerror or error}") from error
    else:
        _, connection = await loop.create_connection(factory, endpoint.host, endpoint.port, ssl=tls)
    return connection
