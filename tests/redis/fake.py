"""Servers that behave as a test says: a scripted one, and a proxy that can hold bytes back."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import TypeAlias

from corepool_redis.resp import INCOMPLETE, PythonReader
from tests.waiting import until

Answer: TypeAlias = Callable[[list[bytes]], "bytes | None"]
"""What to say to a command; None: nothing."""

HELLO = b"*6\r\n$7\r\nversion\r\n$5\r\n7.0.0\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n"


class FakeServer:
    """Answers HELLO as a primary of version 7, and everything else as it is told."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.hello: bytes | None = HELLO
        self.commands: list[list[bytes]] = []
        self.writers: list[asyncio.StreamWriter] = []
        self.port = 0
        self.chunks: list[bytes] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def _add_task(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)

    async def close(self) -> None:
        """Break every connection and wait until nothing of them is left."""
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        self._add_task()
        parser = PythonReader()
        with contextlib.closing(writer), contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                self.chunks.append(data)
                parser.feed(data)
                while (command := parser.gets()) is not INCOMPLETE:
                    assert isinstance(command, list)
                    words = [word for word in command if isinstance(word, bytes)]
                    self.commands.append(words)
                    reply = self.hello if words[0] == b"HELLO" and self.hello is not None else self.answer(words)
                    if reply is not None:
                        writer.write(reply)

    def cut(self) -> None:
        """Break every connection."""
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()


@contextlib.asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[FakeServer]:
    """A scripted server for the length of the block."""
    fake = FakeServer(answer)
    server = await asyncio.start_server(fake._serve, "127.0.0.1", 0)
    fake.port = server.sockets[0].getsockname()[1]
    try:
        yield fake
    finally:
        server.close()
        await fake.close()


class HoldingProxy:
    """Passes bytes on. While ``holding``, what clients send on connections that exist is kept back, and survives them."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.port = 0
        self.held: list[tuple[asyncio.StreamWriter, bytes]] = []
        self._held_connections: set[asyncio.StreamWriter] = set()
        self._upstreams: set[asyncio.StreamWriter] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._answered: Counter[asyncio.StreamWriter] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    def hold(self) -> None:
        """From now on, hold what comes on the connections that are open now."""
        self._held_connections = set(self._upstreams)

    async def release(self) -> None:
        """Let the server have what was held, long after the clients have gone; returns when it has answered."""
        held, self.held = self.held, []
        before = self._answered.copy()
        for upstream, data in held:
            upstream.write(data)
            await upstream.drain()
        await until(lambda: all(self._answered[upstream] > before[upstream] for upstream, _ in held))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        answers, upstream = await asyncio.open_connection("127.0.0.1", self.target)
        self._upstreams.add(upstream)
        self._writers.add(writer)
        back = asyncio.create_task(self._pipe(answers, writer, upstream))
        self._tasks.add(back)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                if upstream in self._held_connections:
                    self.held.append((upstream, data))
                else:
                    upstream.write(data)
        if upstream not in self._held_connections:
            upstream.close()

    async def _pipe(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, upstream: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                self._answered[upstream] += len(data)
                sink.write(data)
        sink.close()

    async def close(self) -> None:
        """Break everything and wait until nothing is left."""
        for writer in (*self._upstreams, *self._writers):
            writer.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def proxying(port: int) -> AsyncIterator[HoldingProxy]:
    """A proxy in front of a server for the length of the block."""
    proxy = HoldingProxy(port)
    server = await asyncio.start_server(proxy._serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
