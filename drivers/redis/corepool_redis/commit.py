"""Operations into the arguments of ``apply.lua``, and its answers back.

Purpose: the one path by which anything of a namespace is changed together.
Invariants: names, keys and sizes are checked before anything is sent; a commit that cannot grow the data runs in the spelling
that a server with full memory lets through.
Neighbours: :mod:`corepool_redis.group` sends what is built here; :mod:`corepool_redis.maps`, :mod:`corepool_redis.streams` and
``Namespace.commit`` build batches.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from random import Random

import attrs

from corepool.driver import (
    Appended,
    Capabilities,
    Commit,
    Entry,
    NewEvent,
    Refusal,
    When,
    check_key,
    check_name,
    check_value,
)
from corepool.errors import BackendUnavailable, CorepoolError, OutcomeUnknown, WireError
from corepool_redis.group import GroupCommit, Lost, Operation, Pair, Section, as_text
from corepool_redis.keys import MapKeys, Receipt, StreamKeys, encode_id
from corepool_redis.link import Link, Refused
from corepool_redis.resp import Reply, ReplyError
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
    "set_section",
    "translate",
]

log = logging.getLogger("corepool.redis")

_REMEMBERED = 4096  # names whose keys are not put together anew each time


@attrs.frozen(slots=True)
class Space:
    """What all stores of a namespace share."""

    scope: bytes
    link: Link
    capabilities: Capabilities
    random: Random
    group: GroupCommit
    _pairs: dict[tuple[str, str], Pair] = attrs.field(factory=dict[tuple[str, str], Pair], eq=False, repr=False)

    @classmethod
    def of(cls, scope: bytes, link: Link, capabilities: Capabilities, rng: Random, log_length: int) -> Space:
        """A namespace.

        log_length: entries a map's change log keeps at least; a watch that falls further behind gets a snapshot.
        """
        return cls(scope, link, capabilities, rng, GroupCommit(link, scope, log_length, rng))

    def pair(self, kind: str, name: str) -> Pair:
        """The keys of a map or stream, with its name checked the first time.

        Raises:
            InvalidKeyError: the name is no name.
        """
        pair = self._pairs.get((kind, name))
        if pair is None:
            check_name(f"a {kind}'s name", name, self.capabilities)
            if len(self._pairs) >= _REMEMBERED:
                self._pairs.clear()
            if kind == "map":
                of_map = MapKeys.of(self.scope, name)
                pair = (of_map.data, of_map.log)
            else:
                of_stream = StreamKeys.of(self.scope, name)
                pair = (of_stream.events, of_stream.config)
            self._pairs[kind, name] = pair
        return pair


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


def encode_when(when: When) -> str:
    """A condition for the scripts."""
    return "" if when.revision is None else f"{when.revision}:"


class Batch:
    """Operations that are applied together: a section of a run of the apply script. Build it, ``run`` it once, then read the
    results by index."""

    __slots__ = ("_grows", "_ops", "_space", "_writes", "size")

    def __init__(self, space: Space) -> None:
        self._space = space
        self._ops: list[Operation] = []
        self._grows = False
        self._writes = False
        self.size = 0  # bytes of values, for who splits large batches

    # --- building -----------------------------------------------------------------------------------------------------

    def set(self, name: str, key: str, value: bytes, when: When, *, optional: bool) -> None:
        """Set a key of a map."""
        check_key(key, self._space.capabilities)
        check_value(value, self._space.capabilities)
        pair = self._space.pair("map", name)
        self._ops.append(("s", pair, key, (as_text(value), encode_when(when), int(optional))))
        self._grows = self._writes = True
        self.size += len(value) + len(key)

    def delete(self, name: str, key: str, when: When, *, optional: bool) -> None:
        """Remove a key of a map."""
        check_key(key, self._space.capabilities)
        self._ops.append(("d", self._space.pair("map", name), key, (encode_when(when), int(optional))))
        self._writes = True
        self.size += len(key)

    def get(self, name: str, key: str) -> None:
        """Read a key of a map."""
        check_key(key, self._space.capabilities)
        self._ops.append(("g", self._space.pair("map", name), key, ()))

    def append(self, name: str, event: NewEvent, *, stamp: int | None = None, optional: bool, create: bool) -> None:
        """Append an event to a stream."""
        space = self._space
        check_name("an event's name", event.name, space.capabilities)
        if event.topic:
            check_name("a topic", event.topic, space.capabilities)
        check_value(event.payload, space.capabilities)
        pair, stamped = space.pair("stream", name), "" if stamp is None else stamp
        self._ops.append(
            ("a", pair, "", (event.name, event.topic, as_text(event.payload), stamped, int(optional), int(create)))
        )
        self._grows = self._writes = True
        self.size += len(event.payload)

    def ack(self, receipt: str) -> None:
        """Acknowledge a delivery. A receipt that is none of ours is sent as one that fits nothing."""
        found = Receipt.parse(receipt)
        if found is None or len(found.stream.encode()) > self._space.capabilities.max_name_bytes:
            self._ops.append(("k", self._space.pair("stream", "-"), "", ("0", "0-1", 0, "-")))
        else:
            pair = self._space.pair("stream", found.stream)
            self._ops.append(("k", pair, "", (str(found.sink), str(found.id), found.count, found.consumer)))
        self._writes = True

    # --- running ------------------------------------------------------------------------------------------------------

    async def run(self) -> tuple[int | None, list[Reply]]:
        """Apply. Returns the index of the operation that stopped it, and the results so far: three for each set and delete
        (see :func:`read_commit`), one for each other operation.

        Raises:
            BackendUnavailable: nothing was applied.
            OutcomeUnknown: everything or nothing was applied, or still may be.
            WireError: the server holds what this driver did not write.
        """
        script = _APPLY if self._grows else _SHRINK
        return await apply(self._space, Section(script, self._ops, self.size, repeat=not self._writes))


_APPLY, _SHRINK = Script.named("apply"), Script.named("apply-shrink")


def set_section(pair: Pair, key: str, value: bytes, when: When) -> Section:
    """What a batch with one set comes to: keep-alives and records do this all day."""
    return Section(_APPLY, (("s", pair, key, (as_text(value), encode_when(when), 1)),), len(value), repeat=False)


async def apply(space: Space, section: Section) -> tuple[int | None, list[Reply]]:
    """Run a section: see ``Batch.run``."""
    try:
        answer = await space.group.submit(section)
        if answer is None:  # certainly not applied, so it may be sent again
            answer = await space.group.alone(section)
    except Refused as refused:
        raise translate(refused, write=not section.repeat) from None
    except Lost as lost:
        raise OutcomeUnknown(f"{lost}; the write may or may not have been applied") from None
    match answer:
        case [int() as stopped, *results] if stopped >= -1:
            return (None if stopped < 0 else stopped), results
        case [int() as kind, bytes() as why]:
            raise translate(Refused(ReplyError(why.decode(errors="replace"))), write=kind == _PERHAPS_IN_PART)
        case _:
            raise WireError("the server's answer to a commit has an unknown form")


_PERHAPS_IN_PART = -3


def read_commit(key: str, results: Sequence[Reply], at: int = 0) -> Commit:
    """The result of a set, delete or clear: three parts of the answer."""
    if len(results) >= at + 3:
        applied, revision = results[at], results[at + 1]
        if isinstance(applied, int) and isinstance(revision, int):
            return Commit(applied == 1, revision, read_previous(key, results[at + 2]))
    raise WireError("the server's answer to a write has an unknown form")


def read_appended(reply: Reply) -> Appended:
    """The result of an append in a commit, where a sealed stream counts as missing."""
    if isinstance(reply, bytes):
        if not reply.startswith(b"!"):
            return Appended(encode_id(reply))
        return Appended(None, Refusal.FULL if reply == b"!full" else Refusal.MISSING)
    raise WireError("the server's answer to an append has an unknown form")
