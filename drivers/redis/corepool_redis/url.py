"""URLs and options of the Redis schemes.

Purpose: from text to validated settings.
Invariants: an option is known and in its range, or an error says which are; no error and no repr repeats the part of a URL
that may hold a password, whatever is wrong with it.
Neighbours: :mod:`corepool_redis.backend` opens what :func:`parse` returns; docs/redis.md lists the options.

==========================================================  ============================================================
``redis://[[user]:password@]host[:port][/database]``        one primary
``rediss://…``                                              the same over TLS
``unix://[[user]:password@]/path/to/socket[?db=0]``         one primary on a Unix socket
``redis+sentinel://[…@]host[:port],host…/service[/db]``     the primary that the Sentinels name
``redis+cluster://[…@]host[:port],host…``                   a cluster; each namespace lives in one slot
==========================================================  ============================================================
"""

from __future__ import annotations

import re
import ssl as tls_module
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

import attrs

from corepool.driver import check_duration, shorten
from corepool.errors import InvalidOptionError, InvalidUrlError
from corepool_redis.connection import Endpoint

__all__ = ["SCHEMES", "Location", "Options", "parse"]

SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "redis+cluster")
_PORT, _SENTINEL_PORT = 6379, 26379


def _seconds(name: str, value: object) -> float:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise InvalidOptionError(f"{name} is a number of seconds, not {shorten(value)}") from None
    if not isinstance(value, int | float):
        raise InvalidOptionError(f"{name} is a number of seconds, not {shorten(value)}")
    check_duration(name, value, most=3600.0)
    return float(value)


def _count(least: int, most: int) -> Callable[[str, object], int]:
    def parse_count(name: str, value: object) -> int:
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,12}", value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise InvalidOptionError(f"{name} is a whole number from {least} to {most}, not {shorten(value)}")
        return value

    return parse_count


def _flag(name: str, value: object) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "false", "1", "0", "yes", "no"):
        return value.lower() in ("true", "1", "yes")
    if not isinstance(value, bool):
        raise InvalidOptionError(f"{name} is true or false, not {shorten(value)}")
    return value


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidOptionError(f"{name} is a text that is not empty")  # never repeated: it may be a secret
    return value


def _context(name: str, value: object) -> tls_module.SSLContext:
    if not isinstance(value, tls_module.SSLContext):
        raise InvalidOptionError(f"{name} is an ssl.SSLContext, not {type(value).__name__}")
    return value


@attrs.frozen(slots=True, kw_only=True)
class Options:
    """What a URL's query or the keywords of ``connect`` may say.

    db: the database number (0 on a cluster). username, password: as in the URL, for those who keep them elsewhere.
    timeout: seconds until a server that does not answer is given up, and that a call may wait for a connection.
    connect_timeout: seconds for one attempt to connect.
    interval: seconds between two looks at an idle server, and so the longest block of a read.
    log_length: entries that a map's change log keeps at least.
    max_in_flight: commands that may wait for replies at once.
    max_value_bytes: of one value or payload.
    ssl: TLS with the system's certificates, for Sentinels and clusters (``rediss://`` always has it).
    ssl_ca_certs, ssl_certfile, ssl_keyfile: files for TLS; ssl_check_hostname: False only for a server whose certificate names
        another host; ssl_context: instead of all four, in Python only.
    sentinel_username, sentinel_password: for the Sentinels themselves.
    """

    db: int = 0
    username: str | None = attrs.field(default=None, repr=False)
    password: str | None = attrs.field(default=None, repr=False)
    timeout: float = 5.0
    connect_timeout: float = 5.0
    interval: float = 5.0
    log_length: int = 2000
    max_in_flight: int = 1024
    max_value_bytes: int = 1024 * 1024
    ssl: bool = False
    ssl_ca_certs: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_check_hostname: bool = True
    ssl_context: tls_module.SSLContext | None = attrs.field(default=None, repr=False)
    sentinel_username: str | None = attrs.field(default=None, repr=False)
    sentinel_password: str | None = attrs.field(default=None, repr=False)

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Options:
        """Raises:
        InvalidOptionError: an option is unknown or out of its range.
        """
        unknown = sorted(set(given) - set(_PARSERS))
        if unknown:
            raise InvalidOptionError(
                f"the Redis driver has no option {', '.join(map(shorten, unknown))}; it knows {', '.join(sorted(_PARSERS))}"
            )
        return cls(**{name: _PARSERS[name](name, value) for name, value in given.items()})


_PARSERS: dict[str, Callable[[str, object], Any]] = {
    "db": _count(0, 1_000_000),
    "username": _text,
    "password": _text,
    "timeout": _seconds,
    "connect_timeout": _seconds,
    "interval": _seconds,
    "log_length": _count(100, 1_000_000),
    "max_in_flight": _count(1, 1_000_000),
    "max_value_bytes": _count(64 * 1024, 256 * 1024 * 1024),
    "ssl": _flag,
    "ssl_ca_certs": _text,
    "ssl_certfile": _text,
    "ssl_keyfile": _text,
    "ssl_check_hostname": _flag,
    "ssl_context": _context,
    "sentinel_username": _text,
    "sentinel_password": _text,
}


@attrs.frozen(slots=True)
class Location:
    """What a URL says. ``shown`` is the URL without credentials."""

    scheme: str
    endpoints: tuple[Endpoint, ...]
    service: str
    options: Options
    tls: tls_module.SSLContext | None = attrs.field(repr=False)
    shown: str


_SHAPE = "scheme://[user:password@]host[:port]; write '/', '#', '?', '@' and '%' inside a password as %2F, %23, %3F, %40, %25"


def parse(url: str, given: Mapping[str, Any]) -> Location:
    """Read a URL and the keyword options; a keyword goes before the URL.

    Raises:
        InvalidUrlError: the URL cannot be understood. It is not repeated.
        InvalidOptionError: an option is unknown or out of its range.
    """
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    if scheme not in SCHEMES:
        raise InvalidUrlError(f"the Redis driver serves {', '.join(f'{name}://' for name in SCHEMES)}")
    if "#" in rest:
        raise InvalidUrlError(f"a {scheme}:// URL holds a '#'; the form is {_SHAPE}")
    rest, _, query = rest.partition("?")
    credentials, at, address = rest.rpartition("@")
    if any(mark in credentials for mark in "/@"):
        raise InvalidUrlError(f"the credentials of a {scheme}:// URL hold a '/' or '@'; the form is {_SHAPE}")
    where, slash, path = address.partition("/")
    if scheme == "unix" and where:
        raise InvalidUrlError("a unix:// URL names a path: unix:///run/redis.sock")
    found: dict[str, Any] = _credentials(credentials) if at else {}
    pairs = parse_qsl(query, keep_blank_values=True)
    if len({name for name, _ in pairs}) < len(pairs):
        raise InvalidOptionError("an option stands twice in the URL; leave one out")
    found |= dict(pairs)
    service = ""
    if scheme == "unix":
        endpoints: tuple[Endpoint, ...] = (Endpoint(path=_socket(slash + unquote(path))),)
    else:
        endpoints = _hosts(scheme, where)
        parts = [unquote(part) for part in path.split("/") if part]
        if scheme == "redis+sentinel":
            if not parts:
                raise InvalidUrlError("a redis+sentinel:// URL names the service: redis+sentinel://host:26379/mymaster")
            service = parts.pop(0)
        if parts:
            found.setdefault("db", parts.pop(0))
        if parts:
            raise InvalidUrlError(f"the path of a {scheme}:// URL holds too much; after the host comes the database")
    options = Options.parse({**found, **given})
    if scheme == "redis+cluster" and options.db:
        raise InvalidOptionError("a cluster has one database, number 0")
    return Location(
        scheme, endpoints, service, options, _tls(scheme, options), _shown(scheme, at, endpoints, service, options)
    )


def _credentials(text: str) -> dict[str, Any]:
    user, colon, password = text.partition(":")
    if not colon:  # redis://name@host: a user without a password cannot log in
        raise InvalidUrlError(f"the credentials of the URL hold no ':'; the form is {_SHAPE}")
    found = {"password": unquote(password)} if password else {}
    return found | ({"username": unquote(user)} if user else {})


def _socket(path: str) -> str:
    if len(path) < 2:
        raise InvalidUrlError("a unix:// URL names a path: unix:///run/redis.sock")
    return path


def _hosts(scheme: str, text: str) -> tuple[Endpoint, ...]:
    default = _SENTINEL_PORT if scheme == "redis+sentinel" else _PORT
    found: list[Endpoint] = []
    for part in (text or "localhost").split(","):
        match = re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[^\[\]:/@\s]+)(?::([0-9]{1,5}))?", part)
        port = int(match.group(2) or default) if match else 0
        if match is None or not 0 < port < 65536:  # not repeated: with an '@' forgotten it may be the password
            raise InvalidUrlError(f"a host of the {scheme}:// URL cannot be understood; the form is {_SHAPE}")
        found.append(Endpoint(match.group(1).strip("[]"), port))
    if len(found) > 1 and scheme in ("redis", "rediss"):
        raise InvalidUrlError(f"{scheme}:// takes one host; use redis+sentinel:// or redis+cluster:// for several")
    return tuple(found)


def _tls(scheme: str, options: Options) -> tls_module.SSLContext | None:
    files = (options.ssl_ca_certs, options.ssl_certfile, options.ssl_keyfile)
    if options.ssl_context is not None:
        if any(files):
            raise InvalidOptionError("ssl_context stands alone; put the certificates into it")
        return options.ssl_context
    if scheme != "rediss" and not options.ssl and not any(files):
        return None
    for file in files:
        if file is not None and not Path(file).is_file():
            raise InvalidOptionError(f"there is no file {shorten(file)} for TLS")
    try:
        context = tls_module.create_default_context(cafile=options.ssl_ca_certs)
        if options.ssl_certfile is not None:
            context.load_cert_chain(options.ssl_certfile, options.ssl_keyfile)
    except (tls_module.SSLError, OSError) as error:
        raise InvalidOptionError(f"a file for TLS cannot be used: {error}") from None
    context.check_hostname = options.ssl_check_hostname
    return context


def _shown(scheme: str, at: str, endpoints: tuple[Endpoint, ...], service: str, options: Options) -> str:
    secret = "***@" if at or options.password else ""
    path = endpoints[0].path or ",".join(map(str, endpoints))
    tail = f"/{quote(service)}" if service else ""
    if options.db:
        tail += f"?db={options.db}" if scheme == "unix" else f"/{options.db}"
    return f"{scheme}://{secret}{path}{tail}"
