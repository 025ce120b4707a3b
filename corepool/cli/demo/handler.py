"""The demo's job handler: each job watches one real file and keeps a digest of it.

Invariants: every start and stop is in the book, whether it succeeds or not, under the job's fencing token; plain functions,
because reading files blocks (the node runs them in a thread).
Neighbours: ``examples/handlers.py`` has the same handler without the book, to copy from.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import corepool
from corepool.cli.demo.files import hash_file
from corepool.cli.demo.ledger import Book, Mark

__all__ = ["FileDigests", "PipeBook"]


class PipeBook:
    """A `Book` in another process: each mark is one line, written at once, so that a kill cannot tear it in two."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def record(self, mark: Mark) -> None:
        os.write(self._descriptor, mark.to_line())


class FileDigests:
    """A `corepool.JobHandler`. The payload is the file's path; a notification makes it read the file again."""

    def __init__(self, node: str, book: Book) -> None:
        self._node = node
        self._book = book
        self._tokens: dict[str, tuple[int, ...]] = {}
        self._paths: dict[str, Path] = {}
        self.digests: dict[str, str] = {}

    def start(self, job: corepool.Job) -> None:
        token = (job.fencing_token.generation, job.fencing_token.revision)
        self._tokens[job.key] = token  # before the work: a start that is interrupted gets a stop as well
        self._mark("start", job.key, token)
        try:
            path = Path(job.payload.decode())
            self.digests[job.key] = hash_file(path)
            self._paths[job.key] = path
        except BaseException:  # whatever it was, this node does not have the job, and the book must say so
            self._mark("stop", job.key, token)
            raise

    def stop(self, key: str) -> None:
        self._paths.pop(key, None)
        self.digests.pop(key, None)
        self._mark("stop", key, self._tokens.pop(key))

    def notify(self, key: str, payload: bytes) -> None:
        digest = self.digests[key] = hash_file(self._paths[key])
        self._mark("refresh", key, self._tokens[key], digest)

    def _mark(self, what: str, key: str, token: tuple[int, ...], digest: str = "") -> None:
        self._book.record(Mark(what, key, self._node, token, time.monotonic(), digest))
