"""Who is alive: renewing one's own keep-alives, and watching those of others.

Purpose: DESIGN 4.3. No decision compares a timestamp of one machine with the clock of another: an observer notes, on its
own monotonic clock, when it last saw a keep-alive change.
Invariants: R7, R8 (see ``lease``) and R10: silence counts from the first own observation or the last change seen; a gap in
one's own successful polls resets all observations; one stops watching X only after X was seen to change after the ring
change that took X away; on a first suspicion all keep-alives are watched until none is suspect. A node's cost while idle is
one commit per period, whatever the number of nodes.
Neighbours: ``Watcher`` is pure and tested alone; ``Liveness`` talks to the store and tells the node whom to bury.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeAlias

from corepool.driver import Commit, Entry, GetKey, Op, Set
from corepool.pool.context import NodeContext
from corepool.pool.lease import Lease, Renewal
from corepool.pool.supervisor import TRANSIENT
from corepool.pool.worker import Worker

__all__ = ["Kind", "Liveness", "Member", "Suspect", "Watcher"]

NODE, WORKER = "node", "worker"
KINDS = (NODE, WORKER)
Kind: TypeAlias = str


class Member(NamedTuple):
    """A node or worker that keeps itself alive."""

    kind: Kind
    id: str


class Suspect(NamedTuple):
    """A member that was silent for too long, and the revision of its keep-alive that did not change (0: it has none)."""

    member: Member
    revision: int


class Watcher:
    """What one node has seen of others' keep-alives (R10)."""

    def __init__(self, ttl: float, gap: float) -> None:
        self._ttl = ttl
        self._gap = gap
        self._seen: dict[Member, tuple[int, float]] = {}
        self._polled_at: float | None = None

    def poll_succeeded(self, now: float) -> None:
        """A look at the store succeeded. If the last one is too long ago, nobody's silence says anything any more."""
        if self._polled_at is not None and now - self._polled_at > self._gap:
            self._seen.clear()
        self._polled_at = now

    def saw(self, member: Member, revision: int, now: float) -> bool:
        """Note a keep-alive's revision; whether it changed since it was last seen here."""
        held = self._seen.get(member)
        if held is None or held[0] != revision:
            self._seen[member] = (revision, now)
            return held is not None
        return False

    def silent(self, now: float) -> list[Suspect]:
        """Whoever was silent for longer than the time to live."""
        return [
            Suspect(member, revision) for member, (revision, since) in self._seen.items() if now - since > self._ttl
        ]

    def next_silence(self, now: float) -> float:
        """Seconds until somebody will have been silent for too long, if nothing is heard of him before; at most the ttl."""
        left = [since + self._ttl - now for _, since in self._seen.values() if since + self._ttl >= now]
        return min(left, default=self._ttl)

    def forget_all_but(self, members: Iterable[Member]) -> None:
        kept = dict.fromkeys(members)
        self._seen = {member: held for member, held in self._seen.items() if member in kept}


def neighbours(me: str, nodes: list[str], count: int) -> list[str]:
    """The next ``count`` nodes after ``me`` on the ring of names."""
    others = sorted(name for name in nodes if name != me)
    start = sum(1 for name in others if name < me)
    return (others[start:] + others[:start])[:count]


class Liveness:
    """The heart of one node."""

    def __init__(
        self,
        context: NodeContext,
        node_lease: Lease,
        workers: dict[str, Worker],
        bury: Callable[[Suspect], None],
        declared_dead: Callable[[Lease], None],
        rolled_back: Callable[[], None],
    ) -> None:
        self._context = context
        self._node_lease = node_lease
        self._workers = workers
        self._bury = bury
        self._declared_dead = declared_dead
        self._rolled_back = rolled_back
        options = context.options
        self._watcher = Watcher(options.worker_ttl, gap=options.worker_ttl / 2)
        self._watched: dict[Member, None] = {}
        self._wide = False
        self._beat = asyncio.Event()
        self._lost = asyncio.Event()  # a lease, before its end

    def beat_soon(self) -> None:
        """Renew and look now (a worker joined)."""
        self._beat.set()

    # --- renewing and looking ----------------------------------------------------------------------------------------

    async def keep_alive(self) -> None:
        """One period: renew, look, wait."""
        context = self._context
        period = context.options.poll_period
        started = context.clock.monotonic()
        try:
            # A backend that does not answer must not keep us from trying again while the lease can still be saved.
            async with asyncio.timeout(context.options.fence_after / 2):
                await self._poll()
        except TRANSIENT as error:
            context.log.warning("keep-alive not confirmed: %s", error)
            period /= 4
        except TimeoutError:
            context.log.warning("keep-alive not confirmed: no answer")
            return
        now = context.clock.monotonic()
        rest = period * (0.95 + context.random.random() / 10) - (now - started)
        # Look right after somebody's time is up, not up to a period later: that is what the bounds of 4.3 count on.
        rest = min(rest, self._watcher.next_silence(now) * 1.01 + period / 50)
        try:
            async with asyncio.timeout(max(rest, period / 50)):
                await self._beat.wait()
        except TimeoutError:
            return
        finally:
            self._beat.clear()

    async def _poll(self) -> None:
        leases = [self._node_lease, *(worker.lease for worker in self._workers.values())]
        # A lease begins in its holder's joining alone: a renewal never makes what is not there.
        leases = [lease for lease in leases if lease.was_held and not lease.dead]
        watched = list(self._whom_to_watch())
        if self._context.store.atomic:
            seen = await self._in_one_commit(leases, watched)
        else:
            seen = await self._side_by_side(leases, watched)
        self._looked(watched, seen)

    async def _in_one_commit(self, leases: list[Lease], watched: list[Member]) -> list[Entry | None]:
        """Renew and look in one round trip (a few, if a node has very many workers)."""
        store = self._context.store
        most = self._context.backend.capabilities.max_commit_ops
        looks: list[Op] = [GetKey(self._map_of(member.kind), member.id) for member in watched]
        seen: list[Entry | None] = []
        while leases or looks:
            part, leases = leases[:most], leases[most:]
            room = most - len(part)
            ops: list[Op] = [*(lease.renewal() for lease in part), *looks[:room]]
            looks = looks[room:]
            results = (await store.namespace.commit(ops)).results
            for lease, result in zip(part, results, strict=False):
                assert isinstance(result, Commit)
                self._renewed(lease, lease.answered(result))
            seen += [result if isinstance(result, Entry) else None for result in results[len(part) :]]
        return seen

    async def _side_by_side(self, leases: list[Lease], watched: list[Member]) -> list[Entry | None]:
        """Where a commit takes a round trip per operation: the same as independent writes and reads, all under way at once,
        for the time that it takes must not grow with the number of workers and of suspects."""
        renewals = [
            self._renew(kind, [lease for lease in leases if lease.map_name == self._map_of(kind)]) for kind in KINDS
        ]
        looks = [self._look(kind, [member.id for member in watched if member.kind == kind]) for kind in KINDS]
        *_, nodes, workers = await asyncio.gather(*renewals, *looks)
        assert nodes is not None
        assert workers is not None
        found = {NODE: nodes, WORKER: workers}
        return [found[member.kind].get(member.id) for member in watched]

    async def _renew(self, kind: Kind, leases: list[Lease]) -> None:
        if leases:
            writes = [
                Set(renewal.key, renewal.value, renewal.when) for renewal in (lease.renewal() for lease in leases)
            ]
            commits = await self._context.store.map(self._map_of(kind)).apply(writes)
            for lease, commit in zip(leases, commits, strict=True):
                self._renewed(lease, lease.answered(commit))

    async def _look(self, kind: Kind, ids: list[str]) -> dict[str, Entry]:
        return await self._context.store.map(self._map_of(kind)).get_many(ids) if ids else {}

    def _map_of(self, kind: Kind) -> str:
        store = self._context.store
        return store.node_keep_alive if kind == NODE else store.worker_keep_alive

    def _renewed(self, lease: Lease, renewal: Renewal) -> None:
        match renewal:
            case Renewal.HELD:
                return
            case Renewal.LOST:
                self._context.log.error("%s was declared dead by others", lease.holder)
                self._declared_dead(lease)
                self._lost.set()
            case Renewal.ROLLED_BACK:
                self._rolled_back()

    def _whom_to_watch(self) -> dict[Member, None]:
        context = self._context
        members = context.membership
        everybody = members.nodes()
        workers = members.workers()
        me = context.node_id
        near = list(everybody) if self._wide else neighbours(me, list(everybody), context.options.neighbours)
        wanted: dict[Member, None] = {Member(NODE, node): None for node in near if node != me}
        for worker, record in workers.items():
            orphan = record.node not in everybody and members.warden() == me  # nobody's neighbour: the warden's
            forsaken = record.node == me and worker not in self._workers  # ours, but its leaving failed halfway
            if forsaken or (record.node != me and (record.node in near or orphan)):
                wanted[Member(WORKER, worker)] = None
        for member in self._watched:  # R10: not before it was seen to change
            exists = member.id in (everybody if member.kind == NODE else workers)
            if exists and member not in wanted:
                wanted[member] = None
        self._watched = wanted
        return wanted

    def _looked(self, watched: list[Member], entries: list[Entry | None]) -> None:
        context = self._context
        now = context.clock.monotonic()
        self._watcher.poll_succeeded(now)
        self._watcher.forget_all_but(watched)
        near = dict.fromkeys(neighbours(context.node_id, list(context.membership.nodes()), context.options.neighbours))
        for member, entry in zip(watched, entries, strict=True):
            changed = self._watcher.saw(member, 0 if entry is None else entry.revision, now)
            if changed and not self._wide and self._node_of(member) not in near:
                self._watched.pop(member, None)
        silent = self._watcher.silent(now)
        if silent and not self._wide:
            self.beat_soon()  # whoever is seen from now on has been unobserved so far: begin at once
        self._wide = bool(silent)
        for suspect in silent:
            self._bury(suspect)

    def _node_of(self, member: Member) -> str:
        if member.kind == NODE:
            return member.id
        record = self._context.membership.worker(member.id)
        return "" if record is None else record.node

    # --- fencing -----------------------------------------------------------------------------------------------------

    async def guard_leases(self) -> None:
        """R8: fence every worker whose lease ran out, on this node's own clock; unfence it when it holds again."""
        options = self._context.options
        self._lost.clear()
        # A lease that begins after this look lasts longer than that, and one that is renewed only moves its end away.
        pause = options.fence_after
        for worker in list(self._workers.values()):
            remaining = worker.lease.remaining
            if remaining > 0 and not worker.lease.dead:
                worker.unfence()
                pause = min(pause, remaining)
            else:  # it joins, or may hold its lease again at any moment
                pause = min(pause, options.worker_ttl / 20)
                if worker.lease.was_held:
                    worker.fence()
        try:
            async with asyncio.timeout(pause):
                await self._lost.wait()
        except TimeoutError:
            return

    def watches(self) -> list[Member]:
        """Whom this node watches now; for tests and people."""
        return list(self._watched)
