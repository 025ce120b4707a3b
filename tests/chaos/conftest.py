"""``pytest tests/chaos --chaos-seeds 2000`` explores further; ``--chaos-first-seed`` elsewhere; ``--chaos-replay`` replays the
token of a failure, for the one test that printed it."""

from __future__ import annotations

import pytest

from .exploring import KINDS, SCENARIOS

DEFAULT_SEEDS = 100


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--chaos-seeds",
        type=int,
        default=DEFAULT_SEEDS,
        metavar="N",
        help="seeds of the chaos scenario on each kind of store, and a quarter of it for each disaster "
        f"(give the folder tests/chaos on the command line; default: {DEFAULT_SEEDS})",
    )
    parser.addoption("--chaos-replay", metavar="TOKEN", help="replay this run, in the one test that is selected")
    parser.addoption("--chaos-first-seed", type=int, default=0, metavar="SEED", help="begin with this seed")


def default_runs(config: pytest.Config) -> list[tuple[str, str, int]]:
    """Scenario, kind of store and seed of each run. The options are unknown when this folder was not named."""
    count = int(config.getoption("chaos_seeds", DEFAULT_SEEDS))
    first = int(config.getoption("chaos_first_seed", 0))
    return [
        (scenario, kind, seed)
        for scenario in SCENARIOS
        for kind in KINDS
        for seed in range(first, first + (count if scenario == "chaos" else max(1, count // 4)))
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if {"kind", "seed"} <= set(metafunc.fixturenames):
        scenario = metafunc.function.__name__.removeprefix("test_")
        runs = [(kind, seed) for name, kind, seed in default_runs(metafunc.config) if name == scenario]
        metafunc.parametrize(("kind", "seed"), runs, ids=[f"{kind}-{seed}" for kind, seed in runs])
