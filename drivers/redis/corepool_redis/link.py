"""A connection that comes back: what a call may expect of it (M5, M6).

Purpose: give every call an honest end. It returns the server's answer, or raises `BackendUnavailable` when the call was
certainly not applied, or `OutcomeUnknown` when that cannot be told.
Invariants:

- A write that may have reached the server is never sent again. What was surely not applied (never sent, or refused as a whole
  by the server: NOSCRIPT, MOVED, READONLY, LOADING, …) and what changes nothing is repeated until ``timeout`` has passed.
- At most ``max_in_flight`` commands wait for replies; further callers queue in order. Blocking commands have links of
  their own.
- Each socket has an *epoch*, larger than that of every socket before it. Fenced scripts carry it; after :meth:`settle` the
  server refuses all smaller ones, so bytes that still lie in some buffer can do no harm (R2).
- A scope (a namespace) whose write was in flight when its socket ended is remembered in ``unsettled`` until it is fenced, also
  if the caller was cancelled meanwhile.

Neighbours: :mod:`corepool_redis.connection` (one socket), :mod:`corepool_redis.routes` (where to), all stores above.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections import deque
from collections.abc import Callable, Sequence

from corepool.errors import BackendUnavailable, CorepoolError, OutcomeUnknown
from corepool_redis.connection import Connection, ConnectionLost, Endpoint, Slot, open_connection
from corepool_redis.handshake import NotPrimary, Server, Settings, greet
from corepool_redis.resp import Arg, Reply, ReplyError, encode
from corepool_redis.routes import Route
from corepool_redis.scripts import Script

__all__ = ["Link", "Refused", "fence_key"]

log = logging.getLogger("corepool.redis")

# refusals of a whole command that pass by themselves, on the same server
_PASSING = frozenset({"LOADING", "TRYAGAIN", "BUSY", "CLUSTERDOWN", "MASTERDOWN"})
# refusals that last until an operator acts; nothing was applied
_LASTING = {
    "OOM": "the server's memory is full; raise maxmemory or remove data",
    "MISCONF": "the server cannot persist and refuses writes; free its disk",
    "NOREPLICAS": "the server has too few replicas to accept writes; restore them",
    "NOPERM": "the user lacks a right; compare its ACL with docs/redis.md",
    "NOAUTH": "the server asks for credentials; put them into the URL",
}


_REFUSED_AS_A_WHOLE = _PASSING | _LASTING.keys() | {"NOSCRIPT", "MOVED", "ASK", "READONLY", "FENCED"}


class Refused(Exception):
    """The server answered a call with an error that its caller must interpret. ``passing``: it will pass by itself."""

    def __init__(self, error: ReplyError) -> None:
        super().__init__(str(error))
        self.code = error.code
        self.passing = error.code in _PASSING


class Room:
    """How many commands may still be sent before a reply must come. First come, first served.

    Not asyncio.Semaphore: whoever sends a script for many callers must know, without waiting, whether it may.
    """

    __slots__ = ("_free", "_waiting")

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: deque[asyncio.Future[None]] = deque()

    def try_take(self) -> bool:
        """Take a place if there is one."""
        if self._free == 0:
            return False
        self._free -= 1
        return True

    async def take(self) -> None:
        """Wait for a place."""
        if self.try_take():
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled():
                self.release()  # the place was handed over in this very moment
            raise

    def release(self) -> None:
        """Give a place back: to whoever has waited longest."""
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._free += 1


class Link:
    """One reconnecting connection to a primary. Usable by many tasks at once."""

    def __init__(
        self, route: Route, settings: Settings, *, epochs: itertools.count[int], rng: random.Random, client: str
    ):
        self.client = client
        self.unsettled: set[bytes] = set()
        self.server = Server((), "")
        self.generation = 0  # counts connections: who keeps state of a server compares it
        self._route = route
        self._settings = settings
        self._epochs = epochs
        self._random = rng
        self._connection: Connection | None = None
        self._sides: dict[Endpoint, Connection] = {}
        self._connecting: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()  # set and replaced whenever a waiting call should look again
        self._room = Room(settings.max_in_flight)
        self._why: CorepoolError | None = None
        self._last_error = "not connected yet"
        self._told = ""
        self._closed = False
        self.on_connected: Callable[[], None] = lambda: None

    # --- life ---------------------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether there is a socket now."""
        return self._connection is not None

    async def ready(self, within: float | None = None) -> Connection:
        """The current socket, waiting for it at most ``within`` seconds (by default ``timeout``).

        Raises:
            BackendUnavailable: there is none, or the link is closed.
            UnsupportedServer: the server is too old.
        """
        if self._connection is not None:
            return self._connection
        try:
            async with asyncio.timeout(self._settings.timeout if within is None else within):
                while self._connection is None:
                    if self._closed:
                        raise BackendUnavailable("the backend is closed")
                    if self._why is not None:  # waiting would not help: an operator must act
                        raise type(self._why)(str(self._why))
                    changed = self._changed
                    self._connect()
                    await changed.wait()
        except TimeoutError:
            raise BackendUnavailable(f"cannot reach the server: {self._last_error}") from None
        return self._connection

    def close(self) -> None:
        """Close at once: calls in flight end. Idempotent."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        for side in tuple(self._sides.values()):
            side.abort("the backend was closed")
        if self._connection is not None:
            self._connection.abort("the backend was closed")
        self._notify()

    def drop(self, reason: str) -> None:
        """Give up the current socket, and find the primary anew."""
        if self._connection is not None:
            self._connection.abort(reason)

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _connect(self) -> None:
        if not self._closed and (self._connecting is None or self._connecting.done()):
            self._connecting = asyncio.get_running_loop().create_task(self._reconnect(), name="corepool-redis-connect")

    async def _reconnect(self) -> None:
        delay = 0.02
        while not self._closed:
            try:
                async with asyncio.timeout(self._settings.connect_timeout):
                    connection, server = await self._open()
            except NotPrimary as error:
                self._failed(str(error), None)
            except (OSError, TimeoutError, ConnectionLost) as error:
                self._failed(str(error) or f"no connection within {self._settings.connect_timeout:g} s", None)
            except CorepoolError as error:
                self._failed(str(error), error)
            else:
                if not connection.closed:
                    connection.on_reply = self._room.release
                    self.server, self._why, self._connection = server, None, connection
                    self.generation += 1
                    self._last_error, self._told = "the connection was lost", ""
                    self._notify()
                    self.on_connected()
                    return
            await asyncio.sleep(delay * (0.5 + self._random.random()))
            delay = min(delay * 2, 1.5)

    def _failed(self, reason: str, why: CorepoolError | None) -> None:
        if reason != self._told:  # it will fail again and again, until the server is back
            log.warning("connecting failed: %s", reason)
        self._last_error = self._told = reason
        self._why = why
        if why is not None:
            self._notify()

    async def _open(self) -> tuple[Connection, Server]:
        try:
            endpoint = await self._route.resolve()
        except BackendUnavailable as error:  # in the middle of a failover nobody knows: that passes
            raise NotPrimary(str(error)) from None
        # what the last try came to says more than that this one is under way
        self._last_error = self._told or f"{endpoint} does not answer"
        return await self._open_at(endpoint)

    async def _open_at(self, endpoint: Endpoint) -> tuple[Connection, Server]:
        connection = await open_connection(endpoint, tls=self._settings.tls, on_reply=lambda: None, on_lost=self._lost)
        try:
            server = await greet(connection, self._settings)
        except BaseException:  # cancelled or refused: a half-open socket must not stay
            connection.abort("the handshake failed")
            raise
        connection.epoch = next(self._epochs)
        return connection, server

    def _lost(self, connection: Connection, slots: Sequence[Slot]) -> None:
        self.unsettled.update(slot.scope for slot in slots if slot.sent and slot.scope is not None)
        self._sides = {endpoint: side for endpoint, side in self._sides.items() if side is not connection}
        if connection is self._connection:
            self._connection = None
            self._notify()
            self._connect()

    def _retire(self, connection: Connection) -> None:
        """Leave a server that is no longer the primary, but let it answer what it was asked: refusals are good news."""
        if connection is self._connection:
            self._connection = None
            connection.retire()
            self._notify()
            self._connect()

    # --- calls --------------------------------------------------------------------------------------------------------

    async def command(self, *args: Arg) -> Reply:
        """A command that changes nothing, or nothing that may not happen twice.

        Raises:
            BackendUnavailable: it was not answered in time.
            Refused: the server answered with an error.
        """
        data = encode(args)
        return await self._call(lambda _epoch, _full: data, scope=None, repeat=True)

    async def run(
        self,
        script: Script,
        keys: Sequence[bytes],
        args: Sequence[Arg],
        *,
        scope: bytes | None = None,
        repeat: bool = False,
    ) -> Reply:
        """A script. With ``scope`` it is a fenced write of that namespace; ``repeat`` says that it may happen twice.

        Raises:
            BackendUnavailable: certainly not applied.
            OutcomeUnknown: applied or not, or still may be.
            Refused: the server answered with an error.
        """
        flagged = self.server.has_script_flags
        if scope is None:
            return await self._call(
                lambda _epoch, full: script.invoke(keys, args, full=full, flagged=flagged), scope=None, repeat=repeat
            )
        fenced = (fence_key(scope, self.client), *keys)
        return await self._call(
            lambda epoch, full: script.invoke(fenced, (epoch, *args), full=full, flagged=flagged),
            scope=scope,
            repeat=repeat,
        )

    def send_now(
        self, script: Script, keys: Sequence[bytes], args: Sequence[Arg], *, scope: bytes, full: bool
    ) -> asyncio.Future[Reply] | None:
        """Send a fenced script once, without waiting: None if there is no socket, or no room on it; nothing was sent then.
        full: with its text, for a server that does not know it yet.

        The future ends with the reply, an error of the server included, or with `ConnectionLost`.
        """
        connection = self._connection
        if connection is None or not self._room.try_take():
            return None
        fenced = (fence_key(scope, self.client), *keys)
        command = script.invoke(fenced, (connection.epoch, *args), full=full, flagged=self.server.has_script_flags)
        return connection.send(command, patience=self._settings.timeout, scope=scope, at_once=True)

    def surely_refused(self, reply: ReplyError) -> bool:
        """Whether the server refused the whole command before it did any of it."""
        return reply.code in _REFUSED_AS_A_WHOLE

    async def blocking(self, *args: Arg, block: float) -> Reply:
        """A command that waits on the server, on the current socket and once.

        Raises:
            ConnectionLost: the socket ended; whoever calls this knows how to go on.
            Refused: the server answered with an error.
            BackendUnavailable: there is no socket.
        """
        connection = await self._take(asyncio.get_running_loop().time() + self._settings.timeout)
        reply = await connection.send(encode(args), patience=block + self._settings.timeout, at_once=True)
        if isinstance(reply, ReplyError):
            if self._follow(reply, connection):
                raise ConnectionLost(str(reply), sent=False)
            raise Refused(reply)
        return reply

    async def settle(self, scope: bytes) -> None:
        """Return once no earlier write of this scope with an unknown outcome can be applied any more (R2).

        Raises:
            BackendUnavailable: it cannot be made sure now.
        """
        while scope not in self.unsettled and not self._sides:
            await self.command("PING")  # whatever was sent before on this socket is decided when the answer comes
            if scope not in self.unsettled:
                return
        connection = await self.ready()
        epoch = next(self._epochs)
        for live in (connection, *self._sides.values()):
            live.epoch = epoch
        self.unsettled.discard(scope)  # before the call: a socket that ends during it adds it again
        try:
            await self.run(Script.named("fence"), (), (), scope=scope, repeat=True)
        except BaseException:  # cancelled or failed: nothing is known yet
            self.unsettled.add(scope)
            raise

    async def _call(self, build: Callable[[int, bool], bytes], *, scope: bytes | None, repeat: bool) -> Reply:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.timeout
        full, pause = False, 0.002
        aside: Endpoint | None = None
        while True:
            asking: asyncio.Future[Reply] | None = None
            try:
                if aside is None:
                    connection = await self._take(deadline)
                    future = connection.send(
                        build(connection.epoch, full), patience=self._settings.timeout, scope=scope
                    )
                else:
                    connection = await self._side(aside, deadline)
                    asking = connection.send(encode(("ASKING",)), patience=self._settings.timeout)
                    asking.add_done_callback(_ignore)
                    future = connection.send(
                        build(connection.epoch, full), patience=self._settings.timeout, scope=scope
                    )
                    aside = None
                reply = await future
            except ConnectionLost as lost:
                if lost.sent and not repeat:
                    raise OutcomeUnknown(f"{lost}; the write may or may not have been applied") from None
                if self._closed or loop.time() >= deadline:
                    raise BackendUnavailable(f"{lost}; nothing was applied") from None
                continue
            if not isinstance(reply, ReplyError):
                return reply
            if asking is not None and isinstance(refusal := asking.result(), ReplyError):
                reply = refusal  # that is why; the server only said that the slot is not its own
            code = reply.code
            if code == "NOSCRIPT" and not full:
                full = True
            elif code == "ASK":
                aside = _endpoint(reply, connection)
            elif code in _LASTING:
                raise BackendUnavailable(
                    f"{connection.endpoint} refused: {reply}. Nothing was applied: {_LASTING[code]}"
                )
            elif self._follow(reply, connection) or code in _PASSING or code == "FENCED":
                if loop.time() + pause >= deadline:
                    raise BackendUnavailable(f"{connection.endpoint} refused until the time was up: {reply}")
                await asyncio.sleep(pause * (0.5 + self._random.random()))
                pause = min(pause * 2, 0.25)
            else:
                raise Refused(reply)

    async def _take(self, deadline: float) -> Connection:
        """The current socket, with room for one more command on it; between this and ``send`` there must be no await."""
        while True:
            if self._connection is None:
                await self.ready(max(0.0, deadline - asyncio.get_running_loop().time()))
            if not self._room.try_take():
                try:
                    async with asyncio.timeout_at(deadline):
                        await self._room.take()
                except TimeoutError:
                    raise BackendUnavailable(
                        f"{self._settings.max_in_flight} calls wait for replies already; nothing was sent"
                    ) from None
            if self._connection is not None:
                return self._connection
            self._room.release()

    async def _side(self, endpoint: Endpoint, deadline: float) -> Connection:
        """A socket to the node that is taking over a slot; lives until the slot has moved."""
        side = self._sides.get(endpoint)
        if side is None:
            try:
                async with asyncio.timeout_at(deadline):
                    side, _ = await self._open_at(endpoint)
            except (OSError, TimeoutError, NotPrimary) as error:
                raise ConnectionLost(f"cannot reach {endpoint}: {error}", sent=False) from None
            other = self._sides.setdefault(endpoint, side)  # another caller may have been faster meanwhile
            if other is not side:
                side.abort("not needed")
                side = other
        return side

    def _follow(self, reply: ReplyError, connection: Connection) -> bool:
        """Whether the server said that the primary is elsewhere; if so, go there."""
        if reply.code == "MOVED":
            self._route.moved(_endpoint(reply, connection))
        elif reply.code != "READONLY":
            return False
        self._retire(connection)
        return True


def fence_key(scope: bytes, client: str) -> bytes:
    """Where a client's fence in a namespace is kept."""
    return scope + b"f:" + client.encode()


def _endpoint(reply: ReplyError, connection: Connection) -> Endpoint:
    """The address in ``MOVED 3999 host:port`` or ``ASK …``; an empty host is the one that answered."""
    host, _, port = str(reply).rsplit(" ", 1)[-1].rpartition(":")
    return Endpoint(host or connection.endpoint.host, int(port))


def _ignore(future: asyncio.Future[Reply]) -> None:
    """Look at an outcome nobody waits for, so that asyncio does not report it as forgotten."""
    if not future.cancelled():
        future.exception()
