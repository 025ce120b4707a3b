"""Commits that share a script, against the memory driver, which carries them out one by one in the order of their calls."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest

from corepool.driver import CommitResult, Op, open_backend
from corepool_conformance.differential import Difference, Observation, Side, Step, compare, generate, model_url
from corepool_redis.backend import RedisBackend
from tests.redis.conftest import Connect

PROGRAMS = 120


class _InTurn(Side):
    """The model: one commit after the other."""

    async def _do_together(self, *commits: tuple[tuple[Any, ...], ...]) -> Observation:
        batches = [[self._op(op) for op in symbolic] for symbolic in commits]  # all of them before the first answer
        results = await self._commit_all(batches)
        return [self._shown(symbolic, result) for symbolic, result in zip(commits, results, strict=True)]

    async def _commit_all(self, batches: Sequence[Sequence[Op]]) -> list[CommitResult]:
        return [await self._space.commit(batch) for batch in batches]


class _AtOnce(_InTurn):
    """All in one turn of the event loop."""

    async def _commit_all(self, batches: Sequence[Sequence[Op]]) -> list[CommitResult]:
        return await asyncio.gather(*(self._space.commit(batch) for batch in batches))


def _program(rng: random.Random) -> list[Step]:
    """Turns of one to twelve commits (a script takes eight), and single steps between them."""
    program: list[Step] = []
    for number in range(rng.choice((2, 4, 8))):
        program += generate(rng, 2)
        commits = [step for step in generate(rng, 120) if step.name == "commit"][: rng.randrange(1, 13)]
        program.append(Step("together", tuple(step.arguments for step in commits)))
        assert commits, f"turn {number} is empty"
    return program


def _shorter(step: Step) -> list[Step | None]:
    """What may stand in its place to make a program shorter."""
    if step.name != "together":
        return [None]
    return [
        None,
        *(Step("together", step.arguments[:at] + step.arguments[at + 1 :]) for at in range(len(step.arguments))),
    ]


async def _difference(backend: RedisBackend, program: Sequence[Step], prefix: str) -> Difference | None:
    model = await open_backend(model_url(backend.capabilities))
    tested, shown = _AtOnce(backend, "differential", prefix), _InTurn(model, "differential", prefix)
    try:
        return await compare(program, tested, shown)
    finally:
        await tested.remove()
        await model.aclose()


async def _shortest(backend: RedisBackend, found: Difference, prefix: str) -> Difference:
    """Leave out steps, and commits of a turn, as long as the two sides still differ."""
    tries = 0
    at = len(found.program) - 1
    while at >= 0:
        for other in _shorter(found.program[at]):
            tries += 1
            candidate = [*found.program[:at], *([other] if other else []), *found.program[at + 1 :]]
            again = await _difference(backend, candidate, f"{prefix}{tries}-")
            if again is not None:
                found, at = again, min(at, len(again.program)) + 1
                break
        at -= 1
    return found


@pytest.mark.timeout(120)
async def test_commits_of_one_turn_answer_as_if_each_came_alone(connect: Connect) -> None:
    backend = await connect()
    for number in range(PROGRAMS):
        program = _program(random.Random(f"together {number}"))
        found = await _difference(backend, program, f"{number}-")
        if found is not None:
            found = await _shortest(backend, found, f"{number}-shorter-")
            pytest.fail(f"program {number}:\n" + "\n".join(found.lines()))
