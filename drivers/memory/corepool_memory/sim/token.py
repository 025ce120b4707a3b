"""Replay tokens: a failing run as one printable word.

Purpose: carry a run from a CI log to a developer's machine and into a regression test.
Invariants: a token is ASCII without spaces or shell characters; it is decoded strictly (version, checksum, canonical
form), so that a damaged token is refused instead of replaying something else.
Neighbours: written and read by :mod:`~corepool_memory.sim.run`; the decisions are those of
:mod:`~corepool_memory.sim.chooser`.

Form: ``cps2.`` and, in base64url without padding, a 4-byte checksum of the rest, then the deflated MessagePack of
``[scenario, seed, decisions, conditions]``; ``decisions`` is nil (all are drawn from the seed) or an array of
``[label, [ordinal, value, ...]]``; ``conditions`` is a map of strings. ``cps1.`` had none of those: it is refused, for
nobody can tell whether it would replay the run that it was recorded of.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from collections.abc import Mapping
from typing import Final

import attrs
import msgspec

from corepool_memory.sim.chooser import Deviations
from corepool_memory.sim.errors import TokenError

__all__ = ["ReplayToken", "decode_token", "encode_token", "scenario_hash"]

_PREFIX: Final = "cps2."
_BEFORE: Final = "cps1."
_CHECKSUM_BYTES: Final = 4
_MOST_CHARACTERS: Final = 1 << 20
_MOST_BYTES: Final = 1 << 24


@attrs.frozen(slots=True)
class ReplayToken:
    """What a token says.

    scenario: `scenario_hash` of the scenario it was recorded with.
    seed: feeds the machines' own random numbers (ids, jitter), and the decisions if there are none recorded.
    deviations: the decisions that are not the default; None if all are to be drawn from the seed.
    conditions: what else the run depends on and is not the default (:mod:`~corepool_memory.sim.conditions`).
    """

    scenario: str
    seed: int
    deviations: Deviations | None
    conditions: Mapping[str, str] = attrs.field(factory=dict[str, str])


class _Wire(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    scenario: str
    seed: int
    decisions: list[tuple[str, list[int]]] | None
    conditions: dict[str, str]


def scenario_hash(name: str) -> str:
    """Twelve hex digits that stand for a scenario; its name alone decides, so that a token survives edits of its
    code."""
    return hashlib.blake2b(name.encode(), digest_size=6).hexdigest()


def encode_token(token: ReplayToken) -> str:
    """Write a token."""
    deflated = zlib.compress(_pack(token), 9)
    return _PREFIX + base64.urlsafe_b64encode(_checksum(deflated) + deflated).rstrip(b"=").decode()


def decode_token(text: str) -> ReplayToken:
    """Read a token.

    Raises:
        TokenError: it is not one, it is damaged, or another version wrote it.
    """
    if text.startswith(_BEFORE):
        raise TokenError(
            f"this replay token starts with {_BEFORE!r}: an earlier version wrote it, which did not record the faults and the "
            "store of the run; run the same seed, or the test that printed it, to get a new one"
        )
    if not text.startswith(_PREFIX):
        found = text[:16]
        raise TokenError(
            f"a replay token starts with {_PREFIX!r}; this starts with {found!r}: another version, or not a token"
        )
    if len(text) > _MOST_CHARACTERS:
        raise TokenError(f"a replay token has at most {_MOST_CHARACTERS} characters, this has {len(text)}")
    encoded = text.removeprefix(_PREFIX)
    try:
        body = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
        inflate = zlib.decompressobj()
        packed = inflate.decompress(body[_CHECKSUM_BYTES:], _MOST_BYTES)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise TokenError(f"the replay token is damaged: {error}") from None
    if base64.urlsafe_b64encode(body).rstrip(b"=").decode() != encoded:
        raise TokenError("the replay token is damaged: its last character is not what it was; copy the whole token")
    if (
        not inflate.eof
        or inflate.unused_data
        or inflate.unconsumed_tail
        or body[:_CHECKSUM_BYTES] != _checksum(body[_CHECKSUM_BYTES:])
    ):
        raise TokenError("the replay token is damaged: its checksum does not fit; copy the whole token")
    try:
        wire = msgspec.msgpack.decode(packed, type=_Wire)
    except (msgspec.DecodeError, RecursionError) as error:
        raise TokenError(f"the replay token cannot be read: {error}") from None
    deviations = None if wire.decisions is None else _unpack(wire.decisions)
    token = ReplayToken(wire.scenario, wire.seed, deviations, wire.conditions)
    if _pack(token) != packed:
        raise TokenError("the replay token is not in canonical form: it was edited")
    return token


def _unpack(decisions: list[tuple[str, list[int]]]) -> Deviations:
    deviations: dict[tuple[str, int], int] = {}
    for label, numbers in decisions:
        if len(numbers) % 2:
            raise TokenError(f"the replay token cannot be read: {label!r} has an ordinal without a value")
        for ordinal, value in zip(numbers[::2], numbers[1::2], strict=True):
            if ordinal < 0 or value < 1:
                raise TokenError(f"the replay token cannot be read: {label!r} decides {value} at {ordinal}")
            deviations[label, ordinal] = value
    return deviations


def _pack(token: ReplayToken) -> bytes:
    decisions: list[tuple[str, list[int]]] | None = None
    if token.deviations is not None:
        by_label: dict[str, list[int]] = {}
        for (label, ordinal), value in sorted(token.deviations.items()):
            by_label.setdefault(label, []).extend((ordinal, value))
        decisions = list(by_label.items())
    return msgspec.msgpack.encode(_Wire(token.scenario, token.seed, decisions, dict(sorted(token.conditions.items()))))


def _checksum(deflated: bytes) -> bytes:
    return hashlib.blake2b(deflated, digest_size=_CHECKSUM_BYTES).digest()
