"""Broken streams, sinks and connections."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from corepool.driver import NewEvent, StreamConfig, StreamKind
from tests.conformance.broken.base import Broken, Sink, Stream, caught_by


class RevivingStream(Stream):
    """Checks, and appends later."""

    async def append(self, event: NewEvent, *, only_if_exists: bool = False) -> str | None:
        if only_if_exists and not await self.inner.exists():
            return None
        await asyncio.sleep(0)
        known: str = await self.inner.append(event)
        return known


@caught_by("streams::test_nothing_revives_a_destroyed_stream", "S5")
class RevivedStream(Broken):
    stream_class = RevivingStream


class TrimmingStream(Stream):
    async def create(self, config: StreamConfig = StreamConfig()) -> bool:  # noqa: B008  the contract's own signature
        made: bool = await self.inner.create(msgspec.structs.replace(config, kind=StreamKind.LOG))
        return made


@caught_by("streams::test_a_full_work_stream_rejects", "S4")
@caught_by("differential::test_the_same_answers_as_the_memory_driver", "STREAMS")
@caught_by("streams::test_a_full_work_stream_rejects_under_races", "S4")
class DropsWhenFull(Broken):
    stream_class = TrimmingStream


class ForgetfulIds(Stream):
    async def append(self, event: NewEvent, *, only_if_exists: bool = False) -> str | None:
        known: str | None = await self.inner.append(event, only_if_exists=only_if_exists)
        return known and f"{await self.inner.length():020}"


@caught_by("streams::test_ids_grow_across_destroy_and_creation", "S1")
class IdsStartAgain(Broken):
    stream_class = ForgetfulIds


class ShufflingStream(Stream):
    async def append(self, event: NewEvent, *, only_if_exists: bool = False) -> str | None:
        known: str | None = await self.inner.append(event, only_if_exists=only_if_exists)
        return known and known[::-1]


@caught_by("streams::test_ids_grow_in_append_order", "S1")
class IdsInNoOrder(Broken):
    stream_class = ShufflingStream


class DeadEndStream(Stream):
    """Destroying takes the readers' life too."""

    async def destroy(self) -> None:
        await self.inner.destroy()
        for reading in self.broken.shared.pop("readings", []):
            await reading.aclose()

    def read(self, *arguments: Any) -> Any:
        reading = super().read(*arguments)
        self.broken.shared.setdefault("readings", []).append(reading)
        return reading


@caught_by("streams::test_a_reader_waits_for_the_next_life", "S5")
class ReadersDieWithTheStream(Broken):
    stream_class = DeadEndStream


# --- sinks -----------------------------------------------------------------------------------------------------------


class OldReceipts(Sink):
    """Any receipt that was ever given for an event counts as the current one."""

    async def receive(self, max_events: int = 1) -> Any:
        deliveries = await self.inner.receive(max_events)
        current = self.broken.shared.setdefault("current", {})
        owner = self.broken.shared.setdefault("owner", {})
        for delivery in deliveries:
            current[delivery.event.id] = delivery.receipt
            owner[delivery.receipt] = delivery.event.id
        return deliveries

    async def ack(self, receipts: Sequence[str]) -> Any:
        shared = self.broken.shared
        latest = [shared.get("current", {}).get(shared.get("owner", {}).get(known), known) for known in receipts]
        return await self.inner.ack(latest)


class OldReceiptsStream(Stream):
    sink_class = OldReceipts


@caught_by("sinks::test_a_receipt_that_is_no_longer_current", "S2")
class AckOfAnothersDelivery(Broken):
    stream_class = OldReceiptsStream


class ForgettingSink(Sink):
    """What a member holds is forgotten together with it."""

    async def receive(self, max_events: int = 1) -> Any:
        deliveries = await self.inner.receive(max_events)
        self.__dict__.setdefault("given", []).extend(delivery.receipt for delivery in deliveries)
        return deliveries

    async def aclose(self) -> None:
        await self.inner.ack(self.__dict__.pop("given", []))
        await self.inner.aclose()


class ForgettingStream(Stream):
    sink_class = ForgettingSink


@caught_by("sinks::test_what_a_leaving_member_held_goes_to_others", "S3", patience=0.3)
class EventsForgottenWithAMember(Broken):
    stream_class = ForgettingStream


class AtMostOnce(Sink):
    """Acks what it fetches."""

    async def receive(self, max_events: int = 1) -> Any:
        deliveries = await self.inner.receive(max_events)
        await self.inner.ack([delivery.receipt for delivery in deliveries])
        await asyncio.sleep(0.001)
        return deliveries

    async def ack(self, receipts: Sequence[str]) -> list[bool]:
        return [True] * len(receipts)


class AtMostOnceStream(Stream):
    sink_class = AtMostOnce


@caught_by("sinks::test_an_unacked_event_comes_again", "S2", patience=0.3)
@caught_by("sinks::test_a_cancelled_receive_loses_nothing", "M6", patience=0.1)
class AcksOnDelivery(Broken):
    stream_class = AtMostOnceStream


class DeafSink(Sink):
    async def ack(self, receipts: Sequence[str]) -> list[bool]:
        given = self.__dict__.setdefault("acked", set())
        answers = [receipt not in given for receipt in receipts]
        given.update(receipts)
        return answers


class DeafStream(Stream):
    sink_class = DeafSink


@caught_by("sinks::test_an_acked_event_never_comes_again", "S2")
class AcksAreLost(Broken):
    stream_class = DeafStream


class IdleExtend(Sink):
    async def extend(self, receipt: str) -> bool:
        return True


class IdleExtendStream(Stream):
    sink_class = IdleExtend


@caught_by("sinks::test_extend_keeps_a_delivery", "S2")
class ExtendDoesNothing(Broken):
    stream_class = IdleExtendStream


class LonelySinkStream(Stream):
    async def sink(self, name: str, **options: Any) -> Any:
        number = self.broken.shared["members"] = self.broken.shared.get("members", 0) + 1
        return await super().sink(f"{name}-{number}", **options)


@caught_by("sinks::test_each_event_goes_to_one_member", "S2")
class EveryMemberGetsAll(Broken):
    stream_class = LonelySinkStream


# --- connections -----------------------------------------------------------------------------------------------------


class CountingSink(Sink):
    async def receive(self, max_events: int = 1) -> Any:
        task = asyncio.ensure_future(self.inner.receive(max_events))
        self.broken.__dict__.setdefault("waiting", set()).add(task)
        return await task


class CountingStream(Stream):
    sink_class = CountingSink


@caught_by("cancellation::test_close_ends_everything_that_waits", "CLOSE", patience=0.1)
class CloseWaitsForReceives(Broken):
    stream_class = CountingStream

    async def aclose(self) -> None:
        waiting = [task for task in self.__dict__.get("waiting", ()) if not task.done()]
        if waiting:
            await asyncio.wait(waiting)
        await self.inner.aclose()


@caught_by("cancellation::test_no_task_outlives_close", "CLOSE", patience=0.2)
class LeavesATask(Broken):
    async def aclose(self) -> None:
        self.shared.setdefault("tasks", []).append(asyncio.ensure_future(asyncio.sleep(5)))
        await self.inner.aclose()


class RawErrorStream(Stream):
    async def length(self) -> int:
        if self.broken.__dict__.get("closed"):
            raise ConnectionResetError("the client library's own error")
        length: int = await self.inner.length()
        return length


@caught_by("cancellation::test_a_closed_connection_refuses", "CLOSE", raises=ConnectionResetError)
class ForeignErrors(Broken):
    stream_class = RawErrorStream

    async def aclose(self) -> None:
        self.__dict__["closed"] = True
        await self.inner.aclose()
