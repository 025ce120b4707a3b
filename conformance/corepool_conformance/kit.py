"""One test's view of the driver under test, and the decorator that makes a coroutine a contract test.

Purpose: fresh namespaces, connections that are closed whatever happens, bounded waiting, a seed, and a failure message that
names the promise.
Invariants: every test runs in an event loop of its own; nothing in it waits longer than its deadline; what a test opened is
closed and destroyed when it ends; two tests never share a namespace.
Neighbours: tests in ``corepool_conformance.contract`` use it; ``corepool_conformance.plugin`` makes it; a `Harness` connects.
"""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import attrs
import pytest

from corepool.driver import Backend, Capabilities, MapStore, Namespace, StreamStore
from corepool_conformance.harness import Harness
from corepool_conformance.promises import PROMISES, explain

__all__ = ["REGISTRY", "Contract", "ContractTest", "Kit", "PromiseBroken", "promise"]

T = TypeVar("T")
S = TypeVar("S")


class PromiseBroken(AssertionError):
    """A promise of the contract does not hold. The text begins with its name."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{explain(name)}\n{text}")
        self.promise = name


@attrs.frozen(slots=True, kw_only=True)
class ContractTest:
    """What the kit knows of one of its tests.

    id: ``module::test_name``, the name in reports and in ``known_failures.toml``.
    promises: what is broken if it fails.
    capability: the capability whose two sides it checks, or None for a core test.
    needs: the harness hooks without which it is not tested.
    multi_process: it starts other processes, and needs a URL and the capability for that (it then is ``capability``).
    """

    id: str
    promises: tuple[str, ...]
    capability: str | None
    needs: tuple[str, ...]
    multi_process: bool
    deadline: float | None

    def seconds(self, budget: float) -> float:
        """The deadline in seconds; a test without one of its own lives by the budget of the pool layer."""
        return self.deadline if self.deadline is not None else 2 * budget + 120


REGISTRY: dict[str, ContractTest] = {}
"""Every contract test of the kit by id, filled when the modules of the kit are imported."""


class Kit:
    """What a contract test gets: connections to the store under test, in a namespace of its own."""

    def __init__(
        self, harness: Harness, seed: str, *, budget: float = 30.0, progress: Callable[[str], None] | None = None
    ) -> None:
        self.harness = harness
        self.seed = seed
        self.budget = budget
        self._progress = progress
        self.random = random.Random(seed)
        self.namespace_name = harness.fresh_namespace()
        self.history: list[str] = []
        self._main: Backend | None = None
        self._backends: list[Backend] = []
        self._maps: set[str] = set()
        self._streams: set[str] = set()
        self._tasks: list[asyncio.Task[Any]] = []

    # --- connections -------------------------------------------------------------------------------------------------

    async def backend(self) -> Backend:
        """A new connection; closed when the test ends."""
        backend = await self.within(10, self.harness.connect(), "connect")
        self._backends.append(backend)
        return backend

    async def main(self) -> Backend:
        """The test's main connection, opened on first use."""
        if self._main is None:
            self._main = await self.backend()
        return self._main

    async def capabilities(self) -> Capabilities:
        return (await self.main()).capabilities

    async def namespace(self, backend: Backend | None = None) -> Namespace:
        """The test's namespace, over the connection given or the first."""
        return (backend or await self.main()).namespace(self.namespace_name)

    async def map(self, name: str = "m", backend: Backend | None = None) -> MapStore:
        """A map of the test's namespace; destroyed when the test ends."""
        self._maps.add(name)
        return (await self.namespace(backend)).map(name)

    async def stream(self, name: str = "s", backend: Backend | None = None) -> StreamStore:
        """A stream of the test's namespace; destroyed when the test ends."""
        self._streams.add(name)
        return (await self.namespace(backend)).stream(name)

    async def maps(self, connections: int, name: str = "m") -> list[MapStore]:
        """The same map over several new connections."""
        return [await self.map(name, await self.backend()) for _ in range(connections)]

    async def streams(self, connections: int, name: str = "s") -> list[StreamStore]:
        """The same stream over several new connections."""
        return [await self.stream(name, await self.backend()) for _ in range(connections)]

    @property
    def number(self) -> int:
        """The seed as a number, for those who want one."""
        return random.Random(self.seed).randrange(2**32)

    def progress(self, text: str) -> None:
        """Tell whoever watches how far a long test is."""
        if self._progress is not None:
            self._progress(text)

    @property
    def ack_wait(self) -> float:
        """Seconds: the ack_wait for the test's sinks; longer on a slow machine, which extends late."""
        return self.harness.ack_wait * max(1.0, self.harness.patience)

    # --- bounded waiting ---------------------------------------------------------------------------------------------

    async def within(self, seconds: float, awaitable: Awaitable[T], what: str, promise: str = "M4") -> T:
        """Await, but not for ever.

        Raises:
            PromiseBroken: it took longer.
        """
        limit = seconds * self.harness.patience
        scope = asyncio.timeout(limit)
        try:
            async with scope:
                return await awaitable
        except TimeoutError:
            if not scope.expired():  # the driver's own TimeoutError: not ours to rename
                raise
            raise PromiseBroken(promise, f"{what} did not end within {limit:g} s") from None

    async def eventually(
        self, condition: Callable[[], Awaitable[bool]], what: str, promise: str, within: float = 5.0
    ) -> None:
        """Poll until the condition holds.

        Raises:
            PromiseBroken: it never did.
        """
        end = time.monotonic() + within * self.harness.patience
        while not await condition():
            if time.monotonic() > end:
                raise PromiseBroken(promise, f"not within {within * self.harness.patience:g} s: {what}")
            await asyncio.sleep(0.02)

    async def a_moment(self, seconds: float = 0.05) -> None:
        """A short pause in real time: a call reaches the backend, a connection stays away. Neither can be seen from outside.

        One that is too short weakens a test and never fails it.
        """
        await asyncio.sleep(seconds)

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task that does not outlive the test."""
        task = asyncio.ensure_future(work)
        self._tasks.append(task)
        return task

    async def gather(self, *work: Awaitable[T], within: float = 20.0, what: str = "concurrent calls") -> list[T]:
        """Run together, bounded."""
        return list(await self.within(within, asyncio.gather(*work), what))

    # --- the end -----------------------------------------------------------------------------------------------------

    async def finish(self, *, failed: bool) -> None:
        """Close and remove what the test left. Errors count only if the test passed: else they would hide its own."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await self._remove()
        except Exception:  # whatever a broken driver raises here is noise beside the failure already found
            if not failed:
                raise
        finally:
            for backend in self._backends:
                try:
                    await self.within(5, backend.aclose(), "closing a connection", "CLOSE")
                except Exception:  # as above; the other connections must still be closed
                    if not failed:
                        raise

    async def _remove(self) -> None:
        if not (self._maps or self._streams):
            return
        async with asyncio.timeout(10 * self.harness.patience):
            cleaner = await self.harness.connect()
            try:
                namespace = cleaner.namespace(self.namespace_name)
                for stream in self._streams:
                    await namespace.stream(stream).destroy()
                for name in self._maps:
                    await namespace.map(name).destroy()
            finally:
                await cleaner.aclose()


class Contract:
    """The base of all test classes of the kit. ``harness``: a Harness class or object; None: the one of ``--corepool-url``."""

    corepool_contract_class = True
    harness: type[Harness] | Harness | None = None

    @pytest.fixture
    def kit(self, corepool_kit: Kit) -> Kit:
        """The test's `Kit`."""
        return corepool_kit


def promise(
    *names: str,
    capability: str | None = None,
    needs: tuple[str, ...] = (),
    multi_process: bool = False,
    deadline: float | None = 30.0,
) -> Callable[[Callable[[S, Kit], Coroutine[Any, Any, None]]], Callable[[S, Kit], None]]:
    """Make a coroutine ``test(self, kit)`` a contract test of the promises named.

    deadline: seconds (times the harness's patience) after which the test has found something that blocks for ever; None: the
        test ends by the budget of the pool layer.
    """
    for name in names:
        if name not in PROMISES:
            raise ValueError(f"{name!r} is no promise; there are {', '.join(PROMISES)}")

    def decorate(test: Callable[[S, Kit], Coroutine[Any, Any, None]]) -> Callable[[S, Kit], None]:
        module = test.__module__.rpartition(".")[2].removeprefix("test_")
        about = ContractTest(
            id=f"{module}::{test.__name__}",
            promises=names,
            capability="multi_process" if multi_process else capability,
            needs=needs,
            multi_process=multi_process,
            deadline=deadline,
        )

        @functools.wraps(test)
        def run(self: S, kit: Kit) -> None:
            with asyncio.Runner() as runner:
                runner.run(_bounded(test(self, kit), kit, about))

        run.corepool_contract = about  # type: ignore[attr-defined]  # read by the plugin
        REGISTRY[about.id] = about
        return run

    return decorate


async def _bounded(test: Coroutine[Any, Any, None], kit: Kit, about: ContractTest) -> None:
    failed = True
    await kit.harness.begin(about.needs)
    try:
        await kit.within(about.seconds(kit.budget), test, f"the test {about.id}", about.promises[0])
        failed = False
    finally:
        try:
            await kit.finish(failed=failed)
        finally:
            await kit.harness.end()
