"""The worker of the benchmark in a process of its own: ``python -m corepool.cli.bench.child POOL LOOP CORE``.

Invariants: standard output carries ``ready`` and one line for each ``report`` asked for; the process ends when standard input
closes, which also happens when the benchmark itself dies.
Neighbours: started by :class:`corepool.cli.bench.workers.InAProcess`; the URL comes in the environment, not as an argument.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys

import attrs

from corepool import Node, PoolShutdownError
from corepool.cli.bench.cores import pinned
from corepool.cli.bench.loops import factory
from corepool.cli.bench.workers import Stopwatch
from corepool.driver import connect


async def run(pool: str) -> None:
    """Run the node until standard input closes."""
    handler = Stopwatch()
    async with connect(os.environ["COREPOOL_URL"]) as backend, Node(backend, pool) as node:
        await node.add_worker(handler)
        _say("ready")
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
        try:
            while await reader.readline():
                _say(json.dumps(attrs.asdict(handler.report())))
        finally:
            transport.close()


def _say(line: str) -> None:
    os.write(sys.stdout.fileno(), line.encode() + b"\n")


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="worker: %(levelname)s %(name)s: %(message)s")
    with (
        pinned(int(sys.argv[3]) if sys.argv[3] != "none" else None),
        asyncio.Runner(loop_factory=factory(sys.argv[2])) as runner,
        contextlib.suppress(PoolShutdownError),  # the benchmark ends its pool first
    ):
        runner.run(run(sys.argv[1]))
