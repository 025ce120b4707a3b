"""The map store: a hash with a head, and a change log for those who watch.

Purpose: :class:`corepool.driver.MapStore` on a server.
Invariants: each value carries the revision that wrote it, so one script decides and applies (M1, M2); the head (the field "")
holds the newest commit's revision and nonce and the map's birth, and is written by the same script; the change log has one
entry for each revision, ``<revision>-<nonce>``, and exists only once somebody watched.
Neighbours: :mod:`corepool_redis.commit` for writes, :mod:`corepool_redis.feeds` for watching.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from corepool.driver import (
    ALWAYS,
    AppendValues,
    Commit,
    Delete,
    Entry,
    RemoveValues,
    Set,
    Updated,
    ValueOp,
    When,
    Write,
    check_key,
    check_value,
    encode_counter,
)
from corepool.driver.maps import Increment
from corepool.errors import BackendUnavailable, OutcomeUnknown, PayloadTooLarge, WireError
from corepool_redis.commit import (
    Batch,
    Space,
    apply,
    encode_when,
    read_commit,
    read_entries,
    read_entry,
    read_previous,
    set_section,
    translate,
)
from corepool_redis.feeds import FeedReader
from corepool_redis.keys import MapKeys, mark_key, scratch_key
from corepool_redis.link import Refused
from corepool_redis.resp import Arg, Reply
from corepool_redis.scripts import Script
from corepool_redis.watch import RedisWatch

__all__ = ["RedisMap"]

_CHUNK_BYTES = 4 * 1024 * 1024


class RedisMap:
    """One named map. See :class:`corepool.driver.MapStore` for what each call promises."""

    def __init__(self, space: Space, feeds: FeedReader, name: str) -> None:
        self._space = space
        self._feeds = feeds
        self._name = name
        self._keys = MapKeys.of(space.scope, name)
        self._pair = (self._keys.data, self._keys.log)

    def __repr__(self) -> str:
        return f"<RedisMap {self._name!r}>"

    @property
    def name(self) -> str:
        return self._name

    async def _read(self, *args: bytes | str | int) -> Reply:
        try:
            return await self._space.link.command(*args)
        except Refused as refused:
            raise translate(refused, write=False) from None

    async def get(self, key: str) -> Entry | None:
        check_key(key, self._space.capabilities)
        return read_entry(key, await self._read("HGET", self._keys.data, key))

    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        for key in keys:
            check_key(key, self._space.capabilities)
        if not keys:
            return {}
        reply = await self._read("HMGET", self._keys.data, *keys)
        values = reply if isinstance(reply, list) else []
        flat = [part for key, raw in zip(keys, values, strict=True) for part in (key.encode(), raw)]
        return {entry.key: entry for entry in read_entries(flat)}

    async def set(self, key: str, value: bytes, when: When = ALWAYS) -> Commit:
        check_key(key, self._space.capabilities)
        check_value(value, self._space.capabilities)
        _, results = await apply(self._space, set_section(self._pair, key, value, when))
        return read_commit(key, results)

    async def delete(self, key: str, when: When = ALWAYS) -> Commit:
        batch = Batch(self._space)
        batch.delete(self._name, key, when, optional=True)
        _, results = await batch.run()
        return read_commit(key, results)

    async def _change(self, script: str, *args: Arg, more: tuple[bytes, ...] = ()) -> Reply:
        """A script for this map alone. What was handed in before leaves before it."""
        space = self._space
        space.group.leave()
        keys = (mark_key(space.scope), *self._pair, *more)
        try:
            return await space.link.run(Script.named(script), keys, (*space.group.head(), *args), scope=space.scope)
        except Refused as refused:
            raise translate(refused, write=True) from None

    async def clear(self, when: When = ALWAYS) -> Commit:
        reply = await self._change("map-clear", encode_when(when))
        return read_commit("", reply if isinstance(reply, list) else [])

    async def apply(self, writes: Sequence[Write]) -> list[Commit]:
        commits: list[Commit] = []
        for chunk, batch in self._chunks(writes):
            try:
                _, results = await batch.run()
            except BackendUnavailable as error:
                if commits:  # the chunks before this one were applied
                    raise OutcomeUnknown(
                        f"only the first {len(commits)} of {len(writes)} writes were applied: {error}"
                    ) from None
                raise
            commits += (read_commit(write.key, results, 3 * number) for number, write in enumerate(chunk))
        return commits

    def _chunks(self, writes: Sequence[Write]) -> list[tuple[list[Write], Batch]]:
        """All batches are built, and so checked, before the first one is sent."""
        chunks: list[tuple[list[Write], Batch]] = []
        for write in writes:
            if (
                not chunks
                or len(chunks[-1][0]) >= self._space.capabilities.max_commit_ops
                or chunks[-1][1].size > _CHUNK_BYTES
            ):
                chunks.append(([], Batch(self._space)))
            chunk, batch = chunks[-1]
            match write:
                case Set(key=key, value=value, when=when):
                    batch.set(self._name, key, value, when, optional=True)
                case Delete(key=key, when=when):
                    batch.delete(self._name, key, when, optional=True)
            chunk.append(write)
        return chunks

    async def update(self, key: str, op: ValueOp) -> Updated:
        check_key(key, self._space.capabilities)
        values: tuple[Arg, ...]
        match op:
            case Increment(by=by):
                encode_counter(by)  # raises OverflowError before anything is sent
                kind, values = "i", (by,)
            case AppendValues(values=values, unique=unique):
                kind = "q" if unique else "a"
            case RemoveValues(values=values):
                kind = "r"
        if not isinstance(op, Increment):
            for value in op.values:
                check_value(value, self._space.capabilities)
        reply = await self._change(
            "map-update",
            *(self._space.capabilities.max_value_bytes, key, kind, *values),
            more=(scratch_key(self._space.scope, self._space.link.client),),
        )
        match reply:
            case [int() as revision, bytes() as value, previous]:
                return Updated(value, revision, read_previous(key, previous))
            case b"!overflow":
                raise OverflowError(f"a counter holds 64 bits; {key!r} changed by {op} does not fit")
            case b"!large":
                raise PayloadTooLarge(
                    f"the list of {key!r} would be over {self._space.capabilities.max_value_bytes} bytes; nothing was changed"
                )
            case _:
                raise WireError(f"the value of {key!r} is not what {type(op).__name__} works on; nothing was changed")

    async def scan(self, prefix: str = "") -> AsyncIterator[Entry]:
        match_args = ("MATCH", _glob(prefix.encode()) + b"*") if prefix else ()
        seen: set[str] = set()
        link = self._space.link
        await link.ready()
        cursor, generation = b"0", link.generation
        while True:
            reply = await self._read("HSCAN", self._keys.data, cursor, *match_args, "COUNT", 500)
            match reply:
                case [bytes() as cursor, [*flat]]:
                    pass
                case _:
                    raise WireError("the server's answer to HSCAN has an unknown form")
            for entry in read_entries(flat):
                if entry.key not in seen:
                    seen.add(entry.key)
                    yield entry
            if link.generation != generation:
                # a cursor means nothing to another server: begin again, and yield nothing twice
                cursor, generation = b"0", link.generation
            elif cursor == b"0":
                return

    def watch(self) -> RedisWatch:
        return self._feeds.watch(self._space, self._keys)

    async def destroy(self) -> None:
        await self._change("map-destroy")


def _glob(literal: bytes) -> bytes:
    """Text that a MATCH pattern takes literally."""
    return b"".join(
        b"\\" + literal[i : i + 1] if literal[i : i + 1] in b"*?[]^-\\" else literal[i : i + 1]
        for i in range(len(literal))
    )
