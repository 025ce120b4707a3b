"""Where the demo's nodes run, and how one is made to crash.

Purpose: one interface over nodes as tasks of this process (``memory://``, whose data no other process can see) and nodes as
processes of their own (every other backend).
Invariants:

- a crash runs nothing of the victim's: a process is killed with SIGKILL; in one process the node is abandoned and its
  connection closed, and the ledger no longer believes what it says;
- leaving the stage ends every node, also if the story failed; a child process also ends when this one dies, because its
  standard input closes.

Neighbours: ``story`` directs; ``corepool.cli.demo.child`` is the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, Self

import attrs

from corepool import Node
from corepool.cli.demo.handler import FileDigests
from corepool.cli.demo.ledger import Ledger, Mark
from corepool.driver import Backend, open_backend
from corepool.errors import BackendUnavailable, CorepoolError

__all__ = ["InOneProcess", "InProcesses", "Setting", "Stage"]

START_LIMIT = 30.0
LEAVE_LIMIT = 60.0


class Stage(Protocol):
    """Where nodes come, go and crash."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def join(self, name: str) -> None:
        """Start a node with its workers; returns when they are active."""
        ...

    async def crash(self, name: str) -> int:
        """Kill a node without a word; how many jobs it held."""
        ...

    async def leave(self, name: str) -> int:
        """Close a node in order: it hands its jobs over. How many it failed to."""
        ...


@attrs.frozen(slots=True)
class Setting:
    """What every node of the demo is started with."""

    url: str
    pool: str
    workers: int
    options: Mapping[str, Any]


# --- in one process --------------------------------------------------------------------------------------------------


@attrs.define(slots=True)
class _Actor:
    node: Node
    backend: Backend


class InOneProcess:
    """Nodes as tasks of this process, each with a connection of its own."""

    def __init__(self, setting: Setting, ledger: Ledger) -> None:
        self._setting = setting
        self._ledger = ledger
        self._actors: dict[str, _Actor] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self._actors):
            with contextlib.suppress(CorepoolError):  # the story is over; what it proves was measured before
                await self.leave(name)

    async def join(self, name: str) -> None:
        setting = self._setting
        backend = await open_backend(setting.url)
        try:
            node = await Node.open(backend, setting.pool, **setting.options)
        except BaseException:  # whatever it was: without a node nobody would close the connection
            await backend.aclose()
            raise
        self._actors[name] = _Actor(node, backend)
        for _ in range(setting.workers):
            await node.add_worker(FileDigests(name, self._ledger))

    async def crash(self, name: str) -> int:
        actor = self._actors.pop(name)
        held = self._ledger.died(name, time.monotonic())  # first: what its threads still do reaches nobody
        await actor.node.abandon()
        await actor.backend.aclose()
        return held

    async def leave(self, name: str) -> int:
        actor = self._actors.pop(name)
        try:
            await actor.node.close()
        finally:
            await actor.backend.aclose()
        return self._ledger.died(name, time.monotonic())


# --- in processes of their own ---------------------------------------------------------------------------------------


@attrs.define(slots=True)
class _Child:
    process: asyncio.subprocess.Process
    reader: asyncio.Task[None]
    ready: asyncio.Event


class InProcesses:
    """Nodes as processes: a crash is a SIGKILL, as in life."""

    def __init__(self, setting: Setting, ledger: Ledger) -> None:
        self._setting = setting
        self._ledger = ledger
        self._children: dict[str, _Child] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        leaving = [self.leave(name) for name in list(self._children)]
        await asyncio.gather(*leaving, return_exceptions=True)  # the story is over; what it proves was measured before

    async def join(self, name: str) -> None:
        setting = self._setting
        level = logging.getLogger().getEffectiveLevel()  # as talkative as this process
        arguments = [setting.pool, name, str(setting.workers), str(level)]
        arguments += [f"{option}={value!r}" for option, value in setting.options.items()]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "corepool.cli.demo.child",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "COREPOOL_URL": setting.url},  # not an argument: it may hold a password
            start_new_session=True,  # Ctrl-C at the terminal is for the director, who then ends the actors in order
        )
        ready = asyncio.Event()
        child = _Child(process, asyncio.create_task(self._read(name, process, ready)), ready)
        self._children[name] = child
        waiting = asyncio.create_task(ready.wait())
        try:
            await asyncio.wait({waiting, child.reader}, timeout=START_LIMIT, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if not ready.is_set():
            await self._kill(name)
            raise BackendUnavailable(f"node {name} did not come up within {START_LIMIT:g} s; its own words are above")

    async def _read(self, name: str, process: asyncio.subprocess.Process, ready: asyncio.Event) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            if line == b"ready\n":
                ready.set()
            else:
                self._ledger.record(Mark.from_line(line))

    async def crash(self, name: str) -> int:
        await self._kill(name)
        return self._ledger.died(name, time.monotonic())

    async def _kill(self, name: str) -> None:
        child = self._children.pop(name)
        with contextlib.suppress(ProcessLookupError):
            child.process.kill()
        await child.process.wait()
        await child.reader  # what it wrote before it died counts

    async def leave(self, name: str) -> int:
        child = self._children[name]
        assert child.process.stdin is not None
        child.process.stdin.close()
        try:
            async with asyncio.timeout(LEAVE_LIMIT):
                await child.process.wait()
        finally:
            await self._kill(name)
        return self._ledger.died(name, time.monotonic())
