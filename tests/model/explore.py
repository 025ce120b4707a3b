"""A breadth-first explorer of explicit-state models, and the stories it tells.

Purpose: visit every state that a small model can reach, in the order of the number of steps, and say by which
*shortest* story a rule of the design is broken.
Invariants: a state is an immutable, hashable value and is all that a model knows (no hidden variable), so two ways that
lead to one state are explored once. The answer depends on the model and its bounds alone: no clock, no random choice,
no hash order.
Contract with the models of this folder: :class:`Model`. A step is one atomic action of one actor, and *everything* may
happen between two steps. Steps marked as faults stop at rest: a state is *at rest* when only faults could still happen,
and then everything that DESIGN section 5 promises "once faults stop" has to hold.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator
from itertools import pairwise
from typing import Generic, NamedTuple, TypeVar

S = TypeVar("S", bound=Hashable)


class Step(NamedTuple, Generic[S]):
    """One atomic action: who did what, the state afterwards, and whether it is a fault (faults are never *due*)."""

    who: str
    what: str
    after: S
    fault: bool = False


class Model(ABC, Generic[S]):
    """What a model tells the explorer. ``S`` is its state; ``off`` names the rules that are switched off."""

    name = "model"

    def __init__(self, off: Iterable[str] = ()) -> None:
        self.off = frozenset(off)

    @abstractmethod
    def initial(self) -> Iterable[S]:
        """The states to begin with."""

    @abstractmethod
    def steps(self, state: S) -> Iterator[Step[S]]:
        """Every step that may be next, of every actor, faults included."""

    @abstractmethod
    def broken(self, state: S) -> str | None:
        """The invariant that does not hold in this state (safety), or None."""

    @abstractmethod
    def broken_at_rest(self, state: S) -> str | None:
        """The invariant that does not hold although nobody has anything left to do (liveness), or None."""

    def landmarks(self, state: S) -> Iterable[str]:
        """Names of what is interesting about this state: tests assert that it was reached."""
        return ()

    @abstractmethod
    def show(self, state: S) -> str:
        """What a story prints of this state, in one line."""


class Violation(NamedTuple):
    """An invariant, broken by the shortest story there is."""

    invariant: str
    story: tuple[str, ...]
    """One line per step, ``who: what``."""
    pictures: tuple[str, ...]
    """What :meth:`Model.show` says before the first step and after each."""

    def __str__(self) -> str:
        lines = [f"  broken after {len(self.story)} steps: {self.invariant}", f"   0. {'':52s} {self.pictures[0]}"]
        seen = self.pictures[0]
        for number, (line, picture) in enumerate(zip(self.story, self.pictures[1:], strict=True), 1):
            shown = picture if picture != seen else '"'
            if len(line) > 52:
                lines.append(f"  {number:2d}. {line}")
                lines.append(f"      {'':52s} {shown}") if shown != '"' else None
            else:
                lines.append(f"  {number:2d}. {line:52s} {shown}")
            seen = picture
        return "\n".join(lines)


class Result(NamedTuple):
    """What an exploration found."""

    states: int
    depth: int
    complete: bool
    """Every reachable state was visited (else the budget of states ended it)."""
    at_rest: int
    violation: Violation | None
    landmarks: frozenset[str]


class Stuck(NamedTuple):
    """A state from which no order of steps leads to rest, though no fault happens any more: a livelock."""

    picture: str
    story: tuple[str, ...]


def explore(model: Model[S], *, limit: int, only: str | None = None, landmarks: bool = False) -> Result:
    """Visit states breadth-first until one breaks an invariant, all are visited, or ``limit`` states are known.

    only: go on past every broken invariant but this one (a rule that is missing often breaks several).
    landmarks: also collect the landmarks of all visited states (costs a second pass).
    """
    parents: dict[S, S | None] = dict.fromkeys(model.initial())
    layer = list(parents)
    depth = at_rest = 0
    complete = True
    while layer:
        following: list[S] = []
        for state in layer:
            broken = model.broken(state)
            if broken is None or (only is not None and broken != only):
                if len(parents) >= limit:
                    complete = False
                    continue  # judged, but not followed any further
                due = False
                for step in model.steps(state):
                    due = due or not step.fault
                    if step.after not in parents:
                        parents[step.after] = state
                        following.append(step.after)
                if due:
                    continue
                at_rest += 1
                broken = model.broken_at_rest(state)
                if broken is None or (only is not None and broken != only):
                    continue
            violation = Violation(broken, *_story(model, parents, state))
            return Result(len(parents), depth, complete, at_rest, violation, frozenset())
        layer = following
        depth += 1
    found: set[str] = set()
    if landmarks:
        for state in parents:
            found.update(model.landmarks(state))
    return Result(len(parents), depth, complete, at_rest, None, frozenset(found))


def livelock(model: Model[S], *, limit: int) -> Stuck | None:
    """The first state, in breadth-first order, from which rest cannot be reached by steps that are due, or None.

    Together with "every state at rest is good": whatever has happened, once faults stop all can still come good.

    Raises:
        ValueError: the model has more than ``limit`` states; then nothing can be said.
    """
    parents: dict[S, S | None] = dict.fromkeys(model.initial())
    numbers = {state: number for number, state in enumerate(parents)}
    order = list(parents)
    comes_from: list[list[int]] = [[] for _ in order]
    rest: list[int] = []
    for number, state in enumerate(order):  # grows while it is walked: that is the breadth-first queue
        due = False
        for step in model.steps(state):
            to = numbers.get(step.after)
            if to is None:
                to = numbers[step.after] = len(order)
                order.append(step.after)
                comes_from.append([])
                parents[step.after] = state
            if not step.fault:
                due = True
                comes_from[to].append(number)
        if not due:
            rest.append(number)
        if len(order) > limit:
            raise ValueError(f"{model.name} has more than {limit} states")
    good = bytearray(len(order))
    for number in rest:
        good[number] = 1
    while rest:
        for before in comes_from[rest.pop()]:
            if not good[before]:
                good[before] = 1
                rest.append(before)
    for number, state in enumerate(order):
        if not good[number]:
            return Stuck(model.show(state), _story(model, parents, state)[0])
    return None


def _story(model: Model[S], parents: dict[S, S | None], last: S) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """How ``last`` was reached: the steps, and the pictures before and after them."""
    path = [last]
    while (before := parents[path[-1]]) is not None:
        path.append(before)
    path.reverse()
    lines: list[str] = []
    for here, there in pairwise(path):
        step = next(step for step in model.steps(here) if step.after == there)
        lines.append(f"{step.who}: {step.what}")
    return tuple(lines), tuple(model.show(state) for state in path)
