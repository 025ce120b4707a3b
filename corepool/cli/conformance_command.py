"""``corepool conformance URL``: hold a backend to the driver contract.

Invariants: the kit runs in this process, so that a URL with a password appears in no argument list; a configuration of pytest
that happens to lie around is not read.
Neighbours: ``corepool_conformance`` is the kit; with pytest's own options it is run as the documentation of the kit says.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from corepool.cli.common import JsonOption, emit, execute, fail_with
from corepool.cli.exits import Exit
from corepool.driver import connect
from corepool.errors import DriverLoadError, InvalidOptionError

__all__ = ["register"]

CONFIGURATION = "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
NEEDS = ("pytest", "pytest_asyncio", "hypothesis")


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(conformance)


def conformance(
    url: Annotated[
        str, typer.Argument(envvar="COREPOOL_URL", metavar="URL", show_default=False, help="The backend to test.")
    ],
    known_failures: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="TOML with the failures you know of.")
    ] = None,
    select: Annotated[str, typer.Option("-k", help="Only tests whose name matches, as pytest's -k.")] = "",
    seed: Annotated[int | None, typer.Option(help="Of all random choices; a new one unless given.")] = None,
    budget: Annotated[
        float, typer.Option(min=1.0, metavar="SECONDS", help="How long the pool layer tries plans.")
    ] = 30.0,
    as_json: JsonOption = False,
) -> None:
    """
    Hold a backend to the driver contract, and say what it keeps.

    It works in namespaces of its own and removes them. Exits with 1 if a promise is broken, with 3 if the backend cannot
    be reached. For a harness, or for more of pytest's options: pytest --pyargs corepool_conformance --corepool-url=URL

    \b
    Examples:
      corepool conformance memory://
      corepool conformance redis://localhost:6379/0 --json > result.json
      corepool conformance nats://localhost -k watch
      corepool conformance redis://localhost:6379/0 -k plans --budget 600
    """
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        error = DriverLoadError(f"the kit needs {', '.join(missing)}; run: pip install 'corepool[conformance]'")
        fail_with(error, Exit.NOT_INSTALLED, as_json=as_json)

    async def reach() -> None:
        async with connect(url):
            pass

    execute(reach, as_json=as_json)
    with tempfile.TemporaryDirectory(prefix="corepool-conformance-") as folder:
        report = Path(folder) / "report.json"
        (Path(folder) / "pytest.ini").write_text(CONFIGURATION)
        arguments = ["--pyargs", "corepool_conformance", f"--corepool-url={url}", f"--corepool-report={report}"]
        arguments += ["-c", f"{folder}/pytest.ini", f"--rootdir={folder}", "-p", "no:cacheprovider"]
        arguments += [
            "-W",
            "ignore::pytest.PytestAssertRewriteWarning",
        ]  # corepool is imported already: by this command
        arguments += [f"--corepool-known-failures={known_failures.resolve()}"] if known_failures else []
        arguments += ["-k", select] if select else []
        arguments += [f"--corepool-budget={budget:g}"]
        arguments += [f"--corepool-seed={seed}"] if seed is not None else []
        code = _run(arguments, sys.stderr if as_json else sys.stdout)
        if code == _NO_TESTS:
            fail_with(InvalidOptionError(f"no test of the kit matches {select!r}"), Exit.USAGE, as_json=as_json)
        if as_json and report.exists():
            result: Any = json.loads(report.read_text(encoding="utf-8"))
            emit(result)
    if code:
        raise typer.Exit(_MEANINGS.get(code, Exit.FOUND))


_NO_TESTS = 5
_MEANINGS = {2: Exit.INTERRUPTED, 4: Exit.USAGE}


def _run(arguments: list[str], out: Any) -> int:
    import pytest

    with contextlib.redirect_stdout(out):
        return int(pytest.main(arguments))
