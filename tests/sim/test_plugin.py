"""The pytest plugin: light until it is used, its options, its fixtures, its failures."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

LIGHT = """
import sys, types, importlib.util
import pytest
root = importlib.util.find_spec("corepool").submodule_search_locations
package = types.ModuleType("corepool")   # the package's own __init__ is not this test's subject
package.__path__ = list(root)
sys.modules["corepool"] = package
before = set(sys.modules)
import corepool.testing.plugin
print(sorted(set(sys.modules) - before))
"""

GOOD = """
from corepool.testing import Faults

class Feeds:
    async def start(self, job): ...
    async def stop(self, key): ...

def test_no_feed_is_lost(corepool_simulation):
    async def scenario(cluster):
        a, b, c = [await cluster.node("feeds", worker=Feeds()) for _ in range(3)]
        await a.dispatch_job("k", b"")
        cluster.sometimes("dispatched")
        await cluster.crash(a)
        await cluster.eventually(lambda: cluster.running("k"), within=120)
    results = corepool_simulation(scenario, reaches=["dispatched"])
    print("RUNS", [result.seed for result in results])

async def test_an_embedded_backend(corepool_memory):
    await corepool_memory.namespace("n").map("m").set("k", b"v")
    assert (await corepool_memory.namespace("n").map("m").get("k")).value == b"v"
"""

BAD = """
def test_race(corepool_simulation):
    async def scenario(cluster):
        import asyncio
        one, two = cluster.backend(), cluster.backend()
        order = []
        async def write(backend, name):
            await backend.namespace("n").map("m").set("k", name)
            order.append(name)
        await asyncio.gather(write(one, b"1"), write(two, b"2"))
        assert order == [b"1", b"2"], "the second was first"
    corepool_simulation(scenario, seeds=50)

def test_unreached(corepool_simulation):
    async def scenario(cluster):
        cluster.sometimes("never", condition=False)
    corepool_simulation(scenario, seeds=3, reaches=["never"])
"""


def _pytest(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    plugins = [
        "-p",
        "corepool.testing.plugin",
        "-p",
        "pytest_asyncio.plugin",
        "-p",
        "no:cacheprovider",
        "-o",
        "asyncio_mode=auto",
    ]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, "-s", *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_the_plugin_imports_nothing_but_itself() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "['corepool.testing', 'corepool.testing.plugin']"


def test_the_fixtures_of_the_documentation(tmp_path: Path) -> None:
    (tmp_path / "test_feeds.py").write_text(GOOD)
    done = _pytest(tmp_path, "--corepool-seeds", "2", "--corepool-first-seed", "10")
    assert "2 passed" in done.stdout, done.stdout + done.stderr
    assert "RUNS [10, 11]" in done.stdout


def test_a_failure_prints_one_command_that_replays_it(tmp_path: Path) -> None:
    (tmp_path / "test_bad.py").write_text(BAD)
    done = _pytest(tmp_path)
    assert "2 failed" in done.stdout, done.stdout + done.stderr
    assert "in none of 3 runs this was reached: never" in done.stdout
    # CI=true makes pytest repeat the whole message in its summary
    [command] = {line for line in done.stdout.splitlines() if line.startswith("replay: pytest test_bad.py::test_race ")}
    token = command.rpartition(" ")[2]
    again = _pytest(tmp_path, "test_bad.py::test_race", "--corepool-replay", token)
    assert "the second was first" in again.stdout
    assert token in again.stdout
    assert "1 failed" in again.stdout


def test_the_command_fits_the_folder_that_it_is_printed_in(tmp_path: Path) -> None:
    """A node id is relative to pytest's root; what a person types, to the folder they are in."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "test_bad.py").write_text(BAD)
    said = _pytest(tmp_path / "inner", "test_bad.py::test_race").stdout
    test, token = re.findall(r"replay: pytest (\S+) --corepool-replay (\S+)", said)[0]
    assert "the second was first" in _pytest(tmp_path / "inner", test, "--corepool-replay", token).stdout


def test_a_token_of_another_test_is_refused(tmp_path: Path) -> None:
    (tmp_path / "test_bad.py").write_text(BAD)
    token = _pytest(tmp_path, "test_bad.py::test_race").stdout.rpartition("--corepool-replay ")[2].split()[0]
    done = _pytest(tmp_path, "test_bad.py::test_unreached", "--corepool-replay", token)
    assert "another scenario" in done.stdout


@pytest.mark.parametrize("wrong", ["0", "-1", "many"])
def test_a_wrong_number_of_seeds_is_refused(tmp_path: Path, wrong: str) -> None:
    done = _pytest(tmp_path, "--corepool-seeds", wrong)
    assert done.returncode == 4
    assert "--corepool-seeds" in done.stderr
