"""``corepool bench``: it measures what it says, beside its floor, judges honestly, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from corepool.cli.bench import cores, loops
from corepool.cli.bench.figures import Figure, Goal, percentile
from corepool.cli.bench.sizes import GOALS, USUAL
from corepool.errors import InvalidOptionError
from tests.cli.interrupts import heeding_interrupts
from tests.servers.valkey import Server, binaries, eventually, running

TIMES = {"set", "propagation", "append", "delivery", "dispatch", "handler_start", "notify", "stop"}
RATES = {"sets_per_second", "starts_per_second", "same_with_many_jobs"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(binaries()["valkey"], tmp_path / "server", ("--requirepass", "se-cret"))
    server.ready = ("AUTH", "se-cret")
    with running([server]):
        yield server.start()


def url_of(server: Server) -> str:
    return f"redis://:se-cret@127.0.0.1:{server.port}/0"


def bench(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "corepool.cli", "bench", *arguments],
        env={**os.environ, "COREPOOL_URL": url},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def cli(server: Server, *words: str) -> str:
    """The raw answer to a command of a client of its own."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(b"AUTH se-cret\r\n" + " ".join(words).encode() + b"\r\nQUIT\r\n")
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer.decode()


def test_in_memory_all_is_measured_in_one_process() -> None:
    done = bench("memory://", "--quick", "--json", "--loop", "asyncio")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "progress is for terminals"
    found = json.loads(done.stdout)
    assert (found["driver"], found["loop"], found["quick"]) == ("memory", "asyncio", True)
    assert set(found["figures"]) >= TIMES | RATES | {"get", "floor", "start_cpu"}
    assert "one process" in found["figures"]["dispatch"]["title"]
    assert set(found["not_measured"]) >= {"idle_commands_1", "connections_3"}


def test_on_a_server_each_time_has_a_floor_and_nothing_stays(server: Server) -> None:
    done = bench(url_of(server), "--quick", "--json")
    assert done.returncode == 0, done.stderr
    assert "se-cret" not in done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    figures = found["figures"]
    for name in TIMES:
        figure = figures[name]
        assert figure["against"] == "PING on the same connection"
        assert figure["ratio"] == pytest.approx(figure["value"] / figure["floor"])
        assert 0 < figure["value"] <= figure["p99"]
    assert figures["handler_start"]["value"] < figures["dispatch"]["value"], "a start comes before its answer"
    assert "two processes" in figures["dispatch"]["title"]
    for nodes in (1, 3):
        assert 0 < figures[f"connections_{nodes}"]["value"] <= 3
        assert figures[f"idle_commands_{nodes}"]["value"] >= 0  # how many they are: tests/redis/test_idle.py
        assert figures[f"connections_{nodes}"]["met"] is True
    for name, figure in figures.items():
        assert (figure["met"] is None) == (
            figure["goal"] is None or (figure["ratio"] is None and "x" in figure["goal"])
        )
        judged = name in GOALS["redis"] and not name.startswith(
            "idle_commands"
        )  # those are a second's, which tells nothing
        assert figure["goal"] == (GOALS["redis"][name].text if judged else None)
    assert "name=corepool-" not in cli(server, "CLIENT", "LIST")
    assert _lasting(server) == []


def test_the_table_says_what_was_met_and_what_was_not(server: Server) -> None:
    done = bench(url_of(server), "--quick", "--cores", "none", "--loop", "asyncio")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    [starts] = [line for line in lines if line.startswith("jobs started per second")]
    assert "at least 5,000 a second" in starts
    assert ("met:" in starts) != ("missed:" in starts)
    idle = [line for line in lines if "commands sent per node" in line]
    assert len(idle) == 2
    assert not any("met:" in line or "missed:" in line or "a second" in line for line in idle), "1 s is too short"
    assert "cores: not pinned" in lines
    assert "se-cret" not in done.stdout


def test_an_interrupt_ends_the_worker_and_the_pool(server: Server) -> None:
    with heeding_interrupts():
        process = subprocess.Popen(
            [sys.executable, "-m", "corepool.cli", "bench", "--quick"],
            env={**os.environ, "COREPOOL_URL": url_of(server)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    try:
        eventually(lambda: _clients(server) == 3, server.log)  # two connections of its own, and the worker's
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, out + err
    assert "interrupted" in err
    eventually(lambda: _clients(server) == 0, server.log)
    assert _lasting(server) == []


def _lasting(server: Server) -> list[str]:
    """Keys of the benchmark that do not expire by themselves: what a driver keeps of a map that is gone expires."""
    keys = [word for word in cli(server, "KEYS", "*").split() if "bench-" in word]
    return [key for key in keys if ":-1" in cli(server, "TTL", key)]


def _clients(server: Server) -> int:
    """How many backends are connected."""
    return len({word for word in cli(server, "CLIENT", "LIST").split() if word.startswith("name=corepool-")})


def test_what_is_no_loop_no_core_or_no_server_is_refused() -> None:
    for arguments in (["--loop", "trio"], ["--cores", "one"], ["--cores", "0,100000"]):
        assert bench("memory://", *arguments).returncode == 2
    done = bench("redis://:se-cret@127.0.0.1:1/0", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["error"]["type"] == "BackendUnavailable"
    assert "se-cret" not in done.stdout + done.stderr


def test_goals_are_judged_by_ratio_or_value_and_never_without_a_floor() -> None:
    at_most, at_least = Goal("", most=2.0), Goal("", least=5.0, of_ratio=False)

    def figure(value: float, goal: Goal, floor: float | None = None) -> Figure:
        return Figure(name="", title="", value=value, unit="", floor=floor, goal=goal)

    assert figure(20.0, at_most, 10.0).met is True
    assert figure(20.1, at_most, 10.0).met is False
    assert figure(1.0, at_most).met is None
    assert figure(5.0, at_least).met is True
    assert figure(4.9, at_least, 1.0).met is False
    assert Figure(name="", title="", value=1.0, unit="").met is None


def test_times_are_summed_up_as_median_and_p99() -> None:
    figure = Figure.of_times("n", "t", [n / 1e6 for n in range(1, 101)])
    assert (figure.value, figure.p99) == (pytest.approx(50.5), pytest.approx(100.0))
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0


def test_the_goals_of_idle_nodes_cover_what_is_measured() -> None:
    assert {f"idle_commands_{nodes}" for nodes in USUAL.idle_nodes} <= set(GOALS["redis"])


def test_pinning_ends_with_its_block() -> None:
    if not hasattr(os, "sched_getaffinity"):
        with pytest.raises(InvalidOptionError):
            cores.choose("0,0")
        return
    before = os.sched_getaffinity(0)
    core = min(before)
    with cores.pinned(core):
        assert os.sched_getaffinity(0) == {core}
    assert os.sched_getaffinity(0) == before
    assert cores.choose("none") == cores.Cores(None, None)
    assert cores.choose(f"{core},{core}") == cores.Cores(core, core)


def test_auto_takes_uvloop_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops.importlib.util, "find_spec", lambda name: None)
    assert loops.choose("auto") == "asyncio"
    with pytest.raises(InvalidOptionError, match=r"corepool\[uvloop\]"):
        loops.choose("uvloop")
