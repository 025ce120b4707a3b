"""A safeguard switched off, and what must find it.

Purpose: a rule whose absence nobody notices is either not needed or not tested.
Invariants: a mutant changes one thing; it is caught if a run is ended by a violation whose text names what the safeguard is
for, as written beside it, and the same run passes unmutated.
Neighbours: ``rules`` and ``safeguards`` list them, ``test_mutations`` hunts them.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import attrs

from corepool.testing import Cluster, Faults, Result, simulate_cluster
from corepool_memory.options import MemoryOptions
from tests.chaos.exploring import BUDGETS, KINDS, SCENARIOS

__all__ = ["Change", "Mutant", "Where", "amended", "changed", "misled", "one_id"]

_CHECKED_BY = re.compile("^(after every step|InvariantViolated|HistoryViolation|AssertionError): ")


@attrs.frozen
class Where:
    """A run: of a scenario, on a kind of store, with a seed."""

    kind: str
    seed: int


@attrs.frozen
class Change:
    """Instead of ``owner.name`` there is ``other``."""

    owner: Any
    name: str
    other: Any


@attrs.frozen(kw_only=True)
class Mutant:
    """A safeguard, and what is there instead.

    rule: of DESIGN 4, or the safeguard's name. breaks: what goes wrong without it.
    caught: how the violation's own text begins (a regular expression): the number of the invariant, and what it says.
    scenario: one of tests/chaos, by name, or a small one of its own, which runs without faults.
    kinds: the kinds of store on which a small one catches it, whatever the seed.
    """

    rule: str
    breaks: str
    changes: tuple[Change, ...]
    caught: str
    scenario: str | Callable[[Cluster], Awaitable[object]] = "chaos"
    kinds: tuple[str, ...] = tuple(KINDS)

    @contextmanager
    def switched_off(self) -> Generator[None]:
        """Without the safeguard, for the length of the block."""
        with ExitStack() as stack:
            for change in self.changes:
                stack.enter_context(mock.patch.object(change.owner, change.name, change.other))
            yield

    def run(self, where: Where, *, mutated: bool) -> Result:
        """One run, with the safeguard or without; a failure is not reduced."""
        if isinstance(self.scenario, str):
            scenario, faults = SCENARIOS[self.scenario], Faults.everything()
        else:
            scenario, faults = self.scenario, Faults.network()
        with self.switched_off() if mutated else ExitStack():
            return simulate_cluster(
                scenario,
                seed=where.seed,
                faults=faults,
                budgets=BUDGETS,
                name=self.scenario if isinstance(self.scenario, str) else self.rule,
                store_options=MemoryOptions(atomic_commit=KINDS[where.kind]),
                most_replays=0,
            )

    def names(self, result: Result) -> bool:
        """Whether a check ended the run, and said what the safeguard is there for. A crash, a deadlock, a budget that is used
        up or a condition that does not come true in time are no such thing, whatever words their reports hold."""
        found = result.violation
        if found is None or not isinstance(found.error, AssertionError):
            return False
        said = _CHECKED_BY.sub("", found.text.partition("\n")[0], count=1)
        return re.match(self.caught, said) is not None


def amended(owner: Any, name: str, amend: Callable[[Any], Any]) -> Change:
    """A change of what a method returns, or a coroutine method's result."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        if not inspect.iscoroutinefunction(original):
            return lambda *arguments, **options: amend(original(*arguments, **options))

        async def later(*arguments: Any, **options: Any) -> Any:
            return amend(await original(*arguments, **options))

        return later

    return changed(owner, name, make)


def misled(owner: Any, name: str, mislead: Callable[..., tuple[Any, ...]]) -> Change:
    """A change of what a method is called with: ``mislead`` gets its arguments, self among them, and gives others."""
    return changed(owner, name, lambda original: lambda *arguments: original(*mislead(*arguments)))


def changed(owner: Any, name: str, make: Callable[[Any], Any]) -> Change:
    """A change of a method into something made of it."""
    return Change(owner, name, make(getattr(owner, name)))


def one_id(prefix: str) -> Callable[[Any], Any]:
    """Instead of `NodeContext.new_id`: a node has one id of this kind, which it uses again."""

    def make(new_id: Any) -> Any:
        def same(context: Any, wanted: str) -> Any:
            if wanted != prefix:
                return new_id(context, wanted)
            kept: str = context.__dict__.setdefault("_kept_id", None) or new_id(context, prefix)
            context.__dict__["_kept_id"] = kept
            return kept

        return same

    return make
