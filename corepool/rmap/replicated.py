"""The replicated map as its user holds it.

Purpose: local synchronous reads from a replica, writes and conditions on the store, waiting for what one wrote.
Invariants:

- A read is local and may be old; a condition is decided by the store and never by the replica alone.
- Nothing that a reader or subscriber does or fails to do holds up a writer, the feed, or `aclose`.
- Background work belongs to the map: cancelling a call of it leaks nothing and kills nothing.
- After `aclose`, or when the backend was closed, the replica stays readable, frozen.

Neighbours: stands on :class:`corepool.driver.MapStore`; its local reads are in :mod:`corepool.rmap.reads`. Used by the pool
and, with `ReplicatedMap.join`, on its own.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from typing import Any, Generic, Self, TypeVar, overload

import attrs

from corepool.driver import (
    ABSENT,
    ALWAYS,
    AppendValues,
    Backend,
    Clock,
    Commit,
    Entry,
    Increment,
    MapStore,
    RemoveValues,
    Updated,
    ValueOp,
    When,
    check_name,
    decode_counter,
)
from corepool.errors import BackendUnavailable, OutcomeUnknown, WireError
from corepool.rmap.codecs import BYTES, TEXT, Codec
from corepool.rmap.loops import Backoff, Guess, change_if_equal, update_value
from corepool.rmap.reads import Held, LocalReads

__all__ = ["ReplicatedMap", "Written"]

T = TypeVar("T")
V = TypeVar("V")


@attrs.frozen(slots=True)
class Written(Generic[T]):
    """What became of a write. True in a condition if it was applied.

    applied: whether the condition held and the write took effect.
    revision: if applied, the write's; if not, one at which the refusal was true (0: none to wait for).
    generation: of the replica when the write began: revisions of different generations are not comparable.
    previous: the value that stood there before, or that stood in the way; None if there was none that can be decoded.
    """

    applied: bool
    revision: int
    generation: int
    previous: T | None

    def __bool__(self) -> bool:
        return self.applied


class ReplicatedMap(LocalReads[T]):
    """A named map, shared by all who join it. Made by `join` or `open`, never directly.

    With ``replicated=True`` the map keeps a copy of everything and reads are local; take that for small maps. With
    ``replicated=False`` it keeps nothing: there are only `fetch`, `fetch_many`, `scan` and the writes.
    """

    # --- joining and leaving ------------------------------------------------------------------------------------------

    @overload
    @classmethod
    async def join(
        cls, backend: Backend, name: str, *, namespace: str = "maps", replicated: bool = True
    ) -> ReplicatedMap[str]: ...

    @overload
    @classmethod
    async def join(
        cls, backend: Backend, name: str, *, codec: Codec[V], namespace: str = "maps", replicated: bool = True
    ) -> ReplicatedMap[V]: ...

    @classmethod
    async def join(
        cls,
        backend: Backend,
        name: str,
        *,
        codec: Codec[Any] = TEXT,
        namespace: str = "maps",
        replicated: bool = True,
    ) -> ReplicatedMap[Any]:
        """Join the map ``name``; returns after the first snapshot. Close it with `aclose`, or use ``async with``.

        Raises:
            InvalidKeyError: the name or namespace is empty or too long.
            BackendUnavailable: the backend was closed.
        """
        check_name("a map's name", name, backend.capabilities)  # here: a driver may look only when it is used
        return await cls.open(
            backend.namespace(namespace).map(name),
            codec=codec,
            replicated=replicated,
            clock=backend.clock,
            random=backend.random,
            value_ops=backend.capabilities.value_ops,
        )

    @overload
    @classmethod
    async def open(
        cls, store: MapStore, *, clock: Clock, random: random.Random, replicated: bool = True, value_ops: bool = False
    ) -> ReplicatedMap[bytes]: ...

    @overload
    @classmethod
    async def open(
        cls,
        store: MapStore,
        *,
        codec: Codec[V],
        clock: Clock,
        random: random.Random,
        replicated: bool = True,
        value_ops: bool = False,
    ) -> ReplicatedMap[V]: ...

    @classmethod
    async def open(
        cls,
        store: MapStore,
        *,
        codec: Codec[Any] = BYTES,
        clock: Clock,
        random: random.Random,
        replicated: bool = True,
        value_ops: bool = False,
    ) -> ReplicatedMap[Any]:
        """Join the map of a store; returns after the first snapshot.

        clock, random: the backend's (or a simulation's).
        value_ops: whether the backend declares that capability; without it lists and counters are made by retried writes.
        """
        it: ReplicatedMap[Any] = ReplicatedMap(
            store, codec, replicated=replicated, clock=clock, rng=random, value_ops=value_ops
        )
        if it._feed is not None:
            await it._feed.start()
        return it

    async def aclose(self) -> None:
        """Stop following the store. The replica stays readable, frozen; writes raise; waits end with an error.

        Idempotent, safe to call concurrently, and never held up by an unread subscription.
        """
        self._closed = True
        if self._feed is not None:
            await self._feed.stop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        kind = f"revision={self._replica.revision}, keys={len(self._replica.values)}" if self._feed else "plain"
        return f"<ReplicatedMap {self.name!r} {kind}{' closed' if self.closed else ''}>"

    # --- linearizable reads -------------------------------------------------------------------------------------------

    async def fetch(self, key: str) -> T | None:
        """The value in the store: sees every write acknowledged before the call.

        Raises:
            WireError: the value cannot be decoded (counted as `undecodable`).
        """
        held = await self.fetch_entry(key)
        return None if held is None else held.value

    async def fetch_entry(self, key: str) -> Held[T] | None:
        """As `fetch`, with the revision that wrote the value."""
        self._check_open()
        entry = await self._store.get(key)
        if entry is None:
            return None
        try:
            return Held(self._codec.decode(entry.value), entry.revision)
        except Exception as error:  # whatever a codec of the user's raises becomes one error
            self._replica.undecodable += 1
            raise WireError(f"the value of {key!r} in map {self.name!r} cannot be decoded: {error}") from error

    async def fetch_many(self, keys: Sequence[str]) -> dict[str, T]:
        """The values that exist, in one round trip. One that cannot be decoded is left out and counted."""
        self._check_open()
        found: dict[str, T] = {}
        for entry in (await self._store.get_many(keys)).values():
            self._decode_into(found, entry)
        return found

    async def scan(self, prefix: str = "") -> AsyncIterator[tuple[str, T]]:
        """Keys that start with ``prefix``, with values, in any order. One that cannot be decoded is left out and counted."""
        self._check_open()
        async for entry in self._store.scan(prefix):
            found: dict[str, T] = {}
            self._decode_into(found, entry)
            for item in found.items():
                yield item

    # --- writes -------------------------------------------------------------------------------------------------------

    async def set(self, key: str, value: T, *, when: When = ALWAYS) -> Written[T]:
        """Write the key, if the condition holds.

        Raises:
            InvalidKeyError, PayloadTooLarge, TypeError: nothing was sent.
            BackendUnavailable: certainly not applied (also: this map is closed).
            OutcomeUnknown: it may have been applied.
        """
        self._check_open()
        generation = self._replica.generation
        return self._written(await self._store.set(key, self._codec.encode(value), when), generation)

    async def set_and_wait(self, key: str, value: T, *, when: When = ALWAYS) -> Written[T]:
        """Write, and return when the local replica has reached the revision of this very write.

        By then others may have overwritten it. If the condition refused it, returns when the replica shows why.

        Raises:
            OutcomeUnknown: the write's outcome is unknown, or it was applied but the map was closed, or its store went back,
                before the replica showed it.
            Else as `set`.
        """
        self._need_replica("set_and_wait()")
        self._check_open()
        generation, revision = self._replica.generation, self._replica.revision
        commit = await self._store.set(key, self._codec.encode(value), when)
        if commit.applied and commit.revision <= revision:
            # Numbers only grow unless the store went back; the replica has not heard of it yet, and does not hold this write.
            raise OutcomeUnknown(
                f"the store of map {self.name!r} went back: it gave revision {commit.revision} to a write made after "
                f"{revision}; read {key!r} again before writing"
            )
        try:
            await self._replica.wait(commit.revision, generation)
        except BackendUnavailable as error:
            raise OutcomeUnknown(
                f"the write of {key!r} in map {self.name!r} has revision {commit.revision} in the store, but the map was "
                f"closed before its replica showed it"
            ) from error
        return self._written(commit, generation)

    async def set_if_absent(self, key: str, value: T) -> Written[T]:
        """Write the key if the store holds no value there; else ``previous`` is what it holds."""
        return await self.set(key, value, when=ABSENT)

    async def delete(self, key: str, *, when: When = ALWAYS) -> Written[T]:
        """Remove the key, if the condition holds. Removing an absent key changes nothing and counts as applied."""
        self._check_open()
        generation = self._replica.generation
        return self._written(await self._store.delete(key, when), generation)

    async def test_and_set(self, key: str, expected: T | None, value: T) -> Written[T]:
        """Write the key if it holds ``expected`` (None: if it is absent). Values are equal if they encode equally."""
        if expected is None:
            return await self.set(key, value, when=ABSENT)
        return await self._change_if_equal(key, expected, self._codec.encode(value))

    async def test_and_delete(self, key: str, expected: T) -> Written[T]:
        """Remove the key if it holds ``expected``. An absent key does not."""
        return await self._change_if_equal(key, expected, None)

    async def clear(self, *, when: When = ALWAYS) -> Written[T]:
        """Remove all keys in one step; the condition speaks of the map's newest revision. Revisions go on increasing."""
        self._check_open()
        generation = self._replica.generation
        return self._written(await self._store.clear(when), generation)

    async def test_and_clear(self, revision: int | None = None) -> Written[T]:
        """Remove all keys if nothing was written after ``revision`` (default: what the replica has seen)."""
        if revision is None:
            revision = self.revision
        return await self.clear(when=When(revision))

    async def destroy(self) -> None:
        """Clear, and free what the backend holds. The map may be used again; revisions go on increasing."""
        self._check_open()
        await self._store.destroy()

    # --- lists and counters -------------------------------------------------------------------------------------------

    async def increment(self, key: str, by: int = 1) -> int:
        """Add to a counter (absent counts as 0); returns its new value. Read it with `get_counter`.

        Raises:
            WireError: the value is not a counter. OverflowError: it would leave 64 bits. Else as `set`.
        """
        return decode_counter((await self._update(key, Increment(by))).value)

    async def append_values(self, key: str, *values: T) -> list[T]:
        """Append to a list (absent counts as empty); returns the whole list. Read it with `get_list`.

        Raises:
            WireError: the value is not a list. Else as `set`.
        """
        encoded = tuple(self._codec.encode(value) for value in values)
        return self._decode_list((await self._update(key, AppendValues(encoded))).value)

    async def append_unique_values(self, key: str, *values: T) -> list[T]:
        """Append those values that the list does not hold yet; returns the whole list. As `append_values`."""
        encoded = tuple(self._codec.encode(value) for value in values)
        return self._decode_list((await self._update(key, AppendValues(encoded, unique=True))).value)

    async def remove_values(self, key: str, *values: T) -> list[T]:
        """Remove every occurrence of each value from a list; returns what is left. An emptied list stays. As
        `append_values`."""
        encoded = tuple(self._codec.encode(value) for value in values)
        return self._decode_list((await self._update(key, RemoveValues(encoded))).value)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self.closed:
            raise BackendUnavailable(f"map {self.name!r} is closed; nothing was sent. Join it again")

    def _written(self, commit: Commit, generation: int) -> Written[T]:
        previous: T | None = None
        if commit.previous is not None:
            try:
                previous = self._codec.decode(commit.previous.value)
            except Exception:  # noqa: BLE001  what stood there may be anything; the write's own result must not be lost
                self._replica.undecodable += 1
        return Written(commit.applied, commit.revision, generation, previous)

    def _decode_into(self, found: dict[str, T], entry: Entry) -> None:
        try:
            found[entry.key] = self._codec.decode(entry.value)
        except Exception:  # noqa: BLE001  a codec of the user's may raise anything; the values behind it still come
            self._replica.undecodable += 1

    def _guess(self, key: str) -> Guess | None:
        return None if self._feed is None else Guess(self._replica.raw.get(key))

    def _backoff(self) -> Backoff:
        return Backoff(self._random)

    async def _change_if_equal(self, key: str, expected: T, value: bytes | None) -> Written[T]:
        self._check_open()
        generation = self._replica.generation
        wanted = self._codec.encode(expected)

        def equal(data: bytes) -> bool:
            if data == wanted:
                return True
            try:
                return (
                    self._codec.encode(self._codec.decode(data)) == wanted
                )  # written by another hand, meaning the same
            except Exception:  # noqa: BLE001  what cannot be decoded equals nothing
                return False

        commit = await change_if_equal(self._store, key, equal, value, guess=self._guess(key), backoff=self._backoff())
        return self._written(commit, generation)

    async def _update(self, key: str, op: ValueOp) -> Updated:
        self._check_open()
        if self._value_ops:
            return await self._store.update(key, op)
        return await update_value(self._store, key, op, guess=self._guess(key), backoff=self._backoff())
