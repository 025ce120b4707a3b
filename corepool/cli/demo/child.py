"""One node of the demo in a process of its own: ``python -m corepool.cli.demo.child POOL NAME WORKERS LEVEL OPTION=VALUE…``.

Invariants: standard output carries the ledger's marks and the word ``ready``, nothing else; the node hands its jobs over and
ends when standard input closes, which also happens when the demo itself dies.
Neighbours: started by :class:`corepool.cli.demo.stage.InProcesses`.
"""

from __future__ import annotations

import ast
import asyncio
import logging
import os
import sys

from corepool import Node
from corepool.cli.demo.handler import FileDigests, PipeBook
from corepool.driver import connect


async def run(pool: str, name: str, workers: int, options: dict[str, object]) -> None:
    """Run the node until standard input closes."""
    book = PipeBook(sys.stdout.fileno())
    async with connect(os.environ["COREPOOL_URL"]) as backend, Node(backend, pool, **options) as node:
        for _ in range(workers):
            await node.add_worker(FileDigests(name, book))
        os.write(sys.stdout.fileno(), b"ready\n")
        await until_input_closes()


async def until_input_closes() -> None:
    """Return at the end of standard input."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    try:
        await reader.read()
    finally:
        transport.close()


if __name__ == "__main__":
    logging.basicConfig(level=int(sys.argv[4]), format=f"node {sys.argv[2]}: %(levelname)s %(name)s: %(message)s")
    asyncio.run(
        run(
            sys.argv[1],
            sys.argv[2],
            int(sys.argv[3]),
            {name: ast.literal_eval(value) for name, _, value in (pair.partition("=") for pair in sys.argv[5:])},
        )
    )
