"""What a run tears out of its loop is gone with the run: it leaves nothing in the thread's own loop, and complains to nobody
later, whatever its ``finally`` blocks still ask of asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import sys
import warnings
import weakref
from collections.abc import Awaitable, Callable, Iterator

import pytest

from corepool.errors import BackendUnavailable
from corepool.testing import Cluster, simulate_cluster
from corepool_memory.sim import run
from corepool_memory.sim.faults import Faults
from corepool_memory.sim.run import simulate
from corepool_memory.sim.world import World

RAN: list[str] = []
KEPT: list[BaseException] = []
"""Errors that outlive the run, with all that their frames hold."""


async def step(name: str) -> None:
    await asyncio.sleep(0)
    RAN.append(name)


async def by_gather() -> None:
    await asyncio.gather(step("a"), step("b"), step("c"))


async def by_gather_with_a_task_of_its_own() -> None:
    await asyncio.gather(asyncio.create_task(step("a")), step("b"), asyncio.ensure_future(step("c")))


async def by_group() -> None:
    async with asyncio.TaskGroup() as group:
        for name in "abc":
            group.create_task(step(name))


async def by_wait() -> None:
    await asyncio.wait([asyncio.create_task(step(name)) for name in "abc"], timeout=1.0)


async def by_wait_for() -> None:
    async with asyncio.timeout(1.0):
        await asyncio.wait_for(step("a"), 1.0)


async def by_the_loop() -> None:
    await asyncio.get_event_loop().create_task(step("a"))


WAYS = [by_gather, by_gather_with_a_task_of_its_own, by_group, by_wait, by_wait_for, by_the_loop]


@pytest.fixture
def complaints(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    """What anybody complains of who goes away at last, with the thread's own loop: any test that comes later might be the one
    that hears it."""
    heard: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: heard.append(str(unraisable.exc_value)))
    RAN.clear()
    KEPT.clear()
    own = asyncio.new_event_loop()
    asyncio.set_event_loop(own)

    def listen() -> list[str]:
        own.call_soon(own.stop)
        own.run_forever()
        own.close()
        KEPT.clear()
        gc.collect()
        return heard

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield listen
    own.close()
    asyncio.set_event_loop(None)


def torn(way: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[None]]:
    """Code that is waiting when the run ends."""

    async def victim() -> None:
        try:
            await asyncio.sleep(1000.0)
        finally:
            try:
                await way()
            except BaseException as error:  # how it is torn out, GeneratorExit included, is what is looked at
                KEPT.append(error)
                raise

    return victim


@pytest.mark.parametrize("crashed", [False, True], ids=["running", "crashed"])
@pytest.mark.parametrize("way", WAYS)
def test_torn_out_code_leaves_nothing_behind(
    way: Callable[[], Awaitable[object]], crashed: bool, complaints: Callable[[], list[str]]
) -> None:
    async def scenario(world: World) -> None:
        asyncio.create_task(world.on(world.add_node("a"), torn(way)))  # noqa: RUF006  it is torn out
        await asyncio.sleep(1.0)
        if crashed:
            world.crash("a")
        raise AssertionError("the result keeps this, and this keeps the run")

    result = simulate(scenario, faults=Faults.network(), most_replays=0)
    assert result.violation is not None
    assert result.violation.kind == "raised"
    del result
    assert complaints() == []
    assert RAN == []


def test_a_handler_and_its_node_leave_nothing_behind(complaints: Callable[[], list[str]]) -> None:
    class Handler:
        def __init__(self) -> None:
            self.tasks: dict[str, asyncio.Task[None]] = {}

        async def start(self, job: object) -> None:
            self.tasks["k"] = asyncio.ensure_future(torn(by_gather)())

        async def stop(self, key: str) -> None:
            await asyncio.gather(step("a"), step("b"))

    async def scenario(cluster: Cluster) -> None:
        nodes = [await cluster.node("feeds", worker=Handler) for _ in range(3)]
        await nodes[0].dispatch_job("k", b"")
        leaving = asyncio.create_task(nodes[1].close())
        await cluster.sleep(0.001)
        assert not leaving.done()
        raise AssertionError("nodes are up, one is leaving, and a job runs")

    assert not simulate_cluster(scenario, most_replays=0).passed
    assert complaints() == []
    assert RAN == []


def test_a_run_that_passed_is_gone_when_it_ends() -> None:
    worlds: list[weakref.ref[World]] = []

    async def scenario(cluster: Cluster) -> None:
        worlds.append(weakref.ref(cluster.world))
        logging.getLogger("corepool").warning("this goes into the story")
        for _ in range(3):
            await cluster.node("feeds", client_only=True)

    result = simulate_cluster(scenario)
    assert result.passed
    assert any("goes into the story" in line for line in result.trace)
    assert worlds[0]() is None


def test_runs_that_failed_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run sets aside what was there before it, and does not look at it: what its predecessors left would stay for ever."""
    monkeypatch.setattr(run, "_MANY", 1000)
    worlds: list[weakref.ref[World]] = []

    async def scenario(world: World) -> None:
        worlds.append(weakref.ref(world))
        world.leaves = [[world] for _ in range(1000)]  # type: ignore[attr-defined]
        raise AssertionError("the result keeps this, and this keeps the run")

    for _ in range(10):
        simulate(scenario, most_replays=0)
    assert sum(world() is not None for world in worlds) <= 3


@pytest.mark.parametrize("cut_off", [False, True], ids=["its own", "the network's"])
def test_an_error_keeps_nothing_alive(cut_off: bool) -> None:
    """No collector runs during a run: what an error's frames held must go with the error."""
    held: list[weakref.ref[object]] = []

    class Large:
        pass

    async def scenario(world: World) -> None:
        node = world.add_node("a")
        store = world.backend(node).namespace("n").map("m")

        async def failing() -> None:
            large = Large()
            held.append(weakref.ref(large))
            if cut_off:
                await store.get("k")
            raise BackendUnavailable("its own")

        if cut_off:
            world.partition("a")
        for _ in range(2):  # the first finds the old connection, the second none
            with contextlib.suppress(BackendUnavailable):
                await world.on(node, failing)
        world.heal()  # what was on its way belongs to a call
        await asyncio.sleep(100.0)
        assert [reference() for reference in held] == [None, None]

    simulate(scenario, most_replays=0).check()
