"""A schedule: a producer's plan, asked for by one node at a time and carried out by the pool.

Purpose: keep the set of jobs in step with something outside (a table, a folder, a queue) without a leader.
Invariants: each plan is asked for on exactly one node (`Ticker`); starting what runs already and stopping what is gone are
not errors; a producer that raises is logged and asked again at the next tick; `ScheduleStop` ends it on every node.
Neighbours: `Node.schedule` makes it; ``dispatch`` carries the plan out.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import attrs

from corepool.errors import CorepoolError, InvalidOptionError, JobExistsError, JobNotFoundError, ScheduleStop
from corepool.pool.context import NodeContext
from corepool.pool.dispatch import JobCalls
from corepool.pool.ticker import Ticker

__all__ = ["JobPlan", "Producer", "Schedule"]

_AT_A_TIME = 32


@attrs.frozen(slots=True, kw_only=True)
class JobPlan:
    """What a producer wants.

    start: payload by key; keys that have a job already stay as they are.
    stop: keys whose jobs are to be stopped.
    stop_all: stop every job of the pool that ``start`` does not name.
    """

    start: Mapping[str, bytes] = attrs.field(factory=dict[str, bytes])
    stop: Sequence[str] = ()
    stop_all: bool = False


class Producer(Protocol):
    """Makes plans. ``name`` is the schedule's, the same on all nodes; ``plan`` may be async or a plain function."""

    @property
    def name(self) -> str: ...

    def plan(self) -> Any:
        """A `JobPlan`. Raise `corepool.ScheduleStop` to end the schedule everywhere."""
        ...


class Schedule:
    """A running schedule on one node."""

    def __init__(self, context: NodeContext, calls: JobCalls, producer: Producer, interval: float) -> None:
        name = getattr(producer, "name", None)
        if not isinstance(name, str) or not name or not callable(getattr(producer, "plan", None)):
            raise InvalidOptionError(f"a producer has a name (text) and a method plan(); {producer!r} has not")
        self.name = name
        self.plans = 0
        self._context = context
        self._calls = calls
        self._producer = producer
        self._ticker = Ticker(context, f"schedule:{name}", interval)
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Ask for plans from now on."""
        self._task = self._context.supervisor.spawn(f"schedule {self.name!r}", self._run())

    async def stop(self) -> None:
        """End this node's share; other nodes go on."""
        self._ticker.stop()
        if self._task is not None:
            await self._context.supervisor.cancel(self._task)

    @property
    def running(self) -> bool:
        return self._task is not None and not self._task.done()

    async def _run(self) -> None:
        async with self._ticker:
            await self._follow()

    async def _follow(self) -> None:
        async for _ in self._ticker:
            try:
                plan = self._producer.plan()
                if inspect.isawaitable(plan):
                    plan = await plan
                await self._carry_out(plan)
                self.plans += 1
            except ScheduleStop:
                await self._context.supervisor.persist(
                    f"end of schedule {self.name!r}", self._ticker.stop_everywhere, lambda: False
                )
                return
            except Exception:  # the producer's own error, or a job's: logged; the next tick tries again
                self._context.log.exception("schedule %r: the plan failed", self.name)

    async def _carry_out(self, plan: Any) -> None:
        if not isinstance(plan, JobPlan):
            raise TypeError(f"plan() returns a corepool.JobPlan, not {plan!r}")
        stop = list(dict.fromkeys(plan.stop))
        if plan.stop_all:
            context = self._context
            stop = sorted([e.key async for e in context.store.jobs_map.scan() if e.key not in plan.start])
        await self._each(stop, self._stop)
        payloads = plan.start

        async def start(key: str) -> None:
            await self._start(key, payloads[key])

        await self._each(list(payloads), start)

    async def _each(self, keys: list[str], act: Callable[[str], Awaitable[None]]) -> None:
        for start in range(0, len(keys), _AT_A_TIME):
            await asyncio.gather(*(act(key) for key in keys[start : start + _AT_A_TIME]))

    async def _start(self, key: str, payload: bytes) -> None:
        try:
            await self._calls.dispatch(key, payload, self._context.options.call_timeout)
        except JobExistsError:
            return
        except CorepoolError as error:
            self._context.log.warning("schedule %r: cannot start %r: %s", self.name, key, error)

    async def _stop(self, key: str) -> None:
        try:
            await self._calls.stop(key)
        except JobNotFoundError:
            return
        except CorepoolError as error:
            self._context.log.warning("schedule %r: cannot stop %r: %s", self.name, key, error)
