"""The maps of the server: conditions, revisions, watchers."""

from __future__ import annotations

from typing import Any

import pytest

from corepool.driver import (
    ABSENT,
    ALWAYS,
    REVISION,
    AppendValues,
    Change,
    Cleared,
    Commit,
    Delete,
    Entry,
    Increment,
    RemoveValues,
    Set,
    Snapshot,
    encode_list,
)
from corepool.errors import PayloadTooLarge, WireError
from corepool_memory.server_maps import MapSpace

LIMIT = 1 << 20


@pytest.fixture
def maps() -> MapSpace:
    return MapSpace(0)


def test_a_set_says_what_stood_there(maps: MapSpace) -> None:
    assert maps.set("m", "k", b"1") == Commit(True, 1, None)
    assert maps.set("m", "k", b"2") == Commit(True, 2, Entry("k", b"1", 1))
    assert maps.get("m", "k") == Entry("k", b"2", 2)


@pytest.mark.parametrize(
    ("when", "on_absent", "on_present"),
    [(ALWAYS, True, True), (ABSENT, True, False), (REVISION(1), False, True), (REVISION(99), False, False)],
)
def test_conditions(when: Any, on_absent: bool, on_present: bool) -> None:
    for key, expected, old in (("present", on_present, b"old"), ("absent", on_absent, None)):
        for setting in (True, False):
            maps = MapSpace(0)
            maps.set("m", "present", b"old")
            commit = maps.set("m", key, b"new", when) if setting else maps.delete("m", key, when)
            assert commit.applied is expected
            assert (commit.previous.value if commit.previous else None) == old
            if not expected:
                assert [entry.value for entry in maps.entries("m")] == [b"old"]


def test_a_refusal_names_a_revision_that_shows_it(maps: MapSpace) -> None:
    seen: list[Any] = []
    maps.watch("m", seen.append)
    maps.set("m", "k", b"1")
    maps.set("m", "other", b"1")
    refused = maps.set("m", "k", b"2", ABSENT)
    assert refused == Commit(False, 2, Entry("k", b"1", 1))
    assert seen[-1].revision >= refused.revision
    assert MapSpace(0).set("m", "k", b"1", REVISION(5)) == Commit(False, 0, None), "there is nothing to wait for"


def test_deleting_an_absent_key_changes_nothing(maps: MapSpace) -> None:
    seen: list[Any] = []
    maps.set("m", "k", b"1")
    maps.watch("m", seen.append)
    assert maps.delete("m", "absent") == Commit(True, 1, None)
    assert maps.delete("nothing", "absent") == Commit(True, 0, None)
    assert len(seen) == 1


def test_a_clear_is_one_step_and_has_conditions_of_its_own(maps: MapSpace) -> None:
    for key in ("a", "b"):
        maps.set("m", key, b"1")
    maps.set("other", "c", b"1")
    seen: list[Any] = []
    maps.watch("m", seen.append)
    assert maps.clear("m", REVISION(1)) == Commit(False, 2, None)
    assert maps.clear("m", ABSENT) == Commit(False, 2, None)
    assert maps.clear("m", REVISION(2)) == Commit(True, 4, None)
    assert maps.clear("m", ABSENT) == Commit(True, 4, None), "an empty map is cleared already"
    assert seen[1:] == [Cleared(4)]
    assert maps.get("other", "c") is not None


def test_writes_of_apply_are_independent(maps: MapSpace) -> None:
    maps.set("m", "k", b"1")
    commits = maps.apply("m", [Set("k", b"x", ABSENT), Delete("k"), Set("k", b"y", ABSENT)])
    assert [commit.applied for commit in commits] == [False, True, True]


def test_watchers_see_one_order_and_the_snapshot_first(maps: MapSpace) -> None:
    early: list[Any] = []
    late: list[Any] = []
    maps.watch("m", early.append)
    maps.set("m", "a", b"1")
    maps.watch("m", late.append)
    maps.delete("m", "a")
    maps.set("elsewhere", "a", b"1")
    assert early == [Snapshot(0, ()), Change(1, "a", b"1"), Change(2, "a", None)]
    assert late == [Snapshot(1, (Entry("a", b"1", 1),)), Change(2, "a", None)]


def test_a_watcher_may_leave_while_it_is_told(maps: MapSpace) -> None:
    told: list[str] = []
    detach: list[Any] = []

    def leaver(event: Any) -> None:
        told.append("leaver")
        if isinstance(event, Change):
            detach[0]()

    detach.append(maps.watch("m", leaver))
    maps.watch("m", lambda event: told.append("stayer"))
    maps.set("m", "a", b"1")
    maps.set("m", "a", b"2")
    assert told == ["leaver", "stayer", "leaver", "stayer", "stayer"]


def test_revisions_go_on_after_destroy_and_nothing_is_left(maps: MapSpace) -> None:
    maps.set("m", "a", b"1")
    maps.set("m", "b", b"1")
    seen: list[Any] = []
    detach = maps.watch("m", seen.append)
    maps.destroy("m")
    assert seen[-1] == Cleared(3)
    detach()
    assert maps.names() == []
    assert maps.watcher_count() == 0
    assert not maps._maps, "a destroyed map leaves no state behind"
    assert maps.set("m", "a", b"1").revision > 3


def test_a_watch_of_a_forgotten_map_never_goes_back(maps: MapSpace) -> None:
    maps.set("m", "a", b"1")
    maps.destroy("m")
    maps.set("other", "a", b"1")
    seen: list[Any] = []
    maps.watch("m", seen.append)
    assert seen[0].revision >= 2, "a replica that saw the destruction must not be sent back to revision 0"
    refused = maps.set("m", "a", b"1", REVISION(1))
    assert refused.revision <= seen[-1].revision, "and a replica that is up to date can show every refusal"


def test_a_refusal_on_an_emptied_map_does_not_name_a_revision_its_watch_never_reaches(maps: MapSpace) -> None:
    seen: list[Any] = []
    maps.set("m", "a", b"1")
    maps.watch("m", seen.append)
    maps.destroy("m")
    for name in ("x", "y"):  # the largest forgotten revision is beyond what the watch of m saw
        maps.set(name, "a", b"1")
        maps.destroy(name)
    assert maps.set("m", "a", b"1", REVISION(1)).revision <= seen[-1].revision


def test_value_operations(maps: MapSpace) -> None:
    assert maps.update("m", "n", Increment(5), LIMIT).value == b"5"
    assert maps.update("m", "n", Increment(-7), LIMIT).value == b"-2"
    first = maps.update("m", "l", AppendValues((b"a", b"b")), LIMIT)
    same = maps.update("m", "l", AppendValues((b"a",), unique=True), LIMIT)
    assert same == type(first)(first.value, first.revision, Entry("l", first.value, first.revision)), "nothing written"
    assert maps.update("m", "l", RemoveValues((b"a", b"b")), LIMIT).value == encode_list([])
    assert maps.get("m", "l") is not None, "an empty list stays"


def test_a_value_operation_that_fails_changes_nothing(maps: MapSpace) -> None:
    maps.set("m", "k", b"not a counter")
    before = maps.revision
    with pytest.raises(WireError):
        maps.update("m", "k", Increment(1), LIMIT)
    with pytest.raises(PayloadTooLarge, match="several keys"):
        maps.update("m", "l", AppendValues((b"x" * 20,)), 10)
    maps.set("m", "big", b"%d" % (2**63 - 1))
    with pytest.raises(OverflowError):
        maps.update("m", "big", Increment(1), LIMIT)
    assert maps.revision == before + 1
    assert maps.get("m", "l") is None


def test_scan_and_get_many(maps: MapSpace) -> None:
    for key in ("a1", "b1", "a2"):
        maps.set("m", key, key.encode())
    assert [entry.key for entry in maps.entries("m", "a")] == ["a1", "a2"]
    assert list(maps.get_many("m", ["b1", "nothing", "a1"])) == ["b1", "a1"]
    assert maps.get_many("nothing", ["a"]) == {}
    assert maps.entries("nothing") == []
