"""Each safeguard switched off is caught by the invariant that names it; with the safeguard the same run passes.

A mutant is hunted where it was caught last, and, if the code has moved since, through the default seeds of tests/chaos.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from corepool.testing import Cluster, NotInTime
from tests.chaos.conftest import DEFAULT_SEEDS
from tests.chaos.exploring import KINDS

from .clauses import CLAUSES
from .mutant import Mutant, Where
from .rules import RULES
from .safeguards import SAFEGUARDS

MUTANTS = {mutant.rule: mutant for mutant in (*RULES, *CLAUSES, *SAFEGUARDS)}
SMALL_SEEDS = 3


def _default_seeds(mutant: Mutant) -> range:
    """Those of a default run of its scenario; a disaster gets a quarter of them."""
    if not isinstance(mutant.scenario, str):
        return range(SMALL_SEEDS)
    return range(DEFAULT_SEEDS if mutant.scenario == "chaos" else DEFAULT_SEEDS // 4)


def _hunting_ground(mutant: Mutant) -> Iterator[Where]:
    if mutant.known is not None:
        yield mutant.known
    yield from (Where(kind, seed) for seed in _default_seeds(mutant) for kind in KINDS)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("rule", MUTANTS)
def test_a_safeguard_is_missed(rule: str) -> None:
    mutant = MUTANTS[rule]
    others: Counter[str] = Counter()
    for where in _hunting_ground(mutant):
        result = mutant.run(where, mutated=True)
        if mutant.names(result):
            mutant.run(where, mutated=False).check()
            return
        if result.violation is not None:
            others[result.violation.text[:200]] += 1
    pytest.fail(f"nobody missed {rule!r} ({mutant.breaks}); other violations: {dict(others) or 'none'}", pytrace=False)


@pytest.mark.parametrize("rule", [rule for rule, mutant in MUTANTS.items() if not isinstance(mutant.scenario, str)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_small_scenarios_pass_with_the_safeguard(rule: str, kind: str) -> None:
    for seed in range(SMALL_SEEDS):
        MUTANTS[rule].run(Where(kind, seed), mutated=False).check()


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (AssertionError("two live owners"), True),
        (AssertionError("it passed, but there were two live owners"), False),
        (ValueError("two live owners"), False),
        (NotInTime("two live owners"), False),
        (None, False),
    ],
)
def test_nothing_but_a_check_names_a_safeguard(error: Exception | None, named: bool) -> None:
    async def scenario(cluster: Cluster) -> None:
        if error is None:
            await asyncio.Event().wait()  # a deadlock, whose report tells of this very line: two live owners
        raise error or AssertionError

    mutant = Mutant(rule="none", breaks="", changes=(), caught="two live owners", scenario=scenario)
    result = mutant.run(Where("atomic", 0), mutated=True)
    assert not result.passed
    assert mutant.names(result) == named


def test_every_rule_has_a_mutant() -> None:
    assert {mutant.rule.partition(".")[0] for mutant in RULES} == {f"R{number}" for number in range(1, 14)}
    assert len(SAFEGUARDS) >= 8
    assert len(MUTANTS) == len(RULES) + len(CLAUSES) + len(SAFEGUARDS), "two mutants have one name"
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert f"each of {len(MUTANTS)} safeguards is switched off once" in readme


def test_none_is_known_beyond_the_default_seeds() -> None:
    """One that is has been missed by every default run: it wants a small scenario of its own."""
    known = {rule: mutant.known for rule, mutant in MUTANTS.items() if mutant.known is not None}
    assert not {rule: where for rule, where in known.items() if where.seed not in _default_seeds(MUTANTS[rule])}


@pytest.mark.timeout(36_000)
def test_how_easily_they_are_missed(exploring: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The longer exploration: collected when it is asked for (``--mutations-explore``)."""
    for rule, mutant in MUTANTS.items():
        results = [mutant.run(Where(kind, seed), mutated=True) for seed in range(exploring) for kind in KINDS]
        caught, failed = sum(map(mutant.names, results)), sum(not result.passed for result in results)
        with capsys.disabled():
            print(f"\n{rule}: named by {caught} of {len(results)} runs; {failed} failed in all", end="", flush=True)
        assert caught, rule
