"""How names and keys become NATS subjects and asset names, without loss and without ambiguity.

Purpose: one reversible encoding, and the one place that knows the layout of subjects::

    cp.<ns>.m.<map>.k.<key>     a key of a map            cp.<ns>.s.<stream>.g    a logical stream's registry
    cp.<ns>.m.<map>.r           a map's reset markers     cp.<ns>.s.<stream>.e    its events
    cp.<ns>.mf                  fences of all maps        cp.<ns>.sf              fences of all streams

Invariants: `decode` inverts `encode` for every text; two texts never share a subject; an encoded text is one token (no
dot, wildcard, space or control character). With names up to 200 and keys up to 512 bytes the longest subject takes some
2,750 bytes, well under the 4,096 at which a server closes the connection for good.
Neighbours: pure functions, used by everything here that names a subject.
"""

from __future__ import annotations

import functools
import hashlib
import re

import attrs

from corepool.errors import WireError

__all__ = ["MapSubjects", "Space", "StreamSubjects", "decode", "encode"]

_KEEP = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_/-")
_PLAIN = re.compile(r"[A-Za-z0-9_/-]+", re.ASCII)
_TOKEN = re.compile(rb"(?:[A-Za-z0-9_/-]|=[0-9A-F]{2})+")
_LONGEST_ASSET = 160  # a server keeps assets as directories, whose names may take 255 bytes


@functools.lru_cache(maxsize=8192)
def encode(text: str) -> str:
    """One subject token for any text: letters, digits, ``_``, ``/`` and ``-`` as they are, other UTF-8 bytes as ``=HH``."""
    if not text:
        return "="
    if _PLAIN.fullmatch(text):  # job ids and most keys: each is new, so the memory does not help
        return text
    return "".join(chr(byte) if byte in _KEEP else f"={byte:02X}" for byte in text.encode())


@functools.lru_cache(maxsize=8192)
def decode(token: str) -> str:
    """The text that `encode` made this token of.

    Raises:
        WireError: nothing that `encode` makes.
    """
    if token == "=":
        return ""
    raw = token.encode()
    if _TOKEN.fullmatch(raw) is None:
        raise WireError(f"not an encoded name: {token[:60]!r}")
    head, *rest = raw.split(b"=")
    try:
        return (head + b"".join(bytes((int(part[:2], 16),)) + part[2:] for part in rest)).decode()
    except UnicodeDecodeError:
        raise WireError(f"not an encoded name: {token[:60]!r}") from None


def _asset(kind: str, text: str) -> str:
    """A stream's or consumer's name. What is too long becomes a digest, under a prefix of its own: no ambiguity."""
    token = encode(text).replace("/", "=2F")
    if len(token) <= _LONGEST_ASSET:
        return f"cp-{kind}-{token}"
    return f"cp-{kind}h-{hashlib.sha256(text.encode()).hexdigest()}"


@attrs.frozen(slots=True)
class MapSubjects:
    """The subjects of one map."""

    base: str

    @property
    def marker(self) -> str:
        return f"{self.base}.r"

    @property
    def every_key(self) -> str:
        return f"{self.base}.k.>"

    @property
    def everything(self) -> str:
        return f"{self.base}.>"

    def key(self, key: str) -> str:
        return f"{self.base}.k.{encode(key)}"

    def key_of(self, subject: str) -> str | None:
        """The key a subject of this map stands for; None for the marker and for other subjects."""
        prefix = f"{self.base}.k."
        return decode(subject[len(prefix) :]) if subject.startswith(prefix) else None


@attrs.frozen(slots=True)
class StreamSubjects:
    """The subjects of one logical stream."""

    base: str

    @property
    def registry(self) -> str:
        return f"{self.base}.g"

    @property
    def events(self) -> str:
        return f"{self.base}.e"

    @property
    def everything(self) -> str:
        return f"{self.base}.>"

    def consumer(self, sink: str, life: str) -> str:
        """The durable consumer of a sink, in one life of the stream: a later life has another one."""
        return _consumer(self.base, encode(sink), life)


@functools.lru_cache(maxsize=1024)
def _consumer(base: str, sink: str, life: str) -> str:
    digest = hashlib.sha256("\n".join((base, sink, life)).encode()).hexdigest()
    return f"cp-k-{digest[:40]}"


@attrs.frozen(slots=True)
class Space:
    """The names of a namespace."""

    name: str

    @property
    def token(self) -> str:
        return encode(self.name)

    @property
    def maps_asset(self) -> str:
        return _asset("m", self.name)

    @property
    def streams_asset(self) -> str:
        return _asset("s", self.name)

    @property
    def maps_fence(self) -> str:
        return f"cp.{self.token}.mf"

    @property
    def streams_fence(self) -> str:
        return f"cp.{self.token}.sf"

    @property
    def maps(self) -> str:
        return f"cp.{self.token}.m.>"

    @property
    def streams(self) -> str:
        return f"cp.{self.token}.s.>"

    def map(self, name: str) -> MapSubjects:
        return _map(self.token, name)

    def stream(self, name: str) -> StreamSubjects:
        return _stream(self.token, name)


@functools.lru_cache(maxsize=1024)
def _map(space: str, name: str) -> MapSubjects:
    return MapSubjects(f"cp.{space}.m.{encode(name)}")


@functools.lru_cache(maxsize=1024)
def _stream(space: str, name: str) -> StreamSubjects:
    return StreamSubjects(f"cp.{space}.s.{encode(name)}")
