"""One connection to one server, from its handshake to its end.

Purpose: connect with ``nats-py``, used in the way its measured pitfalls demand, and give requests their replies.
Invariants:

- A link never reconnects. When it ends, every request that waits on it ends at once, and what it had not yet written is
  thrown away: nothing that was sent on a dead link lands later from this side.
- A request that was not handed to the socket raises `NotSent`; one whose reply did not come raises `ReplyLost`. Nothing is
  sent that is over the server's limits: a server answers that by closing the connection for good.
- Cancelling a request leaves the link as it was: its reply is dropped when it comes. No ``flush`` and no ``wait_for`` is used
  (a cancelled flush kills nats-py's read loop; ``wait_for`` swallows cancellations on Python 3.11).
- A link that goes silent is killed by its keeper, half-open sockets and dead read loops included.

Neighbours: :mod:`corepool_nats.wire` below; :mod:`corepool_nats.client` opens links one after the other and gives meaning to
the outcomes.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import ssl
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, cast

from nats.errors import Error as NatsError

from corepool_nats.url import Settings
from corepool_nats.wire import Message, Receiver, Wire, command

__all__ = ["Call", "Denied", "Link", "LinkError", "Message", "NoResponders", "NotSent", "ReplyLost"]

log = logging.getLogger("corepool.nats")

_MAX_SUBJECT = 3600  # of the 4,096 bytes of a control line; reply inbox, sizes and verb take the rest
_SWEEP = 0.05
"""Seconds by which a call may outlive its time."""
_VIOLATION = re.compile(r"permissions violation for (?P<what>publish|subscription) to \"(?P<subject>[^\"]+)")


class LinkError(Exception):
    """Something between this process and its server. Never leaves the driver."""


class NotSent(LinkError):
    """The message was not given to the connection."""


class ReplyLost(LinkError):
    """The message was sent; the reply did not come in time, or the connection ended first."""


class NoResponders(LinkError):
    """The server says that nobody listens: the message reached nobody."""


class Denied(LinkError):
    """The server refuses this user the subject. The message reached nobody."""


def _check_cancelled() -> None:
    """nats-py's ``connect`` waits with ``wait_for``, which on Python 3.11 may swallow a cancellation.

    Raises:
        CancelledError: it did.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _tls_context(settings: Settings) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(settings.tls_ca) if settings.tls_ca else None)
    if settings.tls_cert and settings.tls_key:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    return context


class Call:
    """A request that was sent. Await `replies` once, unless ``told`` is called with it when it has ended."""

    __slots__ = (
        "_ended",
        "_error",
        "_future",
        "_link",
        "_many",
        "_parts",
        "_timeout",
        "_token",
        "_told",
        "due",
        "subject",
    )

    def __init__(
        self,
        link: Link,
        token: str,
        subject: str,
        loop: asyncio.AbstractEventLoop,
        many: bool,
        timeout: float,
        told: Callable[[Call], None] | None,
    ) -> None:
        self._link = link
        self._token = token
        self._many = many
        self._told = told
        self._future: asyncio.Future[None] | None = loop.create_future() if told is None else None
        self._parts: list[Message] = []
        self._error: LinkError | None = None
        self._ended = False
        self._timeout = timeout
        self.due = loop.time() + timeout
        self.subject = subject

    def take(self, message: Message) -> None:
        self._parts.append(message)
        if not self._many or message.status:
            self._end()

    def fail(self, error: LinkError) -> None:
        if not self._ended:
            self._error = error
            self._end()

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._link.forget(self._token)
        if self._told is not None:
            self._told(self)
        elif self._future is not None and not self._future.done():
            self._future.set_result(None)

    def expire(self) -> None:
        """Give up."""
        self.fail(ReplyLost(f"no reply within {self._timeout:.1f} s"))

    def outcome(self) -> list[Message] | LinkError:
        """The answer, once it has ended: what `replies` returns or raises."""
        if self._error is not None:
            return self._error
        if self._parts[-1].status == "503":
            return NoResponders(f"nobody listens on {self.subject!r}")
        return self._parts

    async def replies(self) -> list[Message]:
        """The answer.

        Raises:
            ReplyLost, NoResponders, Denied
        """
        assert self._future is not None
        try:
            await self._future
        finally:
            self._link.forget(self._token)  # given up, its answer is nobody's
        outcome = self.outcome()
        if isinstance(outcome, LinkError):
            raise outcome
        return outcome


class Link:
    """A connection. Make one, `open` it, use it until `ended` is set; `close` it."""

    def __init__(self, settings: Settings, server: str) -> None:
        self.server = server
        self.ended = asyncio.Event()
        self.reason = "not opened"
        self.info: Mapping[str, Any] = {}
        self._settings = settings
        self.max_payload = 1 << 20
        self._nc = Wire()
        self._nc.insist_on_tls = settings.secure
        self._nc.web = settings.scheme in ("ws", "wss")
        self._calls: dict[str, Call] = {}
        self._inbox = f"{settings.inbox_prefix}.{secrets.token_hex(11)}"
        self._count = 0
        self._received = 0
        self._open = False
        self._sweeper: asyncio.TimerHandle | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._errors: list[str] = []
        self._denied_subscription: str | None = None

    # --- life --------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect and log in.

        Raises:
            LinkError: it did not work; the text says why, without credentials.
        """
        settings = self._settings
        options: dict[str, Any] = {
            "servers": self.server,
            "name": settings.name,
            "allow_reconnect": False,
            "max_reconnect_attempts": 1,
            "reconnect_time_wait": 0.01,
            "connect_timeout": settings.connect_timeout,
            "ping_interval": 86400,  # the keeper of this class does better
            "pending_size": -1,  # nothing is buffered while disconnected: it would land after a reconnect
            "inbox_prefix": settings.inbox_prefix,
            "error_cb": self._on_error,
            "disconnected_cb": self._on_end,
            "closed_cb": self._on_end,
            "user": settings.user,
            "password": settings.password,
            "token": settings.token,
            "user_credentials": settings.creds,
            "nkeys_seed": str(settings.nkey) if settings.nkey else None,
            "tls_handshake_first": settings.tls_first,
            "tls_hostname": settings.tls_hostname,
        }
        if settings.secure or settings.tls_ca or settings.tls_cert:
            options["tls"] = _tls_context(settings)
        try:
            async with asyncio.timeout(settings.connect_timeout):
                await self._nc.connect(**options)
                _check_cancelled()
                await self._nc.tap()
                self._nc.listen(f"{self._inbox}.*", self._on_reply)
        except TimeoutError:
            self._fail(f"no answer within {settings.connect_timeout:g} s")
            raise LinkError(self.reason) from None
        except asyncio.CancelledError:
            self._fail("cancelled")
            raise
        except Exception as error:  # noqa: BLE001  whatever the library raises (sockets, TLS, keys): no link
            self._fail(self._errors[-1] if self._errors else self._describe(error))
            raise LinkError(self.reason) from None
        self.info = self._nc.info
        self.max_payload = int(self.info.get("max_payload", self.max_payload))
        self._open = True
        self.reason = ""
        self._keeper = asyncio.create_task(self._keep(), name="corepool-nats-keeper")

    def kill(self, reason: str) -> None:
        """End the link now, without goodbye. Idempotent."""
        self._fail(reason)

    async def close(self) -> None:
        """End the link and wait until its socket is gone. Idempotent, bounded."""
        self._fail("closed")
        if self._closing is not None:
            await asyncio.shield(self._closing)

    def _fail(self, reason: str) -> None:
        if self.ended.is_set():
            return
        self._open = False
        self.reason = reason
        self.ended.set()
        self._nc.discard()
        for call in list(self._calls.values()):
            call.fail(ReplyLost(f"the connection ended: {reason}"))
        self._calls.clear()
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._closing = asyncio.create_task(self._dismantle(), name="corepool-nats-close")

    async def _dismantle(self) -> None:
        """Drop the socket at once, then let nats-py put its tasks away. Never raises, never hangs."""
        if self._keeper is not None and self._keeper is not asyncio.current_task():
            self._keeper.cancel()
        transport = self._nc.transport
        writer = getattr(transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()
        session = getattr(transport, "_client", None)  # of a WebSocket
        steps = [session.close] if session is not None else []
        steps += [self._nc.close] if transport is None else [self._nc.close, transport.close, transport.wait_closed]
        for step in steps:
            try:
                async with asyncio.timeout(2.0):
                    result = step()
                    if asyncio.iscoroutine(result):
                        await result
            except Exception as error:  # noqa: BLE001  the link is gone; how its remains fall apart concerns nobody
                log.debug("while closing %s: %s", self.server, type(error).__name__)

    async def _keep(self) -> None:
        """Kill the link when nothing is heard although something was asked."""
        interval = self._settings.ping
        while not self.ended.is_set():
            before = self._received
            await asyncio.sleep(interval)
            if self._received != before:
                continue
            try:
                # A future that rtt() gives up on would break nats-py's read loop at the late PONG; the link is dead then.
                await self._nc.rtt(timeout=cast("int", max(interval, 1.0)))
            except (NatsError, TimeoutError, OSError):
                self._fail("the server stopped answering")

    async def _on_end(self) -> None:
        error = self._nc.last_error
        self._fail(self._describe(error) if error is not None else "the server closed the connection")

    async def _on_error(self, error: Exception) -> None:
        text = self._describe(error)
        self._errors.append(text)
        del self._errors[:-8]
        match = _VIOLATION.search(text.lower())
        if match is None:
            log.debug("from %s: %s", self.server, text)
            return
        denied = match["subject"]  # in lower case: nats-py changes what the server said
        if match["what"] == "subscription":
            self._denied_subscription = denied
            if denied.startswith(self._inbox.lower()):
                self._fail(f"no permission to subscribe to {self._settings.inbox_prefix}.>")
            return
        for call in list(self._calls.values()):
            if call.subject.lower() == denied:
                call.fail(Denied(f"no permission to publish to {call.subject!r}"))

    @staticmethod
    def _describe(error: BaseException) -> str:
        text = str(error).removeprefix("nats: ").strip("'\" ")
        return f"{type(error).__name__}: {text}" if text else type(error).__name__

    # --- use ---------------------------------------------------------------------------------------------------------

    async def send(self, subject: str, data: bytes, headers: Mapping[str, str] | None = None, reply: str = "") -> None:
        """`post`, for those who await."""
        self.post(subject, data, headers, reply)

    def post(self, subject: str, data: bytes, headers: Mapping[str, str] | None = None, reply: str = "") -> None:
        """Hand a message to the connection.

        Raises:
            NotSent: the link has ended, or the message is over the server's limits.
        """
        if not self._open:
            raise NotSent(f"no connection: {self.reason}")
        if len(subject) > _MAX_SUBJECT:
            raise NotSent(f"a subject of {len(subject)} bytes is over what a server takes")
        if not self._nc.is_connected:  # it has ended, and nats-py has not come round to saying so
            error = self._nc.last_error
            self._fail(self._describe(error) if error is not None else "the server closed the connection")
            raise NotSent(f"no connection: {self.reason}")
        whole, size = command(subject, reply, headers, data)
        if size > self.max_payload:
            raise NotSent(f"a message of {size} bytes is over the server's max_payload of {self.max_payload}")
        self._nc.stats["out_msgs"] += 1
        self._nc.write(whole)

    def begin(
        self,
        subject: str,
        data: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        timeout: float,
        many: bool = False,
        told: Callable[[Call], None] | None = None,
    ) -> Call:
        """Send a request; the answer is awaited on the `Call`, or told.

        many: the answer is several messages, the last one with a status.

        Raises:
            NotSent
        """
        self._count += 1
        token = format(self._count, "x")
        loop = asyncio.get_running_loop()
        self.post(subject, data, headers, f"{self._inbox}.{token}")
        call = self._calls[token] = Call(self, token, subject, loop, many, timeout, told)
        if self._sweeper is None:
            self._sweeper = loop.call_later(_SWEEP, self._sweep)
        return call

    def _sweep(self) -> None:
        """End the calls whose time is up. One timer for all of them: one for each would cost more than its message."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for call in list(self._calls.values()):
            if call.due <= now:
                call.expire()
        self._sweeper = loop.call_later(_SWEEP, self._sweep) if self._calls else None

    async def request(
        self, subject: str, data: bytes, headers: Mapping[str, str] | None = None, *, timeout: float
    ) -> Message:
        """Send, and wait for the one reply.

        Raises:
            NotSent, ReplyLost, NoResponders, Denied
        """
        return (await self.begin(subject, data, headers, timeout=timeout).replies())[0]

    def forget(self, token: str) -> None:
        """Drop a call; its reply, should it come, is nobody's."""
        self._calls.pop(token, None)

    def _on_reply(self, message: Message) -> None:
        self._received += 1
        call = self._calls.get(message.subject.rpartition(".")[2])
        if call is not None:
            call.take(message)

    def new_inbox(self) -> str:
        """A subject that only this process listens to, outside the replies of `request`."""
        return f"{self._settings.inbox_prefix}.{secrets.token_hex(11)}"

    async def subscribe(self, subject: str, receiver: Receiver) -> Callable[[], Coroutine[Any, Any, None]]:
        """Call ``receiver`` with each message, one after the other; returns how to end it. It must not wait for anything.

        Messages are never dropped on this side: a receiver bounds what it holds, and flow control or the size of its pull
        requests bounds what the server sends.

        Raises:
            NotSent: the link has ended.
        """
        if not self._open:
            raise NotSent(f"no connection: {self.reason}")

        def receive(message: Message) -> Coroutine[Any, Any, None] | None:
            self._received += 1
            return receiver(message)

        sid = self._nc.listen(subject, receive)

        async def stop() -> None:
            self._nc.unlisten(sid)

        return stop

    def denied_subscription(self, subject: str) -> bool:
        """Whether the server refused this subscription."""
        return self._denied_subscription is not None and self._denied_subscription == subject.lower()
