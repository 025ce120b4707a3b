"""The pool layer bites: pools whose safeguards are switched off, and a driver that heeds no condition, are caught."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from corepool.pool import Node, NodeOptions
from corepool_conformance import Kit, PromiseBroken
from corepool_conformance.contract.test_pool import report, run_real
from corepool_conformance.pool import env
from corepool_conformance.pool.plans import FAULTS, Plan, Step, generate_plans, shorter
from corepool_conformance.pool.sim_env import run_simulated
from tests.conformance.broken import maps
from tests.conformance.broken.base import Broken, BrokenHarness

TAKE_OVER = Plan(
    2, (Step("dispatch", 0, 0, 6.0), Step("dispatch", 0, 1, 6.0), Step("wait", ttls=0.5), Step("crash", 0))
)
CUT_OFF = Plan(
    2,
    (
        *(Step("dispatch", 0, key, 6.0) for key in range(4)),
        Step("wait", ttls=0.5),
        Step("cut", 0, ttls=1.5),
        Step("cut", 1, ttls=0.3),
        Step("wait", ttls=2.0),
    ),
)


def test_plans_are_a_function_of_the_seed() -> None:
    assert generate_plans(7, 20, FAULTS) == generate_plans(7, 20, FAULTS)
    assert generate_plans(7, 20, FAULTS) != generate_plans(8, 20, FAULTS)


def test_plans_hold_no_faults_that_were_not_asked_for() -> None:
    plans = generate_plans(7, 200, {"crash"})
    steps = {step.what for plan in plans for step in plan.steps}
    assert steps == {"dispatch", "stop", "notify", "wait", "start", "close", "crash"}
    assert {step.what for plan in generate_plans(7, 200, FAULTS) for step in plan.steps} == steps | {"cut", "pause"}


def test_shorter_plans_are_simpler() -> None:
    plan = generate_plans(7, 1, FAULTS)[0]
    candidates = list(shorter(plan))
    assert len(candidates) >= len(plan.steps), "each step is left out once"
    for candidate in candidates:
        assert (candidate.nodes, len(candidate.steps)) < (plan.nodes, len(plan.steps))


@pytest.mark.parametrize(
    "plan", [TAKE_OVER, CUT_OFF, *generate_plans(11, 12, FAULTS)], ids=lambda plan: f"{len(plan.steps)}"
)
def test_a_sound_pool_passes(plan: Plan) -> None:
    run_simulated(plan, 1)


# --- safeguards switched off -----------------------------------------------------------------------------------------


def test_a_pool_without_fencing_has_two_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NodeOptions, "fence_after", property(lambda options: 1e9))
    with pytest.raises(PromiseBroken, match=r"^P1 "):
        run_simulated(CUT_OFF, 1)


def test_a_pool_that_takes_nothing_over_leaves_jobs_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = env.options
    monkeypatch.setattr("corepool_conformance.pool.sim_env.options", lambda ttl: slow(ttl) | {"worker_ttl": 3600.0})
    with pytest.raises(PromiseBroken, match=r"^P1[01] "):
        run_simulated(TAKE_OVER, 1)


def test_a_call_that_never_returns_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Node, "notify_worker", hang)
    with pytest.raises(PromiseBroken, match=r"^P9 "):
        run_simulated(Plan(1, (Step("dispatch", 0, 0, 6.0), Step("wait", ttls=0.5), Step("notify", 0, 0))), 1)


def test_a_dispatch_that_lies_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    async def lie(*_: object, **__: object) -> None:
        return

    monkeypatch.setattr(Node, "dispatch_job", lie)
    with pytest.raises(PromiseBroken, match=r"^P2 "):
        run_simulated(Plan(1, (Step("dispatch", 0, 0, 6.0),)), 1)


# --- on a driver, in real time ---------------------------------------------------------------------------------------


@pytest.fixture
def kits() -> Any:
    """Runs a plan with nodes in this process, on a driver of the collection."""

    def run(broken: type[Broken], plan: Plan, patience: float = 0.2) -> Kit:
        harness = BrokenHarness(broken, patience=patience)
        kit = Kit(harness, "seed", budget=4.0)

        async def main() -> None:
            await harness.begin(())
            try:
                await run_real(kit, plan, processes=False)
            finally:
                await kit.finish(failed=True)
                await harness.end()

        asyncio.run(main())
        return kit

    return run


def test_a_sound_driver_passes(kits: Any) -> None:
    kits(Broken, TAKE_OVER, 0.5)


def test_a_driver_that_heeds_no_condition_is_caught(kits: Any) -> None:
    plan = Plan(3, (*(Step("dispatch", node, 0, 6.0) for node in range(3)), Step("wait", ttls=1.0)))
    with pytest.raises(PromiseBroken, match=r"^P") as caught:
        kits(maps.CommitIgnoresConditions, plan)
    assert "dispatch k0 j1" in str(caught.value), "the history is told"


def test_a_failing_plan_is_made_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NodeOptions, "fence_after", property(lambda options: 1e9))
    noise = (
        Step("stop", 0, 3),
        Step("notify", 1, 2),
        Step("wait", ttls=0.02),
        Step("start"),
        Step("dispatch", 1, 3, 3.0),
    )
    plan = Plan(3, (*noise, *CUT_OFF.steps, *noise))
    kit = Kit(BrokenHarness(), "seed", budget=20.0)

    async def run(plan: Plan) -> None:
        await asyncio.to_thread(run_simulated, plan, 1)

    async def fail() -> None:
        try:
            await run(plan)
        except PromiseBroken as broken:
            await report(kit, plan, broken, run)

    with pytest.raises(PromiseBroken, match=r"^P1 "):
        asyncio.run(fail())
    steps = kit.history[1 : [line.startswith("  ") for line in kit.history].index(True)]
    assert any(step.startswith("cut") for step in steps)
    assert any(step.startswith("dispatch") for step in steps)
    assert len(steps) < len(plan.steps) / 2, kit.history
