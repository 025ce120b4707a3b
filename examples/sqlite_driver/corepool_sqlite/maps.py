"""Maps: entries, and a log of changes for those who watch."""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Self

from corepool.driver import (
    ALWAYS,
    Change,
    Cleared,
    Commit,
    Entry,
    Set,
    Snapshot,
    Updated,
    ValueOp,
    WatchEvent,
    When,
    Write,
    apply_value_op,
    check_key,
    check_value,
)
from corepool.errors import PayloadTooLarge
from corepool_sqlite.database import Database, next_number
from corepool_sqlite.plugin import CAPABILITIES

_LOG_LENGTH = 1000
"""Changes kept for those who watch; who is further behind gets a snapshot."""


def read_entry(db: sqlite3.Connection, scope: str, key: str) -> Entry | None:
    """In a transaction: the entry of a key."""
    row = db.execute("SELECT value, revision FROM entries WHERE scope = ? AND key = ?", (scope, key)).fetchone()
    return Entry(key, row[0], row[1]) if row else None


def write_entry(db: sqlite3.Connection, scope: str, key: str, value: bytes | None, when: When) -> Commit:
    """In a transaction: set a key, or remove it (None), if the condition holds (M2)."""
    held = read_entry(db, scope, key)
    if when.revision is not None and when.revision != (held.revision if held else 0):
        return Commit(False, _revision(db, scope), held)
    if value is None and held is None:
        return Commit(True, _revision(db, scope), None)
    revision = _log(db, scope, key, value)
    if value is None:
        db.execute("DELETE FROM entries WHERE scope = ? AND key = ?", (scope, key))
    else:
        db.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)", (scope, key, value, revision))
    return Commit(True, revision, held)


def _revision(db: sqlite3.Connection, scope: str) -> int:
    row = db.execute("SELECT revision FROM maps WHERE scope = ?", (scope,)).fetchone()
    return int(row[0]) if row else 0


def _log(db: sqlite3.Connection, scope: str, key: str | None, value: bytes | None) -> int:
    """Give the change a revision and write it down; a key of None is a clear."""
    revision = next_number(db)
    db.execute(
        "INSERT INTO maps VALUES (?, ?, 0) ON CONFLICT (scope) DO UPDATE SET revision = excluded.revision",
        (scope, revision),
    )
    db.execute("INSERT INTO changes VALUES (?, ?, ?, ?)", (scope, revision, key, value))
    if revision % 100 == 0:
        _trim(db, scope, _LOG_LENGTH)
    return revision


def _trim(db: sqlite3.Connection, scope: str, keep: int) -> None:
    row = db.execute(
        "SELECT revision FROM changes WHERE scope = ? ORDER BY revision DESC LIMIT 1 OFFSET ?", (scope, keep)
    ).fetchone()
    if row is not None:
        db.execute("DELETE FROM changes WHERE scope = ? AND revision <= ?", (scope, row[0]))
        db.execute("UPDATE maps SET trimmed = ? WHERE scope = ?", (row[0], scope))


class SqliteMap:
    """One map (see `corepool.driver.MapStore`)."""

    def __init__(self, database: Database, name: str, scope: str) -> None:
        self._database = database
        self._name = name
        self._scope = scope

    @property
    def name(self) -> str:
        return self._name

    async def get(self, key: str) -> Entry | None:
        check_key(key, CAPABILITIES)
        return await self._database.read(lambda db: read_entry(db, self._scope, key))

    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        for key in keys:
            check_key(key, CAPABILITIES)
        found = await self._database.read(lambda db: [read_entry(db, self._scope, key) for key in keys])
        return {entry.key: entry for entry in found if entry is not None}

    async def set(self, key: str, value: bytes, when: When = ALWAYS) -> Commit:
        check_key(key, CAPABILITIES)
        check_value(value, CAPABILITIES)
        return await self._database.write(lambda db: write_entry(db, self._scope, key, value, when))

    async def delete(self, key: str, when: When = ALWAYS) -> Commit:
        check_key(key, CAPABILITIES)
        return await self._database.write(lambda db: write_entry(db, self._scope, key, None, when))

    async def apply(self, writes: Sequence[Write]) -> list[Commit]:
        asked = [(write.key, write.value if isinstance(write, Set) else None, write.when) for write in writes]
        for key, value, _ in asked:
            check_key(key, CAPABILITIES)
            if value is not None:
                check_value(value, CAPABILITIES)
        return await self._database.write(lambda db: [write_entry(db, self._scope, *write) for write in asked])

    async def clear(self, when: When = ALWAYS) -> Commit:
        def job(db: sqlite3.Connection) -> Commit:
            revision = _revision(db, self._scope)
            empty = db.execute("SELECT 1 FROM entries WHERE scope = ?", (self._scope,)).fetchone() is None
            if when.revision is not None and not (empty if when.revision == 0 else when.revision == revision):
                return Commit(False, revision, None)
            return Commit(True, self._clear(db), None)

        return await self._database.write(job)

    def _clear(self, db: sqlite3.Connection) -> int:
        db.execute("DELETE FROM entries WHERE scope = ?", (self._scope,))
        return _log(db, self._scope, None, None)

    async def update(self, key: str, op: ValueOp) -> Updated:
        check_key(key, CAPABILITIES)

        def job(db: sqlite3.Connection) -> Updated:
            held = read_entry(db, self._scope, key)
            value = apply_value_op(held.value if held else None, op)
            if len(value) > CAPABILITIES.max_value_bytes:
                raise PayloadTooLarge(
                    f"the value would grow to {len(value)} bytes; the limit is {CAPABILITIES.max_value_bytes}"
                )
            if held is not None and value == held.value:
                return Updated(value, held.revision, held)
            return Updated(value, write_entry(db, self._scope, key, value, ALWAYS).revision, held)

        return await self._database.write(job)

    async def scan(self, prefix: str = "") -> AsyncIterator[Entry]:
        query = "SELECT key, value, revision FROM entries WHERE scope = ?"
        rows = await self._database.read(lambda db: db.execute(query, (self._scope,)).fetchall())
        for row in rows:
            if row[0].startswith(prefix):
                yield Entry(*row)

    def watch(self) -> SqliteWatch:
        return SqliteWatch(self._database, self._scope)

    async def destroy(self) -> None:
        def job(db: sqlite3.Connection) -> None:
            if _revision(db, self._scope):
                self._clear(db)
                _trim(db, self._scope, 0)  # what stays is one row: the revision, for those who watch

        await self._database.write(job)


class SqliteWatch:
    """A watch is a place in the log; nothing happens unless somebody reads it (M4)."""

    def __init__(self, database: Database, scope: str) -> None:
        self._database = database
        self._scope = scope
        self._place = -1
        self._found: deque[WatchEvent] = deque()
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WatchEvent:
        while not (self._closed or self._database.closed):
            if self._found:
                event = self._found.popleft()
                self._place = event.revision
                return event
            version = self._database.version
            # Cancelled here, nothing is lost: the place is only moved when an event is handed over.
            self._found.extend(await self._database.read(self._look))
            if not self._found:
                await self._database.changed(version, 1.0)
        raise StopAsyncIteration

    def _look(self, db: sqlite3.Connection) -> list[WatchEvent]:
        row = db.execute("SELECT revision, trimmed FROM maps WHERE scope = ?", (self._scope,)).fetchone()
        revision, trimmed = row or (0, 0)
        if self._place < 0 or self._place < trimmed:
            query = "SELECT key, value, revision FROM entries WHERE scope = ?"
            return [Snapshot(revision, tuple(Entry(*row) for row in db.execute(query, (self._scope,))))]
        query = "SELECT revision, key, value FROM changes WHERE scope = ? AND revision > ? ORDER BY revision LIMIT 100"
        rows = db.execute(query, (self._scope, self._place)).fetchall()
        return [Cleared(revision) if key is None else Change(revision, key, value) for revision, key, value in rows]

    async def aclose(self) -> None:
        self._closed = True
        self._database.wake()
