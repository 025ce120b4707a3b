"""The checker is checked: textbook histories, and every verdict against brute force."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st

from corepool_conformance.linearizability import (
    NEVER,
    Call,
    Kind,
    Seen,
    find_violation,
    is_linearizable,
    render,
    shorten_history,
)

NOTHING = Seen(None)


def get(client: int, began: int, ended: int, value: bytes | None) -> Call:
    return Call(client=client, kind=Kind.GET, key="k", began=began, ended=ended, seen=Seen(value))


def put(
    client: int,
    began: int,
    ended: int,
    value: bytes | None,
    *,
    over: bytes | None = None,
    expect: Seen | None = None,
    applied: bool = True,
    revision: int = 0,
) -> Call:
    """A set; its revision is its value's number unless given."""
    number = revision or (int(value[1:]) if value and applied else 0)
    return Call(
        client=client,
        kind=Kind.WRITE,
        key="k",
        began=began,
        ended=ended,
        value=value,
        expect=expect,
        applied=applied,
        revision=number,
        seen=Seen(over),
    )


def unknown(client: int, began: int, value: bytes | None, expect: Seen | None = None, ended: int = NEVER) -> Call:
    return Call(
        client=client, kind=Kind.WRITE, key="k", began=began, ended=ended, value=value, expect=expect, known=False
    )


def test_sequential_histories() -> None:
    good = [put(0, 1, 2, b"v1"), get(1, 3, 4, b"v1"), put(0, 5, 6, b"v2", over=b"v1"), get(1, 7, 8, b"v2")]
    assert is_linearizable(good)
    assert not is_linearizable([*good, get(1, 9, 10, b"v1")]), "a stale read"
    assert is_linearizable([])


def test_a_read_beside_a_write_may_see_either() -> None:
    for seen in (b"v1", b"v2"):
        assert is_linearizable([put(0, 1, 2, b"v1"), put(0, 3, 10, b"v2", over=b"v1"), get(1, 4, 5, seen)])
    back = [put(0, 1, 2, b"v1"), put(0, 3, 10, b"v2", over=b"v1"), get(1, 4, 5, b"v2"), get(1, 6, 7, b"v1")]
    assert not is_linearizable(back), "once the new value was read the old one is gone, although the write still runs"


def test_a_lost_update() -> None:
    lost = [
        put(0, 1, 2, b"v1"),
        put(0, 3, 6, b"v2", over=b"v1", expect=Seen(b"v1")),
        put(1, 4, 7, b"v3", over=b"v1", expect=Seen(b"v1")),
    ]
    assert not is_linearizable(lost)
    assert is_linearizable([*lost[:2], attrs.evolve(lost[2], applied=False, revision=0, seen=Seen(b"v2"))])


def test_two_winners_on_absent() -> None:
    assert not is_linearizable([put(0, 1, 4, b"v1", expect=NOTHING), put(1, 2, 5, b"v2", expect=NOTHING)])


def test_unknown_outcomes_happen_late_or_never() -> None:
    assert is_linearizable([unknown(0, 1, b"v1"), get(1, 2, 3, None), get(1, 4, 5, None)])
    assert is_linearizable([unknown(0, 1, b"v1"), get(1, 2, 3, None), get(1, 4, 5, b"v1")])
    assert not is_linearizable([unknown(0, 1, b"v1"), get(1, 2, 3, b"v1"), get(1, 4, 5, None)])
    assert not is_linearizable([get(1, 1, 2, b"v1"), unknown(0, 3, b"v1")]), "not before it was called"


def test_what_was_settled_cannot_happen_later() -> None:
    settled = unknown(0, 1, b"v1", ended=4)
    assert is_linearizable([settled, get(1, 2, 3, None), get(1, 5, 6, None)])
    assert not is_linearizable([settled, get(1, 5, 6, None), get(1, 7, 8, b"v1")])


def test_revisions_must_grow() -> None:
    assert not is_linearizable([put(0, 1, 2, b"v5"), put(0, 3, 4, b"v6", over=b"v5", revision=3)])


def test_a_clear_joins_the_keys() -> None:
    def on(key: str, call: Call) -> Call:
        return attrs.evolve(call, key=key)

    filled = [on("a", put(0, 1, 2, b"v1")), on("b", put(0, 3, 4, b"v2"))]
    clear = Call(client=0, kind=Kind.CLEAR, key="", began=5, ended=10, applied=True, revision=3)
    whole = [*filled, clear, on("a", get(1, 6, 7, None)), on("b", get(1, 8, 9, None))]
    half = [*filled, clear, on("a", get(1, 6, 7, None)), on("b", get(1, 8, 9, b"v2"))]
    assert is_linearizable(whole)
    assert not is_linearizable(half)


def test_a_violation_is_cut_to_what_it_needs() -> None:
    noise = [put(0, 10 * n, 10 * n + 1, b"v%d" % n, over=b"v%d" % (n - 1)) for n in range(2, 40)]
    reads = [get(1, 10 * n + 2, 10 * n + 3, b"v%d" % n) for n in range(2, 40)]
    stale = get(2, 85, 86, b"v1")
    found = find_violation([put(0, 1, 2, b"v1"), *noise, *reads, stale])
    assert found is not None
    assert stale in found
    assert all(call.began <= 86 for call in found), "what came after the violation is cut off"
    assert [call for call in found if call.kind is Kind.GET] == [stale], "reads that do not matter are left out"
    assert any("client 2" in line for line in render(found))


# --- against brute force ---------------------------------------------------------------------------------------------


def _possible(order: Sequence[Call]) -> bool:
    """Whether the calls, made one after another in this order, return what they returned."""
    value: bytes | None = None
    for call in order:
        if call.kind is Kind.GET:
            if call.seen.value != value:
                return False
            continue
        holds = call.expect is None or call.expect.value == value
        if call.known and (call.seen.value != value or holds != call.applied):
            return False
        if holds:
            value = call.value
    return True


def brute_force(calls: Sequence[Call]) -> bool:
    known = [call for call in calls if call.known]
    maybe = [call for call in calls if not call.known]
    for size in range(len(maybe) + 1):
        for happened in itertools.combinations(maybe, size):
            for order in itertools.permutations([*known, *happened]):
                in_time = all(
                    not later.ended < earlier.began for at, earlier in enumerate(order) for later in order[at + 1 :]
                )
                if in_time and _possible(order):
                    return True
    return False


@st.composite
def histories(draw: st.DrawFn) -> list[Call]:
    """Calls with unique values, arbitrary times and arbitrary claims: good ones and bad ones."""
    count = draw(st.integers(1, 5))
    times = draw(st.permutations(range(2 * count)))
    values: list[bytes | None] = [None, *(b"v%d" % number for number in range(1, count + 1))]
    calls: list[Call] = []
    for number in range(count):
        began, ended = sorted(times[2 * number : 2 * number + 2])
        seen = Seen(draw(st.sampled_from(values)))
        if draw(st.booleans()):
            calls.append(Call(client=number, kind=Kind.GET, key="k", began=began, ended=ended, seen=seen))
            continue
        value = draw(st.sampled_from([None, b"v%d" % (number + 1)]))
        expect = draw(st.one_of(st.none(), st.sampled_from(values).map(Seen)))
        if draw(st.integers(0, 3)) == 0:
            late = draw(st.booleans())
            calls.append(unknown(number, began, value, expect, NEVER if late else ended))
            continue
        applied = draw(st.booleans())
        calls.append(
            Call(
                client=number,
                kind=Kind.WRITE,
                key="k",
                began=began,
                ended=ended,
                value=value,
                expect=expect,
                applied=applied,
                seen=seen,
            )
        )
    return calls


@settings(max_examples=400, deadline=None)
@given(histories())
def test_verdicts_agree_with_brute_force(calls: list[Call]) -> None:
    assert is_linearizable(calls) == brute_force(calls)


@settings(max_examples=200, deadline=None)
@given(histories())
def test_a_shortened_history_is_still_bad(calls: list[Call]) -> None:
    if not brute_force(calls):
        short = shorten_history(calls)
        assert not brute_force(short)
        assert len(short) <= len(calls)
