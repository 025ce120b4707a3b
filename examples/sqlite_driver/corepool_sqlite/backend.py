"""The backend: URLs, namespaces, commits, preflight."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from corepool.driver import (
    Ack,
    Append,
    Appended,
    Capabilities,
    Clock,
    Commit,
    CommitResult,
    Finding,
    GetKey,
    Op,
    OpResult,
    Refusal,
    SetKey,
    Severity,
    SystemClock,
    check_key,
    check_name,
    check_value,
)
from corepool.errors import InvalidOptionError, InvalidUrlError, PayloadTooLarge, StreamFull
from corepool_sqlite.database import Database
from corepool_sqlite.maps import SqliteMap, read_entry, write_entry
from corepool_sqlite.plugin import CAPABILITIES
from corepool_sqlite.streams import SqliteStream, acknowledge, append_event, check_event


async def open_sqlite(url: str, options: Mapping[str, Any]) -> SqliteBackend:
    """What the plugin names as the loader.

    Raises:
        InvalidUrlError, InvalidOptionError, BackendUnavailable
    """
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.netloc or not path or parts.query or parts.fragment:
        raise InvalidUrlError("the URL of a file is sqlite:///absolute/path.db, and nothing else")
    if options:
        raise InvalidOptionError(f"sqlite:// has no options; got {', '.join(sorted(options))}")
    return SqliteBackend(await Database.open(path), url)


class SqliteBackend:
    """One connection to the file (see `corepool.driver.Backend`)."""

    def __init__(self, database: Database, url: str) -> None:
        self._database = database
        self._url = url
        self._clock = SystemClock()
        self._random = random.Random()

    @property
    def url(self) -> str:
        return self._url

    @property
    def capabilities(self) -> Capabilities:
        return CAPABILITIES

    @property
    def clock(self) -> Clock:
        return self._clock

    @property
    def random(self) -> random.Random:
        return self._random

    def namespace(self, name: str) -> SqliteNamespace:
        check_name("a namespace's name", name, CAPABILITIES)
        return SqliteNamespace(self._database, name)

    async def preflight(self) -> list[Finding]:
        text = "An SQLite file serves the processes of one machine; on a network drive its locks do not hold."
        return [Finding(Severity.INFO, "one-machine", text, "Use a server for a pool on several machines.")]

    async def aclose(self) -> None:
        await self._database.aclose()


class SqliteNamespace:
    """Maps and streams of one pool (see `corepool.driver.Namespace`)."""

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    def _scope(self, kind: str, name: str) -> str:
        """Where a map or stream lives: no two of them share it, whatever their names hold."""
        check_name(f"a {kind}'s name", name, CAPABILITIES)
        return json.dumps([self._name, name])

    def map(self, name: str) -> SqliteMap:
        return SqliteMap(self._database, name, self._scope("map", name))

    def stream(self, name: str) -> SqliteStream:
        return SqliteStream(self._database, name, self._scope("stream", name))

    async def settle(self) -> None:
        # Jobs run one after another: when this one has run, all earlier ones have, those of cancelled calls too (R2).
        await self._database.read(lambda db: None)

    async def commit(self, ops: Sequence[Op]) -> CommitResult:
        if len(ops) > CAPABILITIES.max_commit_ops:
            raise PayloadTooLarge(
                f"a commit has {CAPABILITIES.max_commit_ops} operations at most, not {len(ops)}; split it"
            )
        for op in ops:
            self._check(op)
        try:
            return await self._database.write(lambda db: self._apply(db, ops))
        except _Stopped as stopped:  # the transaction was rolled back: all or nothing
            return stopped.result

    def _check(self, op: Op) -> None:
        match op:
            case Append(stream=stream, event=event):
                self._scope("stream", stream)
                check_event(event)
            case Ack():
                pass
            case _:
                self._scope("map", op.map)
                check_key(op.key, CAPABILITIES)
                if isinstance(op, SetKey):
                    check_value(op.value, CAPABILITIES)

    def _apply(self, db: sqlite3.Connection, ops: Sequence[Op]) -> CommitResult:
        results: list[OpResult] = []
        for index, op in enumerate(ops):
            result = self._apply_one(db, op, results)
            results.append(result)
            refused = (isinstance(result, Commit) and not result.applied) or (
                isinstance(result, Appended) and not result.id
            )
            if refused and not getattr(op, "optional", False):
                raise _Stopped(CommitResult(tuple(results), index))
        return CommitResult(tuple(results))

    def _apply_one(self, db: sqlite3.Connection, op: Op, before: Sequence[OpResult]) -> OpResult:
        match op:
            case GetKey():
                return read_entry(db, self._scope("map", op.map), op.key)
            case Ack(receipt=receipt):
                return acknowledge(db, receipt)
            case Append(stream=stream, event=event, stamp=stamp):
                write = before[stamp] if stamp is not None else None
                try:
                    known = append_event(
                        db, self._scope("stream", stream), event, write.revision if isinstance(write, Commit) else None
                    )
                except StreamFull:
                    return Appended(None, Refusal.FULL)
                return Appended(known, None if known else Refusal.MISSING)
            case _:
                value = op.value if isinstance(op, SetKey) else None
                return write_entry(db, self._scope("map", op.map), op.key, value, op.when)


class _Stopped(Exception):
    """Rolls the transaction back and carries the answer out of it."""

    def __init__(self, result: CommitResult) -> None:
        super().__init__()
        self.result = result
