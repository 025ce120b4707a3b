"""The names of everything the driver keeps on a server.

Purpose: one place that turns names of any text into keys, without loss and without ambiguity.
Invariants: all keys of a namespace begin with ``corepool:{<namespace>}:`` and so share one cluster slot and one ACL pattern;
a name's own ``%``, ``:``, ``{`` and ``}`` are written as percent escapes, so that no name can end early or reach into
another's keys.
Neighbours: every store; docs/redis.md lists the keys for operators.

========================================  =========  ===================================================================
``corepool:{ns}:m:<map>:d``               hash       key to ``<revision>:<value>``; the field "" is the head of the map
``corepool:{ns}:m:<map>:l``               stream     its change log; only there while somebody watches the map: the head then
                                                     ends in ``:w``
``corepool:{ns}:s:<stream>:c``            hash       configuration of the stream and its sinks; the stream exists if this does
``corepool:{ns}:s:<stream>:e``            stream     its events
``corepool:{ns}:s:<stream>:g<n>:v``       zset       members of the sink number n, by when they were last seen
``corepool:{ns}:s:<stream>:g<n>:z``       zset       events given back to sink n, by when they are due
``corepool:{ns}:h``                       hash       high-water marks of what was destroyed; expires after a day
``corepool:{ns}:f:<client>``              string     the fence of a client that lost a reply; expires after a day
``corepool:{ns}:t:<client>``              string     only within a script
``corepool:{ns}:w:<client>:r`` / ``:g``   stream     wakes that client's blocked read; expires within an hour
========================================  =========  ===================================================================
"""

from __future__ import annotations

import functools

import attrs
import msgspec

__all__ = [
    "EventId",
    "MapKeys",
    "Receipt",
    "StreamKeys",
    "decode_id",
    "encode_id",
    "escape",
    "mark_key",
    "scope_of",
    "scratch_key",
    "wake_key",
]


_REMEMBERED = 4096  # names whose keys are not put together anew each time


def escape(name: str) -> bytes:
    """A name as part of a key."""
    for plain, escaped in (("%", "%25"), (":", "%3A"), ("{", "%7B"), ("}", "%7D")):
        name = name.replace(plain, escaped)
    return name.encode()


def scope_of(namespace: str) -> bytes:
    """The beginning of all keys of a namespace."""
    return b"corepool:{%b}:" % escape(namespace)


def mark_key(scope: bytes) -> bytes:
    """The high-water marks of a namespace."""
    return scope + b"h"


def scratch_key(scope: bytes, client: str) -> bytes:
    """Where a script of that client counts."""
    return b"%bt:%b" % (scope, client.encode())


def wake_key(scope: bytes, client: str, reader: str) -> bytes:
    """The stream that wakes a client's blocked read: ``reader`` is ``r`` (feeds) or ``g`` (sinks)."""
    return b"%bw:%b:%b" % (scope, client.encode(), reader.encode())


@attrs.frozen(slots=True)
class MapKeys:
    """The keys of a map."""

    data: bytes
    log: bytes

    @staticmethod
    @functools.lru_cache(_REMEMBERED)
    def of(scope: bytes, name: str) -> MapKeys:
        base = b"%bm:%b:" % (scope, escape(name))
        return MapKeys(base + b"d", base + b"l")


@attrs.frozen(slots=True)
class StreamKeys:
    """The keys of a stream."""

    base: bytes
    events: bytes
    config: bytes

    @staticmethod
    @functools.lru_cache(_REMEMBERED)
    def of(scope: bytes, name: str) -> StreamKeys:
        base = b"%bs:%b:" % (scope, escape(name))
        return StreamKeys(base, base + b"e", base + b"c")

    def members(self, index: int) -> bytes:
        return b"%bg%d:v" % (self.base, index)

    def returned(self, index: int) -> bytes:
        return b"%bg%d:z" % (self.base, index)


# --- event ids and receipts ------------------------------------------------------------------------------------------


class EventId(msgspec.Struct, frozen=True, order=True, gc=False):
    """An id as the server counts it: milliseconds and a number within them."""

    ms: int
    seq: int

    @classmethod
    def parse(cls, raw: bytes) -> EventId:
        ms, _, seq = raw.partition(b"-")
        return cls(int(ms), int(seq))

    @property
    def raw(self) -> bytes:
        return b"%d-%d" % (self.ms, self.seq)

    def __str__(self) -> str:
        return f"{self.ms}-{self.seq}"


def encode_id(raw: bytes) -> str:
    """A server's id in a width at which ids compare as strings like they do as numbers (S1)."""
    ms, _, seq = raw.decode().partition("-")
    return f"{ms:>016}-{seq:>010}"


def decode_id(event_id: str) -> EventId | None:
    """An id back; None if it is none of ours."""
    ms, dash, seq = event_id.partition("-")
    if not dash or not (ms.isascii() and ms.isdigit() and seq.isascii() and seq.isdigit()):
        return None
    found = EventId(int(ms), int(seq))
    return found if found.ms < 2**64 and found.seq < 2**64 else None


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """Which delivery of which event to whom: all that any process needs to acknowledge it.

    count: how often the event was delivered. A later delivery has a larger one, which makes this receipt void.
    """

    stream: str
    sink: int
    id: EventId
    consumer: str
    count: int

    def __str__(self) -> str:
        return f"{self.id.ms}-{self.id.seq}.{self.sink}.{self.count}.{self.consumer}.{self.stream}"

    @staticmethod
    @functools.lru_cache(_REMEMBERED)
    def parse(receipt: str) -> Receipt | None:
        """A receipt back; None if it is none of ours (it is then simply not valid)."""
        parts = receipt.split(".", 4)
        if len(parts) != 5:
            return None
        event_id, sink, count, consumer, stream = parts
        found = decode_id(event_id)
        if (
            found is None
            or not (sink.isascii() and sink.isdigit() and count.isascii() and count.isdigit())
            or not stream
        ):
            return None
        try:
            stream.encode()
        except UnicodeEncodeError:
            return None
        return Receipt(stream, int(sink[:9]), found, consumer, int(count[:15]))
