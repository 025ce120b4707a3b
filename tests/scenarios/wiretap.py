"""A tap on the wires between simulated machines and the store.

Purpose: force exactly the interleaving that a scenario is named for. The tap reads every request before it is sent, and a
hook may act at three moments: before it is sent (on the machine), when the store has applied it (on the store, at that very
instant), after its answer came (on the machine). What a feed pushes to a machine can be held back, and a request can be
stranded on a connection that breaks under it.
Invariants: without a hook nothing changes, not even the order of messages; a held request was not sent, so cancelling its
caller means that it never was; what is held back of a feed arrives in its order; what is stranded never arrives once its
machine has settled.
Neighbours: stands between `MemoryBackend` and the simulated transport of a machine, by way of `World.backend`, so that the
driver's own code runs on both sides. `tests.budgets` counts with it.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeAlias, TypeVar

import attrs

from corepool.driver import Append, CommitResult, DeleteKey, GetKey, Op, SetKey
from corepool.errors import OutcomeUnknown, WireError
from corepool.pool.wire import JobRecord, JobState, decode
from corepool.testing import Cluster
from corepool_memory.backend import MemoryBackend
from corepool_memory.options import MemoryOptions
from corepool_memory.sim.node import SimNode
from corepool_memory.transport import Attach, Detach, Push, Transport

__all__ = [
    "Gate",
    "Hook",
    "Request",
    "Stray",
    "Wiretap",
    "appends",
    "both",
    "cleanup_lock",
    "from_",
    "reads_job",
    "removes_job",
    "renews",
    "writes_job",
    "writes_payload",
]

T = TypeVar("T")


@attrs.frozen(slots=True, eq=False)
class Request:
    """A request on its way to the store.

    machine: whose, by name. task: the name of the task that sends it. what: the driver's name for it.
    ops: what it does, as operations of a commit, where there is such an operation.
    methods: what it calls on the store, otherwise: (method, arguments).
    """

    machine: str
    task: str
    what: str
    ops: tuple[Op, ...]
    methods: tuple[tuple[str, tuple[Any, ...]], ...]

    def sets(self, prefix: str) -> Iterator[SetKey]:
        """Its writes to maps whose name begins so."""
        return (op for op in self.ops if isinstance(op, SetKey) and op.map.startswith(prefix))

    def deletes(self, prefix: str) -> Iterator[DeleteKey]:
        return (op for op in self.ops if isinstance(op, DeleteKey) and op.map.startswith(prefix))

    def calls(self, method: str, prefix: str = "") -> bool:
        """Whether it calls a method of the store on a map or stream whose name begins so."""
        return any(name == method and str(arguments[0]).startswith(prefix) for name, arguments in self.methods)


Match: TypeAlias = Callable[[Request], bool]
Action: TypeAlias = Callable[[Request], Awaitable[object] | object]


# --- which requests --------------------------------------------------------------------------------------------------


def writes_job(state: JobState, key: str | None = None, *, worker: str | None = None) -> Match:
    """A record becomes ``state``."""

    def match(request: Request) -> bool:
        for op in request.sets("jobs."):
            try:
                record = decode(op.value, JobRecord)
            except WireError:
                continue
            if record.state is state and key in (None, op.key) and worker in (None, record.worker):
                return True
        return False

    return match


def reads_job(key: str) -> Match:
    """A record is looked at."""
    return lambda request: any(
        isinstance(op, GetKey) and op.map.startswith("jobs.") and op.key == key for op in request.ops
    )


def removes_job(key: str | None = None) -> Match:
    """A record goes."""
    return lambda request: any(key in (None, op.key) for op in request.deletes("jobs."))


def writes_payload() -> Match:
    """A payload is written."""
    return lambda request: any(request.sets("job_payloads."))


def renews(*kinds: str) -> Match:
    """Keep-alives of these kinds of member are written: ``node``, ``worker``; both, unless told."""
    maps = [f"{kind}_keep_alive." for kind in kinds or ("node", "worker")]
    return lambda request: any(request.calls("apply", name) or any(request.sets(name)) for name in maps)


def cleanup_lock(member: str | None = None) -> Match:
    """A cleanup lock is written: taken, taken over, or renewed."""
    return lambda request: any(member in (None, op.key) for op in request.sets("worker_cleanup."))


def appends(event: str) -> Match:
    """An event of this name goes to a stream."""
    return lambda request: any(isinstance(op, Append) and op.event.name == event for op in request.ops)


def from_(*machines: str) -> Match:
    """A request of one of these machines."""
    return lambda request: request.machine in machines


def both(*matches: Match) -> Match:
    return lambda request: all(match(request) for match in matches)


# --- hooks -----------------------------------------------------------------------------------------------------------


@attrs.define(slots=True, eq=False)
class Hook:
    """What is done at requests that match. times: how often it still will be. hits: how often it was."""

    match: Match
    action: Action
    times: int
    hits: int = 0

    def takes(self, request: Request) -> bool:
        if self.times <= 0 or not self.match(request):
            return False
        self.times -= 1
        self.hits += 1
        return True


class Gate:
    """Holds back requests until it is opened. ``waiting``: those it holds now, in order; ``seen``: all it ever held."""

    def __init__(self) -> None:
        self.waiting: list[Request] = []
        self.seen: list[Request] = []
        self._news = asyncio.Event()
        self._open = asyncio.Event()

    async def pass_through(self, request: Request) -> None:
        self.waiting.append(request)
        self.seen.append(request)
        self._news.set()
        try:
            await self._open.wait()
        finally:
            self.waiting.remove(request)

    async def reached(self, count: int = 1) -> None:
        """Return when so many requests were held."""
        while len(self.seen) < count:
            self._news.clear()
            await self._news.wait()

    def open(self) -> None:
        """Let through what is held, and all that comes."""
        self._open.set()


class Stray:
    """A request that a broken connection still carries, and whose caller was told that nobody knows (`OutcomeUnknown`); or, if
    it is silent, was told nothing, and waits until it is cancelled."""

    def __init__(self, match: Match, *, silent: bool = False) -> None:
        self._match = match
        self.silent = silent
        self._apply: Callable[[], None] | None = None
        self.request: Request | None = None
        self.fenced = False
        """Its machine has settled since: the store takes it no more."""

    def takes(self, request: Request, apply: Callable[[], None]) -> bool:
        if self.request is not None or not self._match(request):
            return False
        self.request, self._apply = request, apply
        return True

    def settled(self, machine: str) -> None:
        self.fenced = self.fenced or (self.request is not None and self.request.machine == machine)

    def arrive(self) -> None:
        """It gets to the store now, which applies it if it still takes it."""
        assert self._apply is not None, "nothing was stranded"
        if not self.fenced:
            self._apply()


class HeldFeed:
    """What is pushed over some feeds, held back until it is released."""

    def __init__(self, match: Callable[[str, str], bool]) -> None:
        self.match = match
        self.held: deque[tuple[Any, Callable[[], None]]] = deque()
        self.passed = False

    def release(self, count: int | None = None) -> None:
        """Let the oldest ``count`` messages arrive; None: all, and hold no more."""
        if count is None:
            self.passed = True
            count = len(self.held)
        for _ in range(min(count, len(self.held))):
            self.held.popleft()[1]()


class Wiretap:
    """Taps every connection that machines of this cluster make from now on. Make it before the first machine.

    Without a cluster: tap transports one by one, with `tapped`.
    """

    def __init__(self, cluster: Cluster | None = None) -> None:
        self._before: list[Hook] = []
        self._applied: list[Hook] = []
        self._after: list[Hook] = []
        self._feeds: list[HeldFeed] = []
        self._strays: list[Stray] = []
        self._world = None if cluster is None else cluster.world
        self.on_request: list[Callable[[Request], None]] = []
        """Told of every request when it is sent."""
        self.on_delivery: list[Callable[[str, str], None]] = []
        """Told of every message that a feed pushes: machine, feed."""
        if cluster is not None:
            self._install(cluster)

    def _install(self, cluster: Cluster) -> None:
        make = cluster.world.backend

        def tapped(node: SimNode, options: MemoryOptions | None = None) -> MemoryBackend:
            inner = make(node, options)._transport  # there is no public way between the two
            return MemoryBackend(self.tapped(inner, node.name), options=options or MemoryOptions())

        cluster.world.backend = tapped  # type: ignore[method-assign]

    def tapped(self, transport: Transport, machine: str) -> Transport:
        """The transport of a machine, with the tap on it."""
        return _Tapped(transport, self, machine)

    # --- hooking ------------------------------------------------------------------------------------------------------

    def before(self, match: Match, action: Action, *, times: int = 1) -> Hook:
        """Act on the machine before a request is sent; what ``action`` raises is raised at its caller."""
        return _added(self._before, match, action, times)

    def applied(self, match: Match, action: Action, *, times: int = 1) -> Hook:
        """Act at the instant at which the store has applied a request; ``action`` is a plain function."""
        return _added(self._applied, match, action, times)

    def after(self, match: Match, action: Action, *, times: int = 1) -> Hook:
        """Act on the machine after the answer came; what ``action`` raises is raised at the caller."""
        return _added(self._after, match, action, times)

    def hold(self, match: Match, *, times: int = 1_000_000) -> Gate:
        """Hold requests back before they are sent."""
        gate = Gate()
        self.before(match, gate.pass_through, times=times)
        return gate

    def hold_answer(self, match: Match, *, times: int = 1_000_000) -> Gate:
        """Let requests be applied, and hold back their answers."""
        gate = Gate()
        self.after(match, gate.pass_through, times=times)
        return gate

    def hold_feed(self, machine: str, prefix: str) -> HeldFeed:
        """Hold back what feeds of a machine push whose name begins so: ``watch workers``, ``sink owner of worker:``."""
        held = HeldFeed(lambda name, what: name == machine and what.startswith(prefix))
        self._feeds.append(held)
        return held

    def strand(self, match: Match, *, silent: bool = False) -> Stray:
        """Lose the first write that matches, as if the connection broke under it, and nothing else: it may arrive later."""
        stray = Stray(match, silent=silent)
        self._strays.append(stray)
        return stray

    # --- the wire -----------------------------------------------------------------------------------------------------

    async def send(self, inner: Transport, machine: str, what: str, request: Callable[[Any], T], write: bool) -> T:
        sent = self._read(machine, what, request)
        for hook in list(self._before):
            if hook.takes(sent):
                await _done(hook.action(sent))
        for told in self.on_request:
            told(sent)
        for stray in self._strays:
            if stray.takes(sent, lambda: self._run_late(machine, what, request)):
                if stray.silent:
                    await asyncio.Event().wait()
                raise OutcomeUnknown(f"{what}: the connection broke; it may have been applied, or may still be")

        def run(server: Any) -> T:
            result = request(server)
            for hook in list(self._applied):
                if hook.takes(sent):
                    hook.action(sent)
            return result

        result = await inner.call(what, run, write=write)
        for hook in list(self._after):
            if hook.takes(sent):
                await _done(hook.action(sent))
        return result

    def _run_late(self, machine: str, what: str, request: Callable[[Any], object]) -> None:
        """Straight on the store: the machine that sent it may be gone."""
        assert self._world is not None, "only what was sent in a cluster can be stranded"
        request(self._world.server)
        self._world.network.on_request(machine, what, None)

    def settled(self, machine: str) -> None:
        """Nothing that this machine sent before can be applied any more."""
        for stray in self._strays:
            stray.settled(machine)

    def _read(self, machine: str, what: str, request: Callable[[Any], object]) -> Request:
        spy = _Spy()
        request(spy)
        task = asyncio.current_task()
        return Request(machine, "" if task is None else task.get_name(), what, tuple(spy.ops), tuple(spy.methods))

    def receive(self, machine: str, what: str, receive: Push[Any]) -> Push[Any]:
        """What a feed's messages are given to instead."""

        def arrive(message: Any) -> None:
            for told in self.on_delivery:
                told(machine, what)
            for feed in self._feeds:
                if not feed.passed and feed.match(machine, what):
                    feed.held.append((message, lambda: receive(message)))
                    return
            receive(message)

        return arrive


def _added(hooks: list[Hook], match: Match, action: Action, times: int) -> Hook:
    hook = Hook(match, action, times)
    hooks.append(hook)
    return hook


async def _done(outcome: Awaitable[object] | object) -> None:
    if inspect.isawaitable(outcome):
        await outcome


class _Tapped:
    """A machine's transport with a tap on it."""

    def __init__(self, inner: Transport, tap: Wiretap, machine: str) -> None:
        self._inner = inner
        self._tap = tap
        self._machine = machine

    @property
    def clock(self) -> Any:
        return self._inner.clock

    @property
    def random(self) -> Any:
        return self._inner.random

    async def call(self, what: str, request: Callable[[Any], T], *, write: bool) -> T:
        return await self._tap.send(self._inner, self._machine, what, request, write)

    def send(self, what: str, request: Callable[[Any], None]) -> None:
        self._inner.send(what, request)

    def listen(self, what: str, attach: Attach[T], receive: Push[T], lost: Callable[[], None]) -> Detach:
        return self._inner.listen(what, attach, self._tap.receive(self._machine, what, receive), lost)

    async def settle(self) -> None:
        await self._inner.settle()
        self._tap.settled(self._machine)

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Spy:
    """Stands in for the server while a request is read: notes what it would do, and does nothing."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.methods: list[tuple[str, tuple[Any, ...]]] = []

    def commit(self, namespace: str, ops: tuple[Op, ...], earlier: object = ()) -> CommitResult:
        self.ops.extend(ops)
        return CommitResult(())

    def maps(self, namespace: str) -> Any:
        return _SpySpace(self)

    def streams(self, namespace: str) -> Any:
        return _SpySpace(self)


class _SpySpace:
    def __init__(self, spy: _Spy) -> None:
        self._spy = spy

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def note(*arguments: Any) -> None:
            match method:
                case "get":
                    self._spy.ops.append(GetKey(*arguments))
                case "set":
                    self._spy.ops.append(SetKey(*arguments))
                case "delete":
                    self._spy.ops.append(DeleteKey(*arguments))
                case "append":
                    self._spy.ops.append(Append(arguments[0], arguments[1]))
                case _:
                    self._spy.methods.append((method, arguments))

        return note
