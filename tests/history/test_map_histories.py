"""Histories of one map over a network that loses requests and replies are linearizable, seed by seed (M2, M5, R2).

The kit holds every backend to this on servers that answer; here outcomes are unknown because the simulated network made them
so, at moments that no test on a real server reaches: before the write, after it, or while it is still on its way.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

import pytest

from corepool.driver import ALWAYS, Commit, MapStore, Namespace, When
from corepool.errors import BackendUnavailable, OutcomeUnknown
from corepool_conformance.linearizability import Call, find_violation, render
from corepool_conformance.recording import Recorder, run_program
from corepool_memory.sim.faults import Faults
from corepool_memory.sim.run import simulate
from corepool_memory.sim.world import World

SEEDS = 20
CLIENTS = 4
KEYS = ["a", "b"]
LOSSY = Faults(
    latency=(0.0002, 0.05),
    request_loss=0.08,
    reply_loss=0.08,
    reset=0.08,
    slow=0.05,
    request_timeout=0.5,
    connect_timeout=0.2,
    swarm=False,
)


class Optimist:
    """A store that takes an unknown outcome for "not applied": what M5 forbids."""

    def __init__(self, store: MapStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def set(self, key: str, value: bytes, when: When = ALWAYS) -> Commit:
        try:
            return await self._store.set(key, value, when)
        except OutcomeUnknown as error:
            raise BackendUnavailable("set: surely not applied") from error


class Repeater(Optimist):
    """A store that sends a write again when its outcome is unknown, and tells of the second one alone."""

    async def set(self, key: str, value: bytes, when: When = ALWAYS) -> Commit:
        for _ in range(5):
            try:
                return await self._store.set(key, value, when)
            except OutcomeUnknown:
                continue
        raise BackendUnavailable("set: given up")


async def _settle(space: Namespace, fences: bool) -> None:
    """Ask until the store can be reached: the network is calm. fences: False: take any answer for a settled past."""
    while True:
        try:
            await (space.settle() if fences else space.map("m").get("?"))
            return
        except BackendUnavailable:
            await asyncio.sleep(0.05)


def histories(seed: int, store_of: type[Optimist] | None = None, *, fences: bool = True) -> list[Sequence[Call]]:
    """What several clients did and saw, in several programs, each read back once all had come to an end."""
    found: list[Sequence[Call]] = []

    async def scenario(world: World) -> None:
        spaces: list[Namespace] = [world.backend(world.add_node(f"n{at}")).namespace("h") for at in range(CLIENTS)]
        stores = [space.map("m") for space in spaces]
        if store_of is not None:
            stores = [cast(MapStore, store_of(store)) for store in stores]
        rng = random.Random(seed)
        for number in range(6):
            recorder = Recorder()
            keys = [f"{key}{number}" for key in KEYS]
            await run_program(recorder, stores, rng, keys=keys, steps=6, clears=number % 3 == 2)
            world.calm()
            await asyncio.gather(*(_settle(space, fences) for space in spaces))
            recorder.settled()
            for _ in range(2):
                for key in keys:
                    await recorder.get(CLIENTS, stores[0], key)
                await asyncio.sleep(2.0)  # a write that still comes would come about now
            world.storm()
            found.append(recorder.calls)

    simulate(scenario, seed=seed, faults=LOSSY, most_replays=0).check()
    return found


@pytest.mark.parametrize("seed", range(SEEDS))
def test_histories_over_a_lossy_network_are_linearizable(seed: int) -> None:
    for history in histories(seed):
        violation = find_violation(history)
        assert violation is None, "\n".join(render(violation))


def test_outcomes_were_unknown_both_ways() -> None:
    """Writes that were applied although nobody learnt of it, and writes that never were."""
    came_about: Counter[bool] = Counter()
    for seed in range(SEEDS):
        for history in histories(seed):
            seen = {call.seen.value for call in history if call.known}
            came_about.update(call.value in seen for call in history if not call.known and call.value is not None)
    assert came_about[True] > SEEDS
    assert came_about[False] > SEEDS


@pytest.mark.parametrize("store_of", [Optimist, Repeater])
def test_a_store_that_hides_unknown_outcomes_is_caught(store_of: type[Optimist]) -> None:
    assert any(find_violation(history) for seed in range(SEEDS) for history in histories(seed, store_of))


def test_a_settle_that_only_reaches_the_store_is_caught() -> None:
    """R2: what was unknown must not happen after it was settled."""
    assert any(find_violation(history) for seed in range(SEEDS) for history in histories(seed, fences=False))
