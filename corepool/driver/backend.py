"""A connection to a backend: namespaces, batches, capabilities, preflight findings.

Purpose: the port between the core and a driver, small enough to be read in one go.
Invariants:

- ``Namespace.commit`` applies its operations in order and stops at the first one whose condition does not hold. With the
  capability ``atomic_commit`` nothing of a stopped commit is applied; without it the operations before it are.
  **Correctness of the core never depends on that atomicity**, only its speed does.
- What is not declared in :class:`Capabilities` raises `UnsupportedCapability` and changes nothing.
- No credential appears in a repr, a log line or an error.

Neighbours: implemented by drivers; the core holds a ``Backend`` and never asks what is behind it.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Sequence
from typing import Protocol, TypeAlias

import attrs
import msgspec

from corepool.driver.maps import ALWAYS, Commit, Entry, MapStore, When
from corepool.driver.streams import NewEvent, StreamStore

__all__ = [
    "Ack",
    "Append",
    "Appended",
    "Backend",
    "Capabilities",
    "Clock",
    "CommitResult",
    "DeleteKey",
    "Finding",
    "GetKey",
    "Namespace",
    "Op",
    "OpResult",
    "Refusal",
    "SetKey",
    "Severity",
]


class Clock(Protocol):
    """Where the core gets its time. ``monotonic`` measures; ``wall`` is for people and is never compared with another
    machine's."""

    def wall(self) -> float:
        """Seconds since 1970, as this machine believes."""
        ...

    def monotonic(self) -> float:
        """Seconds, from an arbitrary origin, never going back."""
        ...


@attrs.frozen(slots=True, kw_only=True)
class Capabilities:
    """What a backend promises beyond the contract, and its limits. There are no defaults: a driver answers every one.

    atomic_commit: a commit is all or nothing, and no other commit sees half of it.
    value_ops: `MapStore.update` works.
    durable: acknowledged writes survive a restart of the backend (as configured; see preflight).
    multi_process: several processes see the same data.
    strict_receipts: a receipt that is no longer current is refused by ack, nack and extend (else it may be honoured).
    max_key_bytes: of a map key, UTF-8 encoded. At least 512.
    max_name_bytes: of the name of a namespace, map, stream, sink, event or topic, UTF-8 encoded. At least 128.
    max_value_bytes: of one map value, or of one event's payload. At least 64 KiB.
    max_commit_ops: operations in one commit. At least 64.
    """

    atomic_commit: bool
    value_ops: bool
    durable: bool
    multi_process: bool
    strict_receipts: bool
    max_key_bytes: int
    max_name_bytes: int
    max_value_bytes: int
    max_commit_ops: int


# --- batches ---------------------------------------------------------------------------------------------------------


class SetKey(msgspec.Struct, frozen=True, gc=False):
    """Set a key of a map. ``optional``: if the condition does not hold, skip this operation instead of stopping."""

    map: str
    key: str
    value: bytes
    when: When = ALWAYS
    optional: bool = False


class DeleteKey(msgspec.Struct, frozen=True, gc=False):
    """Remove a key of a map. ``optional`` as for SetKey."""

    map: str
    key: str
    when: When = ALWAYS
    optional: bool = False


class GetKey(msgspec.Struct, frozen=True, gc=False):
    """Read a key, linearizably, as it is after the operations before this one. Never stops a commit."""

    map: str
    key: str


class Append(msgspec.Struct, frozen=True, gc=False):
    """Append an event to a stream, if the stream exists and is not sealed; a missing, sealed or full stream refuses.

    stamp: the index in this commit of an earlier SetKey or DeleteKey whose revision the event carries as ``Event.stamp``.
    optional: a refusal skips this operation instead of stopping.
    """

    stream: str
    event: NewEvent
    stamp: int | None = None
    optional: bool = False


class Ack(msgspec.Struct, frozen=True, gc=False):
    """Acknowledge a delivery of a sink of this namespace. An invalid receipt never stops a commit."""

    receipt: str


Op: TypeAlias = SetKey | DeleteKey | GetKey | Append | Ack


class Refusal(enum.Enum):
    """Why an Append did not take place."""

    MISSING = "missing"
    """The stream does not exist, or is sealed."""
    FULL = "full"


class Appended(msgspec.Struct, frozen=True, gc=False):
    """The result of an Append: the event's id, or why there is none."""

    id: str | None
    refusal: Refusal | None = None


OpResult: TypeAlias = Commit | Entry | Appended | bool | None
"""SetKey, DeleteKey: Commit. GetKey: Entry or None. Append: Appended. Ack: bool."""


class CommitResult(msgspec.Struct, frozen=True, gc=False):
    """What became of a commit.

    results: one per operation that was decided, in order: all of them if ``stopped`` is None, else those up to and including
        the one that stopped it.
    stopped: the index of the operation whose condition did not hold; with ``atomic_commit`` nothing was applied then (the
        results of earlier operations are void), without it everything before that index was.
    """

    results: tuple[OpResult, ...]
    stopped: int | None = None


class Namespace(Protocol):
    """All maps and streams that belong together (a pool's), kept where one commit can reach them."""

    @property
    def name(self) -> str: ...

    def map(self, name: str) -> MapStore: ...

    def stream(self, name: str) -> StreamStore: ...

    async def commit(self, ops: Sequence[Op]) -> CommitResult:
        """Apply in order, in as few round trips as the backend allows.

        Raises:
            InvalidKeyError, PayloadTooLarge: a name, key, value, or the number of operations is over the limits; nothing was
                sent, the valid operations neither.
            BackendUnavailable: nothing was applied.
            OutcomeUnknown: a prefix, all, or nothing was applied, or still may be: see :meth:`settle`.
        """
        ...

    async def settle(self) -> None:
        """Return once every earlier write of this backend object whose outcome is unknown has either been applied or can no
        longer be: only afterwards does reading nothing mean that it did not happen (R2).

        Raises:
            BackendUnavailable: it cannot be made sure now.
        """
        ...


# --- preflight -------------------------------------------------------------------------------------------------------


class Severity(enum.Enum):
    """DANGER: acknowledged data can be lost. WARNING: surprising, or could not be verified. INFO: good to know."""

    DANGER = "danger"
    WARNING = "warning"
    INFO = "info"


@attrs.frozen(slots=True)
class Finding:
    """A setting of the backend worth knowing about, what it means, and what to do."""

    severity: Severity
    code: str
    text: str
    remedy: str


class Backend(Protocol):
    """An open connection. Usable by many tasks of one event loop at once."""

    @property
    def url(self) -> str:
        """The URL it was opened with, credentials redacted."""
        ...

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def clock(self) -> Clock: ...

    @property
    def random(self) -> random.Random:
        """Where the core draws ids and jitter from."""
        ...

    def namespace(self, name: str) -> Namespace:
        """A namespace; makes nothing on the backend until it is used.

        Raises:
            InvalidKeyError: the name is empty or too long.
        """
        ...

    async def preflight(self) -> list[Finding]:
        """Look for settings that endanger data. Never raises for a missing right: that is a finding."""
        ...

    async def aclose(self) -> None:
        """Close: calls in flight end with their result or an error, watches, readings and receives end, later calls raise
        `BackendUnavailable`. Idempotent, bounded, never blocked by an unread watch (M4)."""
        ...
