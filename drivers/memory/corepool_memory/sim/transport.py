"""A simulated client's way to the server: calls, feeds, reconnecting, and the honest `SimTransport.settle`.

Purpose: `corepool_memory.transport.Transport` on the simulated `Network`.
Invariants: those of :mod:`~corepool_memory.sim.network`; and

- the caller's task only ever waits for a future of its own, so cancelling it disturbs nobody (M6);
- a feed is lost at most once, never from within ``listen``, and hears nothing afterwards;
- reconnecting is attempted only while somebody wants it.

Neighbours: the network carries the messages and decides their fate; ``MemoryBackend`` uses it like any other transport.
"""

from __future__ import annotations

import random as random_module
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from corepool.driver import Clock
from corepool.errors import BackendUnavailable, OutcomeUnknown
from corepool_memory.sim.loop import SimFuture
from corepool_memory.sim.network import RECONNECT_EVERY, Call, Connection, FeedEnd, Network
from corepool_memory.sim.node import SimNode
from corepool_memory.transport import Attach, Detach, Push

if TYPE_CHECKING:
    from corepool_memory.server import Server

__all__ = ["SimTransport"]

T = TypeVar("T")


class SimTransport:
    """One client on one machine."""

    def __init__(self, network: Network, node: SimNode, clock: Clock, source: random_module.Random) -> None:
        self.node = node
        self.link = network.link(node.name)
        self._network = network
        self._loop = network.loop
        self._clock = clock
        self._random = source
        self._connections = 0
        self._old: list[Connection] = []
        self._closed = False
        self._current: Connection | None = None if self.link.blocked else self._new_connection()
        self._waiting: dict[SimFuture[None], None] = {}
        self._unattached: dict[FeedEnd, None] = {}
        self._reconnecting = False
        network.add(self)

    @property
    def clock(self) -> Clock:
        return self._clock

    @property
    def random(self) -> random_module.Random:
        return self._random

    # --- calls ------------------------------------------------------------------------------------------------------

    async def call(self, what: str, request: Callable[[Server], T], *, write: bool) -> T:
        """See `corepool_memory.transport.Transport.call`."""
        while (connection := self._current) is None:  # again: it may break between the wake-up and this task's turn
            await self._connected(what)
        future: SimFuture[T] = self._loop.create_future()
        future.label = f"the store's answer to {what!r}"
        self._send_request(connection, Call(what, write, future, self._loop.now), request)
        try:
            return await future
        finally:
            del future  # an exception keeps this frame, and must not keep itself alive through it

    def _send_request(self, connection: Connection, call: Call, request: Callable[[Server], object]) -> None:
        network, link = self._network, self.link
        connection.calls.append(call)
        if not connection.watchdog:
            self._watch(connection)
        breaks = 0
        if network.strikes(link.reset):
            breaks = 1 + link.reset_after.choose(3)
        if network.strikes(link.request_lost):
            network.on_fault("request lost", link.name, call.what)
            return
        network.send(connection.up, self._run, connection, call, request, breaks)
        if breaks == 3:
            network.on_fault("reset during", link.name, call.what)
            self._loop.call_soon(self._break, connection, "the connection broke", context=self.node.context)

    def _run(self, connection: Connection, call: Call, request: Callable[[Server], object], breaks: int) -> None:
        """On the server: a request has arrived."""
        network, link = self._network, self.link
        if breaks == 1:
            network.on_fault("reset before", link.name, call.what)
            self._break_from_server(connection)
            return
        error: BaseException | None = None
        result: object = None
        try:
            result = request(network.server)
        except Exception as raised:  # noqa: BLE001  whatever the server answers is raised at the caller
            error = raised
        network.on_request(link.name, call.what, error)
        if network.strikes(link.power) and network.cut_power(link.name):
            network.on_fault("crash at request", link.name, call.what)
        if breaks == 2:
            network.on_fault("reset after", link.name, call.what)
            self._break_from_server(connection)
        elif network.strikes(link.reply_lost):
            network.on_fault("reply lost", link.name, call.what)
        else:
            network.send(connection.down, self._answer, connection, call, result, error)

    def _answer(self, connection: Connection, call: Call, result: Any, error: BaseException | None) -> None:
        # Answers mostly come in the order of the requests; a call whose answer was lost stays in front until it times out.
        if connection.calls[0] is call:
            connection.calls.popleft()
        else:
            connection.calls.remove(call)
        if call.future.done():
            return
        if error is None:
            call.future.set_result(result)
        else:
            call.future.set_exception(error)

    def _watch(self, connection: Connection) -> None:
        """See to it that the oldest call does not wait for ever: one timer per connection, not one per call."""
        if connection.watchdog or not connection.calls:
            return
        connection.watchdog = True
        due = connection.calls[0].sent + self._network.plan.faults.request_timeout
        self._loop.at_true_time(due, self._time_out, connection, context=self.node.context)

    def _time_out(self, connection: Connection) -> None:
        connection.watchdog = False
        if connection.broken or not connection.calls:
            return
        oldest = connection.calls[0]
        if self._loop.now - oldest.sent >= self._network.plan.faults.request_timeout - 1e-9:
            self._break(connection, f"no answer to {oldest.what!r} in time")
        else:
            self._watch(connection)

    # --- connections ------------------------------------------------------------------------------------------------

    def _new_connection(self) -> Connection:
        self._connections += 1
        return Connection(self, self._connections, self._network.context)

    async def _connected(self, what: str) -> None:
        if self._closed:
            raise BackendUnavailable(f"{what}: this backend is closed; open another one")
        future: SimFuture[None] = self._loop.create_future()
        future.label = "a connection to the store"
        self._waiting[future] = None
        seconds = self._network.plan.faults.connect_timeout
        timer = self._loop.at_true_time(self._loop.now + seconds, self._refuse, future, what, context=self.node.context)
        self._reconnect()
        try:
            await future
        finally:
            timer.cancel()
            self._waiting.pop(future, None)
            del future  # as above

    def _refuse(self, future: SimFuture[None], what: str) -> None:
        if not future.done():
            future.set_exception(BackendUnavailable(f"{what}: the store cannot be reached; nothing was sent"))

    def _reconnect(self) -> None:
        if self._reconnecting or self._closed or not (self._waiting or self._unattached):
            return
        self._reconnecting = True
        due = self._loop.now + RECONNECT_EVERY
        self._loop.at_true_time(due, self._try_to_connect, context=self.node.context)

    def _try_to_connect(self) -> None:
        self._reconnecting = False
        if self._closed or self._current is not None:
            return
        if self.link.blocked:
            self._reconnect()
            return
        self._current = self._new_connection()
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        # Feeds that were opened meanwhile begin anew: what was sent to the server after opening them is lost.
        feeds, self._unattached = self._unattached, {}
        for feed in feeds:
            self._lose(feed)

    def break_connection(self, why: str) -> None:
        """Break the connection, if there is one; the client notices at once."""
        if self._current is not None:
            self._break(self._current, why)

    def _break_from_server(self, connection: Connection) -> None:
        """Runs on the server: the client notices when it runs next."""
        self._network.fence(connection)
        self._loop.call_soon(self._break, connection, "reset by the server", context=self.node.context)

    def check_later(self, block: int) -> None:
        """A partition began: a client that only listens notices after the time-out, if it lasts."""
        connection = self._current
        if connection is None:
            return

        def check() -> None:
            if self.link.blocked and self.link.blocks == block:
                self._break(connection, "nothing was heard from the store for too long")

        due = self._loop.now + self._network.plan.faults.request_timeout
        self._loop.at_true_time(due, check, context=self.node.context)

    def _break(self, connection: Connection, why: str) -> None:
        if self._current is not connection:
            return
        self._current = None
        self._retire(connection)
        for call in connection.calls:
            self._fail(call, why)
        connection.calls.clear()
        for feed in connection.feeds:
            self._lose(feed)
        self._reconnect()

    def _lose(self, feed: FeedEnd) -> None:
        def tell() -> None:
            if not feed.closed:
                feed.closed = True
                feed.lost()

        self._loop.call_soon(tell, context=self.node.context)

    def _fail(self, call: Call, why: str) -> None:
        if call.future.done():
            return
        if call.write:
            error: Exception = OutcomeUnknown(f"{call.what}: {why}; it may have been applied, or may still be")
        else:
            error = BackendUnavailable(f"{call.what}: {why}")
        call.future.set_exception(error)

    def _retire(self, connection: Connection) -> None:
        """The connection is no longer used; the server will learn of it."""
        connection.broken = True
        if not connection.fenced:
            self._old = [old for old in self._old if not old.fenced]
            self._old.append(connection)
            self._network.server_learns(connection)

    def abandon(self) -> None:
        """The machine's power was cut: nobody is told anything."""
        self._closed = True
        connection, self._current = self._current, None
        if connection is not None:
            self._retire(connection)

    # --- feeds ------------------------------------------------------------------------------------------------------

    def send(self, what: str, request: Callable[[Server], None]) -> None:
        """See `corepool_memory.transport.Transport.send`."""
        if self._current is not None:
            self._network.send(self._current.up, self._take, what, request)

    def _take(self, what: str, request: Callable[[Server], None]) -> None:
        """On the server: something was sent that wants no answer."""
        request(self._network.server)
        self._network.on_request(self.link.name, what, None)

    def listen(self, what: str, attach: Attach[T], receive: Push[T], lost: Callable[[], None]) -> Detach:
        """See `corepool_memory.transport.Transport.listen`."""
        feed = FeedEnd(what, attach, receive, lost, doubles=what.startswith("sink "))
        if self._closed:
            return lambda: None
        if self._current is not None:
            self._attach(self._current, feed)
        else:
            self._unattached[feed] = None
            self._reconnect()

        def close() -> None:
            if feed.closed:
                return
            feed.closed = True
            self._unattached.pop(feed, None)
            connection = self._current
            if connection is not None and feed in connection.feeds:
                self._network.send(connection.up, self._detach, connection, feed)

        return close

    def _detach(self, connection: Connection, feed: FeedEnd) -> None:
        connection.feeds.pop(feed, None)
        detach, feed.detach = feed.detach, None
        if detach is not None:
            detach()
            self._network.on_request(self.link.name, f"end of {feed.what}", None)

    def _attach(self, connection: Connection, feed: FeedEnd) -> None:
        network, link = self._network, self.link
        connection.feeds[feed] = None

        def push(message: Any) -> None:
            if connection.fenced:
                return
            network.send(connection.down, feed.arrive, message)
            if feed.doubles and network.strikes(link.double):
                network.on_fault("doubled", link.name, feed.what)
                network.send(connection.down, feed.arrive, message)

        def run() -> None:
            detach = feed.attach(network.server, push)
            network.on_request(link.name, feed.what, None)
            if connection.fenced:
                detach()
            else:
                feed.detach = detach

        network.send(connection.up, run)

    # --- the end ----------------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """See `corepool_memory.transport.Transport.settle`.

        The request travels behind all earlier ones of the current connection, and has the server fence all earlier
        connections: when its answer is here, nothing of before can be applied any more.
        """

        def fence(_server: Server) -> None:
            for connection in self._old:
                self._network.fence(connection)

        await self.call("settle", fence, write=False)

    async def aclose(self) -> None:
        """See `corepool_memory.transport.Transport.aclose`."""
        if self._closed:
            return
        self._closed = True
        self._network.forget(self)
        connection, self._current = self._current, None
        if connection is not None:
            for feed in connection.feeds:
                feed.closed = True
            for call in connection.calls:
                self._fail(call, "this backend was closed")
            connection.calls.clear()
            connection.broken = True
            self._network.send(connection.up, self._network.fence, connection)
            self._network.server_learns(connection)  # in case that the news is held up by a partition
        for feed in self._unattached:
            feed.closed = True
        self._unattached.clear()
        for future in self._waiting:
            if not future.done():
                future.set_exception(BackendUnavailable("this backend was closed; nothing was sent"))
