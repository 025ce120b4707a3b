"""A map's local copy: a synchronous state machine that watch events drive.

Purpose: keep the copy, resolve those who wait for a revision, and tell the subscribers. It awaits nothing, so every event is
applied in one step, and nobody sees half of one.
Invariants:

- The pair (generation, revision) only grows. Within a generation an event at or below the revision changes nothing.
- A larger generation means that the store went back (it lost acknowledged writes). Revisions of different generations are
  not comparable, so all who wait for a revision of an older one get `OutcomeUnknown`: their write may be lost; look again.
- A value that cannot be decoded is set aside and counted. It stops neither the feed nor the values behind it.
- Each waiter has a future of its own, and a cancelled wait leaves nothing behind.

Neighbours: fed by the map's feed task with the events of :class:`corepool.driver.Watch`; read by `ReplicatedMap`.
"""

from __future__ import annotations

import asyncio
import bisect
import logging
from typing import Generic, TypeVar

from corepool.driver import Change, Cleared, Entry, Snapshot, WatchEvent, decode_list
from corepool.errors import BackendUnavailable, CorepoolError, OutcomeUnknown, WireError
from corepool.rmap.codecs import Codec
from corepool.rmap.subscriptions import Changes, MapChange, MapCleared, MapEvent, MapSnapshot, Subscription

__all__ = ["Replica"]

T = TypeVar("T")
L = TypeVar("L")
logger = logging.getLogger("corepool.rmap")


class Replica(Generic[T]):
    """The copy. ``values`` holds what could be decoded, ``raw`` every entry as the store has it."""

    def __init__(self, name: str, codec: Codec[T]) -> None:
        self._name = name
        self._codec = codec
        self.values: dict[str, T] = {}
        self.raw: dict[str, Entry] = {}
        self.revision = 0
        self.generation = 0
        self.undecodable = 0
        self.loaded = False
        self.ended = False
        self._watch_generation: int | None = None
        # (revision, ticket, future), sorted: revisions mostly grow, so inserting is appending and resolving cuts a prefix.
        self._waiters: list[tuple[int, int, asyncio.Future[None]]] = []
        self._tickets = 0
        self._subscriptions: list[Subscription] = []
        self._changes: list[Changes[T]] = []

    # --- the feed ----------------------------------------------------------------------------------------------------

    def begin_watch(self) -> None:
        """A new watch starts: its generations count from its own first snapshot."""
        self._watch_generation = None

    def apply(self, event: WatchEvent) -> None:
        """Take one event in, resolve waiters, tell subscribers.

        Raises:
            WireError: a watch began with something else than a snapshot. Nothing was changed.
        """
        if self._watch_generation is None and not isinstance(event, Snapshot):
            raise WireError(f"the watch of map {self._name!r} began without a snapshot: {type(event).__name__}")
        match event:
            case Snapshot():
                self._apply_snapshot(event)
            case Change():
                if event.revision > self.revision:
                    self.revision = event.revision
                    value = self._apply_change(event)
                    self._moved(MapChange(event.revision, event.key, value))
            case Cleared():
                if event.revision > self.revision:
                    self.revision = event.revision
                    self.values.clear()
                    self.raw.clear()
                    self._moved(MapCleared(event.revision))

    def _apply_snapshot(self, event: Snapshot) -> None:
        first_of_watch = self._watch_generation is None
        if self._watch_generation is None:
            # A watch after the first one cannot say whether the store went back in between; an older revision can.
            went_back = event.revision < self.revision
        else:
            went_back = event.generation > self._watch_generation
        self._watch_generation = event.generation
        if went_back:
            self.generation += 1
        elif event.revision < self.revision:
            return  # older than what is here: the changes that follow it are skipped up to our revision
        news = went_back or event.revision > self.revision or not self.loaded
        before, values = self.raw, self.values
        self.raw = {entry.key: entry for entry in event.entries}
        self.values = {}
        for key, entry in self.raw.items():
            if before.get(key) == entry:
                if key in values:
                    self.values[key] = values[key]
            else:
                self._decode_into(key, entry.value)
        self.revision = event.revision
        self.loaded = True
        if went_back:
            logger.warning(
                "map %s: the store went back to revision %d (generation %d): acknowledged writes may be lost",
                self._name,
                event.revision,
                self.generation,
                extra={"corepool_map": self._name, "first_of_watch": first_of_watch},
            )
            self._fail_waiters(
                OutcomeUnknown(
                    f"the store of map {self._name!r} went back to revision {event.revision} and may have lost the write "
                    f"that was waited for; read the key again before writing"
                )
            )
        if news:
            self._moved(self.snapshot())

    def _apply_change(self, event: Change) -> T | None:
        if event.value is None:
            self.raw.pop(event.key, None)
            self.values.pop(event.key, None)
            return None
        self.raw[event.key] = Entry(event.key, event.value, event.revision)
        self._decode_into(event.key, event.value)
        return self.values.get(event.key)

    def _decode_into(self, key: str, data: bytes) -> None:
        try:
            self.values[key] = self._codec.decode(data)
        except Exception as error:  # noqa: BLE001  a codec of the user's may raise anything; the feed outlives it
            self.values.pop(key, None)
            if not self._is_list(data):
                self.undecodable += 1
                logger.warning(
                    "map %s: the value of %r cannot be decoded and is set aside: %s",
                    self._name,
                    key,
                    error,
                    extra={"corepool_map": self._name, "undecodable": self.undecodable},
                )

    def _is_list(self, data: bytes) -> bool:
        """Whether it is a list that ``append_values`` made: such values are read by ``get_list``, whatever the codec."""
        try:
            for element in decode_list(data):
                self._codec.decode(element)
        except Exception:  # noqa: BLE001  as above: whatever the codec raises means no
            return False
        return True

    def _moved(self, event: MapEvent[T]) -> None:
        done = bisect.bisect_right(self._waiters, self.revision, key=lambda waiter: waiter[0])
        for _, _, future in self._waiters[:done]:
            if not future.done():
                future.set_result(None)
        del self._waiters[:done]
        for subscription in self._subscriptions:
            subscription.notify()
        for changes in self._changes:
            changes.push(event)

    def end(self, error: CorepoolError) -> None:
        """The feed is over: freeze, end the subscriptions, fail the waiters. Idempotent."""
        self.ended = True
        self._fail_waiters(error)
        for subscription in self._subscriptions:
            subscription.end()
        for changes in self._changes:
            changes.end()
        self._subscriptions.clear()
        self._changes.clear()

    def _fail_waiters(self, error: CorepoolError) -> None:
        waiters, self._waiters = self._waiters, []
        for _, _, future in waiters:
            if not future.done():
                future.set_exception(type(error)(*error.args))  # one instance each: a traceback belongs to one task

    # --- those who wait or listen -------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """How many wait for a revision."""
        return len(self._waiters)

    async def wait(self, revision: int, generation: int) -> None:
        """Until the copy has reached ``revision``, as counted in ``generation``.

        Raises:
            OutcomeUnknown: the store went back since; the revision means nothing any more.
            BackendUnavailable: the feed ended before it came so far.
        """
        if generation != self.generation:
            raise OutcomeUnknown(
                f"the store of map {self._name!r} went back (generation {generation} is now {self.generation}) and may have "
                f"lost revision {revision}; read the key again before writing"
            )
        if self.revision >= revision:
            return
        if self.ended:
            raise BackendUnavailable(
                f"map {self._name!r} is closed at revision {self.revision} and will not reach {revision}; join it again"
            )
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tickets += 1
        waiter = (revision, self._tickets, future)
        bisect.insort(self._waiters, waiter, key=lambda waiter: waiter[:2])
        try:
            await future
        finally:
            # After a cancellation the waiter is still in the list; after a result or an error it is not.
            at = bisect.bisect_left(self._waiters, waiter[:2], key=lambda waiter: waiter[:2])
            if at < len(self._waiters) and self._waiters[at] is waiter:
                del self._waiters[at]

    def snapshot(self) -> MapSnapshot[T]:
        """What the copy holds now; later changes do not touch it."""
        return MapSnapshot(self.revision, self.generation, dict(self.values))

    def subscribe(self) -> Subscription:
        """A new subscription; ended at once if the feed is over."""
        subscription = Subscription(lambda it: self._forget(self._subscriptions, it))
        if self.ended:
            subscription.end()
        else:
            self._subscriptions.append(subscription)
        return subscription

    def changes(self, limit: int) -> Changes[T]:
        """A new listing of changes; only the snapshot if the feed is over."""
        changes: Changes[T] = Changes(limit, self.snapshot, lambda it: self._forget(self._changes, it))
        if self.ended:
            changes.end()
        else:
            self._changes.append(changes)
        return changes

    @staticmethod
    def _forget(listeners: list[L], listener: L) -> None:
        if listener in listeners:
            listeners.remove(listener)
