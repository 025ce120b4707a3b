"""The report of a deadlock names every task, what it waits for, who holds it, and the cycle."""

from __future__ import annotations

import asyncio

from corepool_memory.sim.loop import Budgets
from corepool_memory.sim.run import Result, simulate
from corepool_memory.sim.world import World


def _stuck(scenario: object, budgets: Budgets | None = None) -> Result:
    result = simulate(scenario, most_replays=0, budgets=budgets)  # type: ignore[arg-type]
    assert result.violation is not None
    return result


class Accounts:
    def __init__(self) -> None:
        self.checking = asyncio.Lock()
        self.savings = asyncio.Lock()

    async def save(self) -> None:
        async with self.checking:
            await asyncio.sleep(1.0)
            async with self.savings:
                raise AssertionError("unreachable")

    async def spend(self) -> None:
        async with self.savings:
            await self._move()

    async def _move(self) -> None:
        await asyncio.sleep(1.0)
        await self.checking.acquire()


async def _planted(world: World) -> None:
    accounts = Accounts()
    tasks = [
        world.spawn(world.add_node("left"), accounts.save(), name="saver"),
        world.spawn(world.add_node("right"), accounts.spend(), name="spender"),
    ]
    await asyncio.wait(tasks)


def test_a_planted_deadlock_names_both_tasks_and_what_each_waits_for() -> None:
    result = _stuck(_planted)
    assert result.violation is not None
    assert result.violation.kind == "deadlock"
    text = result.violation.text
    cycle = text.partition("the wait cycle:\n")[2].splitlines()[:2]
    assert cycle == [
        "  task 'saver' on left waits for Lock 'accounts.savings', held by task 'spender' on right",
        "  task 'spender' on right waits for Lock 'accounts.checking', held by task 'saver' on left",
    ]
    assert "at Accounts._move (test_deadlock.py:" in text  # the whole await chain
    assert "at Accounts.spend (test_deadlock.py:" in text
    assert "task 'scenario' waits for some of 2 tasks: task 'saver' on left, task 'spender' on right" in text
    assert "0x" not in text


def test_the_report_is_the_same_every_time() -> None:
    assert _stuck(_planted).violation == _stuck(_planted).violation


def test_every_kind_of_wait_has_a_name() -> None:
    async def scenario(world: World) -> None:
        queue: asyncio.Queue[int] = asyncio.Queue()
        event = asyncio.Event()
        condition = asyncio.Condition()

        async def numbers() -> object:
            yield await queue.get()

        async def iterate() -> None:
            async for _ in numbers():  # type: ignore[attr-defined]
                pass

        async def wait_for_condition() -> None:
            async with condition:
                await condition.wait()

        async with asyncio.TaskGroup() as everyone:
            getter = everyone.create_task(queue.get(), name="getter")
            everyone.create_task(event.wait(), name="waiter")
            everyone.create_task(iterate(), name="iterator")
            everyone.create_task(wait_for_condition(), name="conditional")
            everyone.create_task(_await(getter), name="follower")
            everyone.create_task(_await(asyncio.shield(getter)), name="shielded")
            everyone.create_task(_await(asyncio.gather(getter)), name="gatherer")
            everyone.create_task(_await(asyncio.get_running_loop().create_future()), name="loner")

    violation = _stuck(scenario).violation
    assert violation is not None
    lines = violation.text.splitlines()
    for line in (
        "task 'getter' waits to get from Queue 'queue'",
        "task 'waiter' waits for Event 'event'",
        "task 'iterator' waits to get from Queue 'queue'",
        "task 'conditional' waits for Condition 'condition'",
        "task 'follower' waits for task 'getter'",
        "task 'shielded' waits for task 'getter'",
        "task 'gatherer' waits for gather 'future': task 'getter'",
        "task 'loner' waits for Future 'future'",
    ):
        assert any(found.startswith(line) for found in lines), (line, lines)
    assert any(
        found.startswith("task 'scenario' waits for the tasks of TaskGroup 'everyone': task 'getter'")
        for found in lines
    )


async def _await(future: asyncio.Future[object]) -> None:
    await future


def test_a_wait_for_a_paused_machine_says_so() -> None:
    async def scenario(world: World) -> None:
        node = world.add_node("sleepy")
        world.pause("sleepy")
        await world.on(node, lambda: asyncio.sleep(1.0))

    violation = _stuck(scenario).violation
    assert violation is not None
    assert "machine sleepy is paused" in violation.text
    assert "task 'scenario' waits for the end of" in violation.text


def test_a_run_that_is_given_up_says_where_it_was() -> None:
    async def forever() -> None:
        while True:
            await asyncio.sleep(1.0)

    async def scenario(world: World) -> None:
        node = world.add_node("a")
        await world.on(node, forever, name="forever")

    violation = _stuck(scenario, Budgets(virtual_seconds=50.0)).violation
    assert violation is not None
    assert violation.kind == "budget"
    assert "task 'forever' on a waits for" in violation.text
    assert "test_deadlock.py" in violation.text


def test_a_livelock_names_the_spinner() -> None:
    async def spin() -> None:
        while True:
            await asyncio.sleep(0)

    async def scenario(_world: World) -> None:
        await asyncio.create_task(spin(), name="spinner")

    violation = _stuck(scenario, Budgets(steps_per_instant=1000)).violation
    assert violation is not None
    assert "spins" in violation.text
    assert "task 'spinner'" in violation.text
