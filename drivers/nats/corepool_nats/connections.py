"""One link after the other: who is connected to which server, and who waits for it.

Purpose: keep a client connected for as long as it lives.
Invariants: at most one link at a time; a caller waits for a link no longer than its deadline; closing wakes every waiter; a
server below the floor is refused before anything is asked of it; failures are told without credentials.
Neighbours: :mod:`corepool_nats.link` below, :mod:`corepool_nats.client` above.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from typing import cast

from corepool.errors import BackendUnavailable, UnsupportedServer
from corepool_nats.link import Link, LinkError
from corepool_nats.url import Settings

__all__ = ["FLOOR", "Connections"]

log = logging.getLogger("corepool.nats")

FLOOR = (2, 11)


class Connections:
    """The connections of one backend object, one at a time. `open` it first."""

    def __init__(self, settings: Settings, rng: random.Random) -> None:
        self.settings = settings
        self.closed = asyncio.Event()
        self._random = rng
        self._link: Link | None = None
        self._linked = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None
        self._failures: list[str] = []
        self._closing: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Connect for the first time.

        Raises:
            BackendUnavailable: no server answers, or all refuse.
            UnsupportedServer: the server is too old.
        """
        deadline = time.monotonic() + self.settings.connect_timeout
        servers = list(self.settings.servers)
        self._random.shuffle(servers)
        try:
            async with asyncio.timeout(self.settings.connect_timeout):
                while True:
                    for server in servers:
                        try:
                            await self._connect(server)
                        except LinkError as error:
                            self._failed(server, error)
                        else:
                            self._supervisor = asyncio.create_task(self._supervise(), name="corepool-nats-supervisor")
                            return
                    if time.monotonic() > deadline or self._refused_credentials():
                        break
                    await asyncio.sleep(0.1)
        except TimeoutError:
            pass  # the failures say why
        raise BackendUnavailable(self._why_not())

    async def _connect(self, server: str) -> None:
        link = Link(self.settings, server)
        try:
            await link.open()
            _check_version(link)
        except BaseException:  # cancellation included: a half-open link must not stay behind
            self._put_away(link)
            raise
        self._link = link
        self._linked.set()

    def _put_away(self, link: Link) -> None:
        """Close a link in the background: what is left of a broken socket may take its time."""
        link.kill("closed")
        closing = asyncio.create_task(link.close(), name="corepool-nats-put-away")
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def _supervise(self) -> None:
        """Replace the link when it ends, for as long as the client lives."""
        turn = 0
        while not self.closed.is_set():
            link = self._link
            if link is not None:
                await link.ended.wait()
                log.info("connection to %s ended: %s", link.server, link.reason)
                self._failures = [f"{link.server}: {link.reason}"]
                self._linked.clear()
                self._link = None
                self._put_away(link)
            servers = self._known_servers(link)
            delay = 0.02
            while self._link is None and not self.closed.is_set():
                turn += 1
                server = servers[turn % len(servers)]
                try:
                    await self._connect(server)
                except (LinkError, UnsupportedServer) as error:
                    self._failed(server, error)
                    if turn % len(servers) == 0:
                        await asyncio.sleep(delay * (0.5 + self._random.random()))
                        delay = min(delay * 2, 1.0)
            if self._link is not None:
                log.info("connected to %s", self._link.server)

    def _known_servers(self, link: Link | None) -> list[str]:
        """The servers of the URL, and those the last one told of (whose TLS names and WebSocket ports nobody can guess)."""
        servers = list(self.settings.servers)
        told = link.info.get("connect_urls") if link is not None else None
        if self.settings.scheme == "nats" and isinstance(told, list):
            urls = [f"nats://{url}" for url in cast("list[object]", told)]
            servers += [url for url in urls if url not in servers]
        return servers

    def _failed(self, server: str, error: Exception) -> None:
        self._failures.append(f"{server}: {error}")
        del self._failures[:-6]
        log.debug("cannot connect to %s: %s", server, error)

    def _refused_credentials(self) -> bool:
        return any("authorization" in text.lower() for text in self._failures)

    def _told(self) -> str:
        return "; ".join(dict.fromkeys(self._failures)) or "no answer"

    def _why_not(self) -> str:
        told = self._told()
        if self._refused_credentials():
            have = "the credentials given" if self.settings.authenticates else "a client without credentials"
            return (
                f"the server refuses {have} ({told}); check user and password, token, creds or nkey, and that the "
                f"account may connect"
            )
        return f"no NATS server can be reached within {self.settings.connect_timeout:g} s ({told}); is it running?"

    async def link(self, deadline: float) -> Link:
        """The current connection; waits for one until the deadline (`time.monotonic`).

        Raises:
            BackendUnavailable: closed, or none in time.
        """
        while True:
            if self.closed.is_set():
                raise BackendUnavailable("the backend is closed; nothing was sent")
            if self._link is not None and not self._link.ended.is_set():
                return self._link
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise BackendUnavailable(f"not connected, nothing was sent: {self._told()}")
            try:
                async with asyncio.timeout(min(remaining, 0.5)):
                    await self._linked.wait()
                    if self._link is not None and self._link.ended.is_set():
                        await asyncio.sleep(0.005)  # the supervisor has not seen it yet
            except TimeoutError:
                continue

    async def aclose(self) -> None:
        """End every call and connection. Idempotent, bounded."""
        self.closed.set()
        self._linked.set()  # whoever waits for a link looks again
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait([self._supervisor])
        if self._link is not None:
            self._put_away(self._link)
        if self._closing:
            await asyncio.wait(self._closing)


def _check_version(link: Link) -> None:
    text = str(link.info.get("version", ""))
    match = re.match(r"(\d+)\.(\d+)", text)
    if match is None or (int(match[1]), int(match[2])) < FLOOR:
        raise UnsupportedServer(
            f"{link.server} runs nats-server {text or 'of unknown version'}; corepool needs {FLOOR[0]}.{FLOOR[1]} or newer "
            f"(older ones ignore the guard that keeps destroyed streams destroyed, or deliver wrongly); upgrade the server"
        )
