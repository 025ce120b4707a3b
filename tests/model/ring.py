"""Rebalancing with rings that are not equally old (R5).

Purpose: two nodes and one job. Each node knows the ``workers`` map at some revision, and the newest only in the end.
What belongs where is a function of that revision: here A, B, A, ... so that every revision is a reason to move.
Invariants: a job is moved at most once per ring revision (no ping-pong), and once everybody knows the newest ring the
job is where it belongs. A mover stamps the revision *by which it decided* into the record; so does a cleaner, and never
a larger one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tests.model.explore import Model, Step

NEWEST = 3
NODES = "AB"

NO_PING_PONG = "10. a job moves at most once per ring revision"
PLACED = "10. a job ends where it belongs"


class Placed(NamedTuple):
    views: tuple[int, int] = (1, 1)
    """The ring revision that A and B know."""
    owner: int = 0
    stamp: int = 1
    moves: int = 0
    cleaner_view: int = 1
    deaths: int = 1


def belongs(revision: int) -> int:
    """The worker to which the job belongs at a ring revision."""
    return (revision + 1) % 2


class RingModel(Model[Placed]):
    name = "ring"

    def initial(self) -> Iterable[Placed]:
        yield Placed()
        # A dispatcher whose ring is newer or older than the owners': it stamps what it knew.
        yield Placed(owner=1, stamp=2)

    def steps(self, state: Placed) -> Iterator[Step[Placed]]:
        for index, view in enumerate(state.views):
            if view < NEWEST:
                views = (view + 1, state.views[1]) if index == 0 else (state.views[0], view + 1)
                yield Step(f"node {NODES[index]}", f"learns ring {view + 1}", state._replace(views=views))
        if state.cleaner_view < NEWEST:
            yield Step(
                "cleaner", f"learns ring {state.cleaner_view + 1}", state._replace(cleaner_view=state.cleaner_view + 1)
            )
        view = state.views[state.owner]
        target = belongs(view)
        if target != state.owner and (view > state.stamp or "R5" in self.off):
            stamp = view if "R5.stamp" not in self.off else max(view, state.stamp) + 1
            moved = state._replace(owner=target, stamp=stamp, moves=state.moves + 1)
            yield Step(f"node {NODES[state.owner]}", f"moves the job to {NODES[target]} by ring {view}", moved)
        if state.deaths:
            # The worker died and came back under another id: a cleaner places the job by the ring that the cleaner knows.
            view = state.cleaner_view
            stamp = view if "R5.cleaner" not in self.off else max(view, state.stamp)
            requeued = state._replace(owner=belongs(view), stamp=stamp, deaths=0, moves=0)
            yield Step("cleaner", f"requeues the job to {NODES[belongs(view)]} by ring {view}", requeued, True)

    def broken(self, state: Placed) -> str | None:
        return NO_PING_PONG if state.moves >= NEWEST else None

    def broken_at_rest(self, state: Placed) -> str | None:
        return None if state.owner == belongs(NEWEST) else PLACED

    def landmarks(self, state: Placed) -> Iterable[str]:
        if state.moves:
            yield f"moved {state.moves} times"
        if state.views[state.owner] < state.stamp:
            yield "an owner whose ring is older than the stamp"
        if state.cleaner_view < state.stamp and not state.deaths:
            yield "a cleaner whose ring is older than the stamp"

    def show(self, state: Placed) -> str:
        return (
            f"owner {NODES[state.owner]}, stamp {state.stamp}, moved {state.moves} times | A knows ring {state.views[0]}"
            f" | B knows ring {state.views[1]} | cleaner knows ring {state.cleaner_view}"
        )
