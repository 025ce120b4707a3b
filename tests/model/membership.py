"""Joining and leaving so that everything that exists can be listed (R11).

Purpose: one worker that joins and leaves, and cleaners that know only what ``workers`` lists. A record comes first
(JOINING), then inbox and keep-alive, then ACTIVE; when it leaves, or is cleaned, the record goes last.
Death is a compare-and-set (R7): a tombstone on the keep-alive, or, for a worker that has none yet or none any more,
DEAD in its record.
Invariants: at rest a worker that is not active has left nothing behind; a worker that was declared dead while it joined
does not become ACTIVE (its write names the revision of its JOINING record, and so does the removal by a worker that
leaves).
Limit: a joiner that sleeps through its own cleaning and then crashes at once, before it could undo what it made last.
One fault of each kind is too many here, and ``docs/model.md`` says so; each alone is covered.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tests.model.explore import Model, Step

NOTHING_LEFT = "11. nothing of a dead worker is left"
NOT_REVIVED = "6. a worker that was declared dead is never ACTIVE"

JOIN = ["record", "inbox", "keep-alive", "activate"]
LEAVE = ["leave: inbox", "leave: keep-alive", "leave: record"]


class Member(NamedTuple):
    record: str = ""
    inbox: bool = False
    keep_alive: str = ""
    """"", "alive" or "tombstone"."""
    at: str = "idle"
    up: str = "up"
    """up, asleep (for longer than its lease) or crashed."""
    cleaner: str = "idle"
    cleaned: bool = False
    """History, for the judge: a cleaner has removed its record."""
    crashes: int = 0
    sleeps: int = 0


class MembershipModel(Model[Member]):
    name = "membership"

    def __init__(self, crashes: int = 1, sleeps: int = 0, off: Iterable[str] = ()) -> None:
        super().__init__(off)
        self.start = Member(crashes=crashes, sleeps=sleeps)
        self.join = ["inbox", "keep-alive", "record", "activate"] if "R11.join" in self.off else JOIN
        self.leave = ["leave: record", "leave: inbox", "leave: keep-alive"] if "R11.leave" in self.off else LEAVE
        first_record = "R11.cleanup" in self.off
        self.clean = ["record", "keep-alive", "inbox"] if first_record else ["inbox", "keep-alive", "record"]

    def initial(self) -> Iterable[Member]:
        yield self.start

    def steps(self, state: Member) -> Iterator[Step[Member]]:
        if state.up == "asleep":
            yield Step("worker", "wakes up", state._replace(up="up"))
        elif state.up == "up":
            yield from self._worker(state)
        yield from self._cleaner(state)

    def _worker(self, state: Member) -> Iterator[Step[Member]]:
        at = state.at
        if at == "done":
            return
        if state.crashes and at != "idle":
            yield Step("worker", "crashes", state._replace(up="crashed", crashes=state.crashes - 1), True)
        if state.sleeps and at != "idle":
            yield Step(
                "worker",
                "is paused for longer than its lease",
                state._replace(up="asleep", sleeps=state.sleeps - 1),
                True,
            )
        order = [*self.join, "active"]
        following = order[order.index(at) + 1] if at in self.join else ""
        if at == "idle":
            yield Step("worker", "is added", state._replace(at=order[0]), True)
        elif at == "record":
            yield Step("worker", "writes its record: JOINING", state._replace(record="JOINING", at=following))
        elif at == "inbox":
            yield Step("worker", "makes its inbox", state._replace(inbox=True, at=following))
        elif at == "keep-alive":
            yield Step("worker", "writes its keep-alive", state._replace(keep_alive="alive", at=following))
        elif at == "activate" and (state.record == "JOINING" and state.keep_alive == "alive"):
            yield Step("worker", "is ACTIVE", state._replace(record="ACTIVE", at="active"))
        elif at == "activate":
            yield Step("worker", "JOINING -> ACTIVE: refused, undoes itself", state._replace(at="undo"))
        elif at == "undo":
            # Its own names, never used again: it may remove them whatever the cleaner does meanwhile.
            yield Step("worker", "destroys its inbox", state._replace(inbox=False, at="undo: keep-alive"))
        elif at == "undo: keep-alive":
            gone = state._replace(keep_alive="" if state.keep_alive == "alive" else state.keep_alive, at="done")
            yield Step("worker", "removes its keep-alive", gone)
        elif at == "active" and (state.keep_alive != "alive" or state.record != "ACTIVE"):
            yield Step("worker", "finds its tombstone, stops everything", state._replace(at="undo"))
        elif at == "active":
            yield Step("worker", "leaves", state._replace(at=self.leave[0]), True)
        elif at in self.leave:
            yield self._leave(state, at.removeprefix("leave: "))

    def _leave(self, state: Member, what: str) -> Step[Member]:
        order = [*self.leave, "done"]
        following = order[order.index(f"leave: {what}") + 1]
        if what == "inbox":
            return Step("worker", "destroys its inbox", state._replace(inbox=False, at=following))
        if what == "keep-alive" and state.keep_alive != "alive":
            return Step("worker", "finds its tombstone: leaves the rest to the cleaner", state._replace(at="done"))
        if what == "keep-alive":
            return Step("worker", "removes its keep-alive by its revision", state._replace(keep_alive="", at=following))
        if state.record == "DEAD":
            return Step("worker", "finds itself DEAD: leaves the rest to the cleaner", state._replace(at="done"))
        return Step("worker", "removes its record", state._replace(record="", at=following))

    def _cleaner(self, state: Member) -> Iterator[Step[Member]]:
        """It knows what ``workers`` lists. Silence is what a worker that is not up shows."""
        dead = state.keep_alive == "tombstone" or state.record == "DEAD"
        if state.cleaner == "idle":
            if state.record and dead:
                yield Step("cleaner", "begins", state._replace(cleaner=self.clean[0]))
            elif state.record and state.up != "up" and state.keep_alive == "alive":
                yield Step("observer", "silent too long: tombstone", state._replace(keep_alive="tombstone"))
            elif state.record and (state.up != "up" or state.at == "done"):
                what = f"no keep-alive for too long: {state.record} -> DEAD"
                yield Step("observer", what, state._replace(record="DEAD"))
            return
        if state.crashes:
            yield Step("cleaner", "crashes", state._replace(cleaner="idle", crashes=state.crashes - 1), True)
        order = [*self.clean, "idle"]
        following = order[order.index(state.cleaner) + 1]
        match state.cleaner:
            case "inbox":
                yield Step("cleaner", "destroys the inbox", state._replace(inbox=False, cleaner=following))
            case "keep-alive":
                kept = "alive" if state.keep_alive == "alive" else ""
                yield Step("cleaner", "removes the tombstone", state._replace(keep_alive=kept, cleaner=following))
            case _:
                yield Step("cleaner", "removes the record", state._replace(record="", cleaned=True, cleaner=following))

    def broken(self, state: Member) -> str | None:
        return NOT_REVIVED if state.cleaned and state.record == "ACTIVE" else None

    def broken_at_rest(self, state: Member) -> str | None:
        if state.at in ("idle", "active") and state.up == "up" and not state.cleaned:
            return None
        return NOTHING_LEFT if state.record or state.inbox or state.keep_alive else None

    def landmarks(self, state: Member) -> Iterable[str]:
        yield f"record {state.record or 'none'}"
        if state.cleaned and state.up == "up":
            yield "a worker that was cleaned wakes up"
        if state.cleaned and state.at in JOIN:
            yield "cleaned while it joined"
        if state.record == "DEAD":
            yield "dead without a keep-alive"

    def show(self, state: Member) -> str:
        inbox = "inbox" if state.inbox else "no inbox"
        worker = "" if state.up == "up" else f" | worker {state.up}"
        return f"record {state.record or 'none'} | {inbox} | keep-alive {state.keep_alive or 'none'}{worker}"
