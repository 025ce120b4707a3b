"""The parent's end of a node in a process of its own.

Purpose: start it, order, kill, suspend, cut off.
Invariants: an order to a process that died ends as `OutcomeUnknown`; a process is waited for, and its pipes are closed.
Neighbours: ``host`` runs in the process.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from corepool import errors
from corepool.errors import CorepoolError
from corepool_conformance.harness import UrlHarness
from corepool_conformance.kit import Kit, PromiseBroken
from corepool_conformance.pool.env import died
from corepool_conformance.pool.host import SETTINGS
from corepool_conformance.proxy import TcpProxy

__all__ = ["ProcessHost"]


class ProcessHost:
    """One process with one node. A URL that can be led through a proxy is, so that this process alone can be cut off."""

    def __init__(self, kit: Kit, pool: str, options: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
        self.alive = False
        self._kit = kit
        self._settings: dict[str, Any] = {"url": kit.harness.url, "pool": pool, "options": options}
        self._tell = tell
        self._orders: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._count = 0
        self._worker: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._proxy: TcpProxy | None = None
        self._process: asyncio.subprocess.Process
        self._reading: asyncio.Task[None]

    async def start(self) -> None:
        """Return once the worker is up.

        Raises:
            PromiseBroken: it does not come up.
        """
        harness = self._kit.harness
        if isinstance(harness, UrlHarness) and harness.offers("cut"):
            host, port = harness.address()
            self._proxy = await TcpProxy.start(host, port)
            self._settings["url"] = harness.routed(self._proxy.port)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "corepool_conformance.pool.host",
            env={**os.environ, SETTINGS: json.dumps(self._settings)},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        self._reading = self._kit.spawn(self._read())
        try:
            await self._kit.within(20, asyncio.shield(self._worker), "a node in a process to come up", "P9")
        except CorepoolError as error:
            raise PromiseBroken("P9", f"a process with a node ended before it was up: {error}") from error
        self.alive = True

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            message: dict[str, Any] = json.loads(line)
            if "effect" in message:
                self._tell(message)
            elif "up" in message:
                self._worker.set_result(str(message["up"]))
            elif (order := self._orders.pop(int(message["id"]), None)) and not order.done():
                order.set_result(message)
        self.alive = False
        for order in self._orders.values():
            if not order.done():
                order.set_exception(died("an order"))
        self._orders.clear()
        if not self._worker.done():
            self._worker.set_exception(died("the start of a node"))
            self._worker.exception()  # whoever waited for it may be gone: then nobody has to hear of it

    async def _order(
        self, call: str, key: str = "", payload: bytes = b"", timeout: float | None = None
    ) -> dict[str, Any]:
        if self._process.stdin is None or self._process.returncode is not None or self._reading.done():
            raise died(call)
        self._count += 1
        number = self._count
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._orders[number] = answer
        message = {"id": number, "call": call, "key": key, "timeout": timeout}
        message["payload"] = base64.b64encode(payload).decode()
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        try:
            return await answer
        finally:
            self._orders.pop(number, None)

    async def call(self, name: str, key: str, payload: bytes, timeout: float | None) -> None:
        answer = await self._order(name, key, payload, timeout)
        if "error" in answer:
            kind = getattr(errors, str(answer["error"]), CorepoolError)
            raise kind(str(answer["text"]))

    async def workers(self) -> set[str]:
        return {str(worker) for worker in (await self._order("workers")).get("workers", [])}

    async def close(self) -> None:
        if self.alive:
            self.alive = False
            with contextlib.suppress(CorepoolError):  # it may be killed while it closes
                await self._order("close")
            await self._ended()

    async def crash(self) -> None:
        if self._process.returncode is None:
            self.alive = False
            self._process.kill()
            await self._ended()

    async def _ended(self) -> None:
        await self._process.wait()
        await asyncio.wait([self._reading])

    async def cut(self) -> None:
        if self._proxy is not None:
            await self._proxy.cut()

    async def heal(self) -> None:
        if self._proxy is not None:
            await self._proxy.heal()

    async def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    async def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # it was killed meanwhile
            self._process.send_signal(number)

    async def aclose(self) -> None:
        """Kill it, if it still runs."""
        await self.crash()
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self._proxy is not None:
            await self._proxy.aclose()
