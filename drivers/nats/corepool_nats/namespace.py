"""A namespace: all maps and logical streams of one name, and what they share.

Purpose: `corepool.driver.Namespace`; holds the assets, reads, cache, janitor, registry and open feeds of a namespace.
Invariants: one object per name and backend, so that caches are shared; everything opened through it ends with it.
Neighbours: made by the backend; maps, streams, sinks and commits work through it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Protocol

import msgspec

from corepool.driver import Capabilities, CommitResult, MapStore, Op, SinkStore, Start, StreamStore
from corepool_nats import api
from corepool_nats.assets import Assets
from corepool_nats.client import Change, Client
from corepool_nats.commit import check_ops, run_commit
from corepool_nats.held import Cache
from corepool_nats.janitor import Janitor
from corepool_nats.maps import NatsMap
from corepool_nats.names import MapSubjects, Space, StreamSubjects
from corepool_nats.reader import NatsReading
from corepool_nats.records import Reads
from corepool_nats.registry import Registries, Registry, SinkSpec
from corepool_nats.sink import NatsSink
from corepool_nats.streams import Appends, NatsStream
from corepool_nats.watch import NatsWatch
from corepool_nats.writes import Writes

__all__ = ["NatsNamespace"]

_MOST_APPLIED = 4096
_TRIM_EVERY = 5.0


class _Closable(Protocol):
    async def aclose(self) -> None: ...


class NatsNamespace:
    """See `corepool.driver.Namespace`."""

    def __init__(self, client: Client, name: str, capabilities: Capabilities) -> None:
        self.client = client
        self.capabilities = capabilities
        self.log = logging.getLogger("corepool.nats")
        self.space = Space(name)
        self.assets = Assets(client, self.space)
        self.reads = Reads(self.assets)
        self.cache = Cache()
        self.janitor = Janitor(self.assets, self.reads)
        self.writes = Writes(self.assets, self.reads, self.cache, self.janitor)
        self.registries = Registries(self.assets, self.reads)
        self.appends = Appends(self)
        self._open: set[_Closable] = set()
        self._trimmed: dict[str, float] = {}
        client.went_back.append(self._went_back)

    def __repr__(self) -> str:
        return f"<NatsNamespace {self.name!r}>"

    @property
    def name(self) -> str:
        return self.space.name

    def map(self, name: str) -> MapStore:
        return NatsMap(self, name)

    def stream(self, name: str) -> StreamStore:
        return NatsStream(self, name)

    async def commit(self, ops: Sequence[Op]) -> CommitResult:
        check_ops(self, ops, self.capabilities.max_commit_ops)
        return await run_commit(self, ops, self.client.deadline()) if ops else CommitResult((), None)

    async def apply(self, ops: Sequence[Op]) -> CommitResult:
        """A commit of a map's independent writes, of any number."""
        check_ops(self, ops, max(len(ops), 1))
        return await run_commit(self, ops, self.client.deadline()) if ops else CommitResult((), None)

    async def settle(self) -> None:
        await self.client.settle()

    # --- what maps and streams share ---------------------------------------------------------------------------------

    def watch(self, subjects: MapSubjects) -> NatsWatch:
        watch = NatsWatch(self.assets, subjects, self.cache, self.janitor, self._open.discard)
        self._open.add(watch)
        return watch

    def read(self, subjects: StreamSubjects, start: Start) -> NatsReading:
        reading = NatsReading(self.assets, subjects, start, self._open.discard)
        self._open.add(reading)
        return reading

    async def join(
        self, stream: str, name: str, spec: SinkSpec, subjects: StreamSubjects, deadline: float
    ) -> SinkStore:
        sink = NatsSink(self, stream, name, spec, self._open.discard)
        await self.assets.get(self.assets.streams, deadline)
        await sink.join(deadline)
        self._open.add(sink)
        return sink

    async def remove_event(self, sequence: int, deadline: float) -> bool:
        """Remove an event by its sequence; whether it was there.

        Raises:
            BackendUnavailable, OutcomeUnknown
        """
        body = msgspec.json.encode({"seq": sequence, "no_erase": True})
        call = f"STREAM.MSG.DELETE.{self.assets.streams.asset}"
        change = Change()
        done = await self.client.api(call, body, api.Done, deadline, change=change)
        return done.success or change.reply_lost  # gone at the second try: the first one did it, for all we know

    async def count(self, subject: str, deadline: float) -> int:
        """How many messages a subject has, by the leader."""
        target = self.assets.streams
        await self.assets.get(target, deadline)
        body = msgspec.json.encode({"subjects_filter": subject})
        info = await self.client.api(f"STREAM.INFO.{target.asset}", body, api.StreamInfo, deadline)
        if info.error is not None:
            if info.error.err_code == api.NO_STREAM:
                await self.assets.refresh(target, deadline)
                return 0
            raise api.explain(info.error, f"counting events in {target.asset}")
        return (info.state.subjects or {}).get(subject, 0)

    async def last_sequence(self, deadline: float) -> int:
        """The newest sequence of the JetStream stream of all logical streams."""
        target = self.assets.streams
        await self.assets.get(target, deadline)
        info = await self.client.api(f"STREAM.INFO.{target.asset}", b"", api.StreamInfo, deadline)
        if info.error is not None:
            raise api.explain(info.error, f"looking at {target.asset}")
        return info.state.last_seq

    async def trim(self, subjects: StreamSubjects, registry: Registry, deadline: float) -> None:
        """Of a work stream with several sinks: free what all of them have acknowledged, now and then.

        A consumer's floor is the sequence below which it has everything acknowledged; purging up to the lowest floor takes
        nothing away that anybody still needs.
        """
        now = time.monotonic()
        if now - self._trimmed.get(subjects.base, 0.0) < _TRIM_EVERY:
            return
        if len(self._trimmed) > 4096:
            self._trimmed.clear()
        self._trimmed[subjects.base] = now
        asset = self.assets.streams.asset
        infos = await asyncio.gather(
            *(
                self.client.api(
                    f"CONSUMER.INFO.{asset}.{subjects.consumer(sink, registry.life)}", b"", api.ConsumerInfo, deadline
                )
                for sink in registry.sinks
            )
        )
        floor = min((info.ack_floor.stream_seq if info.error is None else 0) for info in infos)
        if floor:
            body = msgspec.json.encode({"filter": subjects.events, "seq": floor + 1})
            await self.client.api(f"STREAM.PURGE.{asset}", body, api.Done, deadline)

    def _went_back(self, asset: str) -> None:
        if asset == self.assets.maps.asset:
            self.cache.clear()
        if asset == self.assets.streams.asset:
            self.registries.forget()
            self.appends.forget()

    async def aclose(self) -> None:
        await asyncio.gather(*(each.aclose() for each in list(self._open)))
        await self.janitor.aclose()
