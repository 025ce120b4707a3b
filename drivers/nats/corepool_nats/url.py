"""From a URL and options to settings, without ever printing a credential.

Purpose: read ``nats://user:password@host1:4222,host2:4222?replicas=3&storage=file`` and the options of ``connect``.
Invariants: the settings' repr and every error leave out user names, passwords, tokens and whatever else of the URL might be
a misplaced part of them; an option that is unknown or out of range is an error, never ignored.
Neighbours: pure; used by :mod:`corepool_nats.backend` alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote

import attrs

from corepool.driver import shorten
from corepool.errors import InvalidOptionError, InvalidUrlError

__all__ = ["SCHEMES", "Settings", "parse_url"]

SCHEMES = ("nats", "tls", "ws", "wss")
_PORTS = {"nats": 4222, "tls": 4222, "ws": 80, "wss": 443}


@attrs.frozen(slots=True, kw_only=True)
class Settings:
    """All that a connection needs. Durations are seconds.

    servers: ``scheme://host:port`` of each server, without credentials.
    replicas, storage, placement_cluster, placement_tags, max_bytes, history, duplicate_window: of the JetStream streams that
        this client makes; those that exist stay as they are (preflight tells the difference).
    timeout: how long one call may take, reconnecting included.
    heartbeat: how often an idle watch hears from the server; a lost watch is noticed after 2.5 of them.
    tombstone_grace: how long a deleted key leaves a trace.
    """

    scheme: str
    servers: tuple[str, ...]
    user: str | None = attrs.field(default=None, repr=False)
    password: str | None = attrs.field(default=None, repr=False)
    token: str | None = attrs.field(default=None, repr=False)
    creds: Path | None = None
    nkey: Path | None = None
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_hostname: str | None = None
    tls_first: bool = False
    replicas: int = 1
    storage: Literal["file", "memory"] = "file"
    placement_cluster: str | None = None
    placement_tags: tuple[str, ...] = ()
    max_bytes: int | None = None
    history: int = 64
    duplicate_window: float = 120.0
    domain: str | None = None
    inbox_prefix: str = "_INBOX"
    name: str = "corepool"
    timeout: float = 15.0
    connect_timeout: float = 5.0
    heartbeat: float = 2.0
    ping: float = 2.0
    tombstone_grace: float = 600.0

    @property
    def secure(self) -> bool:
        return self.scheme in ("tls", "wss")

    @property
    def authenticates(self) -> bool:
        return any((self.user, self.password, self.token, self.creds, self.nkey))

    @property
    def redacted(self) -> str:
        """The URL for people: no credential in it."""
        hosts = ",".join(server.partition("://")[2] for server in self.servers)
        who = "***@" if self.user or self.password or self.token else ""
        default = {field.name: field.default for field in attrs.fields(Settings)}
        told = [
            f"{name}={value}" for name in ("replicas", "storage") if (value := getattr(self, name)) != default[name]
        ]
        return f"{self.scheme}://{who}{hosts}" + (f"?{'&'.join(told)}" if told else "")


# --- options ---------------------------------------------------------------------------------------------------------


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value or any(c.isspace() or ord(c) < 32 for c in value):
        raise InvalidOptionError(f"the option {name} is text without spaces")
    return value


def _secret(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidOptionError(f"the option {name} is a text that is not empty")
    return value


def _path(name: str, value: Any) -> Path:
    path = Path(value) if isinstance(value, str | Path) else None
    if path is None or not path.is_file():
        raise InvalidOptionError(f"the option {name} names a file that cannot be found: {shorten(value)}")
    return path


def _flag(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if value in ("true", "1", "yes"):
        return True
    if value in ("false", "0", "no"):
        return False
    raise InvalidOptionError(f"the option {name} is true or false, not {shorten(value)}")


def _integer(least: int, most: int) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        try:
            number = value if isinstance(value, int) and not isinstance(value, bool) else int(str(value), 10)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise InvalidOptionError(
                f"the option {name} is a whole number from {least} to {most}, not {shorten(value)}"
            )
        return number

    return check


def _seconds(least: float, most: float) -> Callable[[str, Any], float]:
    def check(name: str, value: Any) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not least <= number <= most:
            raise InvalidOptionError(f"the option {name} is {least:g} to {most:g} seconds, not {shorten(value)}")
        return number

    return check


def _storage(name: str, value: Any) -> str:
    if value not in ("file", "memory"):
        raise InvalidOptionError(f"the option {name} is file or memory, not {shorten(value)}")
    return str(value)


def _tags(name: str, value: Any) -> tuple[str, ...]:
    parts: list[Any] = value.split(",") if isinstance(value, str) else list(value)
    return tuple(_text(name, part) for part in parts)


_OPTIONS: Mapping[str, Callable[[str, Any], Any]] = {
    "user": _secret,
    "password": _secret,
    "token": _secret,
    "creds": _path,
    "nkey": _path,
    "tls_ca": _path,
    "tls_cert": _path,
    "tls_key": _path,
    "tls_hostname": _text,
    "tls_first": _flag,
    "replicas": _integer(1, 5),
    "storage": _storage,
    "placement_cluster": _text,
    "placement_tags": _tags,
    "max_bytes": _integer(1 << 20, 1 << 60),
    "history": _integer(8, 1024),
    "duplicate_window": _seconds(30.0, 3600.0),
    "domain": _text,
    "inbox_prefix": _text,
    "name": _text,
    "timeout": _seconds(0.5, 600.0),
    "connect_timeout": _seconds(0.1, 600.0),
    "heartbeat": _seconds(0.1, 60.0),
    "ping": _seconds(0.1, 60.0),
    "tombstone_grace": _seconds(1.0, 7 * 86400.0),
}


# --- the URL ---------------------------------------------------------------------------------------------------------

_HOST = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?")


def parse_url(url: str, options: Mapping[str, Any]) -> Settings:
    """Read a URL and the options of ``connect`` (which win over the URL's query).

    Raises:
        InvalidUrlError: the URL cannot be understood.
        InvalidOptionError: an option is unknown or out of range.
    """
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    if scheme not in SCHEMES:
        raise InvalidUrlError(f"a NATS URL starts with {', '.join(f'{each}://' for each in SCHEMES)}")
    authority, _, query = rest.partition("?")
    authority = authority.removesuffix("/")
    if "/" in authority.replace("://", "") or "#" in rest:
        raise InvalidUrlError(
            "a NATS URL has no path and no fragment; write a '/', '?' or '#' of a password as %2F, %3F or %23"
        )
    servers, credentials = _servers(scheme, authority)
    asked = dict(parse_qsl(query, keep_blank_values=True))
    asked.update({name: value for name, value in options.items() if value is not None})
    values: dict[str, Any] = dict(credentials)
    for name, value in asked.items():
        check = _OPTIONS.get(name)
        if check is None:
            raise InvalidOptionError(f"no option {shorten(name)} of NATS; there are: {', '.join(sorted(_OPTIONS))}")
        values[name] = check(name, value)
    settings = Settings(scheme=scheme, servers=servers, **values)
    _check_together(settings)
    return settings


def _servers(scheme: str, authority: str) -> tuple[tuple[str, ...], dict[str, str]]:
    servers: list[str] = []
    credentials: dict[str, str] = {}
    for part in authority.split(","):
        text = part.removeprefix(f"{scheme}://")
        userinfo, at, address = text.rpartition("@")
        match = _HOST.fullmatch(address)
        if match is None:  # the text is not repeated: it may be the rest of a password
            raise InvalidUrlError(
                "a NATS URL names its servers as host or host:port, separated by commas; write an '@', ':' or ',' of a "
                "password as %40, %3A or %2C"
            )
        port = int(match["port"] or _PORTS[scheme])
        if not 0 < port < 65536:
            raise InvalidUrlError(f"the port {port} does not exist")
        servers.append(f"{scheme}://{match['host']}:{port}")
        if at:
            found = _userinfo(userinfo)
            if credentials and found != credentials:
                raise InvalidUrlError("the servers of one NATS URL take the same credentials")
            credentials = found
    return tuple(servers), credentials


def _userinfo(text: str) -> dict[str, str]:
    user, colon, password = text.partition(":")
    if not user or (colon and not password) or ":" in password:
        raise InvalidUrlError("credentials in a NATS URL are user:password@ or token@, percent-encoded")
    if not colon:
        return {"token": unquote(user)}
    return {"user": unquote(user), "password": unquote(password)}


def _check_together(settings: Settings) -> None:
    ways = [
        name
        for name, given in (
            ("user", settings.user or settings.password),
            ("token", settings.token),
            ("creds", settings.creds),
            ("nkey", settings.nkey),
        )
        if given
    ]
    if len(ways) > 1:
        raise InvalidOptionError(f"give one kind of credentials, not {' and '.join(ways)}")
    if (settings.user is None) != (settings.password is None):
        raise InvalidOptionError("a user needs a password, and a password a user")
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise InvalidOptionError("the options tls_cert and tls_key go together")
    if settings.replicas not in (1, 3, 5):
        raise InvalidOptionError("the option replicas is 1, 3 or 5: an even number tolerates no more failures")
