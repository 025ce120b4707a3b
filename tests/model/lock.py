"""The cleanup lock, and removals that name what they remove (R12).

Purpose: three cleaners and the inbox of one dead worker, under a name that may be used again afterwards. A lock is
taken ABSENT, or by compare-and-set on the revision of a lock that was observed to be stale; it is released, and the
inbox destroyed, by naming the revision or incarnation that was seen.
Invariants: at most one cleaner that is not asleep beyond its lock holds it; a cleaner that slept beyond its lock cannot
destroy what came after; a lock whose holder died is cleared by the next cleaner.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tests.model.explore import Model, Step

OLD, NEW = 1, 2
"""Incarnations of the inbox: the dead worker's, and what came after under the same name."""

ONE_CLEANER = "6. at most one cleaner holds a worker's lock"
AFTERWARDS = "6. what came after the dead is never destroyed"
NOTHING_LEFT = "11. nothing is left over"


class Cleaner(NamedTuple):
    at: str = "idle"
    asleep: bool = False
    overslept: bool = False
    """It was asleep for longer than its lock lasts since it took it."""
    lock: int = 0
    """The revision of the lock that it saw (before it holds one) or wrote."""


class Cleaning(NamedTuple):
    cleaners: tuple[Cleaner, ...]
    lock: int = 0
    """The revision of the lock's entry, 0 if there is none."""
    revision: int = 0
    inbox: int = OLD
    replaced: bool = False
    sleeps: int = 0
    crashes: int = 0
    errors: int = 0


class LockModel(Model[Cleaning]):
    name = "cleanup lock"

    def __init__(
        self, cleaners: int = 3, sleeps: int = 1, crashes: int = 1, errors: int = 1, off: Iterable[str] = ()
    ) -> None:
        super().__init__(off)
        self.start = Cleaning((Cleaner(),) * cleaners, sleeps=sleeps, crashes=crashes, errors=errors)

    def initial(self) -> Iterable[Cleaning]:
        yield self.start

    def steps(self, state: Cleaning) -> Iterator[Step[Cleaning]]:
        for index, me in enumerate(state.cleaners):
            yield from self._cleaner(state, index, me)
        if state.inbox == 0 and not state.replaced:
            yield Step("a new worker", "joins under the name", state._replace(inbox=NEW, replaced=True), True)

    def _cleaner(self, state: Cleaning, index: int, me: Cleaner) -> Iterator[Step[Cleaning]]:
        who = f"cleaner {index + 1}"

        def step(what: str, after: Cleaning = state, *, fault: bool = False, **changes: object) -> Step[Cleaning]:
            mine = me._replace(**changes)  # type: ignore[arg-type]
            cleaners = (*after.cleaners[:index], mine, *after.cleaners[index + 1 :])
            return Step(who, what, after._replace(cleaners=cleaners), fault)

        if me.asleep:
            yield step("wakes up", asleep=False)
            return
        if me.at == "crashed":
            return
        if me.at != "idle":
            if state.crashes:
                crashed = state._replace(crashes=state.crashes - 1)
                yield step("crashes", crashed, fault=True, **Cleaner("crashed", overslept=True, lock=me.lock)._asdict())
            if state.sleeps:
                asleep = state._replace(sleeps=state.sleeps - 1)
                yield step("falls asleep for longer than a lock lasts", asleep, fault=True, asleep=True, overslept=True)
        taken = state._replace(lock=state.revision + 1, revision=state.revision + 1)
        match me.at:
            case "idle":
                if state.lock == 0 and state.inbox == OLD:
                    yield step("sees no lock", at="create")
                elif state.lock and self._stale(state):
                    yield step(f"sees lock {state.lock} unchanged for too long", at="take over", lock=state.lock)
            case "create":
                if state.lock == 0:
                    yield step(
                        f"takes the lock ABSENT: {taken.lock}", taken, at="work", lock=taken.lock, overslept=False
                    )
                else:
                    yield step("takes the lock ABSENT: refused", **Cleaner()._asdict())
            case "take over" if "R12.takeover" in self.off:
                yield step("deletes the stale lock", state._replace(lock=0), at="create", lock=0)
            case "take over":
                if state.lock == me.lock:
                    text = f"takes lock {me.lock} over by its revision: {taken.lock}"
                    yield step(text, taken, at="work", lock=taken.lock, overslept=False)
                else:
                    yield step("takes the stale lock over: refused", **Cleaner()._asdict())
            case "work":
                if state.errors:
                    yield step(
                        "gives up after errors", state._replace(errors=state.errors - 1), fault=True, at="release"
                    )
                named = state.inbox == OLD or "R12" in self.off
                done = state._replace(inbox=0) if named else state
                what = "destroys the inbox" if named else "destroys the inbox: it is another one by now"
                yield step(what, done, at="release")
            case "release":
                mine = state.lock == me.lock or "R12.release" in self.off
                yield step("releases its lock", state._replace(lock=0) if mine else state, **Cleaner()._asdict())

    @staticmethod
    def _stale(state: Cleaning) -> bool:
        """Nobody who is awake holds this lock: only then does it stay unchanged for long enough."""
        holders = [cleaner for cleaner in state.cleaners if cleaner.lock == state.lock and cleaner.at != "take over"]
        return all(cleaner.asleep or cleaner.overslept or cleaner.at == "crashed" for cleaner in holders)

    def broken(self, state: Cleaning) -> str | None:
        if sum(cleaner.at == "work" and not cleaner.overslept for cleaner in state.cleaners) > 1:
            return ONE_CLEANER
        if state.replaced and state.inbox != NEW:
            return AFTERWARDS
        return None

    def broken_at_rest(self, state: Cleaning) -> str | None:
        if all(cleaner.at == "crashed" for cleaner in state.cleaners):
            return None
        return NOTHING_LEFT if state.lock or state.inbox == OLD else None

    def landmarks(self, state: Cleaning) -> Iterable[str]:
        if any(cleaner.overslept and cleaner.at == "work" and not cleaner.asleep for cleaner in state.cleaners):
            yield "a cleaner awake beyond its lock"
        if sum(cleaner.at == "work" for cleaner in state.cleaners) > 1:
            yield "two at work, one of them overslept"
        if sum(cleaner.at == "take over" for cleaner in state.cleaners) > 1:
            yield "two see the same stale lock"
        if state.replaced:
            yield "a new worker under the old name"

    def show(self, state: Cleaning) -> str:
        inbox = {0: "no inbox", OLD: "inbox of the dead", NEW: "inbox of a new worker"}[state.inbox]
        holding = [f"cleaner {i + 1}: {c.at}" for i, c in enumerate(state.cleaners) if c.at not in ("idle",)]
        return f"lock {state.lock or 'none'} | {inbox} | {', '.join(holding) or 'nobody at work'}"
