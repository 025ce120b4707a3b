"""The worker of the job model: claim, start, confirm, move, stop, fence, reconcile.

Purpose: the owner's half of the protocol. What stands between two steps here is what may be separated in the code by an
await, a crash, or the pause of a process. The refinements of the commits (DESIGN 4.2) are these orders:

- claim: ``owned@worker``, then record PENDING -> STARTING, then the handler. The doorbell's ack comes last; the model
  takes the bell away first, which is the worse of the two (a crash loses it).
- confirm: record STARTING -> RUNNING, then the attention entry goes, then the answer.
- removal: record, then (payload: see ``payload``), answer, owned, attention.
- move: handler.stop, attention entry, record PENDING(epoch + 1), doorbell to the next owner, owned.

Contract: ``steps(state, index, off)`` yields the steps of one worker; ``off`` names the rules that are switched off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.model.explore import Step
from tests.model.job_state import (
    APPLIED,
    CRASHED,
    CUT,
    FAILED,
    FENCED,
    GONE,
    HELD,
    LAPSED,
    MAX_START_ATTEMPTS,
    OK,
    PAUSED,
    PENDING,
    REFUSED,
    RETIRED,
    RUNNING,
    START_FAILED,
    STARTING,
    STOPPING,
    UP,
    WORKERS,
    Record,
    State,
    Worker,
    answer,
    attend,
    compare_and_set,
    ring,
    spend,
    unattend,
    with_owned,
    with_worker,
)

Steps = Iterator[Step[State]]
NO_HANDLER = {"live": 0, "live_job": 0, "zombie": False}


def steps(state: State, index: int, off: frozenset[str]) -> Steps:
    """What worker ``index`` may do next, and what may happen to it."""
    me = state.workers[index]
    if me.mode in (CRASHED, RETIRED):
        return
    yield from _faults(state, index, me)
    yield from _lease(state, index, me, off)
    if me.mode == PAUSED:
        return
    if me.at == "start":
        yield from _start(state, index, me, off)
    elif me.mode != UP or me.at == "retire":
        return
    elif me.at in ("idle", "running"):
        if me.lease == HELD:
            yield from _look(state, index, me, off)
            yield from _begin_move(state, index, me)
    else:
        yield from _ACTIVITIES[me.at](state, index, me, off)


def _step(index: int, what: str, after: State, *, fault: bool = False) -> Step[State]:
    return Step(f"worker {WORKERS[index]}", what, after, fault)


# --- what happens to a worker ----------------------------------------------------------------------------------------------


def _faults(state: State, index: int, me: Worker) -> Steps:
    faults = state.faults
    if faults.crash:
        crashed = with_worker(spend(state, "crash"), index, **Worker(mode=CRASHED)._asdict())
        yield _step(index, "crashes", crashed, fault=True)
    if me.mode != UP:
        return
    if faults.pause:
        paused = with_worker(spend(state, "pause"), index, mode=PAUSED, zombie=bool(me.live))
        yield _step(index, "is paused for longer than its lease", paused, fault=True)
    if faults.cut:
        yield _step(index, "is cut off from the store", with_worker(spend(state, "cut"), index, mode=CUT), fault=True)
    if faults.stray and not me.bell:
        rung = with_worker(spend(state, "stray"), index, bell=True)
        yield _step(index, "gets a late or doubled doorbell", rung, fault=True)


def _lease(state: State, index: int, me: Worker, off: frozenset[str]) -> Steps:
    """Resume, rejoin, fence (R8), renew (R7)."""
    fenced = {**NO_HANDLER, "at": "idle", "held": None, "bell": False, "dirty": "R9" not in off}
    dead = state.tombstone[index]
    if me.mode == PAUSED:
        yield _step(index, "wakes up: its lease has run out", with_worker(state, index, mode=UP, lease=LAPSED))
    elif me.mode == CUT and me.lease != FENCED and "R8" not in off:
        what = "could not renew: fences itself" + (", stops the handler" if me.live else "")
        yield _step(index, what, with_worker(state, index, **fenced, lease=FENCED))
    elif me.mode == CUT and (me.lease == FENCED or dead):
        yield _step(index, "reaches the store again", with_worker(state, index, mode=UP))
    elif me.mode == UP and dead:
        yield from _retire(state, index, me, off)
    elif me.mode == UP and me.lease == LAPSED:
        what = "fences itself" + (", stops the handler" if me.live else "")
        yield _step(index, what, with_worker(state, index, **fenced, lease=FENCED))
    elif me.mode == UP and me.lease == FENCED:
        yield _step(index, "renews its lease", with_worker(state, index, lease=HELD, dirty="R9" not in off))


def _retire(state: State, index: int, me: Worker, off: frozenset[str]) -> Steps:
    """Tombstoned: stop everything. ``owned`` stays for the cleaner to read; what was written there too late goes last."""
    if me.at != "retire":
        stopped = with_worker(state, index, **(Worker(at="retire")._asdict()))
        if "R7.owned" in off:
            stopped = with_owned(stopped, index, False)
        yield _step(index, "finds its tombstone: stops everything", stopped)
    elif state.removed[index]:
        gone = with_worker(with_owned(state, index, False), index, **Worker(mode=RETIRED)._asdict())
        yield _step(index, "sees that it was cleaned up: clears owned, gives its id up", gone)


# --- looking at the record: after a doorbell, when reconciling -------------------------------------------------------------


def _look(state: State, index: int, me: Worker, off: frozenset[str]) -> Steps:
    """Read the record and see what is to be done: on a doorbell, when dirty, and on a slow period over ``owned`` (R9)."""
    after = _seen(state, index, me, off)
    if me.bell or me.dirty:
        why = "doorbell" if me.bell else "reconciles"
        after = after or with_worker(state, index)
        what, changes = after.workers[index].at, {"bell": False, "dirty": False}
        yield _step(index, f"{why}: reads the record, goes on to {what}", with_worker(after, index, **changes))
    elif after is not None and state.owned[index] and "R9" not in off:
        what = after.workers[index].at
        yield _step(index, f"reconciles in its slow period, goes on to {what}", after)


def _seen(state: State, index: int, me: Worker, off: frozenset[str]) -> State | None:
    """What follows from the record as it is now; None if all is as it should be."""
    record = state.record
    mine = record is not None and record.worker == index and record.state in (STARTING, RUNNING, STOPPING)
    if me.live:
        if record is None or not mine or record.token != me.live:
            return with_worker(state, index, at="abandon")
        return {
            STARTING: with_worker(state, index, at="confirm", held=record),
            RUNNING: None if me.held == record else with_worker(state, index, at="unlist", held=record),
            STOPPING: with_worker(state, index, at="halt", held=record),
        }[record.state]
    if record is not None and record.worker == index:
        if record.state == PENDING:
            return with_worker(state, index, at="own", held=record)
        if record.state == STOPPING:
            return with_worker(state, index, at="remove", held=record)
        if mine:
            return with_worker(state, index, at="claim", held=record) if "R9" not in off else None
    return with_worker(state, index, at="disown", held=None) if state.owned[index] else None


def _again(state: State, index: int, me: Worker, off: frozenset[str]) -> State:
    """A write was refused or its outcome is unknown: the record has to be read again."""
    return with_worker(state, index, at="running" if me.live else "idle", held=None, dirty=True)


def _unsure(state: State, index: int, me: Worker, off: frozenset[str]) -> State:
    """As :func:`_again` after an unknown outcome: that is R9. Without it the worker takes "unknown" for "failed"."""
    after = _again(state, index, me, off)
    return after if "R9" not in off else with_worker(after, index, dirty=False)


def _write(
    state: State, index: int, me: Worker, off: frozenset[str], new: Record | None, what: str, then: str
) -> Steps:
    """Compare-and-set the record from what is held to ``new``; if applied go on with ``then``."""
    for outcome, after in compare_and_set(state, f"worker {WORKERS[index]}", me.held, new):
        if outcome == APPLIED:
            held = after.record if new is not None else me.held
            yield _step(index, what, with_worker(after, index, at=then, held=held))
        elif outcome == REFUSED:
            yield _step(index, f"{what}: refused", _again(after, index, me, off))
        else:
            yield _step(index, f"{what}: outcome unknown", _unsure(after, index, me, off), fault=True)


# --- the activities --------------------------------------------------------------------------------------------------------


def _own(state: State, index: int, me: Worker, off: frozenset[str]) -> Steps:
    yield _step(index, "writes owned", with_owned(with_worker(state, index, at="claim"), index, True))


def _claim(state: State, index: int, me: Worker, off: frozenset[str]) -> Steps:
    assert me.held is not None
    new = me.held._replace(state=STARTING, attempt=me.held.attempt + 1)
    yield from _write(state, index, me, off, new, f"claims: {me.held.state} -> STARTING", "start")


def _start(state: State, index: int, me: Worker, off: frozenset[str]) -> Steps:
    """R3: the lease is looked at and handler.start called with nothing in between."""
    assert me.held is not None
    if me.lease != HELD and "R3" not in off:
        return  # the fence is next
    token = me.held.token if "R3.token" not in off else me.held.epoch + 1
    newest = token if 0 <= state.newest < token else -1
    called = state._replace(called=state.called | {me.held.job}, newest=newest)
    live = with_worker(called, index, at="confirm", live=token, live_job=me.held.job)
    yield _step(index, f"calls handler.start with token {token}", live)
    if state.faults.failing:
        failed = with_worker(spend(called, "failing"), index, at="failed")
        yield _step(index, "calls handler.start: it raises", failed, fault=True)


def _confirm(state: State, index: int, me: Worker, off: frozenset[str]) -> Steps:
    assert me.held is not None
    new = me.held._replace(state=RUNNING, started=True, attempt=0)
    yield from _write(state, index, me, off, new, "confirms: STARTING -> RUNNING", "unlist")


def _unlist(state: State, index: int, me: Worker, off: frozenset[str]) -> Steps:
    assert me.held is not None
    after = unattend(state, me.held.job, me.held.epoch, named="R12" not in off)
    yield _step(index, "removes the attention entry", with_worker(after, index, at="answer"))


def _answer(state: State, index: int, me: Worker, off: frozenset[str]) -> Steps:
    assert me.held is not None
    for note, after in answer(with_worker(state, index, at="running"), me.held.job, OK):
        yield _step(index, f"answers the dispatcher{note}", after, fault=bool(note))


def _failed(state: State, index: int, me: Worker, off: frozenset[str]) -> Steps:
    """R1: only a record that was never started may be removed by a failed start."""
    held = me.held
    assert held is not None
    if not held.started or "R1.failed" in off:
        yield from _write(state, index, me, off, None, "removes the record of the failed start", "removed: failed")
    elif held.attempt >= MAX_START_ATTEMPTS:
        yield from _write(state, index, me, off, held._replace(state=FAILED), "gives up: FAILED", "removed: disown")
    else:
        yield _step(
            index,
            "lists it for attention again",
            with_worker(attend(state, held.job, held.epoch + 1), index, at="retry"),
        )


def _retry(state: State, index: int, me: Worker, off: frozenset[str]) -> Steps:
    assert me.held is not None
    new = me.held._replace(state=PENDING, epoch=me.held.epoch + 1)
    yield from _write(state, index, me, off, new, "will try again: STARTING -> PENDING", "retry: ring")


def _retry_ring(state: State, index: int, me: Worker, off: frozenset[str]) -> Steps:
    for note, after in ring(with_worker(state, index, at="disown", held=None), index):
        yield _step(index, f"rings itself{note}", after, fault=bool(note))


def _halt(state: State, index: int, me: Worker, off: frozenset[str]) -> Steps:
    yield _step(index, "calls handler.stop", with_worker(state, index, at="remove", **NO_HANDLER))


def _remove(state: State, index: int, me: Worker, off: frozenset[str]) -> Steps:
    yield from _write(state, index, me, off, None, "finishes the stop: removes the record", "removed: stopped")


def _removed(text: str) -> Callable[[State, int, Worker, frozenset[str]], Steps]:
    def activity(state: State, index: int, me: Worker, off: frozenset[str]) -> Steps:
        """Whoever deletes an unstarted record answers its dispatcher (R1)."""
        assert me.held is not None
        after = with_worker(state, index, at="removed: disown")
        if me.held.started:
            yield from _removed_disown(after, index, me, off)
            return
        for note, answered in answer(after, me.held.job, text):
            yield _step(index, f"answers the dispatcher: {text}{note}", answered, fault=bool(note))

    return activity


def _removed_disown(state: State, index: int, me: Worker, off: frozenset[str]) -> Steps:
    yield _step(index, "removes owned", with_owned(with_worker(state, index, at="removed: unlist"), index, False))


def _removed_unlist(state: State, index: int, me: Worker, off: frozenset[str]) -> Steps:
    assert me.held is not None
    after = unattend(state, me.held.job, me.held.epoch, named="R12" not in off)
    yield _step(index, "removes the attention entry", with_worker(after, index, at="idle", held=None))


def _abandon(state: State, index: int, me: Worker, off: frozenset[str]) -> Steps:
    """R9: running but not mine."""
    stopped = with_worker(state, index, at="idle", held=None, dirty=True, **NO_HANDLER)
    yield _step(index, "stops the handler: the job is not its own any more", stopped)


def _disown(state: State, index: int, me: Worker, off: frozenset[str]) -> Steps:
    yield _step(index, "removes owned", with_owned(with_worker(state, index, at="idle", held=None), index, False))


def _begin_move(state: State, index: int, me: Worker) -> Steps:
    if me.at == "running" and me.held is not None and state.faults.moves and not state.tombstone[1 - index]:
        moving = with_worker(spend(state, "moves"), index, at="move: attend", **NO_HANDLER)
        yield _step(index, "has to hand the job over: calls handler.stop", moving, fault=True)


def _move_attend(state: State, index: int, me: Worker, off: frozenset[str]) -> Steps:
    assert me.held is not None
    after = attend(state, me.held.job, me.held.epoch + 1)
    yield _step(index, "lists it for attention", with_worker(after, index, at="move: release"))


def _move_release(state: State, index: int, me: Worker, off: frozenset[str]) -> Steps:
    assert me.held is not None
    new = me.held._replace(state=PENDING, worker=1 - index, epoch=me.held.epoch + 1)
    yield from _write(state, index, me, off, new, "releases it: RUNNING -> PENDING", "move: ring")


def _move_ring(state: State, index: int, me: Worker, off: frozenset[str]) -> Steps:
    for note, after in ring(with_worker(state, index, at="disown", held=None), 1 - index):
        yield _step(index, f"rings the next owner{note}", after, fault=bool(note))


_ACTIVITIES = {
    "own": _own,
    "claim": _claim,
    "confirm": _confirm,
    "unlist": _unlist,
    "answer": _answer,
    "failed": _failed,
    "retry": _retry,
    "retry: ring": _retry_ring,
    "halt": _halt,
    "remove": _remove,
    "removed: failed": _removed(START_FAILED),
    "removed: stopped": _removed(GONE),
    "removed: disown": _removed_disown,
    "removed: unlist": _removed_unlist,
    "abandon": _abandon,
    "disown": _disown,
    "move: attend": _move_attend,
    "move: release": _move_release,
    "move: ring": _move_ring,
}
