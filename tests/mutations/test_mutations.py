"""Each safeguard switched off is caught by the invariant that names it; with the safeguard the same run passes.

One with a small scenario is caught by every run of that; any other is hunted through the default seeds of its scenario in
tests/chaos. No place where one was caught is kept: it would go stale with the next change of the code.
"""

from __future__ import annotations

import asyncio
from collections import Counter
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


HUNTED = [rule for rule, mutant in MUTANTS.items() if isinstance(mutant.scenario, str)]
AIMED = [rule for rule, mutant in MUTANTS.items() if not isinstance(mutant.scenario, str)]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("rule", HUNTED)
def test_a_safeguard_is_missed(rule: str) -> None:
    mutant = MUTANTS[rule]
    others: Counter[str] = Counter()
    for where in (Where(kind, seed) for seed in _default_seeds(mutant) for kind in KINDS):
        result = mutant.run(where, mutated=True)
        if mutant.names(result):
            mutant.run(where, mutated=False).check()
            return
        if result.violation is not None:
            others[result.violation.text[:200]] += 1
    pytest.fail(f"nobody missed {rule!r} ({mutant.breaks}); other violations: {dict(others) or 'none'}", pytrace=False)


@pytest.mark.parametrize("rule", AIMED)
def test_a_safeguard_is_missed_by_each_run_that_aims_at_it(rule: str) -> None:
    mutant = MUTANTS[rule]
    for where in (Where(kind, seed) for kind in mutant.kinds for seed in _default_seeds(mutant)):
        result = mutant.run(where, mutated=True)
        found = "nothing" if result.violation is None else result.violation.text
        assert mutant.names(result), f"{where} missed {rule!r} ({mutant.breaks}); it found {found}"


@pytest.mark.parametrize("rule", AIMED)
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
    assert f"Each of {len(MUTANTS)} safeguards is switched off once" in " ".join(readme.split())


@pytest.mark.timeout(36_000)
def test_how_easily_they_are_missed(exploring: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The longer exploration: collected when it is asked for (``--mutations-explore``)."""
    for rule, mutant in MUTANTS.items():
        results = [mutant.run(Where(kind, seed), mutated=True) for seed in range(exploring) for kind in KINDS]
        caught, failed = sum(map(mutant.names, results)), sum(not result.passed for result in results)
        with capsys.disabled():
            print(f"\n{rule}: named by {caught} of {len(results)} runs; {failed} failed in all", end="", flush=True)
        assert caught, rule
