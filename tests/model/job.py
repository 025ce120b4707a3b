"""The job record protocol for one key: the model and its judge.

Purpose: DESIGN 4.1, 4.2 and 4.4 with two workers, up to two dispatchers, two cleaners, a stopper, a mover and a
sweeper; every operation of a commit is a step of its own (correctness may not depend on ``atomic_commit``).
Invariants: :func:`Job.broken` is DESIGN section 5, numbers kept; "found" is the promise of 4.4 that whatever exists is
in an index that somebody reads.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import NamedTuple

from tests.model import job_state
from tests.model.explore import Model, Step
from tests.model.job_callers import dispatcher_steps, stopper_steps
from tests.model.job_recovery import cleaner_steps, found, late_steps, scan_steps, sweeper_steps, tombstone_steps
from tests.model.job_state import (
    CRASHED,
    EXISTS,
    FAILED,
    HELD,
    OK,
    RUNNING,
    TIMED_OUT,
    UNAVAILABLE,
    UP,
    Cleaner,
    Dispatcher,
    Faults,
    Record,
    State,
    Stopper,
    Worker,
    with_dispatcher,
)
from tests.model.job_symmetry import canonical, private_step
from tests.model.job_worker import steps as worker_steps

ONE_OWNER = "1. at most one live owner"
NOT_GONE = "2. success means not gone"
NOTHING_BEHIND = "3. a raise leaves no job behind"
NEVER_STARTED = "3. DispatchTimeoutError means never started"
STOPPED = "4. a stopped job never runs again"
TOKENS_GROW = "5. tokens of one key only grow"
RETURNS = "9. every call returns"
RUNS = "10. an admitted job runs"
NOTHING_LEFT = "11. nothing is left over"
FOUND = "11. whatever exists is found by somebody"

_NONE = Faults()


class Config(NamedTuple):
    """How large a case is: its actors, and how many of each fault may happen in one history."""

    name: str
    faults: Faults
    dispatchers: int = 1
    stopper: bool = True
    cleaners: int = 1
    running: bool = False
    """Begin with job 1 running on A, its dispatch successful: deeper histories for the same number of states."""
    full_scan: bool = False
    """The backstop of 4.4: a full scan of the jobs map, which finds what no index does."""


class Job(Model[State]):
    """The model. ``off`` names the rules that are switched off."""

    def __init__(self, config: Config, off: Iterable[str] = (), *, reduced: bool = True) -> None:
        """reduced: False: every state and every order of steps, to compare with."""
        super().__init__(off)
        self.name = config.name
        self.config = config
        self.reduced = reduced

    def initial(self) -> Iterable[State]:
        config = self.config
        state = State(
            record=None,
            claims=0,
            attention=frozenset(),
            expired=frozenset(),
            owned=(False, False),
            tombstone=(False, False),
            removed=(False, False),
            workers=(Worker(), Worker()),
            dispatchers=(Dispatcher(),) * config.dispatchers,
            stopper=Stopper() if config.stopper else Stopper(at="never"),
            cleaners=(Cleaner(),) * config.cleaners,
            late=None,
            faults=config.faults,
            called=frozenset(),
            newest=0,
            stopped=frozenset(),
        )
        if config.running:
            record = Record(RUNNING, 1, 0, 0, True, 0, 1)
            owner = Worker(at="running", held=record, live=1, live_job=1)
            state = state._replace(record=record, claims=1, owned=(True, False), workers=(owner, Worker()))
            state = with_dispatcher(state, 0, at="done", result=OK)._replace(called=frozenset({1}), newest=1)
        yield state

    def canonical(self, state: State) -> State:
        return canonical(state) if self.reduced else state

    def budget(self, state: State) -> tuple[Hashable, tuple[int, ...]]:
        return (state._replace(faults=_NONE), state.faults) if self.reduced else (state, ())

    def steps(self, state: State) -> Iterator[Step[State]]:
        alone = private_step(state) if self.reduced else None
        return self.every_step(state) if alone is None else iter((alone,))

    def every_step(self, state: State) -> Iterator[Step[State]]:
        off = self.off
        for index in range(len(state.dispatchers)):
            yield from dispatcher_steps(state, index, off)
        for index in (0, 1):
            yield from worker_steps(state, index, off)
        yield from stopper_steps(state, off)
        yield from tombstone_steps(state, off)
        for index in range(len(state.cleaners)):
            yield from cleaner_steps(state, index, off)
        yield from sweeper_steps(state, off)
        yield from late_steps(state)
        if self.config.full_scan:
            yield from scan_steps(state)

    # --- safety ---

    def broken(self, state: State) -> str | None:
        a, b = state.workers
        if a.live and b.live:
            older, newer = (a, b) if a.live < b.live else (b, a)
            if not (older.zombie and older.live < newer.live):
                return ONE_OWNER
        if state.newest < 0:
            return TOKENS_GROW
        record = state.record
        running = {worker.live_job for worker in state.workers if worker.live and not worker.zombie}
        for number, dispatcher in enumerate(state.dispatchers, 1):
            if not dispatcher.result:
                continue
            there = record is not None and record.job == number
            if dispatcher.result == OK:
                if number not in state.stopped and not (there and record is not None and record.started):
                    return NOT_GONE
            elif there or number in running:
                return NOTHING_BEHIND
            elif dispatcher.result in (TIMED_OUT, UNAVAILABLE, EXISTS) and number in state.called:
                return NEVER_STARTED
        stopper = state.stopper
        if stopper.result == OK and (stopper.job in running or (record is not None and record.job == stopper.job)):
            return STOPPED
        return None if record is None or self.config.full_scan or found(state, record) else FOUND

    # --- liveness ---

    def broken_at_rest(self, state: State) -> str | None:
        if any(not d.result and d.at != "crashed" for d in state.dispatchers):
            return RETURNS
        if not state.stopper.result and state.stopper.at not in ("idle", "never", "crashed"):
            return RETURNS
        record = state.record
        active = [
            index
            for index, worker in enumerate(state.workers)
            if worker.mode == UP and worker.lease == HELD and not state.tombstone[index]
        ]
        if not active:
            return None  # jobs wait for a worker to join
        owner = None
        if record is not None and record.state == RUNNING:
            owner = record.worker
            if owner not in active or state.workers[owner].live != record.token:
                return RUNS
        elif record is not None and record.state != FAILED:
            return RUNS
        if state.attention or any(
            state.owned[index] != (index == owner) and not self._excused(state, index) for index in (0, 1)
        ):
            return NOTHING_LEFT
        if any(worker.live and index != owner for index, worker in enumerate(state.workers)):
            return NOTHING_LEFT
        if any(dead and not removed for dead, removed in zip(state.tombstone, state.removed, strict=True)):
            return NOTHING_LEFT
        return None

    def _excused(self, state: State, index: int) -> bool:
        """The one leftover that is known and harmless: ``owned`` of an id that nobody looks at any more.

        It takes a pause beyond the lease between two writes, until after the cleaning, and a crash right afterwards.
        """
        return not state.faults.awake and state.removed[index] and state.workers[index].mode == CRASHED

    # --- what was seen ---

    def landmarks(self, state: State) -> Iterable[str]:
        record = state.record
        if record is not None:
            yield record.state + (" started" if record.started else "") + (" again" if record.epoch else "")
            if state.removed[record.worker]:
                yield "record of a removed worker"
        for dispatcher in state.dispatchers:
            if dispatcher.result:
                yield f"dispatch: {dispatcher.result}"
        if state.stopper.result:
            yield f"stop: {state.stopper.result}"
        for worker in state.workers:
            yield f"worker {worker.mode}, {worker.lease}"
            yield f"worker at {worker.at}"
        if any(worker.zombie for worker in state.workers) and sum(bool(worker.live) for worker in state.workers) == 2:
            yield "a paused owner beside the later one"
        if any(state.tombstone):
            yield "tombstone"
        if len([cleaner for cleaner in state.cleaners if cleaner.at != "idle"]) > 1:
            yield "two cleaners at work"
        for cleaner in state.cleaners:
            yield f"cleaner at {cleaner.at}"
        if record is not None and not found(state, record):
            yield "found by nobody"
        if state.late is not None:
            yield "write in flight"

    def show(self, state: State) -> str:
        return job_state.show(state)
