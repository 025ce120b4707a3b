"""One connection to the file: a thread of its own, transactions, and news of changes.

Purpose: the only place that knows threads and ``sqlite3``'s errors.
Invariants: jobs run one after another, each in one transaction; a job that raised changed nothing; a job that was cancelled
before it began never runs; a reply goes to the call that asked, for each has a future of its own (M6).
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from corepool.errors import BackendUnavailable, OutcomeUnknown

T = TypeVar("T")
Job = Callable[[sqlite3.Connection], T]

_BUSY_SECONDS = 2.0
"""How long a transaction waits for those of other connections before it counts as not begun."""

_POLL_SECONDS = 0.01
"""How often somebody who waits looks whether another connection has written."""

_SCHEMA = """
PRAGMA journal_mode=WAL;
CREATE TABLE IF NOT EXISTS sequence (one INTEGER PRIMARY KEY CHECK (one = 1), number INTEGER NOT NULL);
INSERT OR IGNORE INTO sequence VALUES (1, 0);
CREATE TABLE IF NOT EXISTS maps (scope TEXT PRIMARY KEY, revision INTEGER NOT NULL, trimmed INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS entries
    (scope TEXT, key TEXT, value BLOB NOT NULL, revision INTEGER NOT NULL, PRIMARY KEY (scope, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS changes
    (scope TEXT, revision INTEGER, key TEXT, value BLOB, PRIMARY KEY (scope, revision)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS streams (scope TEXT PRIMARY KEY, kind TEXT NOT NULL, most INTEGER, sealed INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS events
    (scope TEXT, id INTEGER, time REAL, name TEXT, topic TEXT, payload BLOB, stamp INTEGER, PRIMARY KEY (scope, id))
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sinks
    (scope TEXT, sink TEXT, position INTEGER NOT NULL, ack_wait REAL NOT NULL, PRIMARY KEY (scope, sink)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS deliveries
    (scope TEXT, sink TEXT, id INTEGER, due REAL NOT NULL, attempt INTEGER NOT NULL, receipt TEXT UNIQUE,
     PRIMARY KEY (scope, sink, id)) WITHOUT ROWID;
"""


class Database:
    """An open file. Made by `Database.open`, closed by `aclose`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="corepool-sqlite")
        self._connection: sqlite3.Connection
        self._waiters: set[asyncio.Future[None]] = set()
        self._poller: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._file_version = 0
        self.version = 0  # grows whenever something may have changed

    @classmethod
    async def open(cls, path: str) -> Database:
        """Open or create the file.

        Raises:
            BackendUnavailable: it cannot be opened.
        """
        database = cls(path)
        try:
            await database._loop.run_in_executor(database._executor, database._connect)
        except BaseException as error:  # cancellation too must not leave a thread behind
            database._executor.shutdown(wait=False)
            if isinstance(error, sqlite3.Error):
                raise BackendUnavailable(f"cannot open {path}: {error}") from error
            raise
        return database

    def _connect(self) -> None:
        self._connection = sqlite3.connect(self._path, _BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        self._connection.executescript(_SCHEMA)
        self._connection.execute("PRAGMA synchronous=FULL")

    @property
    def closed(self) -> bool:
        """Whether `aclose` was called."""
        return self._closing is not None

    async def read(self, job: Job[T]) -> T:
        """Run a job that only reads; it sees one state of the file.

        Raises:
            BackendUnavailable
        """
        return await self._run(job, "BEGIN")

    async def write(self, job: Job[T]) -> T:
        """Run a job that writes; all of it is applied, or nothing.

        Raises:
            BackendUnavailable: nothing was applied.
            OutcomeUnknown: the file's own COMMIT failed.
        """
        return await self._run(job, "BEGIN IMMEDIATE")

    async def _run(self, job: Job[T], begin: str) -> T:
        if self.closed:
            raise BackendUnavailable("this backend is closed; open another one")
        future = self._executor.submit(self._transaction, job, begin)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self.closed and future.cancelled() and not (task and task.cancelling()):
                raise BackendUnavailable("the backend was closed before this call began") from None
            raise

    def _transaction(self, job: Job[T], begin: str) -> T:
        """In the thread."""
        database = self._connection
        changes = database.total_changes
        try:
            database.execute(begin)
            result = job(database)
        except sqlite3.Error as error:
            _roll_back(database)
            raise BackendUnavailable(f"{type(error).__name__}: {error}") from error
        except BaseException:  # the job's own refusal, or a fault of this driver: nothing of it may stay
            _roll_back(database)
            raise
        try:
            database.execute("COMMIT")
        except sqlite3.Error as error:
            _roll_back(database)
            raise OutcomeUnknown(f"COMMIT failed: {error}") from error
        if database.total_changes != changes:  # told from here: whoever asked may have been cancelled meanwhile
            self._loop.call_soon_threadsafe(self.wake)
        return result

    # --- news --------------------------------------------------------------------------------------------------------

    async def changed(self, since: int, seconds: float) -> None:
        """Return once ``version`` is not ``since`` any more, or the backend is closed, or after so many seconds."""
        if self.version != since or self.closed:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        if self._poller is None or self._poller.done():
            self._poller = asyncio.ensure_future(self._poll())
        try:
            await asyncio.wait([waiter], timeout=seconds)
        finally:
            self._waiters.discard(waiter)

    async def _poll(self) -> None:
        """While somebody waits: did another connection write? ``data_version`` tells, and costs a glance at the file."""
        while self._waiters and not self.closed:
            try:
                version = await self.read(lambda db: int(db.execute("PRAGMA data_version").fetchone()[0]))
            except BackendUnavailable:
                version = self._file_version  # closed meanwhile, or busy: the next look tells
            if version != self._file_version:
                self._file_version = version
                self.wake()
            await asyncio.sleep(_POLL_SECONDS)

    def wake(self) -> None:
        """Something changed, or somebody closed a watch: all who wait look again."""
        self.version += 1
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    # --- the end -----------------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Close. What had not begun is refused; what runs is finished, which takes two seconds at most."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self.wake()
        if self._poller is not None:
            self._poller.cancel()
        await asyncio.to_thread(self._executor.shutdown, wait=True, cancel_futures=True)
        self._connection.close()


def _roll_back(database: sqlite3.Connection) -> None:
    if database.in_transaction:
        database.execute("ROLLBACK")


def next_number(database: sqlite3.Connection) -> int:
    """The next revision or event id: one sequence for the whole file, so that none is ever used again."""
    return int(database.execute("UPDATE sequence SET number = number + 1 RETURNING number").fetchone()[0])
