"""Events of an inbox that are in hand: taken, not yet acknowledged.

Purpose: an event may be delivered again while it is still being dealt with; it must be dealt with once, and acknowledged with
the newest receipt.
Invariants: an event id is in hand at most once; nothing is acknowledged before it was dealt with.
Neighbours: filled by a worker's inbox loop, emptied by jobs.
"""

from __future__ import annotations

from corepool.driver import Ack, Delivery, Event, Op, SinkStore

__all__ = ["Doorbell", "Doorbells"]


class Doorbell:
    """One event in hand."""

    __slots__ = ("_bells", "event", "receipt")

    def __init__(self, bells: Doorbells, delivery: Delivery) -> None:
        self._bells = bells
        self.event: Event = delivery.event
        self.receipt = delivery.receipt

    def taken(self) -> None:
        """It was acknowledged as part of a commit."""
        self._bells.drop(self)

    def ack_op(self) -> Op:
        return Ack(self.receipt)

    async def done(self) -> None:
        """Dealt with: never to be seen again."""
        self._bells.drop(self)
        await self._bells.sink.ack([self.receipt])

    async def later(self, delay: float) -> None:
        """Not now: to be delivered again after ``delay`` seconds."""
        self._bells.drop(self)
        await self._bells.sink.nack(self.receipt, delay)


class Doorbells:
    """All events of one inbox that are in hand."""

    def __init__(self, sink: SinkStore) -> None:
        self.sink = sink
        self._in_hand: dict[str, Doorbell] = {}

    def take(self, delivery: Delivery) -> Doorbell | None:
        """The bell to deal with, or None if it is being dealt with already."""
        held = self._in_hand.get(delivery.event.id)
        if held is not None:
            held.receipt = delivery.receipt
            return None
        bell = Doorbell(self, delivery)
        self._in_hand[delivery.event.id] = bell
        return bell

    def drop(self, bell: Doorbell) -> None:
        self._in_hand.pop(bell.event.id, None)
