"""A TCP relay between a client and a server that can keep things back.

Purpose: lose a reply, hold a request and let it arrive when its sender has long given up, cut everything.
Invariants: bytes of one direction keep their order; what is held is delivered by `release` or dropped by `cut`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

__all__ = ["Relay", "listening"]


class _Pipe:
    """One direction of one connection."""

    def __init__(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        self.source = source
        self.sink = sink
        self.held: list[bytes] = []


class Relay:
    """Use as a context manager; clients connect to `url`."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._pipes: list[tuple[str, _Pipe]] = []
        self.port = 0
        self.hold_requests = False
        self.drop_replies = False
        self.refuse = False
        self.connections = 0
        self.replies = bytearray()
        """All that the server has said, also what no client got to hear; a test may clear it."""

    @property
    def held(self) -> bytes:
        """The requests that are held back now."""
        return b"".join(data for _, pipe in self._pipes for data in pipe.held)

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """End every connection, both ends, at once."""
        pipes, self._pipes = self._pipes, []
        for _, pipe in pipes:
            pipe.sink.transport.abort()

    def cut_clients(self) -> None:
        """End the clients' ends only: what is held can still reach the server."""
        for direction, pipe in self._pipes:
            if direction == "reply":
                pipe.sink.transport.abort()

    def release(self) -> int:
        """Deliver the requests that were held; how many bytes."""
        size = 0
        for direction, pipe in self._pipes:
            if direction == "request" and pipe.held:
                data = b"".join(pipe.held)
                pipe.held.clear()
                pipe.sink.write(data)
                size += len(data)
        return size

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.refuse:
            writer.transport.abort()
            return
        upstream, downstream = await asyncio.open_connection("127.0.0.1", self._target)
        for direction, pipe in (("request", _Pipe(reader, downstream)), ("reply", _Pipe(upstream, writer))):
            self._pipes.append((direction, pipe))
            task = asyncio.create_task(self._pump(direction, pipe))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, direction: str, pipe: _Pipe) -> None:
        try:
            while data := await pipe.source.read(65536):
                if direction == "reply":
                    self.replies += data
                    if self.drop_replies:
                        continue
                if direction == "request" and self.hold_requests:
                    pipe.held.append(data)
                    continue
                pipe.sink.write(data)
                await pipe.sink.drain()
            if not pipe.held:
                pipe.sink.close()
        except OSError:
            pipe.sink.transport.abort()


Conversation = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(serve: Conversation) -> AsyncGenerator[int]:
    """A server of the test's own, and its port; every conversation has ended when it is left."""
    conversations: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        conversations[task] = writer
        try:
            await serve(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(converse, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    for task, writer in list(conversations.items()):
        task.cancel()
        await asyncio.wait([task])
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
