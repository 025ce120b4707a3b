"""What a replicated map promises, on whatever backend the tests run: plain maps, closing, bad input."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from corepool.driver import Backend
from corepool.errors import (
    BackendUnavailable,
    InvalidKeyError,
    InvalidOptionError,
    OutcomeUnknown,
    PayloadTooLarge,
    UnsupportedCapability,
)
from corepool.rmap import BYTES, Held, MapSnapshot, ReplicatedMap
from tests.rmap.joining import FAR, Join
from tests.waiting import soon, until

# --- plain maps ------------------------------------------------------------------------------------------------------


async def test_a_plain_map_reads_from_the_store(join: Join) -> None:
    plain, theirs = await join(replicated=False), await join(other=True)
    await soon(theirs.set("a1", "1"))
    await soon(theirs.set("a2", "2"))
    written = await soon(plain.set("b", "3"))
    assert await soon(plain.fetch("a1")) == "1"
    assert await soon(plain.fetch("none")) is None
    assert await soon(plain.fetch_entry("b")) == Held("3", written.revision)
    assert await soon(plain.fetch_many(["a1", "b", "none"])) == {"a1": "1", "b": "3"}
    assert sorted([item async for item in plain.scan("a")]) == [("a1", "1"), ("a2", "2")]
    assert await soon(plain.test_and_set("b", "3", "4"))
    assert await soon(plain.increment("n", 5)) == 5
    assert await soon(plain.append_values("l", "x")) == ["x"]


LOCAL: list[Callable[[ReplicatedMap[str]], object]] = [
    lambda plain: plain.get("k"),
    lambda plain: plain["k"],
    lambda plain: "k" in plain,
    len,
    lambda plain: plain.keys(),
    lambda plain: plain.items(),
    lambda plain: plain.entry("k"),
    lambda plain: plain.get_list("k"),
    lambda plain: plain.get_counter("k"),
    lambda plain: plain.snapshot(),
    lambda plain: plain.set_aside(),
    lambda plain: plain.subscribe(),
    lambda plain: plain.changes(),
    lambda plain: plain.revision,
    lambda plain: plain.generation,
    lambda plain: plain.fed_at,
]


async def test_a_plain_map_refuses_local_reads_and_names_the_remedy(join: Join) -> None:
    plain = await join(replicated=False)
    for read in LOCAL:
        with pytest.raises(UnsupportedCapability, match=r"fetch\(\).*replicated=True"):
            read(plain)
    for call in (plain.set_and_wait("k", "v"), plain.wait_for_revision(0), plain.test_and_clear()):
        with pytest.raises(UnsupportedCapability):
            await soon(call)
    assert await soon(plain.fetch("k")) is None  # refused means: nothing was changed


# --- closing ---------------------------------------------------------------------------------------------------------


async def test_after_close_the_replica_is_readable_and_frozen(join: Join) -> None:
    mine, theirs = await join(), await join(other=True)
    await soon(mine.set_and_wait("k", "v"))
    await soon(asyncio.gather(mine.aclose(), mine.aclose()))
    await soon(mine.aclose())
    await soon(theirs.set_and_wait("k", "w"))
    assert mine.closed
    assert (mine["k"], len(mine), mine.snapshot().entries) == ("v", 1, {"k": "v"})
    for call in (
        mine.set("k", "x"),
        mine.set_and_wait("k", "x"),
        mine.delete("k"),
        mine.clear(),
        mine.destroy(),
        mine.increment("n"),
        mine.test_and_delete("k", "v"),
        mine.fetch("k"),
        mine.wait_for_revision(mine.revision + 1),
    ):
        with pytest.raises(BackendUnavailable):
            await soon(call)
    await soon(mine.wait_for_revision(mine.revision))
    assert await soon(theirs.fetch("k")) == "w"
    assert not await soon(mine.subscribe().changed())


async def test_closing_the_backend_ends_waits_and_listeners(backend_url: str, fresh: str) -> None:
    from corepool.driver import open_backend

    backend = await soon(open_backend(backend_url))
    rmap = await soon(ReplicatedMap.join(backend, fresh))
    await soon(rmap.set_and_wait("k", "v"))
    subscription, changes = rmap.subscribe(), rmap.changes()
    waiters = [asyncio.create_task(rmap.wait_for_revision(FAR)) for _ in range(3)]
    await until(lambda: rmap.waiting == 3)
    await soon(rmap.destroy())
    await soon(backend.aclose())
    for waiter in waiters:
        with pytest.raises(BackendUnavailable):
            await soon(waiter)
    async with asyncio.timeout(15):
        assert [each async for each in subscription] in ([], [None])
        assert isinstance(await anext(changes), MapSnapshot)
    await soon(rmap.aclose())


async def test_close_while_many_wait(join: Join) -> None:
    rmap = await join()
    waits = [asyncio.create_task(rmap.wait_for_revision(FAR)) for _ in range(100)]
    writes = [asyncio.create_task(rmap.set_and_wait("k", str(n))) for n in range(100)]
    await until(lambda: rmap.waiting >= 100)
    await soon(rmap.aclose())
    results = await soon(asyncio.gather(*waits, *writes, return_exceptions=True))
    assert all(isinstance(result, BackendUnavailable) for result in results[:100])
    assert all(
        not isinstance(r, BaseException) or isinstance(r, OutcomeUnknown | BackendUnavailable) for r in results[100:]
    )


async def test_a_closed_map_leaves_no_task(backend: Backend, fresh: str) -> None:
    before = asyncio.all_tasks()
    async with await ReplicatedMap.join(backend, fresh) as rmap:
        await soon(rmap.set_and_wait("k", "v"))
        await soon(rmap.destroy())
    await until(lambda: not [task for task in asyncio.all_tasks() - before if "corepool map" in task.get_name()])


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["", "\ud800", "a\udfff", None, 7, b"k"])
async def test_a_bad_key_is_refused_and_changes_nothing(join: Join, key: Any) -> None:
    rmap = await join()
    before = rmap.revision
    for call in (
        lambda: rmap.set(key, "v"),
        lambda: rmap.set_and_wait(key, "v"),
        lambda: rmap.set_if_absent(key, "v"),
        lambda: rmap.test_and_set(key, "v", "w"),
        lambda: rmap.test_and_delete(key, "v"),
        lambda: rmap.delete(key),
        lambda: rmap.increment(key),
        lambda: rmap.append_values(key, "v"),
        lambda: rmap.fetch(key),
        lambda: rmap.fetch_many([key]),
    ):
        with pytest.raises(InvalidKeyError):
            await soon(call())
    written = await soon(rmap.set_and_wait("good", "v"))
    assert dict(rmap.items()) == {"good": "v"}
    assert written.revision > before


async def test_a_key_at_the_limit_fits_and_one_over_it_does_not(join: Join, backend: Backend) -> None:
    rmap = await join()
    limit = backend.capabilities.max_key_bytes
    await soon(rmap.set_and_wait("k" * limit, "v"))
    for key in ("k" * (limit + 1), "é" * (limit // 2 + 1)):
        with pytest.raises(InvalidKeyError, match=str(limit)):
            await soon(rmap.set(key, "v"))
    assert await soon(rmap.fetch("k" * limit)) == "v"
    assert len(rmap) == 1


async def test_a_value_at_the_limit_fits_and_one_over_it_does_not(join: Join, backend: Backend) -> None:
    rmap, theirs = await join(codec=BYTES), await join(codec=BYTES, other=True)
    limit = backend.capabilities.max_value_bytes
    written = await soon(rmap.set_and_wait("k", b"v" * limit))
    await soon(theirs.wait_for_revision(written.revision))
    assert len(theirs["k"]) == limit
    for call in (rmap.set("k", b"v" * (limit + 1)), rmap.append_values("l", b"v" * limit)):
        with pytest.raises(PayloadTooLarge):
            await soon(call)
    assert await soon(rmap.fetch("l")) is None


@pytest.mark.parametrize("value", [None, 7, b"bytes", object()])
async def test_a_value_of_another_type_is_refused(join: Join, value: Any) -> None:
    rmap = await join()
    with pytest.raises(TypeError):
        await soon(rmap.set("k", value))
    assert await soon(rmap.fetch("k")) is None


@pytest.mark.parametrize("name", ["", "\ud800", "n" * 100_000, None])
async def test_a_bad_name_is_refused(backend: Backend, name: Any) -> None:
    before = asyncio.all_tasks()
    with pytest.raises(InvalidKeyError):
        await soon(ReplicatedMap.join(backend, name))
    with pytest.raises(InvalidKeyError):
        await soon(ReplicatedMap.join(backend, name, replicated=False))
    with pytest.raises(InvalidKeyError):
        await soon(ReplicatedMap.join(backend, "name", namespace=name))
    assert asyncio.all_tasks() == before


async def test_changes_needs_room(join: Join) -> None:
    rmap = await join()
    with pytest.raises(InvalidOptionError):
        rmap.changes(limit=0)
