"""The tutorial is the driver: its code blocks, built and installed away from the repository, pass the kit's core.

corepool itself is installed from its wheel beside it, so this is also the kit run from a wheel.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "write-a-driver.md"
EXAMPLE = ROOT / "examples" / "sqlite_driver"
_BLOCK = re.compile(r'^```\w+ title="(?P<name>[^"]+)"\n(?P<text>.*?)\n```$', re.MULTILINE | re.DOTALL)


def tutorial_files() -> dict[str, str]:
    """The files of the tutorial by name: blocks with one title are parts of one file, in order."""
    files: dict[str, str] = {}
    for match in _BLOCK.finditer(TUTORIAL.read_text(encoding="utf-8")):
        name, text = match["name"], match["text"]
        gap = "" if name not in files else "\n" if text.startswith(" ") else "\n\n"
        files[name] = files.get(name, "") + gap + text + "\n"
    return files


def run(*command: str, cwd: Path, **environment: str) -> str:
    offline = {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **offline, **environment},
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(source: Path, out: Path) -> Path:
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source), cwd=out.parent)
    (wheel,) = out.glob("*.whl")
    return wheel


def test_the_example_is_what_the_tutorial_says() -> None:
    files = tutorial_files()
    held = {
        str(path.relative_to(EXAMPLE)): path.read_text(encoding="utf-8")
        for path in EXAMPLE.rglob("*")
        if path.suffix in (".py", ".toml")
    }
    assert files == held


@pytest.mark.timeout(240)
def test_the_tutorials_driver_passes_the_core(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name, text in tutorial_files().items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    site, away = tmp_path / "site", tmp_path / "away"
    away.mkdir()
    wheels = [build(source, tmp_path / "driver"), build(ROOT, tmp_path / "corepool")]
    for wheel in wheels:
        run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel), cwd=away)
    where = run(
        sys.executable,
        "-c",
        "import corepool_conformance, corepool_sqlite; print(corepool_conformance.__file__, corepool_sqlite.__file__)",
        cwd=away,
        PYTHONPATH=str(site),
    )
    assert all(Path(path).is_relative_to(site) for path in where.split()), where
    report = away / "report.json"
    # Redelivery is quick on a file, so the sinks need not wait long. No settings of this repository reach the run.
    options = (
        "-p",
        "no:cacheprovider",
        "-p",
        "no:asyncio",
        "-q",
        "--corepool-ack-wait=0.4",
        "--corepool-patience=2",
        "--corepool-budget=5",
    )
    arguments = (
        "--pyargs",
        "corepool_conformance",
        f"--corepool-url=sqlite://{away}/kit.db",
        f"--corepool-report={report}",
    )
    run(sys.executable, "-m", "pytest", *options, *arguments, cwd=away, PYTHONPATH=str(site))
    (target,) = json.loads(report.read_text(encoding="utf-8"))["targets"]
    assert target["complete"]
    assert target["levels"] == ["core", "atomic_commit", "multi_process", "strict_receipts", "value_ops"]
