"""The backends that the same tests run on, by name, and the servers behind them.

Purpose: one vocabulary for "run this on Valkey": the option ``--backend``, the fixtures of ``tests/conftest.py``, and the tests
in ``tests/drivers`` that kill processes and servers.
Invariants: a server starts when it is first asked for and ends with its `Servers`; whoever names a backend gets it or an error,
never a skip.
Neighbours: ``valkey`` and ``nats`` know their binaries; this module knows no protocol.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import attrs

from tests.servers.nats import NatsServer
from tests.servers.valkey import Server, binaries

__all__ = ["LiveServer", "Servers", "check_backends", "default_backends", "make_server", "real_servers"]

IN_MEMORY = {
    "memory": "memory://same-tests",
    "memory-steps": "memory://same-tests-steps?atomic_commit=false",
}
"""In this process, on the ordinary event loop: with commits that are atomic, and with commits that are not."""


class LiveServer(Protocol):
    """A server process that a test may kill. It keeps its port and its data over a restart."""

    @property
    def url(self) -> str: ...

    def start(self) -> object:
        """Start it, and return when it takes connections."""

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""


def real_servers() -> list[str]:
    """The servers to test on: Valkey and NATS always, for their binaries come with ``[test]``; Redis where it is on PATH."""
    return ["valkey", *(["redis"] if shutil.which("redis-server") else []), "nats"]


def default_backends() -> list[str]:
    """What ``--backend`` is unless told otherwise."""
    return [*IN_MEMORY, *real_servers()]


def check_backends(names: Iterable[str]) -> list[str]:
    """The names as a list; URLs are taken as they are.

    Raises:
        ValueError: one is neither a URL nor known, or its server is not installed.
    """
    known = [*IN_MEMORY, "valkey", "redis", "nats"]
    chosen = list(dict.fromkeys(name.strip() for name in names))
    for name in chosen:
        if "://" not in name and name not in known:
            raise ValueError(f"no backend is named {name!r}; there are {', '.join(known)}, and URLs")
        if name == "redis" and shutil.which("redis-server") is None:
            raise ValueError(
                "the backend 'redis' needs redis-server on PATH ('valkey' comes with the test dependencies)"
            )
    return chosen


def make_server(name: str, directory: Path) -> LiveServer:
    """A server that is not started yet, and keeps what it acknowledged when it is killed."""
    if name == "nats":
        return NatsServer(directory=directory)
    return Server(binaries()[name], directory, ("--appendonly", "yes", "--appendfsync", "everysec"))


@attrs.define
class Servers:
    """The servers of a session, each started when it is first needed."""

    directory: Path
    _running: dict[str, LiveServer] = attrs.field(factory=dict)

    def url(self, name: str) -> str:
        """A URL of the backend of that name."""
        if "://" in name:
            return name
        if name in IN_MEMORY:
            return IN_MEMORY[name]
        if name not in self._running:
            server = make_server(name, self.directory / name)
            try:
                server.start()
            except BaseException:  # whatever it was: nobody would end the process, and the next test must fail as well
                server.kill()
                raise
            self._running[name] = server
        return self._running[name].url

    def end(self) -> None:
        """Kill them all."""
        while self._running:
            self._running.popitem()[1].kill()
