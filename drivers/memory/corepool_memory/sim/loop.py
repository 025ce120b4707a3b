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

# A loop runs its handles: their insides are its own.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import gc
import heapq
import math
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, copy_context
from typing import Any, NoReturn, TypeVar, TypeVarTuple

import attrs

from corepool_memory.sim.errors import BudgetExceeded, DeadlockError, LivelockError, SimulationUnsupported
from corepool_memory.sim.node import CURRENT, SimNode

__all__ = ["Budgets", "SimFuture", "SimHandle", "SimLoop", "SimTask", "as_task", "describe_task", "tasks_of"]

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


def _nothing() -> None:
    """What a cancelled callback would do."""


class SimHandle(asyncio.TimerHandle):
    """A callback, to run soon or at a time, that knows its machine.

    It does without asyncio's own initialization and debugging aids: most of what a run makes are handles.
    """

    __slots__ = ("node",)

    # Set here once, instead of in every handle.
    _repr = None
    _source_traceback = None

    def __init__(
        self, callback: Callable[..., object], args: tuple[Any, ...], loop: SimLoop, context: Context, when: float = 0.0
    ) -> None:
        self._callback = callback
        self._args = args
        self._loop = loop
        self._context = context
        self._when = when
        self._cancelled = False
        self._scheduled = False
        self.node: SimNode | None = context.get(CURRENT)

    def cancel(self) -> None:
        if not self._cancelled:
            self._cancelled = True
            self._callback, self._args = _nothing, ()  # whoever keeps a cancelled timer must not keep what it would do
            if self._scheduled:
                self._loop._timer_handle_cancelled(self)


class SimFuture(asyncio.Future[_T]):
    """A future with a stable hash. ``label`` says in reports what it stands for."""

    __slots__ = ("label", "number")

    label: str
    number: int

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

    _ready: deque[SimHandle]  # asyncio's own; all it holds comes from here
    _stopping: bool
    _closed: bool

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
        self._timers: list[tuple[float, int, SimHandle]] = []
        self._cancelled_timers = 0
        self._instant_began = 0
        self._collect_at = _COLLECT_EVERY
        self._owner_thread = threading.get_ident()
        self._gc_was_on = False
        self.buried: list[SimTask[Any]] = []
        """The tasks of crashed machines: they never run again, and are closed when the run is over."""

    # --- time and timers -------------------------------------------------------------------------------------------

    def time(self) -> float:
        """The monotonic clock of the machine that asks; true virtual time outside any machine."""
        node = CURRENT.get()
        return self.now if node is None else node.local_time(self.now)

    def call_at(
        self, when: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> SimHandle:
        if math.isnan(when):
            raise ValueError("a timer cannot be set for NaN")
        if context is None:
            context = copy_context()
        node = context.get(CURRENT)
        timer = SimHandle(callback, args, self, context, when)
        self.set_timer(timer, when if node is None else self._true_instant(node, when))
        return timer

    def at_true_time(self, due: float, callback: Callable[..., object], *args: Any, context: Context) -> SimHandle:
        """`call_at` by true time, whatever the clock of the context's machine shows: for the world itself."""
        timer = SimHandle(callback, args, self, context, due)
        self.set_timer(timer, due)
        return timer

    def set_timer(self, timer: SimHandle, due: float) -> None:
        """`at_true_time` for a handle that is made already."""
        if not self._closed:
            timer._scheduled = True
            self._timer_order = order = self._timer_order + 1
            heapq.heappush(self._timers, (due, order, timer))

    def call_later(
        self, delay: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> SimHandle:
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
        self._cancelled_timers += 1
        if self._cancelled_timers > _COMPACT_FROM and self._cancelled_timers * 2 > len(self._timers):
            self._timers = [entry for entry in self._timers if not entry[2].cancelled()]
            heapq.heapify(self._timers)
            self._cancelled_timers = 0

    # --- callbacks -------------------------------------------------------------------------------------------------

    def call_soon(self, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None) -> SimHandle:
        handle = SimHandle(callback, args, self, copy_context() if context is None else context)
        if not self._closed:
            self._ready.append(handle)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> SimHandle:
        if threading.get_ident() != self._owner_thread:
            self._refuse("a call from another thread")
        return self.call_soon(callback, *args, context=context)

    def unpark(self, handles: list[SimHandle]) -> None:
        """Queue what a resumed machine had parked."""
        self._ready.extend(handles)

    def get_debug(self) -> bool:
        """Never; every future asks."""
        return False

    def create_future(self) -> SimFuture[Any]:
        future: SimFuture[Any] = SimFuture(loop=self)
        self._numbers += 1
        future.number = self._numbers
        future.label = ""
        return future

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

    def bury(self, node: SimNode) -> list[SimTask[Any]]:
        """The unfinished tasks of a machine that crashes. asyncio forgets them: nobody need look through them again."""
        tasks = tasks_of(self, node)
        for task in tasks:
            asyncio._unregister_task(task)
        self.buried += tasks
        return tasks

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
        look_at = 0
        while not self._stopping:
            if not ready:
                self._advance()
            if self.pick is not None and len(ready) > 1:
                index = self.pick(len(ready))
                handle = ready[index]
                del ready[index]
            else:
                handle = ready.popleft()
            if handle._cancelled:
                continue
            node = handle.node
            if node is not None and not node.running:
                node.shelve(handle)
                continue
            if self.steps >= look_at:
                look_at = self._look()
            self.steps += 1
            try:
                handle._context.run(handle._callback, *handle._args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:  # noqa: BLE001  as asyncio does: nobody else can be told
                self._failed(handle, error)
            if self.after_step is not None:
                self.after_step()

    def _look(self) -> int:
        """What need not be looked at in each step; returns the step before which to look again (time only moves on)."""
        if self.steps >= self.budgets.steps or self.steps - self._instant_began >= self.budgets.steps_per_instant:
            self._over_budget()
        if self.steps >= self._collect_at:
            self._collect_at += _COLLECT_EVERY
            gc.collect()
        return min(self.budgets.steps, self._instant_began + self.budgets.steps_per_instant, self._collect_at)

    def _advance(self) -> None:
        """Move time to the next timer of a machine that still exists."""
        timers, ready = self._timers, self._ready
        while True:
            if not timers:
                raise DeadlockError(self.on_stuck())
            due, _, timer = heapq.heappop(timers)
            if timer._cancelled:
                self._cancelled_timers -= 1
            elif timer.node is not None and not timer.node.alive:
                timer.node.shelve(timer)
            else:
                break
        if due > self.budgets.virtual_seconds:
            raise BudgetExceeded(
                f"the run would go past its budget of {self.budgets.virtual_seconds:g} virtual seconds "
                f"({self.steps} steps made)"
            )
        if due > self.now:
            self.now = due
            self._instant_began = self.steps
        timer._scheduled = False
        ready.append(timer)
        while timers and timers[0][0] <= self.now:
            timer = heapq.heappop(timers)[2]
            if timer._cancelled:
                self._cancelled_timers -= 1
            else:
                timer._scheduled = False
                ready.append(timer)

    def _failed(self, handle: SimHandle, error: BaseException) -> None:
        """A callback raised."""
        what = getattr(handle._callback, "__qualname__", repr(handle._callback))
        self.call_exception_handler({"message": f"Exception in callback {what}", "exception": error, "handle": handle})

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
