"""``corepool conformance``: the kit by a command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from corepool.cli import conformance_command
from corepool.cli.app import app


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "corepool.cli", "conformance", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=50, check=False)


def test_a_sound_backend_exits_with_0_and_json_is_all_there_is(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")  # somebody else's; never read
    done = run(tmp_path, "memory://", "-k", "test_capabilities or limits", "--seed", "7", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["seed"] == 7
    assert report["targets"][0]["tests"]
    assert "passed" in done.stderr


def test_the_budget_bounds_the_pool_layer(tmp_path: Path) -> None:
    done = run(tmp_path, "memory://", "-k", "plans", "--budget", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    seconds = re.search(r"1 passed.* in ([0-9.]+)s", done.stdout)
    assert seconds is not None, done.stdout
    assert 2 <= float(seconds[1]) < 15
    refused = run(tmp_path, "memory://", "--budget", "0")
    assert refused.returncode == 2
    assert "--budget" in refused.stderr


def test_a_selection_without_tests_is_no_success(tmp_path: Path) -> None:
    done = run(tmp_path, "memory://", "-k", "nothing_is_called_so", "--json")
    assert done.returncode == 2
    assert "no test of the kit matches 'nothing_is_called_so'" in json.loads(done.stdout)["error"]["message"]


def test_a_backend_that_cannot_be_reached_exits_with_3(tmp_path: Path) -> None:
    done = run(tmp_path, "redis://:se-cret@127.0.0.1:1/0", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["error"]["type"] == "BackendUnavailable"
    assert "se-cret" not in done.stdout + done.stderr


def test_without_the_extra_the_command_that_helps_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformance_command, "NEEDS", ("a_package_nobody_has",))
    result = CliRunner().invoke(app, ["conformance", "memory://"])
    assert result.exit_code == 9
    assert "pip install 'corepool[conformance]'" in result.stderr
