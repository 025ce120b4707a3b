"""The model's verdicts: nothing is broken with all rules on, and each rule is missed when it is off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.model.broken import BROKEN, Broken
from tests.model.cases import CAN_COME_GOOD, CLEAN, Clean
from tests.model.explore import Model, explore, livelock
from tests.model.job import Job

RULES = [f"R{number}" for number in range(1, 14)]


@pytest.mark.timeout(300)
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
    assert len(result.violation.story) == case.steps, f"\n{result.violation}"


@pytest.mark.parametrize("case", [case for case in BROKEN if isinstance(case.make(), Job)], ids=lambda case: case.rule)
def test_what_keeps_the_job_model_small_lengthens_no_story(case: Broken) -> None:
    plain = _plain(case.make())
    result = explore(plain, limit=150_000, only=case.invariant)
    assert result.violation is not None
    assert len(result.violation.story) == case.steps
    assert result.states >= explore(case.make(), limit=150_000, only=case.invariant).states


@pytest.mark.parametrize(
    "name", ["one job and a stop", "handlers that fail, a move", "two deaths, pause and crash, an unknown outcome"]
)
def test_what_keeps_the_job_model_small_hides_nothing(name: str) -> None:
    """Every situation is reached, by fewer states."""
    [case] = [case for case in CLEAN if case.name == name]
    small, plain = (explore(model, limit=200_000, landmarks=True) for model in (case.make(), _plain(case.make())))
    assert (small.complete, small.violation) == (True, None)
    assert (plain.complete, plain.violation) == (True, None)
    assert small.states < plain.states
    assert small.landmarks == plain.landmarks


def _plain(model: Model[Any]) -> Model[Any]:
    assert isinstance(model, Job)
    return Job(model.config, model.off, reduced=False)


def test_every_rule_has_its_counterexample() -> None:
    assert {case.rule.partition(".")[0] for case in BROKEN} == {*RULES, "scan"}


def test_the_page_about_the_model_lists_every_case() -> None:
    page = (Path(__file__).parents[2] / "docs" / "model.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    for case in BROKEN:
        assert any(f"| `{case.rule}` |" in row and f"| {case.invariant} | {case.steps} |" in row for row in rows), (
            case.rule
        )


@pytest.mark.parametrize("case", CAN_COME_GOOD, ids=lambda case: case.name)
def test_rest_can_be_reached_from_everywhere(case: Clean) -> None:
    assert livelock(case.make(), limit=case.limit) is None
