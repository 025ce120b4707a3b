"""When the demo may call itself sound."""

from __future__ import annotations

import attrs
import pytest

from corepool.cli.demo.story import Summary

SOUND = Summary(
    backend="memory://demo",
    jobs=10,
    moved=3,
    taken_over=2,
    lost=0,
    doubled=0,
    stale_tokens=0,
    wrong_digests=0,
    left_over=0,
    errors=[],
    seconds=1.0,
)


def test_nothing_lost_and_jobs_really_moved_is_sound() -> None:
    assert SOUND.sound


@pytest.mark.parametrize("field", ["lost", "doubled", "stale_tokens", "wrong_digests", "left_over"])
def test_one_broken_promise_is_not_sound(field: str) -> None:
    assert not attrs.evolve(SOUND, **{field: 1}).sound


def test_a_failed_call_is_not_sound() -> None:
    assert not attrs.evolve(SOUND, errors=["k: JobStartError: no"]).sound


@pytest.mark.parametrize("field", ["moved", "taken_over"])
def test_a_demo_in_which_nothing_happened_is_not_sound(field: str) -> None:
    assert not attrs.evolve(SOUND, **{field: 0}).sound
