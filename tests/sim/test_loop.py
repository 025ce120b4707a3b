"""The loop: virtual time, one order, nothing from outside, and an end to every run."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from corepool_memory.sim.errors import BudgetExceeded, DeadlockError, LivelockError, SimulationUnsupported
from corepool_memory.sim.loop import Budgets, SimLoop
from corepool_memory.sim.node import SimNode


@pytest.fixture
def loop() -> Iterator[SimLoop]:
    loop = SimLoop(Budgets(steps=50_000, steps_per_instant=5_000, virtual_seconds=1e6))
    yield loop
    loop.budgets = Budgets(steps=loop.steps + 1000, virtual_seconds=1e9)
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def test_an_hour_takes_no_time(loop: SimLoop) -> None:
    began = time.perf_counter()
    loop.run_until_complete(asyncio.sleep(3600.0))
    assert loop.now == 3600.0
    assert time.perf_counter() - began < 5.0


def test_timers_of_one_instant_fire_in_the_order_they_were_set(loop: SimLoop) -> None:
    fired: list[int] = []
    for number in range(50):
        loop.call_at(1.0, fired.append, number)
    loop.run_until_complete(asyncio.sleep(1.0))
    assert fired == list(range(50))


def test_ordinary_code_runs(loop: SimLoop) -> None:
    async def worker(queue: asyncio.Queue[int], done: list[int]) -> None:
        while True:
            done.append(await queue.get())
            await asyncio.sleep(0.1)
            queue.task_done()

    async def main() -> list[int]:
        queue: asyncio.Queue[int] = asyncio.Queue()
        done: list[int] = []
        async with asyncio.TaskGroup() as group:
            workers = [group.create_task(worker(queue, done)) for _ in range(3)]
            for number in range(9):
                queue.put_nowait(number)
            await queue.join()
            for task in workers:
                task.cancel()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5.0):
                await asyncio.Event().wait()
        return done

    assert loop.run_until_complete(main()) == list(range(9))
    assert loop.now == pytest.approx(5.3)


def test_sets_of_tasks_iterate_in_creation_order_of_their_hashes(loop: SimLoop) -> None:
    async def main() -> None:
        tasks = [asyncio.create_task(asyncio.sleep(1.0, number)) for number in range(5)]
        assert [hash(task) for task in tasks] == sorted(hash(task) for task in tasks)
        done, _ = await asyncio.wait(tasks)
        assert [task.result() for task in done] == list(range(5))

    loop.run_until_complete(main())


def test_an_executor_job_runs_inline(loop: SimLoop) -> None:
    async def main() -> int:
        return await asyncio.to_thread(threading.get_ident)

    assert loop.run_until_complete(main()) == threading.get_ident()


def test_an_executor_job_that_raises(loop: SimLoop) -> None:
    async def main() -> None:
        await asyncio.to_thread(int, "x")

    with pytest.raises(ValueError, match="invalid literal"):
        loop.run_until_complete(main())


def test_other_threads_are_refused(loop: SimLoop) -> None:
    refused: list[BaseException] = []

    def from_outside() -> None:
        try:
            loop.call_soon_threadsafe(refused.clear)
        except SimulationUnsupported as error:
            refused.append(error)

    async def main() -> None:
        thread = threading.Thread(target=from_outside)
        thread.start()
        thread.join()

    loop.run_until_complete(main())
    assert "another thread" in str(refused[0])


@pytest.mark.parametrize(
    "what",
    [
        lambda: asyncio.open_connection("localhost", 1),
        lambda: asyncio.create_subprocess_exec("true"),
        lambda: asyncio.get_running_loop().getaddrinfo("localhost", 1),
    ],
)
def test_the_outside_world_is_refused(loop: SimLoop, what: object) -> None:
    async def main() -> None:
        assert callable(what)
        await what()

    with pytest.raises(SimulationUnsupported, match="refused in a simulation"):
        loop.run_until_complete(main())
    with pytest.raises(SimulationUnsupported):
        loop.add_signal_handler(1, print)


def test_nothing_ready_and_nothing_timed_is_a_deadlock(loop: SimLoop) -> None:
    with pytest.raises(DeadlockError):
        loop.run_until_complete(asyncio.Event().wait())


def test_spinning_within_one_instant_is_a_livelock(loop: SimLoop) -> None:
    async def spin() -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(LivelockError, match="spins"):
        loop.run_until_complete(spin())


def test_a_run_without_end_is_given_up_by_steps(loop: SimLoop) -> None:
    async def tick() -> None:
        while True:
            await asyncio.sleep(0.001)

    with pytest.raises(BudgetExceeded, match="50000 steps"):
        loop.run_until_complete(tick())


def test_a_run_without_end_is_given_up_by_virtual_time(loop: SimLoop) -> None:
    with pytest.raises(BudgetExceeded, match="virtual seconds"):
        loop.run_until_complete(asyncio.sleep(2e6))


def test_cancelled_timers_do_not_pile_up(loop: SimLoop) -> None:
    async def main() -> None:
        for _ in range(10_000):
            async with asyncio.timeout(1000.0):
                await asyncio.sleep(0)

    loop.budgets = Budgets()
    loop.run_until_complete(main())
    assert len(loop._timers) < 2_500


def test_a_task_that_fails_unseen_is_a_problem(loop: SimLoop) -> None:
    problems: list[str] = []
    loop.on_problem = problems.append

    async def fail() -> None:
        raise ValueError("nobody looks")

    async def main() -> None:
        task = asyncio.create_task(fail(), name="unseen")
        await asyncio.sleep(1.0)
        del task

    loop.run_until_complete(main())
    assert problems == ["Task exception was never retrieved in task 'unseen': ValueError: nobody looks"]


@pytest.mark.parametrize("rate", [0.9, 0.997, 1.0, 1.003, 1.1])
def test_a_machine_that_sleeps_until_a_deadline_of_its_own_clock_reaches_it(loop: SimLoop, rate: float) -> None:
    node = SimNode("a")
    node.set_clock(12345.678, 0.0)
    node.set_rate(rate, 0.0)

    async def main() -> float:
        deadline = loop.time() + 100.0
        while (left := deadline - loop.time()) > 0:
            await asyncio.sleep(left)
        return loop.now

    task = loop.create_task(main(), context=node.context.copy())
    assert loop.run_until_complete(task) == pytest.approx(100.0 / rate)
    assert loop.steps < 20


def test_reordering_is_opt_in(loop: SimLoop) -> None:
    ran: list[int] = []

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(asyncio.sleep(0)).add_done_callback(lambda _, number=number: ran.append(number))

    loop.pick = lambda count: count - 1
    loop.run_until_complete(main())
    assert ran == [2, 1, 0]
