"""Group commit: what is committed in one turn of the loop goes to the server as one script.

Purpose: a script has a price of its own, on the server and here; callers that commit at the same moment share it. A lone
caller pays nothing for it: his section leaves in the turn after it was handed in, as it would have anyhow.
Invariants:

- Sections reach the server in the order in which they were handed in, unless the server refuses some as a whole (a script that
  it does not know yet); each is applied as a whole or not at all, whatever becomes of the others (``apply.lua``).
- A section whose caller was cancelled before it left is not sent; afterwards its answer is dropped (M6).
- Nothing is repeated here. A section that was certainly not applied goes back to its caller, who may send it again alone and
  who stops doing so when he is cancelled: a background task that repeated it might do so after `settle` (R2).

Neighbours: :mod:`corepool_redis.commit` encodes sections and reads answers; :mod:`corepool_redis.link` sends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from random import Random
from typing import TypeAlias

import msgspec

from corepool_redis.connection import ConnectionLost
from corepool_redis.link import Link, Refused
from corepool_redis.resp import Arg, Reply, ReplyError
from corepool_redis.scripts import Script

__all__ = ["GroupCommit", "Lost", "Pair", "Part", "Section", "as_text", "encode_sections"]

_pack = msgspec.msgpack.Encoder().encode

Pair: TypeAlias = tuple[bytes, bytes]
"""The two keys of a map or stream."""

Part: TypeAlias = msgspec.Raw | str | int | Pair
"""Of an operation; a :data:`Pair` where the script expects a place, and bytes as :func:`as_text` makes them. Never None: a hole
in a Lua table may be taken for its end."""

_MOST_SECTIONS, _MOST_BYTES = 16, 256 * 1024
"""A group does not grow beyond this: the server does nothing else while it runs."""


def as_text(value: bytes) -> msgspec.Raw:
    """Bytes as a MessagePack string: to Lua a string is bytes, and the servers' decoder does not know MessagePack's own."""
    return msgspec.Raw(b"\xdb%b%b" % (len(value).to_bytes(4, "big"), value))


class Lost(Exception):
    """The connection was lost, or the server's answer makes no sense, after a section was sent."""


class Section:
    """The operations of one caller.

    ops: one after the other, in parts. places: where among them a :data:`Pair` stands. script: which one runs it.
    repeat: it changes nothing.
    """

    __slots__ = ("ops", "places", "repeat", "script", "size")

    def __init__(self, script: Script, ops: list[Part], places: Sequence[int], size: int, *, repeat: bool) -> None:
        self.script = script
        self.ops = ops
        self.places = places
        self.size = size
        self.repeat = repeat


def encode_sections(
    sections: Sequence[Section], head: Sequence[Arg], fixed: tuple[bytes, bytes]
) -> tuple[list[bytes], list[Arg]]:
    """Keys and arguments of the script for these sections."""
    keys: list[bytes] = [*fixed]
    args: list[Arg] = [*head]
    known: dict[Pair, int] = {}
    for section in sections:
        ops = section.ops.copy()  # who sends it again begins from the pairs
        for index in section.places:
            pair: Pair = ops[index]  # type: ignore[assignment]
            place = known.get(pair)
            if place is None:
                place = known[pair] = len(keys) + 2  # Lua counts from 1, and the fence comes first
                keys += pair
            ops[index] = place
        args.append(_pack(ops))
    return keys, args


class _Group:
    """Sections that leave together."""

    __slots__ = ("futures", "repeat", "script", "sections", "size")

    def __init__(self, script: Script, *, repeat: bool) -> None:
        self.script = script
        self.repeat = repeat
        self.sections: list[Section] = []
        self.futures: list[asyncio.Future[Reply]] = []
        self.size = 0


class GroupCommit:
    """The commits of one namespace on one connection."""

    def __init__(
        self, link: Link, scope: bytes, fixed: tuple[bytes, bytes], limits: tuple[int, int], rng: Random
    ) -> None:
        """fixed: the keys that every run names. limits: length of the logs, largest value."""
        self._link = link
        self._scope = scope
        self._fixed = fixed
        self._limits = limits
        self._random = rng
        self._groups: list[_Group] = []

    def submit(self, section: Section) -> asyncio.Future[Reply]:
        """Hand a section in. The future ends with its answer; with None if it was certainly not applied; or with `Lost`
        or `Refused`."""
        groups = self._groups
        loop = asyncio.get_running_loop()
        if not groups:
            loop.call_soon(self._leave)
        group = groups[-1] if groups else None
        if (
            group is None
            or group.script is not section.script
            or group.repeat is not section.repeat
            or len(group.sections) >= _MOST_SECTIONS
            or group.size + section.size > _MOST_BYTES
        ):
            group = _Group(section.script, repeat=section.repeat)
            groups.append(group)
        future: asyncio.Future[Reply] = loop.create_future()
        group.sections.append(section)
        group.futures.append(future)
        group.size += section.size
        return future

    async def alone(self, section: Section) -> Reply:
        """Run a section by itself, sending it again for as long as it is certainly not applied.

        Raises:
            BackendUnavailable: certainly not applied.
            OutcomeUnknown: applied or not, or still may be.
            Refused: the server answered with an error.
        """
        keys, args = encode_sections((section,), self._head(), self._fixed)
        reply = await self._link.run(section.script, keys, args, scope=self._scope, repeat=section.repeat)
        return reply[0] if isinstance(reply, list) and len(reply) == 1 else None

    def _head(self) -> tuple[int, int, int]:
        """A fresh nonce, by which entries of the change logs are told from those of another history, and the limits."""
        return (self._random.getrandbits(62) + 1, *self._limits)

    def _leave(self) -> None:
        groups, self._groups = self._groups, []
        for group in groups:
            if any(future.cancelled() for future in group.futures):
                both = zip(group.sections, group.futures, strict=True)
                kept = [(section, future) for section, future in both if not future.cancelled()]
                group.sections = [section for section, _ in kept]
                group.futures = [future for _, future in kept]
            if group.sections:
                self._send(group)
        self._link.flush()

    def _send(self, group: _Group) -> None:
        keys, args = encode_sections(group.sections, self._head(), self._fixed)
        sent = self._link.send_now(group.script, keys, args, scope=self._scope)
        if sent is None:
            _settle(group.futures, [None] * len(group.futures))
        else:
            sent.add_done_callback(partial(self._arrived, group))

    def _arrived(self, group: _Group, sent: asyncio.Future[Reply]) -> None:
        futures = group.futures
        if sent.cancelled():  # nobody does, but the loop may be torn down
            return
        error = sent.exception()
        if isinstance(error, ConnectionLost):
            if error.sent and not group.repeat:
                _fail(futures, Lost(str(error)))
            else:
                _settle(futures, [None] * len(futures))
            return
        reply = sent.result()
        if isinstance(reply, ReplyError):
            if self._link.surely_refused(reply):
                _settle(futures, [None] * len(futures))
            elif len(futures) == 1:
                _fail(futures, Refused(reply))
            else:  # some of the sections may have been applied before the one that met the error
                _fail(futures, Lost(f"the server answered with an error that the driver does not know: {reply}"))
        elif isinstance(reply, list) and len(reply) == len(futures):
            _settle(futures, reply)
        else:
            _fail(futures, Lost("the server's answer to a commit has an unknown form"))


def _settle(futures: Sequence[asyncio.Future[Reply]], answers: Sequence[Reply]) -> None:
    for future, answer in zip(futures, answers, strict=True):
        if not future.done():  # else its caller was cancelled (M6)
            future.set_result(answer)


def _fail(futures: Sequence[asyncio.Future[Reply]], error: Exception) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
