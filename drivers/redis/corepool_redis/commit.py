"""Operations into the arguments of ``apply.lua``, and its answers back.

Purpose: the one path by which anything of a namespace is changed together.
Invariants: names, keys and sizes are checked before anything is sent; every commit carries a fresh nonce, by which its entries
in the change logs are told from those of another history; a commit that cannot grow the data runs in the spelling that a server
with full memory lets through.
Neighbours: :mod:`corepool_redis.maps`, :mod:`corepool_redis.streams` and ``Namespace.commit`` build batches.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from random import Random

import attrs

from corepool.driver import (
    Appended,
    AppendValues,
    Capabilities,
    Commit,
    Entry,
    Increment,
    NewEvent,
    Refusal,
    RemoveValues,
    ValueOp,
    When,
    check_key,
    check_name,
    check_value,
)
from corepool.errors import BackendUnavailable, CorepoolError, OutcomeUnknown, WireError
from corepool_redis.keys import MapKeys, Receipt, StreamKeys, encode_id, mark_key
from corepool_redis.link import Link, Refused
from corepool_redis.resp import Arg, Reply
from corepool_redis.scripts import Script

__all__ = [
    "Batch",
    "Space",
    "apply",
    "encode_when",
    "read_appended",
    "read_commit",
    "read_entries",
    "read_entry",
    "read_previous",
    "translate",
]

log = logging.getLogger("corepool.redis")


@attrs.frozen(slots=True)
class Space:
    """What all stores of a namespace share.

    log_length: entries a map's change log keeps at least; a watch that falls further behind gets a snapshot.
    """

    scope: bytes
    link: Link
    capabilities: Capabilities
    random: Random
    log_length: int
    mark: bytes
    scratch: bytes

    @classmethod
    def of(cls, scope: bytes, link: Link, capabilities: Capabilities, rng: Random, log_length: int) -> Space:
        """A namespace, with the keys that each of its commits names put together once."""
        scratch = b"%bt:%b" % (scope, link.client.encode())
        return cls(scope, link, capabilities, rng, log_length, mark_key(scope), scratch)


def translate(refused: Refused, *, write: bool) -> CorepoolError:
    """An error of the server that no rule explains, as one of ours. A script may have died midway: the outcome is unknown."""
    if refused.code == "WRONGTYPE":
        return WireError(f"a key of corepool holds something else ({refused}); another program writes to its keys")
    if write:
        return OutcomeUnknown(f"the server answered with an error that the driver does not know: {refused}")
    return BackendUnavailable(f"the server answered with an error that the driver does not know: {refused}")


def read_entry(key: str, raw: Reply) -> Entry | None:
    """``<revision>:<value>`` as an entry.

    Raises:
        WireError: it is something else.
    """
    if raw is None:
        return None
    if isinstance(raw, bytes):
        revision, colon, value = raw.partition(b":")
        if colon and revision.isdigit():
            return Entry(key, value, int(revision))
    raise WireError(f"the value of {key!r} does not begin with a revision; another program writes to corepool's keys")


def read_previous(key: str, raw: Reply) -> Entry | None:
    """What stood in a write's place. Foreign bytes are told as they are, with revision 0: the write itself is decided, and an
    error would say otherwise (M5)."""
    try:
        return read_entry(key, raw)
    except WireError:
        return Entry(key, raw, 0) if isinstance(raw, bytes) else None


def read_entries(flat: Sequence[Reply]) -> list[Entry]:
    """Fields and values of a map's hash. What another program wrote is set aside: it must not hide the others."""
    entries: list[Entry] = []
    for field, raw in zip(flat[::2], flat[1::2], strict=True):
        key = read_key(field)
        try:
            entry = read_entry(key, raw) if key else None
        except WireError as error:
            log.warning("%s; it is passed over", error)
            continue
        if entry is not None:
            entries.append(entry)
    return entries


def read_key(field: Reply) -> str:
    """A hash field as a key; "" for the head and for what another program wrote."""
    try:
        return field.decode() if isinstance(field, bytes) else ""
    except UnicodeDecodeError:
        return ""


def encode_when(when: When) -> bytes:
    """A condition for the script."""
    return b"" if when.revision is None else b"%d" % when.revision


class Batch:
    """Operations for one run of the apply script. Build it, ``run`` it once, then read the results by index."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._keys: list[bytes] = [space.mark, space.scratch]
        self._places: dict[tuple[str, str], int] = {}
        self._args: list[Arg] = []
        self._grows = False
        self._writes = False
        self.size = 0  # bytes of values, for who splits large batches

    # --- building -----------------------------------------------------------------------------------------------------

    def _place(self, kind: str, name: str) -> int:
        place = self._places.get((kind, name))
        if place is None:
            check_name(f"a {kind}'s name", name, self._space.capabilities)
            place = self._places[kind, name] = len(self._keys) + 2  # Lua counts from 1, and the fence comes first
            if kind == "map":
                of_map = MapKeys.of(self._space.scope, name)
                self._keys += (of_map.data, of_map.log)
            else:
                of_stream = StreamKeys.of(self._space.scope, name)
                self._keys += (of_stream.events, of_stream.config)
        return place

    def set(self, name: str, key: str, value: bytes, when: When, *, optional: bool) -> None:
        """Set a key of a map."""
        check_key(key, self._space.capabilities)
        check_value(value, self._space.capabilities)
        self._args += ("s", self._place("map", name), key, value, encode_when(when), int(optional))
        self._grows = self._writes = True
        self.size += len(value) + len(key)

    def delete(self, name: str, key: str, when: When, *, optional: bool) -> None:
        """Remove a key of a map."""
        check_key(key, self._space.capabilities)
        self._args += ("d", self._place("map", name), key, encode_when(when), int(optional))
        self._writes = True
        self.size += len(key)

    def get(self, name: str, key: str) -> None:
        """Read a key of a map."""
        check_key(key, self._space.capabilities)
        self._args += ("g", self._place("map", name), key)

    def clear(self, name: str, when: When) -> None:
        """Remove all keys of a map."""
        self._args += ("c", self._place("map", name), encode_when(when))
        self._writes = True

    def destroy(self, name: str) -> None:
        """Remove a map; stands alone in its batch."""
        self._args += ("x", self._place("map", name))
        self._writes = True

    def update(self, name: str, key: str, op: ValueOp) -> None:
        """Apply a value operation."""
        check_key(key, self._space.capabilities)
        match op:
            case Increment(by=by):
                kind, values = "i", (b"%d" % by,)
            case AppendValues(values=values, unique=unique):
                kind = "q" if unique else "a"
            case RemoveValues(values=values):
                kind = "r"
        for value in values:
            check_value(value, self._space.capabilities)
        self._args += ("u", self._place("map", name), key, kind, len(values), *values)
        self._grows = self._writes = True

    def append(self, name: str, event: NewEvent, *, stamp: int | None = None, optional: bool, create: bool) -> None:
        """Append an event to a stream."""
        check_name("an event's name", event.name, self._space.capabilities)
        if event.topic:
            check_name("a topic", event.topic, self._space.capabilities)
        check_value(event.payload, self._space.capabilities)
        self._args += ("a", self._place("stream", name), event.name, event.topic, event.payload)
        self._args += ("" if stamp is None else stamp, int(optional), int(create))
        self._grows = self._writes = True
        self.size += len(event.payload)

    def ack(self, receipt: str) -> None:
        """Acknowledge a delivery. A receipt that is none of ours is sent as one that fits nothing."""
        found = Receipt.parse(receipt)
        if found is None or len(found.stream.encode()) > self._space.capabilities.max_name_bytes:
            self._args += ("k", self._place("stream", "-"), 0, "0-1", 0, "-")
        else:
            self._args += (
                "k",
                self._place("stream", found.stream),
                found.sink,
                found.id.raw,
                found.count,
                found.consumer,
            )
        self._writes = True

    # --- running ------------------------------------------------------------------------------------------------------

    async def run(self) -> tuple[int | None, list[Reply]]:
        """Apply. Returns the index of the operation that stopped it, and the results so far.

        Raises:
            BackendUnavailable: nothing was applied.
            OutcomeUnknown: everything or nothing was applied, or still may be.
            WireError: the server holds what this driver did not write.
        """
        return await apply(self._space, self._keys, self._args, grows=self._grows, writes=self._writes)


async def apply(
    space: Space, keys: Sequence[bytes], args: Sequence[Arg], *, grows: bool, writes: bool
) -> tuple[int | None, list[Reply]]:
    """Run the script on encoded operations: what ``Batch.run`` does, for a caller with few and fixed ones."""
    script = Script.named("apply" if grows else "apply-shrink")
    head = (space.random.getrandbits(62) + 1, space.log_length, space.capabilities.max_value_bytes)
    try:
        reply = await space.link.run(script, keys, (*head, *args), scope=space.scope, repeat=not writes)
    except Refused as refused:
        raise translate(refused, write=writes) from None
    if not isinstance(reply, list) or not reply or not isinstance(reply[0], int):
        raise WireError("the server's answer to a commit has an unknown form")
    return (None if reply[0] < 0 else reply[0]), reply[1:]


def read_commit(key: str, reply: Reply) -> Commit:
    """The result of a set, delete or clear."""
    if isinstance(reply, list) and len(reply) == 3:
        applied, revision, previous = reply
        if isinstance(applied, int) and isinstance(revision, int):
            return Commit(applied == 1, revision, read_previous(key, previous))
    raise WireError("the server's answer to a write has an unknown form")


def read_appended(reply: Reply) -> Appended:
    """The result of an append in a commit, where a sealed stream counts as missing."""
    if isinstance(reply, bytes):
        if not reply.startswith(b"!"):
            return Appended(encode_id(reply))
        return Appended(None, Refusal.FULL if reply == b"!full" else Refusal.MISSING)
    raise WireError("the server's answer to an append has an unknown form")
