"""The demo's book must be able to accuse: each kind of misbehaviour, planted, is counted."""

from __future__ import annotations

from typing import Any

import pytest

from corepool.cli.demo.ledger import Ledger, Mark, Tally


def book(*marks: tuple[str, str, str, int, float]) -> Ledger:
    ledger = Ledger()
    for what, key, node, token, at in marks:
        ledger.record(Mark(what, key, node, (0, token), at))
    return ledger


def tally(**expected: int) -> Tally:
    nothing = dict.fromkeys(["moved", "taken_over", "lost", "doubled", "stale_tokens"], 0)
    return Tally(**nothing | expected)


def test_a_job_that_stays_where_it_is_counts_as_nothing() -> None:
    assert book(("start", "k", "a", 1, 1.0)).tally(["k"]) == tally()


def test_a_hand_over_is_a_move() -> None:
    ledger = book(("start", "k", "a", 1, 1.0), ("stop", "k", "a", 1, 2.0), ("start", "k", "b", 2, 3.0))
    assert ledger.tally(["k"]) == tally(moved=1)
    assert ledger.owners() == {"k": ["b"]}
    assert ledger.load() == {"b": 1}


def test_a_start_after_a_crash_is_a_take_over() -> None:
    ledger = book(("start", "k", "a", 1, 1.0))
    assert ledger.died("a", 2.0) == 1
    assert ledger.tally(["k"]) == tally(lost=1)
    ledger.record(Mark("start", "k", "b", (0, 2), 3.0))
    assert ledger.tally(["k"]) == tally(taken_over=1)


def test_two_owners_at_once_are_doubled_even_when_the_marks_come_late() -> None:
    in_order = [("start", "k", "a", 1, 1.0), ("start", "k", "b", 2, 2.0), ("stop", "k", "a", 1, 3.0)]
    late = [in_order[1], in_order[0], in_order[2]]
    assert book(*in_order).tally(["k"]) == tally(doubled=1)
    assert book(*late).tally(["k"]) == tally(doubled=1)


def test_an_owner_that_never_stopped_doubles_the_next() -> None:
    ledger = book(("start", "k", "a", 1, 1.0), ("start", "k", "b", 2, 2.0))
    assert ledger.tally(["k"]) == tally(doubled=1)
    assert ledger.owners() == {"k": ["a", "b"]}


def test_a_start_in_the_same_instant_as_the_stop_is_no_overlap() -> None:
    ledger = book(("start", "k", "a", 1, 1.0), ("stop", "k", "a", 1, 2.0), ("start", "k", "b", 2, 2.0))
    assert ledger.tally(["k"]) == tally(moved=1)


def test_a_token_that_does_not_grow_is_stale() -> None:
    ledger = book(("start", "k", "a", 5, 1.0), ("stop", "k", "a", 5, 2.0), ("start", "k", "b", 4, 3.0))
    assert ledger.tally(["k"]) == tally(moved=1, stale_tokens=1)


def test_an_admitted_job_without_an_owner_is_lost() -> None:
    ledger = book(("start", "k", "a", 1, 1.0), ("stop", "k", "a", 1, 2.0))
    assert ledger.tally(["k", "never started"]) == tally(lost=2)


def test_the_dead_write_nothing() -> None:
    ledger = book(("start", "k", "a", 1, 1.0))
    ledger.died("a", 2.0)
    ledger.record(Mark("start", "other", "a", (0, 9), 3.0))
    assert ledger.owners() == {}


def test_a_stop_ends_the_ownership_of_its_own_token_alone() -> None:
    ledger = book(("start", "k", "a", 1, 1.0), ("start", "k", "a", 2, 2.0), ("stop", "k", "a", 1, 3.0))
    assert ledger.owners() == {"k": ["a"]}
    assert ledger.tally(["k"]) == tally(doubled=1)


def test_refreshes_are_kept_by_time() -> None:
    ledger = Ledger()
    ledger.record(Mark("refresh", "k", "a", (0, 1), 1.0, "old"))
    ledger.record(Mark("refresh", "k", "a", (0, 1), 2.0, "new"))
    assert ledger.refreshed_since(2.0) == {"k": "new"}
    assert ledger.refreshed_since(2.1) == {}


def test_marks_survive_a_pipe() -> None:
    mark = Mark("start", "päth/with\nnewline", "a", (3, 2**63), 12.5, "d")
    line = mark.to_line()
    assert line.count(b"\n") == 1
    assert Mark.from_line(line) == mark


@pytest.mark.parametrize("line", [b"", b"ready\n", b"[]\n", b'["start"]\n', b"{}\n"])
def test_what_is_no_mark_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        Mark.from_line(line)


def test_an_unknown_kind_of_mark_is_refused() -> None:
    unknown: Any = "dance"
    with pytest.raises(ValueError, match="dance"):
        Ledger().record(Mark(unknown, "k", "a", (0, 1), 1.0))
