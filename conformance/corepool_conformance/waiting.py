"""Readers that check what they read, and waits that end.

Purpose: what many contract tests need: a task that follows a watch and checks M1 and M3 on every event, a ledger of
acknowledged commits to compare replicas with, collectors for streams and sinks.
Invariants: nothing here waits without a deadline.
Neighbours: used by the tests in ``corepool_conformance.contract``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from corepool.driver import (
    Change,
    Cleared,
    Commit,
    Delivery,
    Event,
    MapStore,
    NewEvent,
    Reading,
    SinkStore,
    Snapshot,
    Watch,
    WatchEvent,
)
from corepool_conformance.kit import Kit, PromiseBroken

__all__ = ["Follower", "Ledger", "consume", "is_next_pending", "numbered", "payloads", "take"]


@attrs.frozen(slots=True)
class _Step:
    revision: int
    key: str | None
    value: bytes | None


class Ledger:
    """The acknowledged commits of one map, all of them: what a replica must look like at each revision.

    A clear that found the map empty may answer with the map's current revision: that of the delete that emptied it,
    whichever of the two answers comes first.
    """

    def __init__(self) -> None:
        self._steps: dict[int, _Step] = {}
        self._found_empty: set[int] = set()

    def note(self, key: str, value: bytes | None, commit: Commit) -> Commit:
        """A set, or a delete (None), of a key."""
        if commit.applied and not (value is None and commit.previous is None):
            self._add(_Step(commit.revision, key, value))
        return commit

    def note_clear(self, commit: Commit) -> Commit:
        """A clear."""
        if commit.applied:
            self._add(_Step(commit.revision, None, None))
        return commit

    async def set(self, store: MapStore, key: str, value: bytes) -> Commit:
        """Write and note."""
        return self.note(key, value, await store.set(key, value))

    async def delete(self, store: MapStore, key: str) -> Commit:
        """Remove and note."""
        return self.note(key, None, await store.delete(key))

    def _add(self, step: _Step) -> None:
        other = self._steps.setdefault(step.revision, step)
        if other is step or other.key is step.key is None:
            return
        if other.value is step.value is None and None in (other.key, step.key):
            # that the delete emptied the map can be told when all commits before it are known: by `check`
            self._steps[step.revision] = other if step.key is None else step
            self._found_empty.add(step.revision)
            return
        raise PromiseBroken("M1", f"two commits have revision {step.revision}: {other} and {step}")

    @property
    def revision(self) -> int:
        """The newest acknowledged commit."""
        return max(self._steps, default=0)

    def state(self, revision: int) -> dict[str, bytes]:
        """The map as of a revision."""
        state: dict[str, bytes] = {}
        for at in sorted(self._steps):
            if at > revision:
                break
            step = self._steps[at]
            if step.key is None:
                state.clear()
            elif step.value is None:
                state.pop(step.key, None)
            else:
                state[step.key] = step.value
        return state

    def check(self, events: Sequence[WatchEvent]) -> None:
        """The replica built from ``events`` equals the map at every revision it passed.

        Raises:
            PromiseBroken: it does not (M1 wrong order or content, M3 a gap).
        """
        for revision in sorted(self._found_empty):
            if left := self.state(revision):
                raise PromiseBroken(
                    "M1",
                    f"two commits have revision {revision}: a clear and {self._steps[revision]}, after which there was still "
                    f"{_short(left)}",
                )
        replica: dict[str, bytes] = {}
        known = 0
        for number, event in enumerate(events):
            before = dict(replica)
            _fold(replica, event)
            expected = self.state(event.revision)
            if replica == expected:
                known = event.revision
                continue
            missed = [step for at, step in sorted(self._steps.items()) if known < at < event.revision]
            gap = not isinstance(event, Snapshot) and bool(missed)
            raise PromiseBroken(
                "M3" if gap else "M1",
                f"event {number} is {event!r}\nthe replica before it: {_short(before)}\nafter it:              "
                f"{_short(replica)}\nthe map at {event.revision}:       {_short(expected)}"
                + (f"\ncommits the watch never yielded: {missed[:5]}" if gap else ""),
            )


def _fold(replica: dict[str, bytes], event: WatchEvent) -> None:
    match event:
        case Snapshot(entries=entries):
            replica.clear()
            replica.update({entry.key: entry.value for entry in entries})
        case Change(key=key, value=None):
            replica.pop(key, None)
        case Change(key=key, value=value):
            assert value is not None
            replica[key] = value
        case Cleared():
            replica.clear()


def _short(state: dict[str, bytes], most: int = 8) -> str:
    shown = ", ".join(f"{key!r}: {value[:16]!r}" for key, value in sorted(state.items())[:most])
    return "{" + shown + (f", … {len(state)} keys" if len(state) > most else "") + "}"


class Follower:
    """A task that reads a watch, checks that it never goes back, and keeps a replica."""

    def __init__(self, kit: Kit, watch: Watch) -> None:
        self._kit = kit
        self._watch = watch
        self._progress = asyncio.Event()
        self._broken: BaseException | None = None
        self.events: list[WatchEvent] = []
        self.replica: dict[str, bytes] = {}
        self.revision = -1
        self.ended = False
        self.task = kit.spawn(self._follow())

    @classmethod
    async def start(cls, kit: Kit, store: MapStore) -> Follower:
        """Follow a new watch, once its first snapshot is there."""
        follower = cls(kit, store.watch())
        await follower.until(lambda: bool(follower.events), "the first snapshot of a watch")
        return follower

    async def _follow(self) -> None:
        try:
            async for event in self._watch:
                self._check(event)
                self.events.append(event)
                _fold(self.replica, event)
                self.revision = event.revision
                self._progress.set()
            self.ended = True
        except Exception as error:  # noqa: BLE001  raised again, in the test's own task, by `until`
            self._broken = error
        finally:
            self._progress.set()

    def _check(self, event: WatchEvent) -> None:
        if not self.events:
            if not isinstance(event, Snapshot):
                raise PromiseBroken("M3", f"a watch begins with a Snapshot, not with {event!r}")
            return
        generation = max(seen.generation for seen in self.events if isinstance(seen, Snapshot))
        if isinstance(event, Snapshot):
            if event.generation < generation or (event.generation == generation and event.revision < self.revision):
                raise PromiseBroken("M3", f"the watch went back from revision {self.revision} to {event!r}")
        elif event.revision <= self.revision:
            raise PromiseBroken("M1", f"after revision {self.revision} the watch yielded {event!r}")

    async def until(self, condition: Callable[[], bool], what: str, within: float = 10.0) -> None:
        """Wait until the follower's state satisfies the condition."""

        async def wait() -> None:
            while not condition():
                if self._broken is not None:
                    raise self._broken
                if self.ended:
                    raise PromiseBroken("M3", f"the watch ended while waiting for {what}")
                self._progress.clear()
                await self._progress.wait()

        await self._kit.within(within, wait(), what, "M3")

    async def reached(self, revision: int, within: float = 10.0) -> None:
        """Wait until the watch is at or past ``revision``."""
        await self.until(lambda: self.revision >= revision, f"a watch to reach revision {revision}", within)

    async def aclose(self) -> None:
        """Close the watch; the task then ends by itself."""
        await self._kit.within(5, self._watch.aclose(), "closing a watch", "CLOSE")
        await self._kit.within(5, asyncio.wait([self.task]), "the iteration of a closed watch", "CLOSE")
        if self._broken is not None:
            raise self._broken


# --- streams ---------------------------------------------------------------------------------------------------------


def numbered(count: int, prefix: str = "e") -> list[NewEvent]:
    """Events with distinguishable payloads."""
    return [NewEvent("event", f"{prefix}{number}".encode()) for number in range(count)]


def payloads(events: Sequence[Event] | Sequence[Delivery]) -> list[str]:
    """The payloads, as text."""
    return [(item.event if isinstance(item, Delivery) else item).payload.decode() for item in events]


async def take(kit: Kit, reading: Reading, count: int, within: float = 10.0) -> list[Event]:
    """The next ``count`` events of a reading."""
    got: list[Event] = []

    async def read() -> None:
        while len(got) < count:
            got.append(await anext(reading))

    await kit.within(within, read(), f"reading {count} events", "M3")
    return got


async def consume(
    kit: Kit,
    sink: SinkStore,
    count: int,
    *,
    within: float = 10.0,
    ack: bool = True,
    batch: int = 10,
    promise: str = "S2",
) -> list[Delivery]:
    """The next ``count`` deliveries of a sink, acked unless told otherwise.

    Raises:
        PromiseBroken: they did not come in time.
    """
    got: list[Delivery] = []

    async def receive() -> None:
        while len(got) < count:
            batch_now = await sink.receive(min(batch, count - len(got)))
            if ack:
                await sink.ack([delivery.receipt for delivery in batch_now])
            got.extend(batch_now)

    try:
        await kit.within(within, receive(), f"receiving {count} events", promise)
    except PromiseBroken as broken:
        raise PromiseBroken(promise, f"{count} events were to come, and these came: {payloads(got)}") from broken
    return got


async def is_next_pending(kit: Kit, task: asyncio.Task[Any], seconds: float) -> bool:
    """Whether a task is still waiting after ``seconds``."""
    done, _ = await asyncio.wait([task], timeout=seconds)
    return not done
