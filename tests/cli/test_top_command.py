"""``corepool top``: one look at a pool, without joining it."""

from __future__ import annotations

import json
from typing import Any

import corepool
from corepool.cli.overview import Observer

from .conftest import Cli


class Idle:
    async def start(self, job: corepool.Job) -> None: ...

    async def stop(self, key: str) -> None: ...


async def test_a_pool_that_nobody_used_is_not_made_by_looking(cli: Cli, memory_url: str) -> None:
    for _ in range(2):
        found = json.loads((await cli("top", "--json")).stdout)
        assert found["exists"] is False
    assert "nobody has used this pool yet" in (await cli("top", "--once")).stdout


async def test_it_counts_nodes_clients_workers_and_jobs(cli: Cli, memory_url: str) -> None:
    async with (
        corepool.connect(memory_url) as backend,
        corepool.Node(backend, "p", client_only=True) as client,
        corepool.Node(backend, "p") as node,
    ):
        one, other = await node.add_worker(Idle()), await node.add_worker(Idle())
        for number in range(20):
            await client.dispatch_job(f"job-{number}")
        found = json.loads((await cli("top", "--json")).stdout)
        assert (found["nodes"], found["clients"], found["waiting"]) == (1, 1, 0)
        assert found["jobs"]["running"] == 20
        workers = {view["worker"]: view for view in found["workers"]}
        assert workers.keys() == {one.id, other.id}
        assert sum(view["jobs"] for view in workers.values()) == 20
        assert {view["state"] for view in workers.values()} == {"active"}
        assert {view["node"] for view in workers.values()} == {node.id}
        text = (await cli("top", "--once")).stdout
        assert one.id in text
        assert "20 running" in text


async def test_silence_is_measured_from_the_last_change_that_was_seen(memory_url: str) -> None:
    class Frozen:
        """The backend's clock, moved by hand."""

        now = 100.0

        def wall(self) -> float:
            raise AssertionError("no decision looks at a wall clock")

        def monotonic(self) -> float:
            return self.now

    async with corepool.connect(memory_url) as backend, corepool.Node(backend, "p", worker_ttl=600.0) as node:
        await node.add_worker(Idle())
        clock = Frozen()
        watched: Any = _WithClock(backend, clock)
        observer = Observer(watched, "p")
        first = await observer.look()
        clock.now += 5.0
        second = await observer.look()
    assert [view.silent_for for view in first.workers] == [0.0]
    assert [view.silent_for for view in second.workers] == [5.0]


class _WithClock:
    def __init__(self, backend: corepool.Backend, clock: object) -> None:
        self._backend = backend
        self.clock = clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)
