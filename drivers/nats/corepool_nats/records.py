"""Messages of a JetStream stream, however they came, and how to read the newest ones.

Purpose: one shape for a message that was pushed, pulled, read from the leader or read directly; and linearizable reads of
several subjects in one round trip.
Invariants: a read sees every message acknowledged before it began. A stream with one replica is read directly (there is nobody
else to be behind); one with several is read from its leader, because followers were measured to answer with the past. (A
leader that was cut off from the others may go on answering reads until it notices; NATS has no read that asks a majority.)
Neighbours: maps, streams and commits read through `Reads`; watches and sinks make records of what they receive.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence

import attrs
import msgspec

from corepool.errors import BackendUnavailable, WireError
from corepool_nats import api
from corepool_nats.assets import Assets
from corepool_nats.client import Target
from corepool_nats.link import Message
from corepool_nats.waits import at_once

__all__ = ["Reads", "Record", "from_direct", "from_push", "from_store"]


@attrs.frozen(slots=True)
class Record:
    """A stored message. ``consumer_sequence``, ``pending`` and ``attempt`` are of a delivery by a consumer, else 0."""

    subject: str
    sequence: int
    data: bytes
    headers: Mapping[str, str]
    timestamp: float
    consumer_sequence: int = 0
    pending: int = 0
    attempt: int = 0


def _seconds(text: str) -> float:
    """The server's time, to the microsecond: whichever way a message comes, its time is the same."""
    return datetime.datetime.fromisoformat(text).timestamp()


def from_store(message: api.StoredMessage) -> Record:
    """A message read from the leader."""
    headers = api.headers_of(message.hdrs)
    return Record(message.subject, message.seq, message.data, headers, _seconds(message.time))


def from_direct(message: Message) -> Record:
    """A message read directly.

    Raises:
        WireError
    """
    try:
        headers = message.headers
        time = _seconds(headers["Nats-Time-Stamp"])
        return Record(headers["Nats-Subject"], int(headers["Nats-Sequence"]), message.data, headers, time)
    except (KeyError, ValueError) as error:
        raise WireError(f"a direct read was answered without subject, sequence or time: {error}") from None


def from_push(message: Message) -> Record:
    """A message that a consumer delivered; its place is in the reply subject, with or without domain.

    Raises:
        WireError
    """
    parts = message.reply.split(".")
    if len(parts) >= 11 and parts[:2] == ["$JS", "ACK"]:
        parts = parts[6:11]
    elif len(parts) == 9 and parts[:2] == ["$JS", "ACK"]:
        parts = parts[4:]
    else:
        raise WireError(f"not a delivery: {message.reply[:80]!r}")
    try:
        attempt, sequence, consumer_sequence, nanoseconds, pending = (int(part) for part in parts)
    except ValueError:
        raise WireError(f"not a delivery: {message.reply[:80]!r}") from None
    return Record(
        message.subject,
        sequence,
        message.data,
        message.headers,
        nanoseconds // 1000 / 1e6,
        consumer_sequence,
        pending,
        attempt,
    )


class Reads:
    """Reads of one namespace."""

    _AT_ONCE = 128

    def __init__(self, assets: Assets) -> None:
        self._assets = assets
        self._client = assets.client

    async def newest(
        self, target: Target, subjects: Iterable[str], deadline: float, *, up_to: int | None = None
    ) -> dict[str, Record]:
        """The newest message of each subject that has one. Linearizable per subject.

        up_to: only messages up to this sequence, which was acknowledged. Only for streams with one replica.

        Raises:
            BackendUnavailable
        """
        wanted = list(dict.fromkeys(subjects))
        asset = await self._assets.get(target, deadline)
        found: dict[str, Record] = {}
        for at in range(0, len(wanted), self._AT_ONCE):
            part = wanted[at : at + self._AT_ONCE] if len(wanted) > self._AT_ONCE else wanted
            if asset.replicas == 1 and await self._directly(target, part, deadline, up_to, found):
                continue
            records = await at_once([self.one(target, {"last_by_subj": subject}, deadline) for subject in part])
            found.update((record.subject, record) for record in records if record is not None)
        return found

    async def _directly(
        self, target: Target, subjects: Sequence[str], deadline: float, up_to: int | None, found: dict[str, Record]
    ) -> bool:
        """Add what is found; False: this stream cannot be read directly."""
        remaining = list(subjects)
        if len(remaining) == 1 and up_to is None:
            message = await self._client.direct_one(target.asset, remaining[0], deadline)
            if message is None:
                return False
            if message.status:
                if message.status != "404":
                    raise BackendUnavailable(
                        f"a read was refused: {message.status} {message.headers.get('Description', '')}"
                    )
                return True
            found[remaining[0]] = from_direct(message)
            return True
        while remaining:
            body: dict[str, object] = {"multi_last": remaining}
            if up_to is not None:
                body["up_to_seq"] = up_to
            messages = await self._client.direct(target.asset, msgspec.json.encode(body), deadline)
            if messages is None:
                if up_to is not None:
                    raise BackendUnavailable(f"{target.asset} does not allow direct reads; set allow_direct on it")
                return False
            *parts, end = messages
            for message in parts:
                record = from_direct(message)
                found[record.subject] = record
            if end.status == "204" and end.headers.get("Nats-Num-Pending", "0") != "0" and parts:
                remaining = [subject for subject in remaining if subject not in found]  # more than fits one answer
                continue
            if end.status not in ("204", "404"):
                raise BackendUnavailable(f"a read was refused: {end.status} {end.headers.get('Description', '')}")
            return True
        return True

    async def one(self, target: Target, query: Mapping[str, object], deadline: float) -> Record | None:
        """A message by the leader: ``{"seq": n}``, ``{"last_by_subj": s}`` or ``{"seq": n, "next_by_subj": s}``.

        Raises:
            BackendUnavailable
        """
        body = msgspec.json.encode(query)
        reply = await self._client.api(f"STREAM.MSG.GET.{target.asset}", body, api.MessageReply, deadline)
        if reply.message is not None:
            return from_store(reply.message)
        if reply.error is None or reply.error.err_code == api.NO_MESSAGE:
            return None
        if reply.error.err_code == api.NO_STREAM:
            await self._assets.refresh(target, deadline)
            return None
        raise api.explain(reply.error, f"reading from {target.asset}")

    async def following(self, target: Target, subject: str, after: int, limit: int, deadline: float) -> list[Record]:
        """Messages of a subject, oldest first, after a sequence: some of them, at most ``limit``; none if there are none.

        Raises:
            BackendUnavailable
        """
        asset = await self._assets.get(target, deadline)
        if asset.replicas == 1:
            body = msgspec.json.encode({"seq": after + 1, "next_by_subj": subject, "batch": min(limit, 256)})
            messages = await self._client.direct(target.asset, body, deadline)
            if messages is not None:
                *parts, end = messages
                if end.status not in ("204", "404"):
                    raise BackendUnavailable(f"a read was refused: {end.status} {end.headers.get('Description', '')}")
                return [from_direct(part) for part in parts]
        record = await self.one(target, {"seq": after + 1, "next_by_subj": subject}, deadline)
        return [record] if record is not None else []
