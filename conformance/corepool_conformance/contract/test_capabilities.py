"""Capabilities, from both sides: what is declared works, what is not declared refuses and changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import math

import attrs
import pytest

from corepool.driver import (
    AppendValues,
    Capabilities,
    Entry,
    Finding,
    Increment,
    MapStore,
    NewEvent,
    RemoveValues,
    Severity,
    ValueOp,
    apply_value_op,
    decode_list,
)
from corepool.errors import BackendUnavailable, OutcomeUnknown, UnsupportedCapability, WireError
from corepool_conformance.kit import Contract, Kit, PromiseBroken, promise
from corepool_conformance.waiting import Follower


class TestCapabilities(Contract):
    @promise("CAP")
    async def test_capabilities_are_answered_and_steady(self, kit: Kit) -> None:
        one, two = await kit.backend(), await kit.backend()
        assert isinstance(one.capabilities, Capabilities)
        assert attrs.asdict(one.capabilities) == attrs.asdict(two.capabilities)

    @promise("CAP", "M2", capability="value_ops")
    async def test_value_operations(self, kit: Kit) -> None:
        m = await kit.map()
        declared = (await kit.capabilities()).value_ops
        steps: list[tuple[str, ValueOp]] = [
            ("n", Increment(5)),
            ("n", Increment(-7)),
            ("n", Increment(2**62)),
            ("l", AppendValues((b"a", b"b,", b"", b"3:x,"))),
            ("l", AppendValues((b"a", b"new", b"new"), unique=True)),
            ("l", AppendValues((b"a",))),
            ("l", RemoveValues((b"a", b"absent"))),
            ("l", AppendValues((bytes(range(256)),))),
            ("l", RemoveValues((b"b,", b"", b"3:x,", b"new", bytes(range(256))))),
            ("u", AppendValues((b"x", b"x"), unique=True)),
        ]
        if not declared:
            await self._refuses(m)
            return
        expected: dict[str, Entry] = {}
        for key, op in steps:
            before = expected.get(key)
            updated = await m.update(key, op)
            assert updated.value == apply_value_op(before.value if before else None, op), f"{op} on {before}"
            assert updated.previous == before
            assert updated.revision > (before.revision if before else 0)
            expected[key] = Entry(key, updated.value, updated.revision)
            assert await m.get(key) == expected[key]

    async def _refuses(self, m: MapStore) -> None:
        entry = await m.set("n", b"1")
        for key, op in (("n", Increment(1)), ("absent", AppendValues((b"a",))), ("n", RemoveValues((b"a",)))):
            with pytest.raises(UnsupportedCapability):
                await m.update(key, op)
        assert await m.get("n") == Entry("n", b"1", entry.revision), "an undeclared operation changed something"
        assert await m.get("absent") is None, "an undeclared operation changed something"

    @promise("CAP", "M3", capability="value_ops")
    async def test_a_value_operation_that_changes_nothing(self, kit: Kit) -> None:
        m = await kit.map()
        if not (await kit.capabilities()).value_ops:
            await self._refuses(m)
            return
        made = await m.update("l", AppendValues((b"a",)))
        follower = await Follower.start(kit, m)
        same = await m.update("l", AppendValues((b"a",), unique=True))
        assert (same.value, same.revision) == (made.value, made.revision)
        last = await m.update("l", AppendValues((b"b",)))
        await follower.reached(last.revision)
        assert decode_list(follower.replica["l"]) == [b"a", b"b"]

    @promise("CAP", "WIRE", capability="value_ops")
    async def test_a_value_operation_on_something_else(self, kit: Kit) -> None:
        m = await kit.map()
        if not (await kit.capabilities()).value_ops:
            await self._refuses(m)
            return
        for value, op in (
            (b"text", Increment(1)),
            (b"", Increment(1)),
            (b"1 ", Increment(1)),
            (b"+1", Increment(1)),
            (b"text", AppendValues((b"a",))),
            (b"3:ab,", AppendValues((b"a",))),
            (b"03:abc,", RemoveValues((b"abc",))),
            (b"1:a", RemoveValues((b"a",))),
        ):
            entry = await m.set("k", value)
            with pytest.raises(WireError):
                await m.update("k", op)
            assert await m.get("k") == Entry("k", value, entry.revision), f"{op} changed {value!r}"
        await m.set("n", b"%d" % (2**63 - 1))
        with pytest.raises((OverflowError, WireError)):
            await m.update("n", Increment(1))
        held = await m.get("n")
        assert held is not None
        assert held.value == b"%d" % (2**63 - 1)

    @promise("CAP", "M2", capability="value_ops")
    async def test_value_operations_of_many_clients(self, kit: Kit) -> None:
        stores = await kit.maps(3)
        if not (await kit.capabilities()).value_ops:
            await self._refuses(stores[0])
            return

        async def work(store: MapStore, number: int) -> None:
            for at in range(20):
                await store.update("n", Increment(1))
                await store.update("l", AppendValues((b"%d-%d" % (number, at),)))

        await kit.gather(*(work(store, number) for number, store in enumerate(stores)))
        counter, items = await stores[0].get("n"), await stores[0].get("l")
        if counter is None or counter.value != b"60":
            raise PromiseBroken("M2", f"60 atomic increments were acknowledged, the counter is {counter}")
        assert items is not None
        assert sorted(decode_list(items.value)) == sorted(b"%d-%d" % (n, at) for n in range(3) for at in range(20))

    @promise("CAP", "M5", capability="durable", needs=("restart",), deadline=90)
    async def test_acknowledged_writes_survive_a_restart(self, kit: Kit) -> None:
        m, stream = await kit.map(), await kit.stream()
        follower = await Follower.start(kit, m)
        commit = await m.set("k", b"v")
        known = await stream.append(NewEvent("e", b"v"))
        await kit.harness.restart()

        async def works() -> bool:
            try:
                await m.set("probe", b"v")
            except (BackendUnavailable, OutcomeUnknown):  # the server is starting; any other error breaks M5
                return False
            return True

        await kit.eventually(works, "a write after the backend was restarted", "M3", within=30)
        entry = await m.get("k")
        if (await kit.capabilities()).durable:
            assert entry == Entry("k", b"v", commit.revision), "durable is declared, and an acknowledged write is gone"
            assert [event.id for event in await stream.range()] == [known]
        last = await m.set("last", b"v")
        await follower.until(
            lambda: follower.replica.get("last") == b"v", "a watch after the backend was restarted", 20
        )
        assert follower.revision >= last.revision

    @promise("CAP")
    async def test_preflight_speaks_plainly(self, kit: Kit) -> None:
        findings = await kit.within(10, (await kit.main()).preflight(), "preflight")
        for finding in findings:
            assert isinstance(finding, Finding)
            assert isinstance(finding.severity, Severity)
            assert finding.code
            assert finding.text
            assert finding.remedy

    @promise("CAP")
    async def test_a_clock_that_goes_forward(self, kit: Kit) -> None:
        clock = (await kit.main()).clock
        first = clock.monotonic()
        await asyncio.sleep(0.02)  # a clock shows nothing but time that passes
        assert first < clock.monotonic() < first + 3600
        assert math.isfinite(clock.wall())

    @promise("MAPS", needs=("raw_read",))
    async def test_what_is_acknowledged_is_on_the_backend(self, kit: Kit) -> None:
        m = await kit.map()
        await m.set("k", b"a value to look for")
        raw = await kit.harness.raw_read(kit.namespace_name, "m", "k")
        assert raw is not None
        assert b"a value to look for" in raw
        await m.delete("k")
        raw = await kit.harness.raw_read(kit.namespace_name, "m", "k")
        assert raw is None or b"a value to look for" not in raw

    @promise("WIRE", needs=("raw_write",))
    async def test_foreign_bytes_block_nothing(self, kit: Kit) -> None:
        m = await kit.map()
        follower = await Follower.start(kit, m)
        await m.set("k", b"v")
        await kit.harness.raw_write(kit.namespace_name, "m", "k", b"\xff\x00 not of corepool")
        with contextlib.suppress(WireError):  # the strict answer; what can still be made sense of may be returned
            await kit.within(5, m.get("k"), "reading foreign bytes", "WIRE")
        last = await m.set("other", b"w")
        await follower.reached(last.revision)
        assert follower.replica["other"] == b"w"
        mended = await m.set("k", b"mended")
        assert mended.applied
        await follower.reached(mended.revision)

    @promise("CLOSE", needs=("leaks",))
    async def test_destroyed_maps_and_streams_leave_nothing(self, kit: Kit) -> None:
        m, stream = await kit.map(), await kit.stream()
        await m.set("k", b"v")
        await stream.append(NewEvent("e", b"v"))
        sink = await stream.sink("g", ack_wait=kit.ack_wait)
        await kit.within(5, sink.receive(), "a delivery", "S2")
        await sink.aclose()
        await stream.destroy()
        await m.destroy()
        left = await kit.harness.leaks(kit.namespace_name)
        assert left == [], f"left behind: {left}"
