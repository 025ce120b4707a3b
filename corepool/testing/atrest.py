"""A simulated pool at rest: what must be there in the end, and nothing else.

Purpose: invariants 10 to 12 of DESIGN 5, looked at in one instant, in the store and on the machines.
Invariants: a look takes no time and sends no request, so it sees no state that never was. The text of what is wrong begins
with the number of the invariant.
Neighbours: ``chaos`` and tests; reads the simulated server and the recorder of a `Cluster` directly.
"""

from __future__ import annotations

from corepool.driver import Entry
from corepool.pool.session import Session
from corepool.pool.store import SHUTDOWN_MAP, PoolStore
from corepool.pool.wire import (
    Attention,
    JobRecord,
    JobState,
    MemberState,
    NodeRecord,
    PoolRecord,
    WorkerRecord,
    decode,
)
from corepool.testing.cluster import Cluster
from corepool.testing.machines import ClusterNode

__all__ = ["AtRest"]


class AtRest:
    """Looks at a pool whose nodes are the cluster's machines that are up.

    went_back: the store did, while requests were under way. What those made again afterwards, of members and jobs that the
        store had forgotten, is listed nowhere: such payloads, streams and indexes may be left.
    failed: the keys whose jobs were FAILED when it last looked.
    """

    def __init__(self, cluster: Cluster, pool: str, *, went_back: bool = False) -> None:
        self.failed: set[str] = set()
        self._cluster = cluster
        self._pool = pool
        self._went_back = went_back

    def problem(self) -> str:
        """What is not as it must be, or ""."""
        return next(iter(self.problems().values()), "")

    def problems(self) -> dict[int, str]:
        """The same, for each invariant that does not hold, by its number."""
        self.failed.clear()
        nodes = [machine for machine in self._cluster.machines if isinstance(machine, ClusterNode) and machine.up]
        sessions = {node.name: session for node in nodes if (session := _session_of(node)) is not None}
        if not sessions:
            return {9: "9: no node is up"}
        ended = sorted(name for name, session in sessions.items() if session.ended is not None)
        if ended:
            return {9: f"9: {ended} are up, but their nodes have ended"}
        store = next(iter(sessions.values())).context.store
        workers = {worker for session in sessions.values() for worker in session.workers}
        members = {session.context.node_id for session in sessions.values()}
        records = {key: decode(entry.value, JobRecord) for key, entry in self._entries(store.jobs).items()}
        found: dict[int, str] = {}
        for number, text in (
            (11, self._of_members(store, workers, members)),
            (10, self._of_jobs(records, workers)),
            (11, self._of_indexes(store, records, workers)),
            (11, self._of_leftovers(store, workers, members)),
            (12, self._of_replicas(store, sessions)),
        ):
            if text:
                found.setdefault(number, text)
        return found

    def _entries(self, name: str) -> dict[str, Entry]:
        return {entry.key: entry for entry in self._cluster.world.server.maps(self._pool).entries(name)}

    def _of_members(self, store: PoolStore, workers: set[str], members: set[str]) -> str:
        states = {
            store.workers: {
                key: decode(entry.value, WorkerRecord).state for key, entry in self._entries(store.workers).items()
            },
            store.nodes: {
                key: decode(entry.value, NodeRecord).state for key, entry in self._entries(store.nodes).items()
            },
        }
        for name, alive in ((store.workers, workers), (store.nodes, members)):
            if (listed := states[name].keys()) != alive:
                return f"11: {name} and who is alive differ: {sorted(listed ^ alive)}"
            if idle := sorted(key for key, state in states[name].items() if state is not MemberState.ACTIVE):
                return f"11: not active in {name}: {idle}"
        for name, alive in ((store.worker_keep_alive, workers), (store.node_keep_alive, members)):
            if (beats := self._entries(name).keys()) != alive:
                return f"11: {name} and who is alive differ: {sorted(beats ^ alive)}"
        return ""

    def _of_jobs(self, records: dict[str, JobRecord], workers: set[str]) -> str:
        for key, record in records.items():
            if record.state is JobState.FAILED:
                self.failed.add(key)
            elif record.state is not JobState.RUNNING or record.worker not in workers:
                return f"10: {key} is {record.state.value} at {record.worker or 'nobody'}"
            elif len(running := self._cluster.running(key)) != 1:
                return f"10: {key} is RUNNING by its record, and runs on {[machine.name for machine in running]}"
            elif (token := self._cluster.history(key)[-1].token.revision) != record.token:
                return f"10: {key} runs with token {token}, and its record says {record.token}"
        for key in sorted(self._cluster.recorder.tenures):
            owners = self._cluster.owners(key)
            if owners and (key not in records or key in self.failed):
                return f"10: {key} is not RUNNING by its record, and {owners[0].name} has it"
        return ""

    def _of_indexes(self, store: PoolStore, records: dict[str, JobRecord], workers: set[str]) -> str:
        for name, entry in self._entries(store.attention).items():
            return f"11: an attention entry is left: {name} {decode(entry.value, Attention)}"
        wanted = {record.job_id for record in records.values()}
        payloads = self._entries(store.payloads).keys()
        if payloads != wanted and not (self._went_back and payloads > wanted):
            return f"11: payloads and jobs differ: {sorted(payloads ^ wanted)}"
        for worker in sorted(workers):
            owned = self._entries(store.owned(worker)).keys()
            mine = {key for key, record in records.items() if record.worker == worker}
            if owned != mine:
                return f"11: the index of {worker} differs from its jobs: {sorted(owned ^ mine)}"
        return ""

    def _of_leftovers(self, store: PoolStore, workers: set[str], members: set[str]) -> str:
        if locks := self._entries(store.worker_cleanup):
            return f"11: cleanup locks are left: {sorted(locks)}"
        maps, streams = self._cluster.world.server.contents().get(self._pool, ([], []))
        inboxes = {store.worker_inbox(worker) for worker in workers} | {store.node_inbox(node) for node in members}
        if (extra := sorted(set(streams) - inboxes - {store.queue})) and not self._went_back:
            return f"11: streams that belong to nobody: {extra}"
        indexes = {store.owned(worker) for worker in workers}
        extra = sorted(name for name in maps if name.startswith("owned@") and name not in indexes)
        if extra and not self._went_back:
            return f"11: indexes of workers that are not there: {extra}"
        space = self._cluster.world.server.streams(self._pool)
        for name in sorted(inboxes):
            if not space.exists(name):
                return f"11: {name} is missing"
            if waiting := space.length(name):
                return f"11: {waiting} events wait in {name}"
        for name in (*sorted(inboxes), store.queue):
            state = space.state(name)
            most = len(members) if name == store.queue else 1
            for sink in () if state is None else state.sinks.values():
                if len(sink.members) > most:
                    return f"11: the sink {sink.name} of {name} has {len(sink.members)} members, of {most} there can be"
        if workers and (waiting := space.length(store.queue)):
            return f"11: {waiting} events wait in the queue"
        return ""

    def _of_replicas(self, store: PoolStore, sessions: dict[str, Session]) -> str:
        workers = {key: decode(entry.value, WorkerRecord) for key, entry in self._entries(store.workers).items()}
        nodes = {key: decode(entry.value, NodeRecord) for key, entry in self._entries(store.nodes).items()}
        pool = [decode(entry.value, PoolRecord) for entry in self._entries(SHUTDOWN_MAP).values()]
        for name, session in sessions.items():
            membership = session.context.membership
            seen: tuple[object, ...] = (membership.workers(), membership.nodes(), [membership.pool])
            if seen != (workers, nodes, pool):
                return f"12: the replicas of {name} differ from the store"
        return ""


def _session_of(node: ClusterNode) -> Session | None:
    return node.node._session  # pyright: ignore[reportPrivateUsage]
