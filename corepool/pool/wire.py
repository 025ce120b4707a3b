"""What the pool writes to the backend: records, keep-alives and events, and their strict decoding.

Purpose: the only place that knows the bytes.
Invariants: msgpack, decoded strictly into frozen structs; bytes that do not fit raise `WireError`, and the caller sets them
aside. Adding a field with a default keeps old and new nodes compatible.
Neighbours: ``transitions`` gives the records their meaning; everything else passes them around.
"""

from __future__ import annotations

import enum
from typing import Any, TypeVar, cast

import msgspec

from corepool.driver import NewEvent
from corepool.errors import WireError

__all__ = [
    "Answer",
    "Attention",
    "JobRecord",
    "JobState",
    "KeepAlive",
    "Lock",
    "MemberState",
    "Move",
    "NodeRecord",
    "NotifyEvent",
    "PoolRecord",
    "ReplyTo",
    "StartEvent",
    "StopEvent",
    "TickRecord",
    "Verdict",
    "WorkerRecord",
    "decode",
    "encode",
    "event",
]

T = TypeVar("T")


class JobState(enum.Enum):
    """The states of DESIGN 4.1."""

    PENDING = "pending"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    FAILED = "failed"


class ReplyTo(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where somebody waits: a node's inbox, and the number of his call there."""

    node: str
    call: int


class Move(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One line of a job's history, for `explain`."""

    epoch: int
    worker: str
    why: str
    wall: float


class JobRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The truth about one job (DESIGN 4.1).

    worker: the target while PENDING ("" if there was none), else the owner.
    epoch: grows by one each time the job is released to a next owner.
    started: a handler's start has returned at some time: from then on the job is never withdrawn (R1).
    attempt: starts tried since the last one that succeeded; counted when claimed.
    ring: the revision of the workers map that chose the target (R5).
    generation: of the pool when it was claimed; with the claim's revision it is the fencing token.
    token: the revision of the claim, once RUNNING.
    reply: the dispatcher that waits for the first start.
    claims: how often it was claimed: makes each claim's record another, so that an unknown outcome can be told.
    """

    state: JobState
    job_id: str
    worker: str
    epoch: int = 0
    started: bool = False
    attempt: int = 0
    ring: int = 0
    generation: int = 0
    token: int = 0
    reply: ReplyTo | None = None
    reason: str = ""
    wall: float = 0.0
    moves: tuple[Move, ...] = ()
    claims: int = 0


class MemberState(enum.Enum):
    """JOINING: its inbox is being made (R11). ACTIVE: may be given jobs. LEAVING: hands its jobs over. DEAD: declared so."""

    JOINING = "joining"
    ACTIVE = "active"
    LEAVING = "leaving"
    DEAD = "dead"


class WorkerRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    node: str
    state: MemberState
    wall: float


class NodeRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    state: MemberState
    client_only: bool
    wall: float


class KeepAlive(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """nonce: unique per renewal, so that one whose reply was lost is recognised. dead: the tombstone of R7."""

    nonce: int
    wall: float
    dead: bool = False


class Lock(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A cleanup lock. nonce: changes with every sign of life of its holder."""

    node: str
    nonce: int


class PoolRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """incarnation: of the pool; every other name carries it. generation: grows when the store went back (R13)."""

    incarnation: int
    generation: int = 0
    shutdown: bool = False


class TickRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """number: of the last tick. interval: seconds. wall: when it fired, for people. stopped: by `ScheduleStop`."""

    number: int
    interval: float
    wall: float
    stopped: bool = False


class Attention(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A job that is on its way between states: look after it. worker: its target or owner."""

    key: str
    job_id: str
    worker: str


# --- events ----------------------------------------------------------------------------------------------------------


class StartEvent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Doorbell: this record was made PENDING for you (its revision is the event's stamp).

    payload: the job's, if it is short and was surely stored by then: one read less for who claims it.
    """

    key: str
    record: JobRecord
    payload: bytes | None = None


class StopEvent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Doorbell: the record is STOPPING."""

    key: str
    job_id: str
    reply: ReplyTo | None


class NotifyEvent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A notification for whoever owns the key's job. hops: how often it was forwarded."""

    key: str
    job_id: str
    payload: bytes
    reply: ReplyTo | None
    hops: int = 0


class Verdict(enum.Enum):
    """What an answer says."""

    DONE = "done"
    FAILED = "failed"
    GONE = "gone"


class Answer(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """To one who waits. text: the handler's error if FAILED."""

    call: int
    verdict: Verdict
    text: str = ""


_encoder = msgspec.msgpack.Encoder()
_decoders: dict[type, msgspec.msgpack.Decoder[Any]] = {}


def encode(value: msgspec.Struct) -> bytes:
    """The bytes of a struct."""
    return _encoder.encode(value)


def decode(data: bytes, kind: type[T]) -> T:
    """Raises:
    WireError: the bytes are not such a struct.
    """
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    try:
        return cast("T", decoder.decode(data))
    except msgspec.MsgspecError as error:
        raise WireError(f"not a {kind.__name__}: {error} ({len(data)} bytes)") from None


START, STOP, NOTIFY, ANSWER, INIT, PING = "start", "stop", "notify", "answer", "init", "ping"
_NAMES: dict[type, str] = {StartEvent: START, StopEvent: STOP, NotifyEvent: NOTIFY, Answer: ANSWER}


def event(value: StartEvent | StopEvent | NotifyEvent | Answer) -> NewEvent:
    """The event to append."""
    return NewEvent(_NAMES[type(value)], _encoder.encode(value))
