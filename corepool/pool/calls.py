"""Calls that wait for somebody else's answer.

Purpose: give a call an address before its question is sent, and wake it when the answer comes, or when it must look itself.
Invariants: the waiter is registered before anything is sent, so no answer can be missed; an answer to a call that gave up
is dropped; a lost answer costs time only, because every wait looks at the record again.
Neighbours: dispatch, stop and notify register here; the node's inbox delivers answers.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Self

from corepool.errors import CorepoolError
from corepool.pool.wire import Answer

__all__ = ["Call", "Calls"]


class Call:
    """One question that is out, for the length of a ``with`` block. ``number`` is its address on this node."""

    __slots__ = ("_ended", "_future", "_open", "number")

    def __init__(self, number: int, future: asyncio.Future[Answer | None], open_: dict[int, Call]) -> None:
        self.number = number
        self._future = future
        self._ended: CorepoolError | None = None
        self._open = open_
        open_[number] = self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._open.pop(self.number, None)
        if self._future.cancelled():
            return  # with its caller
        if self._future.done():
            self._future.exception()  # retrieved: a call that ended otherwise need not report it again
        else:
            self._future.cancel()

    async def answer(self, timeout: float) -> Answer | None:
        """The answer, or None after ``timeout`` seconds, or when it is better to look at the record at once.

        Raises:
            NodeClosedError, PoolShutdownError: the node ended meanwhile.
        """
        if timeout > 0 and not self._future.done():
            timer = self._future.get_loop().call_later(timeout, self.resolve, None)  # the time is up: look
            try:
                await self._future
            finally:
                timer.cancel()
        if not self._future.done():
            return None
        answer = self._future.result()
        if answer is None:
            if self._ended is not None:  # the node ended in the very moment in which the time was up
                raise self._ended
            self._future = self._future.get_loop().create_future()
        return answer

    def resolve(self, answer: Answer | None) -> None:
        if not self._future.done():
            self._future.set_result(answer)

    def fail(self, error: CorepoolError) -> None:
        self._ended = error
        if not self._future.done():
            self._future.set_exception(error)


class Calls:
    """All questions of one node that are out."""

    def __init__(self) -> None:
        self._calls: dict[int, Call] = {}
        self._number = 0
        self._closed: CorepoolError | None = None
        self._end = asyncio.Event()

    def __len__(self) -> int:
        return len(self._calls)

    def open(self) -> Call:
        """A registered call: answers reach it from here to the end of its ``with`` block.

        Raises:
            NodeClosedError, PoolShutdownError: the node has ended.
        """
        if self._closed is not None:
            raise self._closed
        self._number += 1
        return Call(self._number, asyncio.get_running_loop().create_future(), self._calls)

    async def pause(self, seconds: float) -> None:
        """Sleep before another try, unless the node ends.

        Raises:
            NodeClosedError, PoolShutdownError: it has ended.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._end.wait()
        if self._closed is not None:
            raise self._closed

    def deliver(self, answer: Answer) -> None:
        """An answer arrived. If nobody waits for it any more it is dropped."""
        call = self._calls.get(answer.call)
        if call is not None:
            call.resolve(answer)

    def look_again(self) -> None:
        """Answers may have been lost: everybody looks at his record."""
        for call in list(self._calls.values()):
            call.resolve(None)

    def close(self, error: CorepoolError) -> None:
        """Everybody who waits gets ``error``, as does everybody who comes later."""
        self._closed = error
        self._end.set()
        for call in list(self._calls.values()):
            call.fail(error)
