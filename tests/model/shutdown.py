"""Shutdown against dispatch and add_worker (R6).

Purpose: one caller of shutdown, one dispatcher, one active worker A, one worker B that is just being added. Shutdown
sets the flag, destroys the inboxes, *then* scans and stops what is left. A dispatcher whose append finds no inbox
withdraws; add_worker reads the flag again after writing record and inbox and before ACTIVE, and undoes itself. Only an
ACTIVE worker is sent jobs, and takes any.
Invariants: at rest after a shutdown nothing is left: no job, no worker, no inbox. What a crash leaves behind belongs to
the old incarnation, whose names nobody uses again; crashes are therefore not modelled here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tests.model.explore import Model, Step

NO_JOB = "11. no job is left behind a shutdown"
NO_WORKER = "11. no worker or inbox is left behind a shutdown"
RETURNS = "9. every call returns"

PENDING, RUNNING = "PENDING", "RUNNING"


class Pool(NamedTuple):
    flag: bool = False
    record: str = ""
    target: int = 0
    workers: tuple[bool, bool] = (True, False)
    """Whether A and B are listed in ``workers``."""
    inboxes: tuple[bool, bool] = (True, False)
    bells: tuple[bool, bool] = (False, False)
    dispatcher: str = "idle"
    joiner: str = "idle"
    shutter: str = "idle"
    doomed: tuple[int, ...] = ()
    """Inboxes that shutdown still has to destroy: those of the workers that were listed when it looked."""


def _set(pair: tuple[bool, bool], index: int, value: bool) -> tuple[bool, bool]:
    return (value, pair[1]) if index == 0 else (pair[0], value)


class ShutdownModel(Model[Pool]):
    name = "shutdown"

    def initial(self) -> Iterable[Pool]:
        yield Pool()

    def steps(self, state: Pool) -> Iterator[Step[Pool]]:
        yield from self._dispatcher(state)
        yield from self._joiner(state)
        yield from self._shutter(state)
        for index, name in enumerate("AB"):
            if state.bells[index] and state.inboxes[index] and self._takes_jobs(state, index):
                bells = _set(state.bells, index, False)
                if state.record == PENDING and state.target == index:
                    yield Step(f"worker {name}", "starts the job: RUNNING", state._replace(record=RUNNING, bells=bells))
                else:
                    yield Step(f"worker {name}", "drops the doorbell", state._replace(bells=bells))

    def _takes_jobs(self, state: Pool, index: int) -> bool:
        return index == 0 or state.joiner == "active" or ("R6.active" in self.off and state.workers[1])

    def _dispatcher(self, state: Pool) -> Iterator[Step[Pool]]:
        match state.dispatcher:
            case "idle" if state.flag:
                return  # PoolShutdownError at once
            case "idle":
                yield Step("dispatcher", "reads the flag: not set", state._replace(dispatcher="record"), True)
            case "record":
                for index, name in enumerate("AB"):
                    if self._takes_jobs(state, index):  # A in any case: its ring may be older than the store
                        written = state._replace(record=PENDING, target=index, dispatcher="append")
                        yield Step("dispatcher", f"writes the record: PENDING for {name}", written)
            case "append":
                name = "AB"[state.target]
                if state.inboxes[state.target]:
                    rung = state._replace(bells=_set(state.bells, state.target, True), dispatcher="wait")
                    yield Step("dispatcher", f"appends to the inbox of {name}", rung)
                else:
                    then = "withdraw" if "R6.withdraw" not in self.off else "done"
                    yield Step(
                        "dispatcher", f"appends to the inbox of {name}: there is none", state._replace(dispatcher=then)
                    )
            case "withdraw":
                record = "" if state.record == PENDING else state.record
                yield Step("dispatcher", "withdraws, raises", state._replace(record=record, dispatcher="done"))
            case "wait":
                if state.record == PENDING:
                    yield Step("dispatcher", "times out, withdraws", state._replace(record="", dispatcher="done"))
                else:
                    yield Step("dispatcher", "returns", state._replace(dispatcher="done"))

    def _joiner(self, state: Pool) -> Iterator[Step[Pool]]:
        """Worker B. R11: record first, inbox afterwards."""
        match state.joiner:
            case "idle" if state.flag:
                return
            case "idle":
                yield Step("worker B", "add_worker reads the flag: not set", state._replace(joiner="record"), True)
            case "record":
                listed = state._replace(workers=_set(state.workers, 1, True), joiner="inbox")
                yield Step("worker B", "writes its record", listed)
            case "inbox":
                made = state._replace(inboxes=_set(state.inboxes, 1, True), joiner="check")
                yield Step("worker B", "makes its inbox", made)
            case "check" if "R6.again" in self.off or not state.flag:
                yield Step("worker B", "is ACTIVE", state._replace(joiner="active"))
            case "check":
                yield Step("worker B", "reads the flag again: set", state._replace(joiner="undo"))
            case "undo":
                gone = state._replace(
                    inboxes=_set(state.inboxes, 1, False), bells=_set(state.bells, 1, False), joiner="unlist"
                )
                yield Step("worker B", "destroys its inbox", gone)
            case "unlist":
                yield Step(
                    "worker B",
                    "removes its record",
                    state._replace(workers=_set(state.workers, 1, False), joiner="done"),
                )

    def _shutter(self, state: Pool) -> Iterator[Step[Pool]]:
        scan_first = "R6" in self.off
        match state.shutter:
            case "idle":
                yield Step(
                    "shutdown",
                    "sets the flag",
                    state._replace(flag=True, shutter="scan" if scan_first else "list"),
                    True,
                )
            case "list":
                listed = tuple(index for index in (0, 1) if state.workers[index])
                yield Step("shutdown", "lists the workers", state._replace(doomed=listed, shutter="destroy"))
            case "destroy" if state.doomed:
                index, *others = state.doomed
                after = state._replace(
                    inboxes=_set(state.inboxes, index, False),
                    bells=_set(state.bells, index, False),
                    doomed=tuple(others),
                )
                yield Step("shutdown", f"destroys the inbox of {'AB'[index]}", after)
            case "destroy":
                yield Step(
                    "shutdown", "has destroyed them all", state._replace(shutter="unlist" if scan_first else "scan")
                )
            case "scan" if state.record:
                # Stop, and look again: STOPPING and the owner's part in it are left out (see the job model).
                yield Step("shutdown", f"scans: stops the {state.record} job", state._replace(record=""))
            case "scan":
                yield Step("shutdown", "scans: no job", state._replace(shutter="list" if scan_first else "unlist"))
            case "unlist":
                # Workers stop and remove their records; one that is still joining sees to itself.
                workers = (False, state.workers[1] and state.joiner not in ("active", "done"))
                yield Step("shutdown", "the active workers leave", state._replace(workers=workers, shutter="done"))

    def broken(self, state: Pool) -> str | None:
        return None

    def broken_at_rest(self, state: Pool) -> str | None:
        if state.shutter != "done":
            return None if state.shutter == "idle" else RETURNS
        if state.dispatcher not in ("idle", "done"):
            return RETURNS
        if state.record:
            return NO_JOB
        return NO_WORKER if any(state.inboxes) or any(state.workers) else None

    def landmarks(self, state: Pool) -> Iterable[str]:
        yield f"dispatcher at {state.dispatcher}"
        yield f"worker B at {state.joiner}"
        if state.shutter == "done" and state.record:
            yield "a record behind the scan"
        if state.shutter in ("scan", "done") and state.inboxes[1]:
            yield "an inbox behind the destruction"

    def show(self, state: Pool) -> str:
        inboxes = ",".join(name for name, there in zip("AB", state.inboxes, strict=True) if there) or "none"
        listed = ",".join(name for name, there in zip("AB", state.workers, strict=True) if there) or "none"
        record = f"{state.record} for {'AB'[state.target]}" if state.record else "no record"
        return f"{record} | flag {'set' if state.flag else 'not set'} | workers {listed} | inboxes {inboxes}"
