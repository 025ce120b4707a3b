"""What only the driver's author can offer: connections, and ways to look at and to break the backend.

Purpose: the one object a driver author writes, and the zero-code version that needs a URL alone.
Invariants: an optional hook that is not overridden counts as *not offered*; tests that need it are reported as not tested,
never as passed.
Neighbours: `corepool_conformance.kit` calls `begin` and `end` around every test, inside that test's event loop.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Collection
from urllib.parse import urlsplit, urlunsplit

from corepool.driver import Backend, open_backend
from corepool_conformance.proxy import TcpProxy

__all__ = ["HOOKS", "Harness", "UrlHarness"]

HOOKS = ("raw_read", "raw_write", "cut", "restart", "leaks", "members")
"""The optional hooks. ``cut`` stands for ``cut`` and ``heal`` together."""


class Harness(ABC):
    """Subclass it, implement `connect`, and override the hooks your backend allows.

    ack_wait: the ack_wait in seconds the kit gives its sinks; as short as your backend does it well.
    patience: a factor on every deadline of the kit, for slow machines.
    label: what to call the backend in reports, with its version: ``Valkey 9.1``; None: the name of the suite's class.
    url: a URL under which another *process* reaches the same store, or None if there is none.
    """

    ack_wait: float = 1.0
    patience: float = 1.0
    label: str | None = None
    url: str | None = None

    @abstractmethod
    async def connect(self) -> Backend:
        """A new connection to the store under test; the kit closes it. Connections of one test share the store."""

    def fresh_namespace(self) -> str:
        """A namespace name that nobody has used before."""
        return f"conformance-{secrets.token_hex(6)}"

    async def begin(self, needs: Collection[str]) -> None:  # noqa: B027  most have nothing to do here
        """Called before each test, in its event loop. ``needs``: the hooks that this test is going to use."""

    async def end(self) -> None:  # noqa: B027  as above
        """Called after each test, after every connection was closed. The backend must be reachable again afterwards."""

    # --- optional hooks ----------------------------------------------------------------------------------------------
    # Not abstract: a harness without them is complete. The kit asks `offers`, and calls none that was not overridden.

    async def raw_read(self, namespace: str, map_name: str, key: str) -> bytes | None:
        """What the backend itself holds for the key, read without the driver: bytes that contain the value."""
        raise NotImplementedError

    async def raw_write(self, namespace: str, map_name: str, key: str, data: bytes) -> None:
        """Put bytes where the driver keeps the key's value, without the driver."""
        raise NotImplementedError

    async def cut(self) -> None:
        """Break all connections of this test and let no new one through."""
        raise NotImplementedError

    async def heal(self) -> None:
        """End `cut`."""
        raise NotImplementedError

    async def restart(self) -> None:
        """Stop the backend hard (kill -9) and start it again on its data; return once it accepts connections."""
        raise NotImplementedError

    async def leaks(self, namespace: str) -> list[str]:
        """What the backend still holds of a namespace whose maps and streams were all destroyed."""
        raise NotImplementedError

    async def members(self, namespace: str, stream: str, sink: str) -> list[str]:
        """The members the backend has on its books for a sink."""
        raise NotImplementedError

    def offers(self, hook: str) -> bool:
        """Whether the hook is implemented."""
        if hook not in HOOKS:
            raise ValueError(f"{hook!r} is no hook of a harness; there are {', '.join(HOOKS)}")
        return getattr(type(self), hook) is not getattr(Harness, hook)


class UrlHarness(Harness):
    """The zero-code harness: a URL. If it names a host and a port, connections can be cut by a TCP proxy in between.

    A URL that names nothing at all (``memory://``) may be a store of its own for each connection: the kit gives it a name.
    The proxy is used by the tests that cut alone. It is not offered for URLs with several hosts or without a port, since a
    client may then reach the server past it.
    """

    def __init__(self, url: str, *, ack_wait: float = 1.0, patience: float = 1.0) -> None:
        self._url = url if urlsplit(url).netloc or urlsplit(url).path else f"{url}conformance-{secrets.token_hex(6)}"
        self.url: str | None = self._url
        self.ack_wait = ack_wait
        self.patience = patience
        self._proxy: TcpProxy | None = None

    async def connect(self) -> Backend:
        return await open_backend(self._url if self._proxy is None else self.routed(self._proxy.port))

    async def begin(self, needs: Collection[str]) -> None:
        if "cut" in needs:
            host, port = self.address()
            self._proxy = await TcpProxy.start(host, port)

    async def end(self) -> None:
        proxy, self._proxy = self._proxy, None
        if proxy is not None:
            await proxy.aclose()

    async def cut(self) -> None:
        assert self._proxy is not None, "only a test that says needs=('cut',) may cut"
        await self._proxy.cut()

    async def heal(self) -> None:
        assert self._proxy is not None, "only a test that says needs=('cut',) may heal"
        await self._proxy.heal()

    def offers(self, hook: str) -> bool:
        if hook == "cut":
            return self._proxyable()
        return super().offers(hook)

    def _proxyable(self) -> bool:
        parts = urlsplit(self._url)
        try:
            return bool(parts.hostname) and parts.port is not None and "," not in parts.netloc
        except ValueError:  # several hosts, or a port that is no number: not for us to judge
            return False

    def address(self) -> tuple[str, int]:
        """The host and port of a URL that a proxy can stand for."""
        parts = urlsplit(self._url)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port

    def routed(self, port: int) -> str:
        """The URL, led through a proxy that listens on a local port."""
        parts = urlsplit(self._url)
        userinfo, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{userinfo}{at}127.0.0.1:{port}"))
