"""What happened in a run: its digest, its story, and what it covered.

Purpose: compare runs across processes, and tell a person why one failed.
Invariants: the digest covers every request that the store ran and every event of the story but log lines, with their
times; nothing in it depends on the process (no addresses, no hash order, no counters of the interpreter). Only the
newest events are kept.
Neighbours: the world writes it; :mod:`~corepool_memory.sim.run` prints the story.
"""

from __future__ import annotations

import hashlib
from array import array
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
    faults: how often each kind of fault happened.
    sometimes: how often each named situation was reached.
    """

    def __init__(self) -> None:
        self.story: deque[Moment] = deque(maxlen=_KEEP_STORY)
        self._requests: deque[tuple[float, str, str]] = deque(maxlen=_KEEP_REQUESTS)
        self.faults: Counter[str] = Counter()
        self.sometimes: Counter[str] = Counter()
        self._hash = hashlib.blake2b(digest_size=16)
        self._unhashed: list[tuple[float, str, str]] = []

    def tell(self, time: float, where: str, what: str) -> None:
        """An event of the story."""
        self.story.append(Moment(time, where, what))
        self._unhashed.append((time, where, what))

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
        request = (time, where, what)
        self._requests.append(request)
        self._unhashed.append(request)
        if len(self._unhashed) >= _BATCH:
            self._flush()

    def requests(self) -> list[Moment]:
        """The newest requests the store ran, oldest first."""
        return [Moment(*request) for request in self._requests]

    def last_requester(self) -> str:
        """The machine whose request the store ran last."""
        return self._requests[-1][1]

    def digest(self) -> str:
        """Of everything so far."""
        self._flush()
        return self._hash.hexdigest()

    def _flush(self) -> None:
        times, places, events = zip(*self._unhashed, strict=True) if self._unhashed else ((), (), ())
        self._hash.update(array("d", times))
        self._hash.update("\n".join((*places, *events, "")).encode(errors="backslashreplace"))
        self._unhashed.clear()
