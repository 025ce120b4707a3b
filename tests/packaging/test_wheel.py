"""What the built wheel holds, and what importing it costs."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from .conftest import PythonRunner, run_tool

PACKAGES = ["corepool", "corepool_conformance", "corepool_memory", "corepool_nats", "corepool_redis"]
HEAVY = [
    "aiohttp",
    "hiredis",
    "hypothesis",
    "nats",
    "opentelemetry",
    "pytest",
    "redis",
    "rich",
    "textual",
    "typer",
    "uvloop",
]


def test_the_top_level_holds_only_our_import_packages(corepool_wheel: Path) -> None:
    with zipfile.ZipFile(corepool_wheel) as wheel:
        tops = {name.split("/")[0] for name in wheel.namelist()}
    assert sorted(name for name in tops if not name.endswith(".dist-info")) == PACKAGES
    assert len(tops) == len(PACKAGES) + 1


def test_every_package_is_typed_and_no_test_is_shipped(corepool_wheel: Path) -> None:
    with zipfile.ZipFile(corepool_wheel) as wheel:
        names = wheel.namelist()
    for package in PACKAGES:
        assert f"{package}/py.typed" in names
    assert not [name for name in names if name.startswith(("tests/", "examples/", "docs/", "benchmarks/"))]
    assert [name for name in names if name.endswith("licenses/LICENSE")]


def test_the_wheel_installs_elsewhere_and_its_entry_points_are_found(
    corepool_wheel: Path, tmp_path: Path, run_python: PythonRunner
) -> None:
    site = tmp_path / "site"
    run_tool(
        sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(site), str(corepool_wheel), cwd=tmp_path
    )
    code = """
    import json, corepool, corepool_memory
    from corepool.driver import installed_drivers, load_spec
    print(json.dumps([corepool.__file__, corepool_memory.__file__, sorted(installed_drivers()), load_spec("memory").name]))
    """
    core, memory, schemes, name = json.loads(run_python(code, site=site).stdout)
    assert Path(core).is_relative_to(site)
    assert Path(memory).is_relative_to(site)
    assert {"memory", "redis", "rediss", "nats"} <= set(schemes)
    assert name == "memory"


@pytest.mark.parametrize(
    "module", ["corepool", "corepool.driver", "corepool_memory.plugin", "corepool_redis.plugin", "corepool_nats.plugin"]
)
def test_importing_stays_light(module: str, run_python: PythonRunner) -> None:
    code = f"""
    import sys, json
    before = set(sys.modules)  # an interpreter's start-up hooks are not ours to answer for
    import {module}
    print(json.dumps(sorted(set(sys.modules) - before)))
    """
    loaded = {name.partition(".")[0] for name in json.loads(run_python(code).stdout)}
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize("module", ["corepool.testing.plugin", "corepool_conformance.plugin"])
def test_the_pytest_plugins_do_not_slow_down_everybodys_pytest(module: str, run_python: PythonRunner) -> None:
    code = f"""
    import sys, json
    import pytest
    before = set(sys.modules)
    import {module}
    print(json.dumps(sorted(set(sys.modules) - before)))
    """
    loaded = {name.partition(".")[0] for name in json.loads(run_python(code).stdout)}
    assert not loaded & {*HEAVY, "corepool_memory", "corepool_redis", "corepool_nats"} - {"pytest"}


def test_the_public_names_exist() -> None:
    import corepool

    for name in corepool.__all__:
        assert getattr(corepool, name) is not None
    assert {"Node", "connect", "Job", "ReplicatedMap", "Stream", "CorepoolError"} <= set(corepool.__all__)


def test_an_extra_for_the_command_line_is_named_when_it_is_missing(run_python: PythonRunner) -> None:
    for library in ("typer", "rich"):
        code = f"import sys; sys.modules['{library}'] = None; from corepool.cli.main import main; main()"
        done = run_python(code, check=False)
        assert done.returncode == 9
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        assert "pip install 'corepool[cli]'" in done.stderr


def test_the_command_is_installed() -> None:
    command = Path(sys.executable).with_name("corepool")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("corepool 0.")
