"""The driver under test against the memory driver, on the same generated operations."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from corepool.driver import Backend, open_backend
from corepool_conformance.differential import Difference, Side, Step, compare, generate, model_url
from corepool_conformance.kit import Contract, Kit, PromiseBroken, promise

SECONDS = 6.0
"""How long programs are tried; as long again, at most, a program that differs is made shorter."""


class TestDifferential(Contract):
    @promise("MAPS", "STREAMS", "COMMIT", deadline=45)
    async def test_the_same_answers_as_the_memory_driver(self, kit: Kit) -> None:
        backend = await kit.main()
        model = await open_backend(model_url(backend.capabilities))
        try:
            end = time.monotonic() + SECONDS
            number = 0
            while number < 20 or (time.monotonic() < end and number < 300):
                rng = random.Random(f"{kit.seed}/{number}")
                program = generate(rng, rng.choice((4, 8, 15, 30)))
                difference = await self._try(kit, backend, model, program, f"{number}-")
                if difference is not None:
                    await self._report(kit, backend, model, difference)
                number += 1
        finally:
            await model.aclose()

    async def _try(
        self, kit: Kit, backend: Backend, model: Backend, program: Sequence[Step], prefix: str
    ) -> Difference | None:
        sides = [Side(side, kit.namespace_name, prefix).declares(backend.capabilities) for side in (backend, model)]
        try:
            return await kit.within(15, compare(program, *sides), "a program of one client")
        finally:
            await sides[0].remove()

    async def _report(self, kit: Kit, backend: Backend, model: Backend, difference: Difference) -> None:
        """Make the program shorter for a while, then fail with it."""
        end = time.monotonic() + SECONDS
        attempt = 0
        at = len(difference.program) - 2
        while at >= 0 and time.monotonic() < end:
            attempt += 1
            shorter = [step for number, step in enumerate(difference.program) if number != at]
            again = await self._try(kit, backend, model, shorter, f"shorter{attempt}-")
            if again is not None:
                difference = again
                at = min(at, len(difference.program) - 1)
            at -= 1
        kit.history = difference.lines()
        text = "the driver and the memory driver answer differently:\n" + "\n".join(kit.history)
        raise PromiseBroken(difference.promise, text)
