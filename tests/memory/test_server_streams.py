"""The streams of the server: order, fullness, sealing, readers."""

from __future__ import annotations

import random
from typing import Any

import pytest

from corepool.driver import (
    NEWEST,
    OLDEST,
    After,
    NewEvent,
    Since,
    StreamConfig,
    StreamKind,
)
from corepool.errors import InvalidOptionError, StreamFull, StreamSealed
from corepool_memory.server_streams import Batch, EventLog, StreamSpace

LOG = StreamKind.LOG


def event(name: str) -> NewEvent:
    return NewEvent(name, b"")


def names(events: Any) -> list[str]:
    return [item.name for item in events]


class Reader:
    """What a reader was pushed."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def __call__(self, batch: Batch) -> None:
        self.batches.append(batch)

    @property
    def names(self) -> list[str]:
        return [item.name for batch in self.batches for item in batch.events]


@pytest.fixture
def streams(world: Any) -> StreamSpace:
    streams: StreamSpace = world.server.streams("ns")
    return streams


def test_ids_increase_as_strings_also_across_destroy(streams: StreamSpace) -> None:
    ids = [streams.append("s", event(str(n))) for n in range(12)]
    streams.destroy("s")
    ids.append(streams.append("s", event("again")))
    assert all(isinstance(item, str) for item in ids)
    assert ids == sorted(set(ids))  # type: ignore[type-var]


def test_timestamps_never_go_back(streams: StreamSpace, world: Any) -> None:
    streams.append("s", event("a"))
    world.time.offset -= 3600
    streams.append("s", event("b"))
    first, second = streams.range("s", "", 10)
    assert second.timestamp >= first.timestamp


def test_a_work_stream_rejects_and_a_log_drops(streams: StreamSpace) -> None:
    streams.create("work", StreamConfig(max_length=2))
    streams.create("log", StreamConfig(LOG, 2))
    for name in "ab":
        streams.append("work", event(name))
        streams.append("log", event(name))
    with pytest.raises(StreamFull, match="max_length"):
        streams.append("work", event("c"))
    streams.append("log", event("c"))
    assert names(streams.range("work", "", 10)) == ["a", "b"]
    assert names(streams.range("log", "", 10)) == ["b", "c"]


def test_create_keeps_the_configuration_that_is_there(streams: StreamSpace) -> None:
    assert streams.create("s", StreamConfig(max_length=1))
    assert not streams.create("s", StreamConfig())
    streams.append("s", event("a"))
    with pytest.raises(StreamFull):
        streams.append("s", event("b"))


def test_only_if_exists_makes_nothing(streams: StreamSpace) -> None:
    assert streams.append("s", event("a"), only_if_exists=True) is None
    assert not streams.exists("s")
    streams.append("s", event("a"))
    assert streams.append("s", event("b"), only_if_exists=True) is not None
    streams.destroy("s")
    assert streams.append("s", event("c"), only_if_exists=True) is None
    assert streams.length("s") == 0


def test_a_sealed_stream_takes_nothing_and_keeps_what_it_has(streams: StreamSpace) -> None:
    streams.append("s", event("a"))
    streams.seal("s")
    assert streams.exists("s")
    assert streams.append("s", event("b"), only_if_exists=True) is None
    with pytest.raises(StreamSealed):
        streams.append("s", event("b"))
    assert not streams.create("s", StreamConfig())
    assert names(streams.range("s", "", 10)) == ["a"]
    streams.destroy("s")
    assert streams.append("s", event("b")) is not None, "the next life is not sealed"
    streams.seal("absent")
    assert not streams.exists("absent")


def test_remove_counts_what_was_there(streams: StreamSpace) -> None:
    ids = [streams.append("s", event(str(n))) or "" for n in range(3)]
    assert streams.remove("s", [ids[1], ids[1], "nothing"]) == 1
    assert names(streams.range("s", "", 10)) == ["0", "2"]
    assert names(streams.range("s", ids[1], 10)) == ["2"], "a removed id is still a position"
    assert streams.remove("absent", ids) == 0


def test_starts(streams: StreamSpace, world: Any) -> None:
    readers = {name: Reader() for name in ("oldest", "newest", "after", "since", "future")}
    a = streams.append("s", event("a")) or ""
    world.time.now += 10
    middle = world.time.wall() - 5
    streams.append("s", event("b"))
    streams.read("s", OLDEST, 99, readers["oldest"])
    streams.read("s", NEWEST, 99, readers["newest"])
    streams.read("s", After(a), 99, readers["after"])
    streams.read("s", Since(middle), 99, readers["since"])
    streams.read("s", Since(world.time.wall() + 5), 99, readers["future"])
    streams.append("s", event("c"))
    world.time.now += 10
    streams.append("s", event("d"))
    assert readers["oldest"].names == ["a", "b", "c", "d"]
    assert readers["newest"].names == ["c", "d"]
    assert readers["after"].names == ["b", "c", "d"]
    assert readers["since"].names == ["b", "c", "d"]
    assert readers["future"].names == ["d"]


def test_a_reader_is_told_where_it_stands(streams: StreamSpace) -> None:
    reader, future = Reader(), Reader()
    a = streams.append("s", event("a"))
    streams.read("s", NEWEST, 99, reader)
    streams.read("s", Since(9e9), 99, future)
    assert reader.batches == [Batch(a, ())]
    assert future.batches == [Batch(None, ())], "a position would lose the timestamp it waits for"


def test_a_reader_is_pushed_no_more_than_its_window(streams: StreamSpace) -> None:
    backlog, live = Reader(), Reader()
    streams.read("s", OLDEST, 2, live)
    for name in "abc":
        streams.append("s", event(name))
    streams.read("s", OLDEST, 2, backlog)
    assert live.names == ["a", "b"]
    assert backlog.names == ["a", "b"]
    assert streams.listener_count() == 0


def test_a_reader_outlives_the_stream_and_makes_none(streams: StreamSpace) -> None:
    reader = Reader()
    detach = streams.read("s", OLDEST, 99, reader)
    assert not streams.exists("s")
    streams.append("s", event("a"))
    streams.destroy("s")
    assert not streams.exists("s")
    streams.append("s", event("b"))
    assert reader.names == ["a", "b"]
    streams.destroy("s")
    detach()
    assert streams.names() == []
    assert not streams._streams, "nothing is left"


def test_the_log_against_a_plain_list() -> None:
    chance = random.Random(4)
    log, model = EventLog(), dict[str, Any]()
    streams_ids = (f"{number:04d}" for number in range(10_000))
    for _ in range(4000):
        if chance.random() < 0.55 or not model:
            item = type("E", (), {"id": next(streams_ids)})()
            log.add(item)
            model[item.id] = item
        else:
            keys = list(model)
            victim = keys[0] if chance.random() < 0.5 else chance.choice(keys)
            assert log.remove(victim)
            assert not log.remove(victim)
            del model[victim]
        at = f"{chance.randrange(2500):04d}"
        assert log.after(at, 3) == [item for key, item in model.items() if key > at][:3]
        if model:
            assert log.oldest() == next(iter(model))
    assert len(log._order) <= 2 * len(model) + 65, "removed events do not pile up"


def test_members_agree_on_ack_wait(streams: StreamSpace) -> None:
    streams.create("s", StreamConfig())
    streams.join("s", "g", OLDEST, 30.0)
    streams.join("s", "g", OLDEST, 30.0)
    with pytest.raises(InvalidOptionError, match="30 s, not 5 s"):
        streams.join("s", "g", OLDEST, 5.0)
    streams.join("absent", "g", OLDEST, 30.0)
    assert not streams.exists("absent")
