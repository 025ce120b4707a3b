"""One run of the kit: what was admitted, what became of each test, and the levels that follow.

Purpose: all the state of a pytest run with contract tests in it, and the rules that keep its result honest.
Invariants: a test is never overridden, skipped or marked as expected to fail from outside; a level is claimed only by a run
of all the tests it stands on; the URL is shown without its credentials.
Neighbours: driven by ``plugin.py``'s hooks; ``report.py`` renders it.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import attrs
import pytest

from corepool.driver import Capabilities
from corepool_conformance import report, suite
from corepool_conformance.harness import Harness, UrlHarness
from corepool_conformance.kit import REGISTRY, Contract, ContractTest, Kit
from corepool_conformance.known import KnownFailure, KnownFailuresError, read_known_failures
from corepool_conformance.promises import explain

__all__ = ["Run", "redact", "refuse_overrides"]

_FORBIDDEN_MARKS = ("skip", "skipif", "xfail", "usefixtures")


def redact(url: str) -> str:
    """The URL without user and password, and without the query, where drivers may take secrets too."""
    return re.sub(r"//[^/@]*@", "//***@", url).partition("?")[0]


def refuse_overrides(cls: type) -> None:
    """Raises:
    pytest.UsageError: the class overrides a test, or the fixture, of the kit.
    """
    own: set[type] = {Contract, *suite.CLASSES, suite.ConformanceSuite}
    tested = {name: base for base in own for name in vars(base) if name.startswith("test_") or name == "kit"}
    for ancestor in cls.__mro__:
        if ancestor in own or ancestor is object:
            continue
        for name in vars(ancestor):
            if name in tested:
                raise pytest.UsageError(
                    f"{ancestor.__module__}.{ancestor.__qualname__} overrides {tested[name].__name__}.{name}. A contract test "
                    f"cannot be replaced: list it in known_failures.toml, with its reason, or report a fault of the kit"
                )


@attrs.define(slots=True)
class Verdict:
    """What became of one test: passed, failed, known failure or not tested; ``text`` says why."""

    test: ContractTest
    outcome: str
    seconds: float
    text: str = ""


@attrs.define(slots=True)
class Run:
    """The state of one run."""

    url: str | None
    seed: int
    known: dict[str, KnownFailure]
    ack_wait: float
    patience: float
    verdicts: dict[str, Verdict] = attrs.field(factory=dict[str, Verdict])
    capabilities: Capabilities | None = None
    selected: set[str] = attrs.field(factory=set[str])
    _harnesses: dict[object, Harness] = attrs.field(factory=dict[object, Harness])
    _unreachable: dict[int, str | None] = attrs.field(factory=dict[int, "str | None"])

    @classmethod
    def from_config(cls, config: pytest.Config) -> Run:
        """Read the options.

        Raises:
            pytest.UsageError: a file of known failures that cannot be used.
        """
        path = config.getoption("--corepool-known-failures")
        try:
            known = read_known_failures(Path(str(path)), REGISTRY) if path else {}
        except KnownFailuresError as error:
            raise pytest.UsageError(str(error)) from None
        seed = config.getoption("--corepool-seed")
        if seed is None:
            # Workers of pytest-xdist are separate processes and must draw the same seed.
            shared = os.environ.get("PYTEST_XDIST_TESTRUNUID")
            seed = random.Random(shared).randrange(2**32)
        return cls(
            url=cast("str | None", config.getoption("--corepool-url")),
            seed=int(seed),
            known=known,
            ack_wait=cast("float", config.getoption("--corepool-ack-wait")),
            patience=cast("float", config.getoption("--corepool-patience")),
        )

    @property
    def shown_url(self) -> str:
        """For people: without credentials."""
        return redact(self.url) if self.url else "(harness)"

    # --- collection --------------------------------------------------------------------------------------------------

    def admit(self, items: Sequence[pytest.Item]) -> None:
        """Note what was collected, and mark it."""
        for item in items:
            item.add_marker(pytest.mark.corepool_contract)

    def check_selection(self, items: Sequence[pytest.Item]) -> None:
        """Raises:
        pytest.UsageError: something outside the kit marked a contract test as skipped or expected to fail.
        """
        for item in items:
            about = _about(item)
            if about is None:
                continue
            self.selected.add(about.id)
            for mark in _FORBIDDEN_MARKS:
                if item.get_closest_marker(mark) is not None:
                    raise pytest.UsageError(
                        f"{item.nodeid} carries the mark {mark!r}: a contract test is run as it is; "
                        f"list it in known_failures.toml instead"
                    )

    # --- one test ----------------------------------------------------------------------------------------------------

    def kit_for(self, item: pytest.Item, cls: type[Contract]) -> Kit:
        """The kit for a test; fails at once if the backend cannot be reached, and says if the test cannot be done here."""
        about = _about(item)
        assert about is not None, "the fixture corepool_kit is for contract tests"
        harness = self._harness(cls)
        self._reach(harness)
        assert self.capabilities is not None
        if missing := [hook for hook in about.needs if not harness.offers(hook)]:
            pytest.skip(f"not tested: the harness offers no {', '.join(missing)}")
        if about.multi_process and not (harness.url and self.capabilities.multi_process):
            pytest.skip("not tested: needs a URL that another process can open, and the capability multi_process")
        kit = Kit(harness, f"{self.seed}/{about.id}")
        item.stash[_KIT] = kit
        return kit

    def _harness(self, cls: type[Contract]) -> Harness:
        given = cls.harness
        if given not in self._harnesses:
            if given is None:
                if self.url is None:
                    raise pytest.UsageError(f"{cls.__name__} has no harness, and there is no --corepool-url")
                self._harnesses[given] = UrlHarness(self.url, ack_wait=self.ack_wait, patience=self.patience)
            else:
                self._harnesses[given] = given if isinstance(given, Harness) else given()
        return self._harnesses[given]

    def _reach(self, harness: Harness) -> None:
        """Connect once per run. What cannot be reached fails every test: never a skip."""
        if id(harness) not in self._unreachable:
            try:
                self.capabilities = asyncio.run(_capabilities(harness))
                self._unreachable[id(harness)] = None
            except Exception as error:  # noqa: BLE001  whatever kept us from connecting, the run must say so and fail
                self._unreachable[id(harness)] = f"{type(error).__name__}: {error}"
        if trouble := self._unreachable[id(harness)]:
            pytest.fail(f"cannot reach the backend under test: {trouble}", pytrace=False)

    def judge(self, item: pytest.Item, call: pytest.CallInfo[None], result: pytest.TestReport) -> None:
        """Turn pytest's result of a phase into the kit's verdict, and complete a failure's message."""
        about = _about(item)
        assert about is not None
        known = self.known.get(about.id)
        if result.skipped and not (about.needs or about.multi_process):
            result.outcome = "failed"
            result.longrepr = (
                f"{about.id} was skipped from outside ({_reason(result)}); list it in known_failures.toml instead"
            )
            self._note(about, "failed", result, str(result.longrepr))
        elif result.skipped:
            self._note(about, "not tested", result, _reason(result))
        elif result.failed and known is not None and result.when == "call":
            result.outcome = "skipped"
            result.wasxfail = f"{known.kind}: {known.reason} ({known.issue})"
            self._note(about, "known failure", result, result.wasxfail)
        elif result.failed:
            result.sections.append(("corepool conformance", self._help(item, about)))
            text = str(call.excinfo.value) if call.excinfo else str(result.longrepr)
            self._note(about, "failed", result, text)
        elif result.when == "call" and known is not None:
            result.outcome = "failed"
            result.longrepr = (
                f"{about.id} passes, yet it is listed as a known failure ({known.reason}): remove the entry"
            )
            self._note(about, "failed", result, str(result.longrepr))
        elif result.when == "call":
            self._note(about, "passed", result, "")

    def _note(self, about: ContractTest, outcome: str, result: pytest.TestReport, text: str) -> None:
        result.user_properties.append(("corepool_verdict", outcome))
        earlier = self.verdicts.get(about.id)
        if earlier is None or earlier.outcome != "failed":  # a failure stays one, whatever the tear-down says
            self.verdicts[about.id] = Verdict(about, outcome, result.duration, text)

    def _help(self, item: pytest.Item, about: ContractTest) -> str:
        lines = [f"promise  {explain(name)}" for name in about.promises]
        kit = item.stash.get(_KIT, None)
        if kit is not None and kit.history:
            lines += ["history  the shortest found:", *(f"           {step}" for step in kit.history)]
        lines.append(f"seed     {self.seed}")
        lines.append(f"replay   {self._replay(item)}")
        return "\n".join(lines)

    def _replay(self, item: pytest.Item) -> str:
        cls = cast("type[Contract]", getattr(item, "cls", Contract))
        options = f"--corepool-seed={self.seed}"
        if cls.harness is not None:
            return f"{Path(sys.executable).name} -m pytest '{item.nodeid}' {options}"
        where = f"{cls.__module__}::{cls.__name__}::{item.name}"
        return f"{Path(sys.executable).name} -m pytest --pyargs {where} '--corepool-url={self.shown_url}' {options}"

    # --- the result --------------------------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Whether every test of the kit has a verdict."""
        return set(self.verdicts) >= set(REGISTRY)

    def table(self) -> list[str]:
        """The result for the terminal."""
        return report.table(self)

    def as_json(self) -> str:
        """The result for machines."""
        return report.as_json(self)


_KIT = pytest.StashKey[Kit]()


def _about(item: pytest.Item) -> ContractTest | None:
    return getattr(getattr(item, "function", None), "corepool_contract", None)


def _reason(result: pytest.TestReport) -> str:
    if isinstance(result.longrepr, tuple):
        return str(cast("tuple[Any, ...]", result.longrepr)[2]).removeprefix("Skipped: ")
    return str(result.longrepr)


async def _capabilities(harness: Harness) -> Capabilities:
    await harness.begin(())
    try:
        async with asyncio.timeout(20 * harness.patience):
            backend = await harness.connect()
        try:
            return backend.capabilities
        finally:
            await backend.aclose()
    finally:
        await harness.end()
