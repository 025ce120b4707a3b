"""Named scenarios: a tick whose advance fails."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from corepool.errors import BackendUnavailable, OutcomeUnknown
from corepool.testing import Cluster

from .conftest import Simulated
from .looking import gathered, nodes
from .wiretap import Request, Wiretap

FAILURES = ["it is not sent", "it is lost on the way", "its answer is lost", "its node dies of it"]


@pytest.mark.parametrize("failure", FAILURES)
def test_an_advance_fails_once(simulated: Simulated, failure: str) -> None:
    """No tick fires twice, whatever became of the write; none is skipped but the one whose node died; and the ticks go on."""

    async def scenario(cluster: Cluster) -> None:
        tap = Wiretap(cluster)
        pool = await nodes(cluster, 3)
        ticks: list[int] = []

        async def follow(number: int) -> None:
            async for tick in pool[number].ticker("t", 1.0):
                ticks.append(tick)  # noqa: PERF401  each must be seen when it fires

        following = [asyncio.create_task(follow(number)) for number in range(3)]
        await cluster.eventually(lambda: len(ticks) >= 3, within=10.0)

        def unavailable(_: Request) -> None:
            raise BackendUnavailable("not sent")

        def unknown(_: Request) -> None:
            raise OutcomeUnknown("no answer")

        lost: list[int] = []

        def die(request: Request) -> None:
            lost.append(max(ticks) + 1)
            cluster.hit_crash(request.machine)

        match failure:
            case "it is not sent":
                hook = tap.before(_advance, unavailable)
            case "it is lost on the way":
                hook = tap.before(_advance, unknown)
            case "its answer is lost":
                hook = tap.after(_advance, unknown)
            case _:
                hook = tap.applied(_advance, die)
        await cluster.eventually(lambda: hook.hits, within=10.0)
        cluster.sometimes("an advance failed", hook.hits == 1)
        failed_at = max(ticks)
        await cluster.eventually(lambda: max(ticks) >= failed_at + 4, within=20.0)
        for task in following:
            task.cancel()
        await gathered(*following)
        assert max(Counter(ticks).values()) == 1, f"a tick fired twice: {ticks}"
        assert ticks == sorted(ticks)
        assert set(range(1, max(ticks) + 1)) - set(ticks) <= set(lost)

    simulated(scenario, reaches=["an advance failed"])


def _advance(request: Request) -> bool:
    return any(op.when.revision for op in request.sets("tickers."))
