"""Runs that once found something pass: ``regressions.txt`` tells what it was."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .exploring import KINDS, SCENARIOS, run

LINES = [
    line
    for line in (Path(__file__).parent / "regressions.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]
ENTRY = re.compile(r"(?P<scenario>\w+) (?P<kind>\w+) (?P<seed>\d+): (?P<story>.+?)(?: \[(?P<mutant>.+)\])?")


def _entry(line: str) -> re.Match[str]:
    entry = ENTRY.fullmatch(line)
    assert entry is not None, f"not 'scenario kind seed: story [mutant]': {line}"
    return entry


@pytest.mark.timeout(120)
@pytest.mark.parametrize("line", LINES, ids=[line.partition(":")[0] for line in LINES])
def test_a_run_that_found_something_passes(line: str) -> None:
    entry = _entry(line)
    assert entry["scenario"] in SCENARIOS
    assert entry["kind"] in KINDS
    if report := run(entry["scenario"], entry["kind"], int(entry["seed"]), None):
        pytest.fail(f"{entry['story']}\n{report}", pytrace=False)


def test_each_names_a_mutant_that_exists() -> None:
    from tests.mutations.test_mutations import MUTANTS

    entries = [_entry(line) for line in LINES]
    assert sorted({entry["mutant"] for entry in entries if entry["mutant"]} - MUTANTS.keys()) == []
    assert [entry[0] for entry in entries if not entry["mutant"] and "(The test's own" not in entry["story"]] == []
