"""Conditions on values, lists and counters: made of reads and conditional writes here, or by the backend's own operation."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corepool.driver import ABSENT, REVISION, Commit, When
from corepool.errors import OutcomeUnknown, WireError
from corepool.rmap import JSON
from corepool.rmap.loops import Backoff

if TYPE_CHECKING:
    from tests.rmap.conftest import FakeStore

    Opened = Callable[..., Any]


@pytest.fixture(params=[False, True], ids=["by conditional writes", "by the backend"])
def value_ops(request: pytest.FixtureRequest) -> bool:
    return request.param


async def test_a_stale_replica_refuses_nothing(store: FakeStore, opened: Opened) -> None:
    """The replica says "old", the store says "new": a condition on "new" must hold."""
    rmap = await opened()
    await rmap.set_and_wait("k", "old")
    store.holding = True
    store.put("k", b"new")
    assert rmap["k"] == "old"
    assert await rmap.test_and_set("k", "new", "newer")
    store.put("k", b"new")
    assert await rmap.test_and_delete("k", "new")
    store.put("k", b"new")
    assert not await rmap.test_and_set("k", "old", "x")
    assert store.entries["k"].value == b"new"


async def test_a_stale_replica_writes_nothing_over_a_newer_value(store: FakeStore, opened: Opened) -> None:
    rmap = await opened()
    await rmap.set_and_wait("k", "old")
    store.holding = True
    store.put("k", b"new")
    refused = await rmap.test_and_set("k", "old", "mine")
    assert not refused
    assert refused.previous == "new"
    assert store.entries["k"].value == b"new"


async def test_a_fresh_replica_saves_the_read(store: FakeStore, opened: Opened) -> None:
    rmap = await opened()
    await rmap.set_and_wait("k", "v")
    store.calls.clear()
    assert await rmap.test_and_set("k", "v", "w")
    assert store.calls == ["set"]


async def test_an_equal_value_written_again_meanwhile_is_retried(store: FakeStore, opened: Opened) -> None:
    """The revision moved, the value did not: the condition is one on the value."""
    rmap = await opened()
    await rmap.set_and_wait("k", "v")
    store.holding = True
    store.put("k", b"v")
    assert await rmap.test_and_set("k", "v", "w")
    assert store.entries["k"].value == b"w"


async def test_absent_expected(store: FakeStore, opened: Opened) -> None:
    rmap = await opened()
    assert await rmap.test_and_set("k", None, "v")
    refused = await rmap.test_and_set("k", None, "w")
    assert (refused.applied, refused.previous) == (False, "v")
    assert not await rmap.test_and_delete("nothing here", "v")
    assert not await rmap.test_and_set("nothing here", "v", "w")


async def test_values_are_compared_by_meaning_not_by_spelling(store: FakeStore, opened: Opened) -> None:
    rmap = await opened(JSON)
    store.put("k", b'{ "b": 1, "a": [true] }')
    await rmap.wait_for_revision(1)
    assert not await rmap.test_and_set("k", {"a": [1], "b": 1}, "x")  # in Python True == 1; in JSON not
    assert await rmap.test_and_set("k", {"a": [True], "b": 1}, "x")
    store.put("k", b"{")
    assert not await rmap.test_and_set("k", "x", "y")  # what cannot be decoded equals nothing


async def test_counters(store: FakeStore, opened: Opened, value_ops: bool) -> None:
    rmap = await opened(value_ops=value_ops)
    assert [await rmap.increment("n"), await rmap.increment("n", 41), await rmap.increment("n", -50)] == [1, 42, -8]
    assert await rmap.increment("n", 0) == -8
    await rmap.wait_for_revision(store.revision)
    assert rmap.get_counter("n") == -8
    assert rmap.get_counter("none") == 0
    await rmap.set("n", "text")
    with pytest.raises(WireError):
        await rmap.increment("n")
    await rmap.set("n", str(2**63 - 1))
    with pytest.raises(OverflowError):
        await rmap.increment("n")
    assert store.entries["n"].value == b"%d" % (2**63 - 1)
    assert ("update" in store.calls) == value_ops


async def test_lists(store: FakeStore, opened: Opened, value_ops: bool) -> None:
    rmap = await opened(value_ops=value_ops)
    assert await rmap.append_values("l", "a", "b", "a") == ["a", "b", "a"]
    assert await rmap.append_unique_values("l", "a", "c", "c") == ["a", "b", "a", "c"]
    revision = store.revision
    assert await rmap.append_unique_values("l", "b") == ["a", "b", "a", "c"]
    assert store.revision == revision  # nothing changed, nothing was written
    assert await rmap.remove_values("l", "a", "zz") == ["b", "c"]
    assert await rmap.remove_values("l", "b", "c") == []
    await rmap.wait_for_revision(store.revision)
    assert "l" in rmap
    assert rmap.get_list("l") == []
    assert rmap.get_list("none") == []
    await rmap.set("l", "text")
    with pytest.raises(WireError):
        await rmap.append_values("l", "x")


async def test_elements_may_hold_anything(store: FakeStore, opened: Opened, value_ops: bool) -> None:
    rmap = await opened(JSON, value_ops=value_ops)
    odd = ["", ",", "1:", "3:abc,", "\0", "é\U0001f600", {"k": [None, 1.5]}, ["nested"], None]
    assert await rmap.append_values("l", *odd) == odd
    await rmap.wait_for_revision(store.revision)
    assert rmap.get_list("l") == odd
    assert rmap["l"] == odd
    assert rmap.undecodable == 0


async def test_a_stale_guess_is_corrected_in_lists_and_counters(store: FakeStore, opened: Opened) -> None:
    rmap = await opened(value_ops=False)
    await rmap.increment("n", 5)
    await rmap.append_values("l", "a")
    await rmap.set("t", "text")
    await rmap.wait_for_revision(store.revision)
    store.holding = True
    store.put("n", b"100")
    store.put("l", b"1:a,1:b,")
    store.put("t", b"7")
    assert await rmap.increment("n") == 101
    assert await rmap.append_values("l", "c") == ["a", "b", "c"]
    store.put("l", b"")
    assert await rmap.append_unique_values("l", "a") == ["a"]  # the replica says that it is there already
    assert await rmap.increment("t") == 8  # the replica says that it is no counter


async def test_concurrent_changes_lose_nothing(store: FakeStore, opened: Opened, value_ops: bool) -> None:
    rmap = await opened(value_ops=value_ops)
    other = await opened(value_ops=value_ops)

    async def yield_first() -> None:
        await asyncio.sleep(0)

    store.before_write = yield_first
    async with asyncio.timeout(20):
        await asyncio.gather(*(one.increment("n") for one in (rmap, other) for _ in range(20)))
        await asyncio.gather(
            *(one.append_values("l", f"{who}{n}") for who, one in enumerate((rmap, other)) for n in range(10))
        )
    assert store.entries["n"].value == b"40"
    await rmap.wait_for_revision(store.revision)
    assert sorted(rmap.get_list("l")) == sorted(f"{who}{n}" for who in range(2) for n in range(10))


async def test_an_unknown_outcome_is_not_retried(store: FakeStore, opened: Opened) -> None:
    rmap = await opened(value_ops=False)
    attempts = 0

    async def lose_the_reply() -> None:
        nonlocal attempts
        attempts += 1
        raise OutcomeUnknown("the reply was lost")

    store.before_write = lose_the_reply
    for call in (rmap.increment("n"), rmap.append_values("l", "x"), rmap.test_and_set("k", None, "v")):
        with pytest.raises(OutcomeUnknown):
            await call
    assert attempts == 3


async def test_a_cancelled_loop_writes_nothing_later(store: FakeStore, opened: Opened) -> None:
    rmap = await opened(value_ops=False)

    async def somebody_is_always_faster() -> None:
        store.put("n", b"%d" % store.revision)

    store.before_write = somebody_is_always_faster
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await rmap.increment("n")
    store.before_write = None
    revision = store.revision
    await asyncio.sleep(0.01)  # nothing may come, for longer than the first pauses of the loop
    assert store.revision == revision


async def test_clear_under_a_condition(store: FakeStore, opened: Opened) -> None:
    rmap = await opened()
    await rmap.set_and_wait("k", "v")
    store.holding = True
    store.put("other", b"unseen")
    refused = await rmap.test_and_clear()
    assert not refused
    assert set(store.entries) == {"k", "other"}
    assert await rmap.test_and_clear(refused.revision)
    assert not store.entries


async def test_pauses_grow_are_spread_and_come_from_the_injected_random(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)

    async def pauses(seed: int) -> list[float]:
        slept.clear()
        backoff = Backoff(random.Random(seed), base=0.01, cap=0.1)
        for _ in range(2000):
            await backoff.pause()
        return list(slept)

    one = await pauses(1)
    assert one[0] == 0.0
    assert all(pause <= min(0.1, 0.01 * 2.0 ** min(n, 100)) for n, pause in enumerate(one[1:]))
    assert max(one) > 0.09
    assert one == await pauses(1)
    assert one != await pauses(2)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["append", "unique", "remove"]), st.lists(st.text(max_size=3), min_size=1, max_size=3)
        ),
        max_size=12,
    )
)
def test_both_ways_give_the_same_lists(steps: list[tuple[str, list[str]]]) -> None:
    from corepool.driver import AppendValues, RemoveValues, decode_list
    from corepool.rmap.loops import update_value

    class Cell:
        """One entry with conditional writes, and the same operations on a Python list beside it."""

        def __init__(self) -> None:
            from corepool.driver import Entry

            self.make = Entry
            self.entry: Any = None

        async def get(self, key: str) -> Any:
            return self.entry

        async def set(self, key: str, value: bytes, when: When) -> Commit:
            assert when == (ABSENT if self.entry is None else REVISION(self.entry.revision))
            previous, self.entry = self.entry, self.make(key, value, (self.entry.revision if self.entry else 0) + 1)
            return Commit(True, self.entry.revision, previous)

    cell, model = Cell(), list[bytes]()

    async def run() -> None:
        for what, texts in steps:
            values = tuple(text.encode() for text in texts)
            if what == "append":
                op: Any = AppendValues(values)
                model.extend(values)
            elif what == "unique":
                op = AppendValues(values, unique=True)
                for value in values:
                    if value not in model:
                        model.append(value)
            else:
                op = RemoveValues(values)
                model[:] = [value for value in model if value not in values]
            updated = await update_value(cell, "k", op, guess=None, backoff=Backoff(random.Random(1)))  # type: ignore[arg-type]
            assert decode_list(updated.value) == model
            assert decode_list(cell.entry.value) == model

    asyncio.run(run())
