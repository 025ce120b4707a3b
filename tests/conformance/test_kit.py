"""The rules of a run: nothing overridden or skipped, no stale known failure, errors that help, an honest report."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from corepool_conformance.contract.test_limits import ODD
from corepool_conformance.harness import Harness
from corepool_conformance.kit import REGISTRY, Contract
from corepool_conformance.known import KnownFailuresError, read_known_failures
from corepool_conformance.promises import PROMISES
from corepool_conformance.run import redact, refuse_overrides
from corepool_conformance.suite import CLASSES, ConformanceSuite

pytest_plugins = ["pytester"]

FEW = "test_set_and_get or test_absent_condition"
"""Two quick contract tests, for ``-k``."""

LOSING = """
from corepool.driver import open_backend
from corepool_conformance import ConformanceSuite, Harness

class Map:
    def __init__(self, inner): self.inner = inner
    def __getattr__(self, name): return getattr(self.inner, name)
    async def set(self, key, value, when=None):
        return await self.inner.set(key, value)          # M2: no condition is heeded

class Space:
    def __init__(self, inner): self.inner = inner
    def __getattr__(self, name): return getattr(self.inner, name)
    def map(self, name): return Map(self.inner.map(name))

class Backend:
    def __init__(self, inner): self.inner = inner
    def __getattr__(self, name): return getattr(self.inner, name)
    def namespace(self, name): return Space(self.inner.namespace(name))

class Losing(Harness):
    async def connect(self):
        return Backend(await open_backend("memory://losing"))

class TestLosing(ConformanceSuite):
    harness = Losing
"""

GOOD = """
from corepool.driver import open_backend
from corepool_conformance import ConformanceSuite, Harness

class Good(Harness):
    async def connect(self):
        return await open_backend("memory://good")

class TestGood(ConformanceSuite):
    harness = Good
"""


@pytest.fixture
def kit(pytester: pytest.Pytester) -> Kit:
    return Kit(pytester)


class Kit:
    """Runs pytest with the kit in a directory of its own."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self._pytester = pytester
        self.report = Path(pytester.path) / "report.json"

    def write(self, name: str, text: str) -> None:
        (Path(self._pytester.path) / name).write_text(text, encoding="utf-8")

    def run(self, *arguments: str) -> pytest.RunResult:
        options = [
            "-p",
            "no:asyncio",
            "-p",
            "no:randomly",
            "-p",
            "no:cacheprovider",
            f"--corepool-report={self.report}",
        ]
        return self._pytester.runpytest_inprocess(*options, *arguments)

    def tests(self, target: int = 0) -> dict[str, dict[str, str]]:
        found = json.loads(self.report.read_text(encoding="utf-8"))["targets"][target]["tests"]
        return {test["id"]: test for test in found}


# --- the kit itself --------------------------------------------------------------------------------------------------


def test_no_name_hides_another_in_the_suite() -> None:
    seen: dict[str, type] = {}
    for cls in CLASSES:
        for name in vars(cls):
            if not name.startswith("__"):
                assert name not in seen, f"{cls.__name__}.{name} hides {seen.get(name)}"
                seen[name] = cls
    assert {cls for cls in ConformanceSuite.__mro__ if issubclass(cls, Contract)} == {
        ConformanceSuite,
        *CLASSES,
        Contract,
    }


def test_every_promise_has_a_test() -> None:
    assert {name for test in REGISTRY.values() for name in test.promises} == set(PROMISES)


def test_the_plugin_is_light() -> None:
    code = (
        "import sys, corepool_conformance.plugin\n"
        "heavy = [name for name in sys.modules if name.partition('.')[0] in ('corepool', 'hypothesis', 'attrs', 'attr')]\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_a_harness_without_connect_is_none() -> None:
    class Empty(Harness):
        pass

    with pytest.raises(TypeError, match="connect"):
        Empty()  # type: ignore[abstract]


def test_odd_names_are_all_different() -> None:
    assert len(set(ODD)) == len(ODD)


def test_every_module_of_the_contract_is_in_the_suite() -> None:
    import corepool_conformance.contract as contract

    modules = {path.stem for path in Path(str(contract.__file__)).parent.glob("test_*.py")}
    assert modules == {cls.__module__.rpartition(".")[2] for cls in CLASSES}


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:secret@host:6379/0", "redis://***@host:6379/0"),
        ("redis://:secret@host?password=secret", "redis://***@host"),
        ("nats://secret@a,b:4222", "nats://***@a,b:4222"),
        ("memory://", "memory://"),
    ],
)
def test_urls_are_shown_without_secrets(url: str, shown: str) -> None:
    assert redact(url) == shown


# --- zero code -------------------------------------------------------------------------------------------------------


def test_a_plain_run_is_not_touched(kit: Kit) -> None:
    kit.write("test_mine.py", "def test_mine(): pass\n")
    result = kit.run()
    result.assert_outcomes(passed=1)
    assert "corepool conformance" not in result.stdout.str()
    assert not kit.report.exists()


def test_the_kit_without_a_url_is_an_error(kit: Kit) -> None:
    result = kit.run("--pyargs", "corepool_conformance")
    assert result.ret != 0
    result.stdout.fnmatch_lines(["*needs --corepool-url=*"])


def test_a_part_of_the_kit_by_url(kit: Kit) -> None:
    result = kit.run("--pyargs", "corepool_conformance", "--corepool-url=memory://", "--corepool-seed=7", "-k", FEW)
    result.assert_outcomes(passed=2, deselected=len(REGISTRY) - 2)
    result.stdout.fnmatch_lines(["*--corepool-seed=7*", "*level: none claimed*"])
    document = json.loads(kit.report.read_text(encoding="utf-8"))
    assert document["seed"] == 7
    assert document["targets"][0]["levels"] == []
    assert {test["outcome"] for test in kit.tests().values()} == {"passed"}


def test_what_cannot_be_reached_is_an_error_and_shows_no_password(kit: Kit) -> None:
    result = kit.run("--pyargs", "corepool_conformance", "--corepool-url=redis://user:sEcReT@127.0.0.1:9/0", "-k", FEW)
    assert result.ret != 0
    assert result.parseoutcomes().get("errors") == 1, "once is enough"
    assert "passed" not in result.parseoutcomes()
    result.stdout.fnmatch_lines(["*cannot reach the backend under test*"])
    assert "sEcReT" not in result.stdout.str() + result.stderr.str() + kit.report.read_text(encoding="utf-8")


def test_what_a_harness_lacks_is_not_tested(kit: Kit) -> None:
    result = kit.run(
        "--pyargs", "corepool_conformance", "--corepool-url=memory://", "-k", "leave_nothing and maps", "-v"
    )
    result.stdout.fnmatch_lines(["*NOT TESTED*", "*not tested: capabilities::*the harness offers no leaks*"])
    assert "passed" not in result.parseoutcomes()
    assert kit.tests()["capabilities::test_destroyed_maps_and_streams_leave_nothing"]["outcome"] == "not tested"


def test_connections_that_find_no_common_store_are_an_error(kit: Kit) -> None:
    kit.write("test_mine.py", GOOD.replace("memory://good", "memory://"))
    result = kit.run("-k", FEW)
    assert result.parseoutcomes().get("errors") == 2
    result.stdout.fnmatch_lines(["*two connections do not find the same store*"])


# --- subclasses ------------------------------------------------------------------------------------------------------


def test_a_subclass_with_a_harness(kit: Kit) -> None:
    kit.write("test_mine.py", GOOD + "    def test_my_own(self): pass\n")
    result = kit.run("-k", FEW + " or test_my_own")
    result.assert_outcomes(passed=3, deselected=len(REGISTRY) - 2)
    assert json.loads(kit.report.read_text(encoding="utf-8"))["targets"][0]["name"] == "test_mine.TestGood"


@pytest.mark.parametrize("name", ["test_set_and_get", "_joined", "kit"])
def test_an_override_is_refused(name: str) -> None:
    mine = type("TestMine", (ConformanceSuite,), {name: None})
    with pytest.raises(pytest.UsageError, match="A contract test cannot be replaced"):
        refuse_overrides(mine)
    refuse_overrides(type("TestMine", (ConformanceSuite,), {"harness": None, "test_my_own": None}))


def test_an_override_by_a_mixin_is_refused(kit: Kit) -> None:
    mixin = "class Mixin:\n    def test_set_and_get(self, kit): pass\n\n"
    kit.write("test_mine.py", mixin + GOOD.replace("TestGood(ConformanceSuite)", "TestGood(Mixin, ConformanceSuite)"))
    result = kit.run("-k", FEW)
    assert result.ret != 0
    result.stdout.fnmatch_lines(["*overrides *A contract test cannot be replaced*"])


def test_a_mark_from_outside_is_refused(kit: Kit) -> None:
    marked = "import pytest\n\n@pytest.mark.xfail(reason='later')\nclass TestGood"
    kit.write("test_mine.py", GOOD.replace("class TestGood", marked))
    result = kit.run("-k", FEW)
    assert result.ret != 0
    assert "known_failures.toml" in result.stdout.str() + result.stderr.str()


def test_a_skip_from_outside_is_a_failure(kit: Kit) -> None:
    kit.write("test_mine.py", GOOD)
    kit.write("conftest.py", "import pytest\n@pytest.fixture(autouse=True)\ndef lazy(): pytest.skip('not today')\n")
    result = kit.run("-k", FEW)
    assert result.ret != 0
    result.stdout.fnmatch_lines(["*was skipped from outside*"])
    assert {test["outcome"] for test in kit.tests().values()} == {"failed"}


# --- failures --------------------------------------------------------------------------------------------------------


def test_a_failure_names_promise_seed_history_and_replay(kit: Kit) -> None:
    kit.write("test_mine.py", LOSING)
    result = kit.run("-k", "test_histories_are_linearizable", "--corepool-seed=42")
    result.assert_outcomes(failed=1, deselected=len(REGISTRY) - 1)
    text = result.stdout.str()
    assert re.search(r"promise\s+M2 atomicity", text)
    assert re.search(r"client \d+ .* set 'k\d+-\d' = b'v\d+' if it is .* applied as revision", text)
    assert re.search(r"seed\s+42", text)
    replay = re.search(r"replay\s+\S+ -m pytest '(\S+)' (--corepool-seed=42)", text)
    assert replay is not None
    again = kit.run(*replay.groups())
    again.assert_outcomes(failed=1)


def test_a_failure_by_url_is_replayed_by_url(kit: Kit) -> None:
    # Too little patience for anything is a failure that needs no broken driver.
    options = ("--corepool-url=memory://", "--corepool-seed=42", "--corepool-patience=0.0000001")
    result = kit.run("--pyargs", "corepool_conformance", *options, "-k", "test_nack_gives_back")
    assert result.ret != 0
    result.stdout.fnmatch_lines(
        ["replay *--pyargs corepool_conformance.contract.test_sinks::*'--corepool-url=memory://'*"]
    )
    where = "corepool_conformance.contract.test_sinks::TestSinks::test_nack_gives_back"
    good = kit.run("--pyargs", where, "--corepool-url=memory://", "--corepool-seed=42")
    good.assert_outcomes(passed=1)


KNOWN = """
[[failure]]
test = "{test}"
reason = "the store has no conditions yet"
issue = "https://example.org/issues/1"
kind = "driver"
"""


def test_a_known_failure(kit: Kit) -> None:
    kit.write("test_mine.py", LOSING)
    kit.write("known.toml", KNOWN.format(test="maps::test_absent_condition"))
    result = kit.run("-k", FEW, "--corepool-known-failures=known.toml", "-v")
    assert result.ret == 0
    assert result.parseoutcomes()["passed"] == 1
    result.stdout.fnmatch_lines(
        ["*KNOWN FAILURE*", "*known failure: maps::test_absent_condition: driver: the store has no*"]
    )
    assert kit.tests()["maps::test_absent_condition"]["outcome"] == "known failure"


def test_a_known_failure_that_passes_is_an_error(kit: Kit) -> None:
    kit.write("test_mine.py", GOOD)
    kit.write("known.toml", KNOWN.format(test="maps::test_absent_condition"))
    result = kit.run("-k", FEW, "--corepool-known-failures=known.toml")
    result.assert_outcomes(failed=1, passed=1, deselected=len(REGISTRY) - 2)
    result.stdout.fnmatch_lines(["*passes, yet it is listed as a known failure*"])


def test_a_bad_file_of_known_failures_ends_the_run(kit: Kit) -> None:
    kit.write("test_mine.py", GOOD)
    kit.write("known.toml", KNOWN.format(test="maps::test_of_long_ago"))
    result = kit.run("-k", FEW, "--corepool-known-failures=known.toml")
    assert result.ret != 0
    assert "passed" not in result.parseoutcomes()
    both = pytest.LineMatcher([*result.outlines, *result.errlines])
    both.fnmatch_lines(["*the kit has no test*test_of_long_ago*"])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (KNOWN.format(test="maps::test_set_and_get") * 2, "listed twice"),
        (KNOWN.format(test="maps::test_set_and_get").replace("reason", "# reason"), "'reason' is missing"),
        (KNOWN.format(test="maps::test_set_and_get").replace('"driver"', '"whim"'), "kind is one of"),
        (KNOWN.format(test="maps::test_set_and_get") + "extra = 1\n", "unknown fields extra"),
        ("failure = 1\n", "a list of"),
        ("failure = [1]\n", "a table with"),
        ("[more]\n", "found more"),
        ("[[[", "known.toml"),
    ],
)
def test_a_file_of_known_failures_is_read_strictly(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "known.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(KnownFailuresError, match=re.escape(complaint)):
        read_known_failures(path, REGISTRY)


def test_a_missing_file_of_known_failures_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KnownFailuresError, match="nowhere"):
        read_known_failures(tmp_path / "nowhere.toml", REGISTRY)


def test_workers_of_xdist_share_one_seed_and_one_report(kit: Kit) -> None:
    kit.write("test_mine.py", LOSING)
    names = "test_absent_condition or test_revision_condition"
    result = kit.run("-k", names, "-n", "2", "--dist", "load")
    seeds = set(re.findall(r"seed +(\d+)", result.stdout.str()))
    assert len(seeds) == 1
    document = json.loads(kit.report.read_text(encoding="utf-8"))
    assert str(document["seed"]) in seeds
    assert {test["outcome"] for test in kit.tests().values()} == {"failed"}
    assert len(kit.tests()) == 2
