"""A cluster of worker processes on a real server, a client, and the whole story afterwards.

Purpose: start, kill and end processes; call the pool from this one; turn the processes' logs and the calls into the history
that ``corepool.testing.history`` judges.
Invariants: no process outlives its `Cluster`; all times are this machine's monotonic clock; a process that was killed had its
jobs until it was gone.
Neighbours: ``worker_process`` is what runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import attrs

import corepool
from corepool import BackendUnavailable, CorepoolError, FencingToken, JobState, Node
from corepool.testing.history import Dispatch, Effect, judge
from tests.waiting import until

__all__ = ["Cluster", "Process", "in_place", "settled", "summary"]

TTL = 3.0
OPTIONS = {
    "worker_ttl": TTL,
    "ack_grace_period": 1.0,
    "call_timeout": 20.0,
    "worker_shutdown_ttl": 15.0,
}
_SCRIPT = Path(__file__).with_name("worker_process.py")


def summary(dispatches: Iterable[Dispatch]) -> str:
    """How many calls ended how."""
    ends = Counter("started" if call.error is None else type(call.error).__name__ for call in dispatches)
    return ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))


@attrs.define(eq=False)
class Process:
    """A worker process. ``gone``: when it had ended. ``paused``: when it was stopped in its tracks."""

    name: str
    folder: Path
    process: asyncio.subprocess.Process
    gone: float | None = None
    paused: float | None = None

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.jsonl"

    @property
    def words(self) -> str:
        """The end of what it said on standard error."""
        return (self.folder / f"{self.name}.err").read_text(errors="replace")[-3000:]

    async def kill(self) -> float:
        """SIGKILL; returns when it was sent."""
        sent = time.monotonic()
        self.process.kill()
        await self._ended()
        return sent

    def pause(self) -> None:
        """SIGSTOP: it is there, and does nothing."""
        self.process.send_signal(signal.SIGSTOP)
        self.paused = time.monotonic()

    def resume(self) -> None:
        """SIGCONT: it goes on where it was, and does not know how long that took."""
        self.process.send_signal(signal.SIGCONT)

    async def terminate(self, within: float) -> int:
        """SIGTERM; returns its exit code."""
        self.process.terminate()
        async with asyncio.timeout(within):
            await self._ended()
        assert self.process.returncode is not None
        return self.process.returncode

    async def _ended(self) -> None:
        await self.process.wait()
        if self.gone is None:
            self.gone = time.monotonic()

    def effects(self) -> list[Effect]:
        """What its handler did, as far as it got."""
        done: list[dict[str, Any]] = []
        latest: dict[str, dict[str, Any]] = {}
        for line in self.log.read_text().splitlines() if self.log.exists() else ():
            what, key, payload, generation, revision, at = json.loads(line)
            if what == "began":
                assert latest.get(key, {"ended": at})["ended"] is not None, f"{self.name}: {key} began twice"
                latest[key] = {
                    "key": key,
                    "payload": payload.encode(),
                    "owner": self.name,
                    "token": FencingToken(generation, revision),
                    "began": at,
                    "suspended": False,
                    **dict.fromkeys(("running", "stopping", "ended")),
                }
                done.append(latest[key])
            else:
                latest[key][what] = at
        for effect in done:
            if self.paused is not None and effect["began"] <= self.paused <= (effect["ended"] or math.inf):
                effect["suspended"] = True
            if effect["ended"] is None:
                effect["ended"] = self.gone
        return [Effect(**effect) for effect in done]


class Cluster:
    """One pool of a fresh name: worker processes, and a client node in this process. options: other than `OPTIONS`."""

    def __init__(self, url: str, folder: Path, **options: float) -> None:
        self.url = url
        self.options = {**OPTIONS, **options}
        self.pool = f"cluster-{secrets.token_hex(6)}"
        self.processes: list[Process] = []
        self.dispatches: list[Dispatch] = []
        self.client: Node
        self._calls = 0
        self._folder = folder
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._end)
            backend = await stack.enter_async_context(corepool.connect(self.url))
            self.client = await stack.enter_async_context(Node(backend, self.pool, client_only=True, **self.options))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for process in self.processes:
                print(f"--- {process.name}:\n{process.words}")
        await self._stack.aclose()

    async def _end(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.process.kill()
            await process.process.wait()

    async def start(self, count: int) -> None:
        """Add worker processes; returns when all are in the ring of the client."""
        started = await asyncio.gather(*(self._spawn(f"w{len(self.processes) + n}") for n in range(count)))
        self.processes += started
        for process in started:
            await self._ready(process)
        alive = sum(1 for process in self.processes if process.gone is None)
        await until(lambda: len(self.client.pool_workers()) >= alive, within=10)

    async def _spawn(self, name: str) -> Process:
        options = [f"{option}={value!r}" for option, value in self.options.items()]
        with (self._folder / f"{name}.err").open("wb") as words:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                str(_SCRIPT),
                str(self._folder / f"{name}.jsonl"),
                self.pool,
                *options,
                stdout=asyncio.subprocess.PIPE,
                stderr=words,
                env={**os.environ, "COREPOOL_URL": self.url},
            )
        return Process(name, self._folder, process)

    async def _ready(self, process: Process) -> None:
        assert process.process.stdout is not None
        async with asyncio.timeout(20):
            line = await process.process.stdout.readline()
        assert line == b"ready\n", f"{process.name} did not come up:\n{process.words}"

    # --- calls -------------------------------------------------------------------------------------------------------

    async def dispatch(self, key: str) -> Dispatch:
        """One call, noted with all that became of it. Its payload is its own: that is how the judge tells calls apart."""
        self._calls += 1
        payload, invoked, error = f"call {self._calls}".encode(), time.monotonic(), None
        try:
            await self.client.dispatch_job(key, payload)
        except CorepoolError as raised:
            error = raised
        call = Dispatch(key=key, payload=payload, invoked=invoked, returned=time.monotonic(), error=error)
        self.dispatches.append(call)
        return call

    async def dispatch_all(self, count: int, callers: int) -> float:
        """So many jobs, by callers that each make one call at a time, and make it again if the backend was away and nothing
        was sent; returns the seconds it took."""
        began = time.monotonic()
        keys = iter([f"k{number}" for number in range(count)])

        async def caller() -> None:
            for key in keys:
                while isinstance((await self.dispatch(key)).error, BackendUnavailable):
                    await asyncio.sleep(0.1)  # as a caller would: there is no event that tells that a server is back

        await asyncio.gather(*(caller() for _ in range(callers)))
        return time.monotonic() - began

    # --- the story ---------------------------------------------------------------------------------------------------

    def effects(self) -> list[Effect]:
        return [effect for process in self.processes for effect in process.effects()]

    def running(self) -> dict[str, Effect]:
        """What runs now, by key; a key that runs twice is the judge's to find."""
        return {effect.key: effect for effect in self.effects() if effect.running is not None and effect.ended is None}

    def judge(self) -> None:
        """Hold the pool to its promises (DESIGN 5)."""
        judge(self.dispatches, [], self.effects(), settled_at=time.monotonic())


async def settled(cluster: Cluster, promised: set[str]) -> None:
    """Wait until all that was promised runs, and what has a record is what runs."""

    async def look() -> tuple[set[str], set[str]]:
        return set(cluster.running()), set(await cluster.client.job_keys())

    async def rests() -> bool:
        running, recorded = await look()
        return promised <= running and running == recorded

    try:
        await until(rests, within=10 * TTL)
    except AssertionError as error:
        running, recorded = await look()
        wrong = sorted((promised - running) | (running ^ recorded))
        told = "\n".join([str(await cluster.client.explain(key)) for key in wrong[:5]])
        raise AssertionError(
            f"after {10 * TTL:g} s {len(promised - running)} that were promised do not run, {len(running - recorded)} run "
            f"without a record, {len(recorded - running)} have a record and do not run, e.g. {wrong[:5]}:\n{told}"
        ) from error


async def in_place(cluster: Cluster, keys: set[str]) -> bool:
    """Whether every job is where the ring says."""
    told = [told for told in await asyncio.gather(*(cluster.client.explain(key) for key in keys)) if told is not None]
    return len(told) == len(keys) and all(one.state is JobState.RUNNING and one.owner == one.belongs_to for one in told)
