"""``pytest tests/mutations --mutations-explore 300`` shows for every mutant how many of so many seeds catch it."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--mutations-explore",
        type=int,
        default=0,
        metavar="N",
        help="run every mutant with N seeds on each kind of store, and tell how many catch it "
        "(give the folder tests/mutations on the command line)",
    )


@pytest.fixture
def exploring(request: pytest.FixtureRequest) -> int:
    """How many seeds to explore."""
    return int(request.config.getoption("mutations_explore"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """An exploration nobody asked for is no test that is skipped: it is none."""
    if not config.getoption("mutations_explore", 0):
        items[:] = [item for item in items if not item.name.startswith("test_how_easily_they_are_missed")]
