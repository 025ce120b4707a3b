"""Acknowledgements that may wait a moment, so that many go in one call.

Purpose: an answer or a ping is of use at once, and its acknowledgement to nobody: it only keeps it from coming again. So it
must not hold up the next one, nor cost a round trip of its own.
Invariants: only for events that may come again without harm; no receipt waits longer than ``within``, which is far below the
time after which a sink delivers again; what could not be acknowledged comes again and is acknowledged then.
Neighbours: a session's inbox. A worker's doorbells are acknowledged in the commit that deals with them (see ``doorbells``).
"""

from __future__ import annotations

import asyncio

from corepool.driver import SinkStore
from corepool.pool.supervisor import TRANSIENT, Supervisor

__all__ = ["LateAcks"]

_MOST = 32


class LateAcks:
    """Receipts of one sink, on their way."""

    def __init__(self, sink: SinkStore, supervisor: Supervisor, within: float) -> None:
        self._sink = sink
        self._supervisor = supervisor
        self._within = within
        self._receipts: list[str] = []
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def add(self, receipt: str) -> None:
        """Acknowledge this soon."""
        if self._closed:
            return
        self._receipts.append(receipt)
        if len(self._receipts) >= _MOST:
            self._send()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._within, self._send)

    def close(self) -> None:
        """Acknowledge nothing more: the sink is closed, or its stream gone."""
        self._closed = True
        self._forget()

    def _forget(self) -> None:
        self._receipts.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _send(self) -> None:
        receipts = self._receipts.copy()
        self._forget()
        self._supervisor.tidy("acknowledge", self._acknowledge(receipts))

    async def _acknowledge(self, receipts: list[str]) -> None:
        try:
            await self._sink.ack(receipts)
        except TRANSIENT:
            return  # they come again
