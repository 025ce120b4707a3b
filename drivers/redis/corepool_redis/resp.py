"""The Redis protocol (RESP2): commands out, replies in.

Purpose: turn commands into bytes and bytes into replies, without knowing what either means.
Invariants: replies come out in the order their bytes came in; an error inside a reply is a value (:class:`ReplyError`), never
raised here; bytes that are no RESP raise :class:`ProtocolError`, after which the connection must be given up, since nobody
can tell where the next reply begins.
Neighbours: :mod:`corepool_redis.connection` feeds one reader per socket. hiredis does the parsing where it is installed; the
parser in plain Python below gives the same values (a test holds them to it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Protocol, TypeAlias, cast

try:
    import hiredis as _hiredis
except ImportError:  # the driver works without it, only slower
    _hiredis = None  # type: ignore[assignment]

__all__ = [
    "INCOMPLETE",
    "Arg",
    "ProtocolError",
    "PythonReader",
    "Reader",
    "Reply",
    "ReplyError",
    "encode",
    "new_reader",
]

Arg: TypeAlias = bytes | str | int
Reply: TypeAlias = "bytes | int | ReplyError | list[Reply] | None"


class ProtocolError(Exception):
    """The peer sent something that is not RESP."""


class ReplyError(Exception):
    """An error the server answered with. ``code`` is its first word: ``MOVED``, ``NOSCRIPT``, ``OOM``, …"""

    @property
    def code(self) -> str:
        """The first word of the error."""
        return str(self).split(" ", 1)[0]


class _Incomplete:
    """The type of :data:`INCOMPLETE`: a reply can be None or False, so the absence of one needs a value of its own."""


INCOMPLETE: Final = _Incomplete()


class Reader(Protocol):
    """Bytes in with ``feed``, replies out with ``gets`` until it returns :data:`INCOMPLETE`."""

    def feed(self, data: bytes, /) -> object: ...

    def gets(self) -> object: ...


def encode(args: tuple[Arg, ...]) -> bytes:
    """One command as bytes."""
    return _pack(args)


def python_encode(args: Iterable[Arg]) -> bytes:
    """The same in plain Python."""
    parts: list[bytes] = [b""]
    count = 0
    for arg in args:
        if isinstance(arg, str):
            data = arg.encode()
        elif isinstance(arg, bytes):
            data = arg
        else:
            data = b"%d" % arg
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
        count += 1
    parts[0] = b"*%d\r\n" % count
    return b"".join(parts)


_pack: Callable[[tuple[Arg, ...]], bytes] = (
    python_encode if _hiredis is None else cast("Callable[[tuple[Arg, ...]], bytes]", _hiredis.pack_command)
)


class PythonReader:
    """RESP2 in plain Python, for where hiredis is not installed.

    A reply is parsed again from its start when more bytes come: simple, and good enough for what it is for.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._start = 0

    def feed(self, data: bytes) -> None:
        """Take bytes from the socket."""
        self._buffer += data

    def gets(self) -> Reply | _Incomplete:
        """The next whole reply.

        Raises:
            ProtocolError: the bytes are no RESP.
        """
        parsed = self._parse(self._start)
        if parsed is None:
            del self._buffer[: self._start]
            self._start = 0
            return INCOMPLETE
        reply, self._start = parsed
        return reply

    def _parse(self, at: int) -> tuple[Reply, int] | None:
        end = self._buffer.find(b"\r\n", at)
        if end < 0:
            return None
        kind, line, at = bytes(self._buffer[at : at + 1]), bytes(self._buffer[at + 1 : end]), end + 2
        if kind == b"+":
            return line, at
        if kind == b"-":
            return ReplyError(line.decode(errors="replace")), at
        if kind not in (b":", b"$", b"*"):
            raise ProtocolError(f"a reply cannot begin with {kind!r}")
        try:
            number = int(line)
        except ValueError:
            raise ProtocolError("a reply's length is no number") from None
        if kind == b":":
            return number, at
        if number < 0:
            return None_, at
        return self._bulk(at, number) if kind == b"$" else self._array(at, number)

    def _bulk(self, at: int, length: int) -> tuple[Reply, int] | None:
        if len(self._buffer) < at + length + 2:
            return None
        if bytes(self._buffer[at + length : at + length + 2]) != b"\r\n":
            raise ProtocolError("a string does not end where it says")
        return bytes(self._buffer[at : at + length]), at + length + 2

    def _array(self, at: int, count: int) -> tuple[Reply, int] | None:
        items: list[Reply] = []
        for _ in range(count):
            parsed = self._parse(at)
            if parsed is None:
                return None
            item, at = parsed
            items.append(item)
        return items, at


None_: Final[Reply] = None
"""A nil reply: named, because in the parser a bare None means "not yet whole"."""


def new_reader() -> Reader:
    """hiredis where it is installed, the plain parser elsewhere."""
    if _hiredis is None:
        return PythonReader()
    return cast(
        "Reader",
        _hiredis.Reader(protocolError=ProtocolError, replyError=ReplyError, notEnoughData=INCOMPLETE),
    )
