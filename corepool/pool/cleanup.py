"""Burying the dead: tombstone, lock, requeue, drain, remove.

Purpose: DESIGN 4.4. Any node may find a dead worker or node; whoever finds it cleans up; whoever dies midway is followed.
Invariants: R7: nothing of a member is touched before its tombstone stands, by compare-and-set at the revision that was seen
to be silent; R12: every removal names the revision that was observed, or an id that is never used again; a lock is taken
over by revision, never deleted and made anew; the worker's record goes last; an inbox is sealed and emptied before it is
destroyed, so no notification is lost.
Neighbours: called by ``liveness`` (and by the sweeper for what it finds); moves jobs through ``protocol``.
"""

from __future__ import annotations

import asyncio

from corepool.driver import ABSENT, REVISION, DeleteKey, Event, MapStore, SetKey, When
from corepool.pool import transitions
from corepool.pool.context import NodeContext
from corepool.pool.liveness import WORKER, Suspect
from corepool.pool.protocol import Outcome
from corepool.pool.store import Stored
from corepool.pool.supervisor import TRANSIENT, backoff
from corepool.pool.wire import NOTIFY, JobState, KeepAlive, Lock, MemberState, NotifyEvent, Verdict, encode

__all__ = ["Cleanup", "CleanupLock"]

_ROUNDS = 8
"""How often a cleaner looks again for jobs that could not be moved, before it leaves the rest to a later turn."""


class CleanupLock:
    """The right to clean up after one member, for as long as its holder gives signs of life."""

    def __init__(self, context: NodeContext, member: str) -> None:
        self._map = context.store.map(context.store.worker_cleanup)
        self._context = context
        self._holder = context.node_id  # also if the node comes back under another id meanwhile: it is the same holder
        self._member = member
        self._revision = 0

    async def take(self, seen: dict[str, tuple[int, float]]) -> bool:
        """Take it if it is free, or if it was seen not to change for a time to live. ``seen``: observations so far."""
        entry = await self._map.get(self._member)
        now = self._context.clock.monotonic()  # not before it was seen: the answer may take as long as a lock lasts
        if entry is not None:
            revision, since = seen.get(self._member, (0, now))
            if revision != entry.revision:
                revision, since = entry.revision, now
            seen[self._member] = (revision, since)
            if now - since <= self._context.options.worker_ttl:
                return False
            self._context.log.warning("the cleanup lock of %s is stale; taking it over", self._member)
        when = ABSENT if entry is None else REVISION(entry.revision)
        return await self._write(when)

    async def renew(self) -> bool:
        """A sign of life. False: somebody took it over."""
        return await self._write(REVISION(self._revision))

    async def _write(self, when: When) -> bool:
        lock = Lock(self._holder, self._context.random.getrandbits(62))
        commit = await self._map.set(self._member, encode(lock), when)
        if commit.applied:
            self._revision = commit.revision
        return commit.applied

    def bury_op(self) -> SetKey:
        """The lock becomes the grave: the sweeper looks once more, after a time to live, for what came late, and drops it."""
        grave = Lock("", self._context.random.getrandbits(62))
        lock_map = self._context.store.worker_cleanup
        return SetKey(lock_map, self._member, encode(grave), REVISION(self._revision), optional=True)

    def release_op(self) -> DeleteKey:
        """The removal of the lock, if it is still this holder's (R12)."""
        return DeleteKey(self._context.store.worker_cleanup, self._member, REVISION(self._revision), optional=True)


class Cleanup:
    """Buries whoever this node finds dead."""

    def __init__(self, context: NodeContext) -> None:
        self._context = context
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._locks_seen: dict[str, tuple[int, float]] = {}
        self.buried = 0
        self.requeued = 0

    def bury(self, suspect: Suspect) -> None:
        """Start burying, unless that is under way here."""
        member = suspect.member
        if member.id in self._under_way:
            return
        task = self._context.supervisor.spawn(f"bury {member.id}", self._bury(suspect))
        self._under_way[member.id] = task
        task.add_done_callback(lambda _: self._under_way.pop(member.id, None))

    async def _bury(self, suspect: Suspect) -> None:
        member = suspect.member
        try:
            lock = CleanupLock(self._context, member.id)
            # Where no keep-alive stands, a tombstone may outlive the record it was meant for: then the lock leads to it (R11).
            if not suspect.revision and not await lock.take(self._locks_seen):
                return
            tombstone = await self._tombstone(suspect)
            if tombstone is None or (suspect.revision and not await lock.take(self._locks_seen)):
                return
            if member.kind == WORKER:
                await self._bury_worker(member.id, tombstone, lock)
            else:
                await self._bury_node(member.id, tombstone, lock)
        except TRANSIENT as error:
            self._context.log.warning("cleanup of %s: %s; it will be tried again", member.id, error)

    async def _tombstone(self, suspect: Suspect) -> int | None:
        """R7: death is a compare-and-set. The tombstone's revision, or None if the member proved to be alive."""
        context, member = self._context, suspect.member
        store = context.store
        if not suspect.revision and await context.membership.is_gone(member.id):
            return None  # our replica lags: there is nobody to bury
        keep_alives = store.map(store.worker_keep_alive if member.kind == WORKER else store.node_keep_alive)
        found = await self._found_dead(keep_alives, member.id)
        if found is not None:
            return found  # somebody began before us; a second tombstone would look like a sign of life
        when = REVISION(suspect.revision) if suspect.revision else ABSENT
        mark = encode(KeepAlive(context.random.getrandbits(62), context.wall(), dead=True))
        commit = await keep_alives.set(member.id, mark, when)
        if commit.applied:
            context.log.error("%s %s is declared dead: no sign of life for %g s", *member, context.options.worker_ttl)
            return commit.revision
        return await self._found_dead(keep_alives, member.id)

    async def _found_dead(self, keep_alives: MapStore, member: str) -> int | None:
        """The revision of the tombstone, if there is one."""
        entry = await keep_alives.get(member)
        if entry is None:
            return None
        found = self._context.store.decoded(entry.value, KeepAlive, keep_alives.name)
        return entry.revision if found is not None and found.dead else None

    # --- a worker ----------------------------------------------------------------------------------------------------

    async def _bury_worker(self, worker: str, tombstone: int, lock: CleanupLock) -> None:
        context, store = self._context, self._context.store
        await context.membership.change_worker(worker, MemberState.DEAD)  # no ring names it from now on
        if not await self._requeue_jobs(worker, lock):
            return
        await self.drain_inbox(store.worker_inbox(worker))
        await store.map(store.owned(worker)).destroy()
        await store.namespace.commit(
            [
                DeleteKey(store.worker_keep_alive, worker, REVISION(tombstone), optional=True),
                DeleteKey(store.workers, worker),
                lock.bury_op(),
            ]
        )
        self.buried += 1
        context.log.warning("worker %s is buried", worker)

    async def _requeue_jobs(self, worker: str, lock: CleanupLock) -> bool:
        """Every job of the dead worker goes on. False: the lock was lost, or some could not be moved; a later turn will."""
        context = self._context
        pauses = backoff(context.random, 0.05, context.options.poll_period)
        for _ in range(_ROUNDS):
            keys = await self._keys_of(worker)
            failed = 0
            for start in range(0, len(keys), context.options.max_handover):
                part = keys[start : start + context.options.max_handover]
                records = await context.store.jobs_of(part)
                moves = [self.move_on(key, records[key], worker, "owner died") for key in part if key in records]
                done = await asyncio.gather(*moves)
                failed += done.count(False)
                if not await lock.renew():
                    return False
            if not failed:
                return True
            await asyncio.sleep(next(pauses))
        return False

    async def _keys_of(self, worker: str) -> list[str]:
        store = self._context.store
        keys = {entry.key: None async for entry in store.map(store.owned(worker)).scan()}
        async for _, attention in store.attentions():
            if attention.worker == worker:
                keys[attention.key] = None
        return sorted(keys)

    async def move_on(self, key: str, stored: Stored, worker: str, why: str) -> bool:
        """What a dead ``worker`` left of one job: finish its stop, or give it to a next owner. False: try again."""
        context, record = self._context, stored.record
        if record.worker != worker:
            return True
        try:
            match record.state:
                case JobState.STOPPING:
                    outcome = await context.protocol.remove(
                        key, stored, [record.reply], Verdict.GONE, unseen=not record.started
                    )
                case JobState.PENDING | JobState.STARTING | JobState.RUNNING:
                    if record.attempt >= context.options.max_start_attempts and record.state is JobState.STARTING:
                        outcome = await self._give_up(key, stored)
                    else:
                        ring = context.membership.ring
                        released = transitions.release(record, ring.owner(key), ring.revision, why, context.wall())
                        outcome = await context.protocol.release(key, stored, released)
                        if outcome.applied and outcome.event_id is None:
                            context.sweep_soon()
                case JobState.FAILED:
                    return True
        except TRANSIENT as error:
            context.log.warning("cannot move %r on: %s", key, error)
            return False
        self.requeued += outcome.applied
        return outcome.applied

    async def _give_up(self, key: str, stored: Stored) -> Outcome:
        """A job whose starts kill its workers: FAILED if it ever ran, else withdrawn (R1)."""
        reason = f"its worker died in each of {stored.record.attempt} starts"
        if stored.record.started:
            failed = transitions.fail(stored.record, reason, self._context.wall())
            return await self._context.protocol.fail(key, stored, failed)
        return await self._context.protocol.remove(
            key, stored, [stored.record.reply], Verdict.FAILED, reason, unseen=True
        )

    # --- a node ------------------------------------------------------------------------------------------------------

    async def _bury_node(self, node: str, tombstone: int, lock: CleanupLock) -> None:
        context, store = self._context, self._context.store
        if context.membership.workers_of(node):
            # Its workers are silent as well and are buried first: after that, a later turn gets here.
            await store.namespace.commit([lock.release_op()])
            return
        await self.drain_inbox(store.node_inbox(node))
        await store.namespace.commit(
            [
                DeleteKey(store.node_keep_alive, node, REVISION(tombstone), optional=True),
                DeleteKey(store.nodes, node),
                lock.bury_op(),
            ]
        )
        self.buried += 1
        context.log.warning("node %s is buried", node)

    # --- an inbox ----------------------------------------------------------------------------------------------------

    async def drain_inbox(self, name: str) -> None:
        """Seal, pass on what must not be lost, destroy. Starts and stops need no passing on: their records are found."""
        stream = self._context.store.stream(name)
        await stream.seal()
        after = ""
        while events := await stream.range(after, 100):
            for event in events:
                if event.name == NOTIFY:
                    await self._pass_on(event)
                after = event.id
        await stream.destroy()

    async def _pass_on(self, event: Event) -> None:
        context = self._context
        bell = context.store.decoded(event.payload, NotifyEvent, "an inbox")
        if bell is None:
            return
        stored = await context.store.job(bell.key)
        if stored is None or stored.record.job_id != bell.job_id:
            await context.protocol.answer(bell.reply, Verdict.GONE)
        elif not await context.forward(stored.record.worker, bell):
            context.log.warning("a notification for %r found no owner; its sender is told by his timeout", bell.key)
