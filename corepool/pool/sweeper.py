"""Looking after what nobody looks after: records between two states, orphaned payloads, forgotten locks, lost owners.

Purpose: the recovery loops of DESIGN 4.4 that are not about one dead member. One elected node runs them (two at once do no
harm): every transition is a compare-and-set, every doorbell may ring twice.
Invariants: a record is touched only after it was seen unchanged at one revision for ``ack_grace_period`` on this node's own
clock; R4: a payload is deleted only when the record, read *after* the entry that names it was seen, does not name it; the
cost of a sweep is the number of jobs under way, not of all jobs.
Neighbours: reads ``attention``; moves jobs through ``cleanup.move_on``; ``router`` rings for queued ones.
"""

from __future__ import annotations

import asyncio

from corepool.driver import REVISION, DeleteKey, Entry
from corepool.pool import transitions
from corepool.pool.cleanup import Cleanup
from corepool.pool.context import NodeContext
from corepool.pool.store import Stored
from corepool.pool.wire import Attention, JobRecord, JobState, MemberState

__all__ = ["Sweeper"]

_PAYLOAD_LATE = 3
"""Times to live for which a payload may still be on its way, over a connection that its dispatcher has given up."""

_WHILE_THERE = 3
"""Times to live after which the lock of a member that has a record is nobody's."""


class Sweeper:
    """The recovery loops of one node; they work while it is the warden."""

    def __init__(self, context: NodeContext, cleanup: Cleanup) -> None:
        self._context = context
        self._cleanup = cleanup
        self._seen: dict[str, tuple[tuple[int, int], float]] = {}
        """By entry: its own revision and its record's, and since when both were seen unchanged."""
        self._locks: dict[str, tuple[int, float]] = {}
        self._orphans: dict[tuple[str, str], int] = {}
        self._full_scan_at = context.clock.monotonic() + context.options.full_scan_interval
        self.rung = 0
        self.rerouted = 0
        self.collected = 0

    async def turn(self) -> None:
        """One period: wait, and sweep if it is this node's turn."""
        context = self._context
        grace = context.options.ack_grace_period
        urgent = False
        try:
            async with asyncio.timeout(grace * (0.9 + context.random.random() / 5)):
                await context.sweep_wanted.wait()
                urgent = True
        except TimeoutError:
            urgent = False
        context.sweep_wanted.clear()
        if urgent:
            # Whoever asks has just let go of a record: give the ring the moment it takes to show why.
            await asyncio.sleep(grace / 20)
            await self.sweep(grace=0.0)
        elif context.membership.warden() == context.node_id:
            await self.sweep(grace)
            if context.clock.monotonic() >= self._full_scan_at:
                self._full_scan_at = context.clock.monotonic() + context.options.full_scan_interval
                await self.full_scan()

    # --- attention ---------------------------------------------------------------------------------------------------

    async def sweep(self, grace: float) -> None:
        """Look at every job under way; act on those that nobody acted on for ``grace`` seconds."""
        context = self._context
        found = {entry.key: (entry, attention) async for entry, attention in context.store.attentions()}
        records = await context.store.jobs_of(sorted({attention.key for _, attention in found.values()}))
        now = context.clock.monotonic()
        self._seen = {name: seen for name, seen in self._seen.items() if name in found}
        for name in sorted(found):
            entry, attention = found[name]
            stored = records.get(attention.key)
            if stored is not None and stored.record.job_id != attention.job_id:
                stored = None  # another job under the same key
            seen = (entry.revision, 0 if stored is None else stored.revision)
            held = self._seen.get(name)
            if held is None or held[0] != seen:
                self._seen[name] = held = (seen, now)
            if now - held[1] >= grace and (grace > 0 or self._is_adrift(name, stored)):
                await self._attend(entry, attention, stored, now - held[1])
        if grace > 0:
            await self._drop_stale_locks()

    def _is_adrift(self, name: str, stored: Stored | None) -> bool:
        """Whether the record points at nobody who could act: no need to wait for a sign."""
        if (
            stored is None
            or stored.record.state is not JobState.PENDING
            or transitions.attention_key(stored.record) != name
        ):
            return False
        target = stored.record.worker
        return not self._is_active(target) if target else bool(self._context.membership.ring)

    def _is_active(self, worker: str) -> bool:
        record = self._context.membership.worker(worker)
        return record is not None and record.state is MemberState.ACTIVE

    async def _attend(self, entry: Entry, attention: Attention, stored: Stored | None, unchanged: float) -> None:
        if stored is None:
            await self._collect(entry, attention, unchanged)
            return
        record, context, key = stored.record, self._context, attention.key
        if transitions.attention_key(record) != entry.key or record.state in (JobState.RUNNING, JobState.FAILED):
            # The record moved on; or it has not got there for so long that whoever wrote this will list it again.
            await context.store.attention_map.delete(entry.key, REVISION(entry.revision))
            return
        worker = context.membership.worker(record.worker) if record.worker else None
        if record.state is JobState.PENDING and not self._is_active(record.worker):
            await self._reroute(key, stored)
        elif worker is None:
            if await context.membership.is_gone(record.worker):  # our replica may lag behind a worker that just joined
                await self._cleanup.move_on(key, stored, record.worker, "owner is gone")
        else:
            self.rung += 1
            await context.protocol.ring(key, stored)

    async def _reroute(self, key: str, stored: Stored) -> None:
        """A PENDING record whose target cannot take it."""
        context = self._context
        ring = context.membership.ring
        target = ring.owner(key)
        if not target and not stored.record.worker:
            await context.protocol.ring(key, stored)  # still no worker: make sure that its start waits in the queue
            return
        released = transitions.release(stored.record, target, ring.revision, "target is gone", context.wall())
        self.rerouted += (await context.protocol.release(key, stored, released)).applied

    async def _collect(self, entry: Entry, attention: Attention, unchanged: float) -> None:
        """R4: the record does not name this job (any more), and did not for a while: its payload goes, then the entry.

        Where a commit goes step by step, the payload of a dispatcher that was cut off may come later still: then the entry
        stays a while longer, or nothing would lead to it.
        """
        store = self._context.store
        current = await store.job(attention.key)
        if current is not None and current.record.job_id == attention.job_id:
            return
        early = not store.atomic and unchanged < _PAYLOAD_LATE * self._context.options.worker_ttl
        if early and await self._context.payload(attention.job_id) is None:
            return
        self.collected += 1
        await store.namespace.commit(
            [
                DeleteKey(store.payloads, attention.job_id),
                DeleteKey(store.attention, entry.key, REVISION(entry.revision), optional=True),
            ]
        )

    # --- locks and the backstop --------------------------------------------------------------------------------------

    async def _drop_stale_locks(self) -> None:
        """Locks of members that have no record: graves, and locks whose holder died after the last step. And those of members
        who proved to be alive after all, where the answer to the lock's own writing was lost.

        Before one of the former goes, what a late request of the dead may have made since the burial goes as well (R12: ids
        are never used again, so nothing else can bear the name).
        """
        context, store = self._context, self._context.store
        members = {**context.membership.workers(), **context.membership.nodes()}
        locks: dict[str, tuple[int, float]] = {}
        stale: list[Entry] = []
        found = [entry async for entry in store.map(store.worker_cleanup).scan()]
        now = context.clock.monotonic()  # not before they were seen
        for entry in found:
            held = self._locks.get(entry.key, (entry.revision, now))
            locks[entry.key] = held = held if held[0] == entry.revision else (entry.revision, now)
            patience = _WHILE_THERE if entry.key in members else 1  # first its cleaners may take it over
            if now - held[1] > patience * context.options.worker_ttl:
                stale.append(entry)
        self._locks = locks
        for entry in stale:
            if await context.membership.is_gone(entry.key):
                await self._close_grave(entry)
            else:
                await store.map(store.worker_cleanup).delete(entry.key, REVISION(entry.revision))

    async def _close_grave(self, entry: Entry) -> None:
        store, member = self._context.store, entry.key
        for inbox in (store.worker_inbox(member), store.node_inbox(member)):
            await store.stream(inbox).destroy()
        await store.map(store.owned(member)).destroy()
        await store.namespace.commit(
            [
                DeleteKey(store.worker_keep_alive, member),
                DeleteKey(store.node_keep_alive, member),
                DeleteKey(store.worker_cleanup, member, REVISION(entry.revision), optional=True),
            ]
        )

    async def full_scan(self) -> None:
        """The backstop: look at every record of the pool, paced."""
        store = self._context.store
        looked = 0
        async for entry in store.jobs_map.scan():
            stored = store.stored(entry)
            if stored is not None:
                await self._check(entry.key, stored)
            looked += 1
            if looked % 100 == 0:
                await asyncio.sleep(0.01)
        await self._drop_orphans()

    async def _drop_orphans(self) -> None:
        """Keep-alives that no record leads to: a store that went back lost the record while its holder joined (R13). One goes
        when it is found unchanged by a second scan."""
        store, members = self._context.store, self._context.membership
        found: dict[tuple[str, str], int] = {}
        for name in (store.worker_keep_alive, store.node_keep_alive):
            async for entry in store.map(name).scan():
                if members.worker(entry.key) or members.node(entry.key) or not await members.is_gone(entry.key):
                    continue
                found[name, entry.key] = entry.revision
                if self._orphans.get((name, entry.key)) == entry.revision:
                    await store.map(name).delete(entry.key, REVISION(entry.revision))
        self._orphans = found

    async def _check(self, key: str, stored: Stored) -> None:
        record, context = stored.record, self._context
        if record.state is JobState.FAILED:
            return
        if record.state is JobState.RUNNING:
            if context.membership.worker(record.worker) is None and await context.membership.is_gone(record.worker):
                await self._cleanup.move_on(key, stored, record.worker, "owner is gone")
            return
        name = transitions.attention_key(record)
        if await context.store.attention_map.get(name) is None:
            await self._attract(name, key, record)

    async def _attract(self, name: str, key: str, record: JobRecord) -> None:
        """A record under way that nobody looks after: from the next sweep on somebody does."""
        entry = transitions.attention(key, record)
        await self._context.store.attention_map.set(name, entry)
