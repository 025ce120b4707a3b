"""The lease of a node and its workers: their keep-alives, and what follows when they cannot be renewed.

Purpose: R7 and R8 from the side of the living. One commit per period renews the node and all its workers and looks at the
neighbours' keep-alives.
Invariants: a renewal is a compare-and-set on one's own last revision, never unconditional, and carries a nonce by which a
renewal whose reply was lost is recognised; a tombstoned id never renews again; a lease is counted from the *sending* of
the last confirmed renewal, on this node's monotonic clock.
Neighbours: ``liveness`` drives it; a worker asks ``valid`` before it calls a handler (R3).
"""

from __future__ import annotations

import enum

from corepool.driver import ABSENT, REVISION, Clock, Commit, Entry, SetKey
from corepool.errors import BackendUnavailable
from corepool.pool.store import PoolStore
from corepool.pool.wire import KeepAlive, encode

__all__ = ["Lease", "Renewal"]


_REMEMBERED = 16
"""Renewals whose time of sending is remembered: more than can be under way at once."""


class Renewal(enum.Enum):
    """What the answer to a renewal says about its holder."""

    HELD = "held"
    LOST = "lost"
    """A tombstone, or nothing, stands there: the id is dead (R7)."""
    ROLLED_BACK = "rolled back"
    """An older keep-alive of our own stands there: the store lost acknowledged writes (R13)."""


class Lease:
    """The keep-alive of one node or worker, as its holder sees it."""

    def __init__(self, store: PoolStore, map_name: str, holder: str, clock: Clock, fence_after: float) -> None:
        self._store = store
        self.map_name = map_name
        self._clock = clock
        self._fence_after = fence_after
        self.holder = holder
        self._revision = 0
        self._nonce = 0
        self._sent: dict[int, float] = {}
        """When each of the last renewals was sent, by nonce."""
        self._confirmed_at: float | None = None
        self.dead = False

    @property
    def valid(self) -> bool:
        """Whether nobody can have declared the holder dead yet (R8)."""
        return not self.dead and self.remaining > 0

    @property
    def was_held(self) -> bool:
        """Whether a renewal was ever confirmed."""
        return self._confirmed_at is not None

    @property
    def remaining(self) -> float:
        """Seconds until the holder must have fenced itself."""
        if self._confirmed_at is None:
            return 0.0
        return self._confirmed_at + self._fence_after - self._clock.monotonic()

    @property
    def age(self) -> float:
        """Seconds since the sending of the last confirmed renewal."""
        return float("inf") if self._confirmed_at is None else self._clock.monotonic() - self._confirmed_at

    def renewal(self) -> SetKey:
        """The write that renews; call it at the moment of sending."""
        self._nonce += 1
        self._sent[self._nonce] = self._clock.monotonic()
        self._sent.pop(self._nonce - _REMEMBERED, None)
        value = encode(KeepAlive(self._nonce, self._clock.wall()))
        when = REVISION(self._revision) if self._revision else ABSENT
        return SetKey(self.map_name, self.holder, value, when, optional=True)

    def begin(self, commit: Commit) -> None:
        """Take in what the store said to the first one.

        Raises:
            BackendUnavailable: others have declared the holder dead before it was born: it needs another id.
        """
        if self.answered(commit) is not Renewal.HELD or not self.was_held:
            self.dead = True
            raise BackendUnavailable(f"{self.holder} took so long to join that it was declared dead; try again")

    def answered(self, commit: Commit) -> Renewal:
        """Take in what the store said to the newest renewal."""
        if commit.applied:
            self._revision = commit.revision
            self._confirm(self._nonce)
            return Renewal.HELD
        return self.found(commit.previous)

    def _confirm(self, nonce: int) -> None:
        sent = self._sent.get(nonce)
        if sent is not None and (self._confirmed_at is None or sent > self._confirmed_at):
            self._confirmed_at = sent

    def found(self, entry: Entry | None) -> Renewal:
        """Take in what stands in the store instead of what was expected."""
        if entry is None:
            self.dead = True
            return Renewal.LOST
        keep_alive = self._store.decoded(entry.value, KeepAlive, self.map_name)
        if keep_alive is None or keep_alive.dead:
            self.dead = True
            return Renewal.LOST
        # One of our own whose reply was lost or late: it was applied after it was sent, so from then on it counts.
        self._confirm(keep_alive.nonce)
        went_back = entry.revision < self._revision
        self._revision = entry.revision
        return Renewal.ROLLED_BACK if went_back else Renewal.HELD
