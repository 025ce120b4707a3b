"""What keeps the job model small: one state for all that differ in nothing that matters, and steps that need not wait.

Purpose: fewer states for the same verdict. Each reduction, and why nothing is missed by it:

- *The cleaners are interchangeable*: none has a memory between two tasks, a target of its own, or a name that anybody asks
  for. They are kept in order.
- *The mirror*: everybody treats the two workers alike but the dispatchers, of whom the first sends to A, the second to B. With
  two of them, the state in which A and B, dispatchers 1 and 2, and jobs 1 and 2 change places does and suffers the same
  under the other names. The one whose first dispatcher is at the alphabetically smaller place stands for both; on a tie the
  workers decide, and a tie of all is left alone (two states for one cost time, nothing else).
- *History that nobody will judge again*: whether a job was ever called matters until its dispatcher returned or crashed, and
  afterwards only if it was told "never started"; whether it was stopped, only if it was told "success".
- *Private steps go first* (a partial order): a step that nobody else's step enables, prevents or can tell from its absence,
  that its actor takes whatever others do, and that makes the judge no milder. In any story it can be taken at once instead.
  Such are: the first entry in ``attention`` (what stands ahead of a record is left alone until somebody could write it); a
  caller's return, while no write is in flight if it raises; dropping an entry of a job that has no record and will never have
  one, while no write is in flight. A crash in the place of such a step leads to what the step leads to, with one crash less
  to come and, at most, an entry that the sweeper drops.
- *Fewer faults left* (:meth:`tests.model.explore.Model.budget`): of two states that differ in nothing but the faults that may
  still happen, the one with more of each can do all that the other can.

They are used with rules switched off too, where each story has the length that it has without them (``test_model``).
"""

from __future__ import annotations

from collections.abc import Iterable

from tests.model.explore import Step
from tests.model.job_callers import dispatcher_steps
from tests.model.job_recovery import announced
from tests.model.job_state import (
    EXISTS,
    OK,
    TIMED_OUT,
    UNAVAILABLE,
    Cleaner,
    Dispatcher,
    Late,
    Record,
    State,
    Stopper,
    Worker,
    attend,
    unattend,
    with_dispatcher,
    with_stopper,
)

_SWAPPED = {
    "worker A": "worker B",
    "worker B": "worker A",
    "dispatcher 1": "dispatcher 2",
    "dispatcher 2": "dispatcher 1",
}
_NEVER_STARTED = (TIMED_OUT, UNAVAILABLE, EXISTS)


def private_step(state: State) -> Step[State] | None:
    """A step that touches nothing shared, of whoever has one."""
    for index, dispatcher in enumerate(state.dispatchers):
        who = f"dispatcher {index + 1}"
        if dispatcher.at == "idle":  # nobody acts on an entry ahead of its record, until there may be one
            listed = with_dispatcher(attend(state, index + 1, 0), index, at="create")
            return Step(who, "lists the job for attention", listed)
        if dispatcher.at == f"leave: {OK}":
            return Step(who, "returns success", with_dispatcher(state, index, at="done", result=OK))
        if dispatcher.at.startswith("leave") and state.late is None:
            return next(step for step in dispatcher_steps(state, index, frozenset()) if not step.fault)
    if state.stopper.at == "end":
        return Step("stopper", "returns: stopped", with_stopper(state, at="done", result=OK))
    if state.late is None:
        for job, epoch in sorted(state.attention):
            if (state.record is None or state.record.job != job) and not announced(state, job, epoch):
                return Step("sweeper", f"drops the entry of job {job}: no record", unattend(state, job, epoch))
    return None


def canonical(state: State) -> State:
    """The state that stands for this one."""
    if state.called or state.stopped:
        state = _without_history(state)
    if len(state.dispatchers) == 2 and _order(state) > _order_of_mirror(state):
        state = _mirror(state)
    if len(state.cleaners) == 2 and _rank(state.cleaners[0]) > _rank(state.cleaners[1]):
        state = state._replace(cleaners=(state.cleaners[1], state.cleaners[0]))
    return state


def _without_history(state: State) -> State:
    called, stopped = state.called, state.stopped
    for number, dispatcher in enumerate(state.dispatchers, 1):
        if dispatcher.result or dispatcher.at == "crashed":
            if dispatcher.result not in _NEVER_STARTED:
                called -= {number}
            if dispatcher.result != OK:
                stopped -= {number}
    if len(called) == len(state.called) and len(stopped) == len(state.stopped):
        return state
    return state._replace(called=called, stopped=stopped)


def _rank(cleaner: Cleaner) -> tuple[str, int, tuple[object, ...]]:
    return cleaner.at, cleaner.dead, cleaner.held or ()


def _order(state: State) -> tuple[object, ...]:
    one, two = state.dispatchers
    a, b = state.workers
    return (
        one.at,
        two.at,
        one.result,
        two.result,
        a.at,
        b.at,
        a.mode,
        b.mode,
        a.lease,
        b.lease,
        state.owned,
        state.tombstone,
    )


def _order_of_mirror(state: State) -> tuple[object, ...]:
    two, one = state.dispatchers
    b, a = state.workers
    owned, tombstone = state.owned[::-1], state.tombstone[::-1]
    return one.at, two.at, one.result, two.result, a.at, b.at, a.mode, b.mode, a.lease, b.lease, owned, tombstone


def _mirror(state: State) -> State:
    """The state in which the workers, the dispatchers and their jobs have changed places."""
    late = state.late
    return state._replace(
        record=_record(state.record),
        attention=_entries(state.attention),
        expired=_entries(state.expired),
        owned=state.owned[::-1],
        tombstone=state.tombstone[::-1],
        removed=state.removed[::-1],
        workers=(_worker(state.workers[1]), _worker(state.workers[0])),
        dispatchers=(_dispatcher(state.dispatchers[1]), _dispatcher(state.dispatchers[0])),
        stopper=_stopper(state.stopper),
        cleaners=tuple(map(_cleaner, state.cleaners)),
        late=late
        and Late(_SWAPPED.get(late.writer, late.writer), _record(late.expected), _record(late.new), late.stops),
        called=frozenset(3 - job for job in state.called),
        stopped=frozenset(3 - job for job in state.stopped),
    )


def _job(job: int) -> int:
    return 3 - job if job else 0


def _record(record: Record | None) -> Record | None:
    return record and record._replace(job=3 - record.job, worker=1 - record.worker)


def _entries(entries: Iterable[tuple[int, int]]) -> frozenset[tuple[int, int]]:
    return frozenset((3 - job, epoch) for job, epoch in entries)


def _worker(worker: Worker) -> Worker:
    if worker.held is None and not worker.live_job:
        return worker
    return worker._replace(held=_record(worker.held), live_job=_job(worker.live_job))


def _dispatcher(dispatcher: Dispatcher) -> Dispatcher:
    return dispatcher if dispatcher.held is None else dispatcher._replace(held=_record(dispatcher.held))


def _stopper(stopper: Stopper) -> Stopper:
    return stopper._replace(job=_job(stopper.job), held=_record(stopper.held))


def _cleaner(cleaner: Cleaner) -> Cleaner:
    return cleaner if cleaner.at == "idle" else cleaner._replace(dead=1 - cleaner.dead, held=_record(cleaner.held))
