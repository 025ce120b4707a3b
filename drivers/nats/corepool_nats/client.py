"""A client that outlives its connections, and knows what became of every write.

Purpose: API calls and publishes with deadlines, over one link after the other.
Invariants:

- A publish ends in one of three ways: stored at a sequence, certainly not stored, or `OutcomeUnknown`. It is never sent twice.
- **How an outcome becomes known.** Every publish carries an id of its own (``Nats-Msg-Id``), and a stream stores an id once
  within its duplicate window. When a reply is lost, the client publishes an empty *fence* under the same id: either the server
  answers "duplicate of sequence s", so the write was applied at s; or it stores the fence, and from then on the lost write, if
  it still travels somewhere, is dropped as the duplicate. This needs no order between connections, routes or leaders: only
  that nothing is delivered later than the duplicate window after it was sent.
- `settle` fences whatever is still unknown, cancelled calls included.
- A call waits for a connection no longer than its deadline; closing ends every call at once.

Neighbours: `Link` below, maps, streams and watches above. Subjects and meanings are theirs.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import attrs

from corepool.driver import SystemClock
from corepool.errors import BackendUnavailable, OutcomeUnknown
from corepool_nats import api
from corepool_nats.api import ApiError
from corepool_nats.connections import Connections
from corepool_nats.link import Denied, Link, LinkError, Message, NoResponders, NotSent, ReplyLost
from corepool_nats.together import Asked, Question, Together
from corepool_nats.url import Settings

__all__ = ["Change", "Client", "Refused", "Stored", "Target", "expect"]

log = logging.getLogger("corepool.nats")
T = TypeVar("T")

_BODY = b""


@attrs.frozen(slots=True)
class Target:
    """A JetStream stream to publish to. ``fence``: a subject of it for fences; ``ensure`` makes the stream exist."""

    asset: str
    fence: str
    ensure: Callable[[float], Awaitable[None]] = attrs.field(repr=False)


@attrs.define(slots=True)
class Change:
    """What became of an API call that changes something, besides its answer."""

    reply_lost: bool = False


@attrs.frozen(slots=True)
class Stored:
    """A message was stored at ``sequence``. ``probed``: the answer to the probe, None if there is none."""

    sequence: int
    probed: int | None


class Refused(Exception):
    """The expected last sequence did not hold; nothing was stored. Never leaves the driver.

    at: the sequence that stands there; None: another write to the same subject was just under way, ask again.
    """

    def __init__(self, at: int | None) -> None:
        super().__init__(at)
        self.at = at


@attrs.frozen(slots=True)
class _Unknown:
    target: Target
    sent: float


class Client:
    """The connection of one backend object. `open` it first."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.clock = SystemClock()
        self.random = random.Random()
        self.connections = Connections(settings, self.random)
        self.closed = self.connections.closed
        self.open = self.connections.open
        self.link = self.connections.link
        self.aclose = self.connections.aclose
        self._ids = itertools.count(1)
        self._prefix = secrets.token_hex(8)
        self._unknown: dict[str, _Unknown] = {}
        self._newest: dict[str, int] = {}
        self.windows: dict[str, float] = {}
        """Duplicate windows of the streams in use, in seconds, as the server has them."""
        self._gate = asyncio.Semaphore(512)
        self._shared: Together | None = None
        prefix = f"$JS.{settings.domain}.API" if settings.domain else "$JS.API"
        self.api_prefix = prefix
        self.went_back: list[Callable[[str], None]] = []
        """Called with an asset's name when its sequences were seen to go back (it lost acknowledged messages)."""

    def __repr__(self) -> str:
        return f"<corepool_nats.Client {self.settings.redacted}>"

    def deadline(self) -> float:
        """When a call that begins now gives up."""
        return time.monotonic() + self.settings.timeout

    # --- API calls ---------------------------------------------------------------------------------------------------

    async def api(self, call: str, body: bytes, kind: type[T], deadline: float, *, change: Change | None = None) -> T:
        """Call JetStream's API, again until it answers: for calls that may run twice (reads, bounded purges, removals).

        change: what is called changes something; notes whether a reply was lost.

        Raises:
            BackendUnavailable: no answer before the deadline.
            OutcomeUnknown: the same, of a change that may have been applied.
        """
        try:
            return await self._api(call, body, kind, deadline, change)
        except BackendUnavailable as error:
            if change is not None and change.reply_lost:
                raise OutcomeUnknown(f"{error}; it may have been applied") from None
            raise

    async def _api(self, call: str, body: bytes, kind: type[T], deadline: float, change: Change | None) -> T:
        subject = f"{self.api_prefix}.{call}"
        told = "no answer"
        while True:
            link = await self.link(deadline)
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise BackendUnavailable(f"{call}: {told}")
            try:
                async with self._gate:
                    reply = await link.request(subject, body, timeout=min(remaining, self.patience))
            except Denied as error:
                raise BackendUnavailable(_denied_text(error)) from None
            except (NotSent, NoResponders, ReplyLost) as error:
                told = str(error)
                if change is not None and isinstance(error, ReplyLost):
                    change.reply_lost = True
                self._check_open()
                await self.pause(deadline)
                continue
            answer = api.decode(reply.data, kind)
            refusal: ApiError | None = getattr(answer, "error", None)
            if refusal is not None and api.is_passing(refusal):
                told = refusal.description
                await self.pause(deadline)
                continue
            return answer

    async def direct(
        self, requests: Sequence[tuple[str, bytes]], deadline: float, *, many: bool = False
    ) -> list[list[Message]] | None:
        """Read directly, from any replica: a message for each request, or one with a status; all in one round trip, in any
        order, together with what others read in this turn of the loop. None: the stream does not allow it, or does not exist.

        requests: what follows ``DIRECT.GET.`` in the subject, and the body.
        many: each is answered by several messages, the last one with a status.

        Raises:
            BackendUnavailable
        """
        prefix = f"{self.api_prefix}.DIRECT.GET."
        questions = [Question(prefix + subject, body, many=many) for subject, body in requests]
        while True:
            link = await self.link(deadline)
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise BackendUnavailable("a read got no answer")
            try:
                async with self._gate:
                    return await self._together(link).ask(questions, min(remaining, self.patience)).answers()
            except Denied as error:
                raise BackendUnavailable(_denied_text(error)) from None
            except NoResponders:
                return None
            except (NotSent, ReplyLost):
                self._check_open()
                await self.pause(deadline)

    def _together(self, link: Link) -> Together:
        if self._shared is None or self._shared.link is not link:
            self._shared = Together(link)
        return self._shared

    @property
    def patience(self) -> float:
        """How long one attempt waits before the reply counts as lost."""
        return max(1.0, self.settings.timeout / 5)

    def expired(self, deadline: float) -> bool:
        return time.monotonic() >= deadline

    def left(self, deadline: float) -> float:
        """Seconds until the deadline.

        Raises:
            BackendUnavailable: none.
        """
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise BackendUnavailable("no answer in time")
        return remaining

    async def pause(self, deadline: float) -> None:
        """A moment, before trying again."""
        await asyncio.sleep(min(0.02 + 0.08 * self.random.random(), max(0.0, deadline - time.monotonic())))

    async def yield_to_others(self, deadline: float) -> None:
        """Before another try of a compare-and-set that somebody else won, or that met one under way.

        Raises:
            BackendUnavailable: the deadline has passed; nothing was applied.
        """
        if self.expired(deadline):
            raise BackendUnavailable("too many others write the same at once; nothing was applied")
        await asyncio.sleep(self.random.random() * 0.004)

    def _check_open(self) -> None:
        if self.closed.is_set():
            raise BackendUnavailable("the backend is closed")

    # --- publishing --------------------------------------------------------------------------------------------------

    def new_id(self) -> str:
        """An id nobody else uses."""
        return f"{self._prefix}{next(self._ids):x}"

    async def publish(
        self,
        target: Target,
        subject: str,
        data: bytes,
        headers: Mapping[str, str],
        deadline: float,
        *,
        probe: str | None = None,
        on: Link | None = None,
    ) -> Stored:
        """Store a message.

        probe: also tell the newest sequence on this subject (wildcards allowed) right after the message, in the same round
            trip: a second publish that can never hold is answered with the sequence that stands in its way, and the server
            takes the publishes of one connection in their order. Nothing more is stored. One serves all publishes of a turn
            of the loop.
        on: send it on this connection or not at all, in the first step, and do not send again what was lost on its way;
            `BackendUnavailable` then. For publishes whose order matters.

        Raises:
            Refused: the expected last sequence in ``headers`` did not hold.
            BackendUnavailable: certainly not stored.
            OutcomeUnknown
        """
        told = "no answer"
        while True:
            link = on if on is not None else await self.link(deadline)
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise BackendUnavailable(f"not stored: {told}")
            identity = self.new_id()
            newest = self._newest.get(target.asset, 0)
            unknown = _Unknown(target, time.monotonic())
            probing: Asked | None = None
            try:
                timeout = min(remaining, self.patience)
                if probe is not None:  # sent at the end of this turn: behind the message
                    question = Question(target.fence, _BODY, tuple(expect(_NEVER, probe).items()))
                    probing = self._together(link).ask([question], timeout)
                call = link.begin(subject, data, {**headers, "Nats-Msg-Id": identity}, timeout=timeout)
                (reply,) = await call.replies()
                probed = await self._probed(probing)
            except NotSent as error:
                told = str(error)
                self._check_open()
                if not link.ended.is_set():  # it is the message that cannot be sent
                    raise BackendUnavailable(f"not stored: {told}") from None
            except Denied as error:
                raise BackendUnavailable(_denied_text(error)) from None
            except NoResponders:
                told = f"nobody takes messages for {target.asset} (no stream, or no leader)"
                await target.ensure(deadline)
                await self.pause(deadline)
            except ReplyLost as error:
                told = f"{error}, and it is certain that nothing was stored"
                found = await self._resolve(identity, unknown, deadline)
                if found is not None:
                    return Stored(self._note(target, found, newest), None)
            except asyncio.CancelledError:
                self._remember(identity, unknown)
                raise
            else:
                answer = api.decode(reply.data, api.PubAck)
                if answer.error is None and not answer.duplicate:
                    return Stored(self._note(target, answer.seq, newest), probed)
                if answer.error is not None:
                    told = answer.error.description
                    await self._refusal(answer.error, target, deadline)
                # "duplicate" of what was sent once: a fence of this very id came first, and the write was dropped
            if on is not None:
                raise BackendUnavailable(f"not stored: {told}")

    async def _refusal(self, error: ApiError, target: Target, deadline: float) -> None:
        """Return, after a pause, if it passes by itself.

        Raises:
            Refused, BackendUnavailable
        """
        if api.is_passing(error):
            await self.pause(deadline)
            return
        try:
            at = api.refused_at(error)
        except LookupError:
            raise api.explain(error, f"storing into {target.asset}") from None
        raise Refused(at)

    def _note(self, target: Target, sequence: int, newest: int) -> int:
        """Watch the sequences: one that is not above what was acknowledged before the publish began tells of a store that
        went back."""
        if sequence <= newest:
            log.warning("stream %s went back from sequence %d to %d: it lost messages", target.asset, newest, sequence)
            self._newest[target.asset] = sequence
            self.report_loss(target.asset)
        elif sequence > self._newest.get(target.asset, 0):
            self._newest[target.asset] = sequence
        return sequence

    def stored(self, target: Target) -> int:
        """A sequence that this process knows to be stored: messages up to it are seen by every read that begins now."""
        return self._newest.get(target.asset, 0)

    def report_loss(self, asset: str) -> None:
        """Tell everybody who remembers sequences of this asset that they mean nothing any more."""
        for tell in self.went_back:
            tell(asset)

    async def _probed(self, probing: Asked | None) -> int | None:
        if probing is None:
            return None
        try:
            ((reply,),) = await probing.answers()
            answer = api.decode(reply.data, api.PubAck)
            return api.refused_at(answer.error) if answer.error is not None else None
        except (LinkError, LookupError):
            return None  # the write stands; whoever wanted to know asks in another way

    # --- outcomes ----------------------------------------------------------------------------------------------------

    async def _resolve(self, identity: str, unknown: _Unknown, deadline: float) -> int | None:
        """The sequence of a write whose reply was lost; None if it was not stored and never will be.

        Raises:
            OutcomeUnknown: it cannot be found out before the deadline. It stays known to `settle`.
        """
        try:
            found = await self._fence(identity, unknown, deadline)
        except asyncio.CancelledError:
            self._remember(identity, unknown)
            raise
        except BackendUnavailable as error:
            self._remember(identity, unknown)
            raise OutcomeUnknown(
                f"the reply was lost, and what became of the write cannot be found out: {error}"
            ) from None
        # A server that restarts forgets ids older than the window: "never seen" is then no answer.
        if found is None and time.monotonic() - unknown.sent > 0.7 * self._window(unknown):
            raise OutcomeUnknown("the reply was lost, and by now the server may have forgotten the write's id")
        return found

    def _window(self, unknown: _Unknown) -> float:
        """For how many seconds the server remembers the write's id."""
        return self.windows.get(unknown.target.asset, self.settings.duplicate_window)

    def _remember(self, identity: str, unknown: _Unknown) -> None:
        """Keep it for `settle`: not longer than it could still be delivered."""
        self._unknown[identity] = unknown
        if len(self._unknown) > _MANY_UNKNOWN:
            now = time.monotonic()
            for old, each in list(self._unknown.items()):
                if now - each.sent > self._window(each):
                    del self._unknown[old]

    async def _fence(self, identity: str, unknown: _Unknown, deadline: float) -> int | None:
        target = unknown.target
        told, sent_before, behind = "no answer", False, False
        while True:
            link = await self.link(deadline)
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise BackendUnavailable(told)
            try:
                reply: Message = await link.request(
                    target.fence, _BODY, {"Nats-Msg-Id": identity}, timeout=min(remaining, self.patience)
                )
            except NoResponders as error:
                told = str(error)
                if await self._no_stream(target, deadline):
                    return None  # there is nothing left that could hold it
                continue
            except LinkError as error:
                told = str(error)
                sent_before = sent_before or isinstance(error, ReplyLost)
                self._check_open()
                await self.pause(deadline)
                continue
            answer = api.decode(reply.data, api.PubAck)
            if answer.error is not None:
                told = answer.error.description
                if answer.error.err_code == api.DUPLICATE_IN_PROCESS:
                    if behind:
                        return None
                    behind = await self._wait_behind(target, deadline)
                    continue
                if not api.is_passing(answer.error):
                    raise api.explain(answer.error, f"fencing in {target.asset}")
                await self.pause(deadline)
                continue
            if answer.duplicate and sent_before and await self._is_fence(target, answer.seq, deadline):
                return None
            return answer.seq if answer.duplicate else None

    async def _wait_behind(self, target: Target, deadline: float) -> bool:
        """The leader has the id on its list without a sequence: the write has reached it, and is under way to the others or was
        refused (a refused one stays on the list until the window has passed). What is stored now is behind it in the order of
        that leader: if the id has no sequence then, the write was refused, and nothing of it travels any more.
        """
        try:
            link = await self.link(deadline)
            reply = await link.request(target.fence, _BODY, timeout=min(self.left(deadline), self.patience))
            return api.decode(reply.data, api.PubAck).error is None
        except LinkError:
            await self.pause(deadline)
            return False

    async def _is_fence(self, target: Target, sequence: int, deadline: float) -> bool:
        """Whether the message is the fence of an earlier try, rather than the write."""
        body = b'{"seq":%d}' % sequence
        reply = await self.api(f"STREAM.MSG.GET.{target.asset}", body, api.MessageReply, deadline)
        if reply.message is None:
            raise BackendUnavailable("the message that would tell is gone")
        return reply.message.subject == target.fence

    async def _no_stream(self, target: Target, deadline: float) -> bool:
        info = await self.api(f"STREAM.INFO.{target.asset}", _BODY, api.StreamInfo, deadline)
        return info.error is not None and info.error.err_code == api.NO_STREAM

    async def settle(self) -> None:
        """See `corepool.driver.Namespace.settle`.

        Raises:
            BackendUnavailable
        """
        deadline = self.deadline()
        for identity, unknown in list(self._unknown.items()):
            if identity in self._unknown:
                await self._fence(identity, unknown, deadline)
                self._unknown.pop(identity, None)


_MANY_UNKNOWN = 1024
_NEVER = 2**53 - 1
"""An expected sequence that never holds."""


def expect(sequence: int, subject: str | None = None) -> dict[str, str]:
    """Headers: store only if the newest message on ``subject`` (default: the message's own) has this sequence."""
    headers = {"Nats-Expected-Last-Subject-Sequence": str(sequence)}
    if subject is not None:
        headers["Nats-Expected-Last-Subject-Sequence-Subject"] = subject
    return headers


def _denied_text(error: Denied) -> str:
    return (
        f"{error}; corepool needs publish permission on cp.>, $JS.API.> and $JS.ACK.> and subscribe permission on its inbox "
        f"(_INBOX.> unless ?inbox_prefix= says otherwise). Nothing was applied"
    )
