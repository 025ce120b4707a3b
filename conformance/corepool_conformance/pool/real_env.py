"""Real nodes as an `Env`: processes on the backend under test, killed, suspended and cut off; or nodes in this process.

Purpose: the pool layer on real backends. With a URL that several processes share each node is a process of its own; else the
nodes live here, each on a connection of its own, and a crash is `corepool.Node.abandon`.
Invariants: what a handler did is known even if its process was killed, for it tells before it goes on; a process that was
suspended or cut off is judged by its fencing tokens for the jobs it had then; no process outlives `aclose`.
Neighbours: ``host`` is the other end of a process; `TcpProxy` cuts.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

import attrs

from corepool.driver import Backend
from corepool.errors import CorepoolError
from corepool.pool import FencingToken, Node
from corepool.testing.history import Effect
from corepool_conformance.harness import UrlHarness
from corepool_conformance.kit import Kit
from corepool_conformance.pool.env import Checker, died, options
from corepool_conformance.pool.host import RecordingHandler
from corepool_conformance.pool.process import ProcessHost

__all__ = ["Host", "RealEnv", "real_faults"]


def real_faults(kit: Kit, *, processes: bool) -> frozenset[str]:
    """What can be done to a node of the backend under test."""
    if not processes:
        return frozenset({"crash"})
    cut = {"cut"} if isinstance(kit.harness, UrlHarness) and kit.harness.offers("cut") else set[str]()
    return frozenset({"crash", "pause", *cut})


class Host(Protocol):
    """One node, wherever it lives."""

    alive: bool

    async def start(self) -> None: ...

    async def call(self, name: str, key: str, payload: bytes, timeout: float | None) -> None: ...

    async def workers(self) -> set[str]: ...

    async def close(self) -> None: ...

    async def crash(self) -> None: ...

    async def cut(self) -> None: ...

    async def heal(self) -> None: ...

    async def pause(self) -> None: ...

    async def resume(self) -> None: ...

    async def aclose(self) -> None: ...


class RealEnv:
    """See `corepool_conformance.pool.env.Env`. ``ttl`` is in real seconds."""

    def __init__(self, kit: Kit, ttl: float, *, processes: bool) -> None:
        self.ttl = ttl
        self._kit = kit
        self._processes = processes
        self._pool = f"{kit.namespace_name}-{secrets.token_hex(3)}"
        self._hosts: list[Host] = []
        self._effects: dict[tuple[int, int], Effect] = {}
        self._backends: list[Backend] = []
        self._checker: Node | None = None

    def now(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._kit.spawn(work)

    # --- nodes -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        number = len(self._hosts)
        tell = _Teller(self._effects, number)
        host: Host
        if self._processes:
            host = ProcessHost(self._kit, self._pool, options(self.ttl), tell)
        else:
            host = LocalHost(self._kit, self._pool, options(self.ttl), tell)
        self._hosts.append(host)
        await host.start()

    def up(self) -> list[int]:
        return [number for number, host in enumerate(self._hosts) if host.alive]

    async def call(self, node: int, name: str, key: str, payload: bytes, timeout: float | None) -> None:
        await self._hosts[node].call(name, key, payload, timeout)

    async def close(self, node: int) -> None:
        await self._hosts[node].close()

    async def crash(self, node: int) -> None:
        await self._hosts[node].crash()
        self._mark(node, ended=True)

    async def cut(self, node: int) -> None:
        self._mark(node)
        await self._hosts[node].cut()

    async def heal(self, node: int) -> None:
        self._mark(node)
        await self._hosts[node].heal()

    async def pause(self, node: int) -> None:
        self._mark(node)
        await self._hosts[node].pause()

    async def resume(self, node: int) -> None:
        self._mark(node)
        await self._hosts[node].resume()

    def _mark(self, node: int, *, ended: bool = False) -> None:
        """The node's jobs of now: gone with it, or from now on protected by their tokens alone."""
        for key, effect in self._effects.items():
            if key[0] == node and effect.ended is None:
                self._effects[key] = (
                    attrs.evolve(effect, ended=self.now()) if ended else attrs.evolve(effect, suspended=True)
                )

    # --- looking -----------------------------------------------------------------------------------------------------

    async def workers(self) -> set[str]:
        found: set[str] = set()
        for number in self.up():
            found |= await self._hosts[number].workers()
        return found

    def effects(self) -> list[Effect]:
        return sorted(self._effects.values(), key=lambda effect: effect.began)

    async def checker(self) -> Checker:
        if self._checker is None:
            backend = await self._kit.harness.connect()
            self._backends.append(backend)
            self._checker = await Node.open(backend, self._pool, client_only=True, **options(self.ttl))
        return self._checker

    async def eventually(self, condition: Callable[[], Awaitable[bool]], within: float) -> bool:
        end = time.monotonic() + within
        while not await condition():
            if time.monotonic() > end:
                return False
            await asyncio.sleep(0.05)
        return True

    async def aclose(self) -> None:
        """End everything; what is left in the store is removed by a shutdown of the pool."""
        for host in self._hosts:
            await host.aclose()
        try:
            checker = self._checker or await self.checker()
            async with asyncio.timeout(6 * self.ttl):
                await Node.shutdown(checker)  # type: ignore[arg-type]  # the checker of this Env is a Node
        except (CorepoolError, TimeoutError):
            return  # the pool was just judged: what a broken one leaves behind is no news
        finally:
            for backend in self._backends:
                await backend.aclose()


class _Teller:
    """Turns what a handler tells into effects."""

    def __init__(self, effects: dict[tuple[int, int], Effect], node: int) -> None:
        self._effects = effects
        self._node = node

    def __call__(self, message: dict[str, Any]) -> None:
        place, at = (self._node, int(message["number"])), float(message["at"])
        if message["effect"] == "began":
            self._effects[place] = Effect(
                key=message["key"],
                payload=str(message["payload"]).encode(),
                owner=f"node {self._node}",
                token=FencingToken(*message["token"]),
                began=at,
                running=None,
                stopping=None,
                ended=None,
            )
        elif place in self._effects and self._effects[place].ended is None:
            change: dict[str, Any] = {str(message["effect"]): at}
            self._effects[place] = attrs.evolve(self._effects[place], **change)


class LocalHost:
    """A node in this process. A crash abandons it: nothing is stopped, nothing handed over."""

    def __init__(self, kit: Kit, pool: str, options: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
        self.alive = False
        self._kit = kit
        self._pool = pool
        self._options = options
        self._muted = False
        self._tell_env = tell
        self._backend: Backend
        self._node: Node

    async def start(self) -> None:
        self._backend = await self._kit.harness.connect()
        self._node = await Node.open(self._backend, self._pool, **self._options)
        await self._node.add_worker(RecordingHandler(self._tell))
        self.alive = True

    def _tell(self, message: dict[str, Any]) -> None:
        if not self._muted:  # what a crashed handler does is no longer an effect
            self._tell_env(message)

    async def call(self, name: str, key: str, payload: bytes, timeout: float | None) -> None:
        if not self.alive:
            raise died(name)
        if name == "dispatch_job":
            await self._node.dispatch_job(key, payload, timeout=timeout)
        elif name == "stop_job":
            await self._node.stop_job(key)
        else:
            await self._node.notify_worker(key, payload)

    async def workers(self) -> set[str]:
        return {worker.id for worker in self._node.workers}

    async def close(self) -> None:
        if self.alive:
            self.alive = False
            await self._node.close()
            await self._backend.aclose()

    async def crash(self) -> None:
        if self.alive:
            self.alive = False
            self._muted = True
            await self._node.abandon()
            await self._backend.aclose()

    async def cut(self) -> None:
        """Never asked for: `real_faults` offers these where each node is a process."""
        raise NotImplementedError("nodes of one process cannot be cut off one by one")

    heal = pause = resume = cut

    async def aclose(self) -> None:
        await self.crash()
