"""What ``memory://`` opens: names, options, event loops."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from corepool import driver
from corepool.driver import Severity, connect, load_spec, open_backend
from corepool.errors import BackendUnavailable, InvalidOptionError, InvalidUrlError, PreflightError
from corepool_memory import stores
from corepool_memory.options import parse_url


@pytest.fixture(autouse=True)
def own_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "_stores", {})


async def write(url: str, value: bytes) -> None:
    async with connect(url) as backend:
        await backend.namespace("ns").map("m").set("k", value)


async def read(url: str) -> bytes | None:
    async with connect(url) as backend:
        entry = await backend.namespace("ns").map("m").get("k")
        return entry.value if entry else None


async def test_a_name_is_shared_and_no_name_is_private() -> None:
    await write("memory://one", b"1")
    assert await read("memory://one") == b"1"
    assert await read("memory://two") is None
    async with connect("memory://") as first, connect("memory://") as second:
        await first.namespace("ns").map("m").set("k", b"1")
        assert await second.namespace("ns").map("m").get("k") is None


async def test_backends_of_one_store_keep_their_own_options() -> None:
    async with connect("memory://one") as plain, connect("memory://one", atomic_commit=False) as single:
        assert plain.capabilities.atomic_commit
        assert not single.capabilities.atomic_commit
        await plain.namespace("ns").map("m").set("k", b"1")
        assert await single.namespace("ns").map("m").get("k") is not None
        assert (plain.url, single.url) == ("memory://one", "memory://one?atomic_commit=false")
        assert repr(single) == "<MemoryBackend memory://one?atomic_commit=false>"


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("memory://", ""),
        ("memory:///", ""),
        ("memory://Demo", "Demo"),
        ("memory://a/b/", "a/b"),
        ("memory://%C3%A9%20%23?value_ops=false", "é #"),
    ],
)
def test_names(url: str, name: str) -> None:
    assert parse_url(url, {})[0] == name


async def test_a_url_opens_what_it_came_from() -> None:
    backend = await open_backend("memory://é #/x".replace("#", "%23"), max_value_bytes=100_000, value_ops="false")
    name, options = parse_url(backend.url, {})
    await backend.aclose()
    assert name == "é #/x"
    assert (options.max_value_bytes, options.value_ops, options.atomic_commit) == (100_000, False, True)


@pytest.mark.parametrize(
    ("url", "options", "text"),
    [
        ("memory://x?atomic=false", {}, "no option 'atomic'; it knows atomic_commit, max_value_bytes, value_ops"),
        ("memory://x", {"max_values": 3}, "no option 'max_values'; it knows"),
        ("memory://x?atomic_commit=perhaps", {}, "atomic_commit is true or false, not 'perhaps'"),
        ("memory://x?atomic_commit=", {}, "atomic_commit is true or false, not ''"),
        ("memory://x", {"atomic_commit": 1}, "true or false, not 1"),
        ("memory://x?max_value_bytes=many", {}, "max_value_bytes is a number of bytes"),
        ("memory://x?max_value_bytes=1", {}, "from 65536 to"),
        ("memory://x", {"max_value_bytes": True}, "not True"),
        ("memory://x?value_ops=true&value_ops=false", {}, "twice"),
    ],
)
async def test_options_that_are_refused(url: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidOptionError, match=text):
        await open_backend(url, **options)


async def test_a_keyword_goes_before_the_url() -> None:
    assert not parse_url("memory://x?atomic_commit=true", {"atomic_commit": False})[1].atomic_commit


async def test_urls_that_are_refused_do_not_repeat_a_password() -> None:
    with pytest.raises(InvalidUrlError) as caught:
        await open_backend("memory://user:hunter2@x")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(InvalidUrlError, match="%23"):
        await open_backend("memory://x#y")


async def test_preflight_says_that_nothing_survives_but_does_not_refuse() -> None:
    async with connect("memory://x", strict=True) as backend:
        (finding,) = await backend.preflight()
    assert finding.severity is Severity.WARNING
    assert "survives" in finding.text
    assert PreflightError is not None


def test_the_plugin_is_light() -> None:
    """It is loaded to list drivers: none of the driver may come with it."""
    code = (
        "import sys, corepool_memory.plugin as p; "
        "assert p.corepool_driver('memory').name == 'memory' and p.corepool_driver('redis') is None; "
        "print([m for m in sys.modules if m.startswith('corepool_memory.')])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True).stdout
    assert shown.strip() == "['corepool_memory.options', 'corepool_memory.plugin']"


def test_the_specification_tells_the_truth() -> None:
    spec = load_spec("memory")

    async def capabilities() -> driver.Capabilities:
        async with connect(spec.example) as backend:
            return backend.capabilities

    assert asyncio.run(capabilities()) == spec.capabilities


# --- event loops -----------------------------------------------------------------------------------------------------


def in_thread(work: Callable[[], Awaitable[Any]]) -> Any:
    """Run on an event loop of another thread, and return or raise what it does."""
    box: list[Any] = []

    def run() -> None:
        try:
            box.append(asyncio.run(work()))  # type: ignore[arg-type]
        except BaseException as error:  # noqa: BLE001  it is raised in the thread that asked
            box.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    (result,) = box
    if isinstance(result, BaseException):
        raise result
    return result


def test_a_named_store_outlives_the_loop() -> None:
    asyncio.run(write("memory://x", b"1"))
    assert asyncio.run(read("memory://x")) == b"1"


async def test_two_loops_cannot_have_it_open_at_once() -> None:
    async with connect("memory://x") as backend:
        with pytest.raises(BackendUnavailable, match="another event loop"):
            in_thread(lambda: read("memory://x"))
        in_thread(lambda: write("memory://other", b"1"))
        await backend.namespace("ns").map("m").set("k", b"1")
    assert in_thread(lambda: read("memory://x")) == b"1"


def test_what_a_closed_loop_left_open_is_cut() -> None:
    async def leave_open() -> tuple[Any, Any]:
        backend = await open_backend("memory://x")
        watch = backend.namespace("ns").map("m").watch()
        await anext(watch)
        return backend, watch

    async def look(backend: Any) -> None:
        async with connect("memory://x") as fresh:
            assert stores._stores["x"].server.listener_count() == 0
            await fresh.namespace("ns").map("m").set("k", b"1")
            with pytest.raises(BackendUnavailable, match="closed"):
                await backend.namespace("ns").map("m").get("k")
        await backend.aclose()

    backend, _watch = asyncio.run(leave_open())
    asyncio.run(look(backend))


def test_what_was_out_comes_back_on_the_next_loop() -> None:
    async def take() -> None:
        async with connect("memory://x") as backend:
            stream = backend.namespace("ns").stream("s")
            await stream.append(driver.NewEvent("e", b""))
            sink = await stream.sink("g", ack_wait=0.3)
            await sink.receive()

    async def take_again() -> int:
        async with connect("memory://x") as backend:
            sink = await backend.namespace("ns").stream("s").sink("g", ack_wait=0.3)
            (delivery,) = await asyncio.wait_for(sink.receive(), 10)
            return delivery.attempt

    asyncio.run(take())
    assert asyncio.run(take_again()) == 2
