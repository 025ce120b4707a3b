"""Maps on JetStream.

Purpose: `corepool.driver.MapStore` on one JetStream stream for all maps of a namespace. The stream's sequence is the revision:
one total order over every map of the namespace, given by the server.
Invariants: M1 by that order; M2 by expected sequences (:mod:`corepool_nats.writes`); a clear is one message, the reset marker:
everything below it is gone for every reader from the moment it is stored. The purge that frees the space comes later, so that
writes which were under way can still read what they replaced.
Neighbours: made by the namespace, which owns cache and janitor; `apply` is the batch of :mod:`corepool_nats.commit`.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from corepool.driver import (
    ALWAYS,
    Commit,
    Delete,
    DeleteKey,
    Entry,
    SetKey,
    Updated,
    ValueOp,
    Watch,
    When,
    Write,
    check_key,
    check_name,
    check_value,
)
from corepool.errors import BackendUnavailable, CorepoolError, OutcomeUnknown, UnsupportedCapability
from corepool_nats import api
from corepool_nats.client import Refused, expect
from corepool_nats.feed import FeedLost
from corepool_nats.held import KIND
from corepool_nats.mapfeed import MapFeed

if TYPE_CHECKING:
    from corepool_nats.namespace import NatsNamespace

__all__ = ["NatsMap"]

log = logging.getLogger("corepool.nats")

_RESET = {KIND: "r"}


class NatsMap:
    """See `corepool.driver.MapStore`."""

    def __init__(self, space: NatsNamespace, name: str) -> None:
        self._space = space
        self._name = name
        self._client = space.client
        self._target = space.assets.maps

    def __repr__(self) -> str:
        return f"<NatsMap {self._name!r} of {self._space.name!r}>"

    @property
    def name(self) -> str:
        return self._name

    def _checked(self, *keys: str) -> None:
        check_name("a map's name", self._name, self._space.capabilities)
        for key in keys:
            check_key(key, self._space.capabilities)
        self.subjects = self._space.space.map(self._name)

    # --- reads -------------------------------------------------------------------------------------------------------

    async def get(self, key: str) -> Entry | None:
        self._checked(key)
        held, marker = await self._space.writes.look(self.subjects, self.subjects.key(key), self._client.deadline())
        return held.entry(key, marker) if held is not None else None

    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        self._checked(*keys)
        if not keys:
            return {}
        subjects = {self.subjects.key(key): key for key in keys}
        places = dict.fromkeys(subjects, self.subjects)
        seen = await self._space.writes.look_at(places, self._client.deadline())
        entries: dict[str, Entry] = {}
        for subject, (held, marker) in seen.items():
            entry = held.entry(subjects[subject], marker) if held is not None else None
            if entry is not None:
                entries[entry.key] = entry
        return entries

    async def scan(self, prefix: str = "") -> AsyncIterator[Entry]:
        """All of the map as of one moment, filtered here: JetStream knows no prefixes within a token."""
        self._checked()
        entries, _ = await self._snapshot()
        for entry in entries:
            if entry.key.startswith(prefix):
                yield entry

    async def _snapshot(self) -> tuple[tuple[Entry, ...], int]:
        """All of the map as of one moment, and its revision then."""
        deadline = self._client.deadline()
        attempt = 0
        while True:
            link = await self._client.link(deadline)
            await self._space.assets.get(self._target, deadline)
            feed = MapFeed(self._space.assets, link, self.subjects, self._space.cache)
            try:
                await feed.open(attempt)
            except FeedLost as error:
                attempt += 1
                if self._client.expired(deadline):
                    raise BackendUnavailable(f"the map {self._name!r} cannot be read: {error}") from None
                await self._client.pause(deadline)
                await self._space.assets.refresh(self._target, deadline)
                continue
            finally:
                await feed.close()
            self._space.janitor.met(self.subjects, feed)
            return feed.snapshot(), feed.revision

    def watch(self) -> Watch:
        self._checked()
        return self._space.watch(self.subjects)

    # --- writes ------------------------------------------------------------------------------------------------------

    async def set(self, key: str, value: bytes, when: When = ALWAYS) -> Commit:
        self._checked(key)
        check_value(value, self._space.capabilities)
        return await self._space.writes.write(self.subjects, key, value, when, self._client.deadline())

    async def delete(self, key: str, when: When = ALWAYS) -> Commit:
        self._checked(key)
        return await self._space.writes.write(self.subjects, key, None, when, self._client.deadline())

    async def apply(self, writes: Sequence[Write]) -> list[Commit]:
        self._checked(*(write.key for write in writes))
        ops = [
            DeleteKey(self._name, write.key, write.when, optional=True)
            if isinstance(write, Delete)
            else SetKey(self._name, write.key, write.value, write.when, optional=True)
            for write in writes
        ]
        result = await self._space.apply(ops)
        return [commit for commit in result.results if isinstance(commit, Commit)]

    async def update(self, key: str, op: ValueOp) -> Updated:
        raise UnsupportedCapability(
            "NATS has no atomic value operations; use the loops of corepool.rmap (compare-and-set), which need none"
        )

    # --- clear -------------------------------------------------------------------------------------------------------

    async def clear(self, when: When = ALWAYS) -> Commit:
        self._checked()
        deadline = self._client.deadline()
        if when.revision is None:
            commit = await self._mark(deadline)
        elif when.revision == 0:
            return await self._clear_if_empty(deadline)
        else:
            commit = await self._mark_at(when.revision, deadline)
        if commit.applied and commit.revision:
            self._space.janitor.cleared(self.subjects, commit.revision)
        return commit

    async def destroy(self) -> None:
        """Purges at once: a write that is under way may then be told that it replaced nothing."""
        self._checked()
        deadline = self._client.deadline()
        newest = await self._newest(deadline)
        if newest == 0:
            return
        commit = await self._mark(deadline)
        await self._purge(self.subjects.everything, commit.revision, deadline)
        self._space.janitor.destroyed(self.subjects, commit.revision)

    async def _mark(self, deadline: float) -> Commit:
        """Store a reset marker. Guarded by the one before it: in a cluster that makes it visible to probes from the moment the
        leader has put it into its order."""
        found = await self._space.reads.newest(self._target, [self.subjects.marker], deadline)
        base = found[self.subjects.marker].sequence if found else 0
        while True:
            try:
                stored = await self._client.publish(
                    self._target, self.subjects.marker, b"", {**expect(base), **_RESET}, deadline
                )
            except Refused as refused:
                base = base if refused.at is None else refused.at
                await self._client.yield_to_others(deadline)
                continue
            self._space.cache.cleared(self.subjects, stored.sequence)
            return Commit(True, stored.sequence, None)

    async def _mark_at(self, revision: int, deadline: float) -> Commit:
        """Store a reset marker if the map's newest commit has this revision.

        One replica: the server compares with a wildcard over the whole map. Several: a leader compares that with what it has
        applied, not with what it has under way, so there the whole stream must stand still around the marker: the stream's last
        sequence is expected, which the leader counts with what is under way.
        """
        one = (await self._space.assets.get(self._target, deadline)).replicas == 1
        at: int | None = None
        while True:
            newest = await self._newest(deadline)
            if newest != revision:
                return Commit(False, newest, None)
            headers = dict(_RESET)
            if one:
                headers |= expect(revision, self.subjects.everything)
            else:
                found = await self._space.reads.newest(self._target, [self.subjects.marker], deadline)
                headers |= expect(found[self.subjects.marker].sequence if found else 0)
                headers["Nats-Expected-Last-Sequence"] = str(at if at is not None else revision)
            try:
                stored = await self._client.publish(self._target, self.subjects.marker, b"", headers, deadline)
            except Refused as refused:
                at = refused.at
                await self._client.yield_to_others(deadline)
                continue
            self._space.cache.cleared(self.subjects, stored.sequence)
            return Commit(True, stored.sequence, None)

    async def _clear_if_empty(self, deadline: float) -> Commit:
        """Clear(ABSENT): an empty map is left as it is."""
        entries, revision = await self._snapshot()
        return Commit(not entries, revision, None)

    async def _newest(self, deadline: float) -> int:
        """The map's own revision: of its newest message that counts."""
        await self._space.assets.get(self._target, deadline)
        record = await self._space.reads.one(self._target, {"last_by_subj": self.subjects.everything}, deadline)
        return record.sequence if record is not None else 0

    async def _purge(self, subject: str, below: int, deadline: float) -> None:
        """Free the space of what a marker has removed. The marker is what counts: failing here changes nothing."""
        body = msgspec.json.encode({"filter": subject, "seq": below})
        try:
            await self._client.api(f"STREAM.PURGE.{self._target.asset}", body, api.Done, deadline)
        except (BackendUnavailable, OutcomeUnknown) as error:
            log.info("the space of the cleared map %r is freed by its next clear: %s", self._name, error)
        except CorepoolError as error:
            log.warning("the space of the cleared map %r is not freed: %s", self._name, error)
