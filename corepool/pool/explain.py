"""Looking: what is known of one job, and whether a node works.

Purpose: answers for people. Alive is not working: a healthy node's leases are renewed *and* its events flow.
Invariants: reads only, but for the event that a health check sends to the node's own inbox.
Neighbours: called by `Node`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import attrs

from corepool.driver import NewEvent
from corepool.pool.context import NodeContext
from corepool.pool.handlers import FencingToken
from corepool.pool.supervisor import TRANSIENT
from corepool.pool.wire import PING, JobState, Move

if TYPE_CHECKING:
    from corepool.pool.session import Session

__all__ = ["Explanation", "Health", "explain", "health"]


@attrs.frozen(slots=True)
class Explanation:
    """What is known of one job.

    owner: the worker that runs it, or that it is on its way to; "" if it waits for any worker.
    owner_node: that worker's node; owner_state: active, leaving, … or "gone" if it has no record.
    token: the fencing token of the current owner, once it runs.
    belongs_to: the worker that the ring names now, as seen from this node.
    since: when the record last changed, by the clock of whoever changed it.
    moves: the last owners and why it went to them, oldest first.
    """

    key: str
    state: JobState
    job_id: str
    owner: str
    owner_node: str
    owner_state: str
    started: bool
    epoch: int
    attempt: int
    token: FencingToken | None
    belongs_to: str
    reason: str
    since: float
    moves: tuple[Move, ...]


@attrs.frozen(slots=True)
class Health:
    """Whether a node works.

    healthy: the lease is valid, no worker is fenced, and an event came round.
    lease_age: seconds since the node's keep-alive was last confirmed.
    round_trip: seconds an event took to the node's own inbox and back; None if it did not come.
    fenced: workers whose lease ran out.
    restarts: of background loops, since the node was opened. undecodable: values set aside.
    """

    healthy: bool
    lease_age: float
    round_trip: float | None
    fenced: tuple[str, ...]
    restarts: int
    undecodable: int


async def explain(context: NodeContext, key: str) -> Explanation | None:
    """See `Node.explain`."""
    stored = await context.store.job(key)
    if stored is None:
        return None
    record = stored.record
    worker = context.membership.worker(record.worker) if record.worker else None
    state = "" if not record.worker else "gone" if worker is None else worker.state.value
    token = FencingToken(record.generation, record.token) if record.token else None
    return Explanation(
        key=key,
        state=record.state,
        job_id=record.job_id,
        owner=record.worker,
        owner_node="" if worker is None else worker.node,
        owner_state=state,
        started=record.started,
        epoch=record.epoch,
        attempt=record.attempt,
        token=token,
        belongs_to=context.membership.ring.owner(key),
        reason=record.reason,
        since=record.wall,
        moves=record.moves,
    )


async def _ping(context: NodeContext, nonce: bytes) -> bool:
    inbox = context.store.stream(context.store.node_inbox(context.node_id))
    return await inbox.append(NewEvent(PING, nonce), only_if_exists=True) is not None


async def health(session: Session, timeout: float) -> Health:
    """See `Node.health`."""
    context = session.context
    nonce = b"%020x" % context.random.getrandbits(80)
    heard = asyncio.get_running_loop().create_future()
    session.pings[nonce] = heard
    sent = context.clock.monotonic()
    round_trip: float | None = None
    try:
        async with asyncio.timeout(timeout):
            while not await _ping(context, nonce):  # the node is coming back under a new id: its inbox is being made
                await asyncio.sleep(context.options.poll_period / 10)
            await heard
            round_trip = context.clock.monotonic() - sent
    except (TimeoutError, *TRANSIENT) as error:
        context.log.warning("health: no event came round within %g s (%r)", timeout, error)
    finally:
        session.pings.pop(nonce, None)
    fenced = tuple(sorted(worker.id for worker in session.workers.values() if worker.fenced))
    return Health(
        healthy=session.lease.valid and not fenced and round_trip is not None,
        lease_age=session.lease.age,
        round_trip=round_trip,
        fenced=fenced,
        restarts=context.supervisor.restarts,
        undecodable=context.store.undecodable,
    )
