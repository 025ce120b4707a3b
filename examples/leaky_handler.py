"""A handler with a common mistake, and a simulated test that finds it: ``pytest examples/leaky_handler.py``.

The test fails for `FeedPoller`, which is wrong, and passes for `CarefulFeedPoller`, which is right. The whole story, with the
report of the failure, is told in docs/testing-your-handlers.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import Any

import pytest

import corepool


class Archive:
    """Stands for the database that feeds are written to: it remembers under which token each row was written."""

    def __init__(self) -> None:
        self.rows: dict[str, list[corepool.FencingToken]] = {}

    def write(self, key: str, token: corepool.FencingToken) -> None:
        self.rows.setdefault(key, []).append(token)

    def check(self) -> None:
        """Once a feed has a new owner, the old one never writes it again."""
        for key, tokens in self.rows.items():
            for earlier, later in itertools.pairwise(tokens):
                if later < earlier:
                    raise AssertionError(f"{key} was written under token {later}, after {earlier} had taken it over")


class FeedPoller:
    """Polls each feed every five seconds, in a task of its own."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.polls: dict[str, asyncio.Task[None]] = {}

    async def start(self, job: corepool.Job) -> None:
        self.polls[job.key] = asyncio.create_task(self.poll(job), name=f"poll {job.key}")

    async def stop(self, key: str) -> None:
        self.polls.pop(key)  # forgotten is not stopped: the task goes on polling

    async def poll(self, job: corepool.Job) -> None:
        while True:
            self.archive.write(job.key, job.fencing_token)
            await asyncio.sleep(5.0)


class CarefulFeedPoller(FeedPoller):
    """The same without the mistake."""

    async def stop(self, key: str) -> None:
        poll = self.polls.pop(key)
        poll.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await poll  # only when it has really ended may another worker start this job


@pytest.mark.parametrize("poller", [FeedPoller, CarefulFeedPoller])
def test_one_poller_per_feed(corepool_simulation: Any, poller: type[FeedPoller]) -> None:
    async def scenario(cluster: Any) -> None:
        archive = Archive()
        cluster.always("one writer per feed", archive.check)
        first = await cluster.node("feeds", worker=lambda: poller(archive))
        for feed in ("news", "weather", "sports"):
            await first.dispatch_job(feed)
        second = await cluster.node("feeds", worker=lambda: poller(archive))  # some of the feeds belong to it now
        await cluster.sleep(60)
        cluster.sometimes("a feed moved", any(cluster.running(feed) == [second] for feed in archive.rows))

    corepool_simulation(scenario, reaches=["a feed moved"])
