"""A server in hand-driven time, and a transport that can be held, cut and restored."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import Any

from corepool.driver import Clock, SystemClock
from corepool.errors import BackendUnavailable, OutcomeUnknown
from corepool_memory.backend import MemoryBackend
from corepool_memory.options import MemoryOptions
from corepool_memory.server import Server


class Time:
    """A clock and timers that move when told."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.offset = 1_700_000_000.0
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = 0

    def wall(self) -> float:
        return self.now + self.offset

    def monotonic(self) -> float:
        return self.now

    def call_later(self, delay: float, function: Callable[[], None]) -> Timer:
        assert delay >= 0
        self._count += 1
        timer = Timer(function)
        heapq.heappush(self._timers, (self.now + delay, self._count, timer))
        return timer

    @property
    def armed(self) -> int:
        return sum(not timer.cancelled for _, _, timer in self._timers)

    def advance(self, seconds: float) -> None:
        until = self.now + seconds
        while self._timers and self._timers[0][0] <= until:
            due, _, timer = heapq.heappop(self._timers)
            self.now = max(self.now, due)
            if not timer.cancelled:
                timer.function()
        self.now = until


class Timer:
    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Wire:
    """A transport whose every message takes a turn of the loop, in order, and whose connection can be cut.

    fail: called with the name of each request; what it returns decides: "drop" (not applied), "lose" (applied, no answer).
    """

    def __init__(self, server: Server, clock: Clock, seed: int = 7) -> None:
        self.server = server
        self.clock = clock
        self.random = random.Random(seed)
        self.down = False
        self.fail: Callable[[str], str | None] = lambda what: None
        self.log: list[str] = []
        self.held = False
        self._queue: deque[Callable[[], None]] = deque()
        self._calls: dict[asyncio.Future[Any], Exception] = {}
        self._feeds: list[dict[str, Any]] = []
        self._pumping = False

    def _post(self, job: Callable[[], None]) -> None:
        self._queue.append(job)
        self._pump()

    def _pump(self) -> None:
        if not self._pumping and not self.held and self._queue:
            self._pumping = True
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        self._pumping = False
        if self._queue and not self.held:
            self._queue.popleft()()
        self._pump()

    def release(self) -> None:
        self.held = False
        self._pump()

    async def call(self, what: str, request: Callable[[Server], Any], *, write: bool) -> Any:
        if self.down:
            raise BackendUnavailable(f"{what}: nothing was sent")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls[future] = OutcomeUnknown(what) if write else BackendUnavailable(what)
        future.add_done_callback(lambda done: self._calls.pop(done, None))

        def answer(error: Exception | None, result: Any) -> None:
            if not future.done():
                if error is None:
                    future.set_result(result)
                else:
                    future.set_exception(error)

        def run() -> None:
            self.log.append(what)
            fate = self.fail(what)
            if fate == "drop":
                self._post(lambda: answer(BackendUnavailable(what), None))
                return
            error, result = None, None
            try:
                result = request(self.server)
            except Exception as raised:  # noqa: BLE001  whatever the server answers is the caller's
                error = raised
            if fate == "lose":
                error = self._calls.get(future)
            self._post(lambda: answer(error, result))

        self._post(run)
        return await future

    def send(self, what: str, request: Callable[[Server], None]) -> None:
        if self.down:
            return

        def run() -> None:
            self.log.append(what)
            request(self.server)

        self._post(run)

    def listen(self, what: str, attach: Any, receive: Callable[[Any], None], lost: Callable[[], None]) -> Any:
        feed: dict[str, Any] = {"open": True, "detach": None, "lost": lost}
        self._feeds.append(feed)

        def push(message: Any) -> None:
            self._post(lambda: receive(message) if feed["open"] else None)

        def run() -> None:
            self.log.append(what)
            if feed["open"]:
                feed["detach"] = attach(self.server, push)

        def close() -> None:
            feed["open"] = False
            self._post(lambda: self._end(feed))

        if not self.down:  # else the feed is told when the connection is back
            self._post(run)
        return close

    def _end(self, feed: dict[str, Any]) -> None:
        if feed["detach"] is not None:
            feed["detach"]()
            feed["detach"] = None

    def cut(self) -> None:
        """Whatever is under way is lost; the calls and the feeds are told."""
        self._queue.clear()
        for future, error in list(self._calls.items()):
            if not future.done():
                future.set_exception(error)
        if not self.down:
            self._lose_feeds()

    def heal(self) -> None:
        self.down = False
        self._lose_feeds()

    def _lose_feeds(self) -> None:
        feeds, self._feeds = self._feeds, []
        for feed in feeds:
            was_open, feed["open"] = feed["open"], False
            self._end(feed)
            if was_open:
                asyncio.get_running_loop().call_soon(feed["lost"])

    async def settle(self) -> None:
        await self.call("settle", lambda server: None, write=False)

    async def aclose(self) -> None:
        self.down = True
        for feed in self._feeds:
            feed["open"] = False
            self._end(feed)
        self.cut()


class World:
    """One server, and as many clients as wanted."""

    def __init__(self) -> None:
        self.time = Time()
        self.server = Server(clock=self.time, call_later=self.time.call_later, random=random.Random(1))

    def wire(self, **options: Any) -> tuple[Wire, MemoryBackend]:
        wire = Wire(self.server, self.time)
        return wire, MemoryBackend(wire, options=MemoryOptions(**options))


class Wires:
    """Clients of one server on an ordinary loop; all their connections can be cut at once."""

    def __init__(self, **options: Any) -> None:
        clock = SystemClock()
        self.server = Server(clock=clock, call_later=asyncio.get_running_loop().call_later, random=random.Random(1))
        self._options = MemoryOptions(**options)
        self._wires: list[Wire] = []
        self._down = False

    def connect(self) -> MemoryBackend:
        if self._down:
            raise BackendUnavailable("the wire is cut")
        wire = Wire(self.server, SystemClock(), seed=len(self._wires))
        self._wires.append(wire)
        return MemoryBackend(wire, options=self._options)

    def cut(self) -> None:
        self._down = True
        for wire in self._wires:
            wire.cut()
            wire.down = True

    def heal(self) -> None:
        self._down = False
        for wire in self._wires:
            wire.heal()
