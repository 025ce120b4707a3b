"""What happens on a new socket before anybody may use it.

Purpose: authenticate, choose the database, and make sure that the server is new enough and a primary.
Invariants: a socket that was not shown to lead to a primary is never used (a replica would answer reads with the past, and a
feed resumed there would skip what it lacks); errors never hold a credential.
Neighbours: :mod:`corepool_redis.link` calls :func:`greet` on each connect, :mod:`corepool_redis.routes` on throw-away sockets.

Nothing beyond HELLO is needed on a server of 6.2 or newer, and HELLO needs no right: it tells version and role. Proxies that
hide the role are asked with ROLE, then INFO, then by a write that changes nothing.
"""

from __future__ import annotations

import re
import ssl

import attrs

from corepool.errors import BackendUnavailable, UnsupportedServer
from corepool_redis.connection import Connection
from corepool_redis.resp import Reply, ReplyError, encode

__all__ = ["LEAST_VERSION", "NotPrimary", "Server", "Settings", "ask", "greet", "text"]

LEAST_VERSION = (6, 2)


@attrs.frozen(slots=True, kw_only=True)
class Settings:
    """How to connect and how long to wait. Secrets are kept out of the repr.

    timeout: seconds a command may take, and a call may wait for a connection, before it is given up.
    connect_timeout: seconds for one attempt to connect, handshake included.
    max_in_flight: commands that may wait for replies on one connection; more callers wait their turn.
    """

    username: str | None = None
    password: str | None = attrs.field(default=None, repr=False)
    database: int = 0
    client_name: str = "corepool"
    tls: ssl.SSLContext | None = attrs.field(default=None, repr=False)
    timeout: float = 5.0
    connect_timeout: float = 5.0
    max_in_flight: int = 1024


@attrs.frozen(slots=True)
class Server:
    """What a server says of itself. ``version`` is empty if it does not."""

    version: tuple[int, ...]
    role: str

    @property
    def has_script_flags(self) -> bool:
        """Whether scripts may begin with ``#!lua`` (Redis 7.0, every Valkey)."""
        return not self.version or self.version >= (7, 0)


class NotPrimary(Exception):
    """The server is a replica, or does not know yet: try again, elsewhere or later."""


def text(value: Reply) -> str:
    """A string of the server as text, for names, versions and messages."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


async def ask(connection: Connection, settings: Settings, *args: str | bytes | int) -> Reply:
    """One command on a socket that is not in general use yet; an error of the server is a value."""
    return await connection.send(encode(args), patience=settings.timeout)


async def greet(connection: Connection, settings: Settings, *, primary: bool = True, select: bool = True) -> Server:
    """Make a socket ready for use.

    primary: insist on a primary. select: choose the database.

    Raises:
        BackendUnavailable: the credentials or the database were refused.
        UnsupportedServer: the server is older than 6.2.
        NotPrimary: it is a replica, or busy becoming something.
        ConnectionLost: the socket ended.
    """
    hello: list[str | bytes | int] = ["HELLO", 2]
    if settings.password is not None:
        hello += ["AUTH", settings.username or "default", settings.password]
    reply = await ask(connection, settings, *hello, "SETNAME", settings.client_name)
    if isinstance(reply, ReplyError):
        server = await _greet_without_hello(connection, settings, reply)
    else:
        server = _read_hello(reply)
    if server.version and server.version < LEAST_VERSION:
        found = ".".join(map(str, server.version))
        raise UnsupportedServer(
            f"{connection.endpoint} runs version {found}; corepool needs Redis 6.2 or newer, or Valkey: upgrade the server"
        )
    if select and settings.database:
        reply = await ask(connection, settings, "SELECT", settings.database)
        if isinstance(reply, ReplyError):
            raise BackendUnavailable(
                f"{connection.endpoint} refused database {settings.database} ({reply}); choose another one, or grant +select"
            )
    if primary:
        role = server.role or await _find_role(connection, settings)
        if role not in ("master", "primary"):
            raise NotPrimary(f"{connection.endpoint} is a {role}, not a primary")
    return server


def _read_hello(reply: Reply) -> Server:
    pairs = reply if isinstance(reply, list) else []
    facts = {text(pairs[i]): pairs[i + 1] for i in range(0, len(pairs) - 1, 2)}
    return Server(_version(text(facts.get("version", b""))), text(facts.get("role", b"")))


def _version(found: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", found)[:3])


async def _greet_without_hello(connection: Connection, settings: Settings, refusal: ReplyError) -> Server:
    if refusal.code in ("WRONGPASS", "NOAUTH") or "AUTH" in str(refusal):
        raise BackendUnavailable(
            f"{connection.endpoint} refused the credentials ({refusal.code}); check user name and password in the URL"
        )
    if "unknown command" not in str(refusal).lower():
        raise NotPrimary(f"{connection.endpoint} cannot serve yet: {refusal}")
    if settings.password is not None:
        auth = [settings.username, settings.password] if settings.username else [settings.password]
        reply = await ask(connection, settings, "AUTH", *auth)
        if isinstance(reply, ReplyError):
            raise BackendUnavailable(
                f"{connection.endpoint} refused the credentials ({reply.code}); check user name and password in the URL"
            )
    reply = await ask(connection, settings, "INFO", "server")
    if isinstance(
        reply, ReplyError
    ):  # without HELLO it is older than 6.0, or a proxy that says nothing: let it show itself
        return Server((), "")
    match = re.search(r"redis_version:(\S+)", text(reply))
    return Server(_version(match.group(1)) if match else (), "")


async def _find_role(connection: Connection, settings: Settings) -> str:
    reply = await ask(connection, settings, "ROLE")
    if isinstance(reply, list) and reply:
        return text(reply[0])
    reply = await ask(connection, settings, "INFO", "replication")
    if isinstance(reply, bytes) and (match := re.search(rb"role:(\w+)", reply)):
        return match.group(1).decode()
    reply = await ask(connection, settings, "DEL", b"corepool:{}:probe")  # a replica refuses any write
    if not isinstance(reply, ReplyError):
        return "master"
    return "replica" if reply.code == "READONLY" else f"server that refuses writes ({reply})"
