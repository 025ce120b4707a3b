"""``corepool demo`` in full, as a script and as a person would see it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.interrupts import heeding_interrupts
from tests.servers.nats import NatsServer
from tests.servers.valkey import Server, binaries, running


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("COREPOOL_")}
    command = [sys.executable, "-W", "error", "-m", "corepool.cli", "demo", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.timeout(90)
def test_the_demo_keeps_its_promises_and_says_so_in_json(tmp_path: Path) -> None:
    done = run(tmp_path, "--json", "--jobs", "120")
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = done.stdout.splitlines()
    summary = json.loads(line)
    assert summary["jobs"] == 120
    assert summary["lost"] == summary["doubled"] == summary["stale_tokens"] == summary["wrong_digests"] == 0
    assert summary["left_over"] == 0
    assert summary["errors"] == []
    assert summary["moved"] > 0
    assert summary["taken_over"] > 0
    assert summary["seconds"] < 60
    assert "node b crashed" in done.stderr


@pytest.mark.timeout(90)
def test_without_a_terminal_it_prints_lines_without_colours(tmp_path: Path) -> None:
    done = run(tmp_path, "--jobs", "30")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\x1b" not in done.stdout
    for text in ("30 jobs dispatched", "node d joined", "node b crashed", "taken over", "node c left", "doubled"):
        assert text in done.stdout


@pytest.fixture(params=["valkey", "nats"])
def server_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A real server, so that the demo's nodes are processes and its crash a SIGKILL."""
    if request.param == "valkey":
        valkey = Server(binaries()["valkey"], tmp_path / "server", ("--appendonly", "yes"))
        with running([valkey]):
            yield valkey.start().url
        return
    nats = NatsServer(directory=tmp_path / "server")
    try:
        nats.start()
        yield nats.url
    finally:
        nats.kill()


@pytest.mark.timeout(120)
def test_on_a_real_server_nodes_are_processes_and_the_crash_is_a_sigkill(server_url: str, tmp_path: Path) -> None:
    done = run(tmp_path, "--url", server_url, "--json", "--jobs", "60")
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout)
    assert summary["jobs"] == 60
    assert summary["lost"] == summary["doubled"] == summary["stale_tokens"] == summary["wrong_digests"] == 0
    assert summary["left_over"] == 0
    assert summary["errors"] == []
    assert summary["moved"] > 0
    assert summary["taken_over"] > 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_demo_and_its_processes(number: signal.Signals, code: int, tmp_path: Path) -> None:
    valkey = Server(binaries()["valkey"], tmp_path / "server")
    with running([valkey]):
        valkey.start()
        command = [sys.executable, "-m", "corepool.cli", "demo", "--url", valkey.url, "--jobs", "30"]
        with heeding_interrupts():
            demo = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        with demo:
            assert demo.stdout is not None
            line = demo.stdout.readline()
            assert "dispatched" in line, demo.stderr.read() if demo.stderr else line
            children = children_of(demo.pid)
            assert len(children) == 3
            demo.send_signal(number)
            rest = demo.communicate(timeout=40)
        assert demo.returncode == code, rest
        assert not [child for child in children if Path(f"/proc/{child}").exists()]


def children_of(parent: int) -> list[int]:
    found: list[int] = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            fields = status.read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent:
                found.append(int(status.parent.name))
    return found
