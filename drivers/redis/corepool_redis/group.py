"""Group commit: what is committed in one turn of the loop goes to the server as one script.

Purpose: a script has a price of its own, on the server and here; callers that commit at the same moment share it. A lone
caller pays nothing for it: while nothing is under way, a section leaves at once (Nagle, RFC 896). A full group leaves
at once too, so that the server is at work on it while the next one fills; any other at the end of the turn.
Invariants:

- Sections reach the server in the order in which they were handed in, unless the server refuses some as a whole (a script that
  it does not know yet); each is applied as a whole or not at all, whatever becomes of the others (``apply.lua``).
- A section whose caller was cancelled before it left is not sent; afterwards its answer is dropped (M6).
- Only for callers who still wait is anything sent again: who was cancelled may have called `settle` since (R2). A group whose
  script the server does not know goes once more with its text; any other section that was certainly not applied goes back to
  its caller, who may send it again alone.

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
from corepool_redis.keys import mark_key
from corepool_redis.link import Link, Refused
from corepool_redis.resp import Arg, Reply, ReplyError
from corepool_redis.scripts import Script

__all__ = ["GroupCommit", "Lost", "Operation", "Pair", "Part", "Section", "as_text", "encode_sections"]

_pack = msgspec.msgpack.Encoder().encode

Pair: TypeAlias = tuple[bytes, bytes]
"""The two keys of a map or stream."""

Part: TypeAlias = msgspec.Raw | str | int
"""Of an operation; bytes are as :func:`as_text` makes them. Never None: a hole in a Lua table may be taken for its end."""

Operation: TypeAlias = tuple[str, Pair, str, tuple[Part, ...]]
"""The letter by which ``apply.lua`` knows it, the pair and, if that is a map's, the key, and the rest as described there."""

_OF_MAPS, _IN_THREE = "sdg", "sd"
_SET, _OPTIONAL = Script.named("set"), 2  # where a set says that it is

_MOST_SECTIONS, _MOST_BYTES = 8, 256 * 1024
"""A group does not grow beyond this: the server does nothing else while it runs. More sections would each cost the server a
little less, but then client and server wait for each other in turns."""


def as_text(value: bytes) -> msgspec.Raw:
    """Bytes as a MessagePack string: to Lua a string is bytes, and the servers' decoder does not know MessagePack's own."""
    return msgspec.Raw(b"\xdb%b%b" % (len(value).to_bytes(4, "big"), value))


def from_text(text: msgspec.Raw) -> bytes:
    """The bytes again."""
    return bytes(memoryview(text)[5:])


class Lost(Exception):
    """The connection was lost, or the server's answer makes no sense, after a section was sent."""


class Section:
    """The operations of one caller.

    script: which one runs it. size: bytes of values. repeat: it changes nothing. width: parts of the answer if all are decided.
    """

    __slots__ = ("ops", "repeat", "script", "size", "width")

    def __init__(self, script: Script, ops: Sequence[Operation], size: int, *, repeat: bool) -> None:
        self.script = script
        self.ops = ops
        self.size = size
        self.repeat = repeat
        self.width = width_of(ops)


def width_of(ops: Sequence[Operation]) -> int:
    """How many parts the answer to these has."""
    return sum([3 if op[0] in _IN_THREE else 1 for op in ops])


def encode_sections(sections: Sequence[Section], marks: bytes) -> tuple[list[bytes], bytes]:
    """Keys and the last argument of the script for these sections. marks: the key that every run names."""
    keys: list[bytes] = [marks]
    maps: dict[Pair, tuple[int, int, dict[str, int]]] = {}  # their index, their place in KEYS, the index of each key
    streams: dict[Pair, tuple[int, int]] = {}
    flat: list[Part] = []
    for section in sections:
        begin = len(flat)
        flat.append(0)
        for letter, pair, key, rest in section.ops:
            if letter in _OF_MAPS:
                found = maps.get(pair)
                if found is None:
                    found = maps[pair] = (len(maps) + 1, len(keys) + 2, {})  # Lua counts from 1; the fence comes first
                    keys += pair
                number, _, names = found
                index = names.get(key)
                if index is None:
                    index = names[key] = len(names) + 2
                flat += (letter, number, index)
            else:
                where = streams.get(pair)
                if where is None:
                    where = streams[pair] = (len(streams) + 1, len(keys) + 2)
                    keys += pair
                flat += (letter, where[0])
            flat += rest
        flat[begin] = len(flat) - begin - 1
    body: list[Part] = [len(maps)]
    for _, place, names in maps.values():
        body += (place, len(names), *names)
    body.append(len(streams))
    body += [place for _, place in streams.values()]
    return keys, _pack(body + flat)


def encode(sections: Sequence[Section], marks: bytes) -> tuple[Script, list[bytes], tuple[Arg, ...]]:
    """The script for these sections, its keys, and its last arguments. A lone set, the most frequent of all, has its own."""
    section = sections[0]
    if len(sections) == 1 and len(section.ops) == 1:
        letter, pair, key, rest = section.ops[0]
        if letter == "s" and rest[_OPTIONAL] == 1:
            return _SET, [marks, *pair], (key, from_text(rest[0]), rest[1])  # type: ignore[arg-type]
    keys, body = encode_sections(sections, marks)
    return section.script, keys, (body,)


def split_answers(sections: Sequence[Section], flat: Sequence[Reply]) -> list[Reply] | None:
    """What the script answers, for each section; None if it has another form."""
    answers: list[Reply] = []
    at = 0
    for section in sections:
        if at >= len(flat):
            return None
        stopped = flat[at]
        begin = at
        if not isinstance(stopped, int) or stopped >= len(section.ops):
            return None
        if stopped == -1:
            at += 1 + section.width
        elif stopped < -1:
            at += 2
        else:
            at += 1 + width_of(section.ops[: stopped + 1])
        answers.append(flat[begin:at])  # type: ignore[arg-type]
    return answers if at == len(flat) else None


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

    def __init__(self, link: Link, scope: bytes, log_length: int, rng: Random) -> None:
        self._link = link
        self._scope = scope
        self._marks = mark_key(scope)
        self._log_length = log_length
        self._random = rng
        self._groups: list[_Group] = []
        self._under_way = 0

    def submit(self, section: Section) -> asyncio.Future[Reply]:
        """Hand a section in. The future ends with its answer; with None if it was certainly not applied; or with `Lost`
        or `Refused`."""
        groups = self._groups
        loop = asyncio.get_running_loop()
        first = not groups
        group = groups[-1] if groups else None
        if (
            group is None
            or group.script is not section.script
            or group.repeat is not section.repeat
            or group.size + section.size > _MOST_BYTES
        ):
            group = _Group(section.script, repeat=section.repeat)
            groups.append(group)
        future: asyncio.Future[Reply] = loop.create_future()
        group.sections.append(section)
        group.futures.append(future)
        group.size += section.size
        if not self._under_way or len(group.sections) >= _MOST_SECTIONS:
            self.leave()
        elif first:
            loop.call_soon(self.leave)
        return future

    async def alone(self, section: Section) -> Reply:
        """Run a section by itself, sending it again for as long as it is certainly not applied.

        Raises:
            BackendUnavailable: certainly not applied.
            OutcomeUnknown: applied or not, or still may be.
            Refused: the server answered with an error.
        """
        script, keys, args = encode((section,), self._marks)
        return await self._link.run(script, keys, (*self.head(), *args), scope=self._scope, repeat=section.repeat)

    def head(self) -> tuple[int, int]:
        """A fresh nonce, by which entries of the change logs are told from those of another history, and the logs' length."""
        return self._random.getrandbits(62) + 1, self._log_length

    def leave(self) -> None:
        """Send what was handed in until now."""
        groups, self._groups = self._groups, []
        for group in groups:
            self._send(group)

    def _send(self, group: _Group, *, full: bool = False) -> None:
        """Send what is still wanted of a group. full: with the text of its script."""
        if any(future.cancelled() for future in group.futures):
            both = zip(group.sections, group.futures, strict=True)
            kept = [(section, future) for section, future in both if not future.cancelled()]
            group.sections = [section for section, _ in kept]
            group.futures = [future for _, future in kept]
        if not group.sections:
            return
        script, keys, args = encode(group.sections, self._marks)
        sent = self._link.send_now(script, keys, (*self.head(), *args), scope=self._scope, full=full)
        if sent is None:
            _settle(group.futures, [None] * len(group.futures))
        else:
            self._under_way += 1
            sent.add_done_callback(partial(self._arrived, group, full))

    def _arrived(self, group: _Group, full: bool, sent: asyncio.Future[Reply]) -> None:
        self._under_way -= 1
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
            if reply.code == "NOSCRIPT" and not full:
                self._send(group, full=True)
            elif self._link.surely_refused(reply):
                _settle(futures, [None] * len(futures))
            elif len(futures) == 1:
                _fail(futures, Refused(reply))
            else:  # some of the sections may have been applied before the one that met the error
                _fail(futures, Lost(f"the server answered with an error that the driver does not know: {reply}"))
        else:
            answers = split_answers(group.sections, reply) if isinstance(reply, list) else None
            if answers is None:
                _fail(futures, Lost("the server's answer to a commit has an unknown form"))
            else:
                _settle(futures, answers)


def _settle(futures: Sequence[asyncio.Future[Reply]], answers: Sequence[Reply]) -> None:
    for future, answer in zip(futures, answers, strict=True):
        if not future.done():  # else its caller was cancelled (M6)
            future.set_result(answer)


def _fail(futures: Sequence[asyncio.Future[Reply]], error: Exception) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
