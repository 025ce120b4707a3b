"""Checks that every driver makes before anything is sent.

Purpose: one place that turns bad names, keys and payloads into errors that name the value, the limit and the way out.
Neighbours: used by drivers and by the core's own option checks.
"""

from __future__ import annotations

import math

from corepool.driver.backend import Capabilities
from corepool.errors import InvalidKeyError, InvalidOptionError, PayloadTooLarge

__all__ = ["check_duration", "check_key", "check_name", "check_value", "shorten"]


def shorten(value: object, most: int = 60) -> str:
    """A repr fit for an error message."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"


def _check_text(what: str, value: str, limit: int) -> None:
    if type(value) is str and value.isascii() and 0 < len(value) <= limit:
        return  # nearly always
    if not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance]  callers without a type checker
        raise InvalidKeyError(f"{what} is text, not {shorten(value)}; decode it first")
    if not value:
        raise InvalidKeyError(f"{what} is empty; give it at least one character")
    try:
        size = len(value) if value.isascii() else len(value.encode())
    except UnicodeEncodeError:
        raise InvalidKeyError(
            f"{what} {shorten(value)} holds a lone surrogate and cannot be encoded as UTF-8; re-encode it first"
        ) from None
    if size > limit:
        raise InvalidKeyError(
            f"{what} {shorten(value)} takes {size} bytes, the limit is {limit}; use a digest of it instead"
        )


def check_key(key: str, capabilities: Capabilities) -> None:
    """Raises:
    InvalidKeyError: the key is empty, not UTF-8 text, or too long.
    """
    _check_text("a key", key, capabilities.max_key_bytes)


def check_name(what: str, name: str, capabilities: Capabilities) -> None:
    """Check the name of a namespace, map, stream, sink, event or topic; ``what`` says which ("a stream's name").

    Raises:
        InvalidKeyError: it is empty, not UTF-8 text, or too long.
    """
    _check_text(what, name, capabilities.max_name_bytes)


def check_value(value: bytes, capabilities: Capabilities) -> None:
    """Raises:
    PayloadTooLarge: the value is over ``max_value_bytes``.
    TypeError: the value is not bytes.
    """
    if not isinstance(value, bytes):  # pyright: ignore[reportUnnecessaryIsInstance]  callers without a type checker
        raise TypeError(f"a value is bytes, not {shorten(value)}; encode it first")
    if len(value) > capabilities.max_value_bytes:
        raise PayloadTooLarge(
            f"a value of {len(value)} bytes is over the backend's limit of {capabilities.max_value_bytes}; "
            f"store the data elsewhere and pass a reference"
        )


def check_duration(what: str, seconds: float, *, zero: bool = False, most: float = 10 * 365 * 86400.0) -> None:
    """Check a duration in seconds.

    Raises:
        InvalidOptionError: it is NaN, infinite, negative, zero (unless allowed), or over ``most``.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidOptionError(f"{what} is a finite number of seconds, not {shorten(seconds)}")
    if seconds < 0 or (seconds == 0 and not zero) or seconds > most:
        least = "0" if zero else "more than 0"
        raise InvalidOptionError(f"{what} is {seconds} s; it must be {least} and at most {most:g} s")
