"""What happened in a run: its digest, its story, and what it covered.

Purpose: compare runs across processes, and tell a person why one failed.
Invariants: the digest covers every request that the store ran and every event of the story but log lines, with their
times; nothing in it depends on the process (no addresses, no hash order, no counters of the interpreter). Only the
newest events are kept.
Neighbours: the world writes it; :mod:`~corepool_memory.sim.run` prints the story.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from typing import Final

import attrs

__all__ = ["Moment", "Trace"]

_KEEP_STORY: Final = 2000
_KEEP_REQUESTS: Final = 200
_BATCH: Final = 512


@attrs.frozen(slots=True)
class Moment:
    """Something that happened: when (virtual seconds), on which machine ("" for none), and what."""

    time: float
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.time:12.6f}  {self.where or '-':<12} {self.what}"


class Trace:
    """The record of one run.

    story: faults, calls of the scenario, and what handlers did: what a person wants to read.
    requests: the newest requests the store ran.
    faults: how often each kind of fault happened.
    sometimes: how often each named situation was reached.
    """

    def __init__(self) -> None:
        self.story: deque[Moment] = deque(maxlen=_KEEP_STORY)
        self.requests: deque[Moment] = deque(maxlen=_KEEP_REQUESTS)
        self.faults: Counter[str] = Counter()
        self.sometimes: Counter[str] = Counter()
        self._hash = hashlib.blake2b(digest_size=16)
        self._unhashed: list[str] = []

    def tell(self, time: float, where: str, what: str) -> None:
        """An event of the story."""
        self.story.append(Moment(time, where, what))
        self._add(f"{time!r} {where} {what}")

    def log(self, time: float, where: str, what: str) -> None:
        """A line that the code under test logged. Not part of the digest: it may hold addresses."""
        self.story.append(Moment(time, where, f"log: {what}"))

    def fault(self, time: float, kind: str, where: str, what: str) -> None:
        """A fault that happened."""
        self.faults[kind] += 1
        self.tell(time, where, f"fault: {kind}: {what}" if what else f"fault: {kind}")

    def request(self, time: float, where: str, what: str, error: BaseException | None) -> None:
        """A request that the store ran, and the error it answered with."""
        if error is not None:
            what = f"{what} -> {type(error).__name__}"
        self.requests.append(Moment(time, where, what))
        self._add(f"{time!r} {where} {what}")

    def digest(self) -> str:
        """Of everything so far."""
        self._flush()
        return self._hash.hexdigest()

    def _add(self, line: str) -> None:
        self._unhashed.append(line)
        if len(self._unhashed) >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        self._hash.update("".join(f"{line}\n" for line in self._unhashed).encode(errors="backslashreplace"))
        self._unhashed.clear()
