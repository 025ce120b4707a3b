"""A process that joins a sink, receives events, and is killed.

Purpose: a member that really vanishes: no ``finally`` runs, no connection is closed in order.
Invariants: the process reports what it holds before it is killed; it never acks.
Neighbours: started by the tests of S3 with the harness's URL; run as ``python -m corepool_conformance.victim``.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

from corepool.driver import open_backend
from corepool_conformance.kit import Kit, PromiseBroken

__all__ = ["Victim"]


class Victim:
    """A member of a sink in a process of its own. Use `Victim.start`."""

    def __init__(self, process: asyncio.subprocess.Process, held: list[str]) -> None:
        self._process = process
        self.held = held

    @classmethod
    async def start(cls, kit: Kit, stream: str, sink: str, count: int) -> Victim:
        """Start the process; return once it holds ``count`` events.

        Raises:
            PromiseBroken: it could not receive them.
        """
        task = {
            "url": kit.harness.url,
            "namespace": kit.namespace_name,
            "stream": stream,
            "sink": sink,
            "ack_wait": kit.ack_wait,
            "count": count,
        }
        # By the environment and not as an argument: a URL may hold a password, and `ps` shows arguments to everybody.
        environment = {**os.environ, "COREPOOL_CONFORMANCE_VICTIM": json.dumps(task)}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "corepool_conformance.victim", env=environment, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        line = await kit.within(20, process.stdout.readline(), "another process to receive events", "S2")
        if not line:
            raise PromiseBroken("S2", "another process could not receive from the sink; its error is on standard error")
        return cls(process, [str(known) for known in json.loads(line)])

    async def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        await self._process.wait()


async def _live() -> None:
    task = json.loads(os.environ["COREPOOL_CONFORMANCE_VICTIM"])
    backend = await open_backend(task["url"])
    sink = (
        await backend.namespace(task["namespace"]).stream(task["stream"]).sink(task["sink"], ack_wait=task["ack_wait"])
    )
    held: list[str] = []
    while len(held) < task["count"]:
        held += [delivery.event.id for delivery in await sink.receive(task["count"] - len(held))]
    sys.stdout.write(json.dumps(held) + "\n")
    sys.stdout.flush()
    await asyncio.sleep(3600)  # killed long before


if __name__ == "__main__":
    asyncio.run(_live())
