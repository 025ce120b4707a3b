"""What must hold of a pool's store after every single write, whoever made it.

Purpose: the safety invariants of DESIGN 5 that can be seen in the store alone, checked in a simulated cluster after every
request. Each violation names the number of the invariant and, where one stands behind it, the R-rule of DESIGN 4.
Invariants checked:

- 2, 3, R1: a record goes only where the life of a job has an end; what had started is removed by nothing but a stop;
- 4: a record changes only along the edges of ``corepool.pool.transitions``; a stop that stands is carried out; no job_id is
  used twice;
- 5, R3: RUNNING carries the revision of its claim; epochs, generations and ``started`` never go back;
- R5: a mover stamps no ring of the future, and an owner that stays lets go only by a ring newer than the job's;
- 6, R7, R8: nobody is declared dead before a time to live of silence; what is taken from a worker by others is taken after its
  tombstone; a tombstoned id never renews;
- 6, R12: a lock changes hands only when it is stale, and is removed by nobody but its holder before that;
- 7: a replica only moves forward, and equals the store at its revision;
- 8: the number of a ticker grows by one;
- 11, R11: what exists is listed: a record precedes its keep-alive and outlives its inbox.

An observer's clock may run one percent fast. After a store that was away, `forgive`; before it `goes_back`.
Neighbours: ``chaos`` and tests attach it to a `Cluster`; it reads the simulated server directly, without requests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn, TypeAlias

import attrs

from corepool.driver import Change, Cleared, Snapshot, WatchEvent
from corepool.pool.wire import (
    JobRecord,
    JobState,
    KeepAlive,
    Lock,
    MemberState,
    NodeRecord,
    PoolRecord,
    TickRecord,
    WorkerRecord,
    decode,
)
from corepool.testing.cluster import Cluster
from corepool.testing.machines import ClusterNode
from corepool_memory.sim.errors import InvariantViolated

__all__ = ["StoreRules"]

_CLOCKS = 0.97
"""Of a time to live: how much of it must have passed by true time when an observer's clock runs one percent fast."""

_OWNED = (JobState.STARTING, JobState.RUNNING, JobState.STOPPING)
_EDGES = {
    (JobState.PENDING, JobState.STARTING): "claim",
    (JobState.STARTING, JobState.STARTING): "claim",
    (JobState.RUNNING, JobState.STARTING): "claim",
    (JobState.STARTING, JobState.RUNNING): "confirm",
    (JobState.PENDING, JobState.PENDING): "release",
    (JobState.STARTING, JobState.PENDING): "release",
    (JobState.RUNNING, JobState.PENDING): "release",
    (JobState.FAILED, JobState.PENDING): "revive",
    (JobState.STARTING, JobState.STOPPING): "ask_stop",
    (JobState.RUNNING, JobState.STOPPING): "ask_stop",
    (JobState.STARTING, JobState.FAILED): "fail",
}


@attrs.frozen(slots=True)
class _Held:
    """What stands under a key: the decoded value, its revision, and since when."""

    value: Any
    revision: int
    at: float


_Judge: TypeAlias = Callable[[str, _Held | None, _Held | None, str], None]


class StoreRules:
    """Attach it before the first node; it ends the run at the first violation.

    edges: how often a record took which way, by the names of ``corepool.pool.transitions``.
    """

    def __init__(self, cluster: Cluster, pool: str, *, ttl: float, incarnation: int = 1) -> None:
        self.edges: Counter[str] = Counter()
        self._cluster = cluster
        self._ttl = ttl
        self._incarnation = incarnation
        self._maps = cluster.world.server.maps(pool)
        self._streams = cluster.world.server.streams(pool)
        self._held: dict[str, dict[str, _Held]] = {}
        self._news: list[tuple[str, WatchEvent]] = []
        self._home: dict[str, str] = {}
        """The machine of each node and worker that ever had a record."""
        self._silent_since: dict[str, float] = {}
        """Since when a member's keep-alive has not changed."""
        self._dead: set[str] = set()
        """Whoever was declared dead."""
        self._keys: dict[str, str] = {}
        """By job_id, the key that it was used for."""
        self._history: dict[str, dict[int, dict[str, Any]]] = {"workers": {}, "nodes": {}}
        self._reached: dict[tuple[str, str], tuple[int, int]] = {}
        """By machine and map: generation and revision of its replica."""
        self._went_back = False
        self._ended = False
        self._judges: dict[str, tuple[type[Any], _Judge]] = {
            "shutdown": (PoolRecord, self._pool_changed),
            "workers": (WorkerRecord, self._member_changed),
            "nodes": (NodeRecord, self._member_changed),
            "worker_keep_alive": (KeepAlive, self._keep_alive_changed),
            "node_keep_alive": (KeepAlive, self._keep_alive_changed),
            "worker_cleanup": (Lock, self._lock_changed),
            "jobs": (JobRecord, self._job_changed),
            "tickers": (TickRecord, self._ticker_changed),
        }
        for name in self._judges:
            self._held[name] = {}
            full_name = name if name == "shutdown" else f"{name}.{incarnation}"
            self._maps.watch(full_name, partial(self._hear, name))
        cluster.always("after every step", self.check)

    def _hear(self, name: str, event: WatchEvent) -> None:
        self._news.append((name, event))

    def forgive(self, seconds: float) -> None:
        """The whole store was away for so long, until now: nobody could give a sign of life, so those seconds do not count as
        silence (R10). A last sign that was on its way when it went away counts from now at the latest."""
        now = self._cluster.now
        self._silent_since = {member: min(since + seconds, now) for member, since in self._silent_since.items()}

    def goes_back(self) -> None:
        """The store is about to lose acknowledged writes (R13). What stands then is taken as it is; revisions, and with them
        signs of life, may be taken for earlier ones, records are written again, and job_ids come again: none of that is
        judged any more."""
        self._went_back = True
        self._news.clear()
        self._keys.clear()
        for history in self._history.values():
            history.clear()

    # --- following the store -----------------------------------------------------------------------------------------

    def check(self) -> None:
        """Judge what the newest request has changed.

        Raises:
            InvariantViolated: something that must never be.
        """
        who = self._cluster.world.trace.last_requester()
        news, self._news = self._news, []
        for name, event in news:
            self._follow(name, event, who)
        if not self._ended:
            self._check_replicas(who)

    def _follow(self, name: str, event: WatchEvent, who: str) -> None:
        held, now = self._held[name], self._cluster.now
        kind, judge = self._judges[name]
        match event:
            case Snapshot(entries=entries):
                held.clear()
                held.update({entry.key: _Held(decode(entry.value, kind), entry.revision, now) for entry in entries})
            case Cleared():
                held.clear()
            case Change(revision=revision, key=key, value=value):
                before = held.pop(key, None)
                after = None if value is None else _Held(decode(value, kind), revision, now)
                if after is not None:
                    held[key] = after
                if not self._ended:
                    judge(key, before, after, who)
        history = self._history.get(name)
        if history is not None:
            history[event.revision] = {key: entry.value for key, entry in held.items()}

    def _is_elsewhere(self, member: str, who: str) -> bool:
        """Whether ``member`` lives on another machine than ``who``."""
        return self._home.get(member, who) != who

    def _age(self, held: _Held) -> float:
        return self._cluster.now - held.at

    # --- jobs ---------------------------------------------------------------------------------------------------------

    def _job_changed(self, key: str, before: _Held | None, after: _Held | None, who: str) -> None:
        if after is None:
            assert before is not None
            self._job_went(key, before.value, who)
        elif before is None:
            self._job_came(key, after.value)
        else:
            self._job_moved(key, before, after, who)

    def _job_came(self, key: str, new: JobRecord) -> None:
        if self._went_back:
            self._keys[new.job_id] = key
            return
        if new.job_id in self._keys:
            _fail(f"4: {key!r} came back under the job_id {new.job_id}, which had been used")
        self._keys[new.job_id] = key
        if new.state is not JobState.PENDING or new.epoch or new.attempt or new.started:
            _fail(f"4: {key!r} came to be as {new.state.value}, epoch {new.epoch}, attempt {new.attempt}")

    def _job_went(self, key: str, old: JobRecord, who: str) -> None:
        if self._went_back:
            return
        if old.state is JobState.RUNNING:
            _fail(f"2: {who} removed the record of {key!r} although it was running")
        if old.state is JobState.STARTING:
            if old.started:
                _fail(f"2 (R1): {who} removed the record of {key!r}, which had started before, because a start failed")
            self._check_taken(key, old, who, "3 (R1)", "removed the record of")
        if old.state is JobState.STOPPING:
            self._check_taken(key, old, who, "4", "finished the stop of")

    def _job_moved(self, key: str, before: _Held, after: _Held, who: str) -> None:
        old: JobRecord = before.value
        new: JobRecord = after.value
        if old.job_id != new.job_id:
            _fail(f"4: the record of {key!r} was overwritten by another job's")
        edge = _EDGES.get((old.state, new.state))
        if edge is None and self._went_back and old.state is new.state is JobState.RUNNING:
            return  # an older confirmation was put right (R13)
        if edge is None:
            _fail(f"4: the record of {key!r} went from {old.state.value} to {new.state.value}")
        self.edges[edge] += 1
        if (new.started, new.epoch, new.generation) < (old.started, old.epoch, old.generation):
            _fail(f"5: the record of {key!r} went back: {old} to {new}")
        match edge:
            case "claim":
                if new.worker != old.worker:
                    _fail(f"1: {new.worker} claimed {key!r}, which was meant for {old.worker}")
                again = old.state is JobState.STARTING  # the same worker: its earlier start did not kill it
                if new.attempt != old.attempt + (not again) or new.claims != old.claims + 1:
                    _fail(f"4: {new.worker} claimed {key!r} without counting the attempt")
            case "confirm":
                if new.token != before.revision and not self._went_back:
                    _fail(f"5 (R3): {key!r} runs with token {new.token}, but was claimed at {before.revision}")
            case "fail":
                if not old.started:
                    _fail(f"3 (R1): {key!r} is FAILED, but was never started")
            case "release" | "revive":
                self._check_release(key, old, new, who)
            case _:
                return

    def _check_release(self, key: str, old: JobRecord, new: JobRecord, who: str) -> None:
        if new.epoch != old.epoch + 1:
            _fail(f"4: {key!r} was released from epoch {old.epoch} to {new.epoch}")
        if new.ring > max(self._history["workers"], default=0) and not self._went_back:
            _fail(f"R5: {who} moved {key!r} by ring {new.ring}, which does not exist yet")
        if old.state not in _OWNED:
            return
        self._check_taken(key, old, who, "6 (R7)", "took")
        owner = self._held["workers"].get(old.worker)
        stays = owner is not None and owner.value.state is MemberState.ACTIVE and old.worker not in self._dead
        if stays and old.state is JobState.RUNNING and new.ring <= old.ring and not self._went_back:
            _fail(f"R5: {old.worker} let {key!r} go by ring {new.ring}, but ring {old.ring} had brought it there")

    def _check_taken(self, key: str, old: JobRecord, who: str, number: str, did: str) -> None:
        """Only its owner, or one who comes after the owner's death, may do this."""
        there = old.worker in self._held["workers"]
        if there and old.worker not in self._dead and self._is_elsewhere(old.worker, who) and not self._went_back:
            _fail(f"{number}: {who} {did} {key!r}, whose owner {old.worker} nobody had declared dead")

    # --- members ------------------------------------------------------------------------------------------------------

    def _member_changed(self, member: str, before: _Held | None, after: _Held | None, who: str) -> None:
        if self._went_back:
            return
        if after is None:
            if self._is_elsewhere(member, who) and member not in self._dead:
                _fail(f"6 (R7): {who} removed the record of {member}, whom nobody had declared dead")
            if inbox := self._inbox_of(member):
                _fail(f"11 (R11): the record of {member} went before its inbox {inbox}")
            return
        self._home.setdefault(member, who)
        self._silent_since.setdefault(member, self._cluster.now)
        if after.value.state is MemberState.DEAD and member not in self._dead:
            _fail(f"6 (R7): {who} marked {member} as dead without a tombstone")

    def _inbox_of(self, member: str) -> str:
        for name in (f"worker:{member}.{self._incarnation}", f"node:{member}.{self._incarnation}"):
            if self._streams.exists(name):
                return name
        return ""

    def _keep_alive_changed(self, member: str, before: _Held | None, after: _Held | None, who: str) -> None:
        if self._went_back:
            if after is not None and after.value.dead:
                self._dead.add(member)
            return
        record = self._held["workers"].get(member) or self._held["nodes"].get(member)
        if after is None:
            if record is not None and self._is_elsewhere(member, who) and member not in self._dead:
                _fail(f"6 (R12): {who} removed the keep-alive of {member}, whom nobody had declared dead")
        elif after.value.dead:
            silence = self._cluster.now - self._silent_since.get(member, 0.0)
            # Else a slow cleaner, or its late request, comes after a faster one: nobody is declared dead twice.
            if silence < _CLOCKS * self._ttl and record is not None and member not in self._dead:
                _fail(f"6: {who} declared {member} dead {silence:.3f} s after a sign of life")
            self._dead.add(member)
        elif before is not None and before.value.dead:  # after the burial a late request of the joiner may still arrive
            _fail(f"6 (R7): {member} was declared dead and gives a sign of life")
        elif member not in self._home:
            _fail(f"11 (R11): {member} gives a sign of life before it has a record")
        self._silent_since[member] = self._cluster.now

    def _lock_changed(self, member: str, before: _Held | None, after: _Held | None, who: str) -> None:
        if before is None or self._went_back:
            return
        holder: str = before.value.node
        if after is not None and after.value.node == holder:
            return
        age = self._age(before)
        if after is not None and after.value.node:
            if age < _CLOCKS * self._ttl:
                _fail(f"6: {who} took the cleanup lock of {member} from {holder} {age:.3f} s after a sign of life")
        elif age < _CLOCKS * self._ttl and (not holder or self._is_elsewhere(holder, who)):
            _fail(f"6 (R12): {who} removed the cleanup lock of {member}, which {holder or 'a grave'} holds")

    # --- the rest -----------------------------------------------------------------------------------------------------

    def _pool_changed(self, _: str, before: _Held | None, after: _Held | None, who: str) -> None:
        if after is None or after.value.shutdown or after.value.incarnation != self._incarnation:
            self._ended = True  # from here on everything may go in any order
        elif before is not None and after.value.generation < before.value.generation:
            _fail(f"5 (R13): {who} let the pool's generation go back to {after.value.generation}")

    def _ticker_changed(self, name: str, before: _Held | None, after: _Held | None, who: str) -> None:
        if before is not None and after is not None and after.value.number != before.value.number + 1:
            _fail(f"8: {who} let the ticker {name!r} go from {before.value.number} to {after.value.number}")

    def _check_replicas(self, who: str) -> None:
        """Invariant 7, for the machine whose request was last."""
        machine = self._cluster.get(who)
        if not isinstance(machine, ClusterNode) or not machine.up:
            return
        session = machine.node._session  # pyright: ignore[reportPrivateUsage]
        if session is None:
            return
        membership = session.context.membership
        workers, nodes = membership._workers, membership._nodes  # pyright: ignore[reportPrivateUsage]
        for name, replica in (("workers", workers), ("nodes", nodes)):
            place, now = (machine.sim.label, name), (replica.generation, replica.revision)
            before = self._reached.get(place, (0, 0))
            if now == before:
                continue
            self._reached[place] = now
            if now < before:
                _fail(f"7: the replica of {name} on {who} went back from {before} to {now}")
            stood = self._history[name].get(replica.revision)
            if self._went_back:
                continue  # revisions are given again: what it holds is compared in the end
            if stood is None:
                _fail(f"7: the replica of {name} on {who} is at {replica.revision}, where the store never was")
            elif dict(replica.items()) != stood:
                _fail(f"7: the replica of {name} on {who} differs from the store at {replica.revision}")


def _fail(text: str) -> NoReturn:
    raise InvariantViolated(text)
