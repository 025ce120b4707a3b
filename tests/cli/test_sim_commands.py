"""``corepool sim``: seeds in, lines out; a failure replays."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from corepool_memory.sim.token import decode_token, encode_token
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

async def long(cluster):
    node = await cluster.node("p", worker=Keeper)
    for turn in range(40):
        cluster.tell(f"turn {turn}")
        await node.dispatch_job(f"k{turn}")
    assert cluster.choose(4, "luck") == 0, "out of luck"

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


OPTIONS = ([], ["--no-faults"], ["--steps"], ["--no-faults", "--steps", "--no-minimise"])


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_the_command_that_a_violation_prints_replays_that_very_run(options: list[str], folder: Path) -> None:
    arguments = ["run", "--seeds", "1", "--first", "5", "--scenario", "scenarios:long", *options]
    done = sim(folder, *arguments)
    assert done.returncode == 1, done.stdout + done.stderr
    said = done.stdout.splitlines()
    [command] = [line.removeprefix("replay: ") for line in said if "corepool sim replay" in line]
    told = said[1 + next(at for at, line in enumerate(said) if line.startswith("what happened")) :][:30]
    assert "what happened" in done.stdout.partition("VIOLATION")[2]
    [line] = map(json.loads, sim(folder, *arguments, "--json").stdout.splitlines())
    assert line["replay"] == command
    assert line["violations"][0]["text"].splitlines()[0] in done.stdout
    assert line["story"] == told[: len(line["story"])]
    assert 0 < len(line["story"]) <= 30
    again = sim(folder, *shlex.split(command)[2:], "--json")
    assert again.returncode == 1, again.stdout + again.stderr
    replayed = json.loads(again.stdout)
    same = ("seed", "digest", "steps", "violations", "token", "story", "replay")
    assert {name: replayed[name] for name in same} == {name: line[name] for name in same}


def test_a_replay_is_told_in_thirty_lines_unless_all_are_asked_for(folder: Path) -> None:
    [line] = map(json.loads, _failing(folder, "--no-faults").stdout.splitlines())
    command = shlex.split(line["replay"])[2:]
    short, full = sim(folder, *command).stdout, sim(folder, *command, "--full").stdout
    assert len(short.splitlines()) <= 36
    assert "more events" in short
    assert all(f"turn {turn}\n" in full for turn in range(40))
    assert short.splitlines()[-1] == full.splitlines()[-1] == f"replay: {line['replay']}"
    assert len(json.loads(sim(folder, *command, "--json").stdout)["story"]) == 30
    assert len(json.loads(sim(folder, *command, "--json", "--full").stdout)["story"]) > 80


def _failing(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return sim(folder, "run", "--seeds", "1", "--first", "5", "--scenario", "scenarios:long", "--json", *options)


@pytest.mark.parametrize(
    ("recorded", "here", "differs"),
    [
        (
            ["--steps"],
            [],
            "store_options=MemoryOptions(atomic_commit=False), and this run has the default store_options",
        ),
        (
            [],
            ["--steps"],
            "the default store_options, and this run has store_options=MemoryOptions(atomic_commit=False)",
        ),
        (["--no-faults"], [], "the default faults, and this run has faults=Faults.everything()"),
    ],
)
def test_a_token_replays_under_what_it_was_recorded_with(
    recorded: list[str], here: list[str], differs: str, folder: Path
) -> None:
    [line] = map(json.loads, _failing(folder, *recorded).stdout.splitlines())
    wrong = sim(folder, "replay", line["token"], "--scenario", "scenarios:long", *here)
    assert wrong.returncode == 2, wrong.stdout + wrong.stderr
    assert differs in wrong.stderr
    [remedy] = [words for words in wrong.stderr.splitlines() if "corepool sim replay" in words]
    assert remedy.rpartition("the same: ")[2] == line["replay"]


def test_a_token_of_a_test_with_faults_of_its_own_belongs_there(folder: Path) -> None:
    [line] = map(json.loads, _failing(folder, "--no-faults").stdout.splitlines())
    token = decode_token(line["token"])
    token.conditions["faults"] = "Faults(crash_every=60.0)"  # type: ignore[index]
    wrong = sim(folder, "replay", encode_token(token), "--scenario", "scenarios:long")
    assert wrong.returncode == 2, wrong.stdout + wrong.stderr
    assert "faults=Faults(crash_every=60.0)" in wrong.stderr
    assert "in the test that printed it" in wrong.stderr


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
        (["replay", "cps2.AAAA"], "token"),
        (["replay", "cps1.AAAA"], "an earlier version wrote it"),
    ],
)
def test_wrong_arguments_exit_with_2_and_say_why(arguments: list[str], says: str, folder: Path) -> None:
    done = sim(folder, *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("arguments", [["run", "--scenario", "scenarios:missing"], ["replay", "cps2.AAAA"]])
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
