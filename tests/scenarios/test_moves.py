"""Named scenarios: what meets a job while it moves from one owner to the next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import attrs
import pytest

from corepool import JobNotFoundError
from corepool.pool.wire import JobState
from corepool.testing import Cluster, ClusterNode

from .conftest import Simulated
from .looking import POOL, QUICK, TTL, Keeper, Store, gathered, keeper, keys_of, nodes
from .wiretap import Gate, Request, Wiretap, both, from_, writes_job

STAGES = [
    "the old owner's handler is stopping",
    "the release is not sent",
    "the release is written",
    "the claim is not sent",
    "the claim is written",
    "the new owner's handler is starting",
    "the confirmation is not sent",
    "the confirmation is written",
]


@attrs.frozen(slots=True)
class Move:
    """A job that stands still in the middle of its move: ``go_on`` lets it finish."""

    key: str
    old: ClusterNode
    client: ClusterNode
    closing: asyncio.Task[None]
    go_on: Callable[[], None]


async def _move_until(cluster: Cluster, stage: str) -> Move:
    """Three nodes; the job's owner closes, and the move is stopped at a stage of it."""
    tap = Wiretap(cluster)
    client = await cluster.node(POOL, client_only=True, **QUICK)
    old, *others = await nodes(cluster, 3)
    [key] = keys_of(old, 1)
    await client.dispatch_job(key, b"payload")
    inside, onward = asyncio.Event(), asyncio.Event()

    async def linger(_: object) -> None:
        inside.set()
        await onward.wait()

    gate: Gate | None = None
    match stage:
        case "the old owner's handler is stopping":
            keeper(old).on_stop = linger
        case "the release is not sent":
            gate = tap.hold(writes_job(JobState.PENDING, key), times=1)
        case "the release is written":
            gate = tap.hold_answer(writes_job(JobState.PENDING, key), times=1)
        case "the claim is not sent":
            gate = tap.hold(writes_job(JobState.STARTING, key), times=1)
        case "the claim is written":
            gate = tap.hold_answer(writes_job(JobState.STARTING, key), times=1)
        case "the new owner's handler is starting":
            for node in others:
                keeper(node).on_start = linger
        case "the confirmation is not sent":
            gate = tap.hold(writes_job(JobState.RUNNING, key), times=1)
        case _:
            gate = tap.hold_answer(writes_job(JobState.RUNNING, key), times=1)
    closing = asyncio.create_task(old.close())
    await (inside.wait() if gate is None else gate.reached())

    def go_on() -> None:
        onward.set()
        if gate is not None:
            gate.open()

    return Move(key, old, client, closing, go_on)


async def _settle(cluster: Cluster, move: Move) -> None:
    move.go_on()
    await move.closing
    await Store(cluster).tidy()


@pytest.mark.parametrize("stage", STAGES)
def test_stop_during_a_move(simulated: Simulated, stage: str) -> None:
    """The stop wins wherever the job is: it returns, the job is gone, and no later owner ever starts it."""

    async def scenario(cluster: Cluster) -> None:
        move = await _move_until(cluster, stage)
        stopping = asyncio.create_task(move.client.stop_job(move.key))
        await cluster.sleep(0.5)
        cluster.sometimes("the stop could not wait for the move", stopping.done())
        cluster.sometimes("the stop had to wait for the move", not stopping.done())
        move.go_on()
        await stopping
        assert cluster.owners(move.key) == []
        assert Store(cluster).job(move.key) is None
        starts = len(cluster.history(move.key))
        await _settle(cluster, move)
        await cluster.sleep(4 * TTL)
        assert len(cluster.history(move.key)) == starts, "it was started after its stop had returned"
        with pytest.raises(JobNotFoundError):
            await move.client.stop_job(move.key)
        await move.client.dispatch_job(move.key, b"again")
        assert len(cluster.running(move.key)) == 1

    passes = stage in ("the release is written", "the claim is not sent", "the new owner's handler is starting")
    simulated(scenario, reaches=[f"the stop {'could not' if passes else 'had to'} wait for the move"])


@pytest.mark.parametrize("stage", STAGES)
def test_notify_during_a_move(simulated: Simulated, stage: str) -> None:
    """The notification reaches an owner of the job while it runs there, and its sender hears so."""

    async def scenario(cluster: Cluster) -> None:
        move = await _move_until(cluster, stage)
        notifying = asyncio.create_task(move.client.notify_worker(move.key, b"first"))
        await cluster.sleep(0.5)
        cluster.sometimes("it had to wait for the move", not notifying.done())
        cluster.sometimes("the next owner had it before the old one knew", notifying.done())
        move.go_on()
        await notifying
        await move.client.notify_worker(move.key, b"second")
        heard = [payload for node in cluster.machines for payload in _notes(node, move.key)]
        assert set(heard) == {b"first", b"second"}
        assert heard[-1] == b"second", f"a caller that awaits each call is heard in order: {heard}"
        await _settle(cluster, move)
        [owner] = cluster.running(move.key)
        assert owner is not move.old

    early = (
        simulated.atomic and stage == "the release is written"
    )  # without atomic commits its doorbell has not rung yet
    simulated(
        scenario, reaches=["the next owner had it before the old one knew" if early else "it had to wait for the move"]
    )


def _notes(node: object, key: str) -> list[bytes]:
    if not isinstance(node, ClusterNode):
        return []
    return [
        payload
        for handler in node._handlers
        if isinstance(handler, Keeper)
        for name, payload in handler.notes
        if name == key
    ]


def test_a_notification_in_the_inbox_of_one_who_leaves(simulated: Simulated) -> None:
    """It was appended for the old owner, who has stopped the job before taking it: it is passed on, not lost."""

    async def scenario(cluster: Cluster) -> None:
        tap = Wiretap(cluster)
        client = await cluster.node(POOL, client_only=True, **QUICK)
        old, *_ = await nodes(cluster, 3)
        [key] = keys_of(old, 1)
        await client.dispatch_job(key)
        held = tap.hold_feed(old.name, "sink owner of worker:")
        notifying = asyncio.create_task(client.notify_worker(key, b"note"))
        await cluster.eventually(lambda: held.held, within=5.0)

        async def look(_: object) -> None:
            cluster.sometimes("the note lay in the inbox of one who let go", not notifying.done())

        keeper(old).on_stop = look
        closing = asyncio.create_task(old.close())
        await cluster.eventually(lambda: cluster.running(key) not in ([], [old]), within=5.0)
        held.release()
        await notifying
        await closing
        [owner] = cluster.running(key)
        assert _notes(owner, key) == [b"note"]
        await Store(cluster).tidy()

    simulated(scenario, reaches=["the note lay in the inbox of one who let go"])


def test_a_second_node_closes_while_the_jobs_of_the_first_are_on_their_way_to_it(simulated: Simulated) -> None:
    """Handed over from one who leaves to one who leaves: each release is addressed to the second when that begins to close."""

    async def scenario(cluster: Cluster) -> None:
        tap = Wiretap(cluster)
        pool = await nodes(cluster, 4)
        first, second = pool[0], pool[1]
        keys = list(dict.fromkeys(keys_of(first, 4) + keys_of(first, 4, then=second)))
        for key in keys:
            await pool[3].dispatch_job(key)
        claims = tap.hold(both(from_(second.name), _starting), times=8)
        closing_first = asyncio.create_task(first.close())
        await claims.reached()
        closing_second = asyncio.create_task(second.close())
        cluster.sometimes("a target closed while jobs were on their way to it", bool(claims.waiting))
        await cluster.sleep(0.2)
        claims.open()
        await asyncio.gather(closing_first, closing_second)
        await Store(cluster).tidy()
        for key in keys:
            [owner] = cluster.running(key)
            assert owner in pool[2:]

    simulated(scenario, reaches=["a target closed while jobs were on their way to it"])


def _starting(request: Request) -> bool:
    return writes_job(JobState.STARTING)(request)


def test_a_second_node_closes_while_the_jobs_of_a_dead_one_are_requeued(simulated: Simulated) -> None:
    """As above, but the first is dead and a third requeues its jobs, as they go to the second."""

    async def scenario(cluster: Cluster) -> None:
        tap = Wiretap(cluster)
        pool = await nodes(cluster, 4)
        dead, second = pool[0], pool[1]
        keys = list(dict.fromkeys(keys_of(dead, 4) + keys_of(dead, 4, then=second)))
        for key in keys:
            await pool[3].dispatch_job(key)
        [target] = second.workers
        closing: list[asyncio.Task[None]] = []

        def close(request: Request) -> None:
            cluster.sometimes("the one who closes is the cleaner as well", request.machine == second.name)
            closing.append(asyncio.create_task(second.close(), name="close the second"))

        tap.applied(writes_job(JobState.PENDING, worker=target.id), close)
        await cluster.crash(dead)
        await cluster.eventually(lambda: closing, within=4 * TTL)
        cluster.sometimes("a target closed while jobs were requeued to it", not closing[0].done())
        await closing[0]
        await Store(cluster).tidy()
        for key in keys:
            [owner] = cluster.running(key)
            assert owner in pool[2:]

    simulated(scenario, reaches=["a target closed while jobs were requeued to it"])


@pytest.mark.parametrize("moment", ["before the stop is written", "when the stop is written", "in handler.stop"])
def test_a_stop_whose_owner_dies_in_the_middle(simulated: Simulated, moment: str) -> None:
    """The intent stands in the record, so the stop returns and the job never runs again."""

    async def scenario(cluster: Cluster) -> None:
        tap = Wiretap(cluster)
        client = await cluster.node(POOL, client_only=True, **QUICK)
        owner, *_ = await nodes(cluster, 3)
        [key] = keys_of(owner, 1)
        await client.dispatch_job(key)

        def power_cut(_: object) -> None:
            cluster.hit_crash(owner.name)

        async def die_inside(_: object) -> None:
            power_cut(_)
            await asyncio.sleep(1.0)

        match moment:
            case "before the stop is written":
                tap.before(writes_job(JobState.STOPPING, key), power_cut)
            case "when the stop is written":
                tap.applied(writes_job(JobState.STOPPING, key), power_cut)
            case _:
                keeper(owner).on_stop = die_inside
        began = cluster.now
        await client.stop_job(key)
        cluster.sometimes("the owner was dead when the stop was carried out", not owner.alive)
        assert cluster.now - began <= 4 * TTL
        assert Store(cluster).job(key) is None
        await Store(cluster).tidy()
        await cluster.sleep(4 * TTL)
        assert len(cluster.history(key)) == 1

    simulated(scenario, reaches=["the owner was dead when the stop was carried out"])


def test_a_stop_asked_for_while_the_owner_is_dead(simulated: Simulated) -> None:
    """Nobody knows yet that the owner is dead. Two ask for the stop, and one asks for a notification."""

    async def scenario(cluster: Cluster) -> None:
        client = await cluster.node(POOL, client_only=True, **QUICK)
        owner, other, _ = await nodes(cluster, 3)
        [key] = keys_of(owner, 1)
        await client.dispatch_job(key)
        await cluster.crash(owner)
        cluster.sometimes("the record still named a dead owner", Store(cluster).jobs()[key].state is JobState.RUNNING)
        began = cluster.now
        results = await gathered(client.stop_job(key), other.stop_job(key), other.notify_worker(key, b"note"))
        assert results[:2] in ([None, None],)
        assert isinstance(results[2], JobNotFoundError), results[2]
        assert cluster.now - began <= 4 * TTL
        await Store(cluster).tidy()
        await cluster.sleep(4 * TTL)
        assert len(cluster.history(key)) == 1

    simulated(scenario, reaches=["the record still named a dead owner"])


def test_the_answer_to_a_stop_is_lost(simulated: Simulated) -> None:
    """Losing an event costs time, never the outcome: the caller looks at the record."""

    async def scenario(cluster: Cluster) -> None:
        tap = Wiretap(cluster)
        client = await cluster.node(POOL, client_only=True, **QUICK)
        owner, *_ = await nodes(cluster, 2)
        [key] = keys_of(owner, 1)
        await client.dispatch_job(key)
        held = tap.hold_feed(client.name, "sink owner of node:")
        await client.stop_job(key)
        cluster.sometimes("an answer was on its way that nobody waited for", bool(held.held))
        held.release()
        await client.dispatch_job(key)
        await Store(cluster).tidy()

    simulated(scenario, reaches=["an answer was on its way that nobody waited for"])
