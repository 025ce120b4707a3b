"""The cluster: what somebody who tests handlers holds in his hands."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from corepool import Job, JobExistsError, PoolShutdownError
from corepool.testing import Cluster, ClusterNode, Faults, NodeCrashed, Result, simulate_cluster
from corepool.testing.recording import Recorder
from corepool_memory.options import MemoryOptions

QUICK: dict[str, Any] = {"worker_ttl": 5.0, "ack_grace_period": 4.0}


class Feeds:
    """A handler with a memory."""

    def __init__(self) -> None:
        self.running: dict[str, bytes] = {}
        self.notes: list[tuple[str, bytes]] = []

    async def start(self, job: Job) -> None:
        self.running[job.key] = job.payload

    async def stop(self, key: str) -> None:
        del self.running[key]

    async def notify(self, key: str, payload: bytes) -> None:
        self.notes.append((key, payload))


def run(scenario: Callable[[Cluster], Awaitable[object]], seeds: int = 3, **options: Any) -> list[Result]:
    return [simulate_cluster(scenario, seed=seed, **options).check() for seed in range(seeds)]


async def _three(cluster: Cluster) -> list[ClusterNode]:
    return [await cluster.node("feeds", worker=Feeds, **QUICK) for _ in range(3)]


def test_the_first_five_minutes() -> None:
    async def scenario(cluster: Cluster) -> None:
        a, b, c = await _three(cluster)
        await a.dispatch_job("k", b"payload")
        [owner] = cluster.running("k")
        await b.notify_worker("k", b"refresh")
        with pytest.raises(JobExistsError):
            await c.dispatch_job("k")
        assert await b.job_keys() == ["k"]
        assert await b.job_payload("k") == b"payload"
        explained = await c.explain("k")
        assert explained is not None
        assert explained.key == "k"
        assert len(a.pool_workers()) == 3
        assert (await a.health()).healthy
        await c.stop_job("k")
        assert cluster.running("k") == cluster.owners("k") == []
        [tenure] = cluster.history("k")
        assert tenure.machine == owner.name
        assert tenure.payload == b"payload"
        assert [call.name for call in cluster.calls][:3] == ["dispatch_job", "notify_worker", "dispatch_job"]
        assert isinstance(cluster.calls[2].error, JobExistsError)

    run(scenario)


def test_a_job_survives_the_crash_of_its_owner() -> None:
    async def scenario(cluster: Cluster) -> None:
        nodes = await _three(cluster)
        await nodes[0].dispatch_job("k", b"payload")
        [owner] = cluster.running("k")
        await cluster.crash(owner)
        assert cluster.running("k") == []
        assert not owner.alive
        await cluster.eventually(lambda: cluster.running("k"), within=60.0)
        first, second = cluster.history("k")
        assert second.token > first.token
        assert second.payload == b"payload"

    run(scenario)


def test_a_restarted_machine_comes_back_without_memory() -> None:
    async def scenario(cluster: Cluster) -> None:
        made: list[Feeds] = []

        def make() -> Feeds:
            made.append(Feeds())
            return made[-1]

        node = await cluster.node("feeds", worker=make, **QUICK)
        await node.dispatch_job("k")
        await cluster.crash(node)
        with pytest.raises(NodeCrashed):
            await node.job_keys()
        await cluster.restart(node)
        await cluster.eventually(lambda: cluster.running("k"), within=60.0)
        assert len(made) == 2
        assert list(made[1].running) == ["k"]

    run(scenario)


def test_calls_under_way_end_when_their_machine_crashes() -> None:
    async def scenario(cluster: Cluster) -> None:
        node = await cluster.node("feeds", **QUICK)
        call = asyncio.create_task(node.dispatch_job("k", timeout=100.0))
        await cluster.sleep(1.0)
        await cluster.crash(node)
        with pytest.raises(NodeCrashed):
            await call

    run(scenario, seeds=1)


def test_a_paused_owner_is_replaced_and_then_stops() -> None:
    async def scenario(cluster: Cluster) -> None:
        nodes = await _three(cluster)
        await nodes[0].dispatch_job("k")
        [owner] = cluster.running("k")
        await cluster.pause(owner)
        await cluster.eventually(lambda: len(cluster.running("k")) == 2, within=60.0)
        first, second = cluster.history("k")
        assert second.token > first.token
        await cluster.resume(owner)
        await cluster.eventually(lambda: first.ended is not None, within=1.0)
        await cluster.eventually(lambda: len(cluster.running("k")) == 1, within=60.0)

    run(scenario)


def test_a_node_that_is_cut_off_stops_before_another_starts() -> None:
    async def scenario(cluster: Cluster) -> None:
        nodes = await _three(cluster)
        await nodes[0].dispatch_job("k")
        [owner] = cluster.running("k")
        await cluster.sleep(10.0)
        await cluster.partition(owner)
        await cluster.eventually(lambda: cluster.running("k") not in ([], [owner]), within=60.0)
        first, second = cluster.history("k")
        assert first.ended is not None
        assert first.ended <= second.began
        await cluster.heal(owner)
        await cluster.sleep(30.0)
        assert len(cluster.running("k")) == 1

    run(scenario)


def test_skewed_clocks_kill_nobody() -> None:
    async def scenario(cluster: Cluster) -> None:
        nodes = await _three(cluster)
        await nodes[0].dispatch_job("k")
        await cluster.skew(nodes[0], 86400.0)
        await cluster.skew(nodes[1], -86400.0)
        await cluster.set_clock_rate(nodes[2], 1.05)
        await cluster.sleep(600.0)
        assert len(cluster.history("k")) == 1

    run(scenario)


def test_a_clog_and_a_reset_lose_no_job() -> None:
    async def scenario(cluster: Cluster) -> None:
        nodes = await _three(cluster)
        await nodes[0].dispatch_job("k")
        await cluster.clog(nodes[0], 2.0)
        await cluster.reset(nodes[1])
        await nodes[2].notify_worker("k", b"x")
        await cluster.eventually(lambda: len(cluster.running("k")) == 1, within=30.0)

    run(scenario)


def test_closing_hands_over_and_leaves_nothing() -> None:
    async def scenario(cluster: Cluster) -> None:
        nodes = await _three(cluster)
        await nodes[0].dispatch_job("k")
        [owner] = cluster.running("k")
        assert isinstance(owner, ClusterNode)
        await owner.close()
        assert owner.tasks() == []
        await cluster.eventually(lambda: len(cluster.running("k")) == 1, within=10.0)
        assert cluster.running("k") != [owner]
        with pytest.raises(NodeCrashed, match="not up"):
            await owner.job_keys()

    run(scenario)


def test_shutdown_ends_the_pool() -> None:
    async def scenario(cluster: Cluster) -> None:
        nodes = await _three(cluster)
        await nodes[0].dispatch_job("k")
        await nodes[1].shutdown()
        assert cluster.running("k") == []
        with pytest.raises(PoolShutdownError):
            await nodes[1].dispatch_job("k2")

    run(scenario, seeds=1)


def test_a_client_only_node_and_a_ticker() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.node("feeds", worker=Feeds(), **QUICK)
        client = await cluster.node("feeds", client_only=True, name="client", **QUICK)
        await client.dispatch_job("k")
        ticks = [number async for number in _some(client.ticker("t", 1.0), 3)]
        assert ticks == sorted(ticks)
        assert [machine.name for machine in cluster.machines] == ["node-1", "client"]

    run(scenario, seeds=1)


async def _some(ticks: Any, count: int) -> Any:
    async for number in ticks:
        yield number
        count -= 1
        if not count:
            await ticks.aclose()
            return


def test_plain_maps_need_no_pool() -> None:
    async def scenario(cluster: Cluster) -> None:
        one, two = cluster.backend(), cluster.machine("two")
        await one.namespace("n").map("m").set("k", b"v")
        entry = await two.run(lambda: two.backend.namespace("n").map("m").get("k"))
        assert entry is not None
        assert entry.value == b"v"

    run(scenario, seeds=1)


def test_the_store_without_atomic_commits() -> None:
    async def scenario(cluster: Cluster) -> None:
        nodes = await _three(cluster)
        assert not nodes[0].backend.capabilities.atomic_commit
        await nodes[0].dispatch_job("k")
        await nodes[1].stop_job("k")

    run(scenario, store_options=MemoryOptions(atomic_commit=False))


def test_a_class_of_worker_that_is_plain_functions() -> None:
    class Plain:
        def __init__(self) -> None:
            self.seen: list[str] = []

        def start(self, job: Job) -> None:
            self.seen.append(f"start {job.key}")

        def stop(self, key: str) -> None:
            self.seen.append(f"stop {key}")

    async def scenario(cluster: Cluster) -> None:
        handler = Plain()
        node = await cluster.node("feeds", worker=handler, **QUICK)
        await node.dispatch_job("k")
        await node.stop_job("k")
        assert handler.seen == ["start k", "stop k"]

    run(scenario, seeds=1)


def test_sometimes_always_choose_and_tell() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.node("feeds", worker=Feeds, **QUICK)
        looked: list[float] = []
        cluster.always("look", lambda: looked.append(cluster.now))
        cluster.sometimes("never", condition=False)
        cluster.sometimes("here")
        cluster.tell(f"chose {cluster.choose(3, 'of three')}")
        await cluster.sleep(10.0)
        assert looked

    [result] = run(scenario, seeds=1)
    assert result.sometimes == {"here": 1}
    assert any("chose" in line for line in result.trace)


# --- the watch over handlers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", [True, False])
def test_two_live_owners_end_the_run(check: bool) -> None:
    async def scenario(cluster: Cluster) -> None:
        a, b, _ = await _three(cluster)
        await a.dispatch_job("k")
        [tenure] = cluster.history("k")
        other = b if cluster.running("k") != [b] else a
        job = Job("k", b"", _next_token(tenure.token), 1)
        cluster.recorder.begin(other.sim, job, {})

    result = simulate_cluster(scenario, check_ownership=check, most_replays=0)
    assert result.passed is not check
    if result.violation is not None:
        assert "two live owners" in result.violation.text


def _next_token(token: Any) -> Any:
    return type(token)(token.generation, token.revision + 1)


def test_tokens_that_do_not_grow_end_the_run() -> None:
    async def scenario(cluster: Cluster) -> None:
        a, _b, _c = await _three(cluster)
        await a.dispatch_job("k")
        await a.stop_job("k")
        [tenure] = cluster.history("k")
        Recorder.begin(cluster.recorder, a.sim, Job("k", b"", tenure.token, 1), {})

    violation = simulate_cluster(scenario, most_replays=0).violation
    assert violation is not None
    assert "tokens of a key only grow" in violation.text


def test_a_stop_without_a_start_ends_the_run() -> None:
    async def scenario(cluster: Cluster) -> None:
        a = await cluster.node("feeds", **QUICK)
        cluster.recorder.stop_called(a.sim, "k", {})

    violation = simulate_cluster(scenario, most_replays=0).violation
    assert violation is not None
    assert "does not have the job" in violation.text


PROGRAM = """
import asyncio, logging
from corepool.errors import CorepoolError
from corepool.testing import Budgets, Faults, NodeCrashed, simulate_cluster

class Feeds:
    async def start(self, job): await asyncio.sleep(0.1)
    async def stop(self, key): await asyncio.sleep(0.1)

async def scenario(cluster):
    nodes = [await cluster.node("feeds", worker=Feeds, worker_ttl=5.0, ack_grace_period=4.0) for _ in range(4)]
    for number in range(12):
        node = nodes[cluster.choose(4, "node")]
        try:
            await (node.dispatch_job(f"k{number}") if number % 3 else node.stop_job(f"k{number - 1}"))
        except (CorepoolError, NodeCrashed) as error:
            cluster.sometimes(type(error).__name__)

for seed in range(3):
    budgets = Budgets(virtual_seconds=600.0)
    result = simulate_cluster(scenario, seed=seed, faults=Faults.everything(), budgets=budgets, most_replays=0)
    print(result.digest, result.steps, result.virtual_seconds, sorted(result.sometimes.items()), result.trace)
"""


def test_a_pool_runs_alike_in_every_process() -> None:
    outputs: set[str] = set()
    for hash_seed in ("0", "1", "4242", "random"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=50, check=False
        )
        assert done.returncode == 0, done.stderr
        outputs.add(done.stdout)
    assert len(outputs) == 1
    assert len(outputs.pop().splitlines()) == 3


def test_faults_by_themselves_do_not_disturb_what_must_hold() -> None:
    async def scenario(cluster: Cluster) -> None:
        nodes = await _three(cluster)
        cluster.world.calm()
        for number in range(6):
            await nodes[number % 3].dispatch_job(f"k{number}")
        cluster.world.storm()
        await cluster.sleep(120.0)
        await cluster.eventually(
            lambda: all(len(cluster.running(f"k{number}")) == 1 for number in range(6)), within=120.0
        )

    faults = Faults(crash_every=40.0, pause_every=60.0, skew_every=60.0, wall_skew=3600.0, outage=20.0)
    results = run(scenario, seeds=4, faults=faults)
    assert any(result.faults.get("crash") for result in results)
