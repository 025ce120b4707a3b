"""The plot of the demo: open, dispatch, notify, join, crash, leave, check, stop.

Purpose: show the main job under the three things that happen to pools, and measure what came of it.
Invariants: every wait is bounded; what is not as promised ends up in the summary, it does not stop the story.
Neighbours: ``stage`` runs the nodes, ``ledger`` measures, ``view`` shows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import attrs

from corepool import Node
from corepool.cli.demo.files import hash_file
from corepool.cli.demo.ledger import Ledger
from corepool.cli.demo.stage import Stage
from corepool.cli.demo.view import View
from corepool.errors import CorepoolError

__all__ = ["Story", "Summary"]

CALM = 0.6
"""Seconds without any start or stop after which the pool counts as settled."""
PATIENCE = 25.0
"""The longest wait for the pool to settle after an event; what is missing then is counted as lost."""
AT_ONCE = 32
"""Calls in flight."""


@attrs.frozen(slots=True, kw_only=True)
class Summary:
    """What the demo measured. ``sound`` says whether every promise held.

    jobs: admitted. moved, taken_over, lost, doubled, stale_tokens: see :class:`corepool.cli.demo.ledger.Tally`.
    wrong_digests: jobs whose last digest is not that of the file. left_over: jobs there after all were stopped, or that a
        leaving node did not hand over. errors: calls that failed, in words.
    """

    backend: str
    jobs: int
    moved: int
    taken_over: int
    lost: int
    doubled: int
    stale_tokens: int
    wrong_digests: int
    left_over: int
    errors: list[str]
    seconds: float

    @property
    def sound(self) -> bool:
        """Nothing was lost, doubled or left, and each of the three events really moved jobs."""
        bad = self.lost + self.doubled + self.stale_tokens + self.wrong_digests + self.left_over + len(self.errors)
        return bad == 0 and self.moved > 0 and self.taken_over > 0


@attrs.define(slots=True)
class Story:
    """One performance of the demo. ``client`` is a client-only node of the same pool."""

    stage: Stage
    client: Node
    ledger: Ledger
    view: View
    files: dict[str, Path]
    _admitted: set[str] = attrs.field(factory=set)
    _errors: list[str] = attrs.field(factory=list)
    _left_over: int = 0

    async def play(self) -> Summary:
        """Play it to the end and say what was measured."""
        began = time.monotonic()
        for name in ("a", "b", "c"):
            await self._join(name)
        await self._dispatch_all()
        await self._refresh_all()
        await self._somebody_joins()
        await self._somebody_crashes()
        await self._somebody_leaves()
        wrong = await self._refresh_all()
        tally = self.ledger.tally(self._admitted)  # before the stops, which end every ownership
        await self._stop_all()
        return Summary(
            backend=self.view.url,
            jobs=len(self._admitted),
            moved=tally.moved,
            taken_over=tally.taken_over,
            lost=tally.lost,
            doubled=tally.doubled,
            stale_tokens=tally.stale_tokens,
            wrong_digests=wrong,
            left_over=self._left_over,
            errors=self._errors,
            seconds=round(time.monotonic() - began, 2),
        )

    # --- scenes ---

    async def _join(self, name: str) -> None:
        self.view.node(name, "starting")
        await self.stage.join(name)
        self.view.node(name, "running")

    async def _dispatch_all(self) -> None:
        began = time.monotonic()

        async def dispatch(key: str) -> None:
            await self.client.dispatch_job(key, str(self.files[key]).encode())
            self._admitted.add(key)

        await self._each(self.files, dispatch)
        took = time.monotonic() - began
        rate = len(self._admitted) / took if took else 0.0
        self.view.say(f"{len(self._admitted)} jobs dispatched and started ({rate:,.0f}/s): {self._loads()}")

    async def _refresh_all(self) -> int:
        """Notify every job, so that it hashes its file again; how many did not come to the right digest."""
        began = time.monotonic()
        await self._each(self._admitted, lambda key: self.client.notify_worker(key, b"refresh"))
        await self._until(lambda: len(self.ledger.refreshed_since(began)) >= len(self._admitted), calm=0.0)
        digests = self.ledger.refreshed_since(began)
        wrong = 0
        for key in self._admitted:
            wrong += digests.get(key) != await asyncio.to_thread(hash_file, self.files[key])
        self.view.say(f"{len(digests)} jobs were notified and hashed their file again, {wrong} wrong")
        return wrong

    async def _somebody_joins(self) -> None:
        began = time.monotonic()
        before = self.ledger.tally(()).moved
        await self._join("d")
        await self._until(lambda: self.ledger.load().get("d", 0) > 0 and self._each_owned_once())
        moved = self.ledger.tally(()).moved - before
        self.view.say(f"node d joined: {moved} jobs moved in {self._since(began)}: {self._loads()}")

    async def _somebody_crashes(self) -> None:
        began = time.monotonic()
        held = await self.stage.crash("b")
        self.view.node("b", "crashed")
        self.view.say(f"node b crashed with {held} jobs")
        await self._until(self._each_owned_once)
        taken = self.ledger.tally(()).taken_over
        self.view.say(f"{taken} jobs taken over in {self._since(began)}: {self._loads()}")

    async def _somebody_leaves(self) -> None:
        began = time.monotonic()
        before = self.ledger.tally(()).moved
        self.view.node("c", "leaving")
        self._left_over += await self.stage.leave("c")
        self.view.node("c", "left")
        await self._until(self._each_owned_once)
        moved = self.ledger.tally(()).moved - before
        self.view.say(f"node c left: {moved} jobs handed over in {self._since(began)}: {self._loads()}")

    async def _stop_all(self) -> None:
        await self._each(self._admitted, self.client.stop_job)
        await self._until(lambda: not self.ledger.owners(), calm=0.0)
        remaining = set(await self.client.job_keys()) | set(self.ledger.owners())
        self._left_over += len(remaining)
        self.view.say(f"all jobs stopped, {len(remaining)} left")

    # --- helpers ---

    async def _each(self, keys: Iterable[str], call: Callable[[str], Awaitable[object]]) -> None:
        """Call for every key, a bounded number at once; failures are noted."""
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(key: str) -> None:
            async with gate:
                try:
                    await call(key)
                except CorepoolError as error:
                    self._errors.append(f"{key}: {type(error).__name__}: {error}")

        await asyncio.gather(*(one(key) for key in sorted(keys)))

    async def _until(self, holds: Callable[[], bool], *, calm: float = CALM) -> None:
        """Wait until the condition holds and no handler was started or stopped for ``calm`` seconds, at most PATIENCE."""
        deadline = time.monotonic() + PATIENCE
        version, since = self.ledger.version, time.monotonic()
        while time.monotonic() < deadline:
            if self.ledger.version != version:
                version, since = self.ledger.version, time.monotonic()
            if holds() and time.monotonic() - since >= calm:
                return
            await asyncio.sleep(0.05)

    def _each_owned_once(self) -> bool:
        owners = self.ledger.owners()
        return all(len(owners.get(key, ())) == 1 for key in self._admitted)

    def _loads(self) -> str:
        return ", ".join(f"{name} {count}" for name, count in sorted(self.ledger.load().items()))

    def _since(self, began: float) -> str:
        return f"{time.monotonic() - began:.1f} s"
