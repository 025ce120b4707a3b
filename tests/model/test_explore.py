"""The explorer itself, on a toy: two processes that increment a counter by read and write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pytest

from tests.model.explore import Model, Step, explore, livelock


class Counter(NamedTuple):
    value: int = 0
    read: tuple[int, int] = (-1, -1)
    done: tuple[bool, bool] = (False, False)
    spins: int = 0


class Increments(Model[Counter]):
    """With "lock" off both may read before either writes; with "end" off a spinning process never ends."""

    name = "increments"

    def initial(self) -> Iterable[Counter]:
        yield Counter()

    def steps(self, state: Counter) -> Iterator[Step[Counter]]:
        for me, name in enumerate("PQ"):
            other = 1 - me
            if state.done[me]:
                continue
            if state.read[me] < 0:
                if "lock" not in self.off and state.read[other] >= 0:
                    continue
                read = (state.value, state.read[1]) if me == 0 else (state.read[0], state.value)
                yield Step(name, f"reads {state.value}", state._replace(read=read))
            else:
                read = (-1, state.read[1]) if me == 0 else (state.read[0], -1)
                done = (True, state.done[1]) if me == 0 else (state.done[0], True)
                yield Step(name, "writes", state._replace(value=state.read[me] + 1, read=read, done=done))
        if "end" in self.off and all(state.done):
            yield Step("P", "spins", state._replace(spins=1 - state.spins))

    def broken(self, state: Counter) -> str | None:
        return "too large" if state.value > 2 else None

    def broken_at_rest(self, state: Counter) -> str | None:
        return None if state.value == 2 else "an increment is lost"

    def landmarks(self, state: Counter) -> Iterable[str]:
        return [f"value {state.value}"]

    def show(self, state: Counter) -> str:
        return f"value {state.value}"


def test_a_correct_model_is_explored_completely() -> None:
    result = explore(Increments(), limit=1000, landmarks=True)
    assert result.violation is None
    assert result.complete
    assert (result.depth, result.at_rest) == (5, 1)
    assert result.landmarks == {"value 0", "value 1", "value 2"}


def test_the_shortest_story_is_told() -> None:
    violation = explore(Increments(["lock"]), limit=1000).violation
    assert violation is not None
    assert violation.invariant == "an increment is lost"
    assert violation.story == ("P: reads 0", "Q: reads 0", "P: writes", "Q: writes")
    assert violation.pictures == ("value 0", "value 0", "value 0", "value 1", "value 1")
    assert "4. Q: writes" in str(violation)


def test_other_invariants_can_be_passed_over() -> None:
    assert explore(Increments(["lock"]), limit=1000, only="too large").violation is None


def test_the_budget_of_states_ends_an_exploration() -> None:
    result = explore(Increments(), limit=2)
    assert not result.complete
    assert result.violation is None


def test_a_livelock_is_found() -> None:
    assert livelock(Increments(), limit=1000) is None
    stuck = livelock(Increments(["end"]), limit=1000)
    assert stuck is not None
    assert stuck.story == ()


def test_a_livelock_check_never_guesses() -> None:
    with pytest.raises(ValueError, match="more than 2 states"):
        livelock(Increments(), limit=2)
