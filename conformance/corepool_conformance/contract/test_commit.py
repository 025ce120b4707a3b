"""Commits: several operations in one round trip, in order, with conditions, events and acknowledgements."""

from __future__ import annotations

import pytest

from corepool.driver import (
    ABSENT,
    REVISION,
    Ack,
    Append,
    Appended,
    Commit,
    CommitResult,
    DeleteKey,
    Entry,
    GetKey,
    NewEvent,
    Op,
    Refusal,
    SetKey,
    StreamConfig,
)
from corepool.errors import InvalidKeyError, PayloadTooLarge
from corepool_conformance.kit import Contract, Kit, PromiseBroken, promise
from corepool_conformance.waiting import Follower, payloads

EVENT = NewEvent("event", b"payload")


def commit_at(result: CommitResult, index: int) -> Commit:
    """The result of a SetKey or DeleteKey."""
    found = result.results[index]
    assert isinstance(found, Commit), f"result {index} of {result}"
    return found


class TestCommit(Contract):
    @promise("COMMIT")
    async def test_all_kinds_of_operations_in_order(self, kit: Kit) -> None:
        namespace = await kit.namespace()
        jobs, other, stream = await kit.map("jobs"), await kit.map("other"), await kit.stream()
        await stream.create()
        await other.set("old", b"x")
        result = await namespace.commit(
            [
                SetKey("jobs", "k", b"1", ABSENT),
                GetKey("jobs", "k"),
                Append("s", EVENT, stamp=0),
                DeleteKey("other", "old"),
                GetKey("other", "old"),
                SetKey("jobs", "k", b"2"),
                GetKey("jobs", "k"),
            ]
        )
        assert result.stopped is None
        assert len(result.results) == 7
        first, second = commit_at(result, 0), commit_at(result, 5)
        assert first.applied
        assert result.results[1] == Entry("k", b"1", first.revision), "a GetKey sees the operations before it"
        appended = result.results[2]
        assert isinstance(appended, Appended)
        assert appended.id is not None
        assert appended.refusal is None
        assert commit_at(result, 3).applied
        assert result.results[4] is None
        assert second.previous == Entry("k", b"1", first.revision)
        assert second.revision > first.revision
        assert result.results[6] == Entry("k", b"2", second.revision)
        assert await jobs.get("k") == Entry("k", b"2", second.revision)
        (event,) = await stream.range()
        assert (event.id, event.payload, event.name) == (appended.id, b"payload", "event")
        assert event.stamp == first.revision, "the event carries the revision of the write its stamp names"

    @promise("COMMIT")
    async def test_an_empty_commit(self, kit: Kit) -> None:
        result = await (await kit.namespace()).commit([])
        assert result == CommitResult((), None)

    @promise("COMMIT", "M2", capability="atomic_commit")
    async def test_a_condition_that_does_not_hold_stops(self, kit: Kit) -> None:
        namespace = await kit.namespace()
        m, stream = await kit.map(), await kit.stream()
        await stream.create()
        held = await m.set("held", b"x")
        result = await namespace.commit(
            [
                SetKey("m", "before", b"1"),
                SetKey("m", "held", b"y", ABSENT),
                SetKey("m", "after", b"1"),
                Append("s", EVENT),
            ]
        )
        assert result.stopped == 1
        assert len(result.results) == 2, "results up to and including the operation that stopped the commit"
        refused = commit_at(result, 1)
        assert not refused.applied
        assert refused.previous == Entry("held", b"x", held.revision)
        assert await m.get("held") == Entry("held", b"x", held.revision)
        assert await m.get("after") is None, "an operation after the one that stopped the commit was applied"
        assert await stream.length() == 0, "an append after the one that stopped the commit was applied"
        before = await m.get("before")
        if (await kit.capabilities()).atomic_commit:
            assert before is None, "atomic_commit is declared, yet an operation of a stopped commit was applied"
        else:
            assert before == Entry("before", b"1", commit_at(result, 0).revision), "what was before the stop is applied"

    @promise("COMMIT")
    async def test_every_kind_of_refusal_stops(self, kit: Kit) -> None:
        namespace = await kit.namespace()
        m = await kit.map()
        full, sealed = await kit.stream("full"), await kit.stream("sealed")
        await full.create(StreamConfig(max_length=1))
        await full.append(EVENT)
        await sealed.create()
        await sealed.seal()
        cases: list[tuple[Op, object]] = [
            (DeleteKey("m", "absent", REVISION(7)), None),
            (Append("missing", EVENT), Appended(None, Refusal.MISSING)),
            (Append("sealed", EVENT), Appended(None, Refusal.MISSING)),
            (Append("full", EVENT), Appended(None, Refusal.FULL)),
        ]
        for operation, answer in cases:
            result = await namespace.commit([operation, SetKey("m", "after", b"x")])
            assert result.stopped == 0, f"{operation} did not stop the commit: {result}"
            if answer is not None:
                assert result.results == (answer,)
            assert await m.get("after") is None
        assert not await (await kit.stream("missing")).exists()
        assert await full.length() == 1
        assert await sealed.length() == 0

    @promise("COMMIT")
    async def test_optional_operations_are_skipped(self, kit: Kit) -> None:
        namespace = await kit.namespace()
        m = await kit.map()
        held = await m.set("held", b"x")
        result = await namespace.commit(
            [
                SetKey("m", "held", b"y", ABSENT, optional=True),
                DeleteKey("m", "absent", REVISION(held.revision), optional=True),
                Append("missing", EVENT, optional=True),
                SetKey("m", "after", b"1"),
            ]
        )
        assert result.stopped is None
        assert len(result.results) == 4
        assert not commit_at(result, 0).applied
        assert not commit_at(result, 1).applied
        assert result.results[2] == Appended(None, Refusal.MISSING)
        assert commit_at(result, 3).applied
        assert (await m.get("held")) == Entry("held", b"x", held.revision)
        assert await m.get("after") is not None

    @promise("COMMIT", "S2")
    async def test_an_ack_in_a_commit(self, kit: Kit) -> None:
        namespace = await kit.namespace()
        stream = await kit.stream()
        m = await kit.map()
        sink = await stream.sink("workers", ack_wait=kit.ack_wait)
        await stream.append(EVENT)
        (delivery,) = await kit.within(5, sink.receive(), "a delivery", "S2")
        result = await namespace.commit([Ack("no receipt at all"), Ack(delivery.receipt), SetKey("m", "k", b"v")])
        assert result.stopped is None, "an invalid receipt never stops a commit"
        assert result.results[0] is False
        assert result.results[1] is True
        assert commit_at(result, 2).applied
        assert await m.get("k") is not None
        assert await sink.ack([delivery.receipt]) == [False], "an event is acked once"
        assert await stream.length() == 0

    @promise("COMMIT", "S2")
    async def test_an_ack_before_the_stop(self, kit: Kit) -> None:
        namespace = await kit.namespace()
        stream, m = await kit.stream(), await kit.map()
        await m.set("held", b"x")
        sink = await stream.sink("workers", ack_wait=kit.ack_wait)
        await stream.append(EVENT)
        (delivery,) = await kit.within(5, sink.receive(), "a delivery", "S2")
        result = await namespace.commit([SetKey("m", "held", b"y", ABSENT), Ack(delivery.receipt)])
        assert result.stopped == 0
        (again,) = await kit.within(3 * kit.ack_wait + 5, sink.receive(), "the event whose ack was not reached", "S2")
        assert again.event.id == delivery.event.id
        assert await sink.ack([again.receipt]) == [True]

    @promise("M1", "COMMIT")
    async def test_watches_see_commits_in_order(self, kit: Kit) -> None:
        namespace = await kit.namespace()
        m = await kit.map()
        follower = await Follower.start(kit, m)
        result = await namespace.commit(
            [SetKey("m", "a", b"1"), SetKey("m", "b", b"2"), DeleteKey("m", "a"), SetKey("m", "a", b"3")]
        )
        await follower.reached(commit_at(result, 3).revision)
        assert follower.replica == {"a": b"3", "b": b"2"}
        await follower.aclose()

    @promise("M2", "COMMIT")
    async def test_one_commit_wins_and_rings_once(self, kit: Kit) -> None:
        stream = await kit.stream()
        await stream.create()
        namespaces = [await kit.namespace(await kit.backend()) for _ in range(4)]
        for round_number in range(10):
            key = f"k{round_number}"
            results = await kit.gather(
                *(
                    space.commit(
                        [
                            SetKey("m", key, b"%d" % n, ABSENT),
                            Append("s", NewEvent("won", f"{key}:{n}".encode()), stamp=0),
                        ]
                    )
                    for n, space in enumerate(namespaces)
                )
            )
            winners = [n for n, result in enumerate(results) if result.stopped is None]
            if len(winners) != 1:
                raise PromiseBroken("M2", f"{len(winners)} of {len(results)} commits on ABSENT were applied: {results}")
            rung = [name for name in payloads(await stream.range(limit=1000)) if name.startswith(f"{key}:")]
            assert rung == [f"{key}:{winners[0]}"], f"{winners[0]} won, the events are {rung}"

    @promise("COMMIT", capability="atomic_commit")
    async def test_no_commit_reads_half_of_another(self, kit: Kit) -> None:
        namespaces = [await kit.namespace(await kit.backend()) for _ in range(2)]
        for name in ("left", "right"):
            await kit.map(name)
        if not (await kit.capabilities()).atomic_commit:
            return  # without the capability nothing is promised here, and nothing can refuse
        writing = True

        async def write() -> None:
            for number in range(100):
                value = b"%d" % number
                await namespaces[0].commit([SetKey("left", "k", value), SetKey("right", "k", value)])

        async def read() -> None:
            while writing:
                result = await namespaces[1].commit([GetKey("left", "k"), GetKey("right", "k")])
                left, right = (entry.value if isinstance(entry, Entry) else None for entry in result.results)
                if left != right:
                    raise PromiseBroken("COMMIT", f"a commit was seen by halves: left is {left!r}, right is {right!r}")

        reader = kit.spawn(read())
        await kit.within(20, write(), "100 commits")
        writing = False
        await reader

    @promise("COMMIT", "LIMITS")
    async def test_as_many_operations_as_declared(self, kit: Kit) -> None:
        namespace = await kit.namespace()
        m = await kit.map()
        most = (await kit.capabilities()).max_commit_ops
        assert most >= 64
        asked = min(most, 256)
        result = await namespace.commit([SetKey("m", f"k{number}", b"v") for number in range(asked)])
        assert result.stopped is None
        assert all(commit_at(result, number).applied for number in range(asked))
        if most < 100_000:
            with pytest.raises(PayloadTooLarge):
                await namespace.commit([SetKey("m", f"x{number}", b"v") for number in range(most + 1)])
            assert await m.get("x0") is None, "a commit with too many operations was applied in part"

    @promise("COMMIT", "LIMITS", "M5")
    async def test_a_bad_operation_refuses_the_whole_commit(self, kit: Kit) -> None:
        namespace = await kit.namespace()
        m = await kit.map()
        limits = await kit.capabilities()
        too_long = "k" * (limits.max_key_bytes + 1)
        with pytest.raises(InvalidKeyError):
            await namespace.commit([SetKey("m", "a", b"1"), SetKey("m", too_long, b"v")])
        with pytest.raises(InvalidKeyError):
            await namespace.commit([SetKey("m", "a", b"1"), GetKey("", "k")])
        if limits.max_value_bytes < 2**26:
            with pytest.raises(PayloadTooLarge):
                await namespace.commit([SetKey("m", "a", b"1"), SetKey("m", "b", bytes(limits.max_value_bytes + 1))])
        assert await m.get("a") is None, "part of a commit with an invalid operation was sent"

    @promise("M5")
    async def test_settle_returns_when_nothing_is_unknown(self, kit: Kit) -> None:
        namespace = await kit.namespace()
        await kit.within(10, namespace.settle(), "settle without unknown outcomes", "M4")
        await (await kit.map()).set("k", b"v")
        await kit.within(10, namespace.settle(), "settle without unknown outcomes", "M4")
