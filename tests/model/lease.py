"""Leases without trusting clocks: renewal, silence, tombstone, fence (R7, R8, and R10 after an outage).

Purpose: one worker A with a job, one observer that may declare it dead and give its job to B. Time is counted in poll
periods; a worker renews, and the observer polls, once per period. ``worker_ttl`` is 4 periods, so the fence falls due
after 3 (0.75 x ttl).
Invariants: no step reads a clock of another actor. The observer counts from when it *saw* a change, the worker from
when it *sent* the renewal that was confirmed. A period passes only when every actor that is able to has done what is
due: that is what makes "a worker that is not paused fences itself in time" true, and the model's only assumption about
time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tests.model.explore import Model, Step

TTL = 4
FENCE = 3
HORIZON = 13

ONE_OWNER = "1. at most one live owner"
ONLY_STALE = "6. only a stale or departed worker is ever cleaned"
HEALTHY = "6. a healthy worker is not given up"


class Request(NamedTuple):
    """A renewal on its way to the store, or its reply on the way back."""

    sent: int
    expected: int
    applied: bool = False
    refused: bool = False


class Lease(NamedTuple):
    now: int = 0
    entry: int = 1
    """The keep-alive's revision. A renewal writes the next one."""
    tombstone: bool = False
    # worker A
    up: bool = True
    reachable: bool = True
    known: int = 1
    """The revision that A believes to be its own last."""
    confirmed: int = 0
    """When A sent its last confirmed renewal (with "R8.sent" off: when the reply came)."""
    request: Request | None = None
    lost_reply: bool = False
    """An earlier renewal of A may have been applied: its nonce may stand in the store."""
    renewed_at: int = 0
    running: bool = True
    zombie: bool = False
    given_up: bool = False
    own_fault: bool = False
    """A itself was paused, cut off or slow at some time: then its death is no surprise."""
    # the observer
    seen: int = 1
    seen_at: int = 0
    polled_at: int = 0
    suspects: bool = False
    taken: bool = False
    """A's job was given to B, which runs it."""
    # what may still happen
    pauses: int = 0
    cuts: int = 0
    slow: int = 0
    lost: int = 0
    outages: int = 0
    outage: bool = False
    """The store cannot be reached by anybody."""


class Faults(NamedTuple):
    """How many of each fault may happen in one history; slow: periods that messages may be under way."""

    pauses: int = 0
    cuts: int = 0
    slow: int = 0
    lost: int = 0
    outages: int = 0


class LeaseModel(Model[Lease]):
    name = "lease"

    def __init__(self, faults: Faults, off: Iterable[str] = ()) -> None:
        super().__init__(off)
        self.faults = faults

    def initial(self) -> Iterable[Lease]:
        yield Lease(**self.faults._asdict())

    def steps(self, state: Lease) -> Iterator[Step[Lease]]:
        yield from self._faults(state)
        if state.up and not state.given_up:
            yield from self._worker(state)
        if state.request is not None:
            yield from self._network(state, state.request)
        yield from self._observer(state)
        if state.now < HORIZON and not self._due(state):
            yield Step("time", "a period passes", self._pass(state))

    # --- time and faults ---

    def _due(self, state: Lease) -> bool:
        """Somebody who is able to act has not done yet what this period asks for."""
        able = state.up and not state.given_up
        fence = able and state.running and state.now - state.confirmed >= FENCE and "R8" not in self.off
        renew = able and state.reachable and not state.outage and state.request is None and state.renewed_at < state.now
        poll = not state.outage and not state.taken and (state.polled_at < state.now or state.suspects)
        stuck = state.request is not None and state.reachable and not state.outage and not state.slow and state.up
        return fence or renew or poll or stuck

    def _pass(self, state: Lease) -> Lease:
        slow = state.request is not None and state.reachable and not state.outage
        spent = state._replace(slow=max(0, state.slow - 1), own_fault=True) if slow else state
        return spent._replace(now=state.now + 1)

    def _faults(self, state: Lease) -> Iterator[Step[Lease]]:
        if state.up and state.pauses:
            paused = state._replace(up=False, zombie=state.running, pauses=state.pauses - 1, own_fault=True)
            yield Step("worker A", "is paused", paused, True)
        if not state.up:
            yield Step("worker A", "wakes up", state._replace(up=True))
        if state.reachable and state.cuts:
            cut = state._replace(reachable=False, cuts=state.cuts - 1, own_fault=True)
            yield Step("worker A", "is cut off from the store", cut, True)
        if not state.reachable:
            yield Step("worker A", "can reach the store again", state._replace(reachable=True), True)
        if not state.outage and state.outages:
            yield Step(
                "store", "cannot be reached by anybody", state._replace(outage=True, outages=state.outages - 1), True
            )
        if state.outage:
            yield Step("store", "can be reached again", state._replace(outage=False), True)

    # --- the worker ---

    def _worker(self, state: Lease) -> Iterator[Step[Lease]]:
        if state.running and state.now - state.confirmed >= FENCE and "R8" not in self.off:
            fenced = state._replace(running=False, zombie=False)
            yield Step("worker A", f"not confirmed for {state.now - state.confirmed} periods: fences itself", fenced)
        if state.request is None and state.renewed_at < state.now and state.reachable and not state.outage:
            sent = state._replace(request=Request(state.now, state.known), renewed_at=state.now)
            yield Step("worker A", f"sends a renewal at revision {state.known}", sent)

    def _network(self, state: Lease, request: Request) -> Iterator[Step[Lease]]:
        """A message that was sent may arrive even if its sender is paused by now; while cut off, nothing passes."""
        if state.outage or not state.reachable:
            lost = state._replace(request=None, lost_reply=state.lost_reply or request.applied)
            yield Step("worker A", "gives the renewal up: no reply", lost)
        elif not request.applied and not request.refused:
            allowed = not state.tombstone and state.entry == request.expected
            if allowed or "R7.renew" in self.off:
                applied = state._replace(entry=state.entry + 1, tombstone=False, request=request._replace(applied=True))
                yield Step("store", f"renewal applied: revision {state.entry + 1}", applied)
            else:
                yield Step("store", "renewal refused", state._replace(request=request._replace(refused=True)))
        elif state.up and not state.given_up:
            if state.lost:
                unsure = state.lost_reply or request.applied
                lost = state._replace(request=None, lost_reply=unsure, lost=state.lost - 1)
                yield Step("network", "the reply is lost", lost, True)
            yield self._reply(state, request)

    def _reply(self, state: Lease, request: Request) -> Step[Lease]:
        if request.applied:
            confirmed = request.sent if "R8.sent" not in self.off else state.now
            held = state._replace(request=None, known=state.entry, confirmed=confirmed, lost_reply=False)
            # R9: back from the fence, the worker claims again what is still its own.
            again = not state.taken and state.now - confirmed < FENCE
            return Step("worker A", "renewal confirmed", held._replace(running=state.running or again))
        if not state.tombstone and state.lost_reply and "R7.nonce" not in self.off:
            known = state._replace(request=None, known=state.entry, lost_reply=False)
            return Step("worker A", "refused, but the entry has a nonce of its own: goes on from there", known)
        gone = state._replace(request=None, running=False, zombie=False, given_up=True)
        return Step("worker A", "refused: it was declared dead, stops everything, gives its id up", gone)

    # --- the observer ---

    def _observer(self, state: Lease) -> Iterator[Step[Lease]]:
        if state.outage or state.taken:
            return
        if state.tombstone and not state.suspects:
            yield Step("cleaner", "gives A's job to B", state._replace(taken=True))
        elif state.suspects:
            calm = state._replace(suspects=False)
            if "R7" in self.off:
                yield Step("cleaner", "gives A's job to B", calm._replace(taken=True))
            elif state.entry == state.seen:
                yield Step("observer", f"tombstone at revision {state.seen}: applied", calm._replace(tombstone=True))
            else:
                yield Step("observer", f"tombstone at revision {state.seen}: refused", calm)
        elif state.polled_at < state.now:
            gap = state.now - state.polled_at > 1 and "R10" not in self.off
            changed = state.entry != state.seen
            seen_at = state.now if changed or gap else state.seen_at
            silent = state.now - seen_at >= TTL
            note = "a gap in its own polls, counts anew" if gap and not changed else f"silent for {state.now - seen_at}"
            polled = state._replace(seen=state.entry, seen_at=seen_at, polled_at=state.now, suspects=silent)
            yield Step("observer", f"polls: revision {state.entry}" + ("" if changed else f", {note}"), polled)

    # --- the judge ---

    def broken(self, state: Lease) -> str | None:
        if state.taken and state.running and not state.zombie:
            return ONE_OWNER
        if state.tombstone and not state.own_fault:
            return ONLY_STALE
        if (state.taken or state.tombstone) and state.entry > state.seen:
            return ONLY_STALE
        if state.given_up and not state.tombstone and not state.taken:
            return HEALTHY
        return None

    def broken_at_rest(self, state: Lease) -> str | None:
        return None

    def landmarks(self, state: Lease) -> Iterable[str]:
        if state.tombstone:
            yield "tombstone"
        if state.taken and state.zombie and state.running:
            yield "a paused owner beside the later one"
        if not state.running and not state.taken and not state.given_up:
            yield "fenced"
        if state.suspects and state.entry != state.seen:
            yield "a renewal overtakes the tombstone"
        if state.outage and state.now - state.polled_at >= TTL:
            yield "an outage longer than worker_ttl"
        if state.given_up:
            yield "given up"

    def show(self, state: Lease) -> str:
        worker = "runs" if state.running else "given up" if state.given_up else "fenced"
        worker += "" if state.up else ", paused"
        worker += "" if state.reachable else ", cut off"
        owner = " | B runs" if state.taken else ""
        entry = f"keep-alive {state.entry}" + (" TOMBSTONE" if state.tombstone else "")
        seen = f"seen {state.seen} at {state.seen_at}"
        return f"t={state.now} | {entry} | A {worker}, confirmed {state.confirmed} | {seen}{owner}"
