"""Watches: order, completeness, joining under load, unread watches, lost connections (M1, M3, M4, M6)."""

from __future__ import annotations

import asyncio
import random

import pytest

from corepool.driver import REVISION, Change, Cleared, Entry, MapStore, Set, Snapshot
from corepool.errors import BackendUnavailable, OutcomeUnknown
from corepool_conformance.kit import Contract, Kit, PromiseBroken, promise
from corepool_conformance.waiting import Follower, Ledger


async def scribble(store: MapStore, ledger: Ledger, rng: random.Random, count: int, keys: int = 6) -> None:
    """Random acknowledged writes, clears among them."""
    for number in range(count):
        key = f"k{rng.randrange(keys)}"
        match rng.randrange(12):
            case 0:
                ledger.note_clear(await store.clear())
            case 1 | 2 | 3:
                await ledger.delete(store, key)
            case 4:
                writes = [Set(f"k{n}", b"batch%d" % number) for n in range(3)]
                for write, commit in zip(writes, await store.apply(writes), strict=True):
                    ledger.note(write.key, write.value, commit)
            case _:
                await ledger.set(store, key, b"%d-%d" % (number, rng.randrange(1000)))


async def write_until_acknowledged(kit: Kit, store: MapStore, ledger: Ledger, number: int) -> None:
    """Write until one write is acknowledged; what a failed one may have done is overwritten by it."""

    async def works() -> bool:
        try:
            await ledger.set(store, "probe", b"%d" % number)
        except (BackendUnavailable, OutcomeUnknown):  # what the cut did; any other error breaks M5
            return False
        return True

    await kit.eventually(works, "a write after the connection was healed", "M3", within=15)


class TestMapWatch(Contract):
    @promise("M3")
    async def test_a_watch_begins_with_a_snapshot(self, kit: Kit) -> None:
        m = await kit.map()
        empty = m.watch()
        first = await kit.within(5, anext(empty), "the first snapshot of an empty map", "M3")
        assert isinstance(first, Snapshot)
        assert first.entries == ()
        assert first.revision == 0, "a map that never held anything has revision 0"
        await empty.aclose()
        a, b = await m.set("a", b"1"), await m.set("b", b"")
        gone = await m.delete("a")
        watch = m.watch()
        snapshot = await kit.within(5, anext(watch), "the first snapshot", "M3")
        assert isinstance(snapshot, Snapshot)
        assert snapshot.revision >= gone.revision > a.revision, "a snapshot is not older than what was acknowledged"
        assert snapshot.entries == (Entry("b", b"", b.revision),)
        await watch.aclose()

    @promise("M1", "M3")
    async def test_changes_come_with_their_commits_revisions(self, kit: Kit) -> None:
        m, reader = await kit.maps(2)
        watch = reader.watch()
        await kit.within(5, anext(watch), "the first snapshot", "M3")
        one = await m.set("k", b"1")
        empty = await m.set("e", b"")
        gone = await m.delete("k")
        cleared = await m.clear()
        seen = [await kit.within(5, anext(watch), "a change", "M3") for _ in range(4)]
        assert seen[:3] == [
            Change(one.revision, "k", b"1"),
            Change(empty.revision, "e", b""),
            Change(gone.revision, "k", None),
        ]
        assert seen[3] == Cleared(cleared.revision)
        await watch.aclose()

    @promise("M1", "M3")
    async def test_every_replica_equals_the_map_at_each_revision(self, kit: Kit) -> None:
        stores = await kit.maps(3)
        ledger = Ledger()
        followers = [await Follower.start(kit, store) for store in stores]
        await kit.gather(
            *(scribble(store, ledger, random.Random(f"{kit.seed}{n}"), 60) for n, store in enumerate(stores))
        )
        for follower in followers:
            await follower.reached(ledger.revision)
            ledger.check(follower.events)

    @promise("M1", "M3")
    async def test_joining_while_others_write(self, kit: Kit) -> None:
        writers = await kit.maps(2)
        joiner = await kit.map(backend=await kit.backend())
        ledger = Ledger()
        followers: list[Follower] = []
        writing = [
            kit.spawn(scribble(store, ledger, random.Random(f"{kit.seed}{n}"), 80, keys=20))
            for n, store in enumerate(writers)
        ]
        while not all(task.done() for task in writing):
            if len(followers) < 25:
                followers.append(await Follower.start(kit, joiner))
            await asyncio.sleep(0)
        await kit.gather(*writing)
        for follower in followers:
            await follower.reached(ledger.revision)
            ledger.check(follower.events)

    @promise("M2", "M3")
    async def test_no_joiner_sees_half_a_clear(self, kit: Kit) -> None:
        writer, joiner = await kit.maps(2)
        keys = [f"k{number}" for number in range(60)]
        for _ in range(6):
            filled = (await writer.apply([Set(key, b"v") for key in keys]))[-1].revision
            clearing = kit.spawn(writer.clear())
            while True:
                last = clearing.done()
                watch = joiner.watch()
                snapshot = await kit.within(5, anext(watch), "a snapshot", "M3")
                await watch.aclose()
                assert isinstance(snapshot, Snapshot)
                if len(snapshot.entries) not in (0, len(keys)):
                    raise PromiseBroken(
                        "M2",
                        f"a watch that joined during a clear saw {len(snapshot.entries)} of {len(keys)} keys: {snapshot}",
                    )
                assert snapshot.revision >= filled
                if last:
                    assert snapshot.entries == (), "a snapshot taken after a clear was acknowledged holds keys"
                    break
                await asyncio.sleep(0)  # a driver in this process may answer without ever letting the clear run

    @promise("M3")
    async def test_writes_that_change_nothing_are_reached_too(self, kit: Kit) -> None:
        other, m, reader = await kit.map("other"), *(await kit.maps(2))
        follower = await Follower.start(kit, reader)
        for number in range(5):  # so that a counter shared by the maps of a namespace moves on
            await other.set("k", b"%d" % number)
        await follower.reached((await m.delete("absent")).revision)
        await follower.reached((await m.clear()).revision)
        await m.set("k", b"v")
        await other.set("k", b"again")
        await follower.reached((await m.delete("absent")).revision)
        refused = await m.delete("absent", REVISION((await other.set("k", b"once more")).revision))
        assert not refused.applied
        await follower.reached(refused.revision)
        await m.destroy()
        await other.set("k", b"last")
        await follower.reached((await m.delete("absent")).revision)
        refused = await m.set("absent", b"v", REVISION((await other.set("k", b"end")).revision))
        assert not refused.applied
        await follower.reached(refused.revision)
        await follower.aclose()

    @promise("M3")
    async def test_a_watch_outlives_destroy(self, kit: Kit) -> None:
        m, reader = await kit.maps(2)
        follower = await Follower.start(kit, reader)
        before = await m.set("k", b"1")
        await follower.reached(before.revision)
        await m.destroy()
        await follower.until(lambda: follower.replica == {}, "a watch to see that the map was destroyed")
        after = await m.set("k", b"2")
        await follower.reached(after.revision)
        assert follower.replica == {"k": b"2"}
        await follower.aclose()

    @promise("M1", "M3")
    async def test_destroy_races_with_writers(self, kit: Kit) -> None:
        writer, other, reader = await kit.maps(3)
        follower = await Follower.start(kit, reader)

        async def write() -> int:
            newest = 0
            for number in range(40):
                revision = (await writer.set(f"k{number % 5}", b"%d" % number)).revision
                assert revision > newest, f"revision {revision} after {newest}: destroy made revisions start again"
                newest = revision
            return newest

        async def destroy() -> int:
            for _ in range(5):
                await other.destroy()
                await asyncio.sleep(0.002)
            return 0

        newest, _ = await kit.gather(write(), destroy())
        final = await writer.set("last", b"x")
        assert final.revision > newest
        await follower.reached(final.revision)
        entries = await reader.get_many([*(f"k{n}" for n in range(5)), "last"])
        assert follower.replica == {key: entry.value for key, entry in entries.items()}

    # --- M4 ----------------------------------------------------------------------------------------------------------

    @promise("M4", "M3")
    async def test_an_unread_watch_blocks_nobody(self, kit: Kit) -> None:
        shared = await kit.map()
        writer, reader = await kit.maps(2)
        never = shared.watch()
        once = shared.watch()
        begun = await kit.within(5, anext(once), "the first snapshot", "M3")
        follower = await Follower.start(kit, shared)  # on the same connection as the unread ones
        elsewhere = await Follower.start(kit, reader)
        ledger = Ledger()
        for at in range(0, 3000, 50):
            writes = [Set(f"k{number % 70}", b"%d" % number + b"x" * 400) for number in range(at, at + 50)]
            commits = await kit.within(5, writer.apply(writes), "a write while a watch is not read", "M4")
            for write, commit in zip(writes, commits, strict=True):
                ledger.note(write.key, write.value, commit)
        mine = await kit.within(5, shared.set("mine", b"v"), "a write on the connection of an unread watch", "M4")
        ledger.note("mine", b"v", mine)
        assert await kit.within(5, shared.get("mine"), "a read on the connection of an unread watch", "M4")
        await follower.reached(mine.revision)
        await elsewhere.reached(mine.revision)
        late = Follower(kit, once)
        late.events.append(begun)
        late.revision = begun.revision
        await late.reached(mine.revision)
        ledger.check(late.events)
        await kit.within(5, never.aclose(), "closing an unread watch", "M4")

    @promise("M4", "CLOSE")
    async def test_an_unread_watch_does_not_block_close(self, kit: Kit) -> None:
        backend = await kit.backend()
        watched = await kit.map(backend=backend)
        writer = await kit.map()
        unread = [watched.watch() for _ in range(3)]
        await kit.within(5, anext(unread[0]), "the first snapshot", "M3")
        for _ in range(10):
            await writer.apply([Set(f"k{number}", b"x" * 1000) for number in range(50)])
        await kit.within(5, backend.aclose(), "closing a connection with unread watches", "M4")

    @promise("M3", "M4")
    async def test_many_watches_on_one_connection(self, kit: Kit) -> None:
        backend = await kit.main()
        stores = [await kit.map(f"m{number}", backend) for number in range(80)]
        followers = await kit.gather(*(Follower.start(kit, store) for store in stores))
        commits = await kit.gather(*(store.set("k", store.name.encode()) for store in stores))
        for follower, store, commit in zip(followers, stores, commits, strict=True):
            await follower.reached(commit.revision)
            assert follower.replica == {"k": store.name.encode()}, f"the watch of {store.name}"

    # --- the end of a watch, and M6 ----------------------------------------------------------------------------------

    @promise("CLOSE")
    async def test_closing_a_watch_ends_its_iteration(self, kit: Kit) -> None:
        m = await kit.map()
        watch = m.watch()
        await kit.within(5, anext(watch), "the first snapshot", "M3")
        waiting = kit.spawn(anext(watch, None))
        await kit.a_moment()
        await kit.within(5, watch.aclose(), "closing a watch", "CLOSE")
        assert await kit.within(5, waiting, "the pending read of a closed watch", "CLOSE") is None
        await watch.aclose()
        with pytest.raises(StopAsyncIteration):
            await kit.within(5, anext(watch), "reading a closed watch", "CLOSE")
        assert (await m.set("k", b"v")).applied, "the connection is still of use"
        unstarted = m.watch()
        await kit.within(5, unstarted.aclose(), "closing a watch that was never read", "CLOSE")

    @promise("M6", "M3")
    async def test_a_cancelled_read_of_a_watch_loses_nothing(self, kit: Kit) -> None:
        writer, reader = await kit.maps(2)
        ledger = Ledger()
        watch = reader.watch()
        events = [await kit.within(5, anext(watch), "the first snapshot", "M3")]
        writing = kit.spawn(scribble(writer, ledger, kit.random, 120))
        cancelled = 0
        while not writing.done() or events[-1].revision < ledger.revision:
            task = asyncio.ensure_future(anext(watch))
            await asyncio.sleep(kit.random.choice((0, 0, 0.001)))
            task.cancel()
            try:
                events.append(await kit.within(5, task, "a cancelled read of a watch", "M6"))
            except asyncio.CancelledError:
                cancelled += 1
                if cancelled % 3 != 0:
                    continue
                # Decided before the wait: a writer that ends during it leaves a watch that may have nothing more to yield.
                finished = writing.done()
                if not finished or events[-1].revision < ledger.revision:
                    patient = kit.spawn(anext(watch))
                    done, _ = await asyncio.wait([patient], timeout=2 if finished else 0.05)
                    if done:
                        events.append(patient.result())
                    elif finished:
                        raise PromiseBroken(
                            "M6", f"the watch stays at {events[-1].revision}, the map is at {ledger.revision}"
                        ) from None
                    else:
                        patient.cancel()
                        await asyncio.wait([patient])
                        if not patient.cancelled():
                            events.append(patient.result())
        await writing
        ledger.check(events)

    # --- lost connections --------------------------------------------------------------------------------------------

    @promise("M3", "M1", needs=("cut",), deadline=60)
    async def test_no_gap_after_a_lost_connection(self, kit: Kit) -> None:
        backend = await kit.backend()
        store = await kit.map(backend=backend)
        follower = await Follower.start(kit, store)
        ledger = Ledger()
        for round_number in range(3):
            await scribble(store, ledger, kit.random, 10)
            await kit.harness.cut()
            await kit.a_moment(0.1)
            await kit.harness.heal()
            await write_until_acknowledged(kit, store, ledger, round_number)
        await follower.reached(ledger.revision, within=20)
        assert follower.replica == ledger.state(ledger.revision)
