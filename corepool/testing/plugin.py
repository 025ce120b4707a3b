"""pytest plugin: fixtures for tests of job handlers.

Purpose: the options and the names of the fixtures; what they do is in :mod:`corepool.testing.fixtures`.
Invariants: pytest loads this module in every session of everybody who has corepool installed, so it imports nothing
but pytest; corepool is imported when a fixture is first used.

Fixtures:

``corepool_simulation``
    Runs a scenario on a simulated cluster, once per seed::

        def test_no_feed_is_lost(corepool_simulation):
            async def scenario(cluster):
                a, b, c = [await cluster.node("feeds", worker=Feeds) for _ in range(3)]
                await a.dispatch_job("k", b"")
                await cluster.crash(a)
                await cluster.eventually(lambda: cluster.running("k"), within=120)
            corepool_simulation(scenario)

``corepool_memory``
    An in-memory backend of the test's own, on the ordinary event loop.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from corepool.driver import Backend
    from corepool.testing.fixtures import SimulationRunner

__all__ = ["corepool_memory", "corepool_simulation", "pytest_addoption"]

_DEFAULT_SEEDS = 5


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(f"at least one seed is needed, not {number}")
    return number


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the simulator."""
    group = parser.getgroup("corepool", "corepool's cluster simulator")
    group.addoption(
        "--corepool-seeds",
        type=_count,
        default=None,
        metavar="N",
        help=f"run each simulated scenario with N seeds (default: {_DEFAULT_SEEDS}, or what the test asks for)",
    )
    group.addoption(
        "--corepool-first-seed",
        type=int,
        default=0,
        metavar="SEED",
        help="begin with this seed instead of 0, e.g. to look at other runs every night",
    )
    group.addoption(
        "--corepool-replay",
        default=None,
        metavar="TOKEN",
        help="replay the one run that TOKEN stands for; select the test it was printed by",
    )


@pytest.fixture
def corepool_simulation(request: pytest.FixtureRequest) -> SimulationRunner:
    """Call it with ``async def scenario(cluster)``: runs the scenario in virtual time, once per seed; the first
    failure is reduced and reported with its story, a token, and the command that replays it. Use it in a plain ``def``
    test."""
    from corepool.testing.fixtures import SimulationRunner

    config = request.config
    file, separator, inside = request.node.nodeid.partition("::")
    # From pytest's root to where the command line was typed: there the report's command has to find the test.
    here = os.path.relpath(config.rootpath / file, config.invocation_params.dir).replace(os.sep, "/")
    return SimulationRunner(
        test=f"{here}{separator}{inside}",
        seeds=config.getoption("--corepool-seeds"),
        default_seeds=_DEFAULT_SEEDS,
        first_seed=config.getoption("--corepool-first-seed") or 0,
        token=config.getoption("--corepool-replay"),
    )


@pytest.fixture
async def corepool_memory() -> AsyncIterator[Backend]:
    """An in-memory backend that no other test sees; closed after the test. Needs an asyncio plugin (pytest-asyncio in
    auto mode, or anyio's).
    """
    from corepool.driver import open_backend

    backend = await open_backend("memory://")
    try:
        yield backend
    finally:
        await backend.aclose()
