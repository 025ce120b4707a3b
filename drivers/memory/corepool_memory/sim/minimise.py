"""Reduce a failing run to the few decisions that matter.

Purpose: from the thousands of non-default decisions of a random run to a few, by replaying with fewer of them.
Invariants: the result fails in the same way (``replay`` says so); the search makes at most ``most_replays`` replays; it is
deterministic.
Neighbours: :mod:`~corepool_memory.sim.run` gives the replay; decisions come from :mod:`~corepool_memory.sim.chooser`.

Method: a replay with fewer decisions is another run, whose messages meet at other moments, so that each attempt is a guess
whether the failure is still there; the guesses that would drop most come first. All decisions; all latencies; whole kinds of
decisions and whole machines; then delta debugging (Zeller and Hildebrandt, 2002) within each kind, the others being kept, the
largest kind first, with chunks that get smaller only when little comes of the larger ones; whole labels, as soon as that is so;
then over all that is left, down to single decisions; then smaller values. What a failing replay did not come to decide is
dropped without another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress

from corepool_memory.sim.chooser import Deviations

__all__ = ["minimise"]

_Name = tuple[str, int]
_Decisions = dict[_Name, int]

_LATENCIES = frozenset({"net", "slow", "late", "notice"})
"""Kinds of labels that only say how long something takes."""

_OF_NO_MACHINE = frozenset({"plan", "nemesis", "scenario"})

_FINER = 4
"""How many times as many chunks, when those of one size are used up."""


class _OutOfReplaysError(Exception):
    """The search has used up its replays."""


class _Search:
    """What fails with the fewest decisions so far; each set is tried once."""

    def __init__(
        self,
        best: Deviations,
        replay: Callable[[Deviations], Deviations | None],
        most_replays: int,
        give_up: Callable[[], bool],
    ) -> None:
        self.best: _Decisions = dict(best)
        self._replay = replay
        self._give_up = give_up
        self._left = most_replays
        self._tried: set[frozenset[tuple[_Name, int]]] = set()

    def fails(self, decisions: _Decisions) -> bool:
        """Replay with these; if it fails, what it came to decide is the best so far."""
        key = frozenset(decisions.items())
        if key in self._tried:
            return False
        if self._left <= 0 or self._give_up():
            raise _OutOfReplaysError
        self._left -= 1
        self._tried.add(key)
        decided = self._replay(decisions)
        if decided is None:
            return False
        self.best = dict(decided)
        self._tried.add(frozenset(self.best.items()))
        return True

    def without(self, names: Iterable[_Name]) -> bool:
        """Try to do without some decisions."""
        gone = set(names)
        rest = {name: value for name, value in self.best.items() if name not in gone}
        return len(rest) < len(self.best) and self.fails(rest)


def minimise(
    deviations: Deviations,
    replay: Callable[[Deviations], Deviations | None],
    *,
    most_replays: int = 300,
    give_up: Callable[[], bool] = lambda: False,
) -> dict[tuple[str, int], int]:
    """The smallest set of decisions found that still fails.

    deviations: those of a run that failed.
    replay: replay with the given decisions; those that it came to decide if it failed in the same way, else None.
    most_replays, give_up: when to stop and return the best so far.
    """
    search = _Search(deviations, replay, most_replays, give_up)
    with suppress(_OutOfReplaysError):  # what was found until then is a valid answer
        if not search.fails({}):
            _search(search)
    return search.best


def _search(search: _Search) -> None:
    search.without(name for name in search.best if _kind(name) in _LATENCIES)
    for group in (_kind, _machine):
        _drop_groups(search, group)
    parts = _FINER
    while parts <= len(search.best) * _FINER:
        before = len(search.best)
        counts = _groups(search.best, _kind)
        for kind in sorted(counts, key=lambda found: (-counts[found], found)):
            _drop_chunks(search, kind, max(1, len(search.best) // parts))
        if len(search.best) > before * 3 // 4:  # little came of it
            if parts == _FINER:
                _drop_groups(search, _label)
            parts *= _FINER
    before = 0
    while len(search.best) != before:
        before = len(search.best)
        for group in (_kind, _machine, _label):
            _drop_groups(search, group)
        _drop_chunks(search, None, 1)
    _smaller_values(search)


def _label(name: _Name) -> str:
    return name[0]


def _kind(name: _Name) -> str:
    """``nemesis`` of ``nemesis:crash:seconds``."""
    return name[0].partition(":")[0]


def _machine(name: _Name) -> str:
    """``node-1`` of ``net:node-1>``; "" if the label is of no machine."""
    return "" if _kind(name) in _OF_NO_MACHINE else name[0].partition(":")[2].rstrip("<>")


def _groups(decisions: _Decisions, group: Callable[[_Name], str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in decisions:
        counts[group(name)] = counts.get(group(name), 0) + 1
    return counts


def _drop_groups(search: _Search, group: Callable[[_Name], str]) -> None:
    """Try to do without each group that has a name, the largest first."""
    counts = _groups(search.best, group)
    counts.pop("", None)
    for wanted in sorted(counts, key=lambda found: (-counts[found], found)):
        search.without(name for name in search.best if group(name) == wanted)


def _drop_chunks(search: _Search, kind: str | None, least: int) -> None:
    """Of all decisions, or those of a kind, try to keep one chunk alone, else to do without one; with ever smaller chunks, of
    ``least`` decisions or more."""

    def members() -> list[_Name]:
        return [name for name in search.best if kind is None or _kind(name) == kind]

    found = members()
    size = max(1, len(found) // 2)
    while found and size >= least:
        at, reduced = 0, False
        while at < len(found):
            chunk = found[at : at + size]
            alone = 1 < size < len(found) <= 4 * size
            if alone and search.without({*found} - {*chunk}):
                found, at, reduced = members(), 0, True
                size = max(1, min(size, len(found)) // 2)
            elif search.without(chunk):
                found, reduced = members(), True
            else:
                at += size
        if size == 1 and not reduced:
            return
        size = max(1, size // 2)


def _smaller_values(search: _Search) -> None:
    """Try smaller values: 1 first, then by halves."""
    for name in list(search.best):
        low = 0  # does not fail with 0: then the decision would have been dropped
        tries = [1] if search.best.get(name, 0) > 1 else []
        while tries and name in search.best:
            candidate = tries.pop()
            if not search.fails({**search.best, name: candidate}):
                low = candidate
            if (high := search.best.get(name, 0)) - low > 1:
                tries.append((low + high) // 2)
