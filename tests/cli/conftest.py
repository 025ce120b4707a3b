"""Commands run inside the test's own event loop, so that they share ``memory://`` with the nodes of the test."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from corepool.cli import common
from corepool.cli.app import app

Cli = Callable[..., Awaitable[Result]]


_numbers = itertools.count()


@pytest.fixture
def memory_url() -> str:
    """A store of the test's own: what is in ``memory://name`` stays there as long as the process."""
    return f"memory://cli-{next(_numbers)}"


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, memory_url: str) -> Cli:
    """``await cli("dispatch", "k")``: the command's own thread parses and prints, its coroutine runs in the test's loop."""

    async def invoke(*arguments: str, url: str = memory_url, pool: str = "p", stdin: bytes | None = None) -> Result:
        loop = asyncio.get_running_loop()

        def run_here(main: Coroutine[Any, Any, Any]) -> Any:
            return asyncio.run_coroutine_threadsafe(main, loop).result(timeout=30)

        monkeypatch.setattr(common.asyncio, "run", run_here)
        environment = {"COREPOOL_URL": url, "COREPOOL_POOL": pool}
        return await asyncio.to_thread(CliRunner().invoke, app, arguments, env=environment, input=stdin)

    return invoke
