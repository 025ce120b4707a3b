"""A worker in a process of its own: ``python worker_process.py LOG POOL OPTION=VALUE…``, with the backend in ``COREPOOL_URL``.

Purpose: what a user deploys, as small as it can be, with a handler that writes down what it is asked to do.
Invariants: each line of the log is one write, so that SIGKILL cannot tear it; its time is the monotonic clock, which all
processes of a machine share. SIGTERM hands the jobs over and ends with 0. Standard output carries the word ``ready``, once.
Neighbours: started and read by ``cluster``.
"""

from __future__ import annotations

import ast
import asyncio
import json
import logging
import os
import signal
import sys
import time

import corepool


class LoggedHandler:
    """Runs nothing; tells the log when each job began, ran, was asked to stop and ended."""

    def __init__(self, path: str) -> None:
        self._log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._jobs: dict[str, corepool.Job] = {}

    def _note(self, what: str, job: corepool.Job) -> None:
        token = job.fencing_token
        line = [what, job.key, job.payload.decode(), token.generation, token.revision, time.monotonic()]
        os.write(self._log, json.dumps(line).encode() + b"\n")

    async def start(self, job: corepool.Job) -> None:
        self._note("began", job)
        self._jobs[job.key] = job
        self._note("running", job)

    async def stop(self, key: str) -> None:
        job = self._jobs.pop(key)
        self._note("stopping", job)
        self._note("ended", job)


async def main(log: str, pool: str, options: dict[str, float]) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with (
        corepool.connect(os.environ["COREPOOL_URL"]) as backend,
        corepool.Node(backend, pool, **options) as node,
    ):
        await node.add_worker(LoggedHandler(log))
        print("ready", flush=True)
        await stop.wait()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    given = (pair.partition("=") for pair in sys.argv[3:])
    asyncio.run(main(sys.argv[1], sys.argv[2], {name: ast.literal_eval(value) for name, _, value in given}))
