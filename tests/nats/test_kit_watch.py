"""The kit's reading of watches: a correct driver passes, however late its replies come."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any, cast

import pytest

from corepool.driver import Backend, open_backend
from corepool_conformance import Harness, Kit
from corepool_conformance.contract.test_map_watch import TestMapWatch as MapWatchContract

_WRITES = 120
"""How many writes the test scribbles."""


class _Late:
    """A map whose last reply comes long after its watch has told of the write, as from a loaded cluster."""

    def __init__(self, inner: Any, late: LateHarness) -> None:
        self._inner = inner
        self._late = late

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name not in ("set", "delete", "clear", "apply"):
            return method

        async def call(*arguments: Any) -> Any:
            result = await method(*arguments)
            self._late.writes += 1
            if self._late.writes == _WRITES:
                await asyncio.sleep(0.2)  # the lateness itself: several times what the kit waits for an event
            return result

        return call


class _Proxy:
    """A backend or a namespace that makes late maps."""

    def __init__(self, inner: Any, late: LateHarness) -> None:
        self._inner = inner
        self._late = late

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def namespace(self, name: str) -> _Proxy:
        return _Proxy(self._inner.namespace(name), self._late)

    def map(self, name: str) -> _Late:
        return _Late(self._inner.map(name), self._late)


class LateHarness(Harness):
    def __init__(self) -> None:
        self.writes = 0
        self._url = f"memory://late-{secrets.token_hex(4)}"

    async def connect(self) -> Backend:
        return cast("Backend", _Proxy(await open_backend(self._url), self))


@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_a_late_last_reply_is_no_lost_event(seed: str) -> None:
    """The writer ends while the test waits for an event that is not to come: the watch is ahead of the writer."""
    harness = LateHarness()
    MapWatchContract().test_a_cancelled_read_of_a_watch_loses_nothing(Kit(harness, seed))
    assert harness.writes >= _WRITES
