"""The dispatchers and the stopper of the job model.

Purpose: the callers' half of the protocol. Order of a dispatch (R4): attention entry, record (ABSENT), (payload: see
``payload``), doorbell. What a caller does at its time-out (R1):

- PENDING and never claimed: delete it by compare-and-set, and only then `DispatchTimeoutError`;
- PENDING, unstarted but claimed once (its owner died while it was STARTING): delete it, but `JobGoneError`, for it may
  have run;
- STARTING and unstarted: STOPPING by compare-and-set, then wait until it is gone;
- started: success, whoever answers or does not;
- gone: `JobGoneError`.

A stop of a PENDING record deletes it directly, started or not, and answers the dispatcher of an unstarted one. A stop
of a STARTING or RUNNING one is the intent in the record, a doorbell, and waiting until the record is gone.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.explore import Step
from tests.model.job_state import (
    APPLIED,
    EXISTS,
    FAILED,
    GONE,
    NOT_FOUND,
    OK,
    PENDING,
    REFUSED,
    STARTING,
    STOPPING,
    TIMED_OUT,
    UNAVAILABLE,
    UNKNOWN,
    WORKERS,
    Dispatcher,
    Record,
    State,
    Stopper,
    answer,
    attend,
    compare_and_set,
    ring,
    settle,
    spend,
    unattend,
    with_dispatcher,
    with_stopper,
)

Steps = Iterator[Step[State]]


def dispatcher_steps(state: State, index: int, off: frozenset[str]) -> Steps:
    """What dispatcher ``index`` (0 or 1) may do next with its job ``index + 1``."""
    me, job = state.dispatchers[index], index + 1
    if me.result or me.at == "crashed":
        return
    who = f"dispatcher {job}"

    def step(what: str, after: State, *, fault: bool = False, **changes: object) -> Step[State]:
        return Step(who, what, with_dispatcher(after, index, **changes) if changes else after, fault)

    if state.faults.crash and me.at != "idle":
        crashed = with_dispatcher(spend(state, "crash"), index, **Dispatcher(at="crashed")._asdict())
        yield step("crashes", crashed, fault=True)

    match me.at:
        case "idle":
            yield step("lists the job for attention", attend(state, job, 0), at="create")
        case "create":
            new = Record(PENDING, job, _target(index), 0, False, 0, 0)
            for outcome, after in compare_and_set(state, who, None, new):
                if outcome == APPLIED:
                    yield step("writes the record: PENDING", after, at="ring")
                elif outcome == REFUSED:
                    yield step("writes the record: there is one", after, at=f"leave: {EXISTS}")
                else:
                    yield step("writes the record: outcome unknown", after, fault=True, at="unsure")
        case "unsure":
            yield from _unsure(state, index, off)
        case "ring":
            for note, after in ring(state, _target(index)):
                yield step(f"rings {WORKERS[_target(index)]}{note}", after, fault=bool(note), at="wait")
        case "wait" | "wait for the end":
            if me.answer:
                yield step("gets its answer", state, at=f"leave: {me.answer}", answer="")
            elif me.at == "wait":
                yield from _time_out(state, index, off)
            elif state.record is None or state.record.job != job:
                yield step("reads: the record is gone", state, at=f"leave: {GONE}")
        case "withdraw":
            yield from _withdraw(state, index, me, off)
        case "stop":
            assert me.held is not None
            for outcome, after in compare_and_set(state, who, me.held, me.held._replace(state=STOPPING)):
                if outcome == APPLIED:
                    yield step("withdraws: STARTING -> STOPPING", after, at="ring the stop")
                else:
                    text = "refused" if outcome == REFUSED else "outcome unknown"
                    yield step(f"withdraws: {text}", after, fault=outcome == UNKNOWN, at="wait", held=None)
        case "ring the stop":
            assert me.held is not None
            for note, after in ring(state, me.held.worker):
                yield step(f"rings the owner{note}", after, fault=bool(note), at="wait for the end", held=None)
        case leaving:
            result = leaving.removeprefix("leave: ")
            if result == OK:
                yield step("returns success", state, at="done", result=result)
            else:
                epoch = me.held.epoch if me.held else 0
                gone = unattend(state, job, epoch)
                yield step(f"removes its attention entry, raises {result}", gone, at="done", held=None, result=result)


def _target(index: int) -> int:
    """Dispatcher 1 sends to worker A, dispatcher 2 to worker B: their nodes need not agree, nor be up to date."""
    return index


def _unsure(state: State, index: int, off: frozenset[str]) -> Steps:
    """R2: read after a write with an unknown outcome; "nothing" counts only when the write cannot be applied any more."""
    who = f"dispatcher {index + 1}"
    for settled in [state] if "R2" in off else settle(state, who):
        if settled.record is not None and settled.record.job == index + 1:
            yield Step(who, "looks: the record is there", with_dispatcher(settled, index, at="ring"))
        elif "R2.again" in off:
            yield Step(who, "looks: it is not there, tries again", with_dispatcher(settled, index, at="create"))
        else:
            # Settled, and still nothing to be seen: it may have been applied, run, and been stopped meanwhile.
            result = UNAVAILABLE if "R2" in off else GONE
            yield Step(who, "looks: it is not there", with_dispatcher(settled, index, at=f"leave: {result}"))


def _time_out(state: State, index: int, off: frozenset[str]) -> Steps:
    """The caller's patience ends, which may be at any time: read the record."""
    record = state.record
    who = f"dispatcher {index + 1}"
    if record is None or record.job != index + 1:
        yield Step(who, "times out: the record is gone", with_dispatcher(state, index, at=f"leave: {GONE}"))
    elif record.started and not (record.state == PENDING and "R1.started" in off):
        yield Step(who, "times out: reads that it was started", with_dispatcher(state, index, at=f"leave: {OK}"))
    elif record.state == PENDING:
        yield Step(who, "times out: reads PENDING", with_dispatcher(state, index, at="withdraw", held=record))
    elif record.state == STARTING and "R1.starting" in off:
        yield Step(who, "times out: reads STARTING", with_dispatcher(state, index, at="withdraw", held=record))
    elif record.state == STARTING:
        yield Step(who, "times out: reads STARTING", with_dispatcher(state, index, at="stop", held=record))
    else:
        yield Step(who, f"times out: reads {record.state}", with_dispatcher(state, index, at="wait for the end"))


def _withdraw(state: State, index: int, me: Dispatcher, off: frozenset[str]) -> Steps:
    held = me.held
    assert held is not None
    who = f"dispatcher {index + 1}"
    result = TIMED_OUT if held.attempt == 0 or "R1.claimed" in off else GONE
    for outcome, after in compare_and_set(state, who, held, None):
        if outcome == APPLIED:
            yield Step(
                who, "withdraws: deletes the record", with_dispatcher(after, index, at=f"leave: {result}", answer="")
            )
        else:
            text = "refused" if outcome == REFUSED else "outcome unknown"
            waiting = with_dispatcher(after, index, at="wait", held=None)
            yield Step(who, f"withdraws: {text}", waiting, outcome == UNKNOWN)


# --- the stopper -----------------------------------------------------------------------------------------------------------


def stopper_steps(state: State, off: frozenset[str]) -> Steps:
    """What the one caller of stop_job may do next."""
    me = state.stopper
    if me.result or me.at in ("crashed", "never"):
        return

    def step(what: str, after: State, *, fault: bool = False, **changes: object) -> Step[State]:
        return Step("stopper", what, with_stopper(after, **changes) if changes else after, fault)

    if state.faults.crash and me.at != "idle":
        crashed = with_stopper(spend(state, "crash"), **Stopper(at="crashed")._asdict())
        yield step("crashes", crashed, fault=True)

    held = me.held
    match me.at:
        case "idle":
            # Whether anybody calls stop_job at all is open: that is why this step is never due.
            record = state.record
            if record is None:
                return  # JobNotFoundError: nothing happens, so the model need not go there
            yield step(f"stop_job: reads {record.state}", _intend(state, record), fault=True)
        case "again":
            record = state.record
            if record is None or record.job != me.job:
                yield step("reads: the job is gone", state, at="done", result=OK if me.job else NOT_FOUND)
            else:
                yield step(f"reads {record.state}", _intend(state, record))
        case "delete":
            assert held is not None
            for outcome, after in compare_and_set(state, "stopper", held, None, stops=True):
                if outcome == APPLIED:
                    yield step(f"deletes the {held.state} record", after, at="answer")
                else:
                    text = "refused" if outcome == REFUSED else "outcome unknown"
                    yield step(f"deletes the record: {text}", after, fault=outcome == UNKNOWN, at="again", held=None)
        case "answer":
            assert held is not None
            if held.started:
                yield step("removes the attention entry", unattend(state, me.job, held.epoch), at="end", held=None)
                return
            for note, after in answer(state, me.job, GONE):
                yield step(f"answers the dispatcher{note}", after, fault=bool(note), at="unlist")
        case "unlist":
            assert held is not None
            yield step("removes the attention entry", unattend(state, me.job, held.epoch), at="end", held=None)
        case "attend":
            assert held is not None
            yield step("lists it for attention", attend(state, me.job, held.epoch), at="mark")
        case "mark":
            assert held is not None
            for outcome, after in compare_and_set(state, "stopper", held, held._replace(state=STOPPING), stops=True):
                if outcome == APPLIED:
                    yield step(f"marks it: {held.state} -> STOPPING", after, at="ring")
                else:
                    text = "refused" if outcome == REFUSED else "outcome unknown"
                    yield step(f"marks it: {text}", after, fault=outcome == UNKNOWN, at="again", held=None)
        case "ring":
            assert held is not None
            for note, after in ring(state, held.worker):
                yield step(f"rings the owner{note}", after, fault=bool(note), at="wait", held=None)
        case "wait":
            if state.record is None or state.record.job != me.job:
                yield step("reads: the record is gone", state, at="end")
        case _:
            yield step("returns: stopped", state, at="done", result=OK)


def _intend(state: State, record: Record) -> State:
    """What to do about a record that is to be stopped."""
    if record.state in (PENDING, FAILED):
        return with_stopper(state, at="delete", job=record.job, held=record)
    if record.state == STOPPING:
        return with_stopper(state, at="wait", job=record.job)
    return with_stopper(state, at="attend", job=record.job, held=record)
