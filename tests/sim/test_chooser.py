"""Decisions, replay tokens, and their reduction."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corepool_memory.sim.chooser import Deviations, SeededChooser, SparseChooser
from corepool_memory.sim.errors import TokenError
from corepool_memory.sim.minimise import minimise
from corepool_memory.sim.token import ReplayToken, decode_token, encode_token, scenario_hash


def _draw(chooser: SeededChooser | SparseChooser) -> list[int]:
    return [chooser.choose(10, f"label {number % 3}") for number in range(60)]


def test_a_seed_decides() -> None:
    assert _draw(SeededChooser(1)) == _draw(SeededChooser(1))
    assert _draw(SeededChooser(1)) != _draw(SeededChooser(2))


def test_one_more_decision_of_a_label_moves_no_other() -> None:
    one, other = SeededChooser(7), SeededChooser(7)
    other.choose(10, "b")
    assert [one.choose(10, "a") for _ in range(20)] == [other.choose(10, "a") for _ in range(20)]


def test_what_was_recorded_replays() -> None:
    seeded = SeededChooser(3)
    drawn = _draw(seeded)
    replayed = SparseChooser(seeded.recorded)
    assert _draw(replayed) == drawn
    assert replayed.recorded == seeded.recorded
    assert 0 not in seeded.recorded.values()


def test_without_deviations_everything_is_the_default() -> None:
    chooser = SparseChooser({})
    assert set(_draw(chooser)) == {0}
    assert not chooser.chance(1.0, "fault")


def test_a_deviation_wins_over_a_probability_that_is_gone() -> None:
    chooser = SparseChooser({("fault", 1): 1})
    assert [chooser.chance(0.0, "fault") for _ in range(3)] == [False, True, False]


def test_a_deviation_out_of_range_is_clamped() -> None:
    assert SparseChooser({("a", 0): 9}).choose(3, "a") == 2


def test_nothing_is_decided_after_the_end() -> None:
    chooser = SeededChooser(1)
    chooser.seal()
    with pytest.raises(AssertionError, match="after the run ended"):
        _draw(chooser)


def test_nothing_to_choose_from() -> None:
    with pytest.raises(ValueError, match="0 possibilities"):
        SeededChooser(1).choose(0, "a")


_decisions = st.dictionaries(st.tuples(st.text(max_size=12), st.integers(0, 10**6)), st.integers(1, 1000), max_size=40)


@given(_decisions | st.none(), st.integers(-(2**63), 2**63 - 1))
def test_a_token_comes_back_as_it_was(deviations: Deviations | None, seed: int) -> None:
    token = ReplayToken(scenario_hash("here"), seed, deviations)
    text = encode_token(token)
    assert text.isascii()
    assert set(text) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
    assert decode_token(text) == token


def test_every_damage_is_refused() -> None:
    text = encode_token(ReplayToken(scenario_hash("x"), 5, {("net:a>", 3): 2, ("lost:b", 0): 1}))
    damaged = [text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :] for at in range(len(text))]
    damaged += [
        text[:-1],
        text + "A",
        text + text[5:],
        text.upper(),
        "",
        "cps2.",
        "cps9." + text[5:],
        text + " ",
        "cps2.é",
    ]
    for wrong in damaged:
        with pytest.raises(TokenError):
            decode_token(wrong)


def test_a_token_that_is_not_canonical_is_refused() -> None:
    import hashlib
    import zlib

    import msgspec

    for content in (
        ["s", 1, [["b", [0, 1]], ["a", [0, 1]]]],  # labels out of order
        ["s", 1, [["a", [0]]]],  # an ordinal without a value
        ["s", 1, [["a", [0, 0]]]],  # a default is not a deviation
        ["s", 1, [["a", [-1, 1]]]],
        ["s", "1", None],
        ["s", 1, None, "more"],
        {"s": 1},
    ):
        packed = msgspec.msgpack.encode(content)
        body = hashlib.blake2b(packed, digest_size=4).digest() + zlib.compress(packed)
        with pytest.raises(TokenError):
            decode_token("cps2." + base64.urlsafe_b64encode(body).rstrip(b"=").decode())


def test_a_bomb_is_refused() -> None:
    import zlib

    body = b"\0\0\0\0" + zlib.compress(b"\0" * (1 << 26), 9)
    with pytest.raises(TokenError):
        decode_token("cps2." + base64.urlsafe_b64encode(body).rstrip(b"=").decode())


def test_two_of_two_hundred_are_found() -> None:
    deviations = {(f"label {number % 7}", number): 1 + number % 5 for number in range(200)}
    needed = [("label 4", 11), ("label 2", 142)]
    replays = 0

    def replay(subset: Deviations) -> Deviations | None:
        nonlocal replays
        replays += 1
        return subset if all(name in subset for name in needed) else None

    assert minimise(deviations, replay) == dict.fromkeys(needed, 1)
    assert replays < 80


def test_nothing_is_found_if_it_fails_without_any() -> None:
    assert minimise({("a", 0): 1}, lambda subset: subset) == {}


def test_values_shrink() -> None:
    def replay(subset: Deviations) -> Deviations | None:
        return subset if subset.get(("a", 0), 0) >= 37 else None

    assert minimise({("a", 0): 900}, replay) == {("a", 0): 37}


def test_the_best_so_far_when_replays_run_out() -> None:
    deviations = {("a", number): 1 for number in range(64)}
    found = minimise(deviations, lambda subset: subset if ("a", 63) in subset else None, most_replays=4)
    assert ("a", 63) in found
    assert len(found) < 64


def test_a_fault_among_thousands_of_latencies_is_found_at_once() -> None:
    """Kinds go first: one of them at a time, where chunks of all decisions would each hold a bit of everything."""
    deviations = {(f"net:node-{number % 5}>", number): 1 for number in range(5000)}
    deviations |= {("slow:node-2", 9): 4, ("notice:node-2", 1): 1, ("late:node-1", 0): 2}
    deviations |= {("power:node-3", 700): 1, ("reset:node-1", 4): 1, ("scenario:client", 2): 3}
    tried: list[int] = []

    def replay(subset: Deviations) -> Deviations | None:
        tried.append(len(subset))
        return subset if ("power:node-3", 700) in subset else None

    assert minimise(deviations, replay) == {("power:node-3", 700): 1}
    assert tried[:2] == [0, 3], "nothing at all; then everything but the latencies"
    assert len(tried) <= 8


def test_what_a_replay_did_not_come_to_decide_is_dropped() -> None:
    """A run that fails sooner has not come as far: what was left of its decisions has decided nothing."""
    deviations = {("a", number): 1 for number in range(1000)}
    tried: list[int] = []

    def replay(subset: Deviations) -> Deviations | None:
        tried.append(len(subset))
        if ("a", 2) not in subset:
            return None
        return {name: value for name, value in subset.items() if name[1] < 10}

    assert minimise(deviations, replay) == {("a", 2): 1}
    assert tried[:2] == [0, 500]
    assert max(tried[2:]) < 10
