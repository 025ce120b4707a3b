"""What the newest message of a key says, and a memory of such messages.

Purpose: the rules by which messages are entries, in one place; and a bounded cache of what stands at which sequence, and of
where maps were cleared.

The rules. A map's key has the value of the newest message on its subject, unless

- the message is a tombstone (header ``Cp-Kind: d``), or has headers that are not ours, or
- the newest reset marker of the map is above it (everything below a marker is gone; the marker's writer purges it), or
- the message is *void*: a write conditional on revision n (header ``Cp-If: n``) although a marker lies between n and it. The
  server let it pass because the marker's purge had not reached the old entry yet; its writer is told "refused", and
  everybody who reads it decides the same from the same two numbers.

Invariants: a message at a sequence never changes, so the cache cannot be wrong about one; whether it is still the newest, the
server decides when a write names its sequence. A marker it knows is one that was stored; there may be newer ones. The cache
forgets everything when the stream was seen to go back.
Neighbours: reads and writes of maps, watches and commits.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping

import attrs

from corepool.driver import Entry
from corepool_nats.names import MapSubjects
from corepool_nats.records import Record

__all__ = ["KIND", "ONLY_IF", "Cache", "Held", "held_of"]

KIND = "Cp-Kind"
ONLY_IF = "Cp-If"
DELETED = "d"

log = logging.getLogger("corepool.nats")


@attrs.frozen(slots=True)
class Held:
    """A message of a key's subject. ``value`` None: a tombstone; ``only_if``: the revision it was conditional on."""

    sequence: int
    value: bytes | None
    only_if: int | None = None

    def alive(self, marker: int) -> bool:
        """Whether it is the key's entry, if the map's newest marker (as of this message, or later) is ``marker``."""
        return self.value is not None and not self.is_void(marker)

    def is_void(self, marker: int) -> bool:
        """Whether a marker has taken it away, or kept it from counting."""
        return marker > self.sequence or (self.only_if is not None and self.only_if < marker)

    def settled(self, marker: int) -> Held:
        """The same, with what the marker says taken into account once and for all: void means no value."""
        return Held(self.sequence, None) if self.is_void(marker) else self

    def entry(self, key: str, marker: int) -> Entry | None:
        if self.value is None or self.is_void(marker):
            return None
        return Entry(key, self.value, self.sequence)


def held_of(record: Record) -> Held:
    """Read a key's message. One whose headers are not ours is no entry, to every reader alike, and can be replaced."""
    headers: Mapping[str, str] = record.headers
    only_if, kind = headers.get(ONLY_IF), headers.get(KIND)
    if (only_if is not None and not only_if.isdigit()) or kind not in (None, DELETED):
        log.warning("a foreign message on %s is left aside", record.subject)
        return Held(record.sequence, None)
    return Held(
        record.sequence, None if kind == DELETED else record.data, int(only_if) if only_if is not None else None
    )


class Cache:
    """The messages seen last, by subject, and the newest markers seen, by map; bounded by number and size."""

    def __init__(self, most: int = 4096, most_bytes: int = 8 << 20) -> None:
        self._held: OrderedDict[str, Held] = OrderedDict()
        self._markers: dict[str, int] = {}
        self._most = most
        self._most_bytes = most_bytes
        self._bytes = 0

    def get(self, m: MapSubjects, subject: str) -> Held | None:
        """The message seen last; without a value if it is known that the map was cleared since."""
        held = self._held.get(subject)
        if held is None:
            return None
        self._held.move_to_end(subject)
        marker = self._markers.get(m.base)
        return held if marker is None else held.settled(marker)

    def cleared(self, m: MapSubjects, marker: int) -> None:
        """Remember that the map was cleared; an older marker never replaces a newer one."""
        if marker > self._markers.get(m.base, 0):
            if len(self._markers) >= self._most:
                self._markers.clear()
            self._markers[m.base] = marker

    def put(self, subject: str, held: Held) -> None:
        """Remember; an older message never replaces a newer one."""
        before = self._held.get(subject)
        if before is not None:
            if before.sequence >= held.sequence:
                return
            self._bytes -= len(before.value or b"")
        self._held[subject] = held
        self._held.move_to_end(subject)
        self._bytes += len(held.value or b"")
        while len(self._held) > self._most or (self._bytes > self._most_bytes and self._held):
            _, dropped = self._held.popitem(last=False)
            self._bytes -= len(dropped.value or b"")

    def drop(self, subject: str) -> None:
        dropped = self._held.pop(subject, None)
        if dropped is not None:
            self._bytes -= len(dropped.value or b"")

    def clear(self) -> None:
        self._held.clear()
        self._markers.clear()
        self._bytes = 0
