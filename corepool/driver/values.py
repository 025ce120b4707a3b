"""How counters and lists look inside a map value, for drivers that update them on the server.

Purpose: one encoding that a short server-side script can parse.
Invariants: a list is the concatenation of netstrings (``3:abc,``); a counter is an ASCII decimal; both decode strictly.
Neighbours: used by ``corepool.rmap`` (client-side loops) and by drivers with the capability ``value_ops``.
"""

from __future__ import annotations

from collections.abc import Iterable

from corepool.driver.maps import AppendValues, Increment, RemoveValues, ValueOp
from corepool.errors import WireError

__all__ = ["apply_value_op", "decode_counter", "decode_list", "encode_counter", "encode_list"]

_COUNTER_MIN, _COUNTER_MAX = -(2**63), 2**63 - 1


def encode_list(values: Iterable[bytes]) -> bytes:
    """Encode a list of byte strings as netstrings (D. J. Bernstein, 1997)."""
    return b"".join(b"%d:%b," % (len(value), value) for value in values)


def decode_list(data: bytes) -> list[bytes]:
    """Decode a list of netstrings.

    Raises:
        WireError: the bytes are not such a list.
    """
    values: list[bytes] = []
    at = 0
    while at < len(data):
        colon = data.find(b":", at, at + 12)
        digits = data[at:colon] if colon > at else b""
        if not digits.isdigit() or (len(digits) > 1 and digits.startswith(b"0")):
            raise WireError(f"not a list value: no length at byte {at} of {len(data)}")
        end = colon + 1 + int(digits)
        if data[end : end + 1] != b",":
            raise WireError(f"not a list value: the element at byte {at} does not end where it says")
        values.append(data[colon + 1 : end])
        at = end + 1
    return values


def encode_counter(value: int) -> bytes:
    """Encode a counter.

    Raises:
        OverflowError: the value does not fit into 64 bits.
    """
    if not _COUNTER_MIN <= value <= _COUNTER_MAX:
        raise OverflowError(f"a counter holds 64 bits; {value} does not fit")
    return b"%d" % value


def decode_counter(data: bytes) -> int:
    """Decode a counter.

    Raises:
        WireError: the bytes are not a 64-bit decimal.
    """
    digits = data.removeprefix(b"-")
    if not digits.isdigit() or len(digits) > 19:
        raise WireError(f"not a counter value: {data[:24]!r}")
    return int(data)


def apply_value_op(current: bytes | None, op: ValueOp) -> bytes:
    """The value after ``op``: the reference meaning of atomic value operations.

    Raises:
        WireError: ``current`` is not a counter or list.
        OverflowError: a counter leaves 64 bits.
    """
    match op:
        case Increment(by=by):
            return encode_counter((0 if current is None else decode_counter(current)) + by)
        case AppendValues(values=values, unique=unique):
            held = [] if current is None else decode_list(current)
            for value in values:
                if not unique or value not in held:
                    held.append(value)
            return encode_list(held)
        case RemoveValues(values=values):
            held = [] if current is None else decode_list(current)
            return encode_list(value for value in held if value not in values)
