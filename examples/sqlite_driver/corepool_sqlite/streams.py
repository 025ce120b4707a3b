"""Streams: events, readers, and sinks."""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections import deque
from collections.abc import Sequence
from typing import Self

from corepool.driver import (
    OLDEST,
    After,
    Delivery,
    Event,
    Newest,
    NewEvent,
    Since,
    Start,
    StreamConfig,
    StreamKind,
    check_duration,
    check_name,
    check_value,
)
from corepool.errors import BackendUnavailable, InvalidOptionError, StreamFull, StreamSealed
from corepool_sqlite.database import Database, next_number
from corepool_sqlite.plugin import CAPABILITIES

_COLUMNS = "id, time, name, payload, topic, stamp"


def check_event(event: NewEvent) -> None:
    """Raises:
    InvalidKeyError, PayloadTooLarge
    """
    check_name("an event's name", event.name, CAPABILITIES)
    if event.topic:
        check_name("a topic", event.topic, CAPABILITIES)
    check_value(event.payload, CAPABILITIES)


def event_id(number: int) -> str:
    """Ids are compared as strings (S1): all of one length."""
    return f"{number:020}"


def _number(known: str) -> int:
    return int(known) if known.isascii() and known.isdigit() else 0


def _event(row: tuple[int, float, str, bytes, str, int | None]) -> Event:
    return Event(event_id(row[0]), *row[1:])


def append_event(db: sqlite3.Connection, scope: str, event: NewEvent, stamp: int | None = None) -> str | None:
    """In a transaction: append to a stream that exists; None if it does not, or is sealed.

    Raises:
        StreamFull
    """
    row = db.execute("SELECT kind, most, sealed FROM streams WHERE scope = ?", (scope,)).fetchone()
    if row is None or row[2]:
        return None
    kind, most, _ = row
    held = db.execute("SELECT count(*) FROM events WHERE scope = ?", (scope,)).fetchone()[0] if most is not None else 0
    if most is not None and held >= most:
        if kind == StreamKind.WORK.value:
            raise StreamFull(f"the stream holds {held} events already; wait, or raise max_length")
        oldest = "SELECT id FROM events WHERE scope = ? ORDER BY id LIMIT ?"
        db.execute(f"DELETE FROM events WHERE scope = ? AND id IN ({oldest})", (scope, scope, held - most + 1))
    number = next_number(db)
    values = (scope, number, time.time(), event.name, event.topic, event.payload, stamp)
    db.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", values)
    return event_id(number)


def acknowledge(db: sqlite3.Connection, receipt: str) -> bool:
    """In a transaction: whether the receipt was current; its event is then done for its sink (S2)."""
    row = db.execute("DELETE FROM deliveries WHERE receipt = ? RETURNING scope, id", (receipt,)).fetchone()
    if row is None:
        return False
    scope, number = row
    kind = db.execute("SELECT kind FROM streams WHERE scope = ?", (scope,)).fetchone()
    sinks = db.execute("SELECT count(*) FROM sinks WHERE scope = ?", (scope,)).fetchone()[0]
    if sinks == 1 and kind == (StreamKind.WORK.value,):
        db.execute("DELETE FROM events WHERE scope = ? AND id = ?", (scope, number))
    return True


class SqliteStream:
    """One stream (see `corepool.driver.StreamStore`)."""

    def __init__(self, database: Database, name: str, scope: str) -> None:
        self._database = database
        self._name = name
        self._scope = scope

    @property
    def name(self) -> str:
        return self._name

    async def create(self, config: StreamConfig = StreamConfig()) -> bool:  # noqa: B008  as in the contract
        return await self._database.write(lambda db: self._create(db, config))

    def _create(self, db: sqlite3.Connection, config: StreamConfig) -> bool:
        values = (self._scope, config.kind.value, config.max_length)
        return db.execute("INSERT OR IGNORE INTO streams VALUES (?, ?, ?, 0)", values).rowcount == 1

    async def exists(self) -> bool:
        query = "SELECT 1 FROM streams WHERE scope = ?"
        return await self._database.read(lambda db: db.execute(query, (self._scope,)).fetchone() is not None)

    async def append(self, event: NewEvent, *, only_if_exists: bool = False) -> str | None:
        check_event(event)

        def job(db: sqlite3.Connection) -> str | None:
            if not only_if_exists:
                self._create(db, StreamConfig())
            known = append_event(db, self._scope, event)
            if known is None and not only_if_exists:
                raise StreamSealed(f"the stream {self._name!r} takes no more events")
            return known

        return await self._database.write(job)

    async def seal(self) -> None:
        await self._database.write(
            lambda db: db.execute("UPDATE streams SET sealed = 1 WHERE scope = ?", (self._scope,))
        )

    async def destroy(self) -> None:
        def job(db: sqlite3.Connection) -> None:
            for table in ("streams", "events", "sinks", "deliveries"):
                db.execute(f"DELETE FROM {table} WHERE scope = ?", (self._scope,))

        await self._database.write(job)

    async def length(self) -> int:
        query = "SELECT count(*) FROM events WHERE scope = ?"
        return await self._database.read(lambda db: int(db.execute(query, (self._scope,)).fetchone()[0]))

    async def remove(self, ids: Sequence[str]) -> int:
        query = "DELETE FROM events WHERE scope = ? AND id = ?"
        return await self._database.write(
            lambda db: sum(db.execute(query, (self._scope, _number(known))).rowcount for known in ids)
        )

    async def range(self, after: str = "", limit: int = 100) -> list[Event]:
        return await self._database.read(lambda db: read_events(db, self._scope, _number(after), limit))

    def read(self, start: Start = OLDEST) -> SqliteReading:
        return SqliteReading(self._database, self._scope, start)

    async def sink(self, name: str, *, start: Start = OLDEST, ack_wait: float = 30.0) -> SqliteSink:
        check_name("a sink's name", name, CAPABILITIES)
        check_duration("ack_wait", ack_wait)

        def join(db: sqlite3.Connection) -> float:
            values = (self._scope, name, starting_place(db, self._scope, start), ack_wait)
            db.execute("INSERT OR IGNORE INTO sinks VALUES (?, ?, ?, ?)", values)
            query = "SELECT ack_wait FROM sinks WHERE scope = ? AND sink = ?"
            return float(db.execute(query, (self._scope, name)).fetchone()[0])

        agreed = await self._database.write(join)
        if agreed != ack_wait:
            raise InvalidOptionError(
                f"the members of the sink {name!r} have agreed on ack_wait={agreed}, not {ack_wait}"
            )
        return SqliteSink(self._database, self._scope, name, ack_wait)


def read_events(db: sqlite3.Connection, scope: str, after: int, limit: int) -> list[Event]:
    """In a transaction: events past a number, oldest first."""
    query = f"SELECT {_COLUMNS} FROM events WHERE scope = ? AND id > ? ORDER BY id LIMIT ?"
    return [_event(row) for row in db.execute(query, (scope, after, limit))]


def starting_place(db: sqlite3.Connection, scope: str, start: Start) -> int:
    """In a transaction: the number after which ``start`` begins."""
    match start:
        case After(id=known):
            return _number(known)
        case Newest():
            return int(db.execute("SELECT number FROM sequence").fetchone()[0])
        case Since(timestamp=timestamp):
            query = "SELECT min(id) FROM events WHERE scope = ? AND time >= ?"
            first = db.execute(query, (scope, timestamp)).fetchone()[0]
            return int(first) - 1 if first is not None else starting_place(db, scope, Newest())
        case _:
            return 0


class SqliteReading:
    """A reader is a place. Numbers are never used again, so a stream's next life simply follows."""

    def __init__(self, database: Database, scope: str, start: Start) -> None:
        self._database = database
        self._scope = scope
        self._start = start
        self._place: int | None = None
        self._found: deque[Event] = deque()
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not (self._closed or self._database.closed):
            if self._found:
                event = self._found.popleft()
                self._place = int(event.id)
                return event
            version = self._database.version
            self._place, found = await self._database.read(self._look)
            self._found.extend(found)
            if not found:
                await self._database.changed(version, 1.0)
        raise StopAsyncIteration

    def _look(self, db: sqlite3.Connection) -> tuple[int, list[Event]]:
        place = starting_place(db, self._scope, self._start) if self._place is None else self._place
        return place, read_events(db, self._scope, place, 100)

    async def aclose(self) -> None:
        self._closed = True
        self._database.wake()


class SqliteSink:
    """A member of a sink. The file keeps no members, only deliveries: who vanished has left nothing else (S3)."""

    def __init__(self, database: Database, scope: str, name: str, ack_wait: float) -> None:
        self._database = database
        self._scope = scope
        self._name = name
        self._ack_wait = ack_wait
        self._closed = False

    async def receive(self, max_events: int = 1) -> list[Delivery]:
        while not (self._closed or self._database.closed):
            version = self._database.version
            wait = await self._database.read(self._wait)
            if wait > 0:
                await self._database.changed(version, wait)
            elif deliveries := await self._database.write(lambda db: self._take(db, max_events)):
                return deliveries
        raise BackendUnavailable("this sink is closed; join again")

    def _wait(self, db: sqlite3.Connection) -> float:
        """How many seconds there will be nothing to take, as far as one can tell; 0: there may be something now."""
        here = (self._scope, self._name)
        sink = db.execute("SELECT position FROM sinks WHERE scope = ? AND sink = ?", here).fetchone()
        if sink is None:  # the stream was destroyed; in its next life the sink is made again
            lives = db.execute("SELECT 1 FROM streams WHERE scope = ?", (self._scope,)).fetchone()
            return 0.0 if lives else 1.0
        if db.execute("SELECT 1 FROM events WHERE scope = ? AND id > ? LIMIT 1", (self._scope, sink[0])).fetchone():
            return 0.0
        soonest = db.execute("SELECT min(due) FROM deliveries WHERE scope = ? AND sink = ?", here).fetchone()[0]
        return 1.0 if soonest is None else min(1.0, max(0.0, soonest - time.time()))

    def _take(self, db: sqlite3.Connection, most: int) -> list[Delivery]:
        """What is due again, then what is new."""
        here, now = (self._scope, self._name), time.time()
        if db.execute("SELECT 1 FROM streams WHERE scope = ?", (self._scope,)).fetchone():
            db.execute("INSERT OR IGNORE INTO sinks VALUES (?, ?, 0, ?)", (*here, self._ack_wait))  # its next life
        query = "SELECT id, attempt FROM deliveries WHERE scope = ? AND sink = ? AND due <= ? ORDER BY id LIMIT ?"
        due = [(int(number), int(attempt) + 1) for number, attempt in db.execute(query, (*here, now, most)).fetchall()]
        query = (
            "SELECT e.id FROM events e JOIN sinks s ON s.scope = e.scope AND s.sink = ? AND e.id > s.position "
            "WHERE e.scope = ? ORDER BY e.id LIMIT ?"
        )
        new = [
            (int(number), 1) for (number,) in db.execute(query, (self._name, self._scope, most - len(due))).fetchall()
        ]
        if new:
            db.execute("UPDATE sinks SET position = ? WHERE scope = ? AND sink = ?", (new[-1][0], *here))
        deliveries: list[Delivery] = []
        for number, attempt in due + new:
            row = db.execute(
                f"SELECT {_COLUMNS} FROM events WHERE scope = ? AND id = ?", (self._scope, number)
            ).fetchone()
            if row is None:  # removed meanwhile
                db.execute("DELETE FROM deliveries WHERE scope = ? AND sink = ? AND id = ?", (*here, number))
                continue
            receipt = secrets.token_hex(12)
            values = (*here, number, now + self._ack_wait, attempt, receipt)
            db.execute("INSERT OR REPLACE INTO deliveries VALUES (?, ?, ?, ?, ?, ?)", values)
            deliveries.append(Delivery(_event(row), receipt, attempt))
        return deliveries

    async def ack(self, receipts: Sequence[str]) -> list[bool]:
        return await self._database.write(lambda db: [acknowledge(db, receipt) for receipt in receipts])

    async def nack(self, receipt: str, delay: float = 0.0) -> bool:
        check_duration("delay", delay, zero=True)
        query = "UPDATE deliveries SET due = ?, receipt = NULL WHERE receipt = ?"
        return await self._database.write(lambda db: db.execute(query, (time.time() + delay, receipt)).rowcount == 1)

    async def extend(self, receipt: str) -> bool:
        query = "UPDATE deliveries SET due = ? WHERE receipt = ?"
        values = (time.time() + self._ack_wait, receipt)
        return await self._database.write(lambda db: db.execute(query, values).rowcount == 1)

    async def aclose(self) -> None:
        self._closed = True
        self._database.wake()
