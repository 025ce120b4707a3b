"""The sinks of the server: who gets what, and what comes back when."""

from __future__ import annotations

from typing import Any

import pytest

from corepool.driver import NEWEST, OLDEST, Delivery, NewEvent, Since, Start, StreamConfig, StreamKind
from corepool_memory.server_streams import StreamSpace

ACK_WAIT = 10.0


class Member:
    """A member that takes what it is pushed."""

    def __init__(self, streams: StreamSpace, name: str, sink: str = "g", start: Start = OLDEST) -> None:
        self.streams, self.name, self.sink = streams, name, sink
        self.got: list[Delivery] = []
        self.detach = streams.attach("s", sink, name, start, ACK_WAIT, self.got.extend)

    def want(self, count: int = 1) -> list[Delivery]:
        before = len(self.got)
        self.streams.want("s", self.sink, self.name, count)
        return self.got[before:]

    def one(self) -> Delivery:
        (delivery,) = self.want()
        return delivery


@pytest.fixture
def streams(world: Any) -> StreamSpace:
    streams: StreamSpace = world.server.streams("ns")
    streams.create("s", StreamConfig())
    return streams


def put(streams: StreamSpace, *names: str) -> None:
    for name in names:
        streams.append("s", NewEvent(name, b""))


def test_each_event_goes_to_one_member_and_only_to_one_that_waits(streams: StreamSpace) -> None:
    a, b = Member(streams, "a"), Member(streams, "b")
    put(streams, "1", "2", "3")
    assert a.got == b.got == []
    assert [item.event.name for item in a.want(2)] == ["1", "2"]
    assert [item.event.name for item in b.want(5)] == ["3"]
    put(streams, "4")
    assert [len(a.got), len(b.got)] == [2, 1], "who got something must ask again"


def test_the_longest_wait_is_served_first(streams: StreamSpace) -> None:
    members = [Member(streams, name) for name in "abc"]
    for member in (members[2], members[0], members[1]):
        member.want()
    put(streams, "1", "2", "3")
    assert [member.got[0].event.name for member in members] == ["2", "3", "1"]


def test_demand_can_be_withdrawn(streams: StreamSpace) -> None:
    member = Member(streams, "a")
    member.want()
    member.want(0)
    put(streams, "1")
    assert member.got == []


def test_an_ack_ends_it_and_only_the_current_receipt_counts(streams: StreamSpace, world: Any) -> None:
    put(streams, "1")
    member = Member(streams, "a")
    first = member.one()
    world.time.advance(ACK_WAIT - 1)
    assert member.want() == []
    world.time.advance(2)
    second = member.got[-1]
    assert (first.attempt, second.attempt) == (1, 2)
    assert second.event == first.event
    assert streams.ack("s", "g", [first.receipt]) == [False]
    assert not streams.nack("s", "g", first.receipt, 0)
    assert not streams.extend("s", "g", first.receipt)
    assert streams.ack("s", "g", [second.receipt, second.receipt, "nonsense"]) == [True, False, False]
    world.time.advance(10 * ACK_WAIT)
    assert member.want() == []
    assert streams.length("s") == 0
    assert streams.receipts.current == {}


def test_a_receipt_belongs_to_one_sink(streams: StreamSpace) -> None:
    put(streams, "1")
    receipt = Member(streams, "a", "g").one().receipt
    Member(streams, "b", "other")
    assert streams.ack("s", "other", [receipt]) == [False]
    assert streams.ack("s", "nothing", [receipt]) == [False]
    assert streams.ack_any(receipt)
    assert not streams.ack_any(receipt)


def test_nack_comes_back_at_once_or_after_its_delay(streams: StreamSpace, world: Any) -> None:
    put(streams, "1")
    member = Member(streams, "a")
    assert streams.nack("s", "g", member.one().receipt, 0.0)
    again = member.one()
    assert again.attempt == 2
    assert streams.nack("s", "g", again.receipt, 3.0)
    assert streams.ack("s", "g", [again.receipt]) == [False], "a receipt that was given back is void"
    member.want()
    world.time.advance(2.9)
    assert len(member.got) == 2
    world.time.advance(0.2)
    assert member.got[-1].attempt == 3


def test_extend_starts_the_time_afresh(streams: StreamSpace, world: Any) -> None:
    put(streams, "1")
    member, other = Member(streams, "a"), Member(streams, "b")
    receipt = member.one().receipt
    other.want()
    for _ in range(5):
        world.time.advance(ACK_WAIT * 0.8)
        assert streams.extend("s", "g", receipt)
    assert other.got == []
    world.time.advance(ACK_WAIT * 1.1)
    assert [item.attempt for item in other.got] == [2]


def test_what_comes_back_goes_before_what_is_fresh_and_in_order(streams: StreamSpace) -> None:
    put(streams, "1", "2", "3", "4")
    member = Member(streams, "a")
    one, two, _ = member.want(3)
    streams.nack("s", "g", two.receipt, 0)
    streams.nack("s", "g", one.receipt, 0)
    assert [item.event.name for item in member.want(9)] == ["1", "2", "4"]


def test_a_member_that_vanished_leaves_nothing_behind(streams: StreamSpace, world: Any) -> None:
    put(streams, "1", "2")
    gone, heir = Member(streams, "a"), Member(streams, "b")
    gone.want(2)
    gone.want()
    gone.detach()
    gone.detach()
    heir.want(2)
    assert heir.got == []
    world.time.advance(ACK_WAIT + 1)
    assert [item.event.name for item in heir.got] == ["1", "2"]
    state = streams.state("s")
    assert state is not None
    assert state.sinks["g"].members == ["b"]
    assert gone.got[2:] == []


def test_one_that_hangs_without_anybodys_knowledge_swallows_one_batch_at_most(streams: StreamSpace, world: Any) -> None:
    hung, live = Member(streams, "hung"), Member(streams, "live")
    hung.want()
    put(streams, "1", "2", "3")
    assert streams.ack("s", "g", [item.receipt for item in live.want(3)]) == [True, True]
    live.want(3)
    world.time.advance(ACK_WAIT + 1)
    assert [item.event.name for item in live.got] == ["2", "3", "1"]
    assert len(hung.got) == 1


def test_a_work_stream_keeps_what_another_sink_still_needs(streams: StreamSpace) -> None:
    first, second = Member(streams, "a", "one"), Member(streams, "b", "two")
    put(streams, "1")
    assert streams.ack_any(first.one().receipt)
    assert streams.length("s") == 1, "the other sink was not even given it"
    assert streams.ack_any(second.one().receipt)
    assert streams.length("s") == 0


def test_an_ack_does_not_take_from_a_log(streams: StreamSpace) -> None:
    streams.destroy("s")
    streams.create("s", StreamConfig(StreamKind.LOG, 2))
    member = Member(streams, "a")
    put(streams, "1", "2")
    one, two = member.want(2)
    assert streams.ack_any(one.receipt)
    assert streams.length("s") == 2
    put(streams, "3", "4")
    assert not streams.ack_any(two.receipt), "a log dropped it"
    assert [item.event.name for item in member.want(9)] == ["3", "4"]


def test_a_removed_event_is_not_delivered_again(streams: StreamSpace, world: Any) -> None:
    put(streams, "1", "2")
    member = Member(streams, "a")
    one = member.one()
    streams.remove("s", [one.event.id])
    assert not streams.ack_any(one.receipt)
    world.time.advance(ACK_WAIT + 1)
    assert [item.event.name for item in member.want(9)] == ["2"]


def test_newest_skips_what_is_there_and_only_the_first_start_counts(streams: StreamSpace) -> None:
    put(streams, "old")
    member = Member(streams, "a", start=NEWEST)
    later = Member(streams, "b", start=OLDEST)
    assert later.want() == []
    put(streams, "new")
    assert [item.event.name for item in later.got] == ["new"]
    assert member.want() == []


def test_a_sink_that_starts_at_a_time_passes_over_what_is_older(streams: StreamSpace, world: Any) -> None:
    put(streams, "old")
    member = Member(streams, "a", start=Since(world.time.wall() + 5))
    assert member.want(9) == []
    put(streams, "still too old")
    world.time.now += 10
    put(streams, "new")
    assert [item.event.name for item in member.got] == ["new"]


def test_a_sink_with_members_waits_for_the_next_life(streams: StreamSpace, world: Any) -> None:
    put(streams, "1", "2")
    member = Member(streams, "a", start=NEWEST)
    Member(streams, "b", "forgotten").detach()
    old = Member(streams, "c", "other").one()
    member.want()
    streams.destroy("s")
    assert not streams.exists("s")
    assert not streams.ack_any(old.receipt)
    world.time.advance(5 * ACK_WAIT)
    assert not streams.exists("s")
    put(streams, "3")
    assert [item.event.name for item in member.got] == ["3"]
    state = streams.state("s")
    assert state is not None
    assert list(state.sinks) == ["g", "other"]
    assert member.got[0].attempt == 1


def test_a_sink_waits_for_a_stream_that_never_was_and_leaves_no_trace(streams: StreamSpace) -> None:
    streams.destroy("s")
    member = Member(streams, "a", start=NEWEST)
    member.want()
    assert not streams.exists("s")
    member.detach()
    assert not streams._streams
    member = Member(streams, "a", start=NEWEST)
    member.want()
    put(streams, "1")
    assert [item.event.name for item in member.got] == ["1"]


def test_a_sealed_stream_is_drained(streams: StreamSpace) -> None:
    put(streams, "1")
    streams.seal("s")
    member = Member(streams, "a")
    assert streams.ack_any(member.one().receipt)
    assert streams.length("s") == 0


def test_one_timer_and_no_pile_of_what_is_acked(streams: StreamSpace, world: Any) -> None:
    member = Member(streams, "a")
    for number in range(1000):
        put(streams, str(number))
        assert streams.ack_any(member.one().receipt)
    state = streams.state("s")
    assert state is not None
    assert len(state.sinks["g"]._due) <= 65
    assert world.time.armed == 1
    world.time.advance(2 * ACK_WAIT)
    assert world.time.armed == 0, "nothing is out, so nothing is timed"


def test_a_shorter_nack_moves_the_timer_forward(streams: StreamSpace, world: Any) -> None:
    put(streams, "1", "2")
    member = Member(streams, "a")
    _, two = member.want(2)
    streams.nack("s", "g", two.receipt, 1.0)
    member.want()
    world.time.advance(1.1)
    assert [item.event.name for item in member.got] == ["1", "2", "2"]
    assert world.time.armed == 1


def test_timers_move_to_another_loop(streams: StreamSpace, world: Any) -> None:
    put(streams, "1")
    member = Member(streams, "a")
    member.one()
    member.want()
    other = type(world.time)()
    world.server.move(other.call_later)
    assert world.time.armed == 0
    assert other.armed == 1
    world.time.now += ACK_WAIT
    other.advance(ACK_WAIT)
    assert member.got[-1].attempt == 2
