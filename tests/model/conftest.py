"""``pytest tests/model --model-depth=full``: up to 3 million states per case, for some minutes."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--model-depth",
        choices=["default", "full"],
        default="default",
        help="how far the exhaustive model is explored (give the folder tests/model on the command line)",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("model_depth", "default") == "full":
        for item in items:
            item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """Whether the deep exploration was asked for. The option is unknown when this folder was not named: then it was not."""
    return bool(request.config.getoption("model_depth", "default") == "full")
