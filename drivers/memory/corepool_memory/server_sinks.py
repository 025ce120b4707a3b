"""A sink (a consumer group), as the server holds it: who waits, what is out, what comes back when.

Purpose: S2 and S3 of :mod:`corepool.driver.streams` in pure, synchronous code.
Invariants:

- every event up to ``cursor`` is either done or in ``pending``; a pending one is out (it has a receipt and a due time),
  resting after a nack (a due time alone), or ready to be handed out again (neither, and its id is in ``_ready``);
- only the receipt of the latest delivery is valid; ``receipts`` knows no other (strict receipts);
- a member is nothing but a feed and its demand. What it was given is booked per event, so a member that is gone leaves
  nothing behind: its events come back when they are due, and nothing else was there;
- one timer per sink, armed for the earliest due time; a member gets at most what it asked for, then must ask again, so one
  that is gone without anybody's knowledge swallows one batch at most, for one ``ack_wait``.

Neighbours: `StreamState` owns the sinks, tells them of new, removed and destroyed events, and is told of done ones.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Protocol, TypeAlias

import attrs

from corepool.driver import Clock, Delivery, Event
from corepool_memory.transport import Push

if TYPE_CHECKING:
    from corepool_memory.server_streams import StreamState

__all__ = ["CallLater", "Cancellable", "Pending", "Receipts", "SavedSink", "Sink", "Timing"]

_SLACK = 1e-6
"""Seconds by which a timer may be early and still count: loops round, and a timer re-armed for less would spin."""


class Cancellable(Protocol):
    """What `CallLater` returns: `asyncio.TimerHandle` is one."""

    def cancel(self) -> None: ...


CallLater: TypeAlias = Callable[[float, Callable[[], None]], Cancellable]
"""Run a function once, after so many seconds, on the server."""


@attrs.define(slots=True, eq=False)
class Timing:
    """The server's clock and timers. ``call_later`` is replaced when the server moves to another event loop."""

    clock: Clock
    call_later: CallLater


@attrs.define(slots=True, eq=False)
class Receipts:
    """The receipts that are valid now, by what they stand for; numbers are never used again, also after a rollback."""

    prefix: str
    current: dict[str, tuple[Sink, str]] = attrs.field(factory=dict["str", "tuple[Sink, str]"])
    count: int = 0

    def issue(self, sink: Sink, event_id: str) -> str:
        self.count += 1
        receipt = f"{self.prefix}{self.count}"
        self.current[receipt] = (sink, event_id)
        return receipt


@attrs.define(slots=True, eq=False)
class Pending:
    """An event that was handed out at least once and is not done.

    attempts: how often it was handed out. receipt: of the delivery that is out now. due: when it comes back (monotonic
    seconds of the server), None once it is ready.
    """

    attempts: int = 0
    receipt: str | None = None
    due: float | None = None


@attrs.define(slots=True, eq=False)
class _Member:
    push: Push[tuple[Delivery, ...]]
    demand: int = 0


@attrs.frozen(slots=True)
class SavedSink:
    """A checkpoint of a sink: its position, and (attempts, receipt, due) by event."""

    ack_wait: float
    cursor: str
    not_before: float
    pending: dict[str, tuple[int, str | None, float | None]]


class Sink:
    """One sink of one stream. ``not_before``: fresh events with an older timestamp are passed over (`Since`)."""

    def __init__(
        self, stream: StreamState, name: str, ack_wait: float, cursor: str, not_before: float, timing: Timing
    ) -> None:
        self.name = name
        self.ack_wait = ack_wait
        self.cursor = cursor
        self.not_before = not_before
        self.pending: dict[str, Pending] = {}
        self.stream = stream
        self._receipts = stream.receipts
        self._timing = timing
        self._members: dict[str, _Member] = {}
        self._hungry: OrderedDict[str, _Member] = OrderedDict()
        self._ready: list[str] = []
        self._due: list[tuple[float, str]] = []
        self._timer: Cancellable | None = None
        self._timer_at = 0.0

    # --- members ------------------------------------------------------------------------------------------------------

    @property
    def members(self) -> list[str]:
        return list(self._members)

    def attach(self, name: str, push: Push[tuple[Delivery, ...]]) -> Callable[[], None]:
        """A member's feed. The name is used for this one feed: a client that reconnects comes under another, so that what
        its old connection still does cannot hit the new one."""
        self._members[name] = _Member(push)

        def detach() -> None:
            self._members.pop(name, None)
            self._hungry.pop(name, None)

        return detach

    def want(self, name: str, count: int) -> None:
        """The member waits for up to ``count`` deliveries, once; 0: it no longer waits."""
        member = self._members.get(name)
        if member is None:
            return
        member.demand = count
        if count > 0:
            self._hungry.setdefault(name, member)
            self.hand_out()
        else:
            self._hungry.pop(name, None)

    # --- handing out --------------------------------------------------------------------------------------------------

    def hand_out(self) -> None:
        """Give what there is to those that wait, longest wait first."""
        while self._hungry:
            name, member = next(iter(self._hungry.items()))
            batch = self._take(member.demand)
            if not batch:
                return
            del self._hungry[name]
            member.push(batch)

    def _take(self, limit: int) -> tuple[Delivery, ...]:
        taken: list[Delivery] = []
        due = 0.0
        while len(taken) < limit and (event := self._next_event()) is not None:
            due = due or self._timing.clock.monotonic() + self.ack_wait
            pending = self.pending.get(event.id)
            if pending is None:
                pending = self.pending[event.id] = Pending()
            pending.attempts += 1
            pending.receipt = self._receipts.issue(self, event.id)
            self._rest(event.id, pending, due)
            taken.append(Delivery(event, pending.receipt, pending.attempts))
        return tuple(taken)

    def _next_event(self) -> Event | None:
        while self._ready:  # what comes back goes before what is fresh, so that nothing is overtaken for ever
            event_id = heapq.heappop(self._ready)
            if event_id in self.pending:  # else it was removed meanwhile
                return self.stream.log.events[event_id]
        while (event := self.stream.log.following(self.cursor)) is not None:
            self.cursor = event.id
            if event.timestamp >= self.not_before:
                return event
        return None

    # --- taking back --------------------------------------------------------------------------------------------------

    def _current(self, receipt: str) -> tuple[str, Pending] | None:
        """The event and booking a receipt of this sink stands for, if it is still valid."""
        sink, event_id = self._receipts.current.get(receipt, (None, ""))
        return (event_id, self.pending[event_id]) if sink is self else None

    def ack(self, receipt: str) -> bool:
        current = self._current(receipt)
        if current is None:
            return False
        self.drop(current[0])
        self.stream.done(current[0])
        return True

    def nack(self, receipt: str, delay: float) -> bool:
        current = self._current(receipt)
        if current is None:
            return False
        event_id, pending = current
        self._void(pending)
        if delay > 0:
            self._rest(event_id, pending, self._timing.clock.monotonic() + delay)
        else:
            self._make_ready(event_id, pending)
            self.hand_out()
        return True

    def extend(self, receipt: str) -> bool:
        current = self._current(receipt)
        if current is None:
            return False
        self._rest(*current, self._timing.clock.monotonic() + self.ack_wait)
        return True

    def drop(self, event_id: str) -> None:
        """Forget an event: it is done, or no longer in the stream."""
        pending = self.pending.pop(event_id, None)
        if pending is not None:
            self._void(pending)
            if len(self._due) > 2 * len(self.pending) + 64:  # most entries are of acked events: they wait for nothing
                self._due = [(due, key) for due, key in self._due if self._is_due_at(key, due)]
                heapq.heapify(self._due)

    def is_done(self, event_id: str, also: Container[str] = ()) -> bool:
        """Whether this sink needs the event no more. ``also``: receipts to be counted as acked already."""
        if event_id > self.cursor:
            return False
        pending = self.pending.get(event_id)
        return pending is None or (pending.receipt is not None and pending.receipt in also)

    def reset(self) -> None:
        """The stream was destroyed: start at the oldest event of its next life, with the members that still listen."""
        for pending in self.pending.values():
            self._void(pending)
        self.pending.clear()
        self._ready.clear()
        self._due.clear()
        self.cursor, self.not_before = "", 0.0

    # --- time ---------------------------------------------------------------------------------------------------------

    def _rest(self, event_id: str, pending: Pending, due: float) -> None:
        pending.due = due
        heapq.heappush(self._due, (due, event_id))
        self.arm()

    def _is_due_at(self, event_id: str, due: float) -> bool:
        pending = self.pending.get(event_id)
        return pending is not None and pending.due == due

    def _void(self, pending: Pending) -> None:
        if pending.receipt is not None:
            self._receipts.current.pop(pending.receipt, None)
            pending.receipt = None

    def _make_ready(self, event_id: str, pending: Pending) -> None:
        pending.due = None
        heapq.heappush(self._ready, event_id)

    def arm(self, *, anew: bool = False) -> None:
        """Have a timer for the earliest due time. ``anew``: the old timer is void (another event loop)."""
        if self._timer is not None and (anew or (self._due and self._due[0][0] < self._timer_at)):
            self._timer.cancel()
            self._timer = None
        if self._timer is None and self._due:
            self._timer_at = self._due[0][0]
            delay = max(0.0, self._timer_at - self._timing.clock.monotonic())
            self._timer = self._timing.call_later(delay, self._wake)

    def _wake(self) -> None:
        self._timer = None
        now = self._timing.clock.monotonic() + _SLACK
        while self._due:
            due, event_id = self._due[0]
            pending = self.pending.get(event_id)
            if pending is not None and pending.due == due:
                if due > now:
                    break
                self._void(pending)
                self._make_ready(event_id, pending)
            heapq.heappop(self._due)
        self.arm()
        self.hand_out()

    # --- losing acknowledged writes -----------------------------------------------------------------------------------

    def save(self) -> SavedSink:
        booked = {key: (item.attempts, item.receipt, item.due) for key, item in self.pending.items()}
        return SavedSink(self.ack_wait, self.cursor, self.not_before, booked)

    def restore(self, saved: SavedSink) -> None:
        """Be as ``saved`` says, with the members of now. The caller hands out once the stream is restored."""
        self.reset()
        self.ack_wait, self.cursor, self.not_before = saved.ack_wait, saved.cursor, saved.not_before
        for event_id, (attempts, receipt, due) in saved.pending.items():
            self.pending[event_id] = pending = Pending(attempts, receipt)
            if receipt is not None:
                self._receipts.current[receipt] = (self, event_id)
            if due is None:
                self._make_ready(event_id, pending)
            else:
                self._rest(event_id, pending, due)
