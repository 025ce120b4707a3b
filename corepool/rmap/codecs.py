"""How the values of a replicated map look to its user.

Purpose: turn values into the bytes a `MapStore` holds, and back, strictly.
Invariants: what ``encode`` returned, ``decode`` turns into an equal value; ``encode`` is canonical (equal values, equal
bytes), for conditions compare encoded values; neither executes anything that came off the wire.
Neighbours: used by ``corepool.rmap`` alone. Lists and counters are not codecs: see :mod:`corepool.driver.values`.
"""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn, Protocol, TypeVar

import attrs

from corepool.driver import decode_list, shorten
from corepool.errors import InvalidOptionError, WireError

__all__ = ["BYTES", "JSON", "TEXT", "Codec"]

T = TypeVar("T")


class Codec(Protocol[T]):
    """Encodes the values of a map. A codec of your own needs these two methods and no base class."""

    def encode(self, value: T, /) -> bytes:
        """The bytes for a value; equal values give equal bytes.

        Raises:
            TypeError, InvalidOptionError: the value cannot be encoded. Nothing was sent.
        """
        ...

    def decode(self, data: bytes, /) -> T:
        """The value in these bytes. Whatever it raises, the map sets the value aside and counts it."""
        ...


@attrs.frozen(slots=True)
class _Text:
    def encode(self, value: str, /) -> bytes:
        if not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance]  callers without a type checker
            raise TypeError(f"this map holds text, not {shorten(value)}; join it with another codec, or convert first")
        try:
            return value.encode()
        except UnicodeEncodeError:
            raise InvalidOptionError(
                f"the text {shorten(value)} holds a lone surrogate and has no UTF-8 form; re-encode it, or use codec=BYTES"
            ) from None

    def decode(self, data: bytes, /) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise WireError(f"not UTF-8 text: {shorten(data)} ({error.reason} at byte {error.start})") from None


@attrs.frozen(slots=True)
class _Bytes:
    def encode(self, value: bytes, /) -> bytes:
        if not isinstance(value, bytes):  # pyright: ignore[reportUnnecessaryIsInstance]  callers without a type checker
            raise TypeError(f"this map holds bytes, not {shorten(value)}; join it with another codec, or convert first")
        return value

    def decode(self, data: bytes, /) -> bytes:
        return data


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


@attrs.frozen(slots=True)
class _Json:
    def encode(self, value: Any, /) -> bytes:
        try:
            text = json.dumps(value, allow_nan=False, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
            return text.encode()
        except (ValueError, RecursionError) as error:
            raise InvalidOptionError(f"{shorten(value)} has no JSON form: {error}") from None

    def decode(self, data: bytes, /) -> Any:
        try:
            return json.loads(data.decode(), parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            # A list that append_values made is netstrings of JSON; no such list (not even an empty one) is JSON itself.
            try:
                return [self.decode(element) for element in decode_list(data)]
            except (WireError, RecursionError):
                raise WireError(f"neither JSON nor a list of JSON: {shorten(data)} ({error})") from None


TEXT: Final[Codec[str]] = _Text()
"""Values are ``str``, stored as UTF-8."""
BYTES: Final[Codec[bytes]] = _Bytes()
"""Values are ``bytes``, stored as they are."""
JSON: Final[Codec[Any]] = _Json()
"""Values are whatever JSON holds, stored canonically (sorted keys, no NaN). Tuples come back as lists, keys as text."""
