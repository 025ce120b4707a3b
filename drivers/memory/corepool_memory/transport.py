"""How a client reaches the server: at once (embedded), or through a simulated network.

Purpose: the one seam between the driver's client side (``backend``, ``maps``, ``streams``) and the `Server`. Everything that
a network can do to a client happens behind a `Transport`, so the same driver code runs embedded and simulated.
Invariants:

- a request runs on the server atomically and at most once; the server never runs code of a client's task;
- what one client sends (``call``, ``send``, ``listen``, a feed's closing) arrives in the order in which it was sent, as long
  as its connection lives; what a feed pushes arrives in the order in which it was pushed, and not before a reply that the
  server gave earlier on the same connection;
- a cancelled ``call`` leaves the transport usable, and no later call receives its reply (M6);
- a feed that was cut says so by ``lost()``, once; nothing is pushed afterwards.

Neighbours: `EmbeddedTransport` serves ``memory://``; the simulator brings its own. Only `MemoryBackend` closes a transport.
"""

from __future__ import annotations

import asyncio
import random as random_module
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

from corepool.driver import Clock
from corepool.errors import BackendUnavailable

if TYPE_CHECKING:
    from corepool_memory.server import Server

__all__ = ["Attach", "Detach", "EmbeddedTransport", "Push", "Transport"]

T = TypeVar("T")

Push: TypeAlias = Callable[[T], None]
"""Takes one message of a feed towards the client. Never raises, never blocks, never calls back into the server."""

Detach: TypeAlias = Callable[[], None]
"""Ends a feed. Idempotent; runs on the server when given by an ``attach``."""

Attach: TypeAlias = Callable[["Server", Push[T]], Detach]
"""Runs on the server, may push at once, and returns what ends the feed there."""


class Transport(Protocol):
    """One client's way to one server."""

    @property
    def clock(self) -> Clock:
        """The client machine's clock (not the server's)."""
        ...

    @property
    def random(self) -> random_module.Random:
        """Where the client draws its ids from."""
        ...

    async def call(self, what: str, request: Callable[[Server], T], *, write: bool) -> T:
        """Run ``request`` on the server, atomically and at most once, at one instant between call and return.

        what: names the operation, for traces and for the labels of injected faults.
        What ``request`` raises is the server's answer and is raised here, however late; it must have changed nothing then.

        Raises:
            BackendUnavailable: the request was not run and never will be (or ``write`` is False and its answer is lost).
            OutcomeUnknown: only with ``write``: it may have been run, or may still be (see :meth:`settle`).
        """
        ...

    def send(self, what: str, request: Callable[[Server], None]) -> None:
        """Run ``request`` on the server, without an answer. Lost if the connection is (or was) cut: then every feed of this
        client gets its ``lost()``. Never raises; does nothing on a closed transport."""
        ...

    def listen(self, what: str, attach: Attach[T], receive: Push[T], lost: Callable[[], None]) -> Detach:
        """Open a feed: ``attach(server, push)`` runs on the server, and whatever it pushes arrives at ``receive``, in order.

        receive: called at once or later; an embedded transport may call it before ``listen`` returns.
        lost: called once if the feed dies by itself (also if ``attach`` never ran), and never from within a call into
            the transport. The client may listen again at once: a transport that is down paces such attempts.
        Returns what closes the feed: neither ``receive`` nor ``lost`` is called after it, and ``attach``'s own detacher runs
        on the server when the news gets there (or when the server learns that the connection is gone).
        """
        ...

    async def settle(self) -> None:
        """Return once no earlier write of this transport can be applied any more (R2).

        Raises:
            BackendUnavailable: it cannot be made sure now.
        """
        ...

    async def aclose(self) -> None:
        """Cut the connection and detach every feed, without calling ``lost``. Calls in flight end with an error, later ones
        raise `BackendUnavailable`. Idempotent and bounded."""
        ...


class EmbeddedTransport:
    """The server is in this process: a request is a function call, and a feed delivers straight into the client's buffer.

    yield_every: after so many calls in a row one lets the loop run first, so that a caller that polls in a loop, which never
        suspends here though it would over a network, cannot starve the others.
    """

    def __init__(
        self, server: Server, clock: Clock, random: random_module.Random | None = None, *, yield_every: int = 64
    ) -> None:
        self._server = server
        self._clock = clock
        self._random = random or random_module.Random()
        self._yield_every = yield_every
        self._until_yield = yield_every
        self._feeds: dict[int, Detach] = {}
        self._next_feed = 0
        self._closed = False

    @property
    def clock(self) -> Clock:
        return self._clock

    @property
    def random(self) -> random_module.Random:
        return self._random

    async def call(self, what: str, request: Callable[[Server], T], *, write: bool) -> T:
        self._until_yield -= 1
        if self._until_yield <= 0:
            self._until_yield = self._yield_every
            await asyncio.sleep(0)  # before the request, so that a cancellation here means: not applied
        if self._closed:
            raise BackendUnavailable(f"{what}: this backend is closed; open another one")
        return request(self._server)

    def send(self, what: str, request: Callable[[Server], None]) -> None:
        if not self._closed:
            request(self._server)

    def listen(self, what: str, attach: Attach[T], receive: Push[T], lost: Callable[[], None]) -> Detach:
        if self._closed:  # a client closes its feeds before its transport, so there is nobody left to tell
            return _nothing
        number = self._next_feed
        self._next_feed += 1
        feeds = self._feeds

        def push(message: T) -> None:
            if number in feeds:
                receive(message)

        def close() -> None:
            detach = feeds.pop(number, None)
            if detach is not None:
                detach()

        feeds[number] = _nothing  # open from the first message that attach pushes
        detach = attach(self._server, push)
        if number in feeds:
            feeds[number] = detach
        else:
            detach()
        return close

    async def settle(self) -> None:
        if self._closed:
            raise BackendUnavailable("settle: this backend is closed; open another one")

    async def aclose(self) -> None:
        self.cut()

    def cut(self) -> None:
        """What `aclose` does, for an owner whose event loop is gone."""
        self._closed = True
        detachers = list(self._feeds.values())
        self._feeds.clear()
        for detach in detachers:
            detach()


def _nothing() -> None:
    """The detacher of a feed that has none (yet)."""
