"""pytest plugin of the conformance kit. Imports neither Hypothesis nor corepool until the kit is asked for.

Purpose: the options, the fixture behind every contract test, the rules of a run (nothing overridden, nothing skipped, no
stale known failure), and the report.
Invariants: without ``--corepool-url`` and without a subclass of the kit's classes a pytest run is not touched; a backend that
cannot be reached is an error; a contract test ends as passed, failed, known failure or not tested, nothing else.
Neighbours: ``run.py`` holds the state of a run, ``kit.py`` the tests' view.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

if TYPE_CHECKING:
    from corepool_conformance.kit import Kit
    from corepool_conformance.run import Run

pytest.register_assert_rewrite(
    "corepool_conformance.kit", "corepool_conformance.contract", "corepool_conformance.waiting"
)

_HERE = Path(__file__).parent
_RUN = pytest.StashKey["Run"]()
_SEED = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("corepool-conformance", "corepool's conformance kit for drivers")
    group.addoption(
        "--corepool-url", metavar="URL", help="the backend to hold to the contract, e.g. redis://localhost:6379"
    )
    group.addoption(
        "--corepool-seed", metavar="N", type=int, help="the seed of all random choices (default: a new one)"
    )
    group.addoption(
        "--corepool-label", metavar="NAME", help="what to call the backend in reports (default: the scheme)"
    )
    group.addoption("--corepool-report", metavar="FILE", help="write the result as JSON")
    group.addoption(
        "--corepool-known-failures",
        metavar="FILE",
        help="TOML with the failures you know of; an entry that matches nothing, or passes, is an error",
    )
    group.addoption(
        "--corepool-ack-wait",
        metavar="SECONDS",
        type=float,
        default=1.0,
        help="ack_wait of the kit's sinks (default 1)",
    )
    group.addoption(
        "--corepool-budget",
        metavar="SECONDS",
        type=float,
        default=30.0,
        help="how long the pool layer tries plans (default 30)",
    )
    group.addoption(
        "--corepool-patience", metavar="FACTOR", type=float, default=1.0, help="a factor on all deadlines (default 1)"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "corepool_contract: a test of corepool's conformance kit (set by the kit)")
    config.pluginmanager.register(_Recorder(config), "corepool_conformance_recorder")


def _seed(config: pytest.Config) -> int:
    """The seed of this run: as asked for, or drawn once, in the process that the workers of pytest-xdist belong to."""
    asked = cast("int | None", config.getoption("--corepool-seed"))
    if asked is not None:
        return asked
    if _SEED not in config.stash:
        inherited = cast("dict[str, Any]", getattr(config, "workerinput", {})).get("corepool_seed")
        config.stash[_SEED] = int(inherited) if inherited is not None else random.SystemRandom().randrange(2**32)
    return config.stash[_SEED]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """pytest-xdist starts a worker."""
    node.workerinput["corepool_seed"] = _seed(node.config)


def run_of(config: pytest.Config) -> Run:
    """The state of this run; made, and the kit imported, when it is first asked for."""
    if _RUN not in config.stash:
        from corepool_conformance.run import Run

        config.stash[_RUN] = Run.from_config(config, _seed(config))
    return config.stash[_RUN]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The kit's own modules are collected for a URL only: a plain ``pytest`` in a tree that holds the kit passes them by."""
    if collection_path != _HERE / "contract" and _HERE / "contract" not in collection_path.parents:
        return None
    if config.getoption("--corepool-url"):
        return None
    if any(_names_the_kit(argument) for argument in config.args):
        raise pytest.UsageError("the conformance kit needs --corepool-url=…: the backend to hold to the contract")
    return True


def _names_the_kit(argument: str) -> bool:
    path = Path(argument.partition("::")[0])
    return argument.startswith("corepool_conformance") or path == _HERE or _HERE in path.parents


def _is_contract_test(item: pytest.Item) -> bool:
    return hasattr(getattr(item, "function", None), "corepool_contract")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    timeouts = config.pluginmanager.hasplugin("timeout")  # the mark is unknown without it
    for item in items:
        if _is_contract_test(item):
            item.add_marker(pytest.mark.corepool_contract)
            if timeouts:  # the kit has deadlines of its own; the user's must not come before them
                item.add_marker(pytest.mark.timeout(run_of(config).timeout(item)))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    if tests := [item for item in session.items if _is_contract_test(item)]:
        run_of(session.config).check_selection(tests)


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makeitem(collector: Any, name: str, obj: object) -> Generator[None, Any, Any]:
    """Refuse, at collection, a class that overrides what the kit tests."""
    if isinstance(obj, type) and hasattr(obj, "corepool_contract_class"):
        from corepool_conformance.run import refuse_overrides

        refuse_overrides(obj)
    return (yield)


@pytest.fixture
def corepool_kit(request: pytest.FixtureRequest) -> Kit:
    """One contract test's view of the driver under test."""
    node: Any = getattr(request, "node")  # noqa: B009  pytest leaves its type open
    return run_of(request.config).kit_for(node, node.cls)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if _is_contract_test(item):
        run_of(item.config).judge(item, call, report)
    return report


def _result(report: pytest.TestReport | pytest.CollectReport) -> dict[str, Any] | None:
    """The kit's result that a report carries; see ``run.RESULT``."""
    properties = cast("list[tuple[str, Any]]", getattr(report, "user_properties", []))
    return next((value for name, value in properties if name == "corepool_result"), None)


def pytest_report_teststatus(report: pytest.TestReport | pytest.CollectReport) -> tuple[str, str, str] | None:
    result = _result(report) if report.skipped else None
    if result is None:
        return None
    return result["outcome"], result["outcome"][0], str(result["outcome"]).upper()


class _Recorder:
    """Takes the results, in the process that reports (not in a worker of pytest-xdist)."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if _result(report) is not None:
            run_of(self._config).record(report)


def pytest_report_header(config: pytest.Config) -> list[str] | None:
    if not config.getoption("--corepool-url"):
        return None
    run = run_of(config)
    return [f"corepool conformance: {run.shown_url}, --corepool-seed={run.seed}"]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    run = config.stash.get(_RUN, None)
    if run is not None and run.targets:
        terminalreporter.section("corepool conformance")
        for line in run.table():
            terminalreporter.write_line(line)


def pytest_sessionfinish(session: pytest.Session) -> None:
    target = session.config.getoption("--corepool-report")
    run = session.config.stash.get(_RUN, None)
    if target and run is not None and not hasattr(session.config, "workerinput"):
        Path(str(target)).write_text(run.as_json() + "\n", encoding="utf-8")
