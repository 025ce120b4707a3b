"""The life of one job record, as pure functions: from which record to which, and what may never be done.

Purpose: DESIGN 4.1 in code. Nothing here waits, reads or writes; ``protocol`` turns each transition into one commit.

::

    admit ──► PENDING ──claim──► STARTING ──confirm──► RUNNING
                ▲ ▲                 │  │                  │
                │ └────release──────┘  └───fail──► FAILED │
                └────────────release──────────────────────┘
              (epoch + 1, `started` kept)       │ revive
                                                ▼
    ask_stop: STARTING, RUNNING ──► STOPPING ──► gone      PENDING

Invariants: a record changes only along these edges, each by compare-and-set on its revision; ``started`` and ``epoch``
never go back under one job_id; a job_id is never used again.
Neighbours: ``wire`` defines the record; the states and rule numbers are those of DESIGN 4 and of the model in tests/model.
"""

from __future__ import annotations

import msgspec

from corepool.pool.wire import Attention, JobRecord, JobState, Move, ReplyTo, encode

__all__ = [
    "admit",
    "ask_stop",
    "attention",
    "attention_key",
    "claim",
    "confirm",
    "fail",
    "is_owned_by",
    "may_withdraw",
    "never_claimed",
    "release",
    "revive",
]

_MOVES_KEPT = 8


def admit(job_id: str, target: str, ring: int, reply: ReplyTo, wall: float) -> JobRecord:
    """A new job, on its way to its first owner."""
    move = Move(0, target, "dispatched", wall)
    return JobRecord(JobState.PENDING, job_id, target, ring=ring, reply=reply, wall=wall, moves=(move,))


def claim(record: JobRecord, worker: str, generation: int, wall: float) -> JobRecord:
    """The target (or, after fencing, the owner again: R9) makes itself the owner. The attempt is counted here, so that a
    job that kills its worker is counted too; the revision of this commit is the fencing token (R3).

    The same worker again proves that its earlier start did not kill it (an id has one life, R7): that is no new attempt.
    """
    again = record.state is JobState.STARTING and record.worker == worker
    return msgspec.structs.replace(
        record,
        state=JobState.STARTING,
        worker=worker,
        attempt=record.attempt if again else record.attempt + 1,
        claims=record.claims + 1,
        generation=generation,
        token=0,
        wall=wall,
    )


def confirm(record: JobRecord, token: int, wall: float) -> JobRecord:
    """handler.start returned: the job counts as started for ever (R1)."""
    return msgspec.structs.replace(
        record, state=JobState.RUNNING, started=True, attempt=0, token=token, reply=None, wall=wall
    )


def release(record: JobRecord, target: str, ring: int, why: str, wall: float) -> JobRecord:
    """Hand the job to a next owner: by its owner (move, retry) or by a cleaner (the owner is dead)."""
    epoch = record.epoch + 1
    moves = (*record.moves, Move(epoch, target, why, wall))[-_MOVES_KEPT:]
    return msgspec.structs.replace(
        record, state=JobState.PENDING, worker=target, epoch=epoch, ring=ring, wall=wall, moves=moves
    )


def ask_stop(record: JobRecord, wall: float) -> JobRecord:
    """The durable intent to stop: it survives the owner's death."""
    return msgspec.structs.replace(record, state=JobState.STOPPING, wall=wall)


def fail(record: JobRecord, reason: str, wall: float) -> JobRecord:
    """No more attempts: kept for people, until `retry_job` or `stop_job`."""
    return msgspec.structs.replace(record, state=JobState.FAILED, worker="", reason=reason[:500], reply=None, wall=wall)


def revive(record: JobRecord, target: str, ring: int, wall: float) -> JobRecord:
    """FAILED gets a fresh set of attempts."""
    fresh = msgspec.structs.replace(record, attempt=0, reason="")
    return release(fresh, target, ring, "retried", wall)


def never_claimed(record: JobRecord) -> bool:
    """Whether it is certain that no handler was ever called for this job."""
    return record.state is JobState.PENDING and not record.started and record.attempt == 0


def may_withdraw(record: JobRecord) -> bool:
    """R1: only a record that was never started and that nobody holds may be withdrawn by its dispatcher."""
    return record.state is JobState.PENDING and not record.started


def is_owned_by(record: JobRecord, worker: str) -> bool:
    """Whether ``worker`` is the one who must act on this record."""
    return record.worker == worker and record.state in (JobState.STARTING, JobState.RUNNING, JobState.STOPPING)


def attention_key(record: JobRecord) -> str:
    """The key of the entry that looks after a record in this state.

    It names the epoch, so that an owner that was taken over cannot remove the entry of its successor; and a stop has one
    of its own, so that an owner that confirms late cannot remove the stopper's.
    """
    return f"{record.job_id}/stop" if record.state is JobState.STOPPING else f"{record.job_id}/{record.epoch}"


def attention(key: str, record: JobRecord) -> bytes:
    """The value of that entry."""
    return encode(Attention(key, record.job_id, record.worker))
