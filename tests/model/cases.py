"""Every case that is explored: all rules on, and each rule switched off.

Purpose: one list that the tests assert, that ``python -m tests.model`` prints as stories, and that ``docs/model.md``
explains.
Invariants: a :class:`Clean` case breaks nothing and reaches its landmarks (a model that reaches nothing proves
nothing); a :class:`Broken` case breaks the invariant that names its rule, by a story of about the stated length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from tests.model import job, lease, lock, membership, payload, ring, rollback, shutdown, watch
from tests.model.explore import Model
from tests.model.job import Config, Job
from tests.model.job_state import Faults
from tests.model.lease import LeaseModel
from tests.model.lock import LockModel
from tests.model.membership import MembershipModel
from tests.model.payload import PayloadModel
from tests.model.ring import RingModel
from tests.model.rollback import RollbackModel
from tests.model.shutdown import ShutdownModel
from tests.model.watch import WatchModel


class Clean(NamedTuple):
    """A case with all rules on."""

    name: str
    make: Callable[[], Model[Any]]
    at_least: int
    """States that have to be visited for the case to mean anything."""
    landmarks: frozenset[str]
    limit: int = 200_000
    """Of states, by default."""
    full: int = 1_500_000
    """Of states, with ``--model-depth=full``."""
    complete: bool = True
    """Every reachable state is visited within the default limit."""


class Broken(NamedTuple):
    """A case with one rule off."""

    rule: str
    means: str
    """What is done instead of the rule."""
    make: Callable[[], Model[Any]]
    invariant: str
    steps: int
    """About how long the shortest story is."""


def _job(name: str, off: Iterable[str] = (), *, faults: Faults | None = None, **size: Any) -> Callable[[], Model[Any]]:
    config = Config(name, faults or Faults(), **size)
    return lambda: Job(config, off)


_STOP = {"STOPPING", "STOPPING started", "stop: success", "dispatch: JobGoneError", "worker at halt"}
_DEATH = {"tombstone", "cleaner at requeue", "cleaner at disown", "PENDING started again", "RUNNING started again"}
_EVERYTHING = Faults(crash=1, pause=1, cut=1, lost=1, stray=1, unknown=1, failing=1, moves=1)

CLEAN: list[Clean] = [
    Clean(
        "one job and a stop",
        _job("one job and a stop"),
        2_000,
        frozenset(_STOP | {"dispatch: success", "dispatch: DispatchTimeoutError", "worker at removed: unlist"}),
    ),
    Clean(
        "two dispatchers and a stop",
        _job("two dispatchers and a stop", dispatchers=2),
        30_000,
        frozenset({"dispatch: JobExistsError", "dispatch: success", "dispatch: DispatchTimeoutError", "STOPPING"}),
        limit=30_000,
        complete=False,
    ),
    Clean(
        "a crash of anybody, a lost message",
        _job("a crash of anybody, a lost message", stopper=False, faults=Faults(crash=1, lost=1)),
        10_000,
        frozenset(_DEATH | {"worker crashed, held", "dispatch: JobGoneError", "dispatch: success", "PENDING again"}),
    ),
    Clean(
        "a running job: moved, stopped, a crash, a lost message",
        _job("moved, stopped, crashed", running=True, faults=Faults(crash=1, lost=1, moves=1)),
        50_000,
        frozenset(_DEATH | {"worker at move: release", "STOPPING started", "cleaner at finish stop", "stop: success"}),
    ),
    Clean(
        "an unknown outcome of any write, two dispatchers",
        _job("unknown outcomes, two dispatchers", dispatchers=2, stopper=False, faults=Faults(unknown=1)),
        30_000,
        frozenset({"write in flight", "dispatch: success", "dispatch: JobExistsError", "worker at confirm"}),
        limit=30_000,
        complete=False,
    ),
    Clean(
        "an unknown outcome of any write, a stop, a move",
        _job("unknown outcomes, stop and move", running=True, faults=Faults(unknown=1, moves=1)),
        10_000,
        frozenset(
            {"write in flight", "STOPPING started", "stop: success", "STARTING started", "PENDING started again"}
        ),
    ),
    Clean(
        "handlers that fail, a move",
        _job("failing handlers", running=True, faults=Faults(failing=2, moves=1)),
        3_000,
        frozenset({"FAILED started again", "worker at retry", "stop: success", "worker at removed: disown"}),
    ),
    Clean(
        "a first start that fails, with a crash",
        _job("a first start that fails", stopper=False, faults=Faults(failing=1, crash=1)),
        10_000,
        frozenset({"dispatch: JobStartError", "STARTING again", "worker at removed: failed"}),
    ),
    Clean(
        "a pause beyond the lease, two cleaners, a stop",
        _job("a pause, two cleaners", running=True, cleaners=2, faults=Faults(pause=1)),
        30_000,
        frozenset(
            _DEATH
            | {"a paused owner beside the later one", "two cleaners at work", "worker up, lapsed", "stop: success"}
        ),
        limit=40_000,
        complete=False,
    ),
    Clean(
        "a pause beyond the lease from the start",
        _job("a pause from the start", stopper=False, faults=Faults(pause=1)),
        10_000,
        frozenset({"worker up, fenced", "worker at retire", "a paused owner beside the later one", "PENDING again"}),
    ),
    Clean(
        "cut off and back, with a move",
        _job("cut off and back", stopper=False, faults=Faults(cut=1, moves=1)),
        10_000,
        frozenset({"worker cut off, held", "worker cut off, fenced", "worker retired, held", "STARTING started"}),
        limit=40_000,
        complete=False,
    ),
    Clean(
        "two deaths, pause and crash, an unknown outcome",
        _job("two deaths", running=True, stopper=False, faults=Faults(crash=1, pause=1, unknown=1)),
        10_000,
        frozenset({"write in flight", "worker paused, held", "tombstone"}),
    ),
    Clean(
        "a sweeper hastier than a writer, with the full scan",
        _job("a hasty sweeper", stopper=False, full_scan=True, faults=Faults(hasty=1, lost=1, crash=1)),
        30_000,
        frozenset({"found by nobody", "dispatch: success"}),
    ),
    Clean(
        "everything at once",
        _job("everything", dispatchers=2, cleaners=2, running=True, faults=_EVERYTHING),
        40_000,
        frozenset({"write in flight", "tombstone", "worker cut off, fenced", "worker at move: release"}),
        limit=40_000,
        full=3_000_000,
        complete=False,
    ),
    Clean(
        "lease: every fault",
        lambda: LeaseModel(lease.Faults(pauses=1, cuts=1, slow=2, lost=1, outages=1)),
        40_000,
        frozenset(
            {
                "tombstone",
                "a paused owner beside the later one",
                "fenced",
                "a renewal overtakes the tombstone",
                "given up",
            }
        ),
        limit=60_000,
        complete=False,
    ),
    Clean(
        "lease: an outage of the whole store",
        lambda: LeaseModel(lease.Faults(outages=1)),
        5_000,
        frozenset({"an outage longer than worker_ttl", "fenced"}),
    ),
    Clean(
        "watch: deaths and joins",
        lambda: WatchModel("ABD", "CEFG", 2),
        5_000,
        frozenset({"2 dead at a time", "alarmed", "found by nobody for longer than T"}),
    ),
    Clean(
        "watch: three of five die",
        lambda: WatchModel("ABCDE", "", 3),
        1_000,
        frozenset({"3 dead at a time", "alarmed"}),
    ),
    Clean(
        "ring",
        RingModel,
        100,
        frozenset(
            {
                "moved 2 times",
                "an owner whose ring is older than the stamp",
                "a cleaner whose ring is older than the stamp",
            }
        ),
    ),
    Clean(
        "cleanup lock",
        LockModel,
        20_000,
        frozenset(
            {"two see the same stale lock", "two at work, one of them overslept", "a new worker under the old name"}
        ),
    ),
    Clean(
        "payload",
        lambda: PayloadModel(crashes=2),
        15_000,
        frozenset({"something to collect", "STARTING without its payload", "owned of a dead worker without a record"}),
    ),
    Clean(
        "shutdown",
        ShutdownModel,
        500,
        frozenset(
            {
                "a record behind the scan",
                "an inbox behind the destruction",
                "dispatcher at withdraw",
                "worker B at undo",
            }
        ),
    ),
    Clean(
        "membership: crashes",
        lambda: MembershipModel(crashes=3),
        100,
        frozenset({"cleaned while it joined", "dead without a keep-alive"}),
    ),
    Clean(
        "membership: a pause beyond the lease",
        lambda: MembershipModel(crashes=0, sleeps=2),
        150,
        frozenset({"cleaned while it joined", "a worker that was cleaned wakes up"}),
    ),
    Clean(
        "rollback",
        RollbackModel,
        50,
        frozenset({"a new generation", "two live owners until somebody notices"}),
    ),
]

BROKEN: list[Broken] = [
    Broken(
        "R1.started",
        "on time-out a PENDING record is withdrawn although it was started",
        _job("R1", ["R1.started"], stopper=False, faults=Faults(moves=1, lost=1)),
        job.NEVER_STARTED,
        16,
    ),
    Broken(
        "R1.starting",
        "on time-out a STARTING record is deleted instead of marked STOPPING",
        _job("R1", ["R1.starting"], stopper=False),
        job.NOTHING_BEHIND,
        10,
    ),
    Broken(
        "R1.claimed",
        "DispatchTimeoutError for an unstarted record, though it was claimed once",
        _job("R1", ["R1.claimed"], stopper=False, faults=Faults(crash=1)),
        job.NEVER_STARTED,
        15,
    ),
    Broken(
        "R1.failed",
        "a failed start removes the record although it was started before",
        _job("R1", ["R1.failed"], stopper=False, faults=Faults(failing=1, moves=1)),
        job.NOT_GONE,
        21,
    ),
    Broken(
        "R2",
        "after an unknown outcome, reading nothing is taken for 'not applied'",
        _job("R2", ["R2"], stopper=False, faults=Faults(unknown=1)),
        job.NOTHING_BEHIND,
        5,
    ),
    Broken(
        "R3",
        "handler.start is called without a look at the lease",
        _job("R3", ["R3"], stopper=False, faults=Faults(pause=1)),
        job.ONE_OWNER,
        18,
    ),
    Broken(
        "R3.token",
        "the token is the epoch, not the revision of the STARTING commit",
        _job("R3", ["R3.token"], stopper=False, faults=Faults(cut=1)),
        job.TOKENS_GROW,
        14,
    ),
    Broken("R4", "the collector reads the record first", lambda: PayloadModel(off=["R4"]), payload.PAYLOAD_KEPT, 10),
    Broken("R4.order", "the payload is written first", lambda: PayloadModel(off=["R4.order"]), payload.PAYLOAD_KEPT, 7),
    Broken(
        "R4.attention",
        "who stops a job that was never started removes its attention entry",
        lambda: PayloadModel(off=["R4.attention"]),
        payload.NOTHING_LEFT,
        8,
    ),
    Broken(
        "R4.owned",
        "owned names no job_id: the cleaner cannot find the payload",
        lambda: PayloadModel(off=["R4.owned"]),
        payload.NOTHING_LEFT,
        11,
    ),
    Broken("R5", "an owner moves on by any ring", lambda: RingModel(["R5"]), ring.NO_PING_PONG, 4),
    Broken("R5.stamp", "a mover stamps more than it knew", lambda: RingModel(["R5.stamp"]), ring.PLACED, 7),
    Broken("R5.cleaner", "a cleaner keeps a larger stamp", lambda: RingModel(["R5.cleaner"]), ring.PLACED, 8),
    Broken("R6", "scan first, destroy inboxes afterwards", lambda: ShutdownModel(["R6"]), shutdown.NO_JOB, 11),
    Broken(
        "R6.withdraw",
        "a dispatcher that finds no inbox does not withdraw",
        lambda: ShutdownModel(["R6.withdraw"]),
        shutdown.NO_JOB,
        9,
    ),
    Broken(
        "R6.again",
        "add_worker does not read the flag again",
        lambda: ShutdownModel(["R6.again"]),
        shutdown.NO_WORKER,
        10,
    ),
    Broken(
        "R6.active",
        "a worker that is not ACTIVE yet is sent jobs and takes them",
        lambda: ShutdownModel(["R6.active"]),
        shutdown.NO_JOB,
        17,
    ),
    Broken(
        "R7",
        "a silent worker's jobs are taken without a tombstone",
        lambda: LeaseModel(lease.Faults(pauses=1), ["R7"]),
        lease.ONE_OWNER,
        15,
    ),
    Broken(
        "R7.renew",
        "renewals are unconditional",
        lambda: LeaseModel(lease.Faults(pauses=1), ["R7.renew"]),
        lease.ONLY_STALE,
        13,
    ),
    Broken(
        "R7.nonce",
        "a renewal whose reply was lost is not recognised",
        lambda: LeaseModel(lease.Faults(lost=1), ["R7.nonce"]),
        lease.HEALTHY,
        9,
    ),
    Broken(
        "R8",
        "a worker that cannot renew goes on",
        _job("R8", ["R8"], stopper=False, faults=Faults(cut=1)),
        job.ONE_OWNER,
        17,
    ),
    Broken(
        "R8.sent",
        "the lease counts from the reply, not from the sending",
        lambda: LeaseModel(lease.Faults(slow=2, cuts=1), ["R8.sent"]),
        lease.ONE_OWNER,
        16,
    ),
    Broken(
        "R9",
        "no reconciling after fence, reconnect or unknown outcome",
        _job("R9", ["R9"], stopper=False, faults=Faults(cut=1)),
        job.RUNS,
        15,
    ),
    Broken(
        "R10",
        "silence is counted across a gap in one's own polls",
        lambda: LeaseModel(lease.Faults(outages=1), ["R10"]),
        lease.ONLY_STALE,
        9,
    ),
    Broken(
        "R10.handover",
        "whom the ring took away is not observed any more",
        lambda: WatchModel("AE", "BCD", 1, ["R10.handover"]),
        watch.FOUND_IN_TIME,
        12,
    ),
    Broken(
        "R10.alarm",
        "a suspicion is no reason to observe everybody",
        lambda: WatchModel("ABCDE", "", 3, ["R10.alarm"]),
        watch.FOUND_IN_TIME,
        11,
    ),
    Broken(
        "R11.join",
        "the record is written last",
        lambda: MembershipModel(off=["R11.join"]),
        membership.NOTHING_LEFT,
        3,
    ),
    Broken(
        "R11.leave",
        "a leaver removes its record first",
        lambda: MembershipModel(off=["R11.leave"]),
        membership.NOTHING_LEFT,
        8,
    ),
    Broken(
        "R11.cleanup",
        "a cleaner removes the record first",
        lambda: MembershipModel(2, off=["R11.cleanup"]),
        membership.NOTHING_LEFT,
        8,
    ),
    Broken(
        "R12",
        "an attention entry is removed without naming its epoch",
        _job("R12", ["R12"], stopper=False, faults=Faults(pause=1)),
        job.FOUND,
        15,
    ),
    Broken(
        "R12.inbox",
        "an inbox is destroyed without naming its incarnation",
        lambda: LockModel(off=["R12"]),
        lock.AFTERWARDS,
        8,
    ),
    Broken(
        "R12.release",
        "a lock is released without naming its revision",
        lambda: LockModel(off=["R12.release"]),
        lock.ONE_CLEANER,
        10,
    ),
    Broken(
        "R12.takeover",
        "a stale lock is deleted, then created",
        lambda: LockModel(off=["R12.takeover"]),
        lock.ONE_CLEANER,
        9,
    ),
    Broken("R13", "nobody notices that the store went back", lambda: RollbackModel(["R13"]), rollback.TOKENS_GROW, 7),
    Broken(
        "R13.local",
        "every node counts generations for itself",
        lambda: RollbackModel(["R13.local"]),
        rollback.TOKENS_GROW,
        7,
    ),
    Broken(
        "scan",
        "no full scan behind a sweeper that is hastier than a writer",
        _job("scan", stopper=False, faults=Faults(hasty=1)),
        job.FOUND,
        3,
    ),
]

CAN_COME_GOOD: list[Clean] = [
    case
    for case in CLEAN
    if case.name
    in {
        "one job and a stop",
        "a crash of anybody, a lost message",
        "handlers that fail, a move",
        "an unknown outcome of any write, a stop, a move",
        "ring",
        "payload",
        "shutdown",
        "membership: crashes",
        "rollback",
    }
]
"""Cases for which it is also shown that rest can be reached from every state: no livelock."""
