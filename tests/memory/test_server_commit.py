"""Batches: decided in order on what the ones before leave behind, and all or nothing."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any, cast

import msgspec
import pytest

from corepool.driver import (
    ABSENT,
    ALWAYS,
    NEWEST,
    OLDEST,
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
    OpResult,
    Refusal,
    SetKey,
    StreamConfig,
)
from corepool_memory.server import Server

EVENT = NewEvent("e", b"p")


def commit(server: Server, *ops: Op) -> CommitResult:
    return server.commit("ns", ops)


def state(server: Server) -> Any:
    """All that a batch may change."""
    maps, streams = server.maps("ns"), server.streams("ns")
    return (
        {name: maps.entries(name) for name in sorted(maps.names())},
        {name: streams.range(name, "", 999) for name in sorted(streams.names())},
        list(streams.receipts.current),
    )


@pytest.fixture
def server(world: Any) -> Server:
    server: Server = world.server
    server.streams("ns").create("s", StreamConfig())
    server.streams("ns").create("small", StreamConfig(max_length=1))
    return server


def test_operations_see_what_the_ones_before_left(server: Server) -> None:
    result = commit(
        server,
        SetKey("m", "k", b"1", ABSENT),
        GetKey("m", "k"),
        SetKey("m", "k", b"2", ABSENT, optional=True),
        SetKey("m", "k", b"3", REVISION(1)),
        DeleteKey("m", "k", REVISION(2)),
        GetKey("m", "k"),
        SetKey("m", "k", b"4", ABSENT),
    )
    first, third = Entry("k", b"1", 1), Entry("k", b"3", 2)
    assert result == CommitResult(
        (
            Commit(True, 1, None),
            first,
            Commit(False, 1, first),
            Commit(True, 2, first),
            Commit(True, 3, third),
            None,
            Commit(True, 4, None),
        )
    )
    assert server.maps("ns").get("m", "k") == Entry("k", b"4", 4)


def test_an_event_carries_the_revision_it_was_appended_with(server: Server) -> None:
    commit(
        server,
        SetKey("m", "k", b"1"),
        DeleteKey("m", "k"),
        SetKey("m", "k", b"1", REVISION(77), optional=True),
        *(Append("s", EVENT, stamp=index) for index in (1, 0, 2)),
        Append("s", EVENT),
    )
    assert [event.stamp for event in server.streams("ns").range("s", "", 9)] == [2, 1, None, None]


@pytest.mark.parametrize(
    ("stopper", "result"),
    [
        (SetKey("m", "there", b"x", ABSENT), Commit(False, 1, Entry("there", b"1", 1))),
        (SetKey("m", "absent", b"x", REVISION(9)), Commit(False, 1, None)),
        (DeleteKey("m", "there", REVISION(9)), Commit(False, 1, Entry("there", b"1", 1))),
        (Append("missing", EVENT), Appended(None, Refusal.MISSING)),
        (Append("sealed", EVENT), Appended(None, Refusal.MISSING)),
        (Append("full", EVENT), Appended(None, Refusal.FULL)),
    ],
)
def test_a_batch_that_stops_changes_nothing_and_tells_nobody(server: Server, stopper: Op, result: OpResult) -> None:
    maps, streams = server.maps("ns"), server.streams("ns")
    maps.set("m", "there", b"1")
    for name in ("sealed", "full"):
        streams.create(name, StreamConfig(max_length=1))
        streams.append(name, EVENT)
    streams.seal("sealed")
    deliveries: list[Any] = []
    streams.attach("s", "g", "member", OLDEST, 9.0, deliveries.extend)
    streams.append("s", EVENT)
    streams.want("s", "g", "member", 1)
    receipt = deliveries.pop().receipt
    streams.want("s", "g", "member", 1)
    seen: list[Any] = []
    maps.watch("m", seen.append)
    streams.read("s", NEWEST, 99, seen.append)
    before, told = state(server), len(seen)
    ops: list[Op] = [SetKey("m", "new", b"1"), DeleteKey("m", "there", optional=True), Append("s", EVENT), Ack(receipt)]
    if isinstance(stopper, SetKey | DeleteKey):  # it must meet the entry that it was made for
        ops[1] = GetKey("m", "there")
    stopped = commit(server, *ops, stopper, SetKey("m", "later", b"1"))
    assert stopped.stopped == 4
    assert stopped.results[4:] == (result,)
    assert state(server) == before
    assert (len(seen), deliveries) == (told, [])
    optional: Any = msgspec.structs.replace(cast("Any", stopper), optional=True)
    went_on = commit(server, *ops, optional, SetKey("m", "later", b"1"))
    assert went_on.stopped is None
    assert maps.get("m", "later") is not None
    assert [event.revision for event in seen[1:] if hasattr(event, "revision")] == sorted(
        item.revision for item in went_on.results if isinstance(item, Commit) and item.applied
    )
    assert len(deliveries) == 1


def test_a_refusal_that_the_batch_made_itself_names_no_revision(server: Server) -> None:
    server.maps("ns").set("m", "other", b"1")
    stopped = commit(server, SetKey("m", "k", b"1"), SetKey("m", "k", b"2", ABSENT))
    assert stopped.stopped == 1
    assert stopped.results[1] == Commit(False, 0, Entry("k", b"1", 2)), "no watch will ever see that revision"


def test_room_is_counted_as_the_batch_goes(server: Server) -> None:
    full = commit(server, Append("small", EVENT), Append("small", EVENT))
    assert full == CommitResult((full.results[0], Appended(None, Refusal.FULL)), 1)
    assert server.streams("ns").length("small") == 0


def test_an_ack_makes_room_for_an_append_behind_it(server: Server) -> None:
    streams, got = server.streams("ns"), list[Any]()
    for sink in ("one", "two"):
        streams.attach("small", sink, "m", OLDEST, 9.0, got.extend)
    streams.append("small", EVENT)
    for sink in ("one", "two"):
        streams.want("small", sink, "m", 1)
    one, two = (delivery.receipt for delivery in got)
    assert commit(server, Ack(one), Append("small", EVENT)).stopped == 1, "the other sink still needs the event"
    result = commit(server, Ack(one), Ack(two), Ack(two), Ack("nonsense"), Append("small", EVENT))
    assert result.results[:4] == (True, True, False, False)
    assert result.stopped is None
    assert streams.length("small") == 1


def test_an_empty_batch_is_fine(server: Server) -> None:
    assert commit(server) == CommitResult(())


def test_a_watch_sees_the_operations_in_order(server: Server) -> None:
    seen: list[Any] = []
    server.maps("ns").watch("m", seen.append)
    commit(server, SetKey("m", "a", b"1"), SetKey("other", "x", b"1"), DeleteKey("m", "a"), DeleteKey("m", "a"))
    assert [(event.revision, event.value) for event in seen[1:]] == [(1, b"1"), (3, None)]


def test_one_by_one_comes_to_the_same(server: Server) -> None:
    """A batch that does not stop equals its operations one by one: what a backend without the capability does."""
    chance = random.Random(11)
    streams = server.streams("ns")
    streams.destroy("s")
    streams.create("s", StreamConfig(max_length=8))
    streams.attach("s", "g", "m", OLDEST, 1e6, lambda batch: None)
    stops = 0
    for _ in range(600):
        ops = _random_ops(chance, server)
        before, checkpoint = state(server), server.checkpoint()
        single = _singly(server, ops)
        after_single = _without_ids(state(server))
        server.rollback(checkpoint)
        assert state(server) == before
        whole = server.commit("ns", ops)
        assert whole.stopped == single.stopped
        if whole.stopped is None:
            assert _without_ids(whole.results) == _without_ids(single.results)
            assert _without_ids(state(server)) == after_single
        else:
            stops += 1
            assert state(server) == before
        for count in (1, 0):
            streams.want("s", "g", "m", count)
    assert 100 < stops < 500


def _random_ops(chance: random.Random, server: Server) -> list[Op]:
    ops: list[Op] = []
    for index in range(chance.randint(1, 6)):
        key = chance.choice("abc")
        entry = server.maps("ns").get("m", key)
        when = chance.choice([ALWAYS, ALWAYS, ABSENT, REVISION(entry.revision) if entry else ABSENT])
        stamps = [at for at, op in enumerate(ops) if isinstance(op, SetKey | DeleteKey)]
        optional = chance.random() < 0.5
        receipts = list(server.streams("ns").receipts.current)
        kind = chance.randrange(5)
        if kind == 0:
            ops.append(SetKey("m", key, b"%d" % index, when, optional))
        elif kind == 1:
            ops.append(DeleteKey("m", key, when, optional))
        elif kind == 2:
            ops.append(GetKey("m", key))
        elif kind == 3:
            ops.append(Append("s", EVENT, chance.choice([None, *stamps]), optional))
        else:
            ops.append(Ack(chance.choice([*receipts, "nonsense"])))
    return ops


def _singly(server: Server, ops: Sequence[Op]) -> CommitResult:
    results: list[OpResult] = []
    for index, op in enumerate(ops):
        outcome = server.commit("ns", (op,), tuple(results))
        results.extend(outcome.results)
        if outcome.stopped is not None:
            return CommitResult(tuple(results), index)
    return CommitResult(tuple(results))


def _without_ids(value: Any) -> Any:
    """Event ids do not go back with a rollback, so two runs cannot have the same."""
    return re.sub(r"id='\d+'", "id", repr(value))
