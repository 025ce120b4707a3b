"""What befalls a whole pool at once: machines that never come back, a store that goes away, a store that goes back.

Purpose: the chaos scenario once more, each time with one disaster in the middle of it.
Invariants: as in ``chaos``. After a store that went back (R13) the README does not promise what happens until that is noticed;
what must hold again is judged in the end.
Neighbours: `Chaos` gives clients, operators and judges; run by tests/chaos, or by
``corepool sim run --scenario corepool.testing.disasters:outage``.
"""

from __future__ import annotations

import attrs

from corepool.errors import OutcomeUnknown
from corepool.testing.chaos import Chaos
from corepool.testing.cluster import Cluster
from corepool.testing.history import judge_end

__all__ = ["minority", "outage", "rollback"]

_LAGS = 16


async def minority(cluster: Cluster) -> None:
    """A minority of the machines lose their power for good, at one moment. Everything comes right without them."""
    run = Chaos.draw(cluster)
    for _ in range(3 + 2 * cluster.choose(2, "nodes")):
        await run.boot()

    async def strike() -> None:
        await cluster.sleep(1.0 + cluster.choose(40, "strike") / 2)
        up = run.up()
        few = max(1, (len(up) - 1) // 2)
        for _ in range(1 + cluster.choose(few, "how many")):
            if len(up) > 1:
                await cluster.crash(up.pop(cluster.choose(len(up), "which")))
        cluster.sometimes("a minority is down for good", bool(up))

    await run.live(strike())
    await run.settle()
    run.judge()


async def outage(cluster: Cluster) -> None:
    """The whole store is away for longer than a worker lives. Nobody is taken for dead because of it (R10)."""
    run = Chaos.draw(cluster)
    await run.found()

    async def strike() -> None:
        await cluster.sleep(1.0 + cluster.choose(40, "strike") / 4)
        run.dark = True
        began = cluster.now
        cluster.world.nemesis.rest()  # or it would end its own partitions in the middle
        await cluster.partition()
        await cluster.sleep((1.25, 2.0, 4.0)[cluster.choose(3, "outage")] * run.ttl)
        run.rules.forgive(cluster.now - began)
        await cluster.heal()
        cluster.world.nemesis.rise()
        run.dark = False
        cluster.sometimes("the store was away for longer than a worker lives")

    await run.live(strike())
    await run.settle()
    run.judge()


async def rollback(cluster: Cluster) -> None:
    """The store loses its newest writes, acknowledged or not (R13). What was written before is there in the end, every job has
    one owner with the largest token ever given, and calls made afterwards hold what they promise."""
    run = Chaos.draw(cluster, full_scan=4.0)
    cluster.recorder.check = False  # two may own a job until the loss is noticed
    await run.found()
    lost_since = lost_until = 0.0

    async def strike() -> None:
        nonlocal lost_since, lost_until
        await cluster.sleep(2.0 + cluster.choose(40, "strike") / 4)
        saved, lost_since = cluster.checkpoint(), cluster.now
        await cluster.sleep(0.05 + cluster.choose(_LAGS, "lag") * 3 * run.ttl / _LAGS)
        run.rules.goes_back()
        await cluster.rollback(saved)
        # Within so much every owner has noticed, or is dead.
        lost_until = cluster.now + 3 * run.ttl
        cluster.sometimes("the store went back")

    await run.live(strike())
    await run.settle(went_back=True)
    certain = [call for call in run.dispatches if (call.returned or 0.0) < lost_since or call.invoked > lost_until]
    unknown = OutcomeUnknown("the store went back")
    stops = [
        attrs.evolve(stop, error=unknown) if stop.returned is None or stop.returned >= lost_since else stop
        for stop in run.stops
    ]
    judge_end(certain, stops, run.effects(), failed=run.failed)
