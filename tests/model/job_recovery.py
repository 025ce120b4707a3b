"""What makes the job model whole again: the tombstone, the cleaners, the sweeper, and the writes still in flight.

Purpose: DESIGN 4.4 as far as one record is concerned. The cleaners take no lock here: two of them may work on one dead
worker at any point of each other's work, and compare-and-set on the record alone has to keep them apart (the lock has a
model of its own, ``lock``).
Contract: everything is found through ``owned@dead`` and ``attention``. There is no full scan in this model; what these
two indexes cannot find is lost here, and a violation.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.explore import Step
from tests.model.job_state import (
    APPLIED,
    CRASHED,
    CUT,
    FAILED,
    GONE,
    HELD,
    PAUSED,
    PENDING,
    REFUSED,
    RUNNING,
    STOPPING,
    UP,
    WORKERS,
    Cleaner,
    Record,
    State,
    answer,
    attend,
    compare_and_set,
    ring,
    settle,
    spend,
    unattend,
    with_cleaner,
    with_owned,
)

Steps = Iterator[Step[State]]


def late_steps(state: State) -> Steps:
    """A write in flight arrives, or never does. It is due: nothing is in flight for ever."""
    if state.late is not None:
        (*ways,) = settle(state, state.late.writer)
        yield Step("store", f"a write of {state.late.writer} is lost on the way", ways[0])
        if len(ways) > 1:
            yield Step("store", f"applies a late write of {state.late.writer}", ways[1])


def tombstone_steps(state: State, off: frozenset[str]) -> Steps:
    """R7, R8: a worker whose keep-alive was silent for worker_ttl gets its tombstone. How that is decided: see ``lease``."""
    for index, worker in enumerate(state.workers):
        silent = (
            worker.mode in (CRASHED, PAUSED)
            or (worker.mode == UP and worker.lease != HELD)
            or (worker.mode == CUT and (worker.lease != HELD or "R8" in off))
        )
        if silent and not state.tombstone[index]:
            marks = (True, state.tombstone[1]) if index == 0 else (state.tombstone[0], True)
            yield Step("observer", f"{WORKERS[index]} was silent too long: tombstone", state._replace(tombstone=marks))


def cleaner_steps(state: State, index: int, off: frozenset[str]) -> Steps:
    """What cleaner ``index`` may do next about a tombstoned worker."""
    me = state.cleaners[index]
    who = f"cleaner {index + 1}"

    def step(what: str, after: State, *, fault: bool = False, **changes: object) -> Step[State]:
        return Step(who, what, with_cleaner(after, index, **changes) if changes else after, fault)

    if me.at == "idle":
        for dead in (0, 1):
            if state.tombstone[dead] and not state.removed[dead]:
                yield from _begin(state, index, dead)
        return
    if state.faults.crash:
        yield step("crashes", with_cleaner(spend(state, "crash"), index, **Cleaner()._asdict()), fault=True)
    held, dead, done = me.held, me.dead, Cleaner()._asdict()

    def write(new: Record | None, what: str, then: str) -> Steps:
        for outcome, after in compare_and_set(state, "a cleaner", held, new):
            if outcome == APPLIED:
                yield step(what, after, at=then)
            elif outcome == REFUSED:
                yield step(f"{what}: refused", after, **done)
            else:
                yield step(f"{what}: outcome unknown", after, fault=True, **done)

    match me.at:
        case "disown":
            yield step(f"removes owned@{WORKERS[dead]}", with_owned(state, dead, False), **done)
        case "remove worker":
            gone = (True, state.removed[1]) if dead == 0 else (state.removed[0], True)
            yield step(f"removes worker {WORKERS[dead]}", state._replace(removed=gone), **done)
        case "attend":
            assert held is not None
            yield step("lists it for attention", attend(state, held.job, held.epoch + 1), at="requeue")
        case "requeue":
            assert held is not None
            new = held._replace(state=PENDING, worker=1 - dead, epoch=held.epoch + 1)
            yield from write(new, f"requeues: {held.state} -> PENDING", "ring")
        case "ring":
            for note, after in ring(state, 1 - dead):
                yield step(f"rings {WORKERS[1 - dead]}{note}", after, fault=bool(note), at="disown", held=None)
        case "finish stop":
            yield from write(None, "finishes the stop: removes the record", "answer")
        case "answer":
            assert held is not None
            if held.started:
                yield step("removes the attention entry", unattend(state, held.job, held.epoch), at="disown", held=None)
                return
            for note, after in answer(state, held.job, GONE):
                yield step(f"answers the dispatcher{note}", after, fault=bool(note), at="unlist")
        case _:
            assert held is not None
            yield step("removes the attention entry", unattend(state, held.job, held.epoch), at="disown", held=None)


def _begin(state: State, index: int, dead: int) -> Steps:
    """Look for what the dead worker left; when there is nothing any more, remove the worker (last)."""
    who, record = f"cleaner {index + 1}", state.record
    listed = state.owned[dead] or (record is not None and any(job == record.job for job, _ in state.attention))
    theirs = record if record is not None and record.worker == dead and record.state != FAILED and listed else None
    if theirs is None:
        to = "disown" if state.owned[dead] else "remove worker"
        what = "nothing is left of it" if to == "remove worker" else "its owned names nothing of its own"
    elif theirs.state == STOPPING:
        to, what = "finish stop", "reads STOPPING"
    elif not state.tombstone[1 - dead]:
        to, what = "attend", f"reads {theirs.state}"
    else:
        return  # no active worker: the job waits until one joins
    cleaning = with_cleaner(state, index, at=to, dead=dead, held=theirs)
    yield Step(who, f"looks after {WORKERS[dead]}: {what}", cleaning)


def sweeper_steps(state: State, off: frozenset[str]) -> Steps:
    """The sweeper over ``attention``: ring again where nobody acts, requeue what points at the dead, drop what is over."""
    record = state.record
    for job, epoch in sorted(state.attention):
        ahead = record is None or record.job != job or epoch > record.epoch
        if ahead and "R12.entry" in off:
            yield from _drop_by_name(state, job, epoch)
        elif ahead and announced(state, job, epoch):
            # The grace: an entry stands before the write that it announces. Only a writer slower than the grace loses it.
            if state.faults.hasty:
                hasty = unattend(spend(state, "hasty"), job, epoch)
                yield Step("sweeper", f"drops an entry of job {job} that was slow to be followed", hasty, fault=True)
        elif record is None or record.job != job:
            yield Step("sweeper", f"drops the entry of job {job}: no record", unattend(state, job, epoch))
        elif record.state in (RUNNING, FAILED) or epoch != record.epoch:
            yield Step("sweeper", f"drops the entry of job {job}, epoch {epoch}", unattend(state, job, epoch))
        else:
            yield from _sweep(state, record)


def _drop_by_name(state: State, job: int, epoch: int) -> Steps:
    """Without R12 the grace is counted for the entry's name, whoever writes it again meanwhile."""
    if (job, epoch) in state.expired:
        yield Step("sweeper", f"drops the entry of job {job}, epoch {epoch}", unattend(state, job, epoch))
    elif not announced(state, job, epoch):
        expired = state._replace(expired=state.expired | {(job, epoch)})
        yield Step("sweeper", f"has seen the entry of job {job}, epoch {epoch} for long enough", expired)


def _sweep(state: State, record: Record) -> Steps:
    worker = state.workers[record.worker]
    idle = worker.mode == UP and worker.lease == HELD and worker.at in ("idle", "running")
    if state.removed[record.worker]:
        if record.state == STOPPING:
            for note, after in answer(state, record.job, GONE) if not record.started else [("", state)]:
                if not note:
                    yield Step("sweeper", "finishes the stop of a removed worker's job", after._replace(record=None))
        elif not state.tombstone[1 - record.worker]:
            new = record._replace(state=PENDING, worker=1 - record.worker, epoch=record.epoch + 1)
            yield Step("sweeper", "requeues what points at a removed worker", _requeue(state, new))
    elif idle and not worker.bell and not worker.dirty and record.state in (PENDING, STOPPING):
        rung = next(after for _, after in ring(state, record.worker))
        yield Step("sweeper", f"reads {record.state}, rings {WORKERS[record.worker]} again", rung)


def _requeue(state: State, new: Record) -> State:
    """As a cleaner does, whose steps have been looked at already: here in one."""
    return attend(state, new.job, new.epoch)._replace(record=new)


def announced(state: State, job: int, epoch: int) -> bool:
    """Somebody is between writing this attention entry and the write of the record that it announces."""
    late = state.late
    if late is not None and late.new is not None and late.new.job == job:
        return True
    if epoch == 0:
        return state.dispatchers[job - 1].at in ("create", "unsure")
    announcers = [(worker.at, worker.held) for worker in state.workers if worker.at in ("move: release", "retry")]
    announcers += [(cleaner.at, cleaner.held) for cleaner in state.cleaners if cleaner.at == "requeue"]
    return any(held is not None and held.job == job and held.epoch == epoch - 1 for _, held in announcers)


def found(state: State, record: Record) -> bool:
    """An index leads to the record, for everybody who has to act on it now or after its owner's death."""
    owned = state.owned[record.worker] and not state.removed[record.worker]
    listed = (record.job, record.epoch) in state.attention
    return {PENDING: listed, RUNNING: owned, FAILED: True}.get(record.state, owned or listed)


def scan_steps(state: State) -> Steps:
    """The backstop: a full scan lists what the indexes have lost."""
    record = state.record
    if record is not None and not found(state, record):
        yield Step("full scan", f"finds a {record.state} record, lists it", attend(state, record.job, record.epoch))
