"""A store that lost acknowledged writes (R13)."""

from __future__ import annotations

from typing import Any

from corepool.driver import OLDEST, Change, Delivery, Entry, NewEvent, Snapshot, StreamConfig
from corepool_memory.server import Server


def append(server: Server, name: str) -> str:
    return server.streams("ns").append("s", NewEvent(name, b"")) or ""


def test_revisions_go_back_and_every_watch_is_told(world: Any) -> None:
    server: Server = world.server
    maps = server.maps("ns")
    maps.set("m", "kept", b"1")
    checkpoint = server.checkpoint()
    seen: dict[str, list[Any]] = {"m": [], "later": [], "empty": []}
    for name, events in seen.items():
        maps.watch(name, events.append)
    maps.set("m", "kept", b"2")
    maps.set("later", "lost", b"1")
    server.rollback(checkpoint)
    assert seen["m"][-1] == Snapshot(1, (Entry("kept", b"1", 1),), generation=1)
    assert seen["later"][-1] == Snapshot(0, (), generation=1)
    assert seen["empty"][-1] == Snapshot(0, (), generation=1)
    assert maps.set("m", "kept", b"3").revision == 2, "a number that was given before, to a write that is lost"
    assert seen["m"][-1] == Change(2, "kept", b"3")
    late: list[Any] = []
    maps.watch("m", late.append)
    assert late[0].generation == 1
    server.rollback(checkpoint)
    assert late[-1].generation == 2, "a checkpoint can be gone back to again"
    assert server.maps("ns").entries("m") == [Entry("kept", b"1", 1)]


def test_a_checkpoint_is_not_touched_by_what_follows(world: Any) -> None:
    server: Server = world.server
    server.maps("ns").set("m", "a", b"1")
    append(server, "1")
    checkpoint = server.checkpoint()
    for _ in range(2):
        server.maps("ns").clear("m")
        server.streams("ns").destroy("s")
        server.maps("new").set("m", "a", b"1")
        server.rollback(checkpoint)
        assert server.contents() == {"ns": (["m"], ["s"])}
        server.maps("ns").set("m", "b", b"2")
        append(server, "2")
        server.rollback(checkpoint)
        assert [entry.key for entry in server.maps("ns").entries("m")] == ["a"]
        assert server.streams("ns").length("s") == 1


def test_streams_go_back_but_ids_do_not(world: Any) -> None:
    server: Server = world.server
    streams = server.streams("ns")
    append(server, "kept")
    checkpoint = server.checkpoint()
    read: list[str] = []
    streams.read("s", OLDEST, 99, lambda batch: read.extend(event.name for event in batch.events))
    lost = append(server, "lost")
    streams.seal("s")
    server.rollback(checkpoint)
    assert append(server, "new") > lost, "or a reader behind the lost event would miss the new one"
    assert read == ["kept", "lost", "new"]
    assert [event.name for event in streams.range("s", "", 9)] == ["kept", "new"]


def test_sinks_go_back_with_their_members_of_now(world: Any) -> None:
    server: Server = world.server
    streams = server.streams("ns")
    streams.create("s", StreamConfig())
    got: list[Delivery] = []
    streams.attach("s", "g", "m", OLDEST, 10.0, got.extend)
    for name in ("out", "acked later"):
        append(server, name)
    streams.want("s", "g", "m", 1)
    world.time.advance(4)
    checkpoint = server.checkpoint()
    streams.want("s", "g", "m", 1)
    early, late = got
    assert streams.ack_any(late.receipt)
    assert streams.ack_any(early.receipt)
    server.rollback(checkpoint)
    assert not streams.ack_any(late.receipt), "the delivery itself was lost, and its receipt is not given again"
    streams.want("s", "g", "m", 9)
    assert [(item.event.name, item.attempt) for item in got[2:]] == [("acked later", 1)]
    assert got[2].receipt != late.receipt
    streams.want("s", "g", "m", 9)
    world.time.advance(6.5)
    assert [(item.event.name, item.attempt) for item in got[3:]] == [("out", 2)], "due when it was due before"
    server.rollback(checkpoint)
    assert streams.ack_any(early.receipt), "what was out at the checkpoint can be acked again"


def test_a_sink_that_was_lost_starts_anew_for_those_who_listen(world: Any) -> None:
    server: Server = world.server
    checkpoint = server.checkpoint()
    streams = server.streams("ns")
    got: list[Delivery] = []
    streams.create("s", StreamConfig())
    streams.attach("s", "g", "m", OLDEST, 10.0, got.extend)
    streams.want("s", "g", "m", 1)
    server.rollback(checkpoint)
    assert server.contents() == {}
    append(server, "1")
    assert [item.event.name for item in got] == ["1"]


def test_waiting_members_are_served_after_a_rollback(world: Any) -> None:
    server: Server = world.server
    streams = server.streams("ns")
    append(server, "1")
    checkpoint = server.checkpoint()
    got: list[Delivery] = []
    streams.attach("s", "g", "m", OLDEST, 10.0, got.extend)
    streams.want("s", "g", "m", 1)
    streams.ack_any(got[0].receipt)
    streams.want("s", "g", "m", 1)
    server.rollback(checkpoint)
    assert [item.event.name for item in got] == ["1", "1"]
