"""The book that the demo's handlers keep, and what it proves.

Purpose: measure from the outside whether a job was ever lost or owned twice.
Invariants:

- an ownership begins when ``handler.start`` is entered and ends when ``handler.stop`` (or a failed start) returns, or when the
  process that held it is known to be dead: the longest time in which work can have been done, so that an overlap is never
  missed. A dead node writes nothing: what still seems to come from it (a thread of this process that was under way) is
  dropped.
- times are one machine's monotonic clock, which its processes share.

Neighbours: ``handler`` makes marks, directly or through a pipe; ``story`` reports deaths and asks for the tally.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterable
from typing import Protocol

import attrs

__all__ = ["Book", "Ledger", "Mark", "Ownership", "Tally"]


@attrs.frozen(slots=True)
class Mark:
    """One line of the book: what a handler did, when, and under which fencing token.

    what: ``start``, ``stop`` or ``refresh`` (a notification was worked on).
    at: seconds of the machine's monotonic clock.
    digest: what the work gave, for ``refresh``.
    """

    what: str
    key: str
    node: str
    token: tuple[int, ...]
    at: float
    digest: str = ""

    def to_line(self) -> bytes:
        """The mark as one line, for a pipe."""
        return json.dumps([self.what, self.key, self.node, self.token, self.at, self.digest]).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Mark:
        """Raises:
        ValueError: the line is no mark.
        """
        what, key, node, token, at, digest = json.loads(line)
        return cls(str(what), str(key), str(node), tuple(int(part) for part in token), float(at), str(digest))


@attrs.define(slots=True)
class Ownership:
    """One node's time with one job. ``until`` None: it still has it. ``crashed``: it ended with its process."""

    key: str
    node: str
    token: tuple[int, ...]
    since: float
    until: float | None = None
    crashed: bool = False


@attrs.frozen(slots=True)
class Tally:
    """What the book proves.

    moved: ownerships handed over by a living owner. taken_over: those that followed a crash.
    lost: admitted jobs without a living owner. doubled: pairs of overlapping ownerships of one job.
    stale_tokens: ownerships whose token is not larger than that of the one before.
    """

    moved: int
    taken_over: int
    lost: int
    doubled: int
    stale_tokens: int


class Book(Protocol):
    """Where a handler writes: the ledger itself, or a pipe to the process that keeps it."""

    def record(self, mark: Mark) -> None: ...


class Ledger:
    """The book itself. Safe to write from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._history: dict[str, list[Ownership]] = {}
        self._dead: set[str] = set()
        self._refreshed: dict[str, tuple[float, str]] = {}
        self.version = 0
        """Grows with each mark, so that somebody waiting for calm can tell whether anything happened."""

    # --- writing ---

    def record(self, mark: Mark) -> None:
        """Enter a mark.

        Raises:
            ValueError: it says what no handler does.
        """
        with self._lock:
            self.version += 1
            if mark.node in self._dead:
                return
            match mark.what:
                case "start":
                    self._history.setdefault(mark.key, []).append(Ownership(mark.key, mark.node, mark.token, mark.at))
                case "stop":
                    for ownership in reversed(self._history.get(mark.key, [])):
                        if ownership.node == mark.node and ownership.token == mark.token and ownership.until is None:
                            ownership.until = mark.at
                            break
                case "refresh":
                    self._refreshed[mark.key] = (mark.at, mark.digest)
                case _:
                    raise ValueError(f"no handler does {mark.what!r}")

    def died(self, node: str, at: float) -> int:
        """The node is dead, or gone, for certain since ``at``; how many jobs it still held."""
        with self._lock:
            self.version += 1
            self._dead.add(node)
            held = [one for history in self._history.values() for one in history if self._is_of(one, node)]
            for ownership in held:
                ownership.until, ownership.crashed = at, True
            return len(held)

    @staticmethod
    def _is_of(ownership: Ownership, node: str) -> bool:
        return ownership.node == node and ownership.until is None

    # --- reading ---

    def owners(self) -> dict[str, list[str]]:
        """The living owners of each job that has any."""
        with self._lock:
            found: dict[str, list[str]] = {}
            for key, history in self._history.items():
                names = [ownership.node for ownership in history if ownership.until is None]
                if names:
                    found[key] = names
            return found

    def load(self) -> dict[str, int]:
        """How many jobs each node owns."""
        counts: dict[str, int] = {}
        for names in self.owners().values():
            for name in names:
                counts[name] = counts.get(name, 0) + 1
        return counts

    def refreshed_since(self, at: float) -> dict[str, str]:
        """The digests of the jobs that worked on a notification at or after ``at``."""
        with self._lock:
            return {key: digest for key, (when, digest) in self._refreshed.items() if when >= at}

    def tally(self, admitted: Iterable[str]) -> Tally:
        """What the book proves about the jobs that were admitted and not stopped."""
        owners = self.owners()
        moved = taken_over = doubled = stale = 0
        with self._lock:
            for history in self._history.values():
                ordered = sorted(history, key=lambda ownership: ownership.since)
                for index, ownership in enumerate(ordered):
                    doubled += sum(_overlap(ownership, later) for later in ordered[index + 1 :])
                for before, after in itertools.pairwise(ordered):
                    stale += after.token <= before.token
                    if before.until is None or before.until > after.since:
                        continue  # an overlap is no hand-over; it is counted as doubled
                    taken_over += before.crashed
                    moved += not before.crashed
        lost = sum(key not in owners for key in admitted)
        return Tally(moved, taken_over, lost, doubled, stale)


def _overlap(earlier: Ownership, later: Ownership) -> bool:
    return earlier.until is None or earlier.until > later.since
