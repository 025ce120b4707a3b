"""The cases with all rules on.

Purpose: what the tests explore and ``python -m tests.model clean`` reports; the rules switched off are in ``broken``.
Invariants: a case breaks nothing and reaches its landmarks (a model that reaches nothing proves nothing).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from tests.model import lease
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


def job_case(
    name: str, off: Iterable[str] = (), *, faults: Faults | None = None, **size: Any
) -> Callable[[], Model[Any]]:
    """A case of the job model; ``size`` is what :class:`Config` takes."""
    config = Config(name, faults or Faults(), **size)
    return lambda: Job(config, off)


_STOP = {"STOPPING", "STOPPING started", "stop: success", "dispatch: JobGoneError", "worker at halt"}
_DEATH = {"tombstone", "cleaner at requeue", "cleaner at disown", "PENDING started again", "RUNNING started again"}
_EVERYBODY: dict[str, Any] = {"running": True, "dispatchers": 2, "cleaners": 2}
"""Two workers, two dispatchers (the first has started job 1, the second has a job of the same key), two cleaners, a stopper."""
_HARMLESS: dict[str, int] = {"lost": 1, "stray": 1, "unknown": 1, "failing": 1}
_EVERYTHING = Faults(crash=1, pause=1, cut=1, lost=1, stray=1, unknown=1, failing=1, moves=1)

CLEAN: list[Clean] = [
    Clean(
        "one job and a stop",
        job_case("one job and a stop"),
        1_500,
        frozenset(_STOP | {"dispatch: success", "dispatch: DispatchTimeoutError", "worker at removed: unlist"}),
    ),
    Clean(
        "two dispatchers and a stop",
        job_case("two dispatchers and a stop", dispatchers=2),
        130_000,
        frozenset({"dispatch: JobExistsError", "dispatch: success", "dispatch: DispatchTimeoutError", "STOPPING"}),
    ),
    Clean(
        "a crash of anybody, a lost message",
        job_case("a crash of anybody, a lost message", stopper=False, faults=Faults(crash=1, lost=1)),
        6_000,
        frozenset(_DEATH | {"worker crashed, held", "dispatch: JobGoneError", "dispatch: success", "PENDING again"}),
    ),
    Clean(
        "a running job: moved, stopped, a crash, a lost message",
        job_case("moved, stopped, crashed", running=True, faults=Faults(crash=1, lost=1, moves=1)),
        25_000,
        frozenset(_DEATH | {"worker at move: release", "STOPPING started", "cleaner at finish stop", "stop: success"}),
    ),
    Clean(
        "an unknown outcome of any write, two dispatchers",
        job_case("unknown outcomes, two dispatchers", dispatchers=2, stopper=False, faults=Faults(unknown=1)),
        85_000,
        frozenset({"write in flight", "dispatch: success", "dispatch: JobExistsError", "worker at confirm"}),
    ),
    Clean(
        "an unknown outcome of any write, a stop, a move",
        job_case("unknown outcomes, stop and move", running=True, faults=Faults(unknown=1, moves=1)),
        10_000,
        frozenset(
            {"write in flight", "STOPPING started", "stop: success", "STARTING started", "PENDING started again"}
        ),
    ),
    Clean(
        "handlers that fail, a move",
        job_case("failing handlers", running=True, faults=Faults(failing=2, moves=1)),
        3_000,
        frozenset({"FAILED started again", "worker at retry", "stop: success", "worker at removed: disown"}),
    ),
    Clean(
        "a first start that fails, with a crash",
        job_case("a first start that fails", stopper=False, faults=Faults(failing=1, crash=1)),
        10_000,
        frozenset({"dispatch: JobStartError", "STARTING again", "worker at removed: failed"}),
    ),
    Clean(
        "a pause beyond the lease, two cleaners, a stop",
        job_case("a pause, two cleaners", running=True, cleaners=2, faults=Faults(pause=1)),
        30_000,
        frozenset(
            _DEATH
            | {"a paused owner beside the later one", "two cleaners at work", "worker up, lapsed", "stop: success"}
        ),
    ),
    Clean(
        "a pause beyond the lease from the start",
        job_case("a pause from the start", stopper=False, faults=Faults(pause=1)),
        40_000,
        frozenset({"worker up, fenced", "worker at retire", "a paused owner beside the later one", "PENDING again"}),
    ),
    Clean(
        "cut off and back, with a move",
        job_case("cut off and back", stopper=False, faults=Faults(cut=1, moves=1)),
        10_000,
        frozenset({"worker cut off, held", "worker cut off, fenced", "worker retired, held", "STARTING started"}),
    ),
    Clean(
        "two deaths, pause and crash, an unknown outcome",
        job_case("two deaths", running=True, stopper=False, faults=Faults(crash=1, pause=1, unknown=1)),
        9_000,
        frozenset({"write in flight", "worker paused, held", "tombstone"}),
    ),
    Clean(
        "a sweeper hastier than a writer, with the full scan",
        job_case("a hasty sweeper", stopper=False, full_scan=True, faults=Faults(hasty=1, lost=1, crash=1)),
        8_000,
        frozenset({"found by nobody", "dispatch: success"}),
    ),
    Clean(
        "everybody, and one fault that kills nobody",
        job_case("everybody, a fault", **_EVERYBODY, faults=Faults(**_HARMLESS, together=1, moves=1)),
        200_000,
        frozenset(
            _STOP
            | {"write in flight", "dispatch: JobExistsError", "dispatch: JobStartError", "worker at move: release"}
            | {"PENDING started again", "RUNNING started again"}
        ),
        limit=400_000,
    ),
    Clean(
        "everybody, and a crash of anybody",
        job_case("everybody, a crash", **_EVERYBODY, faults=Faults(crash=1)),
        150_000,
        frozenset(
            _DEATH
            | _STOP
            | {"two cleaners at work", "worker crashed, held", "dispatch: JobExistsError", "cleaner at finish stop"}
        ),
        limit=300_000,
    ),
    Clean(
        "everything at once",
        job_case("everything", dispatchers=2, cleaners=2, running=True, faults=_EVERYTHING),
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
