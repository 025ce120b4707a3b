"""The conformance kit on this driver: embedded, and over wires that take turns, break, and know no atomic commit.

The embedded run of the whole kit is ``pytest --pyargs corepool_conformance --corepool-url=memory://``. Here a harness offers
what that one cannot: cuts, and a look into the server.
"""

from __future__ import annotations

from collections.abc import Collection

from corepool.driver import Backend
from corepool_conformance import ConformanceSuite, Harness
from corepool_memory.server import Server
from tests.memory.wires import Wires


class WireHarness(Harness):
    """Every message takes a turn of the loop, and every operation of a commit is a request of its own."""

    ack_wait = 0.25

    def __init__(self) -> None:
        self._wires: Wires

    async def begin(self, needs: Collection[str]) -> None:
        self._wires = Wires(atomic_commit=False)

    async def connect(self) -> Backend:
        return self._wires.connect()

    async def end(self) -> None:
        assert self._wires.server.listener_count() == 0, "closed connections leave nobody who listens"

    async def raw_read(self, namespace: str, map_name: str, key: str) -> bytes | None:
        entry = self._server.maps(namespace).get(map_name, key)
        return None if entry is None else entry.value

    async def raw_write(self, namespace: str, map_name: str, key: str, data: bytes) -> None:
        self._server.maps(namespace).set(map_name, key, data)

    async def cut(self) -> None:
        self._wires.cut()

    async def heal(self) -> None:
        self._wires.heal()

    async def leaks(self, namespace: str) -> list[str]:
        maps, streams = self._server.contents().get(namespace, ([], []))
        return [*maps, *streams, *self._server.streams(namespace).receipts.current]

    async def members(self, namespace: str, stream: str, sink: str) -> list[str]:
        state = self._server.streams(namespace).state(stream)
        return state.sinks[sink].members if state is not None and sink in state.sinks else []

    @property
    def _server(self) -> Server:
        return self._wires.server


class TestMemoryOnWires(ConformanceSuite):
    """The whole contract."""

    harness = WireHarness
