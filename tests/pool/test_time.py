"""Tickers and schedules, in real time, on any backend."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

import corepool
from corepool import JobPlan, Node

from .conftest import Pool, eventually


async def collect(node: Node, fired: list[tuple[str, int]], interval: float = 0.1) -> None:
    async with aclosing(node.ticker("t", interval)) as ticks:
        async for number in ticks:
            fired.append((node.id, number))  # noqa: PERF401  one by one, as they come


async def test_a_tick_fires_on_exactly_one_node(pool: Pool) -> None:
    nodes = [await pool.node() for _ in range(3)]
    fired: list[tuple[str, int]] = []
    tasks = [asyncio.create_task(collect(node, fired)) for node in nodes]
    await eventually(lambda: len(fired) >= 6)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    numbers = [number for _, number in fired]
    assert numbers == list(range(1, len(numbers) + 1))


async def test_ticks_go_on_when_their_node_dies(pool: Pool) -> None:
    nodes = [await pool.node() for _ in range(2)]
    fired: list[tuple[str, int]] = []
    tasks = [asyncio.create_task(collect(node, fired)) for node in nodes]
    await eventually(lambda: len(fired) >= 2)
    tasks[0].cancel()
    await nodes[0].abandon()
    count = len(fired)
    await eventually(lambda: len(fired) >= count + 3)
    tasks[1].cancel()
    await asyncio.wait(tasks)
    numbers = [number for _, number in fired]
    assert numbers == list(range(1, len(numbers) + 1))


class Feeds:
    """A producer whose plan a test sets."""

    name = "feeds"

    def __init__(self, plan: JobPlan) -> None:
        self.next = plan
        self.error: BaseException | None = None
        self.asked = 0

    async def plan(self) -> JobPlan:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return self.next


async def test_a_schedule_starts_and_stops_jobs(pool: Pool) -> None:
    node = await pool.node(workers=2)
    producer = Feeds(JobPlan(start={"a": b"1", "b": b"2"}))
    schedule = await node.schedule(producer, 0.05)
    await eventually(lambda: pool.running() == {"a": 1, "b": 1})
    producer.next = JobPlan(start={"c": b"3"}, stop=["a", "never there"])
    await eventually(lambda: pool.running() == {"b": 1, "c": 1})
    producer.next = JobPlan(start={"c": b"3", "d": b"4"}, stop_all=True)
    await eventually(lambda: pool.running() == {"c": 1, "d": 1})
    starts = sum(len(handler.starts) for handler in pool.handlers)
    asked = producer.asked
    await eventually(lambda: producer.asked > asked + 2)
    assert sum(len(handler.starts) for handler in pool.handlers) == starts, "what runs already was started again"
    await schedule.stop()
    assert not schedule.running


async def test_a_producer_that_fails_is_asked_again(pool: Pool) -> None:
    node = await pool.node(workers=1)
    producer = Feeds(JobPlan(start={"a": b""}))
    producer.error = RuntimeError("the table is locked")
    await node.schedule(producer, 0.05)
    await eventually(lambda: producer.asked >= 2)
    producer.error = None
    await eventually(lambda: pool.running() == {"a": 1})


async def test_schedule_stop_ends_it_everywhere(pool: Pool) -> None:
    nodes = [await pool.node() for _ in range(3)]
    producers = [Feeds(JobPlan()) for _ in nodes]
    schedules = [await node.schedule(producer, 0.05) for node, producer in zip(nodes, producers, strict=True)]
    await eventually(lambda: sum(producer.asked for producer in producers) >= 2)
    for producer in producers:
        producer.error = corepool.ScheduleStop()
    await eventually(lambda: not any(schedule.running for schedule in schedules))
    assert sum(producer.error is not None and producer.asked > 0 for producer in producers) >= 1


async def test_a_bad_producer(pool: Pool) -> None:
    node = await pool.node()
    with pytest.raises(corepool.InvalidOptionError, match="plan"):
        await node.schedule(object(), 1.0)  # type: ignore[arg-type]
    with pytest.raises(corepool.InvalidOptionError, match="empty"):
        await anext(node.ticker("", 1.0))


async def test_ticks_and_schedules_end_with_their_node(pool: Pool) -> None:
    node = await pool.node()
    fired: list[tuple[str, int]] = []
    ticking = asyncio.create_task(collect(node, fired))
    schedule = await node.schedule(Feeds(JobPlan()), 0.05)
    await eventually(lambda: len(fired) >= 2)
    await node.close()
    async with asyncio.timeout(5):
        await ticking
    assert not schedule.running


async def test_a_shutdown_ends_the_ticks_of_every_node(pool: Pool) -> None:
    nodes = [await pool.node() for _ in range(2)]
    fired: list[tuple[str, int]] = []
    tasks = [asyncio.create_task(collect(node, fired)) for node in nodes]
    await eventually(lambda: len(fired) >= 2)
    await nodes[0].shutdown()
    async with asyncio.timeout(10):
        await asyncio.gather(*tasks)
