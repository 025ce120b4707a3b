"""``corepool sim``: seeds in, lines out; a failure replays."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.interrupts import heeding_interrupts

SCENARIOS = """
import asyncio

class Keeper:
    async def start(self, job): ...
    async def stop(self, key): ...

async def good(cluster):
    node = await cluster.node("p", worker=Keeper)
    await node.dispatch_job("k")
    await cluster.eventually(lambda: cluster.running("k"), within=60)

async def bad(cluster):
    assert cluster.choose(4, "luck") != 3, "out of luck"

async def stuck(cluster):
    one, other = asyncio.Lock(), asyncio.Lock()
    async def hold(first, second):
        async with first:
            await asyncio.sleep(1)  # of virtual time
            async with second: ...
    async with asyncio.TaskGroup() as group:
        group.create_task(hold(one, other), name="forwards")
        group.create_task(hold(other, one), name="backwards")

number = 7
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "scenarios.py").write_text(SCENARIOS)
    (tmp_path / "script.py").write_text("import sys\nsys.exit(3)  # a script without a main guard")
    return tmp_path


def sim(folder: Path, *arguments: str, hash_seed: int = 0) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    command = [sys.executable, "-m", "corepool.cli", "sim", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=50, check=False)


def test_one_line_per_seed_with_all_that_a_script_needs(folder: Path) -> None:
    done = sim(folder, "run", "--seeds", "3", "--first", "5", "--scenario", "scenarios:good", "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["seed"] for line in lines] == [5, 6, 7]
    names = {"seed", "digest", "steps", "virtual_seconds", "wall_seconds", "faults", "violations"}
    assert all(names <= line.keys() for line in lines)
    assert "3 runs" in done.stderr


def test_a_seed_has_the_same_digest_whatever_the_hash_seed(folder: Path) -> None:
    runs = [sim(folder, "run", "--seeds", "2", "--json", "--no-minimise", hash_seed=number) for number in (1, 2)]
    digests = [[json.loads(line)["digest"] for line in run.stdout.splitlines()] for run in runs]
    assert len(set(digests[0])) == 2
    assert digests[0] == digests[1]


def test_the_built_in_scenario_holds(folder: Path) -> None:
    done = sim(folder, "run", "--seeds", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 runs, 0 failed" in done.stderr


def test_a_violation_exits_with_1_and_its_token_replays_it(folder: Path) -> None:
    done = sim(folder, "run", "--seeds", "20", "--scenario", "scenarios:bad", "--json")
    assert done.returncode == 1
    failed = [line for line in map(json.loads, done.stdout.splitlines()) if line["violations"]]
    assert failed
    assert "out of luck" in failed[0]["violations"][0]["text"]
    for token in [failed[0]["token"]]:
        again = sim(folder, "replay", token, "--scenario", "scenarios:bad")
        assert again.returncode == 1, again.stdout + again.stderr
        assert "out of luck" in again.stdout
        story = json.loads(sim(folder, "replay", token, "--scenario", "scenarios:bad", "--json").stdout)
        assert story["violations"] == failed[0]["violations"]
        assert isinstance(story["story"], list)


def test_a_deadlock_names_both_tasks(folder: Path) -> None:
    done = sim(folder, "run", "--seeds", "1", "--no-faults", "--scenario", "scenarios:stuck")
    assert done.returncode == 1
    assert "deadlock" in done.stdout
    for name in ("forwards", "backwards"):
        assert name in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "--scenario", "nonsense"], "built-in scenario"),
        (["run", "--scenario", "scenarios:missing"], "missing"),
        (["run", "--scenario", "scenarios:number"], "not a function"),
        (["run", "--scenario", "no_such_module:f"], "ModuleNotFoundError"),
        (["run", "--scenario", "script:f"], "cannot load script:f: the code asked to end the process"),
        (["run", "--seeds", "0"], "seeds"),
        (["replay", "nonsense"], "token"),
        (["replay", "cps1.AAAA"], "token"),
    ],
)
def test_wrong_arguments_exit_with_2_and_say_why(arguments: list[str], says: str, folder: Path) -> None:
    done = sim(folder, *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("arguments", [["run", "--scenario", "scenarios:missing"], ["replay", "cps1.AAAA"]])
def test_a_script_reads_what_was_wrong(arguments: list[str], folder: Path) -> None:
    done = sim(folder, *arguments, "--json")
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert error["type"] in ("ScenarioError", "TokenError")
    assert error["message"] in done.stderr


def test_ctrl_c_sums_up_and_exits_with_130(folder: Path) -> None:
    command = [sys.executable, "-m", "corepool.cli", "sim", "run", "--seeds", "100000", "--scenario", "scenarios:good"]
    with (
        heeding_interrupts(),
        subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
    ):
        assert process.stdout is not None
        for _ in range(3):
            assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    summary = re.search(r"(\d+) runs, 0 failed", said)
    assert summary is not None, said
    printed = 2 + len(rest.splitlines())
    assert abs(int(summary[1]) - printed) <= 1, "the signal may come between a run and its line"
    assert said.splitlines()[-1] == "corepool: interrupted"
