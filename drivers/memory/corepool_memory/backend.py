"""The backend: namespaces and batches on a `Transport`.

Purpose: what ``memory://`` opens, and what a simulated node holds; it cannot tell the two apart.
Invariants: everything is checked before anything is sent. With ``atomic_commit`` a commit is one request; without it every
operation is a request of its own, and anything may happen between two of them. Closing ends every feed first, so that no
consumer waits for a transport that is gone (M4).
Neighbours: implements `corepool.driver.Backend`; ``stores`` opens it embedded, the simulator on its own transport.
"""

from __future__ import annotations

import asyncio
import random as random_module
from collections.abc import Sequence

from corepool.driver import (
    Ack,
    Append,
    Capabilities,
    Clock,
    CommitResult,
    DeleteKey,
    Finding,
    GetKey,
    Op,
    OpResult,
    SetKey,
    Severity,
    check_key,
    check_name,
    check_value,
)
from corepool.errors import BackendUnavailable, InvalidOptionError, OutcomeUnknown, PayloadTooLarge
from corepool_memory.feeds import Feeds
from corepool_memory.maps import MemoryMap
from corepool_memory.options import DEFAULTS, MemoryOptions
from corepool_memory.streams import MemoryStream, check_event
from corepool_memory.transport import Transport

__all__ = ["MemoryBackend", "MemoryNamespace"]


_NAMES = 1000
"""Names that were found good and are remembered."""


class MemoryNamespace:
    """All maps and streams of one name (see `corepool.driver.Namespace`)."""

    def __init__(self, feeds: Feeds, capabilities: Capabilities, name: str) -> None:
        self._feeds = feeds
        self._transport = feeds.transport
        self._capabilities = capabilities
        self._name = name
        self._good_names: set[str] = set()

    @property
    def name(self) -> str:
        return self._name

    def map(self, name: str) -> MemoryMap:
        check_name("a map's name", name, self._capabilities)
        return MemoryMap(self._feeds, self._capabilities, self._name, name)

    def stream(self, name: str) -> MemoryStream:
        check_name("a stream's name", name, self._capabilities)
        return MemoryStream(self._feeds, self._capabilities, self._name, name)

    async def commit(self, ops: Sequence[Op]) -> CommitResult:
        batch = tuple(ops)
        self._check(batch)
        if not self._capabilities.atomic_commit:
            return await self._commit_singly(batch)
        name = self._name
        write = any(not isinstance(op, GetKey) for op in batch)
        return await self._transport.call("commit", lambda server: server.commit(name, batch), write=write)

    async def _commit_singly(self, batch: tuple[Op, ...]) -> CommitResult:
        results: list[OpResult] = []
        for index, op in enumerate(batch):
            if index:
                await asyncio.sleep(0)  # an embedded call does not suspend, and others must be able to come between
            try:
                outcome = await self._commit_one(op, tuple(results))
            except BackendUnavailable as error:
                if index == 0:
                    raise
                raise OutcomeUnknown(
                    f"commit of {len(batch)} operations: the first {index} were applied, the others were not ({error})"
                ) from error
            results.extend(outcome.results)
            if outcome.stopped is not None:
                return CommitResult(tuple(results), index)
        return CommitResult(tuple(results))

    async def _commit_one(self, op: Op, earlier: tuple[OpResult, ...]) -> CommitResult:
        name, what = self._name, f"commit {type(op).__name__}"
        return await self._transport.call(
            what, lambda server: server.commit(name, (op,), earlier), write=not isinstance(op, GetKey)
        )

    def _check(self, ops: tuple[Op, ...]) -> None:
        capabilities = self._capabilities
        if len(ops) > capabilities.max_commit_ops:
            raise PayloadTooLarge(
                f"a commit of {len(ops)} operations is over the backend's limit of {capabilities.max_commit_ops}; split it"
            )
        for index, op in enumerate(ops):
            match op:
                case SetKey():
                    self._check_name("a map's name", op.map)
                    check_key(op.key, capabilities)
                    check_value(op.value, capabilities)
                case DeleteKey() | GetKey():
                    self._check_name("a map's name", op.map)
                    check_key(op.key, capabilities)
                case Append(event=event, stamp=stamp):
                    self._check_name("a stream's name", op.stream)
                    check_event(event, capabilities)
                    if stamp is not None and not (0 <= stamp < index and isinstance(ops[stamp], SetKey | DeleteKey)):
                        raise InvalidOptionError(
                            f"operation {index}: stamp={stamp} is not the index of an earlier SetKey or DeleteKey"
                        )
                case Ack():
                    pass

    def _check_name(self, what: str, name: str) -> None:
        """As `check_name`, but not again and again: a pool names the same few maps and streams all the time."""
        if name not in self._good_names:
            check_name(what, name, self._capabilities)
            if len(self._good_names) >= _NAMES:
                self._good_names.clear()
            self._good_names.add(name)

    async def settle(self) -> None:
        await self._transport.settle()


class MemoryBackend:
    """An open connection to an in-memory store (see `corepool.driver.Backend`).

    transport: closed together with the backend.
    url: what `url` answers; it holds no credentials.
    """

    def __init__(self, transport: Transport, *, options: MemoryOptions = DEFAULTS, url: str = "memory://") -> None:
        self._transport = transport
        self._capabilities = options.capabilities
        self._url = url
        self._feeds = Feeds(transport)

    def __repr__(self) -> str:
        return f"<MemoryBackend {self._url}>"

    @property
    def url(self) -> str:
        return self._url

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def clock(self) -> Clock:
        return self._transport.clock

    @property
    def random(self) -> random_module.Random:
        return self._transport.random

    def namespace(self, name: str) -> MemoryNamespace:
        check_name("a namespace's name", name, self._capabilities)
        return MemoryNamespace(self._feeds, self._capabilities, name)

    async def preflight(self) -> list[Finding]:
        return [
            Finding(
                Severity.WARNING,
                "memory-not-durable",
                "The store lives in this process: other processes do not see it, and nothing survives the process.",
                "Use redis:// or nats:// for anything that must outlive the process.",
            )
        ]

    async def aclose(self) -> None:
        self._feeds.close()
        await self._transport.aclose()
