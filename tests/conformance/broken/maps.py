"""Broken maps, watches and commits."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

import attrs
import msgspec

from corepool.driver import ABSENT, ALWAYS, Change, Commit, Entry, SetKey, Snapshot, When, encode_counter
from corepool.errors import BackendUnavailable
from tests.conformance.broken.base import Broken, Map, Namespace, Watch, caught_by


class LooseMap(Map):
    """Decides a condition by a read of its own, and writes later."""

    async def set(self, key: str, value: bytes, when: When = ALWAYS) -> Commit:
        held = await self.inner.get(key)
        if when.revision is not None and when.revision != (held.revision if held else 0):
            return Commit(False, held.revision if held else 0, held)
        await asyncio.sleep(0)
        written: Commit = await self.inner.set(key, value)
        return msgspec.structs.replace(written, previous=held)


@caught_by("maps::test_no_update_is_lost", "M2")
@caught_by("maps::test_one_of_many_wins", "M2")
@caught_by("histories::test_histories_are_linearizable", "M2")
class LostUpdate(Broken):
    map_class = LooseMap


class RaisingMap(Map):
    async def set(self, key: str, value: bytes, when: When = ALWAYS) -> Commit:
        commit: Commit = await self.inner.set(key, value, when)
        if not commit.applied:
            raise KeyError(key)
        return commit


@caught_by("maps::test_absent_condition", "M2", raises=KeyError)
class LostRaceIsAnException(Broken):
    map_class = RaisingMap


class CachingMap(Map):
    """Reads what this connection saw last."""

    async def get(self, key: str) -> Entry | None:
        cache = self.__dict__.setdefault("cache", {})
        if key not in cache:
            cache[key] = await self.inner.get(key)
        return cache[key]  # type: ignore[no-any-return]


@caught_by("maps::test_a_read_sees_what_was_acknowledged_elsewhere", "M2")
class StaleRead(Broken):
    map_class = CachingMap


class HalfClearMap(Map):
    async def clear(self, when: When = ALWAYS) -> Commit:
        last: Commit | None = None
        async for entry in self.inner.scan():
            last = await self.inner.delete(entry.key)
        cleared: Commit = last or await self.inner.clear(when)
        return msgspec.structs.replace(cleared, previous=None)


@caught_by("maps::test_nobody_reads_half_a_clear", "M2")
@caught_by("map_watch::test_no_joiner_sees_half_a_clear", "M2")
@caught_by("histories::test_histories_with_clears_are_linearizable", "M2")
class HalfAClear(Broken):
    map_class = HalfClearMap


class UnguardedDelete(Map):
    async def delete(self, key: str, when: When = ALWAYS) -> Commit:
        held = await self.inner.get(key)
        if when == ABSENT and held is not None:
            return Commit(False, held.revision, held)
        commit: Commit = await self.inner.delete(key)
        return commit


@caught_by("maps::test_delete_and_its_conditions", "M2")
@caught_by("maps::test_deletes_and_sets_race_on_one_revision", "M2")
class DeleteIgnoresRevisions(Broken):
    map_class = UnguardedDelete


class EmptyIsAbsent(Map):
    async def get(self, key: str) -> Entry | None:
        entry: Entry | None = await self.inner.get(key)
        return entry if entry and entry.value else None


@caught_by("maps::test_an_empty_value_is_a_value", "MAPS")
@caught_by("differential::test_the_same_answers_as_the_memory_driver", "MAPS")
class EmptyValueIsATombstone(Broken):
    map_class = EmptyIsAbsent


class GlobMap(Map):
    async def scan(self, prefix: str = "") -> AsyncIterator[Entry]:
        async for entry in self.inner.scan():
            if fnmatchcase(entry.key, prefix + "*"):
                yield entry


@caught_by("maps::test_scan_takes_prefixes_literally", "MAPS")
class PrefixIsAPattern(Broken):
    map_class = GlobMap


class FoldedMap(Map):
    async def set(self, key: str, value: bytes, when: When = ALWAYS) -> Commit:
        commit: Commit = await self.inner.set(key.casefold(), value, when)
        return commit


@caught_by("limits::test_any_text_is_a_key", "LIMITS")
class KeysMeet(Broken):
    map_class = FoldedMap


# --- watches ---------------------------------------------------------------------------------------------------------


class SwappingWatch(Watch):
    """Yields two changes in the wrong order now and then."""

    async def __anext__(self) -> Any:
        held: deque[Any] = self.__dict__.setdefault("held", deque())
        if held:
            return held.popleft()
        event = await anext(self.inner)
        if isinstance(event, Change) and event.revision % 5 == 0:
            try:
                held.append(event)
                return await asyncio.wait_for(anext(self.inner), 0.02)
            except TimeoutError:
                return held.popleft()
        return event


class SwappingMap(Map):
    watch_class = SwappingWatch


@caught_by("map_watch::test_every_replica_equals_the_map_at_each_revision", "M1")
@caught_by("map_watch::test_joining_while_others_write", "M1")
class WrongOrder(Broken):
    map_class = SwappingMap


class DroppingWatch(Watch):
    async def __anext__(self) -> Any:
        while True:
            event = await anext(self.inner)
            if not isinstance(event, Change) or event.revision % 7:
                return event


class DroppingMap(Map):
    watch_class = DroppingWatch


@caught_by("map_watch::test_every_replica_equals_the_map_at_each_revision", "M3")
class Gap(Broken):
    map_class = DroppingMap


class OneSnapshotWatch(Watch):
    """After a lost connection it goes on with what comes next."""

    async def __anext__(self) -> Any:
        while True:
            event = await anext(self.inner)
            if not isinstance(event, Snapshot) or not self.__dict__.get("begun"):
                self.__dict__["begun"] = True
                return event


class OneSnapshotMap(Map):
    watch_class = OneSnapshotWatch


@caught_by("map_watch::test_no_gap_after_a_lost_connection", "M3", patience=0.1)
class GapAfterReconnect(Broken):
    map_class = OneSnapshotMap


class QueuedWatch(Watch):
    """A task fills a short queue, and stops when nobody takes from it."""

    def __init__(self, inner: Any, broken: Broken) -> None:
        super().__init__(inner, broken)
        self.queue: asyncio.Queue[Any] = asyncio.Queue(10)
        self.revision = 0
        broken.shared.setdefault("watches", []).append(self)
        self.task = asyncio.ensure_future(self._fill())

    async def _fill(self) -> None:
        async for event in self.inner:
            await self.queue.put(event)
            self.revision = event.revision

    async def __anext__(self) -> Any:
        return await self.queue.get()

    async def aclose(self) -> None:
        self.broken.shared["watches"].remove(self)
        self.task.cancel()
        await self.inner.aclose()


class WaitingMap(Map):
    """A write returns when every watch has it."""

    watch_class = QueuedWatch

    async def apply(self, writes: Any) -> Any:
        commits = await self.inner.apply(writes)
        while any(watch.revision < commits[-1].revision for watch in self.broken.shared.get("watches", [])):
            await asyncio.sleep(0.001)
        return commits


@caught_by("map_watch::test_an_unread_watch_blocks_nobody", "M4", patience=0.1)
class BlockedByAnUnreadWatch(Broken):
    map_class = WaitingMap

    async def aclose(self) -> None:
        for task in asyncio.all_tasks():
            if "QueuedWatch._fill" in repr(task.get_coro()):
                task.cancel()
        await self.inner.aclose()


# --- outcome and cancellation ----------------------------------------------------------------------------------------


class CrossingMap(Map):
    """Replies come in order, and a cancelled call leaves its own to the next one."""

    async def get(self, key: str) -> Entry | None:
        replies: deque[asyncio.Future[Any]] = self.broken.__dict__.setdefault("replies", deque())
        replies.append(asyncio.ensure_future(self.inner.get(key)))
        await asyncio.sleep(0.001)  # cancelled here, nobody takes the reply
        return await replies.popleft()  # type: ignore[no-any-return]


@caught_by("cancellation::test_no_reply_is_given_to_another_call", "M6")
class CrossedReplies(Broken):
    map_class = CrossingMap


class StubbornMap(Map):
    async def set(self, key: str, value: bytes, when: When = ALWAYS) -> Commit:
        task = asyncio.ensure_future(self.inner.set(key, value, when))
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                continue
        commit: Commit = task.result()
        return commit


class StubbornWatch(Watch):
    async def __anext__(self) -> Any:
        while True:
            try:
                return await anext(self.inner)
            except asyncio.CancelledError:
                if self.__dict__.setdefault("swallowed", 0) > 2:
                    raise  # else the test could not end
                self.__dict__["swallowed"] += 1
            except StopAsyncIteration:
                return None  # the task that swallowed its cancellation is nobody's any more


class StubbornWatchMap(Map):
    watch_class = StubbornWatch


@caught_by("cancellation::test_cancellation_is_not_swallowed", "M6")
class SwallowedCancellation(Broken):
    map_class = StubbornWatchMap


class GhostMap(Map):
    """A cancelled write happens a little later, and `settle` does not know."""

    async def set(self, key: str, value: bytes, when: When = ALWAYS) -> Commit:
        try:
            await asyncio.sleep(0)
            commit: Commit = await self.inner.set(key, value, when)
        except asyncio.CancelledError:
            asyncio.get_running_loop().call_later(
                0.001, lambda: asyncio.ensure_future(self.inner.set(key, value, when))
            )
            raise
        return commit


@caught_by("histories::test_what_is_settled_never_happens_later", "M5")
class GhostWrite(Broken):
    map_class = GhostMap


class LyingMap(Map):
    """Says "not applied" when the connection goes away, whatever happened."""

    async def set(self, key: str, value: bytes, when: When = ALWAYS) -> Commit:
        try:
            commit: Commit = await self.inner.set(key, value, when)
        finally:
            if self.broken.__dict__.get("closing"):
                raise BackendUnavailable("closed")
        return commit


@caught_by("cancellation::test_close_while_calls_are_in_flight", "M5")
class AppliedButUnavailable(Broken):
    map_class = LyingMap

    async def aclose(self) -> None:
        self.__dict__["closing"] = True
        await asyncio.sleep(0.01)
        await self.inner.aclose()


# --- commits and capabilities ----------------------------------------------------------------------------------------


class PiecemealNamespace(Namespace):
    """Declares atomic commits, and applies one operation after another."""

    async def commit(self, ops: Sequence[Any]) -> Any:
        for index, op in enumerate(ops):
            result = await self.inner.commit([op])
            if result.stopped is not None:
                return (
                    await self.inner.commit(ops[: index + 1])
                    if index == 0
                    else msgspec.structs.replace(result, results=(*[None] * index, *result.results), stopped=index)
                )
        return result


@caught_by("commit::test_a_condition_that_does_not_hold_stops", "COMMIT")
class CommitIsNotAtomic(Broken):
    namespace_class = PiecemealNamespace


class DeafNamespace(Namespace):
    async def commit(self, ops: Sequence[Any]) -> Any:
        return await self.inner.commit(
            [msgspec.structs.replace(op, when=ALWAYS) if isinstance(op, SetKey) else op for op in ops]
        )


@caught_by("commit::test_one_commit_wins_and_rings_once", "M2")
@caught_by("differential::test_the_same_answers_as_the_memory_driver", "COMMIT")
class CommitIgnoresConditions(Broken):
    namespace_class = DeafNamespace


class SecretValueOps(Map):
    async def update(self, key: str, op: Any) -> Any:
        await self.inner.set(key, encode_counter(99))
        from corepool.errors import UnsupportedCapability

        raise UnsupportedCapability("no value_ops here")


@caught_by("capabilities::test_value_operations", "CAP")
class RefusesButChanges(Broken):
    map_class = SecretValueOps

    @property
    def capabilities(self) -> Any:
        return attrs.evolve(self.inner.capabilities, value_ops=False)


class LateRefusal(Map):
    async def set(self, key: str, value: bytes, when: When = ALWAYS) -> Commit:
        await self.inner.set("sent anyway", b"")
        commit: Commit = await self.inner.set(key, value, when)
        return commit


@caught_by("limits::test_what_is_too_long_or_no_text_is_refused", "LIMITS")
class SendsBeforeItChecks(Broken):
    map_class = LateRefusal
