"""``corepool bench URL``.

Invariants: the table says what was measured against what, and whether a goal was met or missed; progress is shown on a
terminal only, and never on standard output.
Neighbours: :mod:`corepool.cli.bench.study` measures.
"""

from __future__ import annotations

import platform
import secrets
from typing import Annotated, Any

import attrs
import typer
from rich.markup import escape

from corepool.cli.bench import cores as cores_of
from corepool.cli.bench import loops
from corepool.cli.bench.figures import Figure, Results
from corepool.cli.bench.sizes import QUICK, USUAL
from corepool.cli.bench.study import Study
from corepool.cli.common import JsonOption, VerboseOption, emit, execute, fail_with, stderr, stdout
from corepool.cli.exits import Exit
from corepool.errors import InvalidOptionError

__all__ = ["register"]


_LINE = "{:<60}{:>12}{:>12}{:>12}{:>8}  {}"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(bench)


def bench(
    url: Annotated[
        str, typer.Argument(envvar="COREPOOL_URL", metavar="URL", show_default=False, help="The backend to measure.")
    ],
    quick: Annotated[bool, typer.Option("--quick", help="A few seconds: shows that it runs, not how fast.")] = False,
    loop: Annotated[
        str, typer.Option(metavar="auto|asyncio|uvloop", help="The event loop; auto is uvloop where installed.")
    ] = "auto",
    cores: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            show_default=False,
            help="Cores of the dispatching and the worker's process, or none; the last two unless told.",
        ),
    ] = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """
    Measure a backend, and the floor it stands on, in one run.

    Each time is taken in turns with the least any client needs there: PING on the same connection for Redis, a plain request
    and its reply for NATS, a turn of the event loop in memory. Dispatches go to a worker in a second process. It works in
    names of its own and removes them, also after Ctrl-C. Goals are the project's own, for a server on the same machine.

    \b
    Examples:
      corepool bench redis://localhost:6379/0
      corepool bench nats://localhost --json > nats.json
      corepool bench memory:// --quick
    """
    if url.lower().rstrip("/") == "memory:":
        url = f"memory://bench-{secrets.token_hex(4)}"  # without a name each connection would open a store of its own
    try:
        chosen, where = loops.choose(loop), cores_of.choose(cores)
    except InvalidOptionError as error:
        fail_with(error, Exit.USAGE, as_json=as_json)
    status = stderr.status("") if stderr.is_terminal else None

    def progress(text: str) -> None:
        if status is not None:
            status.update(escape(text))

    study = Study(url=url, sizes=QUICK if quick else USUAL, cores=where, loop=chosen, progress=progress)

    async def main() -> Results:
        with cores_of.pinned(where.dispatcher):
            if status is None:
                return await study.run()
            with status:
                return await study.run()

    results = execute(main, as_json=as_json, verbose=verbose, loop_factory=loops.factory(chosen))
    if as_json:
        emit(_plain(study, results, quick))
    else:
        _print(study, results, quick)


def _plain(study: Study, results: Results, quick: bool) -> dict[str, Any]:
    return {
        "backend": study.shown,
        "driver": study.family,
        "quick": quick,
        "loop": study.loop,
        "python": platform.python_version(),
        "cores": attrs.asdict(study.cores),
        "sizes": attrs.asdict(study.sizes),
        "figures": {name: figure.plain() for name, figure in results.figures.items()},
        "not_measured": results.missing,
    }


def _print(study: Study, results: Results, quick: bool) -> None:
    stdout.print(f"{study.shown}, {study.loop}, Python {platform.python_version()}", markup=False)
    stdout.print(_LINE.format("", "median", "p99", "floor", "ratio", "goal"), style="bold")
    for figure in results.figures.values():
        line = _LINE.format(
            figure.title,
            _quantity(figure.value, figure.unit),
            "" if figure.p99 is None else _quantity(figure.p99, figure.unit),
            "" if figure.floor is None else _quantity(figure.floor, figure.unit),
            "" if figure.ratio is None else f"{figure.ratio:.2f}",
            "",
        )
        stdout.print(escape(line) + _verdict(figure))
    if study.floor_text:
        stdout.print(f"floor: {study.floor_text}", markup=False)
    for name, why in results.missing.items():
        stdout.print(f"not measured: {name}: {why}", markup=False)
    where = study.cores
    stdout.print(
        "cores: not pinned"
        if where.dispatcher is None
        else f"cores: dispatcher on {where.dispatcher}, a worker in another process on {where.worker}",
        markup=False,
    )
    if quick:
        stdout.print("--quick takes too few samples for a judgement", markup=False)


def _quantity(value: float, unit: str) -> str:
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}{unit if unit.startswith('/') or not unit else ' ' + unit}"


def _verdict(figure: Figure) -> str:
    if figure.goal is None:
        return ""
    verdict = {True: "[green]met[/]", False: "[red]missed[/]", None: "not told"}[figure.met]
    return f"{verdict}: {escape(figure.goal.text)}"
