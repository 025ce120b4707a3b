"""One run of the kit: what may run, what became of each test, and whether the result may be believed.

Purpose: the state of a pytest run with contract tests in it, and the rules that keep its result honest.
Invariants: a test is never overridden, skipped or marked as expected to fail from outside; a backend that cannot be reached
fails its tests; a URL is shown without its credentials.
Neighbours: driven by ``plugin.py``'s hooks; ``report.py`` renders the results.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import Callable, Sequence
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
from corepool_conformance.results import FAILED, KNOWN, NOT_TESTED, PASSED, Result, Target

__all__ = ["RESULT", "Run", "contract_of", "redact", "refuse_overrides"]

RESULT = "corepool_result"
"""The user property of a pytest report that carries a `Result`."""

_PROGRESS_SECONDS = 5.0
_FORBIDDEN_MARKS = ("skip", "skipif", "xfail", "usefixtures")
_KIT = pytest.StashKey[Kit]()
_BACKEND = pytest.StashKey["_Backend"]()


def redact(url: str) -> str:
    """The URL without user and password, and without the query, where drivers may take secrets too."""
    return re.sub(r"//[^/@]*@", "//***@", url).partition("?")[0]


def contract_of(item: pytest.Item) -> ContractTest | None:
    """What the kit knows of a test; None if it is not one of the kit's."""
    return getattr(getattr(item, "function", None), "corepool_contract", None)


def refuse_overrides(cls: type) -> None:
    """Raises:
    pytest.UsageError: the class overrides a test, a helper or the fixture of the kit.
    """
    own: set[type] = {Contract, *suite.CLASSES, suite.ConformanceSuite}
    taken = {name: base for base in own for name in vars(base) if not name.startswith("__")}
    for ancestor in cls.__mro__:
        if ancestor in own or ancestor is object:
            continue
        for name in vars(ancestor):
            if name in taken and name not in ("harness", "corepool_contract_class"):
                raise pytest.UsageError(
                    f"{ancestor.__module__}.{ancestor.__qualname__} overrides {taken[name].__name__}.{name}. A contract test "
                    f"cannot be replaced: list it in known_failures.toml, with its reason, or report a fault of the kit"
                )


@attrs.define(slots=True)
class _Backend:
    """A harness, and what was learnt when it was first reached."""

    name: str
    label: str
    shown: str
    harness: Harness
    capabilities: Capabilities | None = None
    trouble: str | None = None

    def reach(self, ack_wait: float | None) -> None:
        """Connect once per run."""
        if self.capabilities is None and self.trouble is None:
            if ack_wait is not None:
                self.harness.ack_wait = ack_wait
            try:
                self.capabilities = asyncio.run(_look(self.harness))
            except Exception as error:  # noqa: BLE001  whatever kept us from connecting, every test must say so and fail
                self.trouble = f"{type(error).__name__}: {error}"


async def _look(harness: Harness) -> Capabilities:
    """Connect twice: two connections must find the same store, else no test of the kit means anything.

    Raises:
        RuntimeError: they do not.
    """
    await harness.begin(())
    try:
        async with asyncio.timeout(20 * harness.patience):
            one = await harness.connect()
            try:
                two = await harness.connect()
                try:
                    name = harness.fresh_namespace()
                    await one.namespace(name).map("probe").set("probe", b"probe")
                    seen = await two.namespace(name).map("probe").get("probe")
                    await one.namespace(name).map("probe").destroy()
                finally:
                    await two.aclose()
                if seen is None:
                    raise RuntimeError(
                        "two connections do not find the same store; give the URL or the harness one store"
                    )
                return one.capabilities
            finally:
                await one.aclose()
    finally:
        await harness.end()


@attrs.define(slots=True)
class Run:
    """The state of one run."""

    url: str | None
    seed: int
    known: dict[str, KnownFailure]
    ack_wait: float | None
    patience: float
    label: str | None
    budget: float
    progress: Callable[[str], None] | None
    targets: dict[str, Target] = attrs.field(factory=dict[str, Target])
    _backends: dict[object, _Backend] = attrs.field(factory=dict[object, _Backend])

    @classmethod
    def from_config(cls, config: pytest.Config, seed: int) -> Run:
        """Read the options.

        Raises:
            pytest.UsageError: a file of known failures that cannot be used.
        """
        path = config.getoption("--corepool-known-failures")
        try:
            known = read_known_failures(Path(str(path)), REGISTRY) if path else {}
        except KnownFailuresError as error:
            raise pytest.UsageError(str(error)) from None
        return cls(
            url=cast("str | None", config.getoption("--corepool-url")),
            seed=seed,
            known=known,
            ack_wait=cast("float | None", config.getoption("--corepool-ack-wait")),
            patience=cast("float", config.getoption("--corepool-patience")),
            label=cast("str | None", config.getoption("--corepool-label")),
            budget=cast("float", config.getoption("--corepool-budget")),
            progress=_progress(config),
        )

    @property
    def shown_url(self) -> str:
        """For people: without credentials."""
        return redact(self.url) if self.url else "(harness)"

    def check_selection(self, items: Sequence[pytest.Item]) -> None:
        """Raises:
        pytest.UsageError: something outside the kit marked a contract test as skipped or expected to fail.
        """
        for item in items:
            for mark in _FORBIDDEN_MARKS:
                if item.get_closest_marker(mark) is not None:
                    raise pytest.UsageError(
                        f"{item.nodeid} carries the mark {mark!r}: a contract test is run as it is; "
                        f"list it in known_failures.toml instead"
                    )

    def timeout(self, item: pytest.Item) -> float:
        """Seconds after which a contract test has hung in spite of its own deadline."""
        about = contract_of(item)
        assert about is not None
        harness = cast("type[Contract]", getattr(item, "cls", Contract)).harness
        patience = max(self.patience, harness.patience if harness is not None else 1.0)
        return about.seconds(self.budget) * patience + 60

    # --- one test ----------------------------------------------------------------------------------------------------

    def kit_for(self, item: pytest.Item, cls: type[Contract]) -> Kit:
        """The kit for a test; fails at once if the backend cannot be reached, and says if the test cannot be done here."""
        about = contract_of(item)
        assert about is not None, "the fixture corepool_kit is for contract tests"
        backend = item.stash[_BACKEND] = self._backend(cls)
        backend.reach(self.ack_wait)
        if backend.capabilities is None:
            if not backend.name:  # the one backend of this run: saying it once is enough
                item.session.shouldfail = "the backend under test cannot be reached"
            pytest.fail(f"cannot reach the backend under test: {backend.trouble}", pytrace=False)
        if missing := [hook for hook in about.needs if not backend.harness.offers(hook)]:
            pytest.skip(f"the harness offers no {', '.join(missing)}")
        if about.multi_process and not (backend.harness.url and backend.capabilities.multi_process):
            pytest.skip("needs a URL that another process can open, and the capability multi_process")
        kit = Kit(backend.harness, f"{self.seed}/{about.id}", budget=self.budget, progress=self.progress)
        item.stash[_KIT] = kit
        return kit

    def _backend(self, cls: type[Contract]) -> _Backend:
        given = cls.harness
        key = given if isinstance(given, Harness) else cls if given is not None else None
        if key not in self._backends:
            if given is None:
                if self.url is None:
                    raise pytest.UsageError(f"{cls.__name__} has no harness, and there is no --corepool-url")
                harness: Harness = UrlHarness(self.url, patience=self.patience)
                label = self.label or self.url.partition(":")[0]
                self._backends[key] = _Backend("", label, redact(self.url), harness)
            else:
                harness = given if isinstance(given, Harness) else given()
                harness.patience = max(harness.patience, self.patience)
                name = f"{cls.__module__}.{cls.__qualname__}"
                label = harness.label or self.label or cls.__name__.removeprefix("Test")
                self._backends[key] = _Backend(name, label, redact(harness.url) if harness.url else name, harness)
        return self._backends[key]

    def judge(self, item: pytest.Item, call: pytest.CallInfo[None], phase: pytest.TestReport) -> None:
        """Turn pytest's result of a phase into the kit's, and complete a failure's message."""
        about = contract_of(item)
        assert about is not None
        known = self.known.get(about.id)
        if phase.skipped and not (about.needs or about.multi_process):
            self._fail(
                phase, f"{about.id} was skipped from outside ({_reason(phase)}); list it in known_failures.toml instead"
            )
            self._note(item, about, FAILED, phase, str(phase.longrepr))
        elif phase.skipped:
            self._note(item, about, NOT_TESTED, phase, _reason(phase))
        elif phase.failed and known is not None and phase.when == "call":
            phase.outcome = "skipped"
            phase.wasxfail = f"{known.kind}: {known.reason} ({known.issue})"
            self._note(item, about, KNOWN, phase, phase.wasxfail)
        elif phase.failed:
            phase.sections.append(("corepool conformance", self._help(item, about)))
            self._note(item, about, FAILED, phase, str(call.excinfo.value) if call.excinfo else str(phase.longrepr))
        elif phase.when == "call" and known is not None:
            self._fail(
                phase, f"{about.id} passes, yet it is listed as a known failure ({known.reason}): remove the entry"
            )
            self._note(item, about, FAILED, phase, str(phase.longrepr))
        elif phase.when == "call":
            self._note(item, about, PASSED, phase, "")

    def _fail(self, phase: pytest.TestReport, text: str) -> None:
        phase.outcome = "failed"
        phase.longrepr = text

    def _note(self, item: pytest.Item, about: ContractTest, outcome: str, phase: pytest.TestReport, text: str) -> None:
        backend = item.stash.get(_BACKEND, None)
        result = Result(
            target=backend.name if backend else "",
            label=backend.label if backend else self.label or "?",
            shown=backend.shown if backend else self.shown_url,
            test=about.id,
            promises=about.promises,
            capability=about.capability,
            outcome=outcome,
            seconds=round(phase.duration, 3),
            text=text,
            capabilities=attrs.asdict(backend.capabilities) if backend and backend.capabilities else None,
        )
        phase.user_properties.append((RESULT, result.to_json()))

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
        python = f"{Path(sys.executable).name} -m pytest"
        if cls.harness is not None:
            return f"{python} '{item.nodeid}' --corepool-seed={self.seed}"
        where = f"{cls.__module__}::{cls.__name__}::{item.name}"
        return f"{python} --pyargs {where} '--corepool-url={self.shown_url}' --corepool-seed={self.seed}"

    # --- the result --------------------------------------------------------------------------------------------------

    def record(self, phase: pytest.TestReport) -> None:
        """Take the result that a report carries, from this process or another."""
        for name, value in phase.user_properties:
            if name == RESULT:
                result = Result.from_json(cast("dict[str, Any]", value))
                target = Target(result.target, result.label, result.shown)
                self.targets.setdefault(result.target, target).add(result)

    def table(self) -> list[str]:
        """The result for the terminal."""
        return [line for target in self.targets.values() for line in report.table(target, REGISTRY)]

    def as_json(self) -> str:
        """The result for machines."""
        return report.as_json(self.seed, list(self.targets.values()), REGISTRY)


def _progress(config: pytest.Config) -> Callable[[str], None] | None:
    """Lines for a long test, past pytest's capturing, if there is a terminal to look at them."""
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    capture: Any = config.pluginmanager.get_plugin("capturemanager")
    if reporter is None or capture is None or reporter.verbosity < 0:
        return None
    last = 0.0

    def show(text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= _PROGRESS_SECONDS:
            last = time.monotonic()
            with capture.global_and_fixture_disabled():
                reporter.ensure_newline()
                reporter.write_line(text)

    return show


def _reason(phase: pytest.TestReport) -> str:
    if isinstance(phase.longrepr, tuple):
        return str(cast("tuple[Any, ...]", phase.longrepr)[2]).removeprefix("Skipped: ")
    return str(phase.longrepr)
