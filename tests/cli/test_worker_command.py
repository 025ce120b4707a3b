"""``corepool worker``: what it loads, how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import corepool
from corepool.cli.worker_command import load_handler_factory
from corepool.errors import InvalidHandlerError
from tests.cli.interrupts import heeding_interrupts
from tests.servers.valkey import Server, binaries, running

HANDLERS = """
import corepool

class Quiet:
    def start(self, job): print("start", job.key, flush=True)
    def stop(self, key): print("stop", key, flush=True)

class Holder:
    Inner = Quiet

shared = Quiet()
def make(): return Quiet()
number = 7

class NeedsMore:
    def __init__(self, needed): ...
    def start(self, job): ...
    def stop(self, key): ...

def leaves(): raise SystemExit(3)

class NoStop:
    def start(self, job): ...
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "some_handlers.py").write_text(HANDLERS)
    (tmp_path / "broken_handlers.py").write_text("1 / 0")
    (tmp_path / "script_handlers.py").write_text("import sys\nsys.exit(3)  # a script without a main guard")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("some_handlers", "broken_handlers", "script_handlers"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("path", ["some_handlers:Quiet", "some_handlers:Holder.Inner", "some_handlers:make"])
def test_a_class_or_a_function_makes_a_handler_for_each_worker(path: str, folder: Path) -> None:
    factory = load_handler_factory(path)
    one, other = factory(), factory()
    assert type(one).__name__ == "Quiet"
    assert one is not other


def test_an_instance_serves_all_workers(folder: Path) -> None:
    factory = load_handler_factory("some_handlers:shared")
    assert factory() is factory()


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("some_handlers", "is not MODULE:HANDLER"),
        (":Quiet", "is not MODULE:HANDLER"),
        ("some_handlers:", "is not MODULE:HANDLER"),
        ("no_such_module_here:Quiet", "ModuleNotFoundError"),
        ("some_handlers:Missing", "has no attribute 'Missing'"),
        ("broken_handlers:Quiet", "ZeroDivisionError"),
        ("some_handlers:number", "int"),
        ("script_handlers:Quiet", r"cannot load script_handlers:Quiet: .* end the process \(SystemExit: 3\)"),
        ("some_handlers.py:Quiet", "not the path of its file"),
        ("./some_handlers:Quiet", "not the path of its file"),
    ],
)
def test_what_cannot_be_a_handler_is_one_clear_error(path: str, says: str, folder: Path) -> None:
    with pytest.raises(InvalidHandlerError, match=says):
        load_handler_factory(path)


def spawn(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    env = {**os.environ, "COREPOOL_URL": "memory://worker", "COREPOOL_POOL": "p"}
    with heeding_interrupts():
        return subprocess.Popen(
            [sys.executable, "-m", "corepool.cli", "worker", *arguments],
            cwd=folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_hands_over_and_exits_with_0(number: signal.Signals, folder: Path) -> None:
    with spawn(folder, "some_handlers:Quiet", "-n", "2") as process:
        assert process.stderr is not None
        said = ""
        while "Ctrl-C hands over" not in said:
            line = process.stderr.readline()
            assert line, f"it ended: {said}"
            said += line
        assert "2 worker(s) of pool p" in said
        process.send_signal(number)
        rest = process.communicate(timeout=30)[1]
    assert process.returncode == 0, rest
    assert rest.splitlines()[-1] == "handed over"


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("some_handlers:Missing", "Missing"),
        ("some_handlers:NoStop", "stop"),
        ("some_handlers:NeedsMore", "needed"),
        ("some_handlers:leaves", "SystemExit"),
        ("script_handlers:Quiet", "cannot load script_handlers:Quiet"),
        ("x:x:x", "cannot load x:x:x: "),  # no terminal's emoji in what somebody greps
    ],
)
def test_a_wrong_handler_exits_with_2_and_one_line(path: str, says: str, folder: Path) -> None:
    with spawn(folder, path) as process:
        out, said = process.communicate(timeout=30)
    assert process.returncode == 2, said
    assert out == ""
    assert said.count("\n") == 1
    assert says in said
    assert "Traceback" not in said


HANGS = """
import asyncio

class Hangs:
    async def start(self, job): ...
    async def stop(self, key): await asyncio.Event().wait()
"""


async def test_a_second_signal_leaves_at_once(folder: Path) -> None:
    """A handler whose stop hangs must not hold the person at the terminal."""
    (folder / "hanging_handlers.py").write_text(HANGS)
    valkey = Server(binaries()["valkey"], folder / "server")
    with running([valkey]):
        valkey.start()
        with spawn(folder, "hanging_handlers:Hangs", "--url", valkey.url) as process:
            assert process.stderr is not None
            assert "Ctrl-C hands over" in process.stderr.readline()
            async with corepool.connect(valkey.url) as backend, corepool.Node(backend, "p", client_only=True) as node:
                await node.dispatch_job("k")
            process.send_signal(signal.SIGINT)
            assert "handing over" in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            assert "left at once" in process.communicate(timeout=10)[1]
        assert process.returncode == 130
