"""Job handlers to start from. Try one: ``corepool worker examples.handlers:FileDigest --url … --pool files``.

A handler is any class with ``start`` and ``stop``, plain or async, and optionally ``notify``. A plain function may block: the
node runs it in a thread. One handler instance serves all jobs of its worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import sys
from pathlib import Path

import corepool


class FileDigest:
    """Each job watches one file; its payload is the path. ``notify`` hashes the file again."""

    def __init__(self) -> None:
        self._paths: dict[str, Path] = {}

    def start(self, job: corepool.Job) -> None:
        path = Path(job.payload.decode())
        self._report(job.key, path)  # what raises here fails the start: dispatch_job raises JobStartError
        self._paths[job.key] = path

    def stop(self, key: str) -> None:
        del self._paths[key]

    def notify(self, key: str, payload: bytes) -> None:
        self._report(key, self._paths[key])

    @staticmethod
    def _report(key: str, path: Path) -> None:
        with path.open("rb") as file:
            print(key, hashlib.file_digest(file, "sha256").hexdigest()[:16], flush=True)


class Ticker:
    """A long-lived async job: a task per job, started and stopped with it. The payload is the interval in seconds."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self, job: corepool.Job) -> None:
        interval = float(job.payload or b"1")
        if interval <= 0:
            raise ValueError(f"an interval is more than 0 seconds, not {interval}")
        self._tasks[job.key] = asyncio.create_task(self._tick(job, interval))

    async def stop(self, key: str) -> None:
        task = self._tasks.pop(key)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task  # only when it has really ended may another worker start this job

    async def _tick(self, job: corepool.Job, interval: float) -> None:
        while True:
            # give the token to whatever you write to: it refuses a writer whose token is smaller than one it has seen
            print(f"{job.key}: tick under token {job.fencing_token}", file=sys.stderr, flush=True)
            await asyncio.sleep(interval)
