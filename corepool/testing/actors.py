"""Whom the pool works for in ``chaos``: a handler that is not always well, and a producer that changes its mind.

Invariants: what they do comes from the run's own choices, so a run is a function of its seed.
Neighbours: made by `Chaos`, which hears from them what a judge wants to know.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from corepool.errors import Requeue
from corepool.pool import Job, JobPlan
from corepool.testing.history import Heard
from corepool_memory.sim.node import current_node

if TYPE_CHECKING:
    from corepool.testing.chaos import Chaos

__all__ = ["PLANNED", "Planner", "Worker"]

PLANNED = ("s0", "s1")
"""The keys of the schedule's jobs: no client touches them, so what becomes of them is the schedule's doing alone."""


class Planner:
    """A producer that wants one of two jobs; now and then it changes its mind, or fails. In the end it wants the first."""

    name = "plans"

    def __init__(self, run: Chaos) -> None:
        self._run = run
        self._wanted = list(PLANNED)

    def plan(self) -> JobPlan:
        run = self._run
        if run.last_orders:
            return self._at_last()
        match run.choose(6, "plan"):
            case 4:
                self._wanted.reverse()
            case 5:
                run.cluster.sometimes("a plan failed")
                raise ValueError("a plan that fails")
            case _:
                pass
        run.cluster.sometimes("a plan was made")
        start, stop = self._wanted
        return JobPlan(start={start: run.number()}, stop=[stop])

    def _at_last(self) -> JobPlan:
        """What is there is not asked for again: where a commit goes step by step, a refusal leaves an entry to be swept."""
        start, stop = PLANNED
        there = start in self._run.jobs()
        return JobPlan(start={} if there else {start: self._run.number()}, stop=[stop])


class Worker:
    """A handler that is sometimes slow, sometimes fails, and asks for another try now and then; as its key says."""

    def __init__(self, run: Chaos) -> None:
        self._run = run

    def _draw(self, n: int, job_key: str, what: str) -> int:
        return self._run.choose(n, f"handler:{what}:{job_key}")

    async def start(self, job: Job) -> None:
        match self._draw(12, job.key, "start"):
            case 9:
                await asyncio.sleep(0.05 + self._draw(40, job.key, "slowness") / 10)
            case 10:
                await asyncio.sleep(0.01)
                raise ValueError("a handler that fails")
            case 11:
                raise Requeue("not now")
            case _:
                return

    async def stop(self, key: str) -> None:
        if self._draw(8, key, "stop") == 7:
            await asyncio.sleep(self._draw(5, key, "slowness") / 10)

    async def notify(self, key: str, payload: bytes) -> None:
        machine = current_node()
        owner = "" if machine is None else machine.label
        self._run.heard.append(Heard(key=key, payload=payload, owner=owner, at=self._run.cluster.now))
        if self._draw(8, key, "notify") == 7:
            raise ValueError("a notify that fails")
