"""Each rule switched off, and the invariant that then breaks.

Purpose: what the tests assert, ``python -m tests.model`` tells as stories, and ``docs/model.md`` lists.
Invariants: a case breaks the invariant that names its rule, by a story of the stated length; no shorter one exists.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from tests.model import job, lease, lock, membership, payload, ring, rollback, shutdown, watch
from tests.model.cases import job_case
from tests.model.explore import Model
from tests.model.job_state import Faults
from tests.model.lease import LeaseModel
from tests.model.lock import LockModel
from tests.model.membership import MembershipModel
from tests.model.payload import PayloadModel
from tests.model.ring import RingModel
from tests.model.rollback import RollbackModel
from tests.model.shutdown import ShutdownModel
from tests.model.watch import WatchModel


class Broken(NamedTuple):
    """A case with one rule off."""

    rule: str
    means: str
    """What is done instead of the rule."""
    make: Callable[[], Model[Any]]
    invariant: str
    steps: int
    """How long the shortest story is."""


BROKEN: list[Broken] = [
    Broken(
        "R1.started",
        "on time-out a PENDING record is withdrawn although it was started",
        job_case("R1", ["R1.started"], stopper=False, faults=Faults(moves=1, lost=1)),
        job.NEVER_STARTED,
        16,
    ),
    Broken(
        "R1.starting",
        "on time-out a STARTING record is deleted instead of marked STOPPING",
        job_case("R1", ["R1.starting"], stopper=False),
        job.NOTHING_BEHIND,
        10,
    ),
    Broken(
        "R1.claimed",
        "DispatchTimeoutError for an unstarted record, though it was claimed once",
        job_case("R1", ["R1.claimed"], stopper=False, faults=Faults(crash=1)),
        job.NEVER_STARTED,
        15,
    ),
    Broken(
        "R1.failed",
        "a failed start removes the record although it was started before",
        job_case("R1", ["R1.failed"], stopper=False, faults=Faults(failing=1, moves=1)),
        job.NOT_GONE,
        21,
    ),
    Broken(
        "R2",
        "after an unknown outcome, reading nothing is taken for 'not applied'",
        job_case("R2", ["R2"], stopper=False, faults=Faults(unknown=1)),
        job.NOTHING_BEHIND,
        5,
    ),
    Broken(
        "R2.again",
        "a record that is not there after an unknown outcome is created again under the same job_id",
        job_case("R2", ["R2.again"], faults=Faults(unknown=1)),
        job.STOPPED,
        9,
    ),
    Broken(
        "R3",
        "handler.start is called without a look at the lease",
        job_case("R3", ["R3"], stopper=False, faults=Faults(pause=1)),
        job.ONE_OWNER,
        18,
    ),
    Broken(
        "R3.token",
        "the token is the epoch, not the revision of the STARTING commit",
        job_case("R3", ["R3.token"], stopper=False, faults=Faults(cut=1)),
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
        "R7.owned",
        "a worker that finds its tombstone clears its owned at once",
        job_case("R7", ["R7.owned"], running=True, stopper=False, faults=Faults(pause=1)),
        job.FOUND,
        4,
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
        job_case("R8", ["R8"], stopper=False, faults=Faults(cut=1)),
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
        job_case("R9", ["R9"], stopper=False, faults=Faults(cut=1)),
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
        job_case("R12", ["R12"], stopper=False, faults=Faults(pause=1)),
        job.FOUND,
        15,
    ),
    Broken(
        "R12.entry",
        "the sweeper drops an entry by its name, though it was written again meanwhile",
        job_case("R12", ["R12.entry"], running=True, stopper=False, faults=Faults(unknown=1, moves=2)),
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
        job_case("scan", stopper=False, faults=Faults(hasty=1)),
        job.FOUND,
        3,
    ),
]
