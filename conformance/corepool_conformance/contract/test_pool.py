"""The pool on this driver: generated plans of calls, changes and faults; ownership, outcomes, and an end that is right."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection

from corepool_conformance.kit import Contract, Kit, PromiseBroken, promise
from corepool_conformance.pool.env import POOL_PROMISES, run_plan
from corepool_conformance.pool.plans import Plan, generate_plans, shorter
from corepool_conformance.pool.real_env import RealEnv, real_faults
from corepool_conformance.pool.sim_env import SIM_FAULTS, run_simulated

_TTL = 2.0
"""``worker_ttl`` of real nodes, in seconds (times the harness's patience): as short as a busy machine allows."""

_MOST_PLANS = 300


class TestPool(Contract):
    @promise(*POOL_PROMISES, deadline=None)
    async def test_plans_keep_the_pools_promises(self, kit: Kit) -> None:
        if (kit.harness.url or "").startswith("memory:"):
            await explore(kit, SIM_FAULTS, lambda plan: asyncio.to_thread(run_simulated, plan, kit.number))
            return
        processes = bool(kit.harness.url) and (await kit.capabilities()).multi_process
        await explore(kit, real_faults(kit, processes=processes), lambda plan: run_real(kit, plan, processes))


async def run_real(kit: Kit, plan: Plan, processes: bool) -> None:
    """Carry a plan out on the driver under test, in real time."""
    env = RealEnv(kit, _TTL * kit.harness.patience, processes=processes)
    try:
        await run_plan(env, plan)
    finally:
        await env.aclose()


async def explore(kit: Kit, faults: Collection[str], run: Callable[[Plan], Awaitable[None]]) -> None:
    """Run plans until the budget is spent; a failing one is made shorter for half as long again."""
    began = time.monotonic()
    for number, plan in enumerate(generate_plans(kit.number, _MOST_PLANS, faults)):
        if number and time.monotonic() - began > kit.budget:
            break
        try:
            await run(plan)
        except PromiseBroken as broken:
            await report(kit, plan, broken, run)
        kit.progress(f"pool: {number + 1} plans, {time.monotonic() - began:.0f} s of {kit.budget:g} s")


async def report(kit: Kit, plan: Plan, broken: PromiseBroken, run: Callable[[Plan], Awaitable[None]]) -> None:
    """Make a failing plan shorter for half the budget, then raise what the shortest one broke."""
    end = time.monotonic() + kit.budget / 2
    improved = True
    while improved and time.monotonic() < end:
        improved = False
        for candidate in shorter(plan):
            if time.monotonic() > end:
                break
            try:
                await run(candidate)
            except PromiseBroken as again:
                plan, broken, improved = candidate, again, True
                break
    kit.history = [*plan.lines(), *str(broken).splitlines()[1:]]
    raise broken
