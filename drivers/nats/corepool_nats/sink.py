"""Sinks: consumer groups on a logical stream.

Purpose: `corepool.driver.SinkStore` on one durable pull consumer per sink, logical stream and life of that stream.
Invariants:

- The server knows no members, only requests and deliveries: a member that vanished leaves nothing (S3), and what it held is
  delivered again after ``ack_wait`` (S2).
- A work stream with one sink holds no acknowledged event: there the acknowledgement *is* the removal of the event, which the
  server answers with whether it was still there. Which sinks exist is read from the registry after the call began, so
  that a sink that has joined by then never loses an event to another one's acknowledgement.
- What arrived for a call that was cancelled goes to the next one, unless it lay here so long that the server has given it to
  somebody else.

Neighbours: joined through :mod:`corepool_nats.streams`; receipts are also honoured by commits (`acknowledge`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from corepool.driver import Delivery, check_duration
from corepool.errors import BackendUnavailable, InvalidOptionError, OutcomeUnknown, WireError
from corepool_nats import api
from corepool_nats.events import event_of
from corepool_nats.link import Denied, LinkError, NoResponders, ReplyLost
from corepool_nats.names import StreamSubjects
from corepool_nats.pull import Arrived, Pull, PullLost
from corepool_nats.reader import start_of
from corepool_nats.receipts import Receipt, make_receipt, read_receipt
from corepool_nats.registry import Known, Registry, SinkSpec
from corepool_nats.waits import at_once, unless

if TYPE_CHECKING:
    from corepool_nats.namespace import NatsNamespace

__all__ = ["NatsSink", "acknowledge"]

log = logging.getLogger("corepool.nats")

_UNUSED = 30 * 86400
"""Seconds after which a consumer that nobody asked for anything is removed by the server."""


class NatsSink:
    """See `corepool.driver.SinkStore`. Use `join`."""

    def __init__(
        self,
        space: NatsNamespace,
        stream: str,
        name: str,
        spec: SinkSpec,
        ended: Callable[[NatsSink], None],
    ) -> None:
        self._space = space
        self._client = space.client
        self._target = space.assets.streams
        self._stream = stream
        self._subjects: StreamSubjects = space.space.stream(stream)
        self._name = name
        self._spec = spec
        self._ended = ended
        self._life = ""
        self._pull: Pull | None = None
        self._foreign: list[str] = []
        self._closed = asyncio.Event()
        self._receiving = asyncio.Lock()

    # --- joining -----------------------------------------------------------------------------------------------------

    async def join(self, deadline: float) -> None:
        """Enter the sink into the registry if it is not there, and make its consumer.

        Raises:
            InvalidOptionError: the sink has another ack_wait.
            BackendUnavailable, OutcomeUnknown
        """

        def enter(registry: Registry | None) -> Registry | None:
            if registry is None:
                return Registry("waiting", self._client.new_id(), sinks={self._name: self._spec})
            if self._name in registry.sinks:
                return None
            return msgspec.structs.replace(registry, sinks={**registry.sinks, self._name: self._spec})

        known = await self._space.registries.load(self._subjects, deadline)
        if known.registry is None or known.registry.state == "gone" or self._name not in known.registry.sinks:
            await self._space.registries.change(self._subjects, enter, deadline)
            known = self._space.registries.remembered(self._subjects) or Known(0, None)
        registry = known.registry
        if registry is None or self._name not in registry.sinks:
            raise BackendUnavailable(
                f"the stream {self._stream!r} was destroyed while its sink {self._name!r} was joined"
            )
        spec = registry.sinks[self._name]
        if spec.wait != self._spec.wait:
            raise InvalidOptionError(
                f"the sink {self._name!r} of {self._stream!r} has an ack_wait of {spec.wait:g} s, not {self._spec.wait:g} s; "
                f"all members use the same"
            )
        await self._make_consumer(registry.life, spec, deadline)
        self._life = registry.life

    async def _make_consumer(self, life: str, spec: SinkSpec, deadline: float) -> None:
        start = (
            start_of(spec.since)
            if spec.since is not None
            else {"deliver_policy": "by_start_sequence", "opt_start_seq": max(1, spec.start)}
        )
        name = self._subjects.consumer(self._name, life)
        config = {
            "durable_name": name,
            "filter_subjects": [self._subjects.events],
            "ack_policy": "explicit",
            "ack_wait": int(spec.wait * 1e9),
            "max_deliver": -1,
            "max_ack_pending": -1,
            "replay_policy": "instant",
            "inactive_threshold": _UNUSED * 1_000_000_000,
            **start,
        }
        body = msgspec.json.encode({"stream_name": self._target.asset, "config": config})
        call = f"CONSUMER.CREATE.{self._target.asset}.{name}"
        info = await self._client.api(call, body, api.ConsumerInfo, deadline)
        if info.error is not None:
            raise api.explain(info.error, f"joining the sink {self._name!r} of {self._stream!r}")

    # --- receiving ---------------------------------------------------------------------------------------------------

    async def receive(self, max_events: int = 1) -> list[Delivery]:
        if max_events < 1:
            raise InvalidOptionError(f"max_events is at least 1, not {max_events}")
        async with self._receiving:
            while True:
                deliveries = self._taken(max_events)
                await self._end_foreign()
                if deliveries:
                    return deliveries
                self._check_open()
                try:
                    if self._pull is None:
                        await unless(self._open(), self._closed, self._client.closed)
                    pull = self._pull
                    if pull is not None:
                        await pull.wait(max_events)
                except PullLost as error:
                    log.info("the sink %s of %s begins again: %s", self._name, self._stream, error)
                    await self._drop()
                    if error.gone:
                        self._life = ""
                    await self._rest()
                except (BackendUnavailable, OutcomeUnknown) as error:
                    self._check_open()
                    log.info("the sink %s of %s has to wait: %s", self._name, self._stream, error)
                    await self._rest()

    def _check_open(self) -> None:
        if self._closed.is_set() or self._client.closed.is_set():
            raise BackendUnavailable(f"the sink {self._name!r} of {self._stream!r} is closed")

    def _taken(self, most: int) -> list[Delivery]:
        """What has arrived. No await: a cancelled caller cannot lose it."""
        deliveries: list[Delivery] = []
        pull = self._pull
        if pull is None or self._closed.is_set():
            return deliveries
        now = asyncio.get_running_loop().time()
        while pull.arrived and len(deliveries) < most:
            arrived: Arrived = pull.arrived.popleft()
            if now - arrived.at > 0.9 * self._spec.wait:
                continue  # the server has given it to somebody by now, or is about to
            try:
                event = event_of(arrived.record)
            except WireError as error:
                log.warning("left aside: %s", error)
                self._foreign.append(arrived.reply)
                continue
            receipt = make_receipt(self._stream, self._name, self._life, arrived.reply)
            deliveries.append(Delivery(event, receipt, max(1, arrived.record.attempt)))
        return deliveries

    async def _end_foreign(self) -> None:
        """Have what cannot be read delivered to nobody any more; it stays in the stream. Does not suspend."""
        while self._foreign and self._pull is not None:
            try:
                await self._pull.link.send(self._foreign[-1], b"+TERM")
            except LinkError:
                break  # it will be delivered once more
            self._foreign.pop()

    async def _open(self) -> None:
        """Listen to the consumer; after the stream was destroyed, to the one of its next life.

        Raises:
            PullLost, BackendUnavailable, OutcomeUnknown
        """
        deadline = self._client.deadline()
        link = await self._client.link(deadline)
        if not self._life:
            if self._spec.start > 1 or self._spec.since is not None:  # where it began means nothing in a later life
                self._spec = SinkSpec(self._spec.wait, 1)
            await self.join(deadline)
        name = self._subjects.consumer(self._name, self._life)
        heartbeat = self._client.settings.heartbeat * 2.5
        pull = Pull(link, self._client.api_prefix, self._target.asset, name, heartbeat)
        await pull.open(self._closed, self._client.closed)
        self._pull = pull

    async def _rest(self) -> None:
        try:
            async with asyncio.timeout(0.02 + 0.1 * self._client.random.random()):
                await self._closed.wait()
        except TimeoutError:
            pass  # the moment is over: the usual case

    async def _drop(self) -> None:
        pull, self._pull = self._pull, None
        if pull is None:
            return
        await pull.close()
        for arrived in pull.arrived:  # nobody will take these: let others have them at once
            try:
                await pull.link.send(arrived.reply, b"-NAK")
            except LinkError:
                break  # the server gives them to others after ack_wait

    async def aclose(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            self._ended(self)
            await self._drop()

    # --- acknowledging -----------------------------------------------------------------------------------------------

    async def ack(self, receipts: Sequence[str]) -> list[bool]:
        self._check_open()
        deadline = self._client.deadline()
        return await acknowledge(self._space, receipts, deadline)

    async def nack(self, receipt: str, delay: float = 0.0) -> bool:
        self._check_open()
        check_duration("a nack's delay", delay, zero=True)
        answer = b'-NAK {"delay": %d}' % int(delay * 1e9) if delay > 0 else b"-NAK"
        return await self._answer_if_held(receipt, answer)

    async def extend(self, receipt: str) -> bool:
        self._check_open()
        return await self._answer_if_held(receipt, b"+WPI")

    async def _answer_if_held(self, text: str, answer: bytes) -> bool:
        receipt = read_receipt(self._space.space, text)
        if receipt is None:
            return False
        deadline = self._client.deadline()
        reads = self._space.reads
        known, record = await asyncio.gather(
            self._space.registries.load(receipt.subjects, deadline),
            reads.one(self._target, {"seq": receipt.sequence}, deadline),
        )
        if not _is_current(receipt, known) or record is None or record.subject != receipt.subjects.events:
            return False
        return await _answer(self._space, receipt, answer, deadline)


def _is_current(receipt: Receipt, known: Known) -> bool:
    registry = known.registry
    return registry is not None and registry.exists and registry.life == receipt.life and receipt.sink in registry.sinks


async def acknowledge(
    space: NatsNamespace,
    texts: Sequence[str],
    deadline: float,
    ahead: Mapping[StreamSubjects, Awaitable[Known]] | None = None,
) -> list[bool]:
    """Acknowledge deliveries; False for each receipt that is not, or no longer, valid.

    ahead: registries that are being read, since the caller's own call began.

    Raises:
        BackendUnavailable, OutcomeUnknown
    """
    receipts = [read_receipt(space.space, text) for text in texts]
    streams = list({receipt.subjects for receipt in receipts if receipt is not None})

    async def load(subjects: StreamSubjects) -> Known:
        """Now, not from memory: a sink that joined before this call must be known."""
        if ahead is not None and subjects in ahead:
            with contextlib.suppress(BackendUnavailable):
                return await ahead[subjects]
        return await space.registries.load(subjects, deadline)

    known = dict(zip(streams, await at_once([load(each) for each in streams]), strict=True))

    async def one(receipt: Receipt | None) -> bool:
        if receipt is None:
            return False
        registry = known[receipt.subjects].registry
        if registry is None or not _is_current(receipt, known[receipt.subjects]):
            return False
        if registry.kind == "work" and len(registry.sinks) == 1:
            return await space.remove_event(receipt.sequence, deadline)
        return await _answer(space, receipt, b"+ACK", deadline)

    done = await at_once([one(receipt) for receipt in receipts])
    for subjects in streams:
        registry = known[subjects].registry
        if registry is not None and registry.kind == "work" and len(registry.sinks) > 1:
            await space.trim(subjects, registry, deadline)
    return done


async def _answer(space: NatsNamespace, receipt: Receipt, answer: bytes, deadline: float) -> bool:
    """Answer the server on a delivery until it confirms; False if the consumer is gone. Sent twice it changes nothing.

    Raises:
        BackendUnavailable: it was not taken.
        OutcomeUnknown: no confirmation came in time.
    """
    client = space.client
    consumer = receipt.subjects.consumer(receipt.sink, receipt.life)
    lost = False
    while True:
        try:
            link = await client.link(deadline)
            await link.request(receipt.ack, answer, timeout=min(client.patience, client.left(deadline)))
            return True
        except Denied as error:
            raise BackendUnavailable(f"{error}; corepool needs publish permission on $JS.ACK.>") from None
        except NoResponders:
            call = f"CONSUMER.INFO.{space.assets.streams.asset}.{consumer}"
            info = await client.api(call, b"", api.ConsumerInfo, deadline)
            if api.is_missing(info.error):
                return False
        except LinkError as error:
            lost = lost or isinstance(error, ReplyLost)
            log.debug("an acknowledgement was not confirmed, once more: %s", error)
        except BackendUnavailable as error:
            if lost:
                raise OutcomeUnknown(f"{error}; it may have been taken") from None
            raise
        await client.pause(deadline)
