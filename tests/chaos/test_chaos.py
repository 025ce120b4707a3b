"""Whole pools under all kinds of faults: whatever befalls them, the promises of DESIGN 5 hold.

Each test is one run, a function of its seed; its failure prints the smallest run that fails alike, its story, and a token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from corepool.cli.app import app
from corepool.testing import Faults, simulate_cluster
from corepool.testing.chaos import chaos
from corepool_memory.options import MemoryOptions
from tests.chaos.summary import TOTAL

from .conftest import DEFAULT_SEEDS, default_runs
from .coverage import RECOVERIES, TRANSITIONS, Coverage, watched
from .exploring import BUDGETS, KINDS, SCENARIOS, VIRTUAL, run

FAULTS = (
    "request lost",
    "reply lost",
    "reset before",
    "reset after",
    "reset during",
    "late",
    "doubled",
    "crash",
    "crash at request",
    "pause",
    "partition",
    "clog",
    "skew",
    "clock off",
    "clock drift",
    "rollback",
)
SITUATIONS = (
    *(
        f"dispatch: {outcome}"
        for outcome in (
            "success",
            "JobExistsError",
            "JobStartError",
            "JobGoneError",
            "DispatchTimeoutError",
            "OutcomeUnknown",
            "QueueFullError",
            "BackendUnavailable",
            "PoolShutdownError",
        )
    ),
    *(f"stop: {outcome}" for outcome in ("success", "JobNotFoundError", "OutcomeUnknown", "BackendUnavailable")),
    *(f"notify: {outcome}" for outcome in ("success", "JobNotFoundError", "JobNotifyError", "OutcomeUnknown")),
    "retry",
    "a tick",
    "a plan was made",
    "a plan failed",
    "a caller of dispatch was cancelled",
    "a caller of add_worker was cancelled",
    "a node did not come up at once",
    "a node closed",
    "a worker was added",
    "a worker was removed",
    "a machine was restarted",
    "a pool was shut down",
    "a worker came too late",
    "a minority is down for good",
    "the store was away for longer than a worker lives",
    "the store went back",
    *(f"a record took the way {edge}" for edge in ("claim", "confirm", "release", "revive", "ask_stop", "fail")),
)


@pytest.fixture
def passes(request: pytest.FixtureRequest) -> Callable[[str, str, int], None]:
    """Fails the test with the report of the run, if it failed."""

    def check(scenario: str, kind: str, seed: int) -> None:
        if report := run(scenario, kind, seed, request.config.getoption("chaos_replay", None)):
            pytest.fail(report, pytrace=False)

    return check


@pytest.mark.timeout(120)
def test_chaos(passes: Callable[[str, str, int], None], kind: str, seed: int) -> None:
    """Nodes come, go and crash under faults while clients call."""
    passes("chaos", kind, seed)


@pytest.mark.timeout(120)
def test_minority(passes: Callable[[str, str, int], None], kind: str, seed: int) -> None:
    """The same, and a minority of the machines never comes back."""
    passes("minority", kind, seed)


@pytest.mark.timeout(120)
def test_outage(passes: Callable[[str, str, int], None], kind: str, seed: int) -> None:
    """The same, and the whole store is away for longer than ``worker_ttl``."""
    passes("outage", kind, seed)


@pytest.mark.timeout(120)
def test_rollback(passes: Callable[[str, str, int], None], kind: str, seed: int) -> None:
    """The same, and the store loses acknowledged writes (R13)."""
    passes("rollback", kind, seed)


@pytest.mark.timeout(600)
def test_all_of_it_happens(request: pytest.FixtureRequest) -> None:
    """Every kind of fault, every outcome a caller can be told, every transition of a record and every path of recovery is
    reached by the default seeds: a run in which nothing happens proves nothing."""
    for scenario, kind, seed in default_runs(request.config):
        run(scenario, kind, seed, None)
    wanted = [f"fault: {name}" for name in FAULTS] + [*SITUATIONS, *TRANSITIONS, *RECOVERIES]
    assert [what for what in wanted if not TOTAL.covered[what]] == []


@pytest.mark.timeout(600)
def test_the_readme_says_how_much_that_is() -> None:
    """Within a tenth: the hours of the default run, and of ``corepool sim run --seeds 500``, whose first seeds are the same."""
    default = [
        (scenario, kind, seed)
        for scenario in SCENARIOS
        for kind in KINDS
        for seed in range(DEFAULT_SEEDS if scenario == "chaos" else DEFAULT_SEEDS // 4)
    ]
    for scenario, kind, seed in default:
        run(scenario, kind, seed, None)
    readme = " ".join((Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").split())
    said = re.search(
        r"through ([\d.]+) hours of crashes.* --seeds (\d+)` goes through ([\d.]+) hours; its first (\d+) ", readme
    )
    assert said is not None
    hours, seeds, more, first = map(float, said.groups())
    assert hours == pytest.approx(sum(VIRTUAL[each] for each in default) / 3600, rel=0.1)
    assert first == DEFAULT_SEEDS
    same = sum(VIRTUAL["chaos", "atomic", seed] for seed in range(DEFAULT_SEEDS))
    assert more == pytest.approx(same / DEFAULT_SEEDS * seeds / 3600, rel=0.1)


def test_the_command_and_the_tests_run_the_same() -> None:
    """What ``corepool sim run`` does with a seed is what the test of that seed on an atomic store did."""
    ran = CliRunner().invoke(app, ["sim", "run", "--seeds", "1", "--first", "7", "--json"])
    run("chaos", "atomic", 7, None)
    assert json.loads(ran.stdout)["virtual_seconds"] == pytest.approx(VIRTUAL["chaos", "atomic", 7])


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_a_function_of_its_seed(kind: str) -> None:
    """Watched or not, the same events at the same times: else no failure could be replayed."""

    def digest() -> str:
        options = MemoryOptions(atomic_commit=KINDS[kind])
        return simulate_cluster(
            chaos, seed=3, faults=Faults.everything(), budgets=BUDGETS, name="chaos", store_options=options
        ).digest

    plain = digest()
    with watched(Coverage()):
        assert digest() == plain
