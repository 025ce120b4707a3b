"""Named scenarios: replicated maps whose readers do not read, and whose writers wait."""

from __future__ import annotations

import asyncio

from corepool import ReplicatedMap
from corepool.driver import Snapshot
from corepool.testing import Cluster

from .conftest import Simulated
from .looking import POOL, QUICK, TTL, Keeper, Store, nodes
from .wiretap import Wiretap

MANY = 1200
"""More than any buffer on the way holds."""


def test_an_unread_subscription_during_writes_and_close(simulated: Simulated) -> None:
    """The deadlock of the field's reference: whoever is told of changes and does not look holds up nobody."""

    async def scenario(cluster: Cluster) -> None:
        reader, writer = cluster.machine("reader"), cluster.machine("writer")

        async def idle() -> None:
            store = reader.backend.namespace("maps").map("m")
            watch = store.watch()
            await anext(watch)  # and never again
            members = await ReplicatedMap.join(reader.backend, "m")
            subscription, changes = members.subscribe(), members.changes(limit=8)
            await writer.run(write)
            written = await asyncio.wait_for(members.set_and_wait("mine", "v"), 1.0)
            assert written.applied
            assert members.get("last") == str(MANY - 1)
            cluster.sometimes("a subscription was never read", subscription.pending)
            await asyncio.wait_for(members.aclose(), 0.1)
            await asyncio.wait_for(watch.aclose(), 0.1)
            await asyncio.wait_for(changes.aclose(), 0.1)
            assert members.get("last") == str(MANY - 1), "closed, the replica stays readable"
            await asyncio.wait_for(reader.backend.aclose(), 0.1)

        async def write() -> None:
            members = await ReplicatedMap.join(writer.backend, "m", replicated=False)
            for number in range(MANY):
                await asyncio.wait_for(members.set("last", str(number)), 0.1)
            await members.aclose()

        await reader.run(idle)
        assert reader.tasks() == []

    simulated(scenario, seeds=2, reaches=["a subscription was never read"])


def test_an_unread_subscription_to_the_members_of_a_pool(simulated: Simulated) -> None:
    """The same in a node: somebody asked to be told of the workers, and does not look while they come and go."""

    async def scenario(cluster: Cluster) -> None:
        pool = await nodes(cluster, 2)
        membership = pool[0].node._open().context.membership
        unread = [watch() for watch in (membership.watch_workers, membership.watch_nodes, membership.watch_pool) * 20]
        for turn in range(4):
            newcomer = await cluster.node(POOL, worker=Keeper(), **QUICK)
            await pool[0].dispatch_job(f"k{turn}")
            await newcomer.close()
        cluster.sometimes("news waited that nobody read", any(subscription.pending for subscription in unread))
        began = cluster.now
        await pool[0].close()
        assert cluster.now - began < 1.0
        await Store(cluster).tidy()

    simulated(scenario, reaches=["news waited that nobody read"])


def test_set_and_wait_overwritten_before_it_is_seen(simulated: Simulated) -> None:
    """The replica never holds the value that was waited for: the wait is for the write's revision, so it ends. Two calls with
    one key and one value both return."""

    async def scenario(cluster: Cluster) -> None:
        tap = Wiretap(cluster)
        one, two = cluster.machine("one"), cluster.machine("two")

        async def wait_for_it() -> None:
            members = await ReplicatedMap.join(one.backend, "m")
            seen: list[str] = []
            changes = members.changes()
            held = tap.hold_feed("one", "watch m")
            calls = [asyncio.create_task(members.set_and_wait("k", "a")) for _ in range(2)]
            while len(held.held) < 2:
                await asyncio.sleep(0.01)
            assert not any(call.done() for call in calls)
            await two.run(overwrite)
            await cluster.reset("one")  # the next feed begins with what stands there now
            while not isinstance(held.held[-1][0], Snapshot):
                await asyncio.sleep(0.01)
            held.release()
            for written in await asyncio.gather(*calls):
                assert written.applied
            assert members.get("k") == "b"
            await members.aclose()
            async for event in changes:
                seen += [str(event)]
            cluster.sometimes("the value was overwritten before it was seen", not any("'a'" in text for text in seen))

        async def overwrite() -> None:
            members = await ReplicatedMap.join(two.backend, "m", replicated=False)
            await members.set("k", "b")
            await members.aclose()

        await asyncio.wait_for(one.run(wait_for_it), 2 * TTL)

    simulated(scenario, reaches=["the value was overwritten before it was seen"])
