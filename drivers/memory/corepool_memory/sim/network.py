"""The network between simulated machines and the store's server.

Purpose: carry messages over connections that are slow, break, and leave requests behind.
Invariants:

- A request runs on the server atomically, at one instant, at most once.
- One connection is two first-in first-out channels; different connections know no order. A machine's link (latency,
  partition, clog) is shared by its connections.
- A broken connection may leave requests on the wire that are applied **later**, after the client has come back on a
  new connection; they stop only when the server has learned that the old connection is gone (`Network.fence`).
- What a partition holds arrives in order once it is healed, unless its connection was fenced meanwhile.

Neighbours: the world owns it, `SimTransport` is a client's end. Messages are closures that the client side (``maps``,
``streams``) made to run against the `Server`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import attrs

from corepool_memory.sim.chooser import Chooser, Risk, Site
from corepool_memory.sim.faults import FaultPlan
from corepool_memory.sim.loop import SimFuture, SimHandle, SimLoop
from corepool_memory.sim.node import SimNode
from corepool_memory.transport import Detach

if TYPE_CHECKING:
    from corepool_memory.server import Server
    from corepool_memory.sim.transport import SimTransport

__all__ = ["RECONNECT_EVERY", "Call", "Connection", "FeedEnd", "Link", "Network"]

_LATENCIES = 16
"""Latencies a message can draw; 0 is the least."""

_SLOW_STEPS = 8
_LATE_STEPS = 5

RECONNECT_EVERY: Final = 0.25
"""Seconds between a client's attempts to connect."""


@attrs.define(slots=True, eq=False)
class Call:
    """A request that has no answer yet."""

    what: str
    write: bool
    future: SimFuture[Any]
    sent: float


@attrs.define(slots=True, eq=False)
class FeedEnd:
    """The client's end of a feed. ``doubles``: a message of it may be delivered twice; ``closed``: nobody listens."""

    what: str
    attach: Callable[[Server, Callable[[Any], None]], Callable[[], None]]
    receive: Callable[[Any], None]
    lost: Callable[[], None]
    doubles: bool
    closed: bool = False
    detach: Detach | None = None

    def arrive(self, message: Any) -> None:
        """A message has come."""
        if not self.closed:
            self.receive(message)


@attrs.define(slots=True, eq=False)
class _Channel:
    """One direction of a connection: first in, first out.

    latency: where its messages' latencies are drawn. context: of the code at its end. last: when the newest message arrives.
    held: what has arrived but is stopped by a partition.
    """

    connection: Connection
    link: Link
    up: bool
    latency: Site
    context: Context
    last: float = 0.0
    held: deque[Callable[[], None]] = attrs.field(factory=deque[Callable[[], None]])


class Connection:
    """One connection of a client.

    broken: the client no longer uses it. fenced: the server no longer takes anything from it.
    late_by: once broken, how much later than expected its requests arrive.
    """

    __slots__ = ("broken", "calls", "down", "feeds", "fenced", "late_by", "number", "transport", "up", "watchdog")

    def __init__(self, transport: SimTransport, number: int, server_context: Context) -> None:
        self.transport = transport
        self.number = number
        self.broken = False
        self.fenced = False
        self.late_by: float | None = None
        link = transport.link
        self.up = _Channel(self, link, True, link.up, server_context)
        self.down = _Channel(self, link, False, link.down, transport.node.context)
        self.calls: deque[Call] = deque()
        self.feeds: dict[FeedEnd, None] = {}
        self.watchdog = False


class Link:
    """The wire of one machine, whatever its incarnation."""

    def __init__(self, name: str, chooser: Chooser, plan: FaultPlan) -> None:
        self.name = name
        self.blocked = False
        self.blocks = 0
        self.clogged_until = 0.0
        self.holding: dict[_Channel, None] = {}
        self.up = chooser.site(f"net:{name}>")
        self.down = chooser.site(f"net:{name}<")
        self.slow_by = chooser.site(f"slow:{name}")
        self.slow = Risk(self.slow_by, plan.slow)
        self.request_lost = Risk(chooser.site(f"request-lost:{name}"), plan.request_loss)
        self.reply_lost = Risk(chooser.site(f"reply-lost:{name}"), plan.reply_loss)
        self.reset = Risk(chooser.site(f"reset:{name}"), plan.reset)
        self.reset_after = chooser.site(f"reset-after:{name}")
        self.power = Risk(chooser.site(f"power:{name}"), plan.crash_at_request)
        self.double = Risk(chooser.site(f"double:{name}"), plan.duplicate)
        self.late = chooser.site(f"late:{name}")
        self.notice = chooser.site(f"notice:{name}")


class Network:
    """All links and connections, and the server they lead to.

    on_request: told of each request the server has run: machine, operation, and the error it answered with.
    on_fault: told of each fault that happened: kind, machine, what it hit.
    cut_power: crashes a machine, when the plan says so; False: that may not be hit now.
    calm: no new faults; latency goes on. Then no decision about a fault is even asked for, so that a minimised run, in
        which decisions move, cannot have one either.
    """

    def __init__(self, loop: SimLoop, chooser: Chooser, plan: FaultPlan, server: Server) -> None:
        self.loop = loop
        self.plan = plan
        self.server = server
        self.on_request: Callable[[str, str, BaseException | None], None] = lambda name, what, error: None
        self.on_fault: Callable[[str, str, str], None] = lambda kind, name, what: None
        self.cut_power: Callable[[str], bool] = lambda name: False
        self.calm = False
        self.shut = False  # the run is over
        self.context = Context()
        self._chooser = chooser
        self._links: dict[str, Link] = {}
        self._transports: list[SimTransport] = []
        least, most = plan.faults.latency
        self._latencies = [least + (most - least) * (step / (_LATENCIES - 1)) ** 2 for step in range(_LATENCIES)]

    def add(self, transport: SimTransport) -> None:
        """A new client."""
        self._transports.append(transport)

    def link(self, name: str) -> Link:
        link = self._links.get(name)
        if link is None:
            link = self._links[name] = Link(name, self._chooser, self.plan)
        return link

    # --- what a test or a nemesis does ------------------------------------------------------------------------------

    def block(self, name: str) -> None:
        """Let nothing through, either way. What is on the wire, and what is sent, is held."""
        link = self.link(name)
        if link.blocked:
            return
        link.blocked = True
        link.blocks += 1
        for transport in self._on(link):
            transport.check_later(link.blocks)

    def unblock(self, name: str) -> None:
        """Let everything through again; what was held arrives now, in order."""
        link = self.link(name)
        if not link.blocked:
            return
        link.blocked = False
        channels, link.holding = link.holding, {}
        for channel in channels:
            self.loop.call_soon(self._flush, channel, context=channel.context)

    def clog(self, name: str, seconds: float) -> None:
        """Hold up everything that is sent within the next ``seconds`` until they are over."""
        link = self.link(name)
        link.clogged_until = max(link.clogged_until, self.loop.now + seconds)

    def reset(self, name: str) -> None:
        """Break all connections of a machine."""
        for transport in self._on(self.link(name)):
            transport.break_connection("reset")

    def machine_died(self, node: SimNode) -> None:
        """Its connections break without a word; the server learns of it in its own time."""
        for transport in self._transports:
            if transport.node is node:
                transport.abandon()
        self._transports = [transport for transport in self._transports if transport.node is not node]

    def forget(self, transport: SimTransport) -> None:
        """The client closed it."""
        self._transports = [other for other in self._transports if other is not transport]

    def _on(self, link: Link) -> list[SimTransport]:
        return [transport for transport in self._transports if transport.link is link]

    # --- messages ---------------------------------------------------------------------------------------------------

    def send(self, channel: _Channel, deliver: Callable[..., None], *message: Any) -> None:
        """Put a message on the wire: ``deliver(*message)`` is its arrival."""
        link, loop = channel.link, self.loop
        now, slow = loop.now, link.slow
        delay = self._latencies[channel.latency.choose(_LATENCIES)]
        if slow.left and not self.calm:  # what `strikes` does, without a call for each message
            slow.left -= 1
        elif self.strikes(slow):
            delay += self.plan.faults.slow_seconds * (1 + link.slow_by.choose(_SLOW_STEPS)) / _SLOW_STEPS
        if link.clogged_until > now:
            delay += link.clogged_until - now
        due = now + delay
        if due < channel.last:
            due = channel.last
        channel.last = due
        loop.set_timer(SimHandle(self._arrive, (channel, deliver, message), loop, channel.context, due), due)

    def strikes(self, risk: Risk) -> bool:
        """Whether a fault happens now."""
        if self.calm:
            return False
        if risk.left:
            risk.left -= 1
            return False
        return risk.strikes()

    def _arrive(self, channel: _Channel, deliver: Callable[..., None], message: tuple[Any, ...]) -> None:
        link = channel.link
        if link.blocked or channel.held:  # behind what is held, also while that is being let through
            channel.held.append(partial(deliver, *message))
            link.holding[channel] = None
        elif channel.connection.broken:
            self._hand_over(channel, partial(deliver, *message))
        else:
            deliver(*message)

    def _flush(self, channel: _Channel) -> None:
        link = channel.link
        while channel.held and not link.blocked:
            self._hand_over(channel, channel.held.popleft())
        if channel.held:
            link.holding[channel] = None

    def _hand_over(self, channel: _Channel, deliver: Callable[[], None]) -> None:
        connection = channel.connection
        if connection.fenced or (connection.broken and not channel.up):
            return
        if channel.up and connection.broken:
            self._hand_over_late(connection, deliver)
        else:
            deliver()

    def _hand_over_late(self, connection: Connection, deliver: Callable[[], None]) -> None:
        """The client has given this connection up, the server has not: its requests are applied some time or other."""
        link = connection.transport.link
        if connection.late_by is None:
            connection.late_by = float(link.late.choose(_LATE_STEPS))
            if connection.late_by:
                self.on_fault("late", link.name, f"what a broken connection still carries, by {connection.late_by:g} s")
        if connection.late_by == 0.0:
            deliver()
            return

        def much_later() -> None:
            if not connection.fenced:
                deliver()

        connection.up.last = max(self.loop.now + connection.late_by, connection.up.last)
        self.loop.at_true_time(connection.up.last, much_later, context=self.context)

    def server_learns(self, connection: Connection) -> None:
        """A connection broke without a word. The server finds out after a while, whatever the link does, and fences
        it."""
        if self.shut:
            return
        link = connection.transport.link
        seconds = self._latencies[-1] + 2.0 * link.notice.choose(_LATE_STEPS)
        due = max(self.loop.now + seconds, connection.up.last)
        self.loop.at_true_time(due, self.fence, connection, context=self.context)

    def fence(self, connection: Connection) -> None:
        """On the server: take nothing more from a connection, and end the server's half of its feeds.

        The feeds stay with the connection: their client has yet to be told that they are lost.
        """
        connection.fenced = True
        connection.broken = True
        for feed in connection.feeds:
            detach, feed.detach = feed.detach, None
            if detach is not None:
                detach()
