"""``corepool demo`` in full, as a script and as a person would see it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("COREPOOL_")}
    command = [sys.executable, "-W", "error", "-m", "corepool.cli", "demo", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False)


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
