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
from itertools import chain
from operator import ge
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
        """Every step that may be next, of every actor, faults included; or some, if what they lead to is as good."""

    def every_step(self, state: S) -> Iterator[Step[S]]:
        """Those as well that `steps` leaves out: for telling a story."""
        return self.steps(state)

    @abstractmethod
    def broken(self, state: S) -> str | None:
        """The invariant that does not hold in this state (safety), or None."""

    @abstractmethod
    def broken_at_rest(self, state: S) -> str | None:
        """The invariant that does not hold although nobody has anything left to do (liveness), or None."""

    def canonical(self, state: S) -> S:
        """One state for all that differ in nothing that matters: the explorer follows it in their place.

        What can happen from the two, and what is judged of it, must be the same but for the names of actors.
        """
        return state

    def budget(self, state: S) -> tuple[Hashable, tuple[int, ...]]:
        """The state without its budget of faults, and the budget. Faults are never due, so whoever may still see more
        of each fault can do all that the other can, and is judged no milder: the other need not be followed."""
        return state, ()

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
    order = list(dict.fromkeys(map(model.canonical, model.initial())))
    parents = [-1] * len(order)
    budgets: dict[Hashable, list[tuple[int, ...]]] = {}
    for state in order:
        _is_new(budgets, *model.budget(state))
    first = depth = at_rest = 0
    complete = True
    while first < len(order):
        last = len(order)  # of this layer
        for number in range(first, last):
            state = order[number]
            broken = model.broken(state)
            if broken is None or (only is not None and broken != only):
                if len(order) >= limit:
                    complete = False
                    continue  # judged, but not followed any further
                due = False
                for step in model.steps(state):
                    due = due or not step.fault
                    after = model.canonical(step.after)
                    if _is_new(budgets, *model.budget(after)):
                        order.append(after)
                        parents.append(number)
                if due:
                    continue
                at_rest += 1
                broken = model.broken_at_rest(state)
                if broken is None or (only is not None and broken != only):
                    continue
            violation = Violation(broken, *_story(model, order, parents, number))
            return Result(len(order), depth, complete, at_rest, violation, frozenset())
        first = last
        depth += 1
    found: set[str] = set()
    if landmarks:
        for state in order:
            found.update(model.landmarks(state))
    return Result(len(order), depth, complete, at_rest, None, frozenset(found))


def _is_new(budgets: dict[Hashable, list[tuple[int, ...]]], rest: Hashable, budget: tuple[int, ...]) -> bool:
    """Whether no state is known that is the same and may still see as many of each fault."""
    known = budgets.get(rest)
    if known is None:
        budgets[rest] = [budget]
        return True
    if any(other == budget or all(map(ge, other, budget)) for other in known):
        return False
    known.append(budget)
    return True


def livelock(model: Model[S], *, limit: int) -> Stuck | None:
    """The first state, in breadth-first order, from which rest cannot be reached by steps that are due, or None.

    Together with "every state at rest is good": whatever has happened, once faults stop all can still come good.

    Raises:
        ValueError: the model has more than ``limit`` states; then nothing can be said.
    """
    order = list(dict.fromkeys(map(model.canonical, model.initial())))
    numbers = {state: number for number, state in enumerate(order)}
    parents = [-1] * len(order)
    comes_from: list[list[int]] = [[] for _ in order]
    rest: list[int] = []
    for number, state in enumerate(order):  # grows while it is walked: that is the breadth-first queue
        due = False
        for step in model.steps(state):
            after = model.canonical(step.after)
            to = numbers.get(after)
            if to is None:
                to = numbers[after] = len(order)
                order.append(after)
                comes_from.append([])
                parents.append(number)
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
            return Stuck(model.show(state), _story(model, order, parents, number)[0])
    return None


def _story(model: Model[S], order: list[S], parents: list[int], last: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """How state number ``last`` was reached: the steps, and the pictures before and after them.

    Told of the states themselves, for in canonical ones an actor may change its name from one step to the next.
    """
    path: list[S] = []
    while last >= 0:
        path.append(order[last])
        last = parents[last]
    here = next(state for state in model.initial() if model.canonical(state) == path[-1])
    lines: list[str] = []
    pictures = [model.show(here)]
    for there in reversed(path[:-1]):
        ways = chain(model.steps(here), model.every_step(here))
        step = next(step for step in ways if model.canonical(step.after) == there)
        here = step.after
        lines.append(f"{step.who}: {step.what}")
        pictures.append(model.show(here))
    return tuple(lines), tuple(pictures)
