"""Conditions on values, lists and counters, made of reads and conditional writes.

Purpose: what a backend need not offer is done here, once: read, compute, write on the condition that the entry is still the
one that was read, and begin again if somebody was faster.
Invariants:

- A first guess (the local replica's entry) may be old. A guess decides to *write* only under its revision, and never decides
  to refuse or to do nothing: before that the entry is read from the store, or was returned by a refused write.
- Some writer always succeeds, so a loop ends unless its caller alone is always slower; jittered pauses make that unlikely.
  There is no limit of attempts: bound a call with ``asyncio.timeout``. Cancelled or failed between two attempts, nothing
  was applied.

Neighbours: used by `ReplicatedMap` where the driver lacks the capability ``value_ops``; values are raw bytes.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import attrs

from corepool.driver import (
    ABSENT,
    REVISION,
    Commit,
    Entry,
    MapStore,
    Updated,
    ValueOp,
    When,
    apply_value_op,
)
from corepool.errors import WireError

__all__ = ["Backoff", "Guess", "change_if_equal", "update_value"]


@attrs.define(slots=True)
class Backoff:
    """Pauses that grow and are spread at random: the first is none, then up to base, 2 base, ... at most cap (seconds)."""

    random: random.Random
    base: float = 0.002
    cap: float = 0.25
    attempts: int = 0

    async def pause(self) -> None:
        """Sleep for the next pause."""
        most = 0.0 if self.attempts == 0 else min(self.cap, self.base * 2.0 ** min(self.attempts - 1, 32))
        self.attempts += 1
        await asyncio.sleep(self.random.uniform(0.0, most) if most else 0.0)


@attrs.frozen(slots=True)
class Guess:
    """What the local replica believes to stand at the key."""

    entry: Entry | None


def _unchanged(entry: Entry | None) -> When:
    return ABSENT if entry is None else REVISION(entry.revision)


async def change_if_equal(
    store: MapStore,
    key: str,
    equal: Callable[[bytes], bool],
    value: bytes | None,
    *,
    guess: Guess | None,
    backoff: Backoff,
) -> Commit:
    """Set the key to ``value``, or delete it if that is None, if the value standing there passes ``equal``.

    The commit of a refusal has as ``previous`` what stood in the way, and revision 0 where only a read showed it.
    """
    entry = guess.entry if guess else None
    if entry is None or not equal(entry.value):
        entry = await store.get(key)
    while True:
        if entry is None or not equal(entry.value):
            return Commit(applied=False, revision=entry.revision if entry else 0, previous=entry)
        when = REVISION(entry.revision)
        commit = await (store.delete(key, when) if value is None else store.set(key, value, when))
        if commit.applied:
            return commit
        # Refused: ``previous`` is what stood there when that was decided. It may well hold an equal value again.
        if commit.previous is None or not equal(commit.previous.value):
            return commit
        entry = commit.previous
        if backoff.attempts:
            await backoff.pause()
            entry = await store.get(key)
        else:
            await backoff.pause()


async def update_value(store: MapStore, key: str, op: ValueOp, *, guess: Guess | None, backoff: Backoff) -> Updated:
    """`MapStore.update` by reads and conditional writes, to the same result.

    Raises:
        WireError: the value is not a counter or list.
        OverflowError: a counter leaves 64 bits.
    """
    current = guess is None
    entry = await store.get(key) if guess is None else guess.entry
    while True:
        try:
            value = apply_value_op(None if entry is None else entry.value, op)
        except (WireError, OverflowError):
            if current:
                raise
            value = None
        if not current and (value is None or (entry is not None and value == entry.value)):
            entry, current = await store.get(key), True
            continue
        assert value is not None
        if entry is not None and value == entry.value:
            return Updated(value, entry.revision, entry)
        commit = await store.set(key, value, _unchanged(entry))
        if commit.applied:
            return Updated(value, commit.revision, entry)
        entry, current = commit.previous, True
        again = backoff.attempts > 0
        await backoff.pause()
        if again:  # the first retry trusts what the refusal showed; later ones pause, and look afresh
            entry = await store.get(key)
