"""The kit's ledger accuses a driver of two commits at one revision if, and only if, there were two."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest

from corepool.driver import Change, Cleared, Commit, Entry, Snapshot
from corepool_conformance import PromiseBroken
from corepool_conformance.waiting import Ledger

Note = Callable[[Ledger], Any]


def put(revision: int, key: str = "k") -> Note:
    return lambda ledger: ledger.note(key, b"v", Commit(True, revision, None))


def gone(revision: int, key: str = "k") -> Note:
    return lambda ledger: ledger.note(key, None, Commit(True, revision, Entry(key, b"v", revision - 1)))


def cleared(revision: int) -> Note:
    return lambda ledger: ledger.note_clear(Commit(True, revision, None))


def noted(*notes: Note) -> Ledger:
    ledger = Ledger()
    for note in notes:
        note(ledger)
    return ledger


START = Snapshot(revision=0, entries=(), generation=0)


def test_a_clear_that_found_nothing_shares_the_revision_of_the_delete_that_emptied_the_map() -> None:
    for notes in permutations([put(1), gone(2), cleared(2), cleared(2), put(3)]):
        ledger = noted(*notes)
        ledger.check([START, Change(1, "k", b"v"), Change(2, "k", None), Change(3, "k", b"v")])
        assert [ledger.state(revision) for revision in (1, 2, 3)] == [{"k": b"v"}, {}, {"k": b"v"}]


def test_clears_that_found_nothing_share_the_revision_of_the_clear_that_emptied_the_map() -> None:
    noted(put(1), cleared(2), cleared(2)).check([START, Change(1, "k", b"v"), Cleared(2)])


@pytest.mark.parametrize(
    ("one", "two"),
    [(cleared(2), put(2)), (put(2), gone(2)), (put(2), put(2, "other")), (gone(2), gone(2, "other"))],
    ids=["clear and set", "set and delete", "two sets", "two deletes"],
)
def test_two_commits_at_one_revision_are_told_in_either_order(one: Note, two: Note) -> None:
    for notes in ((one, two), (two, one)):
        with pytest.raises(PromiseBroken, match=r"(?s)^M1 .*two commits have revision 2"):
            noted(*notes)


def test_a_clear_beside_a_delete_that_left_something_is_a_commit_of_its_own() -> None:
    for notes in permutations([put(1), put(2, "other"), gone(3), cleared(3)]):
        ledger = noted(*notes)
        with pytest.raises(PromiseBroken, match=r"(?s)^M1 .*two commits have revision 3"):
            ledger.check([START])
