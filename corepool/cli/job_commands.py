"""``corepool dispatch``, ``stop``, ``notify``, ``retry`` and ``explain``: one job at a time, from a client-only node."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from corepool.cli.common import (
    JsonOption,
    PoolOption,
    UrlOption,
    VerboseOption,
    client_node,
    emit,
    execute,
    fail_with,
    plain,
    stdout,
)
from corepool.cli.exits import Exit
from corepool.errors import InvalidOptionError, JobNotFoundError
from corepool.pool import Explanation, JobState

__all__ = ["register"]

KeyArgument = Annotated[str, typer.Argument(metavar="KEY", show_default=False, help="The job's key.")]
PayloadArgument = Annotated[str, typer.Argument(metavar="[PAYLOAD]", show_default=False, help="Text; '-' reads stdin.")]
FileOption = Annotated[Path | None, typer.Option("--file", "-f", help="Read the payload from a file instead.")]
TimeoutOption = Annotated[float, typer.Option("--timeout", "-t", help="Seconds to wait for the answer.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (dispatch, stop, notify, retry, explain):
        app.command()(command)


def _payload(text: str, file: Path | None, as_json: bool) -> bytes:
    if file is not None:
        if text:
            error = InvalidOptionError("give the payload as text or as --file, not both")
            fail_with(error, Exit.USAGE, as_json=as_json)
        try:
            return file.read_bytes()
        except OSError as problem:
            error = InvalidOptionError(f"cannot read the payload: {problem}")
            fail_with(error, Exit.USAGE, as_json=as_json)
    return sys.stdin.buffer.read() if text == "-" else text.encode()


def dispatch(
    key: KeyArgument,
    url: UrlOption,
    pool: PoolOption,
    payload: PayloadArgument = "",
    file: FileOption = None,
    timeout: TimeoutOption = 30.0,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """
    Start a job; returns when a worker has started it.

    If no worker takes it within the timeout the command exits with 7, and the job was certainly not started. A start that
    takes longer than the timeout is stopped: then it exits with 4, and no job is left.

    \b
    Examples:
      corepool dispatch https://example.org/feed.xml '{"every": 60}'
      corepool dispatch README README.md --timeout 5
      cat payload.bin | corepool dispatch big -
    """
    data = _payload(payload, file, as_json)

    async def main() -> None:
        async with client_node(url, pool, call_timeout=timeout) as node:
            await node.dispatch_job(key, data)

    execute(main, as_json=as_json, verbose=verbose)
    _done("started", key, as_json)


def stop(
    key: KeyArgument,
    url: UrlOption,
    pool: PoolOption,
    timeout: TimeoutOption = 30.0,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """
    Stop a job; returns when it has stopped.

    \b
    Example:
      corepool stop README
    """

    async def main() -> None:
        async with client_node(url, pool, call_timeout=timeout) as node:
            await node.stop_job(key)

    execute(main, as_json=as_json, verbose=verbose)
    _done("stopped", key, as_json)


def notify(
    key: KeyArgument,
    url: UrlOption,
    pool: PoolOption,
    payload: PayloadArgument = "",
    file: FileOption = None,
    timeout: TimeoutOption = 30.0,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """
    Send a notification to whichever worker owns the job; returns when its handler has taken it.

    \b
    Example:
      corepool notify README refresh
    """
    data = _payload(payload, file, as_json)

    async def main() -> None:
        async with client_node(url, pool, call_timeout=timeout) as node:
            await node.notify_worker(key, data)

    execute(main, as_json=as_json, verbose=verbose)
    _done("notified", key, as_json)


def retry(
    key: KeyArgument,
    url: UrlOption,
    pool: PoolOption,
    timeout: TimeoutOption = 30.0,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """
    Try a FAILED job again; one that has not failed is left alone.

    \b
    Example:
      corepool retry README
    """

    async def main() -> bool:
        async with client_node(url, pool, call_timeout=timeout) as node:
            told = await node.explain(key)
            await node.retry_job(key)
            return told is not None and told.state is JobState.FAILED

    retried = execute(main, as_json=as_json, verbose=verbose)
    if retried or as_json:
        _done("retried", key, as_json, retried)
    else:
        stdout.print(f"{key} has not failed: left alone", markup=False)


def explain(
    key: KeyArgument, url: UrlOption, pool: PoolOption, as_json: JsonOption = False, verbose: VerboseOption = False
) -> None:
    """
    Where a job is, why it is there, and where it has been.

    Exits with 4 if there is no such job.

    \b
    Examples:
      corepool explain README
      corepool explain README --json | jq .state
    """

    async def main() -> Explanation:
        async with client_node(url, pool) as node:
            found = await node.explain(key)
            if found is None:
                raise JobNotFoundError(f"no job has the key {key!r}")
            return found

    found = plain(execute(main, as_json=as_json, verbose=verbose))
    if as_json:
        emit(found)
        return
    token = found.pop("token")
    moves: list[dict[str, Any]] = found.pop("moves")
    found["token"] = f"{token['generation']}.{token['revision']}" if token else None
    found["since"] = _when(found["since"])
    for name, value in found.items():
        stdout.print(f"{name.replace('_', ' ') + ':':13} {'-' if value in (None, '') else value}", markup=False)
    stdout.print("moves:")
    for move in moves:
        worker = move["worker"] or "no worker yet"
        stdout.print(f"  {_when(move['wall'])}  epoch {move['epoch']}: to {worker}: {move['why']}", markup=False)


def _when(wall: float) -> str:
    return datetime.fromtimestamp(wall, UTC).astimezone().isoformat(sep=" ", timespec="seconds")


def _done(what: str, key: str, as_json: bool, done: bool = True) -> None:
    if as_json:
        emit({"key": key, what: done})
    else:
        stdout.print(f"{what} {key}", markup=False)
