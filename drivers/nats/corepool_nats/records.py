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


def _refused(message: Message) -> BackendUnavailable:
    return BackendUnavailable(f"a read was refused: {message.status} {message.headers.get('Description', '')}")


def _is_there(message: Message) -> bool:
    """Whether the answer to a direct read is a message.

    Raises:
        BackendUnavailable: it is neither that nor the news that there is none.
    """
    if message.status and message.status != "404":
        raise _refused(message)
    return not message.status


class Reads:
    """Reads of one namespace."""

    _AT_ONCE = 128

    def __init__(self, assets: Assets) -> None:
        self._assets = assets
        self._client = assets.client

    async def newest(self, target: Target, subjects: Iterable[str], deadline: float) -> dict[str, Record]:
        """The newest message of each subject that has one. Linearizable per subject, in no order among them.

        One request for each subject, all in one round trip. (The server's own read of several, ``multi_last``, goes through
        all subjects of its blocks of the stream: with 10,000 jobs that took more than nine tenths of the server's time.)

        Raises:
            BackendUnavailable
        """
        wanted = list(dict.fromkeys(subjects))
        asset = await self._assets.get(target, deadline)
        found: dict[str, Record] = {}
        for at in range(0, len(wanted), self._AT_ONCE):
            part = wanted[at : at + self._AT_ONCE] if len(wanted) > self._AT_ONCE else wanted
            if asset.replicas == 1:
                messages = await self._client.direct([(f"{target.asset}.{each}", b"") for each in part], deadline)
                if messages is not None:
                    for subject, (message,) in zip(part, messages, strict=True):
                        if _is_there(message):
                            found[subject] = from_direct(message)
                    continue
            records = await at_once([self.one(target, {"last_by_subj": subject}, deadline) for subject in part])
            found.update((record.subject, record) for record in records if record is not None)
        return found

    async def oldest(self, target: Target, subjects: Sequence[str], deadline: float) -> dict[str, int]:
        """The sequence of the oldest message of each subject that has one. Only for streams with one replica.

        Raises:
            BackendUnavailable
        """
        bodies = [msgspec.json.encode({"seq": 1, "next_by_subj": subject}) for subject in subjects]
        messages = await self._client.direct([(target.asset, body) for body in bodies], deadline)
        if messages is None:
            raise BackendUnavailable(f"{target.asset} does not allow direct reads; set allow_direct on it")
        return {
            subject: from_direct(message).sequence
            for subject, (message,) in zip(subjects, messages, strict=True)
            if _is_there(message)
        }

    async def newest_up_to(
        self, target: Target, subjects: Iterable[str], sequence: int, deadline: float
    ) -> dict[str, Record]:
        """The newest message of each subject that has one up to a sequence, which was acknowledged. Only for streams with one
        replica.

        Raises:
            BackendUnavailable
        """
        found = await self.newest(target, subjects, deadline)
        late = [subject for subject, record in found.items() if record.sequence > sequence]
        older = await at_once([self._last_up_to(target, subject, sequence, deadline) for subject in late])
        for subject, record in zip(late, older, strict=True):
            if record is None:
                del found[subject]
            else:
                found[subject] = record
        return found

    async def _last_up_to(self, target: Target, subject: str, sequence: int, deadline: float) -> Record | None:
        """Goes through what is kept of the subject: the server cannot be asked for this one in less than a walk through all
        subjects of the stream."""
        last: Record | None = None
        after = 0
        while True:
            records = await self.following(target, subject, after, 256, deadline)
            for record in records:
                if record.sequence > sequence:
                    return last
                last, after = record, record.sequence
            if not records:
                return last

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
            messages = await self._client.direct([(target.asset, body)], deadline, many=True)
            if messages is not None:
                ((*parts, end),) = messages
                if end.status not in ("204", "404"):
                    raise _refused(end)
                return [from_direct(part) for part in parts]
        record = await self.one(target, {"seq": after + 1, "next_by_subj": subject}, deadline)
        return [record] if record is not None else []
