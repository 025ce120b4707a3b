"""A stretch of a task: interrupted from outside, and nothing else taken for that."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from corepool.pool.interruptible import Interrupted, Stretch


async def _running(stretch: Stretch, work: Coroutine[Any, Any, None]) -> asyncio.Task[BaseException | None]:
    """Somebody who runs the stretch, and waits a turn afterwards: where a cancellation would come out that was meant for it."""

    async def run() -> BaseException | None:
        try:
            return await stretch.run(work)
        finally:
            await asyncio.sleep(0)

    task = asyncio.ensure_future(run())
    await asyncio.sleep(0)
    return task


async def _for_ever() -> None:
    await asyncio.Event().wait()


async def test_what_it_raises_is_returned() -> None:
    async def fail() -> None:
        raise ValueError("no")

    assert isinstance(await Stretch().run(fail()), ValueError)
    assert await Stretch().run(asyncio.sleep(0)) is None


async def test_interrupted_it_ends_and_its_task_goes_on() -> None:
    stretch = Stretch()
    task = await _running(stretch, _for_ever())
    stretch.interrupt()
    stretch.interrupt()
    with pytest.raises(Interrupted):
        await task
    assert task.cancelling() == 0


async def test_an_interruption_that_is_swallowed_leaves_no_trace() -> None:
    async def swallow() -> None:
        try:
            await _for_ever()
        except asyncio.CancelledError:
            return

    stretch = Stretch()
    task = await _running(stretch, swallow())
    stretch.interrupt()
    assert await task is None
    assert task.cancelling() == 0


async def test_an_interruption_of_what_is_over_does_nothing() -> None:
    stretch = Stretch()
    stretch.interrupt()
    assert await stretch.run(asyncio.sleep(0)) is None
    asyncio.get_running_loop().call_soon(stretch.interrupt)  # somebody else, not this task itself
    for _ in range(3):
        await asyncio.sleep(0)


@pytest.mark.parametrize("swallows", [False, True])
@pytest.mark.parametrize("interrupted", [False, True])
async def test_a_cancelled_task_is_cancelled_whatever_the_work_makes_of_it(swallows: bool, interrupted: bool) -> None:
    async def work() -> None:
        try:
            await _for_ever()
        except asyncio.CancelledError:
            if not swallows:
                raise

    stretch = Stretch()
    task = await _running(stretch, work())
    if interrupted:
        stretch.interrupt()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_a_cancellation_of_its_own_making_is_an_error_like_others() -> None:
    async def cancel() -> None:
        raise asyncio.CancelledError("mine")

    error = await Stretch().run(cancel())
    assert isinstance(error, asyncio.CancelledError)
    assert error.args == ("mine",)


async def test_work_that_interrupts_itself_comes_to_its_end() -> None:
    stretch = Stretch()

    async def work() -> None:
        stretch.interrupt()

    task = await _running(stretch, work())
    assert await task is None


async def test_a_timeout_within_is_told_from_an_interruption() -> None:
    async def late() -> None:
        async with asyncio.timeout(0.01):
            await _for_ever()

    assert isinstance(await Stretch().run(late()), TimeoutError)
