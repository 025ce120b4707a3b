"""``corepool sim run`` and ``corepool sim replay``: whole clusters in virtual time.

Invariants: one line per seed, in the order of the seeds, printed as soon as its run has ended; a seed's digest is the same in
every process of the same Python version.
Neighbours: a thin layer over ``corepool_memory.sim``; what happens in a run is written in ``corepool.testing``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from corepool.cli.common import JsonOption, emit, fail, fail_with, note, set_up_logging, stdout
from corepool.cli.exits import Exit
from corepool.cli.scenarios import BUILT_IN, Scenario, ScenarioError, load_scenario
from corepool_memory.sim.errors import OtherConditions, TokenError
from corepool_memory.sim.run import Result

__all__ = ["register"]

ScenarioOption = Annotated[
    str,
    typer.Option(
        "--scenario",
        metavar="NAME|MODULE:FUNCTION",
        help="What happens in a run: 'chaos', or a function of your own: async def scenario(cluster).",
    ),
]
FaultsOption = Annotated[
    bool, typer.Option("--faults/--no-faults", help="All kinds of faults, drawn per seed; or nothing but latency.")
]

StepsOption = Annotated[
    bool,
    typer.Option(
        "--steps", help="A store whose commits are not atomic: they are applied one operation after the other."
    ),
]

sim = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Clusters in virtual time: look for violations, tell the story of one run.",
)


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.add_typer(sim, name="sim")


@sim.command()
def run(
    seeds: Annotated[int, typer.Option(min=1, help="How many runs.")] = 10,
    first: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    scenario: ScenarioOption = BUILT_IN,
    faults: FaultsOption = True,
    steps: StepsOption = False,
    minimise: Annotated[bool, typer.Option(help="Reduce a failure to the decisions that matter.")] = True,
    as_json: JsonOption = False,
) -> None:
    """
    Run a scenario with one seed after another; one line each.

    The seed decides everything: latencies, losses, crashes, partitions, pauses, clocks, and what the clients do. Exits
    with 1 if a run violated an invariant; below its line stand the story and the command that replays it.

    \b
    Examples:
      corepool sim run --seeds 20
      corepool sim run --seeds 500 --json > runs.jsonl
      corepool sim run --scenario tests.feeds:scenario --steps
    """
    set_up_logging(verbose=False, silent=True)
    chosen = _load(scenario, as_json, faults=faults, steps=steps)
    began = time.monotonic()
    done = failed = 0
    virtual = 0.0
    interrupted = False
    if not as_json:
        stdout.print(f"{'seed':>6} {'digest':16} {'steps':>9} {'virtual':>10} {'wall':>8}  faults")
    try:
        for seed in range(first, first + seeds):
            result = chosen.run(seed=seed, minimise=minimise)
            done += 1
            failed += not result.passed
            virtual += result.virtual_seconds
            if as_json:
                emit(_as_json(result, chosen.command))
            else:
                _print_line(result, chosen.command)
    except KeyboardInterrupt:
        interrupted = True
    wall = time.monotonic() - began
    note(f"{done} runs, {failed} failed, {virtual / 3600:.2f} virtual hours in {wall:.1f} s ({virtual / wall:,.0f} x)")
    if interrupted:
        fail("interrupted", Exit.INTERRUPTED)
    if failed:
        fail(f"{failed} of {seeds} runs violated an invariant", Exit.FOUND)


@sim.command()
def replay(
    token: Annotated[str, typer.Argument(metavar="TOKEN", show_default=False, help="As a failed run printed it.")],
    scenario: ScenarioOption = BUILT_IN,
    faults: FaultsOption = True,
    steps: StepsOption = False,
    full: Annotated[bool, typer.Option("--full", help="All of the story, instead of at most 30 lines.")] = False,
    as_json: JsonOption = False,
) -> None:
    """
    Tell the story of one run, under the options that it was found with. Exits with 1 if it fails, as it did when the
    token was made, and with 0 if it passes now.

    \b
    Examples:
      corepool sim replay cps2.…
      corepool sim replay cps2.… --scenario tests.feeds:scenario --steps --full
    """
    set_up_logging(verbose=False, silent=True)
    chosen = _load(scenario, as_json, faults=faults, steps=steps)
    try:
        result = chosen.run(token=token)
    except OtherConditions as error:
        remedy = chosen.remedy(error, token)
        advice = f": {remedy}" if remedy else ", in the test that printed it"
        fail_with(TokenError(f"{error}{advice}"), Exit.USAGE, as_json=as_json)
    except TokenError as error:
        fail_with(error, Exit.USAGE, as_json=as_json)
    if as_json:
        emit(_as_json(result, chosen.command) | {"story": result.story(full=full)})
    else:
        if result.passed:
            stdout.print("\n".join(result.story(full=full)), markup=False)
        stdout.print(result.report(chosen.command, full=full), markup=False)
    if not result.passed:
        raise typer.Exit(Exit.FOUND)


def _load(name: str, as_json: bool, *, faults: bool, steps: bool) -> Scenario:
    try:
        return load_scenario(name, faults=faults, steps=steps)
    except ScenarioError as error:
        fail_with(error, Exit.USAGE, as_json=as_json)


def _as_json(result: Result, command: str) -> dict[str, Any]:
    violations = [] if result.violation is None else [{"kind": result.violation.kind, "text": result.violation.text}]
    return {
        "seed": result.seed,
        "digest": result.digest,
        "steps": result.steps,
        "virtual_seconds": round(result.virtual_seconds, 6),
        "wall_seconds": round(result.wall_seconds, 4),
        "faults": dict(result.faults),
        "violations": violations,
        "token": result.token,
        "story": [] if result.passed else result.story(),
        "replay": result.replay(command),
    }


def _print_line(result: Result, command: str) -> None:
    faults = _counted(result.faults.items()) or "none"
    stdout.print(
        f"{result.seed:6d} {result.digest:16.16} {result.steps:9,d} {result.virtual_seconds:8.1f} s "
        f"{result.wall_seconds:6.2f} s  {faults}",
        markup=False,
    )
    if result.violation is not None:
        stdout.print(f"       [red]VIOLATION[/red] {result.violation.kind}", end=": ")
        stdout.print(result.report(command), markup=False)


def _counted(items: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{count} {name}" for name, count in items if count)
