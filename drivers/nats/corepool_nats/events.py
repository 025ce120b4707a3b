"""How an event is written into a message, and read back.

Purpose: names, topics and stamps in headers, encoded as in subjects; ids that compare as strings.
Invariants: an id is the sequence of the JetStream stream, twenty digits; since all logical streams of a namespace share
one, ids grow across destruction and re-creation. What cannot be decoded raises `WireError`.
Neighbours: streams, readings, sinks.
"""

from __future__ import annotations

from corepool.driver import Event, NewEvent
from corepool.errors import WireError
from corepool_nats.names import decode, encode
from corepool_nats.records import Record

__all__ = ["event_headers", "event_of", "format_id", "sequence_of"]

_NAME = "Cp-Name"
_TOPIC = "Cp-Topic"
_STAMP = "Cp-Stamp"


def format_id(sequence: int) -> str:
    return f"{sequence:020d}"


def sequence_of(event_id: str) -> int | None:
    """The sequence of an id; None if it is none of ours."""
    if len(event_id) != 20 or not event_id.isascii() or not event_id.isdigit():
        return None
    return int(event_id)


def event_headers(event: NewEvent, stamp: int | None) -> dict[str, str]:
    found = {_NAME: encode(event.name)}
    if event.topic:
        found[_TOPIC] = encode(event.topic)
    if stamp is not None:
        found[_STAMP] = str(stamp)
    return found


def event_of(record: Record) -> Event:
    """Raises:
    WireError: the message is no event of ours.
    """
    headers = record.headers
    stamp = headers.get(_STAMP)
    if stamp is not None and not stamp.isdigit():
        raise WireError(f"an event with {_STAMP}: {stamp[:20]!r}")
    name = headers.get(_NAME)
    if name is None:
        raise WireError(f"a message without {_NAME} among the events of {record.subject}")
    return Event(
        format_id(record.sequence),
        record.timestamp,
        decode(name),
        record.data,
        decode(headers[_TOPIC]) if _TOPIC in headers else "",
        int(stamp) if stamp is not None else None,
    )
