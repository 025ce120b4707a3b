"""Distributions that the packaging tests build and install for themselves: a stranger's driver, and corepool's own wheel.

Neighbours: everything is built with the hatchling that runs the tests (no build isolation), so no network is needed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DRIVER_SOURCE = Path(__file__).parent / "stranger"


def run_tool(*command: str, cwd: Path) -> str:
    """Run a build tool without network; its output is the failure's message."""
    env = {**os.environ, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def strangers_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a third party's distribution ``corepool-stranger``, built as a wheel and installed by pip."""
    work = tmp_path_factory.mktemp("stranger")
    source = work / "source"
    package = source / "corepool_stranger"
    package.mkdir(parents=True)
    for file in DRIVER_SOURCE.iterdir():
        if file.suffix == ".toml":
            (source / file.name).write_text(file.read_text())
        elif file.suffix == ".py":
            (package / file.name).write_text(file.read_text())
    run_tool(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(work / "dist"), cwd=source)
    (wheel,) = (work / "dist").glob("*.whl")
    site = work / "site"
    run_tool(sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(site), str(wheel), cwd=work)
    return site


@pytest.fixture(scope="session")
def corepool_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """corepool's own wheel, built from this tree."""
    out = tmp_path_factory.mktemp("wheel")
    run_tool(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), cwd=ROOT)
    (wheel,) = out.glob("*.whl")
    return wheel


PythonRunner = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_python(tmp_path: Path) -> PythonRunner:
    """Run a piece of Python in a process of its own, outside the repository; ``site`` is put on its path."""

    def run(code: str, *, site: Path | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        env = dict(os.environ)
        if site is not None:
            env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), env.get("PYTHONPATH")]))
        command = [sys.executable, "-c", textwrap.dedent(code)]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert not check or done.returncode == 0, done.stderr
        return done

    return run
