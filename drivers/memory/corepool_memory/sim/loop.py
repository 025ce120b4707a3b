"""An asyncio event loop whose every run is a function of its inputs.

Purpose: run ordinary asyncio code (TaskGroup, wait, timeouts, queues) in virtual time, in one order, in any process.
Invariants:

- Callbacks run first in, first out; timers of one instant in the order they were set. Time moves only when nothing is
  ready.
- Tasks and futures hash by creation number, so that sets of them (TaskGroup, ``asyncio.wait``, ``all_tasks``) iterate
  alike in every process; ``id()`` and the interpreter's task counter decide nothing.
- A callback runs only if its machine does (:mod:`~corepool_memory.sim.node`).
- Nothing comes from outside: no threads, sockets, signals; executor jobs run inline. The garbage collector runs
  at fixed step counts.
- Once closed it takes callbacks and tasks, and forgets them: the ``finally`` blocks of code that a run left behind run only
  then, and must not fail for a reason of ours.
- When nothing is ready and nothing is timed the run ends at once with an exact report; budgets end all other endless
  runs.

Neighbours: the world drives it, :mod:`~corepool_memory.sim.deadlock` reads its tasks. It knows nothing of stores or
networks.
"""

from __future__ import annotations

import asyncio
import gc
import heapq
import math
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import Any, NoReturn, TypeVar, TypeVarTuple

import attrs

from corepool_memory.sim.errors import BudgetExceeded, DeadlockError, LivelockError, SimulationUnsupported
from corepool_memory.sim.node import CURRENT, SimNode

__all__ = ["Budgets", "SimFuture", "SimLoop", "SimTask", "as_task", "describe_task", "tasks_of"]

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

_COLLECT_EVERY = 500_000
"""Steps between garbage collections: a fixed count, so that finalizers run at the same step in every process."""

_COMPACT_FROM = 1000
"""Cancelled timers are swept out of the heap once there are so many and they are the majority."""


@attrs.frozen(slots=True, kw_only=True)
class Budgets:
    """When a run is given up.

    steps: callbacks run in all.
    virtual_seconds: virtual time.
    steps_per_instant: callbacks run without time moving; more is a livelock.
    """

    steps: int = 5_000_000
    virtual_seconds: float = 30 * 86400.0
    steps_per_instant: int = 100_000


class SimFuture(asyncio.Future[_T]):
    """A future with a stable hash. ``label`` says in reports what it stands for."""

    __slots__ = ("label", "number")

    def __init__(self, *, loop: SimLoop, number: int) -> None:
        super().__init__(loop=loop)
        self.number = number
        self.label = ""

    def __hash__(self) -> int:
        return self.number


class SimTask(asyncio.Task[_T]):
    """A task with a stable hash that knows its machine."""

    __slots__ = ("node", "number")

    def __init__(
        self,
        coro: Generator[Any, None, _T] | Coroutine[Any, Any, _T],
        *,
        loop: SimLoop,
        number: int,
        name: str | None,
        context: Context | None,
    ) -> None:
        # Before the base class: it registers the task in a set, which asks for the hash. Python 3.11 cannot tell a task's
        # context later, so the machine is taken down here.
        self.number = number
        self.node: SimNode | None = CURRENT.get() if context is None else context.get(CURRENT)
        super().__init__(coro, loop=loop, name=name if name is not None else f"task-{number}", context=context)

    def __hash__(self) -> int:
        return self.number


class SimLoop(asyncio.BaseEventLoop):
    """The loop. ``steps`` and ``now`` (true virtual time, from 0) are public to read.

    on_stuck: builds the report when nothing can ever run again.
    on_problem: receives what would go to the loop's exception handler (unretrieved exceptions, failing callbacks).
    pick: opt-in reordering: given how many callbacks are ready, the index of the one to run. It finds orders that a
        real loop cannot produce, so it is for code that must not depend on asyncio's own order.
    after_step: called after every callback.
    """

    _ready: deque[Any]  # asyncio's own, of handles whose insides (_cancelled, _context, _run) are not public
    _stopping: bool

    def __init__(self, budgets: Budgets | None = None) -> None:
        super().__init__()
        self.budgets = budgets if budgets is not None else Budgets()
        self.now = 0.0
        self.steps = 0
        self.on_stuck: Callable[[], str] = lambda: "nothing is ready and nothing is timed"
        self.on_problem: Callable[[str], None] | None = None
        self.pick: Callable[[int], int] | None = None
        self.after_step: Callable[[], None] | None = None
        self._numbers = 0
        self._timer_order = 0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._cancelled_timers = 0
        self._instant_began = 0
        self._owner_thread = threading.get_ident()
        self._gc_was_on = False

    # --- time and timers -------------------------------------------------------------------------------------------

    def time(self) -> float:
        """The monotonic clock of the machine that asks; true virtual time outside any machine."""
        node = CURRENT.get()
        return self.now if node is None else node.local_time(self.now)

    def call_at(
        self, when: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        if math.isnan(when):
            raise ValueError("a timer cannot be set for NaN")
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        node: SimNode | None = timer._context.get(CURRENT)  # type: ignore[attr-defined]  # public only from Python 3.12 on
        if self.is_closed():
            return timer
        due = when if node is None else self._true_instant(node, when)
        timer._scheduled = True  # type: ignore[attr-defined]
        self._timer_order += 1
        heapq.heappush(self._timers, (due, self._timer_order, timer))
        return timer

    def at_true_time(
        self, due: float, callback: Callable[..., object], *args: Any, context: Context
    ) -> asyncio.TimerHandle:
        """`call_at` by true time, whatever the clock of the context's machine shows: for the world itself."""
        timer = asyncio.TimerHandle(due, callback, args, self, context)
        if self.is_closed():
            return timer
        timer._scheduled = True  # type: ignore[attr-defined]
        self._timer_order += 1
        heapq.heappush(self._timers, (due, self._timer_order, timer))
        return timer

    def call_later(
        self, delay: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        node = CURRENT.get() if context is None else context.get(CURRENT)
        now = self.now if node is None else node.local_time(self.now)
        return self.call_at(now + delay, callback, *args, context=context)

    def _true_instant(self, node: SimNode, when: float) -> float:
        """The first true instant at which the machine's clock shows at least ``when``: rounding down here would let a
        loop that sleeps until a deadline wake up just before it, for ever."""
        due = node.true_time(when)
        while node.local_time(due) < when:
            due = math.nextafter(due, math.inf)
        return due

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """asyncio's hook: a timer was cancelled. Sweep the heap when most of it is."""
        if not handle._scheduled:  # type: ignore[attr-defined]
            return
        self._cancelled_timers += 1
        if self._cancelled_timers > _COMPACT_FROM and self._cancelled_timers * 2 > len(self._timers):
            self._timers = [entry for entry in self._timers if not entry[2].cancelled()]
            heapq.heapify(self._timers)
            self._cancelled_timers = 0

    # --- callbacks -------------------------------------------------------------------------------------------------

    def call_soon(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        if not self.is_closed():
            self._ready.append(handle)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.Handle:
        if threading.get_ident() != self._owner_thread:
            self._refuse("a call from another thread")
        return self.call_soon(callback, *args, context=context)

    def unpark(self, handles: list[asyncio.Handle]) -> None:
        """Queue what a resumed machine had parked."""
        self._ready.extend(handles)

    def create_future(self) -> SimFuture[Any]:
        self._numbers += 1
        return SimFuture(loop=self, number=self._numbers)

    def create_task(
        self,
        coro: Generator[Any, None, _T] | Coroutine[Any, Any, _T],
        *,
        name: object = None,
        context: Context | None = None,
        **_kwargs: Any,
    ) -> SimTask[_T]:
        """A task. ``eager_start`` and task factories are ignored: they would run code outside the loop's own order."""
        self._numbers += 1
        task = SimTask(coro, loop=self, number=self._numbers, name=None if name is None else str(name), context=context)
        if self.is_closed():
            # It will never run. An error here would end a ``gather`` between its coroutines, and whatever keeps that error
            # alive would keep those that come after, until they complain in the midst of something else.
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            coro.close()
        return task

    # --- running ---------------------------------------------------------------------------------------------------

    def run_forever(self) -> None:
        self._owner_thread = threading.get_ident()
        self._gc_was_on = gc.isenabled()
        gc.disable()
        try:
            super().run_forever()
        finally:
            if self._gc_was_on:
                gc.enable()

    def _run_once(self) -> None:
        ready = self._ready
        budgets = self.budgets
        stop_at = min(budgets.steps, self._instant_began + budgets.steps_per_instant)
        while not self._stopping:
            if not ready:
                self._advance()
                stop_at = min(budgets.steps, self._instant_began + budgets.steps_per_instant)
                continue
            if self.pick is not None and len(ready) > 1:
                index = self.pick(len(ready))
                handle = ready[index]
                del ready[index]
            else:
                handle = ready.popleft()
            if handle._cancelled:
                continue
            node: SimNode | None = handle._context.get(CURRENT)
            if node is not None and not node.running:
                node.shelve(handle)
                continue
            if self.steps >= stop_at:
                self._over_budget()
            self.steps += 1
            handle._run()
            if self.after_step is not None:
                self.after_step()
            if not self.steps % _COLLECT_EVERY:
                gc.collect()

    def _advance(self) -> None:
        """Move time to the next timer of a machine that still exists."""
        timers = self._timers
        while timers:
            due, _, timer = timers[0]
            if timer.cancelled():
                heapq.heappop(timers)
                self._cancelled_timers -= 1
                continue
            node = timer._context.get(CURRENT)  # type: ignore[attr-defined]
            if node is not None and not node.alive:
                heapq.heappop(timers)
                node.shelve(timer)
                continue
            break
        else:
            raise DeadlockError(self.on_stuck())
        if due > self.budgets.virtual_seconds:
            raise BudgetExceeded(
                f"the run would go past its budget of {self.budgets.virtual_seconds:g} virtual seconds "
                f"({self.steps} steps made)"
            )
        if due > self.now:
            self.now = due
            self._instant_began = self.steps
        ready = self._ready
        while timers and timers[0][0] <= self.now:
            timer = heapq.heappop(timers)[2]
            if timer.cancelled():
                self._cancelled_timers -= 1
            else:
                timer._scheduled = False  # type: ignore[attr-defined]
                ready.append(timer)

    def close(self) -> None:
        """Forget everything that was to run, and everybody who was to be told."""
        super().close()
        self._timers.clear()
        self._cancelled_timers = 0
        self.on_stuck = str
        self.on_problem = self.pick = self.after_step = None

    def _over_budget(self) -> NoReturn:
        if self.steps >= self.budgets.steps:
            raise BudgetExceeded(
                f"the run took its budget of {self.budgets.steps} steps, at {self.now:.6f} virtual seconds"
            )
        raise LivelockError(
            f"{self.budgets.steps_per_instant} steps were made at the instant {self.now:.6f} without time moving: "
            f"something spins without waiting for anything\n{self.on_stuck()}"
        )

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Hand the problem on; nothing is logged, the verdict reports it."""
        if self.on_problem is None:
            return
        source: SimTask[Any] | None = None
        for role in ("task", "future"):
            source = as_task(context.get(role)) or source
        if source is not None and source.node is not None and not source.node.alive:
            return
        error = context.get("exception")
        who = f" in {describe_task(source)}" if source is not None else ""
        what = f": {type(error).__name__}: {error}" if isinstance(error, BaseException) else ""
        message = str(context.get("message", "a problem")).replace("SimTask", "Task").replace("SimFuture", "Future")
        self.on_problem(f"{message}{who}{what}")

    # --- what does not exist here ----------------------------------------------------------------------------------

    def run_in_executor(self, executor: Any, func: Callable[..., _T], *args: Any) -> asyncio.Future[_T]:  # type: ignore[override]
        """Run the job inline, as one step of its own."""
        future: asyncio.Future[_T] = self.create_future()

        def job() -> None:
            if future.cancelled():
                return
            try:
                result = func(*args)
            except Exception as error:  # noqa: BLE001  whatever the job raises belongs to the one who awaits it
                future.set_exception(error)
            else:
                future.set_result(result)

        self.call_soon(job)
        return future

    def _refuse(self, what: str, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise SimulationUnsupported(
            f"{what} is refused in a simulation: its timing would not be a function of the seed"
        )

    def _write_to_self(self) -> None:
        """There is no selector to wake up."""

    def _process_events(self, event_list: Any) -> None:
        """There are no I/O events."""

    def add_signal_handler(self, *_args: Any) -> NoReturn:  # type: ignore[override]
        self._refuse("a signal handler")

    def add_reader(self, *_args: Any) -> NoReturn:  # type: ignore[override]
        self._refuse("watching a file descriptor")

    def add_writer(self, *_args: Any) -> NoReturn:  # type: ignore[override]
        self._refuse("watching a file descriptor")

    async def getaddrinfo(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        self._refuse("a name look-up")

    async def create_connection(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        self._refuse("a socket")

    async def create_server(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        self._refuse("a socket")

    async def create_datagram_endpoint(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        self._refuse("a socket")

    async def subprocess_exec(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        self._refuse("a subprocess")

    async def subprocess_shell(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        self._refuse("a subprocess")


def as_task(thing: object) -> SimTask[Any] | None:
    """``thing`` if it is a task of a simulated loop."""
    if not isinstance(thing, SimTask):
        return None
    task: SimTask[Any] = thing  # pyright: ignore[reportUnknownVariableType]  of what it returns nothing is known
    return task


def describe_task(task: SimTask[Any]) -> str:
    """A task's name and machine, without anything that differs between processes."""
    where = f" on {task.node.label}" if task.node is not None else ""
    return f"task {task.get_name()!r}{where}"


def tasks_of(loop: SimLoop, node: SimNode | None = None) -> list[SimTask[Any]]:
    """The unfinished tasks in creation order: all, or those of one machine."""
    tasks = [task for entry in asyncio.all_tasks(loop) if (task := as_task(entry)) is not None]
    return sorted((task for task in tasks if node is None or task.node is node), key=lambda task: task.number)
