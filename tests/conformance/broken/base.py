"""A memory driver behind wrappers that do nothing: the faults override what they break.

Purpose: make a broken driver in a few lines. Unbroken, the wrapped driver passes every test that catches a fault.
Neighbours: `tests.memory.wires` gives a transport whose messages take turns and which can be cut.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import attrs

from corepool.driver import Backend
from corepool_conformance import Harness
from tests.memory.wires import Wires

__all__ = ["FAULTS", "Broken", "BrokenHarness", "Fault", "caught_by"]


class Wrapped:
    """Delegates whatever a subclass does not override to ``inner``; ``broken`` is the connection it belongs to."""

    def __init__(self, inner: Any, broken: Broken) -> None:
        self.inner = inner
        self.broken = broken

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __aiter__(self) -> Any:
        return self


class Watch(Wrapped):
    async def __anext__(self) -> Any:
        return await anext(self.inner)


class Reading(Wrapped):
    async def __anext__(self) -> Any:
        return await anext(self.inner)


class Sink(Wrapped):
    pass


class Map(Wrapped):
    watch_class: type[Watch] = Watch

    def watch(self) -> Any:
        return self.watch_class(self.inner.watch(), self.broken)


class Stream(Wrapped):
    reading_class: type[Reading] = Reading
    sink_class: type[Sink] = Sink

    def read(self, *arguments: Any) -> Any:
        return self.reading_class(self.inner.read(*arguments), self.broken)

    async def sink(self, name: str, **options: Any) -> Any:
        return self.sink_class(await self.inner.sink(name, **options), self.broken)


class Namespace(Wrapped):
    def map(self, name: str) -> Any:
        return self.broken.map_class(self.inner.map(name), self.broken)

    def stream(self, name: str) -> Any:
        return self.broken.stream_class(self.inner.stream(name), self.broken)


class Broken(Wrapped):
    """A connection. ``shared``: what all connections of one test have in common (the broken "server's" memory)."""

    map_class: type[Map] = Map
    stream_class: type[Stream] = Stream
    namespace_class: type[Namespace] = Namespace

    def __init__(self, inner: Any, shared: dict[str, Any]) -> None:
        super().__init__(inner, self)
        self.shared = shared

    def namespace(self, name: str) -> Any:
        return self.namespace_class(self.inner.namespace(name), self)


class BrokenHarness(Harness):
    """Connections of one broken class on one memory server per test."""

    ack_wait = 0.2

    def __init__(self, broken: type[Broken] = Broken, *, patience: float = 1.0) -> None:
        self.broken = broken
        self.patience = patience
        self._wires: Wires
        self._shared: dict[str, Any] = {}

    async def begin(self, needs: Collection[str]) -> None:
        self._wires = Wires()
        self._shared = {}

    async def connect(self) -> Backend:
        connection: Any = self.broken(self._wires.connect(), self._shared)
        return connection

    async def cut(self) -> None:
        self._wires.cut()

    async def heal(self) -> None:
        self._wires.heal()


@attrs.frozen(kw_only=True)
class Fault:
    """A broken driver, and how the kit must answer.

    test: the contract test that must fail. promise: what its failure must name.
    patience: small where the failure is a time-out.
    raises: what the failure is, where it is not an assertion of the kit but the driver's own exception.
    """

    name: str
    broken: type[Broken]
    test: str
    promise: str
    patience: float
    raises: type[BaseException]


FAULTS: list[Fault] = []


def caught_by(test: str, promise: str, *, patience: float = 1.0, raises: type[BaseException] = AssertionError) -> Any:
    """Register a broken driver; may be used several times on one."""

    def register(broken: type[Broken]) -> type[Broken]:
        name = broken.__name__
        FAULTS.append(Fault(name=name, broken=broken, test=test, promise=promise, patience=patience, raises=raises))
        return broken

    return register
