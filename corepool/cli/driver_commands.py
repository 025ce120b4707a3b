"""``corepool drivers`` and ``corepool check``: what each backend promises, and whether this one is set up to keep it."""

from __future__ import annotations

import importlib
import time
from typing import Annotated, Any

import attrs
import typer
from rich.table import Table

from corepool.cli.common import JsonOption, emit, execute, fail, stdout
from corepool.cli.exits import Exit
from corepool.driver import Capabilities, Finding, Severity, connect, installed_drivers, load_spec
from corepool.errors import DriverLoadError

__all__ = ["register"]

_STYLE = {Severity.DANGER: "bold red", Severity.WARNING: "yellow", Severity.INFO: "dim"}


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(drivers)
    app.command()(check)


def drivers(as_json: JsonOption = False) -> None:
    """
    Which backends are installed, and what each promises.

    A driver that is broken or lacks its client library is listed with what is wrong; it does not hide the others.

    \b
    Examples:
      corepool drivers
      corepool drivers --json
    """
    rows = [_describe(scheme, origin) for scheme, origin in installed_drivers().items()]
    if as_json:
        emit({"drivers": rows})
        return
    table = Table(title="Installed drivers", title_justify="left")
    for column in ("URL", "driver", "from", "usable"):
        table.add_column(column)
    for row in rows:
        usable = "[green]yes[/]" if row["usable"] else "[red]no[/]"
        table.add_row(f"{row['scheme']}://", row["name"] or "?", row["distribution"], usable)
    stdout.print(table)
    _print_matrix(rows)
    for row in rows:
        if row["problem"]:
            stdout.print(f"{row['scheme']}://: {row['problem']}", markup=False)


def _describe(scheme: str, origin: str) -> dict[str, Any]:
    row: dict[str, Any] = {"scheme": scheme, "distribution": origin, "name": None, "summary": None, "example": None}
    row |= {"capabilities": None, "usable": False, "problem": None, "install": None}
    try:
        spec = load_spec(scheme)
    except DriverLoadError as error:
        return row | {"problem": str(error)}
    row |= {"name": spec.name, "summary": spec.summary, "example": spec.example, "install": spec.install_command}
    row |= {"capabilities": attrs.asdict(spec.capabilities)}
    try:
        importlib.import_module(spec.loader.partition(":")[0])
    except (Exception, SystemExit) as error:  # noqa: BLE001  what a driver's import raises is one row of this table
        return row | {"problem": f"{type(error).__name__}: {error}; run: {spec.install_command}"}
    return row | {"usable": True}


def _print_matrix(rows: list[dict[str, Any]]) -> None:
    """One column per driver, one line per capability: drivers with several schemes appear once."""
    by_name = {row["name"]: row for row in rows if row["name"]}
    table = Table(title="What each promises (of a default installation)", title_justify="left")
    table.add_column("capability")
    for name in by_name:
        table.add_column(name)
    for field in attrs.fields(Capabilities):
        values = [row["capabilities"][field.name] for row in by_name.values()]
        table.add_row(field.name, *(_cell(value) for value in values))
    stdout.print(table)


def _cell(value: bool | int) -> str:
    if isinstance(value, bool):
        return "yes" if value else "[dim]no[/]"
    return f"{value:,}"


def check(
    url: Annotated[
        str,
        typer.Argument(envvar="COREPOOL_URL", metavar="URL", show_default=False, help="The backend to look at."),
    ],
    as_json: JsonOption = False,
) -> None:
    """
    Look for settings of a backend that endanger acknowledged data.

    Connects, reads settings, changes nothing. Exits with 1 if there is a finding of severity "danger": what
    corepool.connect(url, strict=True) would refuse.

    \b
    Examples:
      corepool check redis://localhost:6379/0
      COREPOOL_URL=nats://localhost corepool check --json
    """

    async def main() -> tuple[str, Capabilities, list[Finding], float]:
        began = time.monotonic()
        async with connect(url) as backend:
            opened = time.monotonic() - began
            return backend.url, backend.capabilities, await backend.preflight(), opened

    shown, capabilities, findings, seconds = execute(main, as_json=as_json)
    dangers = sum(finding.severity is Severity.DANGER for finding in findings)
    if as_json:
        emit(
            {
                "url": shown,
                "seconds_to_connect": round(seconds, 4),
                "dangers": dangers,
                "findings": [attrs.asdict(one) | {"severity": one.severity.value} for one in findings],
                "capabilities": attrs.asdict(capabilities),
            }
        )
    else:
        stdout.print(f"{shown}: connected in {seconds * 1000:.0f} ms", markup=False)
        for finding in findings:
            style = _STYLE[finding.severity]
            stdout.print(f"[{style}]{finding.severity.value:8}[/] {finding.code}")
            stdout.print(f"         {finding.text}\n         Remedy: {finding.remedy}", markup=False)
        if not findings:
            stdout.print("Nothing to report.")
    if dangers:
        fail(f"{dangers} setting(s) endanger acknowledged data", Exit.FOUND)
