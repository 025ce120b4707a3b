"""The job record of one key and everything that surrounds it, as one immutable value.

Purpose: the nouns of the job model (DESIGN 4.1): the record, the two advisory indexes, the doorbells, the actors'
memories, the faults that may still happen. The verbs are in ``job_worker``, ``job_callers`` and ``job_recovery``; the
judge is in ``job``.
Invariants: time is nothing but order here. A record's content never comes back once it was replaced (job_ids are never
used again, epoch and token only grow), so "compare-and-set on the revision" is "compare-and-set on the content", and no
revision has to be kept. The fencing token is the number of STARTING commits so far: revisions of one map grow in just
this order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

PENDING, STARTING, RUNNING, STOPPING, FAILED = "PENDING", "STARTING", "RUNNING", "STOPPING", "FAILED"

UP, PAUSED, CUT, CRASHED, RETIRED = "up", "paused", "cut off", "crashed", "retired"
"""What a worker's process is doing. RETIRED: it learned that its id is tombstoned, and gave the id up."""

HELD, LAPSED, FENCED = "held", "lapsed", "fenced"
"""A worker's lease on its own clock. LAPSED: it has run out and the fence did not act yet (only after a pause)."""

OK, TIMED_OUT, GONE, START_FAILED, EXISTS, UNAVAILABLE, NOT_FOUND = (
    "success",
    "DispatchTimeoutError",
    "JobGoneError",
    "JobStartError",
    "JobExistsError",
    "BackendUnavailable",
    "JobNotFoundError",
)
"""How a call ends."""

APPLIED, REFUSED, UNKNOWN = "applied", "refused", "unknown"
"""How a compare-and-set ends, as its writer sees it."""

MAX_START_ATTEMPTS = 2
WORKERS = "AB"


class Record(NamedTuple):
    """The one entry of the jobs map that this model has."""

    state: str
    job: int
    """The job_id: dispatcher 1 makes job 1, dispatcher 2 makes job 2, both under the same key."""
    worker: int
    """The target while PENDING, the owner afterwards."""
    epoch: int
    started: bool
    attempt: int
    """Starts tried since the job last ran."""
    token: int
    """Of the newest STARTING commit: the fencing token of the owner that it made."""


class Worker(NamedTuple):
    mode: str = UP
    lease: str = HELD
    at: str = "idle"
    """What it is about to do with the key. One activity per key and worker: a rule that the pool's code has to keep."""
    held: Record | None = None
    """The record as it last read or wrote it: what its next compare-and-set expects."""
    live: int = 0
    """The token of the handler that runs (from the call of handler.start to the return of handler.stop), 0 if none does."""
    live_job: int = 0
    zombie: bool = False
    """The handler ran already when a pause overtook the lease: its owner cannot know. The one case that tokens are for."""
    bell: bool = False
    """A doorbell waits in its inbox. Bells carry no truth, so one stands for any number, early, late or doubled."""
    dirty: bool = False
    """R9: something happened after which it must compare what it runs with what the records say."""


class Dispatcher(NamedTuple):
    at: str = "idle"
    held: Record | None = None
    result: str = ""
    answer: str = ""
    """The answer that waits for its waiter; lost answers never get here."""


class Stopper(NamedTuple):
    at: str = "idle"
    job: int = 0
    held: Record | None = None
    result: str = ""


class Cleaner(NamedTuple):
    at: str = "idle"
    dead: int = 0
    held: Record | None = None


class Late(NamedTuple):
    """A write whose writer does not know its outcome, and which the store may still apply."""

    writer: str
    expected: Record | None
    new: Record | None
    stops: bool


class Faults(NamedTuple):
    """How many of each fault may still happen, and how many moves."""

    crash: int = 0
    """Of any actor, at any point."""
    pause: int = 0
    """Of a worker, longer than its lease."""
    cut: int = 0
    """Of a worker from the store, longer than its lease."""
    lost: int = 0
    """Doorbells and answers that never arrive."""
    stray: int = 0
    """Doorbells that arrive late, or twice."""
    unknown: int = 0
    """Writes with an unknown outcome: applied, or still in flight."""
    failing: int = 0
    """handler.start raises."""
    hasty: int = 0
    """The sweeper's grace is over before a slow writer has written the record that its attention entry announces."""
    together: int = 99
    """Of all these, in one history."""
    awake: int = 1
    """0 once a worker was paused: for the judge."""
    moves: int = 0
    """No fault: a job is handed to the other worker (rebalance, close)."""


class State(NamedTuple):
    record: Record | None
    claims: int
    attention: frozenset[tuple[int, int]]
    """Entries of (job_id, epoch)."""
    expired: frozenset[tuple[int, int]]
    """Entries whose grace is over as the sweeper believes, by name: only with "R12.entry" off."""
    owned: tuple[bool, bool]
    """Whether ``owned@worker`` holds the key, for A and B."""
    tombstone: tuple[bool, bool]
    removed: tuple[bool, bool]
    """A cleaner has removed the worker's record: nobody looks into its ``owned`` any more."""
    workers: tuple[Worker, Worker]
    dispatchers: tuple[Dispatcher, ...]
    stopper: Stopper
    cleaners: tuple[Cleaner, ...]
    late: Late | None
    faults: Faults
    called: frozenset[int]
    """History, for the judge: jobs whose handler.start was called, ever."""
    newest: int
    """History, for the judge: the token of the newest handler.start; -1 once it was not larger than the one before."""
    stopped: frozenset[int]
    """History, for the judge: jobs whose record a stop marked STOPPING or deleted."""


# --- small changes of a state, named ---------------------------------------------------------------------------------------


def spend(state: State, fault: str) -> State:
    faults = state.faults._replace(**{fault: getattr(state.faults, fault) - 1})
    if fault == "pause":
        faults = faults._replace(awake=0)
    if fault != "moves":
        faults = faults._replace(together=faults.together - 1)
        if not faults.together:
            faults = Faults(together=0, awake=faults.awake, moves=faults.moves)
    return state._replace(faults=faults)


def with_worker(state: State, index: int, **changes: object) -> State:
    changed = state.workers[index]._replace(**changes)  # type: ignore[arg-type]
    return state._replace(workers=(changed, state.workers[1]) if index == 0 else (state.workers[0], changed))


def with_dispatcher(state: State, index: int, **changes: object) -> State:
    dispatchers = list(state.dispatchers)
    dispatchers[index] = dispatchers[index]._replace(**changes)  # type: ignore[arg-type]
    return state._replace(dispatchers=tuple(dispatchers))


def with_cleaner(state: State, index: int, **changes: object) -> State:
    cleaners = list(state.cleaners)
    cleaners[index] = cleaners[index]._replace(**changes)  # type: ignore[arg-type]
    return state._replace(cleaners=tuple(cleaners))


def with_stopper(state: State, **changes: object) -> State:
    return state._replace(stopper=state.stopper._replace(**changes))  # type: ignore[arg-type]


def with_owned(state: State, index: int, owned: bool) -> State:
    return state._replace(owned=(owned, state.owned[1]) if index == 0 else (state.owned[0], owned))


def attend(state: State, job: int, epoch: int) -> State:
    return state._replace(attention=state.attention | {(job, epoch)})


def unattend(state: State, job: int, epoch: int, *, named: bool = True) -> State:
    """Remove an attention entry: the one of this epoch (R12), or, with the rule off, whatever the job has there."""
    gone = {(job, epoch)} if named else {entry for entry in state.attention if entry[0] == job}
    return state._replace(attention=state.attention - gone, expired=state.expired - gone)


def ring(state: State, index: int) -> Iterator[tuple[str, State]]:
    """Ring a worker's inbox, as (what to add to the story, the state afterwards): a doorbell may be lost.

    A dead worker's inbox is sealed or gone: nothing rings there.
    """
    if state.tombstone[index] or state.workers[index].mode in (CRASHED, RETIRED):
        yield "", state
        return
    yield "", with_worker(state, index, bell=True)
    if state.faults.lost:
        yield " (the doorbell is lost)", spend(state, "lost")


def answer(state: State, job: int, text: str) -> Iterator[tuple[str, State]]:
    """Answer the dispatcher of a job, as :func:`ring` does; one that knows its result, or crashed, does not listen."""
    who = state.dispatchers[job - 1]
    if who.result or who.at == "crashed" or who.at.startswith("leave"):
        yield "", state
        return
    yield "", with_dispatcher(state, job - 1, answer=text)
    if state.faults.lost:
        yield " (the answer is lost)", spend(state, "lost")


def put(state: State, new: Record | None, *, stops: bool = False) -> State:
    """A write of the record that is applied. A STARTING commit makes the next fencing token."""
    if stops:
        before = state.record if new is None else new
        state = state._replace(stopped=state.stopped | {before.job}) if before else state
    if new is not None and new.state == STARTING:
        new = new._replace(token=state.claims + 1)
        return state._replace(record=new, claims=state.claims + 1)
    return state._replace(record=new)


def compare_and_set(
    state: State, writer: str, expected: Record | None, new: Record | None, *, stops: bool = False
) -> Iterator[tuple[str, State]]:
    """Every way in which a conditional write of the record can end, as (what its writer learns, the state afterwards)."""
    if state.record == expected:
        yield APPLIED, put(state, new, stops=stops)
    else:
        yield REFUSED, state
    if state.faults.unknown and state.late is None:
        spent = spend(state, "unknown")
        if state.record == expected:
            yield UNKNOWN, put(spent, new, stops=stops)
        yield UNKNOWN, spent._replace(late=Late(writer, expected, new, stops))


def settle(state: State, writer: str) -> Iterator[State]:
    """R2: the driver makes sure that the writer's write in flight was applied or never will be."""
    if state.late is None or state.late.writer != writer:
        yield state
        return
    yield state._replace(late=None)
    if state.record == state.late.expected:
        yield put(state._replace(late=None), state.late.new, stops=state.late.stops)


# --- pictures --------------------------------------------------------------------------------------------------------------


def show_record(record: Record | None) -> str:
    if record is None:
        return "no record"
    started = ", started" if record.started else ""
    role = "target" if record.state == PENDING else "owner"
    token = f", token {record.token}" if record.state != PENDING and record.token else ""
    attempt = f", attempt {record.attempt}" if record.attempt else ""
    return f"{record.state}(job {record.job}, {role} {WORKERS[record.worker]}, epoch {record.epoch}{attempt}{started}{token})"


def show(state: State) -> str:
    parts = [show_record(state.record)]
    if state.attention:
        parts.append("attention " + " ".join(f"{job}/e{epoch}" for job, epoch in sorted(state.attention)))
    if any(state.owned):
        parts.append("owned@" + ",".join(name for name, owned in zip(WORKERS, state.owned, strict=True) if owned))
    for name, worker in zip(WORKERS, state.workers, strict=True):
        doing = [] if worker.mode == UP else [worker.mode]
        doing += [] if worker.lease == HELD else [worker.lease]
        doing += [f"runs job {worker.live_job} with token {worker.live}"] if worker.live else []
        if doing:
            parts.append(f"{name} " + ", ".join(doing))
    parts += [f"{name} tombstoned" for name, dead in zip(WORKERS, state.tombstone, strict=True) if dead]
    parts += [f"{name} removed" for name, removed in zip(WORKERS, state.removed, strict=True) if removed]
    return " | ".join(parts)
