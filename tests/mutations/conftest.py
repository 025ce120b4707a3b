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
