"""Acknowledgements that wait for others: together, bounded in time and number, and over with their sink."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any, cast

from corepool.driver import SinkStore
from corepool.errors import BackendUnavailable
from corepool.pool.acks import LateAcks
from corepool.pool.supervisor import Supervisor
from tests.waiting import until


class Sink:
    """Notes what is acknowledged."""

    def __init__(self, error: Exception | None = None) -> None:
        self.acked: list[list[str]] = []
        self._error = error

    async def ack(self, receipts: list[str]) -> list[bool]:
        self.acked.append(receipts)
        if self._error is not None:
            raise self._error
        return [True] * len(receipts)


def _acks(sink: Sink, within: float) -> LateAcks:
    log: Any = logging.LoggerAdapter(logging.getLogger("tests"), {})
    return LateAcks(cast("SinkStore", sink), Supervisor("test", random.Random(0), log), within)


async def test_what_comes_within_a_moment_is_acknowledged_together() -> None:
    sink = Sink()
    acks = _acks(sink, 0.01)
    for number in range(5):
        acks.add(str(number))
    assert sink.acked == []
    await until(lambda: sink.acked == [["0", "1", "2", "3", "4"]])


async def test_many_do_not_wait_for_the_moment_to_end() -> None:
    sink = Sink()
    acks = _acks(sink, 3600.0)
    for number in range(70):
        acks.add(str(number))
    await until(lambda: [len(receipts) for receipts in sink.acked] == [32, 32])
    acks.close()


async def test_after_the_end_nothing_is_sent_and_no_timer_is_left() -> None:
    sink = Sink()
    acks = _acks(sink, 0.01)
    acks.add("before")
    acks.close()
    acks.add("after")
    await asyncio.sleep(0.05)  # five times the moment: nothing may come of either
    assert sink.acked == []


async def test_a_failure_is_taken_quietly_and_the_next_go_on() -> None:
    sink = Sink(BackendUnavailable("away"))
    acks = _acks(sink, 0.005)
    acks.add("one")
    await until(lambda: len(sink.acked) == 1)
    acks.add("two")
    await until(lambda: len(sink.acked) == 2)
