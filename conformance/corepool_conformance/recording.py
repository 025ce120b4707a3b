"""Clients whose calls are written down: what the linearizability checker reads.

Purpose: small random programs of several clients on one map, their histories, and the verdict as a failure message.
Invariants: every value a recorder writes is unique; `BackendUnavailable` means that nothing happened and the call is
forgotten; `OutcomeUnknown` and a cancelled call stay in the history as unknown.
Neighbours: `corepool_conformance.linearizability` judges, the contract tests run the programs.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import attrs

from corepool.driver import ABSENT, ALWAYS, REVISION, Commit, Entry, MapStore, When
from corepool.errors import BackendUnavailable, OutcomeUnknown
from corepool_conformance.kit import Kit, PromiseBroken
from corepool_conformance.linearizability import NEVER, Call, Kind, Seen, find_violation, render

__all__ = ["Recorder", "check", "run_program"]


class Recorder:
    """Writes down what several clients did, on a logical clock."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._time = 0
        self._values = 0

    def _tick(self) -> int:
        self._time += 1
        return self._time

    def fresh(self) -> bytes:
        """A value that this recorder never gave before."""
        self._values += 1
        return b"v%d" % self._values

    async def get(self, client: int, store: MapStore, key: str) -> Seen:
        """A recorded get."""
        began = self._tick()
        seen = _seen(await store.get(key))
        self.calls.append(Call(client=client, kind=Kind.GET, key=key, began=began, ended=self._tick(), seen=seen))
        return seen

    async def write(
        self, client: int, store: MapStore, key: str, value: bytes | None, expect: Seen | None
    ) -> Commit | None:
        """A recorded set or delete (None); None if its outcome is unknown or it did not take place."""
        began = self._tick()
        maybe = Call(
            client=client, kind=Kind.WRITE, key=key, began=began, ended=NEVER, value=value, expect=expect, known=False
        )
        self.calls.append(maybe)
        try:
            when = _condition(expect)
            commit = await (store.delete(key, when) if value is None else store.set(key, value, when))
        except BackendUnavailable:
            self.calls.remove(maybe)
            return None
        except OutcomeUnknown:
            return None
        revision = commit.revision if commit.applied else 0
        self._returned(
            maybe,
            attrs.evolve(maybe, known=True, applied=commit.applied, revision=revision, seen=_seen(commit.previous)),
        )
        return commit

    def _returned(self, maybe: Call, call: Call) -> None:
        self.calls[self.calls.index(maybe)] = attrs.evolve(call, ended=self._tick())

    async def clear(self, client: int, store: MapStore) -> None:
        """A recorded clear."""
        maybe = Call(client=client, kind=Kind.CLEAR, key="", began=self._tick(), ended=NEVER, known=False)
        self.calls.append(maybe)
        try:
            commit = await store.clear()
        except BackendUnavailable:
            self.calls.remove(maybe)
        except OutcomeUnknown:
            return
        else:
            self._returned(maybe, attrs.evolve(maybe, known=True, applied=True, revision=commit.revision))

    def settled(self) -> None:
        """From now on, what was unknown has happened or never will (R2)."""
        now = self._tick()
        self.calls = [attrs.evolve(call, ended=now) if call.ended == NEVER else call for call in self.calls]


def _seen(entry: Entry | None) -> Seen:
    return Seen(entry.value, entry.revision) if entry else Seen(None)


def _condition(expect: Seen | None) -> When:
    if expect is None:
        return ALWAYS
    return ABSENT if expect.value is None else REVISION(expect.revision)


async def run_program(
    recorder: Recorder,
    stores: Sequence[MapStore],
    rng: random.Random,
    *,
    keys: Sequence[str],
    steps: int,
    clears: bool = False,
    cancel: float = 0.0,
) -> None:
    """Every store is a client's; each makes ``steps`` random calls, all at once. ``cancel``: how many are cancelled."""
    seeds = [rng.randrange(2**32) for _ in stores]
    await asyncio.gather(
        *(
            _client(recorder, number, store, random.Random(seed), keys, steps, clears, cancel)
            for number, (store, seed) in enumerate(zip(stores, seeds, strict=True))
        )
    )


async def _client(
    recorder: Recorder,
    number: int,
    store: MapStore,
    rng: random.Random,
    keys: Sequence[str],
    steps: int,
    clears: bool,
    cancel: float,
) -> None:
    last = dict.fromkeys(keys, Seen(None))
    for _ in range(steps):
        key = rng.choice(keys)
        act = rng.randrange(12 if clears else 11)
        await asyncio.sleep(rng.choice((0, 0, 0, 0.0003)))
        task = asyncio.ensure_future(_act(recorder, number, store, key, act, last[key]))
        if rng.random() < cancel:
            await asyncio.sleep(rng.choice((0, 0, 0.0003, 0.001)))
            task.cancel()
        try:
            last[key] = await task
        except BackendUnavailable:
            continue  # a read that did not take place
        except asyncio.CancelledError:
            if not task.cancelled():  # somebody cancelled this client, not its call
                raise


async def _act(recorder: Recorder, number: int, store: MapStore, key: str, act: int, last: Seen) -> Seen:
    """One call; what the client now believes of the key."""
    match act:
        case 0 | 1 | 2:
            return await recorder.get(number, store, key)
        case 3 | 4:
            return await _write(recorder, number, store, key, recorder.fresh(), None, last)
        case 5:
            return await _write(recorder, number, store, key, recorder.fresh(), Seen(None), last)
        case 6:
            return await _write(recorder, number, store, key, None, None, last)
        case 7:
            return await _write(recorder, number, store, key, None, last, last)
        case 11:
            await recorder.clear(number, store)
            return Seen(None)
        case _:
            return await _write(recorder, number, store, key, recorder.fresh(), last, last)


async def _write(
    recorder: Recorder, number: int, store: MapStore, key: str, value: bytes | None, expect: Seen | None, last: Seen
) -> Seen:
    commit = await recorder.write(number, store, key, value, expect)
    if commit is None:
        return last
    if commit.applied:
        return Seen(value, commit.revision) if value is not None else Seen(None)
    return _seen(commit.previous)


def check(kit: Kit, recorder: Recorder, promise: str = "M2") -> None:
    """Raises:
    PromiseBroken: no order of the recorded calls explains their results.
    """
    violation = find_violation(recorder.calls)
    if violation is not None:
        kit.history = render(violation)
        raise PromiseBroken(
            promise,
            f"no order of these {len(violation)} calls (of {len(recorder.calls)}) explains their results:\n"
            + "\n".join(kit.history),
        )
