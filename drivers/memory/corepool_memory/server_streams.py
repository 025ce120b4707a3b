"""The streams of one namespace, as the server holds them.

Purpose: the meaning of :mod:`corepool.driver.streams` in pure, synchronous code: no task, no waiting.
Invariants:

- one event counter serves all streams of the namespace and never goes back, not even when acknowledged writes are lost: ids
  increase across destroy and re-creation (S1), and no reader's position can ever lie in the future;
- timestamps never go back either, so the first event of `Since` divides the stream;
- only a log drops what nobody acked (S4); a work stream drops an event when every sink it has is done with it;
- a stream that does not exist may still be listened to: readers and members wait here for its next life, and make nothing.

Neighbours: `Server` owns one `StreamSpace` per namespace; :mod:`~corepool_memory.server_sinks` holds the sinks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import attrs

from corepool.driver import (
    After,
    Delivery,
    Event,
    Newest,
    NewEvent,
    Oldest,
    Refusal,
    Since,
    Start,
    StreamConfig,
    StreamKind,
)
from corepool.errors import InvalidOptionError, StreamFull, StreamSealed
from corepool_memory.server_sinks import Receipts, SavedSink, Sink, Timing
from corepool_memory.transport import Detach, Push

__all__ = ["Batch", "EventLog", "SavedStreams", "StreamSpace", "StreamState"]


@attrs.frozen(slots=True)
class Batch:
    """A message to a reader: events, and the position after them (None: not known before the first event)."""

    position: str | None
    events: tuple[Event, ...]


class EventLog:
    """Events by id, in order. Removing from anywhere is cheap; looking up what follows an id is a binary search."""

    __slots__ = ("_head", "_order", "events")

    def __init__(self) -> None:
        self.events: dict[str, Event] = {}
        self._order: list[str] = []  # ids, those of removed events too until _tidy
        self._head = 0  # nothing before this index of _order is left

    def add(self, event: Event) -> None:
        self.events[event.id] = event
        self._order.append(event.id)

    def remove(self, event_id: str) -> bool:
        if self.events.pop(event_id, None) is None:
            return False
        order, head = self._order, self._head
        while head < len(order) and order[head] not in self.events:
            head += 1
        self._head = head
        if len(order) > 2 * len(self.events) + 64:
            self._order, self._head = list(self.events), 0
        return True

    def oldest(self) -> str:
        """The id of the oldest event. The log is not empty."""
        return self._order[self._head]

    def following(self, event_id: str) -> Event | None:
        """The first event after the id."""
        order = self._order
        if not order or order[-1] <= event_id:
            return None  # mostly: whoever asks has had them all
        for at in range(bisect_right(order, event_id, self._head), len(order)):
            event = self.events.get(order[at])
            if event is not None:
                return event
        return None

    def after(self, event_id: str, limit: int) -> list[Event]:
        """Up to ``limit`` events after the id."""
        order, found = self._order, list[Event]()
        at = bisect_right(order, event_id, self._head)
        while at < len(order) and len(found) < limit:
            event = self.events.get(order[at])
            if event is not None:
                found.append(event)
            at += 1
        return found

    def before(self, timestamp: float) -> str | None:
        """The id after which every event is at or after ``timestamp``; None if no event is."""
        ids = list(self.events)
        at = bisect_right(ids, False, key=lambda key: self.events[key].timestamp >= timestamp)
        if at == len(ids):
            return None
        return ids[at - 1] if at else ""


@attrs.define(slots=True, eq=False)
class _Reader:
    """A reader's feed. ``left``: how many more events it may be pushed; then it must attach again."""

    push: Push[Batch]
    not_before: float
    left: int


class StreamState:
    """One stream's name: the stream itself if it exists (``config`` is not None), and whoever listens to it."""

    __slots__ = ("config", "log", "name", "readers", "receipts", "sealed", "sinks")

    def __init__(self, name: str, receipts: Receipts) -> None:
        self.name = name
        self.receipts = receipts
        self.config: StreamConfig | None = None
        self.sealed = False
        self.log = EventLog()
        self.readers: tuple[_Reader, ...] = ()
        self.sinks: dict[str, Sink] = {}

    def refusal(self, *, added: int = 0) -> Refusal | None:
        """Why nothing can be appended now; ``added``: events that a batch has added (or removed) already."""
        config = self.config
        if config is None or self.sealed:
            return Refusal.MISSING
        if config.max_length is None or config.kind is StreamKind.LOG:
            return None
        return Refusal.FULL if len(self.log.events) + added >= config.max_length else None

    def add(self, event: Event) -> None:
        """Append an event that is not refused, and tell whoever waits."""
        self.log.add(event)
        config = self.config
        if config is not None and config.kind is StreamKind.LOG and config.max_length is not None:
            while len(self.log.events) > config.max_length:
                self.remove(self.log.oldest())
        for reader in self.readers:
            if event.timestamp >= reader.not_before:
                self._offer(reader, Batch(event.id, (event,)))
        for sink in self.sinks.values():
            sink.hand_out()

    def remove(self, event_id: str) -> bool:
        for sink in self.sinks.values():
            sink.drop(event_id)
        return self.log.remove(event_id)

    def done(self, event_id: str) -> None:
        """A sink is done with an event: a work stream that has no other sink in need of it drops it."""
        if self.frees(event_id):
            self.log.remove(event_id)

    def frees(self, event_id: str, also: set[str] | None = None) -> bool:
        """Whether a work stream drops the event once the receipts ``also`` are acked too."""
        config = self.config
        if config is None or config.kind is not StreamKind.WORK:
            return False
        return all(sink.is_done(event_id, also or ()) for sink in self.sinks.values())

    def attach_reader(self, start: Start, limit: int, last_id: str, push: Push[Batch]) -> Detach:
        position, not_before = _position(start, self.log, last_id)
        reader = _Reader(push, not_before, limit)
        self.readers = (*self.readers, reader)
        backlog = tuple(self.log.after(position, limit)) if not not_before else ()
        if backlog:
            position = backlog[-1].id
        self._offer(reader, Batch(None if not_before else position, backlog))
        return lambda: self._detach_reader(reader)

    def _offer(self, reader: _Reader, batch: Batch) -> None:
        reader.left -= len(batch.events)
        reader.push(batch)
        if reader.left <= 0:
            self._detach_reader(reader)

    def _detach_reader(self, reader: _Reader) -> None:
        self.readers = tuple(other for other in self.readers if other is not reader)

    def end(self) -> None:
        """Destroy the stream. A sink with members waits for the next life; one without is forgotten."""
        self.config, self.sealed, self.log = None, False, EventLog()
        for name, sink in list(self.sinks.items()):
            sink.reset()
            if not sink.members:
                del self.sinks[name]


def _position(start: Start, log: EventLog, last_id: str) -> tuple[str, float]:
    """The id after which to begin, and the timestamp before which fresh events are passed over (0: none are)."""
    match start:
        case Oldest():
            return "", 0.0
        case Newest():
            return last_id, 0.0
        case After(id=event_id):
            return event_id, 0.0
        case Since(timestamp=timestamp):
            before = log.before(timestamp)
            return (last_id, timestamp) if before is None else (before, 0.0)


@attrs.frozen(slots=True)
class _SavedStream:
    config: StreamConfig
    sealed: bool
    events: tuple[Event, ...]
    sinks: dict[str, SavedSink]


@attrs.frozen(slots=True)
class SavedStreams:
    """A checkpoint of a `StreamSpace`: the streams that exist. Counters are not in it: they never go back."""

    streams: dict[str, _SavedStream]


class StreamSpace:
    """The streams of one namespace."""

    __slots__ = ("_last_timestamp", "_streams", "_timing", "last_event", "receipts")

    def __init__(self, receipts: Receipts, timing: Timing) -> None:
        self.receipts = receipts
        self.last_event = 0
        self._last_timestamp = 0.0
        self._timing = timing
        self._streams: dict[str, StreamState] = {}

    # --- the stream ---------------------------------------------------------------------------------------------------

    def state(self, name: str) -> StreamState | None:
        """The stream, or whoever waits for it."""
        return self._streams.get(name)

    def create(self, name: str, config: StreamConfig) -> bool:
        state = self._listened(name)
        if state.config is not None:
            return False
        state.config = config
        return True

    def exists(self, name: str) -> bool:
        state = self._streams.get(name)
        return state is not None and state.config is not None

    def append(self, name: str, new: NewEvent, only_if_exists: bool = False) -> str | None:
        """Raises:
        StreamFull, StreamSealed
        """
        if not only_if_exists:
            self.create(name, StreamConfig())
        state = self._streams.get(name)
        refusal = Refusal.MISSING if state is None else state.refusal()
        if state is None or refusal is Refusal.MISSING:
            if only_if_exists:
                return None
            raise StreamSealed(f"stream {name!r} is sealed; it takes no more events")
        if refusal is Refusal.FULL:
            raise StreamFull(
                f"stream {name!r} holds {len(state.log.events)} events, as many as it may; wait until some are acked, "
                f"or create it with a larger max_length"
            )
        event = self.make_event(new, None)
        state.add(event)
        return event.id

    def make_event(self, new: NewEvent, stamp: int | None) -> Event:
        """Give an event its id and timestamp. The caller appends it before anything else happens."""
        self.last_event += 1
        self._last_timestamp = max(self._last_timestamp, self._timing.clock.wall())
        return Event(_event_id(self.last_event), self._last_timestamp, new.name, new.payload, new.topic, stamp)

    def seal(self, name: str) -> None:
        state = self._streams.get(name)
        if state is not None and state.config is not None:
            state.sealed = True

    def destroy(self, name: str) -> None:
        state = self._streams.get(name)
        if state is not None:
            state.end()
            self._forget_if_idle(state)

    def length(self, name: str) -> int:
        state = self._streams.get(name)
        return 0 if state is None else len(state.log.events)

    def remove(self, name: str, ids: Sequence[str]) -> int:
        state = self._streams.get(name)
        return 0 if state is None else sum(state.remove(event_id) for event_id in ids)

    def range(self, name: str, after: str, limit: int) -> list[Event]:
        state = self._streams.get(name)
        return [] if state is None else state.log.after(after, limit)

    def names(self) -> list[str]:
        """The streams that exist."""
        return [name for name, state in self._streams.items() if state.config is not None]

    def listener_count(self) -> int:
        """Readers and members, also of streams that do not exist."""
        return sum(
            len(state.readers) + sum(len(sink.members) for sink in state.sinks.values())
            for state in self._streams.values()
        )

    # --- listening ----------------------------------------------------------------------------------------------------

    def read(self, name: str, start: Start, limit: int, push: Push[Batch]) -> Detach:
        """Feed ``push`` with the events from ``start`` on, ``limit`` of them at most. The first batch comes at once, empty
        or not, and says where the reader stands."""
        state = self._listened(name)
        detach = state.attach_reader(start, limit, _event_id(self.last_event), push)

        def leave() -> None:
            detach()
            self._forget_if_idle(state)

        return leave

    def join(self, name: str, sink: str, start: Start, ack_wait: float) -> None:
        """Make the sink if the stream exists; check that the members agree on ``ack_wait``.

        Raises:
            InvalidOptionError: the sink has another ``ack_wait``.
        """
        state = self._streams.get(name)
        if state is None:
            return
        if state.config is not None:
            self._sink(state, sink, start, ack_wait)
        if sink in state.sinks and state.sinks[sink].ack_wait != ack_wait:
            raise InvalidOptionError(
                f"sink {sink!r} of stream {name!r} has ack_wait {state.sinks[sink].ack_wait:g} s, not {ack_wait:g} s; "
                f"all its members use the same"
            )

    def attach(
        self, name: str, sink: str, member: str, start: Start, ack_wait: float, push: Push[tuple[Delivery, ...]]
    ) -> Detach:
        """A member's feed; it gets what it asks for with :meth:`want`. Makes no stream: it waits for one."""
        state = self._listened(name)
        detach = self._sink(state, sink, start, ack_wait).attach(member, push)

        def leave() -> None:
            detach()
            if state.config is None and sink in state.sinks and not state.sinks[sink].members:
                del state.sinks[sink]
            self._forget_if_idle(state)

        return leave

    def want(self, name: str, sink: str, member: str, count: int) -> None:
        found = self._find_sink(name, sink)
        if found is not None:
            found.want(member, count)

    def ack(self, name: str, sink: str, receipts: Sequence[str]) -> list[bool]:
        found = self._find_sink(name, sink)
        return [found is not None and found.ack(receipt) for receipt in receipts]

    def nack(self, name: str, sink: str, receipt: str, delay: float) -> bool:
        found = self._find_sink(name, sink)
        return found is not None and found.nack(receipt, delay)

    def extend(self, name: str, sink: str, receipt: str) -> bool:
        found = self._find_sink(name, sink)
        return found is not None and found.extend(receipt)

    def ack_any(self, receipt: str) -> bool:
        """Acknowledge by the receipt alone, whichever sink of this namespace gave it."""
        sink = self.receipts.current.get(receipt, (None, ""))[0]
        return sink is not None and sink.ack(receipt)

    def _find_sink(self, name: str, sink: str) -> Sink | None:
        state = self._streams.get(name)
        return None if state is None else state.sinks.get(sink)

    def _sink(self, state: StreamState, name: str, start: Start, ack_wait: float) -> Sink:
        sink = state.sinks.get(name)
        if sink is None:
            cursor, not_before = _position(start, state.log, _event_id(self.last_event))
            sink = state.sinks[name] = Sink(state, name, ack_wait, cursor, not_before, self._timing)
        return sink

    def _listened(self, name: str) -> StreamState:
        state = self._streams.get(name)
        if state is None:
            state = self._streams[name] = StreamState(name, self.receipts)
        return state

    def _forget_if_idle(self, state: StreamState) -> None:
        if state.config is None and not state.readers and not state.sinks and self._streams.get(state.name) is state:
            del self._streams[state.name]

    # --- another event loop, and losing acknowledged writes -----------------------------------------------------------

    def rearm(self) -> None:
        """All timers anew: the server moved to another event loop."""
        for state in self._streams.values():
            for sink in state.sinks.values():
                sink.arm(anew=True)

    def save(self) -> SavedStreams:
        return SavedStreams(
            {
                name: _SavedStream(
                    state.config,
                    state.sealed,
                    tuple(state.log.events.values()),
                    {sink.name: sink.save() for sink in state.sinks.values()},
                )
                for name, state in self._streams.items()
                if state.config is not None
            }
        )

    def restore(self, saved: SavedStreams | None) -> None:
        """Go back to ``saved`` (None: to nothing). Readers and members stay; a sink that was lost starts anew."""
        for state in list(self._streams.values()):
            state.end()
            self._forget_if_idle(state)
        for name, stream in (saved or SavedStreams({})).streams.items():
            state = self._listened(name)
            state.config, state.sealed = stream.config, stream.sealed
            for event in stream.events:
                state.log.add(event)
            for sink_name, booked in stream.sinks.items():
                self._sink(state, sink_name, Oldest(), booked.ack_wait).restore(booked)
            for sink in state.sinks.values():
                sink.hand_out()


def _event_id(number: int) -> str:
    return f"{number:016d}"
