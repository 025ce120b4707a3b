"""Typed access to a pool's maps and streams.

Purpose: names, keys and decoding in one place, so that the logic above speaks of records.
Invariants: every name but ``shutdown`` carries the pool's incarnation, so what a crashed shutdown left behind is never met
again; bytes that cannot be decoded are counted and treated as absent, never raised into a loop.
Neighbours: on a driver's `Namespace`; used by everything in the pool.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import TypeVar

import msgspec

from corepool.driver import (
    Capabilities,
    Entry,
    MapStore,
    Namespace,
    StreamConfig,
    StreamKind,
    StreamStore,
)
from corepool.errors import WireError
from corepool.pool.wire import Attention, JobRecord, decode

__all__ = ["SHUTDOWN_MAP", "PoolStore", "Stored"]

T = TypeVar("T")

SHUTDOWN_MAP = "shutdown"
INBOX = StreamConfig(StreamKind.WORK, None)


class Stored(msgspec.Struct, frozen=True, gc=False):
    """A job record as the store holds it."""

    record: JobRecord
    revision: int


class PoolStore:
    """The maps and streams of one incarnation of a pool."""

    def __init__(
        self,
        namespace: Namespace,
        capabilities: Capabilities,
        incarnation: int,
        log: logging.LoggerAdapter[logging.Logger],
    ) -> None:
        self.namespace = namespace
        self.atomic = capabilities.atomic_commit
        self.incarnation = incarnation
        self.undecodable = 0
        self._log = log
        suffix = f".{incarnation}"
        self.workers = "workers" + suffix
        self.worker_keep_alive = "worker_keep_alive" + suffix
        self.worker_cleanup = "worker_cleanup" + suffix
        self.nodes = "nodes" + suffix
        self.node_keep_alive = "node_keep_alive" + suffix
        self.jobs = "jobs" + suffix
        self.payloads = "job_payloads" + suffix
        self.attention = "attention" + suffix
        self.tickers = "tickers" + suffix
        self.queue = "queue" + suffix
        self._suffix = suffix
        self.jobs_map = namespace.map(self.jobs)
        self.attention_map = namespace.map(self.attention)

    def owned(self, worker: str) -> str:
        """The map of the keys a worker owns, written by that worker alone."""
        return f"owned@{worker}{self._suffix}"

    def worker_inbox(self, worker: str) -> str:
        return f"worker:{worker}{self._suffix}"

    def node_inbox(self, node: str) -> str:
        return f"node:{node}{self._suffix}"

    def destination(self, worker: str) -> str:
        """Where a start for ``worker`` goes: its inbox, or the pool's queue if there is no worker."""
        return self.worker_inbox(worker) if worker else self.queue

    def map(self, name: str) -> MapStore:
        return self.namespace.map(name)

    def stream(self, name: str) -> StreamStore:
        return self.namespace.stream(name)

    def known_maps(self) -> list[str]:
        """The maps that every incarnation has, without those of single workers."""
        return [
            self.workers,
            self.worker_keep_alive,
            self.worker_cleanup,
            self.nodes,
            self.node_keep_alive,
            self.jobs,
            self.payloads,
            self.attention,
            self.tickers,
        ]

    def decoded(self, data: bytes, kind: type[T], where: str) -> T | None:
        """The value, or None (counted and logged) if it is not one."""
        try:
            return decode(data, kind)
        except WireError as error:
            self.undecodable += 1
            self._log.warning("set aside what cannot be decoded in %s: %s", where, error)
            return None

    def stored(self, entry: Entry | None) -> Stored | None:
        """The job record in an entry of the jobs map."""
        if entry is None:
            return None
        record = self.decoded(entry.value, JobRecord, f"{self.jobs}[{entry.key!r}]")
        return None if record is None else Stored(record, entry.revision)

    async def job(self, key: str) -> Stored | None:
        """The record of a job, linearizable."""
        return self.stored(await self.jobs_map.get(key))

    async def jobs_of(self, keys: list[str]) -> dict[str, Stored]:
        """The records that exist, each linearizable."""
        found: dict[str, Stored] = {}
        for start in range(0, len(keys), 256):
            chunk = keys[start : start + 256]
            entries = await self.jobs_map.get_many(chunk)
            for key in chunk:
                stored = self.stored(entries.get(key))
                if stored is not None:
                    found[key] = stored
        return found

    async def attentions(self) -> AsyncIterator[tuple[Entry, Attention]]:
        """The jobs on their way."""
        async for entry in self.attention_map.scan():
            value = self.decoded(entry.value, Attention, self.attention)
            if value is not None:
                yield entry, value
