"""A process with one pool node, driven by lines on standard input, and telling on standard output what its handler did.

Purpose: a node that can be killed, suspended and cut off like a real one.
Invariants: an effect is written out *before* the handler goes on, so a kill loses none; times are of the machine's monotonic
clock, which its processes share.
Neighbours: started by ``real_env`` as ``python -m corepool_conformance.pool.host``.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
import time
from typing import Any

from corepool.driver import open_backend
from corepool.errors import CorepoolError
from corepool.pool import Job, Node

__all__ = ["SETTINGS", "RecordingHandler", "tell_line"]

SETTINGS = "COREPOOL_CONFORMANCE_HOST"
"""The environment variable with the settings: a URL may hold a password, and arguments are shown to everybody."""


def tell_line(message: dict[str, Any]) -> None:
    """Write one line, at once and whole."""
    os.write(1, json.dumps(message).encode() + b"\n")


class RecordingHandler:
    """Tells what it is asked. Some keys are slow to start, others to stop."""

    def __init__(self, tell: Any) -> None:
        self._tell = tell
        self._count = 0
        self._own: dict[str, int] = {}

    async def start(self, job: Job) -> None:
        self._count += 1
        number = self._own[job.key] = self._count
        token = [job.fencing_token.generation, job.fencing_token.revision]
        payload = job.payload.decode()
        self._tell({"effect": "began", "number": number, "key": job.key, "payload": payload, "token": token} | _now())
        try:
            if job.key == "k3":
                await asyncio.sleep(
                    0.2
                )  # a handler that is slow: what befalls the pool befalls it in the middle of this, too
        except BaseException:  # cancelled: the job did not start here
            self._tell({"effect": "ended", "number": number} | _now())
            raise
        self._tell({"effect": "running", "number": number} | _now())

    async def stop(self, key: str) -> None:
        number = self._own.pop(key, 0)
        self._tell({"effect": "stopping", "number": number} | _now())
        try:
            if key == "k2":
                await asyncio.sleep(0.1)
        finally:
            self._tell({"effect": "ended", "number": number} | _now())

    async def notify(self, key: str, payload: bytes) -> None:
        return


def _now() -> dict[str, float]:
    return {"at": time.monotonic()}


async def _serve() -> None:
    settings = json.loads(os.environ[SETTINGS])
    backend = await open_backend(settings["url"])
    node = await Node.open(backend, settings["pool"], **settings["options"])
    worker = await node.add_worker(RecordingHandler(tell_line))
    tell_line({"up": worker.id})
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    calls: set[asyncio.Task[None]] = set()
    while line := await reader.readline():
        order = json.loads(line)
        if order["call"] == "close":
            await node.close()
            await backend.aclose()
            tell_line({"id": order["id"], "workers": []})
            return
        task = asyncio.create_task(_answer(node, order))
        calls.add(task)
        task.add_done_callback(calls.discard)


async def _answer(node: Node, order: dict[str, Any]) -> None:
    key, payload = order["key"], base64.b64decode(order["payload"])
    try:
        if order["call"] == "dispatch_job":
            await node.dispatch_job(key, payload, timeout=order["timeout"])
        elif order["call"] == "stop_job":
            await node.stop_job(key)
        elif order["call"] == "notify_worker":
            await node.notify_worker(key, payload)
        # "workers" asks for what every answer tells
        tell_line({"id": order["id"], "workers": [worker.id for worker in node.workers]})
    except CorepoolError as error:
        tell_line({"id": order["id"], "error": type(error).__name__, "text": str(error)})


if __name__ == "__main__":
    asyncio.run(_serve())
