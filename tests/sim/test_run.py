"""Verdicts: equal in every process, reduced, replayable, and told in few lines."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import time
from collections.abc import AsyncGenerator

import pytest

from corepool.driver import ABSENT, REVISION
from corepool_memory.sim.chooser import SeededChooser
from corepool_memory.sim.errors import OtherConditions, SimulationFailed, TokenError
from corepool_memory.sim.faults import Faults
from corepool_memory.sim.run import Violation, simulate
from corepool_memory.sim.world import World

PROGRAM = """
import asyncio, sys
from corepool.errors import BackendUnavailable, OutcomeUnknown
from corepool_memory.sim.faults import Faults
from corepool_memory.sim.run import simulate

async def scenario(world):
    async def client(name):
        backend = world.backend(world.node(name))
        store = backend.namespace("n").map("m")
        async def follow():
            async for event in store.watch():
                world.sometimes("seen")
        follower = asyncio.create_task(follow())
        waiting = set()
        for turn in range(100):
            waiting |= {asyncio.create_task(store.set(f"{turn % 5}", b"x")), asyncio.create_task(store.get(f"{turn % 7}"))}
            done, waiting = await asyncio.wait(waiting, timeout=0.05, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if task.exception() is None:
                    world.sometimes("ok")
            await asyncio.sleep(backend.random.random())
        for task in waiting:
            task.cancel()
        follower.cancel()
        world.tell(f"{name} is done")

    for name in "abc":
        world.add_node(name)
    async with asyncio.TaskGroup() as group:
        for name in "abc":
            group.create_task(_survive(world, name, client))

async def _survive(world, name, client):
    from corepool_memory.sim.errors import NodeCrashed
    try:
        await world.on(world.node(name), lambda: client(name))
    except NodeCrashed:
        world.sometimes("crashed")

for seed in range(3):
    result = simulate(scenario, seed=seed, faults=Faults.everything()).check()
    print(result.digest, result.steps, result.virtual_seconds, sorted(result.sometimes.items()), sorted(result.faults.items()))
"""


def _output(hash_seed: str) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_run_is_the_same_in_every_process() -> None:
    outputs = {_output(hash_seed) for hash_seed in ("0", "1", "4242", "random")}
    assert len(outputs) == 1
    assert len(set(outputs.pop().splitlines())) == 3  # and different seeds are different runs


async def _abandoned_generators(world: World) -> None:
    """Generators in cycles, whose finally blocks run when the garbage collector finds them."""

    async def numbers(box: list[object]) -> AsyncGenerator[int]:
        try:
            while True:
                yield len(box)
        finally:
            await asyncio.sleep(0)
            world.tell("finalized")

    for _ in range(300):
        box: list[object] = []
        generator = numbers(box)
        box.append(generator)
        assert await anext(generator) == 1
        del box, generator
        await asyncio.sleep(0.01)
        world.tell("turn")


def _digests_in_a_changing_process() -> set[str]:
    digests: set[str] = set()
    litter: list[list[int]] = []
    for round_ in range(4):
        litter += [[number] for number in range(137 * round_)]
        digests.add(simulate(_abandoned_generators).check().digest)
    return digests


def test_garbage_collection_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    threshold = gc.get_threshold()
    gc.set_threshold(50)
    try:
        assert len(_digests_in_a_changing_process()) == 1
        with monkeypatch.context() as patch:
            patch.setattr(gc, "disable", lambda: None)
            assert len(_digests_in_a_changing_process()) > 1  # else the line above proves nothing
    finally:
        gc.set_threshold(*threshold)


# --- a planted bug ---------------------------------------------------------------------------------------------------


async def _clean(world: World, name: str, inside: list[str], *, right: bool) -> None:
    """Take over a stale lock. The wrong way is delete-then-create: it lets two cleaners in (DESIGN 4.4)."""
    store = world.backend(world.add_node(name)).namespace("pool").map("locks")
    stale = await store.get("worker")
    if stale is None or stale.value != b"stale":
        return
    if right:
        taken = await store.set("worker", name.encode(), REVISION(stale.revision))
    else:
        await store.delete("worker")
        taken = await store.set("worker", name.encode(), ABSENT)
    if taken.applied:
        inside.append(name)
        world.tell(f"{name} cleans")
        assert len(inside) == 1, "two cleaners are inside"
        await asyncio.sleep(1.0)
        inside.remove(name)


async def stale_lock(world: World, *, right: bool = False) -> None:
    first = world.backend(world.add_node("dead")).namespace("pool").map("locks")
    await first.set("worker", b"stale")
    inside: list[str] = []
    async with asyncio.TaskGroup() as group:
        for name in ("left", "right"):
            group.create_task(_clean(world, name, inside, right=right))


async def stale_lock_taken_over_rightly(world: World) -> None:
    await stale_lock(world, right=True)


async def one_cleaner_fails(world: World) -> None:
    try:
        await stale_lock(world)
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


def test_a_planted_stale_lock_takeover_is_found_and_reduced() -> None:
    began = time.perf_counter()
    results = (simulate(one_cleaner_fails, seed=seed) for seed in range(200))
    found = next(result for result in results if not result.passed)
    assert time.perf_counter() - began < 5.0
    assert found.reproducible
    assert found.decisions is not None
    assert 1 <= len(found.decisions) <= 3
    replayed = simulate(one_cleaner_fails, token=found.token)
    assert replayed.violation == found.violation
    assert replayed.digest == found.digest


def test_the_right_takeover_is_not_accused() -> None:
    for seed in range(100):
        simulate(stale_lock_taken_over_rightly, seed=seed).check()


def test_a_report_says_what_a_person_needs() -> None:
    found = next(result for seed in range(200) if not (result := simulate(one_cleaner_fails, seed=seed)).passed)
    report = found.report("pytest here --corepool-replay {token}")
    assert f"seed {found.seed}" in report
    assert "two cleaners are inside" in report
    assert "test_run.py:" in report
    assert "left cleans" in report
    assert f"Python {sys.version_info.major}.{sys.version_info.minor}" in report
    assert report.count("--corepool-replay") == 1
    assert report.endswith(f"pytest here --corepool-replay {found.token}")
    assert len(report.splitlines()) <= 36
    assert len(found.token) < 120
    with pytest.raises(SimulationFailed, match="two cleaners"):
        found.check()


def test_a_long_story_is_cut_to_thirty_lines() -> None:
    async def scenario(world: World) -> None:
        for turn in range(500):
            world.tell(f"turn {turn}")
        raise ValueError("at the end")

    report = simulate(scenario).report()
    assert "turn 0\n" in report
    assert "turn 499\n" in report
    assert "more events" in report
    assert len(report.splitlines()) <= 36


def test_a_seed_alone_replays_too() -> None:
    async def scenario(world: World) -> None:
        await world.backend(world.add_node("a")).namespace("n").map("m").get("k")

    result = simulate(scenario, seed=77)
    replayed = simulate(scenario, token=result.token)
    assert (replayed.seed, replayed.digest) == (77, result.digest)


def test_a_token_of_another_scenario_is_refused() -> None:
    async def other(_world: World) -> None:
        return

    token = simulate(other).token
    with pytest.raises(TokenError, match="another scenario"):
        simulate(one_cleaner_fails, token=token)


async def fails_at_once(world: World) -> None:
    raise ValueError(world.chooser.choose(4, "scenario:luck"))


@pytest.mark.parametrize(
    ("recorded", "here"),
    [
        (Faults.everything(), None),
        (None, Faults.everything()),
        (Faults(crash_every=60.0), Faults(crash_every=61.0)),
    ],
)
def test_a_token_of_a_run_under_other_faults_is_refused(recorded: Faults | None, here: Faults | None) -> None:
    token = simulate(fails_at_once, faults=recorded).token
    assert simulate(fails_at_once, faults=recorded, token=token).token == token
    with pytest.raises(OtherConditions, match=r"recorded with .*faults, and|recorded with faults=Faults") as refused:
        simulate(fails_at_once, faults=here, token=token)
    assert refused.value.recorded.keys() == ({"faults"} if recorded else set())


def test_a_token_of_the_subjects_other_options_is_refused() -> None:
    token = simulate(fails_at_once, conditions={"store_options": "MemoryOptions(atomic_commit=False)"}).token
    with pytest.raises(OtherConditions, match=r"atomic_commit=False\), and this run has the default store_options"):
        simulate(fails_at_once, token=token)


def test_a_report_tells_the_faults_that_happened_and_no_others() -> None:
    async def unlucky(world: World) -> None:
        world.add_node("a")
        world.crash("a")
        raise ValueError

    async def lucky(_world: World) -> None:
        raise ValueError

    found = [simulate(unlucky), simulate(lucky), simulate(lucky, faults=Faults(crash_every=0.1, swarm=False))]
    reports = [result.report() for result in found]
    assert "faults: 1 crash)" in reports[0]
    assert "without any fault or delay but those of the scenario itself" in reports[0]
    assert all("faults: none but latency)" in report for report in reports[1:])
    assert all(report.splitlines()[-3].endswith("without any fault or delay") for report in reports[1:])


def test_a_replay_is_the_run_of_its_token_reduced_or_not() -> None:
    found = next(
        result for seed in range(200) if not (result := simulate(one_cleaner_fails, seed=seed, most_replays=0)).passed
    )
    replayed = simulate(one_cleaner_fails, token=found.token)
    assert (replayed.digest, replayed.token, replayed.decisions) == (found.digest, found.token, None)


def test_code_that_is_no_function_of_its_seed_is_told_so() -> None:
    lengths = iter(range(1, 1000))

    async def scenario(world: World) -> None:
        await asyncio.sleep(next(lengths))
        raise ValueError(f"after {world.now}")

    result = simulate(scenario)
    assert not result.reproducible
    assert "NOT REPRODUCIBLE" in result.report()


# --- what a run leaves behind ----------------------------------------------------------------------------------------


def test_an_exception_that_nobody_retrieved_fails_the_run() -> None:
    async def fail() -> None:
        raise ValueError("unseen")

    async def scenario(_world: World) -> None:
        asyncio.create_task(fail(), name="careless")  # noqa: RUF006  that is the point
        await asyncio.sleep(1.0)

    violation = simulate(scenario, most_replays=0).violation
    assert violation is not None
    assert violation.kind == "left over"
    assert "'careless': ValueError: unseen" in violation.text


def test_a_task_that_was_never_awaited_fails_the_run() -> None:
    async def scenario(_world: World) -> None:
        asyncio.create_task(asyncio.sleep(100.0), name="forgotten")  # noqa: RUF006  that is the point

    violation = simulate(scenario, most_replays=0).violation
    assert violation is not None
    assert "task 'forgotten' was never awaited" in violation.text


def test_what_runs_on_machines_may_run_on() -> None:
    async def scenario(world: World) -> None:
        world.spawn(world.add_node("a"), asyncio.sleep(100.0))

    simulate(scenario).check()


def test_a_failing_check_ends_the_run_at_once() -> None:
    async def scenario(world: World) -> None:
        store = world.backend(world.add_node("a")).namespace("n").map("m")

        def few() -> None:
            assert len(world.server.maps("n").entries("m")) < 5, "too many keys"

        world.always("few keys", few)
        for number in range(100):
            await store.set(str(number), b"")

    result = simulate(scenario)
    assert result.violation is not None
    assert result.violation.kind == "invariant"
    assert "few keys: too many keys" in result.violation.text
    assert result.decisions == {}


def test_eventually_gives_up_in_virtual_time() -> None:
    async def scenario(world: World) -> None:
        await world.eventually(lambda: False, within=1000.0, what="the impossible")

    violation = simulate(scenario, most_replays=0).violation
    assert violation is not None
    assert "the impossible did not come true within 1000 virtual seconds" in violation.text


def test_a_simulation_inside_a_running_loop_is_refused() -> None:
    async def outer() -> None:
        simulate(one_cleaner_fails)

    with pytest.raises(RuntimeError, match="not async def"):
        asyncio.run(outer())


def test_interrupts_are_not_verdicts() -> None:
    async def scenario(_world: World) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(scenario)


def test_teardown_closes_what_a_run_left_without_a_sound() -> None:
    closed: list[str] = []

    async def stubborn() -> None:
        try:
            await asyncio.sleep(1000.0)
        finally:
            try:
                await asyncio.sleep(1.0)
            finally:
                closed.append("closed")

    async def scenario(world: World) -> None:
        world.spawn(world.add_node("a"), stubborn())
        world.spawn(world.add_node("b"), stubborn())
        await asyncio.sleep(1.0)
        world.crash("a")

    result = simulate(scenario, faults=Faults.network()).check()
    assert result.virtual_seconds == 1.0
    assert closed == ["closed", "closed"]


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("after every step: 2 (R1): node-1 removed 'k1'", "after every step: 2 (R1): node-3 removed 'k0'", True),
        ("after every step: 2 (R1): node-1 removed 'k1'", "after every step: 4: a record was overwritten", False),
        ("InvariantViolated: 10: k0 is pending", "InvariantViolated: 11: payloads and jobs differ", False),
        ("AssertionError: 3 jobs are gone", "AssertionError: 4 jobs are gone", True),
        ("", "ValueError", True),
    ],
)
def test_a_failure_is_reduced_to_one_of_the_same_invariant(one: str, other: str, alike: bool) -> None:
    assert Violation("raised", "at here", one).is_like(Violation("raised", "at here", other)) == alike
    assert not Violation("raised", "at here", one).is_like(Violation("raised", "elsewhere", one))


def test_reducing_keeps_to_the_invariant_that_was_violated() -> None:
    async def scenario(world: World) -> None:
        unlucky = world.chooser.choose(2, "scenario:luck")
        raise AssertionError(f"{1 + unlucky}: unlucky or not")

    found = [simulate(scenario, seed=seed) for seed in range(20)]
    assert {str(result.violation.text)[:18] for result in found if result.violation and result.decisions} == {
        "AssertionError: 2:"
    }


def test_a_replay_that_gets_much_longer_than_the_failure_is_given_up() -> None:
    """Nearly all replays that are tried do not fail: what they take, and not what the failure takes, is what reducing costs."""
    turns = 0

    async def scenario(world: World) -> None:
        nonlocal turns
        if world.chooser.choose(4, "scenario:luck") == 3:
            raise ValueError("out of luck")
        for _ in range(20_000):
            await asyncio.sleep(0.1)
            turns += 1

    seed = next(seed for seed in range(100) if SeededChooser(seed).choose(4, "scenario:luck") == 3)
    assert simulate(scenario, seed=seed).decisions == {("scenario:luck", 0): 3}
    assert 0 < turns < 5_000, "three replays with other luck"


def test_clocks_that_are_wrong_from_the_start_are_faults_of_the_run() -> None:
    async def scenario(world: World) -> None:
        world.add_node("a")

    wrong = Faults(wall_skew=60.0, drift=0.01, swarm=False)
    found = [simulate(scenario, seed=seed, faults=wrong).faults for seed in range(10)]
    assert {kind for faults in found for kind in faults} == {"clock off", "clock drift"}
    assert not simulate(scenario).faults
