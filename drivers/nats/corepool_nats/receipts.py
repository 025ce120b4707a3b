"""Receipts: strings with which any process may acknowledge a delivery.

Purpose: name the stream, its life, the sink and the event, and carry the subject on which the server takes acknowledgements.
Invariants: a receipt of another namespace, of a destroyed life, or that was never given is invalid, and nothing is sent
for it: the consumer's name in the acknowledgement subject must be the one that stream, sink and life give, and the
sequences must agree.
Neighbours: made and honoured by :mod:`corepool_nats.sink`; also honoured by commits.
"""

from __future__ import annotations

import re

import attrs

from corepool.errors import WireError
from corepool_nats.names import Space, StreamSubjects, decode, encode

__all__ = ["Receipt", "make_receipt", "read_receipt"]

_RECEIPT = re.compile(
    r"1\|(?P<stream>[A-Za-z0-9_/=-]{1,600})\|(?P<sink>[A-Za-z0-9_/=-]{1,600})\|(?P<life>[0-9a-f]{1,64})"
    r"\|(?P<ack>\$JS\.ACK\.[A-Za-z0-9_=.-]{1,400})"
)


@attrs.frozen(slots=True)
class Receipt:
    """A delivery. ``ack``: the subject to answer on."""

    subjects: StreamSubjects
    sink: str
    life: str
    sequence: int
    ack: str


def make_receipt(stream: str, sink: str, life: str, ack: str) -> str:
    return f"1|{encode(stream)}|{encode(sink)}|{life}|{ack}"


def read_receipt(space: Space, receipt: str) -> Receipt | None:
    """What a receipt of this namespace says; None if it is none."""
    match = _RECEIPT.fullmatch(receipt)
    if match is None:
        return None
    try:
        stream, sink = decode(match["stream"]), decode(match["sink"])
    except WireError:
        return None
    subjects = space.stream(stream)
    parts = match["ack"].split(".")
    place = parts[4:8] if len(parts) >= 11 else parts[2:6]
    if len(place) != 4 or place[0] != space.streams_asset or place[1] != subjects.consumer(sink, match["life"]):
        return None
    if not place[3].isdigit():
        return None
    return Receipt(subjects, sink, match["life"], int(place[3]), match["ack"])
