"""Payloads apart from records, and their collector (R4).

Purpose: dispatch writes attention entry, record, payload, doorbell, in this order; whoever removes a job removes
record, payload, attention entry; the collector lists payloads *first*, reads the record *afterwards*, and deletes what
the record does not name. Here: one key, two dispatchers one after the other or at once, a worker, a stopper, a
collector, a cleaner, crashes everywhere. ``owned@worker`` names the job_id too: when the owner dies between record and
payload, it is all that leads to the payload.
Invariants: a record that names a job of which the payload was written keeps it until the record is gone; at rest no
payload is left without its record, and an admitted job has run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tests.model.explore import Model, Step

PENDING, STARTING, RUNNING = "PENDING", "STARTING", "RUNNING"

PAYLOAD_KEPT = "2. a job keeps its payload as long as its record"
RUNS = "10. an admitted job runs"
NOTHING_LEFT = "11. nothing is left over"


class Record(NamedTuple):
    state: str
    job: int


class Payloads(NamedTuple):
    record: Record | None = None
    payloads: frozenset[int] = frozenset()
    attention: frozenset[int] = frozenset()
    dispatchers: tuple[str, str] = ("idle", "idle")
    worker: str = "idle"
    owned: frozenset[int] = frozenset()
    stopper: str = "idle"
    stops: int = 0
    """The job that the stopper removes, or has removed by its owner."""
    collector: str = "idle"
    listed: frozenset[int] = frozenset()
    named: int = 0
    crashes: int = 0
    written: frozenset[int] = frozenset()
    """History, for the judge: jobs whose payload was written, ever."""


class PayloadModel(Model[Payloads]):
    name = "payload"

    def __init__(self, crashes: int = 1, off: Iterable[str] = ()) -> None:
        super().__init__(off)
        self.crashes = crashes
        late = "R4.order" in self.off
        self.order = ["attend", "payload", "record", "wait"] if late else ["attend", "record", "payload", "wait"]

    def initial(self) -> Iterable[Payloads]:
        yield Payloads(crashes=self.crashes)

    def steps(self, state: Payloads) -> Iterator[Step[Payloads]]:
        for index in (0, 1):
            yield from self._dispatcher(state, index)
        yield from self._worker(state)
        yield from self._stopper(state)
        yield from self._collector(state)

    def _dispatcher(self, state: Payloads, index: int) -> Iterator[Step[Payloads]]:
        at, job, who = state.dispatchers[index], index + 1, f"dispatcher {index + 1}"
        if at in ("done", "crashed"):
            return

        def to(where: str, after: Payloads) -> Payloads:
            return after._replace(
                dispatchers=(where, after.dispatchers[1]) if index == 0 else (after.dispatchers[0], where)
            )

        if state.crashes and at != "idle":
            yield Step(who, "crashes", to("crashed", state._replace(crashes=state.crashes - 1)), True)
        following = self.order[self.order.index(at) + 1] if at in self.order and at != "wait" else ""
        match at:
            case "idle":
                yield Step(who, "is called", to("attend", state), True)
            case "attend":
                listed = state._replace(attention=state.attention | {job})
                yield Step(who, "lists the job for attention", to(following, listed))
            case "record" if state.record is None:
                yield Step(
                    who, "writes the record: PENDING", to(following, state._replace(record=Record(PENDING, job)))
                )
            case "record":
                yield Step(who, "writes the record: there is one", to("undo", state))
            case "payload":
                stored = state._replace(payloads=state.payloads | {job}, written=state.written | {job})
                yield Step(who, "writes the payload", to(following, stored))
            case "wait":
                there = state.record is not None and state.record.job == job
                if not there:
                    yield Step(who, "reads: the record is gone", to("undo", state))
                elif state.record is not None and state.record.state == RUNNING:
                    yield Step(who, "returns success", to("done", state))
            case "undo":
                yield Step(
                    who, "removes its payload", to("undo: attention", state._replace(payloads=state.payloads - {job}))
                )
            case _:
                yield Step(
                    who, "removes its attention entry", to("done", state._replace(attention=state.attention - {job}))
                )

    def _worker(self, state: Payloads) -> Iterator[Step[Payloads]]:
        """It may look at any time: doorbells carry no truth. STOPPING is left out: see the job model."""
        record = state.record
        if state.worker == "crashed":
            yield from self._cleaner(state)
            return
        if state.crashes and (state.owned or state.worker != "idle"):
            yield Step("worker", "crashes", state._replace(worker="crashed", crashes=state.crashes - 1), True)
        if state.worker == "payload":
            gone = state._replace(payloads=state.payloads - state.owned, worker="owned")
            yield Step("worker", "removes the payload", gone)
        elif state.worker == "owned":
            yield Step("worker", "removes owned", state._replace(owned=frozenset(), worker="idle"))
        elif record is None:
            return
        elif record.state == RUNNING:
            if state.stopper == "ask":
                asked = state._replace(record=None, worker="payload", stopper="done")
                yield Step("worker", "finishes the stop: removes the record", asked)
        elif record.state == PENDING:
            claimed = state._replace(record=record._replace(state=STARTING), owned=frozenset({record.job}))
            yield Step("worker", "writes owned, claims: STARTING", claimed)
        elif record.job in state.payloads:
            running = state._replace(record=record._replace(state=RUNNING), attention=state.attention - {record.job})
            yield Step("worker", "reads the payload, starts: RUNNING", running)
        elif state.dispatchers[record.job - 1] == "crashed":
            # Tried in vain as often as is allowed: an unstarted job goes (R1). Its entry stays until no payload is left.
            gone = state._replace(record=None, worker="payload")
            yield Step("worker", "finds no payload again and again: removes the record", gone)
        else:
            again = state._replace(record=record._replace(state=PENDING), owned=frozenset())
            yield Step("worker", "finds no payload: PENDING again", again)

    def _cleaner(self, state: Payloads) -> Iterator[Step[Payloads]]:
        """Of the dead worker: an entry of ``owned`` without its record leads to a payload that nothing else leads to."""
        over = {job for job in state.owned if state.record is None or state.record.job != job}
        for job in sorted(over):
            if job in state.payloads and "R4.owned" not in self.off:
                gone = state._replace(payloads=state.payloads - {job})
                yield Step("cleaner", f"owned@dead names job {job}, no record: removes its payload", gone)
            else:
                yield Step("cleaner", f"removes owned of job {job}", state._replace(owned=state.owned - {job}))

    def _stopper(self, state: Payloads) -> Iterator[Step[Payloads]]:
        record = state.record
        if state.crashes and state.stopper not in ("idle", "done"):
            crashed = state._replace(stopper="done", crashes=state.crashes - 1)
            yield Step("stopper", "crashes", crashed, True)
        match state.stopper:
            case "idle" if record is not None and record.state == PENDING:
                gone = state._replace(record=None, stopper="payload", stops=record.job)
                yield Step("stopper", "removes the PENDING record", gone, True)
            case "idle" if record is not None and record.state == RUNNING and state.worker == "idle":
                yield Step("stopper", "asks the owner to stop", state._replace(stopper="ask", stops=record.job), True)
            case "payload":
                gone = state._replace(payloads=state.payloads - {state.stops}, stopper="attention")
                yield Step("stopper", "removes the payload", gone)
            case "attention" if "R4.attention" not in self.off:
                yield Step("stopper", "leaves the entry to the sweeper: never started", state._replace(stopper="done"))
            case "attention":
                gone = state._replace(attention=state.attention - {state.stops}, stopper="done")
                yield Step("stopper", "removes the attention entry", gone)

    def _collector(self, state: Payloads) -> Iterator[Step[Payloads]]:
        """Found by ``attention``: kept until the payload is gone. A round has three steps; their order is R4."""
        record_first = "R4" in self.off
        named = state.record.job if state.record else 0
        match state.collector:
            case "idle":
                # A round is due where an entry has no record, and may happen at any time where there is a payload.
                orphans = {job for job in state.attention if job != named and self._passed(state, job)}
                if not orphans and not state.payloads:
                    return
                due = bool(orphans)
                if record_first:
                    seen = f"reads the record: it names job {named}" if named else "reads the record: there is none"
                    yield Step("collector", seen, state._replace(collector="second", named=named), not due)
                else:
                    listing = state._replace(collector="second", listed=state.payloads)
                    yield Step("collector", f"lists the payloads: {sorted(state.payloads) or 'none'}", listing, not due)
            case "second" if record_first:
                listing = state._replace(collector="delete", listed=state.payloads)
                yield Step("collector", f"lists the payloads: {sorted(state.payloads) or 'none'}", listing)
            case "second":
                seen = f"reads the record: it names job {named}" if named else "reads the record: there is none"
                yield Step("collector", seen, state._replace(collector="delete", named=named))
            case _:
                gone = state.listed - {state.named}
                over = {job for job in state.attention if job != named and self._passed(state, job)} - (
                    state.payloads - gone
                )
                after = state._replace(payloads=state.payloads - gone, attention=state.attention - over)
                what = f"deletes payloads {sorted(gone)}" if gone else "deletes no payload"
                what += f", entries {sorted(over)}" if over else ""
                yield Step("collector", what, after._replace(collector="idle", listed=frozenset(), named=0))

    @staticmethod
    def _passed(state: Payloads, job: int) -> bool:
        """The entry's grace is over: its dispatcher has crashed, or is through with its writes."""
        return state.dispatchers[job - 1] in ("crashed", "done")

    def broken(self, state: Payloads) -> str | None:
        record = state.record
        if record is not None and record.job in state.written and record.job not in state.payloads:
            return PAYLOAD_KEPT
        return None

    def broken_at_rest(self, state: Payloads) -> str | None:
        job = state.record.job if state.record else 0
        if state.record is not None and state.record.state != RUNNING and state.worker != "crashed":
            return RUNS
        left = (state.payloads | state.attention | state.owned) - {job}
        return NOTHING_LEFT if left else None

    def landmarks(self, state: Payloads) -> Iterable[str]:
        if state.record is not None and state.record.job not in state.payloads:
            yield f"{state.record.state} without its payload"
        if state.record is None and state.payloads:
            yield "a payload without a record"
        if state.worker == "crashed" and state.owned and state.record is None:
            yield "owned of a dead worker without a record"
        if len(state.payloads) == 2:
            yield "payloads of two jobs"
        if state.collector == "delete" and state.listed - {state.named}:
            yield "something to collect"

    def show(self, state: Payloads) -> str:
        record = f"{state.record.state}(job {state.record.job})" if state.record else "no record"
        owned = f" | owned {sorted(state.owned)}" if state.owned else ""
        return f"{record} | payloads {sorted(state.payloads) or 'none'} | attention {sorted(state.attention) or 'none'}{owned}"
