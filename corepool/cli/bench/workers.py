"""Where the benchmark's jobs run: in a second process, or, if the store is seen by one process alone, in this one.

Invariants: leaving the block ends the worker, whatever happened inside; one that does not come up is an error that says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from types import TracebackType
from typing import Any, Protocol, Self

import attrs

from corepool import Job, Node
from corepool.errors import BackendUnavailable

__all__ = ["InAProcess", "InThisProcess", "Report", "Stopwatch", "Workplace"]

START_LIMIT = 20.0
LEAVE_LIMIT = 15.0


@attrs.frozen(slots=True)
class Report:
    """delays: seconds from the dispatch of each job to its handler's start. cpu: seconds its process has used so far."""

    delays: list[float]
    cpu: float


class Stopwatch:
    """A handler that does nothing but note how long ago its job was dispatched.

    The payload is the dispatcher's monotonic clock: one clock for all processes of a machine.
    """

    def __init__(self) -> None:
        self._delays: list[float] = []

    async def start(self, job: Job) -> None:
        if job.payload:
            self._delays.append(time.monotonic() - float(job.payload))

    async def stop(self, key: str) -> None: ...

    async def notify(self, key: str, payload: bytes) -> None: ...

    def report(self) -> Report:
        """What was seen since the last report."""
        delays, self._delays = self._delays, []
        return Report(delays, time.process_time())


class Workplace(Protocol):
    """A worker that takes the pool's jobs."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def report(self) -> Report:
        """What the handler saw since the last call."""
        ...


class InThisProcess:
    """The dispatching node holds the worker too."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._handler = Stopwatch()

    async def __aenter__(self) -> Self:
        await self._node.add_worker(self._handler)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None  # it goes with its node

    async def report(self) -> Report:
        return self._handler.report()


class InAProcess:
    """The worker has a process of its own."""

    def __init__(self, node: Node, url: str, loop: str, core: int | None) -> None:
        self._node = node
        self._url = url
        self._arguments = [node.pool, loop, "none" if core is None else str(core)]
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:  # interrupted while it starts: it must not stay behind
            await self._end()
            raise
        return self

    async def _start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "corepool.cli.bench.child",
            *self._arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "COREPOOL_URL": self._url},  # not an argument: it may hold a password
            start_new_session=True,  # Ctrl-C at the terminal is for the benchmark, which then ends it in order
            limit=1 << 24,
        )
        try:
            async with asyncio.timeout(START_LIMIT):
                if await self._line() != b"ready\n":
                    raise BackendUnavailable("the worker's process ended; its own words are above")
                while not self._node.pool_workers():
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise BackendUnavailable(f"the worker's process was not ready within {START_LIMIT:g} s") from None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def _line(self) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        return await self._process.stdout.readline()

    async def report(self) -> Report:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(b"report\n")
        told: Any = json.loads(await self._line())
        return Report(**told)

    async def _end(self) -> None:
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(LEAVE_LIMIT):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
