"""Reduce a failing run to the few decisions that matter.

Purpose: from the hundreds of non-default decisions of a random run to one or two, by replaying with fewer of them.
Invariants: the result fails in the same way (``fails`` says so); the search makes at most ``most_replays`` replays; it
is deterministic.
Neighbours: :mod:`~corepool_memory.sim.run` gives the replay; decisions come from :mod:`~corepool_memory.sim.chooser`.

Method: delta debugging (Zeller and Hildebrandt, 2002) over the decisions, preceded by two guesses that often end it (no
deviation at all; one label's decisions at a time), followed by smaller values for what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

from corepool_memory.sim.chooser import Deviations

__all__ = ["minimise"]

_Decisions = list[tuple[tuple[str, int], int]]


class _OutOfReplaysError(Exception):
    """The search has used up its replays."""


class _Search:
    """Answers "does it fail with these decisions?", each set once."""

    def __init__(self, fails: Callable[[Deviations], bool], most_replays: int, give_up: Callable[[], bool]) -> None:
        self._fails = fails
        self._give_up = give_up
        self._left = most_replays
        self._known: dict[frozenset[tuple[tuple[str, int], int]], bool] = {}

    def fails(self, decisions: _Decisions) -> bool:
        key = frozenset(decisions)
        known = self._known.get(key)
        if known is None:
            if self._left <= 0 or self._give_up():
                raise _OutOfReplaysError
            self._left -= 1
            known = self._known[key] = self._fails(dict(decisions))
        return known


def minimise(
    deviations: Deviations,
    fails: Callable[[Deviations], bool],
    *,
    most_replays: int = 300,
    give_up: Callable[[], bool] = lambda: False,
) -> dict[tuple[str, int], int]:
    """The smallest set of decisions found that still fails.

    deviations: those of a run that failed.
    fails: replay with the given decisions; whether it failed in the same way.
    most_replays, give_up: when to stop and return the best so far.
    """
    search = _Search(fails, most_replays, give_up)
    best: _Decisions = list(deviations.items())
    with suppress(_OutOfReplaysError):  # what was found until then is a valid answer
        for better in _improvements(search, best):
            best = better
    return dict(best)


def _improvements(search: _Search, best: _Decisions) -> Iterator[_Decisions]:
    if search.fails([]):
        yield []
        return
    for step in (_drop_labels, _drop_chunks, _smaller_values):
        for better in step(search, best):
            best = better
            yield best


def _drop_labels(search: _Search, best: _Decisions) -> Iterator[_Decisions]:
    """Try to do without all decisions of a label, most frequent label first."""
    counts: dict[str, int] = {}
    for (label, _), _value in best:
        counts[label] = counts.get(label, 0) + 1
    for label in sorted(counts, key=lambda label: (-counts[label], label)):
        without = [decision for decision in best if decision[0][0] != label]
        if len(without) < len(best) and search.fails(without):
            best = without
            yield best


def _drop_chunks(search: _Search, best: _Decisions) -> Iterator[_Decisions]:
    """Try to keep one chunk alone, else to do without one, with ever smaller chunks."""
    size = max(1, len(best) // 2)
    while best:
        reduced = False
        at = 0
        while at < len(best) and len(best) > 1:
            chunk, rest = best[at : at + size], best[:at] + best[at + size :]
            if len(chunk) < len(best) and search.fails(chunk):
                best, reduced = chunk, True
                size = max(1, len(best) // 2)
                at = 0
                yield best
            elif rest and search.fails(rest):
                best, reduced = rest, True
                yield best
            else:
                at += size
        if size == 1:
            if not reduced:
                return
        else:
            size = max(1, size // 2)


def _smaller_values(search: _Search, best: _Decisions) -> Iterator[_Decisions]:
    """Try smaller values: 1 first, then by halves."""
    for index in range(len(best)):
        name, value = best[index]
        low = 0  # does not fail with 0: then the decision would have been dropped
        tries = [1] if value > 1 else []
        while tries:
            candidate = tries.pop()
            smaller = [*best[:index], (name, candidate), *best[index + 1 :]]
            if search.fails(smaller):
                best, value = smaller, candidate
                yield best
            else:
                low = candidate
            if value - low > 1:
                tries.append((low + value) // 2)
