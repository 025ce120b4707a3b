"""Histories of concurrent clients, checked for linearizability (M2, M5, M6)."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence

from corepool.driver import MapStore
from corepool_conformance.kit import Contract, Kit, PromiseBroken, promise
from corepool_conformance.recording import Recorder, check, run_program

SHAPES = [(2, 2, 1), (2, 3, 1), (3, 2, 1), (2, 5, 1), (3, 4, 1), (4, 4, 2), (3, 8, 2), (6, 6, 2)]
"""Clients, calls of each, keys: small ones first, since a short history explains more than a long one."""


async def hunt(
    kit: Kit, stores: Sequence[MapStore], seconds: float, *, clears: bool = False, cancel: float = 0.0
) -> None:
    """Run programs of growing size until time is up; report the shortest bad history found."""
    end = time.monotonic() + seconds
    number = 0
    while number < len(SHAPES) * 4 or (time.monotonic() < end and number < 400):
        try:
            await _one(kit, stores, number, SHAPES[min(number // 4, len(SHAPES) - 1)], clears, cancel)
        except PromiseBroken as broken:
            await _shorter(kit, stores, number, clears, cancel, broken)
        number += 1


async def _one(
    kit: Kit, stores: Sequence[MapStore], number: int, shape: tuple[int, int, int], clears: bool, cancel: float
) -> None:
    clients, steps, keys = shape
    recorder = Recorder()
    rng = random.Random(f"{kit.seed}/{number}")
    names = [f"k{number}-{key}" for key in range(keys)]
    chosen = [stores[at % len(stores)] for at in range(clients)]
    try:
        await kit.within(
            10, run_program(recorder, chosen, rng, keys=names, steps=steps, clears=clears, cancel=cancel), "a program"
        )
        for key in names:
            await recorder.get(clients, stores[0], key)
    finally:
        check(kit, recorder)


async def _shorter(
    kit: Kit, stores: Sequence[MapStore], number: int, clears: bool, cancel: float, broken: PromiseBroken
) -> None:
    """Try again with small programs for a moment; raise what was shortest."""
    best, history = broken, kit.history
    for attempt in range(60):
        try:
            await _one(kit, stores, number + 1 + attempt, SHAPES[attempt // 20], clears, cancel)
        except PromiseBroken as again:
            if len(kit.history) < len(history):
                best, history = again, kit.history
    kit.history = history
    raise best


class TestHistories(Contract):
    @promise("M2")
    async def test_histories_are_linearizable(self, kit: Kit) -> None:
        await hunt(kit, await kit.maps(3), 3.0)

    @promise("M2")
    async def test_histories_with_clears_are_linearizable(self, kit: Kit) -> None:
        await hunt(kit, await kit.maps(3), 2.0, clears=True)

    @promise("M5", "M6", "M2")
    async def test_histories_with_cancelled_calls_are_linearizable(self, kit: Kit) -> None:
        await hunt(kit, await kit.maps(3), 3.0, cancel=0.3)

    @promise("M5", "M2")
    async def test_what_is_settled_never_happens_later(self, kit: Kit) -> None:
        backends = [await kit.backend() for _ in range(2)]
        stores = [await kit.map(backend=backend) for backend in backends]
        for number in range(12):
            recorder = Recorder()
            rng = random.Random(f"{kit.seed}/{number}")
            await run_program(recorder, stores, rng, keys=[f"k{number}"], steps=4, cancel=0.7)
            for backend in backends:
                await kit.within(10, (await kit.namespace(backend)).settle(), "settle", "M5")
            recorder.settled()
            for pause in (0, 0.002):
                await kit.a_moment(pause)  # a write that still comes would come about now
                await recorder.get(9, stores[0], f"k{number}")
            check(kit, recorder, "M5")

    @promise("M5", "M2", needs=("cut",), deadline=60)
    async def test_histories_over_lost_connections_are_linearizable(self, kit: Kit) -> None:
        backends = [await kit.backend() for _ in range(3)]
        stores = [await kit.map(backend=backend) for backend in backends]
        for number in range(4):
            recorder = Recorder()
            program = kit.spawn(self._through_cuts(kit, recorder, stores, number))
            await kit.a_moment(0.02 + kit.random.random() * 0.05)
            await kit.harness.cut()
            await kit.a_moment()
            await kit.harness.heal()
            await kit.within(25, program, "a program over a lost connection", "M5")
            for backend in backends:
                await kit.within(15, (await kit.namespace(backend)).settle(), "settle after a lost connection", "M5")
            recorder.settled()
            for _ in range(2):
                await recorder.get(9, stores[0], f"k{number}")
                await asyncio.sleep(0.05)
            check(kit, recorder, "M5")

    async def _through_cuts(self, kit: Kit, recorder: Recorder, stores: Sequence[MapStore], number: int) -> None:
        for part in range(6):
            rng = random.Random(f"{kit.seed}/{number}/{part}")
            await run_program(recorder, stores, rng, keys=[f"k{number}"], steps=4)
            await asyncio.sleep(0.01)
