"""Maps: single operations, conditions, clear, scan, and clients that race (M1, M2, M3)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from corepool.driver import ABSENT, ALWAYS, REVISION, Delete, Entry, MapStore, Set, Write
from corepool_conformance.kit import Contract, Kit, PromiseBroken, promise


async def contents(store: MapStore, prefix: str = "") -> dict[str, bytes]:
    """What a scan yields; a key that comes twice is a fault."""
    seen: dict[str, bytes] = {}
    async for entry in store.scan(prefix):
        assert entry.key not in seen, f"scan yielded {entry.key!r} twice"
        seen[entry.key] = entry.value
    return seen


class TestMaps(Contract):
    # --- one client --------------------------------------------------------------------------------------------------

    @promise("M2", "MAPS")
    async def test_set_and_get(self, kit: Kit) -> None:
        m = await kit.map()
        assert await m.get("k") is None
        first = await m.set("k", b"one")
        assert first.applied
        assert first.previous is None
        assert first.revision > 0
        assert await m.get("k") == Entry("k", b"one", first.revision)
        second = await m.set("k", b"two")
        assert second.applied
        assert second.previous == Entry("k", b"one", first.revision)
        assert await m.get("k") == Entry("k", b"two", second.revision)

    @promise("M1")
    async def test_revisions_grow_over_the_whole_map(self, kit: Kit) -> None:
        m = await kit.map()
        revisions: list[int] = []
        for number in range(10):
            revisions.append((await m.set(f"k{number % 3}", b"%d" % number)).revision)
            if number % 4 == 3:
                revisions.append((await m.delete(f"k{number % 3}")).revision)
        revisions.append((await m.clear()).revision)
        revisions.append((await m.set("k", b"")).revision)
        assert revisions == sorted(set(revisions)), f"not strictly increasing: {revisions}"

    @promise("M2")
    async def test_absent_condition(self, kit: Kit) -> None:
        m = await kit.map()
        won = await m.set("k", b"first", ABSENT)
        assert won.applied
        assert won.previous is None
        lost = await m.set("k", b"second", ABSENT)
        assert not lost.applied, "ABSENT was accepted for a key that exists"
        assert lost.previous == Entry("k", b"first", won.revision), "a refusal shows the entry that stood in the way"
        assert await m.get("k") == Entry("k", b"first", won.revision)
        await m.delete("k")
        again = await m.set("k", b"third", ABSENT)
        assert again.applied, "ABSENT was refused although the key had been deleted"
        assert again.revision > won.revision

    @promise("M2")
    async def test_revision_condition(self, kit: Kit) -> None:
        m = await kit.map()
        first = await m.set("k", b"one")
        second = await m.set("k", b"two", REVISION(first.revision))
        assert second.applied
        assert second.previous == Entry("k", b"one", first.revision)
        stale = await m.set("k", b"three", REVISION(first.revision))
        assert not stale.applied, "a write on a stale revision was applied"
        assert stale.previous == Entry("k", b"two", second.revision)
        assert await m.get("k") == Entry("k", b"two", second.revision)
        missing = await m.set("other", b"x", REVISION(second.revision))
        assert not missing.applied, "a write on a revision of an absent key was applied"
        assert missing.previous is None
        assert await m.get("other") is None
        future = await m.set("k", b"x", REVISION(second.revision + 1000))
        assert not future.applied

    @promise("M2")
    async def test_a_refusal_tells_when_it_was_true(self, kit: Kit) -> None:
        m = await kit.map()
        entry = await m.set("k", b"one")
        await m.set("other", b"x")
        refused = await m.set("k", b"two", ABSENT)
        newest = await m.set("other", b"y")
        assert refused.revision == 0 or entry.revision <= refused.revision < newest.revision

    @promise("M2")
    async def test_a_revision_is_never_used_again(self, kit: Kit) -> None:
        m = await kit.map()
        first = await m.set("k", b"same")
        await m.delete("k")
        second = await m.set("k", b"same")
        assert second.revision > first.revision
        assert not (await m.set("k", b"x", REVISION(first.revision))).applied
        assert not (await m.delete("k", REVISION(first.revision))).applied
        assert await m.get("k") == Entry("k", b"same", second.revision)

    @promise("M2")
    async def test_delete_and_its_conditions(self, kit: Kit) -> None:
        m = await kit.map()
        written = await m.set("k", b"v")
        refused = await m.delete("k", ABSENT)
        assert not refused.applied, "delete with ABSENT was applied to a key that exists"
        stale = await m.delete("k", REVISION(written.revision + 1))
        assert not stale.applied
        assert stale.previous == Entry("k", b"v", written.revision)
        gone = await m.delete("k", REVISION(written.revision))
        assert gone.applied
        assert gone.previous == Entry("k", b"v", written.revision)
        assert gone.revision > written.revision
        assert await m.get("k") is None
        late = await m.delete("k", REVISION(written.revision))
        assert not late.applied, "delete on the revision of an entry that is gone was applied"
        assert late.previous is None

    @promise("M2", "MAPS")
    async def test_deleting_what_is_absent_counts_as_applied(self, kit: Kit) -> None:
        m = await kit.map()
        for when in (ALWAYS, ABSENT):
            gone = await m.delete("k", when)
            assert gone.applied
            assert gone.previous is None

    @promise("MAPS")
    async def test_get_many(self, kit: Kit) -> None:
        m = await kit.map()
        written = {f"k{n}": await m.set(f"k{n}", b"%d" % n) for n in range(0, 20, 2)}
        got = await m.get_many([f"k{n}" for n in range(20)])
        assert got == {key: Entry(key, key[1:].encode(), commit.revision) for key, commit in written.items()}
        assert await m.get_many([]) == {}
        assert set(await m.get_many(["k0", "k0", "k2"])) == {"k0", "k2"}

    @promise("MAPS")
    async def test_an_empty_value_is_a_value(self, kit: Kit) -> None:
        m = await kit.map()
        written = await m.set("k", b"")
        assert await m.get("k") == Entry("k", b"", written.revision)
        assert await m.get_many(["k"]) == {"k": Entry("k", b"", written.revision)}
        assert await contents(m) == {"k": b""}
        assert not (await m.set("k", b"x", ABSENT)).applied, "a key with an empty value counts as absent"
        assert (await m.set("k", b"x", REVISION(written.revision))).applied

    @promise("MAPS")
    async def test_any_bytes_are_a_value(self, kit: Kit) -> None:
        m = await kit.map()
        values = [bytes(range(256)), b"\x00", b"\r\n", b"\xff" * 100, b"\n", b" ", kit.random.randbytes(1000)]
        for number, value in enumerate(values):
            await m.set(f"k{number}", value)
        assert await contents(m) == {f"k{number}": value for number, value in enumerate(values)}

    @promise("M2", "MAPS")
    async def test_apply_is_ordered_and_independent(self, kit: Kit) -> None:
        m = await kit.map()
        held = await m.set("held", b"old")
        writes: list[Write] = [
            Set("a", b"1"),
            Set("held", b"no", ABSENT),
            Set("a", b"2"),
            Delete("missing", REVISION(held.revision)),
            Set("held", b"new", REVISION(held.revision)),
            Delete("a"),
            Set("b", b"3", ABSENT),
        ]
        done = await m.apply(writes)
        assert [commit.applied for commit in done] == [True, False, True, False, True, True, True]
        revisions = [commit.revision for commit in done if commit.applied]
        assert revisions == sorted(set(revisions)), f"not in order: {revisions}"
        assert done[1].previous == Entry("held", b"old", held.revision)
        assert done[2].previous == Entry("a", b"1", done[0].revision)
        assert await contents(m) == {"held": b"new", "b": b"3"}
        assert await m.apply([]) == []

    # --- clear and destroy -------------------------------------------------------------------------------------------

    @promise("M2", "MAPS")
    async def test_clear(self, kit: Kit) -> None:
        m, other = await kit.map(), await kit.map("other")
        await other.set("k", b"stays")
        newest = 0
        for number in range(30):
            newest = (await m.set(f"k{number}", b"v")).revision
        cleared = await m.clear()
        assert cleared.applied
        assert cleared.previous is None
        assert cleared.revision > newest
        assert await contents(m) == {}
        assert await m.get("k3") is None
        assert await m.get_many(["k1", "k2"]) == {}
        again = await m.set("k3", b"v", ABSENT)
        assert again.applied, "ABSENT was refused after a clear"
        assert again.previous is None
        assert again.revision > cleared.revision
        assert await contents(other) == {"k": b"stays"}, "clear reached another map"

    @promise("M2")
    async def test_clear_conditions_speak_of_the_map(self, kit: Kit) -> None:
        m = await kit.map()
        assert (await m.clear(ABSENT)).applied, "clear(ABSENT) of an empty map"
        first = await m.set("a", b"1")
        newest = await m.set("b", b"2")
        refused = await m.clear(REVISION(first.revision))
        assert not refused.applied, "clear on a stale revision of the map was applied"
        assert refused.revision == newest.revision, "a refused clear tells the map's revision"
        assert not (await m.clear(ABSENT)).applied, "clear(ABSENT) of a map that holds keys was applied"
        assert await contents(m) == {"a": b"1", "b": b"2"}
        gone = await m.delete("a")
        assert not (await m.clear(REVISION(newest.revision))).applied, "a delete is a commit too"
        assert (await m.clear(REVISION(gone.revision))).applied
        assert await contents(m) == {}

    @promise("M1", "MAPS")
    async def test_destroy_keeps_revisions_growing(self, kit: Kit) -> None:
        m = await kit.map()
        await m.destroy()
        before = await m.set("k", b"v")
        await m.destroy()
        await m.destroy()
        assert await m.get("k") is None
        assert await contents(m) == {}
        after = await m.set("k", b"w", ABSENT)
        assert after.applied
        assert after.revision > before.revision, "revisions started again after destroy"

    @promise("M2")
    async def test_nobody_reads_half_a_clear(self, kit: Kit) -> None:
        writer, reader = await kit.maps(2)
        keys = [f"k{number:02}" for number in range(40)]
        for _ in range(5):
            await writer.apply([Set(key, b"v") for key in keys])
            clearing = kit.spawn(writer.clear())
            order = kit.random.sample(keys, len(keys))
            gone: str | None = None
            while not clearing.done() or gone is None:
                for key in order:
                    if await reader.get(key) is None:
                        gone = gone or key
                    elif gone is not None:
                        raise PromiseBroken(
                            "M2", f"during one clear {gone!r} was gone, and {key!r} was still read after it"
                        )
                if gone is None:
                    await kit.within(5, asyncio.sleep(0), "a clear")
            await clearing

    # --- scan --------------------------------------------------------------------------------------------------------

    @promise("MAPS")
    async def test_scan_takes_prefixes_literally(self, kit: Kit) -> None:
        m = await kit.map()
        keys = [
            "a",
            "ab",
            "abc",
            "b",
            "*",
            "*x",
            "[a]",
            "a?",
            "?",
            "a.b",
            "a.b.c",
            "a>",
            ">",
            "\\",
            "a\\*",
            "ä",
            "a b",
            "%",
            "_",
        ]
        await m.apply([Set(key, key.encode()) for key in keys])
        for prefix in [
            "",
            "a",
            "ab",
            "*",
            "[",
            "[a",
            "?",
            "a?",
            "a.",
            "a.b",
            ">",
            "\\",
            "a\\",
            "ä",
            "a ",
            "%",
            "_",
            "zz",
        ]:
            expected = {key: key.encode() for key in keys if key.startswith(prefix)}
            assert await contents(m, prefix) == expected, f"prefix {prefix!r}"

    @promise("MAPS")
    async def test_scan_of_many_keys_while_others_come_and_go(self, kit: Kit) -> None:
        m, other = await kit.maps(2)
        stable = {f"stable{number}": b"v%d" % number for number in range(700)}
        for at in range(0, 700, 100):
            await m.apply([Set(key, value) for key, value in list(stable.items())[at : at + 100]])
        moving = True

        async def disturb() -> None:
            number = 0
            while moving:
                number += 1
                await other.apply([Set(f"moving{number}", b"x"), Delete(f"moving{number - 5}")])

        disturber = kit.spawn(disturb())
        for _ in range(3):
            seen = await contents(m)
            assert {key: value for key, value in seen.items() if key.startswith("stable")} == stable
        moving = False
        await disturber

    # --- isolation ---------------------------------------------------------------------------------------------------

    @promise("MAPS")
    async def test_maps_and_namespaces_are_apart(self, kit: Kit) -> None:
        backend = await kit.main()
        places = [
            ("", "a", "b:c"),
            ("", "a:b", "c"),
            ("", "a.b", "c"),
            (":a", "b", "c"),
            (".a", "b", "c"),
        ]
        stores = [(backend.namespace(kit.namespace_name + suffix).map(name), key) for suffix, name, key in places]
        try:
            for number, (store, key) in enumerate(stores):
                assert (await store.set(key, b"%d" % number, ABSENT)).applied, f"{places[number]} meets another place"
            for number, (store, key) in enumerate(stores):
                assert await contents(store) == {key: b"%d" % number}, f"{places[number]}"
            await stores[0][0].clear()
            for number, (store, key) in enumerate(stores[1:], 1):
                assert await contents(store) == {key: b"%d" % number}, f"{places[number]} after a clear of {places[0]}"
        finally:
            for store, _ in stores:
                await store.destroy()

    # --- several clients ---------------------------------------------------------------------------------------------

    @promise("M3")
    async def test_a_read_sees_what_was_acknowledged_elsewhere(self, kit: Kit) -> None:
        writer, reader = await kit.maps(2)
        for number in range(100):
            commit = await writer.set("k", b"%d" % number)
            seen = await reader.get("k")
            if seen != Entry("k", b"%d" % number, commit.revision):
                raise PromiseBroken("M2", f"revision {commit.revision} was acknowledged, and a later get gave {seen}")
            if number % 10 == 0:
                assert await reader.get_many(["k"]) == {"k": seen}
                assert await contents(reader) == {"k": b"%d" % number}

    @promise("M2")
    async def test_one_of_many_wins(self, kit: Kit) -> None:
        stores = await kit.maps(4)
        for round_number in range(15):
            key = f"k{round_number}"
            tries = await kit.gather(*(store.set(key, b"%d" % n, ABSENT) for n, store in enumerate(stores * 2)))
            winners = [(n, commit) for n, commit in enumerate(tries) if commit.applied]
            if len(winners) != 1:
                raise PromiseBroken(
                    "M2", f"{len(winners)} of {len(tries)} concurrent writes on ABSENT were applied: {tries}"
                )
            number, won = winners[0]
            entry = Entry(key, b"%d" % number, won.revision)
            assert await stores[0].get(key) == entry
            for n, commit in enumerate(tries):
                if n != number:
                    assert commit.previous == entry, f"loser {n} was told {commit.previous}, the winner is {entry}"

    @promise("M2")
    async def test_no_update_is_lost(self, kit: Kit) -> None:
        stores = await kit.maps(3)
        each = 25

        async def count(store: MapStore) -> None:
            for _ in range(each):
                while True:
                    entry = await store.get("n")
                    when = REVISION(entry.revision) if entry else ABSENT
                    if (await store.set("n", b"%d" % (int(entry.value) + 1 if entry else 1), when)).applied:
                        break
                    await asyncio.sleep(kit.random.random() * 0.002)

        await kit.gather(*(count(store) for store in stores))
        entry = await stores[0].get("n")
        if entry is None or int(entry.value) != each * len(stores):
            raise PromiseBroken(
                "M2", f"{each * len(stores)} increments by compare-and-set were acknowledged, counted: {entry}"
            )

    @promise("M2")
    async def test_deletes_and_sets_race_on_one_revision(self, kit: Kit) -> None:
        stores = await kit.maps(4)
        for _ in range(15):
            start = await stores[0].set("k", b"start")
            when = REVISION(start.revision)
            tries = await kit.gather(
                stores[0].set("k", b"0", when),
                stores[1].delete("k", when),
                stores[2].set("k", b"2", when),
                stores[3].delete("k", when),
            )
            if sum(commit.applied for commit in tries) != 1:
                raise PromiseBroken("M2", f"not exactly one write on revision {start.revision} was applied: {tries}")

    @promise("M1")
    async def test_revisions_of_many_writers_are_one_order(self, kit: Kit) -> None:
        stores = await kit.maps(3)

        async def write(store: MapStore, number: int) -> Sequence[int]:
            return [(await store.set(f"k{number}-{at % 4}", b"v")).revision for at in range(30)]

        lists = await kit.gather(*(write(store, number) for number, store in enumerate(stores)))
        for revisions in lists:
            assert list(revisions) == sorted(set(revisions)), "one writer saw its own revisions out of order"
        every = [revision for revisions in lists for revision in revisions]
        assert len(every) == len(set(every)), "two commits of one map have the same revision"
