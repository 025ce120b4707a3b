"""The options of ``memory://``, from a URL's query or as keywords.

Purpose: validated, typed options, and errors that name the known ones.
Neighbours: light, for ``plugin`` imports it; imports nothing that waits or holds state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import attrs

from corepool.driver import Capabilities, shorten
from corepool.errors import InvalidOptionError, InvalidUrlError

__all__ = ["DEFAULTS", "MemoryOptions", "parse_url"]

_LEAST_VALUE_BYTES = 64 * 1024
_MOST_VALUE_BYTES = 1 << 30


def _flag(name: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in {"true", "false"}:
        return value.lower() == "true"
    raise InvalidOptionError(f"{name} is true or false, not {shorten(value)}")


def _size(name: str, value: object) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not _LEAST_VALUE_BYTES <= value <= _MOST_VALUE_BYTES:
        raise InvalidOptionError(
            f"{name} is a number of bytes from {_LEAST_VALUE_BYTES} to {_MOST_VALUE_BYTES}, not {shorten(value)}"
        )
    return value


@attrs.frozen(slots=True, kw_only=True)
class MemoryOptions:
    """What a backend on the in-memory store declares and allows. Each backend has its own; the store does not care.

    atomic_commit: False: a commit is applied operation by operation, and others may come between, as on a store that cannot
        do better. For testing that correctness does not depend on it.
    value_ops: False: no atomic value operations. For testing the client-side loops that replace them.
    max_value_bytes: of one value or payload.
    """

    atomic_commit: bool = True
    value_ops: bool = True
    max_value_bytes: int = 1024 * 1024

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> MemoryOptions:
        """Raises:
        InvalidOptionError: an option is unknown or has a value it cannot have.
        """
        unknown = sorted(set(given) - set(_PARSERS))
        if unknown:
            raise InvalidOptionError(
                f"memory:// has no option {', '.join(map(shorten, unknown))}; it knows {', '.join(sorted(_PARSERS))}"
            )
        parsed: dict[str, Any] = {name: _PARSERS[name](name, value) for name, value in given.items()}
        return cls(**parsed)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            atomic_commit=self.atomic_commit,
            value_ops=self.value_ops,
            durable=False,
            multi_process=False,
            strict_receipts=True,
            max_key_bytes=4096,
            max_name_bytes=1024,
            max_value_bytes=self.max_value_bytes,
            max_commit_ops=1024,
        )

    def url(self, name: str) -> str:
        """The URL that opens a backend like this one."""
        query = "&".join(
            f"{field.name}={str(value).lower()}"
            for field in attrs.fields(MemoryOptions)
            if (value := getattr(self, field.name)) != field.default
        )
        return f"memory://{quote(name, safe='')}" + (f"?{query}" if query else "")


DEFAULTS = MemoryOptions()

_PARSERS: dict[str, Callable[[str, object], bool | int]] = {
    "atomic_commit": _flag,
    "value_ops": _flag,
    "max_value_bytes": _size,
}


def parse_url(url: str, options: Mapping[str, Any]) -> tuple[str, MemoryOptions]:
    """The store's name ("" for a private one) and the options. A keyword option goes before one of the URL.

    Raises:
        InvalidUrlError, InvalidOptionError
    """
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise InvalidUrlError("memory:// takes no credentials; write memory://name")
    if parts.fragment:
        raise InvalidUrlError("memory:// takes nothing after '#'; write it as %23 if it belongs to the name")
    query = parse_qsl(parts.query, keep_blank_values=True)
    if len({name for name, _ in query}) < len(query):
        raise InvalidOptionError("an option stands twice in the URL; leave one out")
    return unquote(parts.netloc + parts.path).strip("/"), MemoryOptions.parse({**dict(query), **options})
