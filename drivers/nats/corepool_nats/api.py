"""What JetStream answers: wire types, strict decoding, and the one place where its errors become ours.

Purpose: pure functions from bytes to values, and from an error code to an error that names the limit and the remedy.
Invariants: nothing here does input or output; what cannot be decoded raises `WireError`.
Neighbours: :mod:`corepool_nats.client` calls it for every reply.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from corepool.errors import BackendUnavailable, CorepoolError, UnsupportedServer, WireError

__all__ = [
    "ApiError",
    "ConsumerInfo",
    "PubAck",
    "StoredMessage",
    "StreamInfo",
    "decode",
    "explain",
    "headers_of",
    "is_missing",
    "is_passing",
    "refused_at",
]

T = TypeVar("T")


class ApiError(msgspec.Struct, frozen=True):
    code: int = 0
    err_code: int = 0
    description: str = ""


class PubAck(msgspec.Struct, frozen=True):
    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: ApiError | None = None


class StoredMessage(msgspec.Struct, frozen=True):
    """A message as a stream holds it."""

    subject: str
    seq: int
    time: str
    hdrs: bytes = b""
    data: bytes = b""


class MessageReply(msgspec.Struct, frozen=True):
    message: StoredMessage | None = None
    error: ApiError | None = None


class StreamConfig(msgspec.Struct, frozen=True):
    name: str
    subjects: list[str] = []
    storage: str = ""
    num_replicas: int = 1
    duplicate_window: int = 0
    max_msgs_per_subject: int = -1
    max_msgs: int = -1
    max_bytes: int = -1
    max_msg_size: int = -1
    max_age: int = 0
    discard: str = ""
    allow_msg_ttl: bool = False


class StreamState(msgspec.Struct, frozen=True):
    messages: int = 0
    bytes: int = 0
    first_seq: int = 0
    last_seq: int = 0
    subjects: dict[str, int] | None = None
    consumer_count: int = 0


class ClusterInfo(msgspec.Struct, frozen=True):
    name: str = ""
    leader: str = ""


class StreamInfo(msgspec.Struct, frozen=True):
    config: StreamConfig | None = None
    created: str = ""
    state: StreamState = StreamState()
    cluster: ClusterInfo | None = None
    total: int = 0
    error: ApiError | None = None


class Floor(msgspec.Struct, frozen=True):
    stream_seq: int = 0


class ConsumerInfo(msgspec.Struct, frozen=True):
    name: str = ""
    ack_floor: Floor = Floor()
    num_pending: int = 0
    error: ApiError | None = None


class Done(msgspec.Struct, frozen=True):
    """The answer to a purge or delete."""

    success: bool = False
    purged: int = 0
    error: ApiError | None = None


class AccountLimits(msgspec.Struct, frozen=True):
    max_memory: int = -1
    max_storage: int = -1
    max_streams: int = -1
    max_consumers: int = -1
    max_bytes_required: bool = False


class AccountInfo(msgspec.Struct, frozen=True):
    memory: int = 0
    storage: int = 0
    streams: int = 0
    consumers: int = 0
    limits: AccountLimits = AccountLimits()
    error: ApiError | None = None


class NameList(msgspec.Struct, frozen=True):
    consumers: list[str] | None = None
    total: int = 0
    error: ApiError | None = None


def decode(data: bytes, kind: type[T]) -> T:
    """Decode a reply.

    Raises:
        WireError: it is not what a JetStream server sends.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise WireError(f"the server's reply is no {kind.__name__}: {error}") from None


def headers_of(raw: bytes) -> Mapping[str, str]:
    """The headers of a stored message."""
    found: dict[str, str] = {}
    for line in raw.split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            found[name.strip().decode("ascii", "replace")] = value.strip().decode("utf-8", "replace")
    return found


# --- errors ----------------------------------------------------------------------------------------------------------

WRONG_LAST = 10071
WRONG_LAST_BUSY = 10164
DUPLICATE_IN_PROCESS = 10158
NO_MESSAGE = 10037
NO_STREAM = 10059
NO_CONSUMER = 10014
NAME_IN_USE = 10058

_PASSING = frozenset(
    {
        10007,  # cluster not leader
        10008,  # JetStream temporarily unavailable
        10009,  # cluster not available
        10010,  # cluster no peers / not assigned
        10041,  # stream offline / peer not member
        10118,  # stream offline
        10119,  # consumer offline
        DUPLICATE_IN_PROCESS,
    }
)


def is_forming(error: ApiError) -> bool:
    """Whether a stream cannot be made because a server of the cluster is not, or not yet, there."""
    return error.err_code == 10005 and "offline" in error.description


def is_missing(error: ApiError | None) -> bool:
    """Whether the stream, consumer or message does not exist."""
    return error is not None and error.err_code in (NO_MESSAGE, NO_STREAM, NO_CONSUMER)


def refused_at(error: ApiError) -> int | None:
    """Of a publish whose expected sequence did not hold: the sequence that stands there, None while another write is under
    way.

    Raises:
        LookupError: this is another error.
    """
    if error.err_code == WRONG_LAST_BUSY:
        return None
    if error.err_code != WRONG_LAST:
        raise LookupError(error.description)
    digits = error.description.rpartition(":")[2].strip()
    return int(digits) if digits.isdigit() else None


_OFF = (10039, 10076)

_REMEDIES: Mapping[int, str] = {
    10002: "the account's JetStream storage or memory is used up; raise max_file or max_mem, or remove streams",
    10023: "the server has no room left for JetStream; raise max_file_store or free disk space",
    10026: "the account may have no more consumers; raise max_consumers",
    10027: "the account may have no more streams; raise max_streams (corepool needs two per namespace)",
    10028: "the account's JetStream storage is used up; raise its limit, or remove streams",
    10047: "the server has no storage left for JetStream; raise max_file_store or free disk space",
    10054: "the message is larger than the stream's max_msg_size; raise it",
    10065: "a stream of somebody else takes the subjects cp.…; give corepool an account of its own",
    10074: "too few servers for the replicas asked for; use ?replicas=1 or start more servers",
    10077: "the stream is full (max_bytes or max_msgs); raise its limit, or remove what is no longer needed",
    10113: "the account insists on a limit per stream; give one with ?max_bytes=…",
    10122: "the account may have no stream of that size; lower ?max_bytes=…",
    10005: "no server fits (replicas, placement, storage); start more servers or ask for fewer replicas",
}


def is_passing(error: ApiError) -> bool:
    """Whether the server will do it later: an election, a restart. Nothing was applied."""
    lasting = error.err_code in _REMEDIES or error.err_code in _OFF
    return error.err_code in _PASSING or (error.code == 503 and not lasting)


def explain(error: ApiError, doing: str) -> CorepoolError:
    """Our error for a server's refusal that will not pass by itself. Nothing was applied."""
    text = f"{doing}: {error.description or 'refused'} (JetStream error {error.err_code or error.code})"
    if error.err_code in _OFF:
        return UnsupportedServer(
            f"{text}. JetStream is off for this account; start nats-server with -js, or add `jetstream {{}}` to its "
            f"configuration and `jetstream: enabled` to the account"
        )
    remedy = _REMEDIES.get(error.err_code)
    return BackendUnavailable(f"{text}; {remedy}" if remedy else text)
