"""The model's verdicts: nothing is broken with all rules on, and each rule is missed when it is off."""

from __future__ import annotations

import pytest

from tests.model.cases import BROKEN, CAN_COME_GOOD, CLEAN, Broken, Clean
from tests.model.explore import explore, livelock

RULES = [f"R{number}" for number in range(1, 14)]


@pytest.mark.parametrize("case", CLEAN, ids=lambda case: case.name)
def test_all_rules_on_break_nothing(case: Clean, full: bool) -> None:
    result = explore(case.make(), limit=case.full if full else case.limit, landmarks=True)
    assert result.violation is None, f"\n{case.name}\n{result.violation}"
    assert result.states >= case.at_least
    assert result.at_rest > 0 or not result.complete
    assert result.complete or not case.complete
    assert case.landmarks <= result.landmarks, f"never reached: {sorted(case.landmarks - result.landmarks)}"


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.rule)
def test_a_rule_that_is_off_is_missed(case: Broken) -> None:
    result = explore(case.make(), limit=150_000, only=case.invariant)
    assert result.violation is not None, f"{case.means}: nothing is broken in {result.states} states"
    assert result.violation.invariant == case.invariant
    assert abs(len(result.violation.story) - case.steps) <= 3, f"\n{result.violation}"


def test_every_rule_has_its_counterexample() -> None:
    assert {case.rule.partition(".")[0] for case in BROKEN} == {*RULES, "scan"}


@pytest.mark.parametrize("case", CAN_COME_GOOD, ids=lambda case: case.name)
def test_rest_can_be_reached_from_everywhere(case: Clean) -> None:
    assert livelock(case.make(), limit=case.limit) is None
