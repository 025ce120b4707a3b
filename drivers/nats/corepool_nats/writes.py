"""Writes to keys: conditions, previous entries, and writes that a clear overtook.

Purpose: M2 on JetStream. Every conditional write names the sequence of the message it expects on its key's subject, and the
server decides.

How a write learns what its commit says:

- *applied*: the server stored it, and (for REVISION) no reset marker lies between the revision and it. The marker is asked for
  in the same round trip (`Client.publish` with ``probe``), behind the write in the stream's order.
- *previous*: the message that was expected, which is immutable; for unconditional writes without knowledge, a read of
  the newest message below the write's own sequence (one replica), or compare-and-set until it holds (several).
- *refused*: only after a read from the leader that shows why.

Removing what is absent stores nothing, as far as this process can know: one that has not heard of a clear yet may still store a
tombstone for what it took away, whose revision is then the commit's. It changes no entry.

Invariants: when anything fails after the server stored the message, the error is `OutcomeUnknown`, never `BackendUnavailable`.
Neighbours: maps and commits; the rules are :mod:`corepool_nats.held`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Generator, Mapping, Sequence

import msgspec

from corepool.driver import Commit, Entry, When
from corepool.errors import BackendUnavailable, CorepoolError, OutcomeUnknown
from corepool_nats import api
from corepool_nats.assets import Assets
from corepool_nats.client import Refused, Stored, expect
from corepool_nats.held import DELETED, KIND, ONLY_IF, Cache, Held, held_of
from corepool_nats.janitor import Janitor
from corepool_nats.link import Link
from corepool_nats.names import MapSubjects
from corepool_nats.records import Reads, Record

__all__ = ["Blind", "Writes", "after_the_fact", "stretches"]

log = logging.getLogger("corepool.nats")

_TRIES_BEFORE_BLIND = 3


@contextlib.contextmanager
def after_the_fact() -> Generator[None]:
    """Around what follows a write that was stored."""
    try:
        yield
    except BackendUnavailable as error:
        raise OutcomeUnknown(f"the write was stored, but what it met cannot be read: {error}") from None


def headers(value: bytes | None, base: int | None, only_if: int | None) -> dict[str, str]:
    """The headers of a key's message."""
    found = {} if base is None else expect(base)
    if value is None:
        found[KIND] = DELETED
    if only_if is not None:
        found[ONLY_IF] = str(only_if)
    return found


class Blind(msgspec.Struct, frozen=True):
    """An unconditional write, stored at ``sequence`` without knowledge of what stood there."""

    map: MapSubjects
    key: str
    subject: str
    sequence: int


def stretches(writes: Sequence[tuple[int, Blind]]) -> list[list[tuple[int, Blind]]]:
    """Cut into stretches of writes to different keys that nothing else was stored between: what the keys of one were before its
    first write is what each was before its own."""
    found: list[list[tuple[int, Blind]]] = []
    seen: set[str] = set()
    for index, each in writes:
        if found and each.subject not in seen and each.sequence == found[-1][-1][1].sequence + 1:
            found[-1].append((index, each))
            seen.add(each.subject)
        else:
            found.append([(index, each)])
            seen = {each.subject}
    return found


class Writes:
    """Writes to the maps of a namespace."""

    def __init__(self, assets: Assets, reads: Reads, cache: Cache, janitor: Janitor) -> None:
        self._assets = assets
        self._client = assets.client
        self._target = assets.maps
        self._reads = reads
        self._cache = cache
        self._janitor = janitor
        self._wrong: set[str] = set()
        """Maps whose key was taken for new, the last time, and was not."""

    async def write(
        self, m: MapSubjects, key: str, value: bytes | None, when: When, deadline: float, *, on: Link | None = None
    ) -> Commit:
        """Set the key, or remove it (value None), if the condition holds.

        on: on this connection only, and once (see `Client.publish`).

        Raises:
            BackendUnavailable, OutcomeUnknown
        """
        subject = m.key(key)
        if when.revision is None:
            commit = await self._always(m, key, subject, value, deadline)
        elif when.revision:
            commit = await self._at(m, key, subject, value, when.revision, deadline, on)
        elif value is None:
            held, marker = await self.look(m, subject, deadline)
            entry = held.entry(key, marker) if held is not None else None
            commit = Commit(entry is None, _seen_at(entry, held, marker), entry)
        else:
            commit = await self._absent(m, key, subject, value, deadline, on)
        return commit

    def sends_first(self, m: MapSubjects, subject: str, delete: bool, when: When) -> bool:
        """Whether a conditional `write` begins with sending, rather than with a read."""
        if when.revision == 0:
            return not delete
        held = self._cache.get(m, subject)
        return held is not None and held.sequence == when.revision and held.value is not None

    async def look(self, m: MapSubjects, subject: str, deadline: float) -> tuple[Held | None, int]:
        """The newest message of a key, and of the map's markers."""
        return (await self.look_at({subject: m}, deadline))[subject]

    async def look_at(self, places: Mapping[str, MapSubjects], deadline: float) -> dict[str, tuple[Held | None, int]]:
        """`look` at several keys, in one round trip. ``places``: their maps, by the keys' subjects.

        Keys and markers are read in any order, and a marker must be as of its key's message or later: one stored in
        between may make that message void. Only a conditional write can be void, and a marker that was read after the write
        is new enough: so for conditional messages not known to be stored before, the markers are read again.
        """
        stored = self._client.stored(self._target)
        markers = list({m.base: m.marker for m in places.values()}.values())
        found = await self._reads.newest(self._target, [*places, *markers], deadline)
        held = {subject: held_of(found[subject]) if subject in found else None for subject in places}
        if any(each and each.only_if is not None and each.sequence > stored for each in held.values()):
            found = await self._reads.newest(self._target, markers, deadline)
        seen: dict[str, tuple[Held | None, int]] = {}
        for subject, m in places.items():
            marker = found[m.marker].sequence if m.marker in found else 0
            each = held[subject]
            self._cache.cleared(m, marker)
            if each is None:
                self._cache.drop(subject)
            else:
                self._cache.put(subject, each.settled(marker))
            seen[subject] = each, marker
        return seen

    async def known_at(self, places: Mapping[str, MapSubjects], deadline: float) -> dict[str, tuple[Held | None, int]]:
        """What is known of several keys, as far as a guarded removal may begin with it; the others are looked at."""
        held = {subject: self._cache.get(m, subject) for subject, m in places.items()}
        known: dict[str, tuple[Held | None, int]] = {
            subject: (each, 0) for subject, each in held.items() if each is not None and each.value is not None
        }
        rest = {subject: m for subject, m in places.items() if subject not in known}
        return known | await self.look_at(rest, deadline) if rest else known

    # --- the three conditions ----------------------------------------------------------------------------------------

    async def _absent(
        self, m: MapSubjects, key: str, subject: str, value: bytes, deadline: float, on: Link | None
    ) -> Commit:
        known = self._cache.get(m, subject)
        base = known.sequence if known is not None and known.value is None else 0
        while True:
            try:
                stored = await self._store(subject, value, base, None, deadline, on=on)
            except Refused:
                held, marker = await self.look(m, subject, deadline)
                entry = held.entry(key, marker) if held is not None else None
                if entry is not None:
                    return Commit(False, entry.revision, entry)
                base = held.sequence if held is not None else 0
                await self._client.yield_to_others(deadline)
                continue
            return Commit(True, stored.sequence, None)

    async def _at(
        self,
        m: MapSubjects,
        key: str,
        subject: str,
        value: bytes | None,
        revision: int,
        deadline: float,
        on: Link | None,
    ) -> Commit:
        held = self._cache.get(m, subject)
        if held is None or held.sequence != revision or held.value is None:
            held, marker = await self.look(m, subject, deadline)
            entry = held.entry(key, marker) if held is not None else None
            if entry is None or entry.revision != revision:
                return Commit(False, _seen_at(entry, held, marker), entry)
        else:
            entry = Entry(key, held.value, revision)
        while True:
            try:
                stored = await self._store(subject, value, revision, revision, deadline, probe=m.marker, on=on)
            except Refused:
                held, marker = await self.look(m, subject, deadline)
                found = held.entry(key, marker) if held is not None else None
                if found is None or found.revision != revision:
                    return Commit(False, _seen_at(found, held, marker), found)
                await self._client.yield_to_others(deadline)
                continue
            with after_the_fact():
                marker = await self._overtaken(m, revision, stored, deadline)
                if marker:
                    self._cache.cleared(m, marker)
                    self._cache.drop(subject)
                    await self._discard(stored.sequence, deadline)
                    return Commit(False, marker, None)
            if value is None:
                self._janitor.deleted(m, subject, stored.sequence)
            return Commit(True, stored.sequence, entry)

    async def _always(self, m: MapSubjects, key: str, subject: str, value: bytes | None, deadline: float) -> Commit:
        known = self._cache.get(m, subject)
        marker = 0
        if known is None or (value is None and known.value is None):
            if value is not None:
                first = await self._first(m, subject, value, deadline)
                if isinstance(first, Commit):
                    return first
                known, marker = first
            else:
                known, marker = await self.look(m, subject, deadline)
        return await self._replace(m, key, subject, value, known, marker, deadline)

    async def remove(self, m: MapSubjects, key: str, known: Held | None, marker: int, deadline: float) -> Commit:
        """Remove a key of which this was just read, unconditionally.

        Raises:
            BackendUnavailable, OutcomeUnknown
        """
        return await self._replace(m, key, m.key(key), None, known, marker, deadline)

    async def _replace(
        self,
        m: MapSubjects,
        key: str,
        subject: str,
        value: bytes | None,
        known: Held | None,
        marker: int,
        deadline: float,
    ) -> Commit:
        """Compare-and-set from what is known until it holds; after some tries, without comparing."""
        one = (await self._assets.get(self._target, deadline)).replicas == 1
        tries = 0
        while True:
            entry = known.entry(key, marker) if known is not None else None
            if value is None and entry is None:
                return Commit(True, _seen_at(None, known, marker), None)
            tries += 1
            if one and value is not None and tries > _TRIES_BEFORE_BLIND:
                return await self._blind(m, key, subject, value, deadline)
            base = known.sequence if known is not None else 0
            try:
                stored = await self._store(
                    subject, value, base, None, deadline, probe=m.marker if entry is not None else None
                )
            except Refused:
                if tries > 1:
                    await self._client.yield_to_others(deadline)
                known, marker = await self.look(m, subject, deadline)
                continue
            if entry is not None:
                with after_the_fact():
                    if await self._overtaken(m, base, stored, deadline):
                        entry = None
            if value is None:
                self._janitor.deleted(m, subject, stored.sequence)
            return Commit(True, stored.sequence, entry)

    async def _first(
        self, m: MapSubjects, subject: str, value: bytes, deadline: float
    ) -> Commit | tuple[Held | None, int]:
        """A key we know nothing of: guess that it is new. In a map where that was wrong the last time, the key is read in the
        same round trip: where it was right a read for nothing would cost more than it saves."""
        looking = asyncio.create_task(self.look(m, subject, deadline)) if m.base in self._wrong else None
        try:
            stored = await self._store(subject, value, 0, None, deadline)
            self._wrong.discard(m.base)
            return Commit(True, stored.sequence, None)
        except Refused:
            if len(self._wrong) > 4096:
                self._wrong.clear()
            self._wrong.add(m.base)
            return await (looking or self.look(m, subject, deadline))
        finally:
            if looking is not None:
                if looking.cancel():
                    await asyncio.wait([looking])
                elif not looking.cancelled():
                    looking.exception()

    async def send(self, subject: str, value: bytes | None, deadline: float, on: Link) -> int:
        """Write whatever stands there, once, on this connection; returns the sequence. See `followed`.

        Raises:
            BackendUnavailable, OutcomeUnknown
        """
        marks = headers(value, None, None)
        stored = await self._client.publish(self._target, subject, value or b"", marks, deadline, on=on)
        self._cache.put(subject, Held(stored.sequence, value))
        return stored.sequence

    async def _blind(self, m: MapSubjects, key: str, subject: str, value: bytes, deadline: float) -> Commit:
        """Write whatever stands there, then read what that was. One replica only. Never to remove: removing what is absent
        must write nothing."""
        stored = await self._store(subject, value, None, None, deadline)
        return (await self.followed([Blind(m, key, subject, stored.sequence)], deadline))[0]

    async def followed(self, writes: Sequence[Blind], deadline: float) -> list[Commit]:
        """The commits of a stretch of unconditional writes: reads what stood there before. One replica only.

        Mostly that is nothing, which the oldest message of the key tells: it is the write itself. (Older ones that are gone,
        because their key has more than `history` messages or was swept, cannot be read in another way either.)
        """
        with after_the_fact():
            oldest = await self._reads.oldest(self._target, [each.subject for each in writes], deadline)
            others = [each for each in writes if oldest.get(each.subject, each.sequence) < each.sequence]
            found: dict[str, Record] = {}
            if others:
                subjects = [subject for each in others for subject in (each.subject, each.map.marker)]
                found = await self._reads.newest_up_to(self._target, subjects, writes[0].sequence - 1, deadline)
        commits: list[Commit] = []
        for each in writes:
            record = found.get(each.subject)
            marker = found[each.map.marker].sequence if each.map.marker in found else 0
            entry = held_of(record).entry(each.key, marker) if record is not None else None
            commits.append(Commit(True, each.sequence, entry))
        return commits

    # --- steps -------------------------------------------------------------------------------------------------------

    async def _store(
        self,
        subject: str,
        value: bytes | None,
        base: int | None,
        only_if: int | None,
        deadline: float,
        *,
        probe: str | None = None,
        on: Link | None = None,
    ) -> Stored:
        marks: Mapping[str, str] = headers(value, base, only_if)
        stored = await self._client.publish(self._target, subject, value or b"", marks, deadline, probe=probe, on=on)
        self._cache.put(subject, Held(stored.sequence, value, only_if))
        return stored

    async def _overtaken(self, m: MapSubjects, base: int, stored: Stored, deadline: float) -> int:
        """The marker that lies between ``base`` and the message just stored; 0 if none does."""
        probed = stored.probed
        if probed is not None and probed < stored.sequence:
            return probed if probed > base else 0
        query = {"seq": base + 1, "next_by_subj": m.marker}
        first = await self._reads.one(self._target, query, deadline)
        return first.sequence if first is not None and first.sequence < stored.sequence else 0

    async def _discard(self, sequence: int, deadline: float) -> None:
        """Take a void message away: nobody counts it, but it would stay the newest of its subject."""
        body = msgspec.json.encode({"seq": sequence, "no_erase": True})
        try:
            await self._client.api(f"STREAM.MSG.DELETE.{self._target.asset}", body, api.Done, deadline)
        except CorepoolError as error:
            log.debug("the void message %d stays: %s", sequence, error)


def _seen_at(entry: Entry | None, held: Held | None, marker: int) -> int:
    """A revision at which this was so."""
    if entry is not None:
        return entry.revision
    return max(held.sequence if held is not None else 0, marker)
