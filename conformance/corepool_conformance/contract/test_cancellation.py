"""Cancellation storms, closing, and secrets (M6, CLOSE, SECRETS)."""

from __future__ import annotations

import asyncio
import io
import logging
import traceback
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit, urlunsplit

import pytest

from corepool.driver import ABSENT, REVISION, Entry, GetKey, MapStore, NewEvent, Set, SetKey, open_backend
from corepool.errors import BackendUnavailable, CorepoolError, OutcomeUnknown
from corepool_conformance.kit import Contract, Kit, PromiseBroken, promise
from corepool_conformance.waiting import Follower


class TestCancellation(Contract):
    # --- M6 ----------------------------------------------------------------------------------------------------------

    @promise("M6")
    async def test_no_reply_is_given_to_another_call(self, kit: Kit) -> None:
        m = await kit.map()
        await m.apply([Set(f"k{number}", b"value of k%d" % number) for number in range(50)])
        namespace = await kit.namespace()

        async def one(number: int) -> None:
            key, value = f"k{number % 50}", b"value of k%d" % (number % 50)
            if number % 3 == 0:
                entries = await m.get_many([key])
                seen: Entry | None = entries.get(key)
            elif number % 3 == 1:
                seen = await m.get(key)
            else:
                result = (await namespace.commit([GetKey("m", key)])).results[0]
                seen = result if isinstance(result, Entry) else None
            if seen is None or (seen.key, seen.value) != (key, value):
                raise PromiseBroken("M6", f"asked for {key!r}, got {seen}")

        for wave in range(12):
            tasks = [asyncio.ensure_future(one(wave * 40 + number)) for number in range(40)]
            await asyncio.sleep(kit.random.choice((0, 0, 0.0005, 0.002)))
            for task in tasks:
                if kit.random.random() < 0.5:
                    task.cancel()
            done = await kit.within(
                10, asyncio.gather(*tasks, return_exceptions=True), "a wave of cancelled reads", "M6"
            )
            for outcome in done:
                if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
                    raise outcome
            assert await kit.within(5, m.get("k7"), "a read after the wave", "M6")

    @promise("M6", "M5")
    async def test_cancelled_writes_are_applied_or_not(self, kit: Kit) -> None:
        m, reader = await kit.maps(2)
        stream = await kit.stream()
        namespace = await kit.namespace()
        follower = await Follower.start(kit, reader)
        last: dict[str, int] = {}

        async def write(key: str, number: int) -> None:
            value = b"%d" % number
            match number % 4:
                case 0:
                    await m.set(key, value)
                case 1:
                    await m.apply([Set(key, value)])
                case 2:
                    await stream.append(NewEvent("e", value))
                case _:
                    await namespace.commit([SetKey("m", key, value)])
            last[key] = max(number, last.get(key, 0))

        number = 0
        for _ in range(40):
            tasks: list[asyncio.Task[None]] = []
            for key in ("a", "b", "c"):
                number += 1
                tasks.append(asyncio.ensure_future(write(key, number)))
            await asyncio.sleep(kit.random.choice((0, 0, 0.0005, 0.002)))
            for task in tasks:
                if kit.random.random() < 0.5:
                    task.cancel()
            outcomes = await kit.within(10, asyncio.gather(*tasks, return_exceptions=True), "cancelled writes", "M6")
            for outcome in outcomes:
                if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
                    raise outcome
        await kit.within(10, namespace.settle(), "settle after cancelled writes", "M5")
        final = await kit.within(5, m.set("a", b"final"), "a write after cancelled ones", "M6")
        await follower.reached(final.revision)
        seen = {key: entry.value for key, entry in (await reader.get_many(["a", "b", "c"])).items()}
        assert follower.replica == seen
        assert seen["a"] == b"final"

    @promise("M6")
    async def test_cancellation_is_not_swallowed(self, kit: Kit) -> None:
        m, stream = await kit.map(), await kit.stream()
        sink = await stream.sink("g", ack_wait=kit.ack_wait)
        watch = m.watch()
        await kit.within(5, anext(watch), "the first snapshot", "M3")
        reading = stream.read()
        for _ in range(10):
            waiting = [
                asyncio.ensure_future(sink.receive()),
                asyncio.ensure_future(anext(watch)),
                asyncio.ensure_future(anext(reading)),
            ]
            await asyncio.sleep(kit.random.random() * 0.01)
            for task in waiting:
                task.cancel()
            _, pending = await asyncio.wait(waiting, timeout=5)
            if pending or not all(task.cancelled() for task in waiting):
                raise PromiseBroken("M6", f"a cancelled call that waits does not end as cancelled: {waiting}")
        async with asyncio.timeout(5):
            for number in range(200):
                writing = asyncio.ensure_future(m.set("k", b"%d" % number))
                await asyncio.sleep(0)
                writing.cancel()
                await asyncio.wait([writing])
                assert writing.cancelled() or writing.exception() is None
        final = await kit.within(5, m.set("k", b"final"), "a write after cancelled ones", "M6")
        assert await m.get("k") == Entry("k", b"final", final.revision)

    @promise("M6", "M2")
    async def test_a_storm_loses_no_update(self, kit: Kit) -> None:
        backends = [await kit.backend() for _ in range(3)]
        stores = [await kit.map(backend=backend) for backend in backends]
        acknowledged = 0
        maybe = 0

        async def bump(store: MapStore) -> None:
            nonlocal acknowledged, maybe
            while True:
                entry = await store.get("n")
                when = REVISION(entry.revision) if entry else ABSENT
                maybe += 1
                commit = await store.set("n", b"%d" % (int(entry.value) + 1 if entry else 1), when)
                maybe -= 1
                if commit.applied:
                    acknowledged += 1
                    return

        for _ in range(25):
            tasks = [asyncio.ensure_future(bump(store)) for store in stores]
            await asyncio.sleep(kit.random.choice((0, 0.0005, 0.002, 0.01)))
            for task in tasks:
                if kit.random.random() < 0.4:
                    task.cancel()
            for outcome in await kit.within(10, asyncio.gather(*tasks, return_exceptions=True), "a storm", "M6"):
                if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
                    raise outcome
        for backend in backends:
            await kit.within(10, (await kit.namespace(backend)).settle(), "settle after cancelled writes", "M5")
        entry = await stores[0].get("n")
        counted = int(entry.value) if entry else 0
        if not acknowledged <= counted <= acknowledged + maybe:
            raise PromiseBroken(
                "M2",
                f"{acknowledged} increments acknowledged, {maybe} cancelled in flight, and the counter is {counted}",
            )

    # --- close -------------------------------------------------------------------------------------------------------

    @promise("CLOSE", "M4")
    async def test_close_ends_everything_that_waits(self, kit: Kit) -> None:
        backend = await kit.backend()
        m, stream = await kit.map(backend=backend), await kit.stream(backend=backend)
        await stream.create()
        sink = await stream.sink("g", ack_wait=kit.ack_wait)
        watch, reading = m.watch(), stream.read()
        await kit.within(5, anext(watch), "the first snapshot", "M3")
        watching, read = kit.spawn(anext(watch, None)), kit.spawn(anext(reading, None))
        receiving = kit.spawn(sink.receive())
        await kit.a_moment()
        await kit.within(5, backend.aclose(), "closing a connection with waiting calls", "CLOSE")
        assert await kit.within(5, watching, "a watch of a closed connection", "CLOSE") is None
        assert await kit.within(5, read, "a reader of a closed connection", "CLOSE") is None
        with pytest.raises(BackendUnavailable):
            await kit.within(5, receiving, "a receive of a closed connection", "CLOSE")

    @promise("CLOSE", "M5")
    async def test_a_closed_connection_refuses(self, kit: Kit) -> None:
        backend = await kit.backend()
        m, stream = await kit.map(backend=backend), await kit.stream(backend=backend)
        namespace = await kit.namespace(backend)
        await m.set("k", b"v")
        await kit.within(5, backend.aclose(), "closing", "CLOSE")
        await kit.within(5, backend.aclose(), "closing again", "CLOSE")
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: m.get("k"),
            lambda: m.set("k", b"x"),
            lambda: m.clear(),
            lambda: stream.append(NewEvent("e", b"")),
            lambda: stream.length(),
            lambda: namespace.commit([SetKey("m", "k", b"x")]),
            lambda: stream.sink("g"),
        ]
        for call in calls:
            with pytest.raises(BackendUnavailable):
                await kit.within(5, call(), "a call on a closed connection", "CLOSE")
        other = await kit.map()
        entry = await other.get("k")
        assert entry is not None
        assert entry.value == b"v", "a write on a closed connection was applied"

    @promise("CLOSE", "M5")
    async def test_close_while_calls_are_in_flight(self, kit: Kit) -> None:
        checker = await kit.map()
        for round_number in range(5):
            backend = await kit.backend()
            m = await kit.map(backend=backend)
            writes = [kit.spawn(m.set(f"r{round_number}-{number}", b"v")) for number in range(50)]
            await asyncio.sleep(kit.random.random() * 0.003)
            await kit.within(5, asyncio.gather(backend.aclose(), backend.aclose()), "closing twice at once", "CLOSE")
            done = await kit.within(
                5, asyncio.gather(*writes, return_exceptions=True), "calls of a closed connection", "CLOSE"
            )
            entries = await checker.get_many([f"r{round_number}-{number}" for number in range(50)])
            for number, outcome in enumerate(done):
                there = f"r{round_number}-{number}" in entries
                if isinstance(outcome, BackendUnavailable):
                    if there:
                        raise PromiseBroken("M5", f"a write raised BackendUnavailable ({outcome}) and was applied")
                elif isinstance(outcome, BaseException):
                    assert isinstance(outcome, OutcomeUnknown), f"a call in flight ended with {outcome!r}"
                elif not there:
                    raise PromiseBroken("M5", f"a write was acknowledged ({outcome}) and is not there")

    @promise("CLOSE")
    async def test_no_task_outlives_close(self, kit: Kit) -> None:
        before = asyncio.all_tasks()
        backend = await kit.backend()
        m, stream = await kit.map(backend=backend), await kit.stream(backend=backend)
        await m.set("k", b"v")
        watch, reading = m.watch(), stream.read()
        await kit.within(5, anext(watch), "the first snapshot", "M3")
        await stream.append(NewEvent("e", b""))
        await kit.within(5, anext(reading), "an event", "M3")
        sink = await stream.sink("g", ack_wait=kit.ack_wait)
        await kit.within(5, sink.receive(), "a delivery", "S2")
        await kit.within(5, backend.aclose(), "closing", "CLOSE")

        async def none_left() -> bool:
            return not [task for task in asyncio.all_tasks() - before if not task.done()]

        await kit.eventually(none_left, f"tasks left after close: {asyncio.all_tasks() - before}", "CLOSE", within=2)

    @promise("M3", "CLOSE")
    async def test_closing_one_connection_leaves_others(self, kit: Kit) -> None:
        first, second = await kit.backend(), await kit.backend()
        m = await kit.map(backend=second)
        follower = await Follower.start(kit, m)
        await (await kit.map(backend=first)).set("k", b"1")
        await first.aclose()
        commit = await m.set("k", b"2")
        await follower.reached(commit.revision)
        assert follower.replica == {"k": b"2"}

    # --- secrets -----------------------------------------------------------------------------------------------------

    @promise("SECRETS")
    async def test_a_password_is_never_shown(self, kit: Kit) -> None:
        backend = await kit.main()
        url = kit.harness.url or ""
        if not urlsplit(url).hostname:
            assert "@" not in backend.url.replace("***@", ""), "Backend.url shows credentials"
            return
        secret = "pa55-of-the-kit"
        wrong = urlunsplit(urlsplit(url)._replace(netloc=f"user:{secret}@127.0.0.1:9"))
        logged = io.StringIO()
        handler = logging.StreamHandler(logged)
        logging.getLogger().addHandler(handler)
        try:
            async with asyncio.timeout(15):
                other = await open_backend(wrong)
            shown = f"{other.url} {other!r} {other}"
            await other.aclose()
        except (CorepoolError, TimeoutError) as error:
            shown = "".join(traceback.format_exception(error)) + repr(error)
        finally:
            logging.getLogger().removeHandler(handler)
        assert secret not in shown, "a password is shown by an error, a repr, or Backend.url"
        assert secret not in logged.getvalue(), "a password is shown in the log"
        if password := urlsplit(url).password:
            assert password not in f"{backend.url} {backend!r} {backend}"
