"""The protocol on one socket: nats-py's client, with the way of every message shortened.

Purpose: nats-py connects, logs in, pings, and takes errors and the server's news; messages go past it. It would hand each
one that comes from a stream to a parser to a queue to a task, and each one that goes through a queue to a task: more
processor time than everything else a call needs.
Invariants:

- Commands reach the socket whole and in the order of `Wire.write`, those of one turn of the loop in one piece; what is not
  written when the connection ends is never written. nats-py's own (PING, PONG) go another way and may overtake them.
- Receivers are called in the order of arrival, as soon as the bytes are there: they must not wait. What one raises is
  logged and ends nothing.
- A malformed line ends the connection, as in nats-py.
- With ``tls://`` and ``wss://`` no credential is sent before the connection is encrypted.

Neighbours: only :mod:`corepool_nats.link` uses it. These two alone know nats-py, and this one its private parts:
``_transport`` with its reader and writer, ``_ps`` which takes what was read, ``_sid`` which numbers subscriptions.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeAlias, cast

import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.errors import ProtocolError
from nats.protocol.parser import Parser

__all__ = ["Message", "Receiver", "Wire", "command", "headers_of"]

log = logging.getLogger("corepool.nats")

_NONE: Mapping[str, str] = {}
_LONGEST_LINE = 1 << 20  # INFO of a large cluster


class Message(msgspec.Struct, frozen=True, gc=False):
    """What arrived: on a subscription, or as a reply."""

    subject: str
    reply: str
    data: bytes
    headers: Mapping[str, str]

    @property
    def status(self) -> str:
        """The status of a control message ("100", "404", "503", …); empty for data."""
        return self.headers.get("Status", "")


Receiver: TypeAlias = Callable[[Message], Coroutine[Any, Any, None] | None]
"""Takes a message without waiting. If it is a coroutine all the same, it ends in its first step."""


def headers_of(raw: bytes) -> dict[str, str]:
    """A header block as it is on the wire. A status in its first line becomes ``Status`` and ``Description``."""
    first, *lines = raw.decode("utf-8", "replace").split("\r\n")
    found: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            found[name.strip()] = value.strip()
    _, _, status = first.partition(" ")
    if status:
        code, _, description = status.strip().partition(" ")
        if code.isdigit():
            found["Status"] = code
        if description:
            found["Description"] = description.strip()
    return found


def command(subject: str, reply: str, headers: Mapping[str, str] | None, data: bytes) -> tuple[bytes, int]:
    """A publish as it goes over the wire, and the size that the server's ``max_payload`` limits."""
    if not headers:
        return b"PUB %b %b %d\r\n%b\r\n" % (subject.encode(), reply.encode(), len(data), data), len(data)
    block = ("NATS/1.0\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n").encode()
    size = len(block) + len(data)
    return b"HPUB %b %b %d %d\r\n%b%b\r\n" % (subject.encode(), reply.encode(), len(block), size, block, data), size


class _Splitter:
    """Cuts what arrives into messages, and lines that are none."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._kept: list[bytes] = []
        self._have = 0
        self._need = 0

    @property
    def idle(self) -> bool:
        """Whether it is not in the midst of anything."""
        return not self._kept

    def feed(self, data: bytes, others: Callable[[bytes], None]) -> None:
        """Deliver the messages that are complete; ``others`` gets each line that is none.

        Raises:
            ProtocolError: no server sends this.
        """
        if self._kept:
            self._kept.append(data)
            self._have += len(data)
            if self._have < self._need:
                return
            data = b"".join(self._kept)
            self._kept = []
        at, end = 0, len(data)
        while at < end:
            line = data.find(b"\r\n", at)
            if line < 0:
                if end - at > _LONGEST_LINE:
                    raise ProtocolError("a line without an end")
                self._keep(data[at:], end - at + 1)
                return
            if data[at] not in b"MH":
                others(data[at : line + 2])
                at = line + 2
                continue
            try:
                verb, subject, sid, *rest = data[at:line].split()
                size = int(rest[-1])
                head = int(rest[-2]) if verb == b"HMSG" else 0
            except (ValueError, IndexError):
                raise ProtocolError("a malformed message") from None
            body = line + 2
            if body + size + 2 > end:
                self._keep(data[at:], body + size + 2 - at)
                return
            at = body + size + 2
            reply = rest[0] if len(rest) == (3 if verb == b"HMSG" else 2) else b""
            self._wire.deliver(sid, subject, reply, data[body : body + head], data[body + head : body + size])

    def _keep(self, rest: bytes, need: int) -> None:
        self._kept, self._have, self._need = [rest], len(rest), need


class _Parser(Parser):
    """In nats-py's own parser's place: what its read loop reads, and nobody has taken before, comes here."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        super().__init__(wire)  # pyright: ignore[reportUnknownMemberType]

    def reset(self) -> None:
        super().reset()
        self._splitter = _Splitter(self._wire)

    @property
    def idle(self) -> bool:
        return self._splitter.idle

    async def parse(self, data: bytes = b"") -> None:
        lines: list[bytes] = []
        self._splitter.feed(data, lines.append)
        for line in lines:
            await super().parse(line)
            if self.buf:
                raise ProtocolError("an unknown line")


class _Tap(asyncio.Protocol):
    """Between a socket and nats-py's stream: takes the messages out of what arrives."""

    def __init__(self, wire: Wire, transport: asyncio.Transport, stream: asyncio.Protocol) -> None:
        self._splitter = _Splitter(wire)
        self._transport = transport
        self._stream = stream
        self.pause_writing = stream.pause_writing  # type: ignore[method-assign]
        self.resume_writing = stream.resume_writing  # type: ignore[method-assign]
        self.connection_lost = stream.connection_lost  # type: ignore[method-assign]
        self.eof_received = stream.eof_received  # type: ignore[method-assign]

    def data_received(self, data: bytes) -> None:
        try:
            self._splitter.feed(data, self._stream.data_received)
        except ProtocolError as error:
            log.warning("the connection ends, the server's answer makes no sense: %s", error)
            self._transport.abort()


def _finish(step: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that waits for nothing."""
    try:
        step.send(None)
    except StopIteration:
        return
    step.close()
    raise RuntimeError("a receiver waits for something")


class Wire(Client):
    """A connection that nats-py makes and ends."""

    insist_on_tls = False
    web = False
    """Over WebSocket: what is written goes through nats-py's flusher, which alone can wait for the frame to be sent."""

    def __init__(self) -> None:
        super().__init__()
        self._parser = _Parser(self)
        self._ps = self._parser
        self._receivers: dict[bytes, Receiver] = {}
        self._out: list[bytes] = []

    def _connect_command(self) -> bytes:
        info: Mapping[str, Any] = self._server_info
        server = self._current_server
        if self.insist_on_tls and server is not None and server.uri.scheme == "tls":
            encrypted = bool(info.get("tls_required")) or bool(self.options.get("tls_handshake_first"))
            if not encrypted:
                raise NatsError(
                    "the URL asks for TLS (tls://) and the server does not offer it; nothing was sent to it"
                )
        return super()._connect_command()

    @property
    def info(self) -> Mapping[str, Any]:
        """What the server said of itself; nats-py keeps it to itself."""
        return dict(cast("Mapping[str, Any]", self._server_info))

    @property
    def transport(self) -> Any:
        """The socket's wrapper. nats-py's own close waits for unsent bytes: for ever, on a half-open connection."""
        return self._transport

    async def tap(self) -> None:
        """Once connected: have messages taken from the socket itself. Not possible over WebSocket."""
        if self.web:
            return
        untyped = self.transport
        reader, transport = untyped._io_reader, untyped._io_writer.transport
        for _ in range(100):
            if (
                not reader._buffer and self._parser.idle
            ):  # nothing stands between the socket and nats-py, not half a line either
                transport.set_protocol(_Tap(self, transport, transport.get_protocol()))
                return
            await asyncio.sleep(0)

    # --- receiving ---------------------------------------------------------------------------------------------------

    def listen(self, subject: str, receiver: Receiver) -> bytes:
        """Subscribe; returns what `unlisten` needs. Nothing is dropped on this side."""
        self._sid += 1
        sid = b"%d" % self._sid
        self._receivers[sid] = receiver
        self.write(b"SUB %b  %b\r\n" % (subject.encode(), sid))
        return sid

    def unlisten(self, sid: bytes) -> None:
        if self._receivers.pop(sid, None) is not None:
            self.write(b"UNSUB %b\r\n" % sid)

    def deliver(self, sid: bytes, subject: bytes, reply: bytes, headers: bytes, data: bytes) -> None:
        """Hand a message to its receiver; one without a receiver came too late."""
        receiver = self._receivers.get(sid)
        if receiver is None:
            return
        try:
            step = receiver(Message(subject.decode(), reply.decode(), data, headers_of(headers) if headers else _NONE))
            if step is not None:
                _finish(step)
        except Exception:  # the fault of one receiver must not end the connection of all
            log.exception("a message on %r could not be taken", subject[:200])

    # --- sending -----------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Have a command written in this turn of the loop. Does not wait."""
        self._out.append(data)
        if len(self._out) == 1:
            asyncio.get_running_loop().call_soon(self._flush)

    def discard(self) -> None:
        """The connection ends: what is not written yet never will be."""
        self._out.clear()

    def _flush(self) -> None:
        out, self._out = self._out, []
        if not out or not self.is_connected:
            return  # and never will be: a connection is not made again
        if self.web:
            self._pending += out
            self._pending_data_size += sum(map(len, out))
            queue: Any = self._flush_queue
            queue.put_nowait(asyncio.get_running_loop().create_future())
            return
        try:
            self.transport.write(out[0] if len(out) == 1 else b"".join(out))
        except (OSError, RuntimeError, AttributeError) as error:
            log.debug("the connection ended while something was written: %s", type(error).__name__)
