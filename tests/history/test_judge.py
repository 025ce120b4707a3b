"""The judge judged: hand-written histories, each of which breaks one promise, and correct ones that look suspicious."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from corepool.errors import (
    BackendUnavailable,
    CorepoolError,
    DispatchTimeoutError,
    JobExistsError,
    JobGoneError,
    JobNotFoundError,
    JobStartError,
    NodeClosedError,
    OutcomeUnknown,
    PoolShutdownError,
    QueueFullError,
)
from corepool.pool import FencingToken
from corepool.testing.history import (
    Dispatch,
    Effect,
    Heard,
    HistoryViolation,
    Notification,
    Stop,
    Tick,
    judge,
)

SETTLED = 100.0


@attrs.define
class History:
    """A history under construction. Keys and payloads are "k" and b"1" unless told."""

    dispatches: list[Dispatch] = attrs.field(factory=list)
    stops: list[Stop] = attrs.field(factory=list)
    effects: list[Effect] = attrs.field(factory=list)
    others: dict[str, Any] = attrs.field(factory=dict)

    def dispatch(
        self, invoked: float, returned: float | None, error: CorepoolError | None = None, payload: bytes = b"1"
    ) -> History:
        self.dispatches.append(
            Dispatch(key="k", payload=payload, invoked=invoked, returned=returned, error=error),
        )
        return self

    def stop(self, invoked: float, returned: float | None, error: CorepoolError | None = None) -> History:
        self.stops.append(Stop(key="k", invoked=invoked, returned=returned, error=error))
        return self

    def runs(
        self,
        began: float,
        ended: float | None = None,
        *,
        on: str = "a",
        token: int = 1,
        payload: bytes = b"1",
        fails: bool = False,
        suspended: bool = False,
    ) -> History:
        """A handler's start was called, took half a second, and (unless it failed) was followed by a stop as long."""
        self.effects.append(
            Effect(
                key="k",
                payload=payload,
                owner=on,
                token=FencingToken(0, token),
                began=began,
                running=None if fails else began + 0.5,
                stopping=None if ended is None or fails else ended - 0.5,
                ended=ended,
                suspended=suspended,
            )
        )
        return self

    def judge(self, **options: Any) -> None:
        judge(self.dispatches, self.stops, self.effects, settled_at=SETTLED, **{**self.others, **options})


def notified(error: CorepoolError | None, *heard_at: float) -> History:
    history = History().dispatch(1, 2).runs(1.2)
    call = Notification(key="k", payload=b"n", invoked=5.0, returned=6.0, error=error)
    heard = [Heard(key="k", payload=b"n", owner="a", at=at) for at in heard_at]
    history.others = {"notifications": [call], "heard": heard}
    return history


def ticking(*ticks: tuple[str, int, str]) -> History:
    fired = [Tick(name=name, number=number, node=node, at=float(at)) for at, (name, number, node) in enumerate(ticks)]
    return History(others={"ticks": fired})


UNKNOWN = OutcomeUnknown("?")

BROKEN: dict[str, tuple[str, History]] = {
    "two live owners": ("1: ", History().dispatch(1, 2).runs(1.2, 50, on="a").runs(20, on="b", token=2)),
    "two live owners, the first of which never ended": (
        "1: ",
        History().dispatch(1, 2).runs(1.2, on="a").runs(20, on="b", token=2),
    ),
    "two live owners of two jobs of one key": (
        "1: ",
        History().dispatch(1, 2).stop(3, 4).dispatch(5, 6, payload=b"2").runs(1.2, 9).runs(5.2, token=2, payload=b"2"),
    ),
    "a start that took place on two workers at once": (
        "1: ",
        History().dispatch(1, 9, UNKNOWN).runs(1, 3, fails=True).runs(2, 4, on="b", token=2),
    ),
    "a dispatch that succeeded without a start": ("2: ", History().dispatch(1, 2)),
    "a dispatch that succeeded before its start had returned": ("2: ", History().dispatch(1, 2).runs(1.7)),
    "a dispatch that succeeded although its start failed": ("2: ", History().dispatch(1, 3).runs(1.2, 1.7, fails=True)),
    "the success of one that another's job was taken for": (
        "2: ",
        History().dispatch(1, 2).stop(3, 4).runs(1.2, 4).dispatch(5, 6, payload=b"2").runs(5.2, token=2, payload=b"3"),
    ),
    "a job that is gone in the end": ("2: ", History().dispatch(1, 2).runs(1.2, 40)),
    "a job that is gone in the end, stopped by one who never touched it": (
        "2: ",
        History().dispatch(5, 6).runs(5.2, 40).stop(1, 2, JobNotFoundError("k")).stop(7, 8, BackendUnavailable("")),
    ),
    "a job whose successor in the end is another": (
        "2: ",
        History().dispatch(1, 2).runs(1.2, 40).runs(41, token=2, payload=b"9"),
    ),
    "a job that a stop did not find": ("2: ", History().dispatch(1, 2).runs(1.2).stop(5, 6, JobNotFoundError("k"))),
    "a job that timed out and had started": (
        "3: ",
        History().dispatch(1, 5, DispatchTimeoutError("")).runs(1.2, 4),
    ),
    "a job that timed out and started afterwards": ("3: ", History().dispatch(1, 5, DispatchTimeoutError("")).runs(6)),
    "a refused one that ran": (
        "3: ",
        History().dispatch(0, 0.9, UNKNOWN, b"0").dispatch(1, 5, JobExistsError("")).runs(2, 3),
    ),
    "one that found the queue full and ran": ("3: ", History().dispatch(1, 5, QueueFullError("")).runs(2, 3)),
    "one that was not sent and ran": ("3: ", History().dispatch(1, 5, BackendUnavailable("")).runs(2, 3)),
    "one of a closed node that ran": ("3: ", History().dispatch(1, 5, NodeClosedError("")).runs(2, 3)),
    "a job that failed and was started again": (
        "3: ",
        History().dispatch(1, 5, JobStartError("")).runs(1.2, 1.7, fails=True).runs(8, 9, token=2),
    ),
    "a job that was gone and runs on": ("3: ", History().dispatch(1, 5, JobGoneError("")).runs(1.2, 60)),
    "a job that failed and runs for ever": ("3: ", History().dispatch(1, 5, JobStartError("")).runs(1.2)),
    "a job that a shutdown left behind": ("3: ", History().dispatch(1, 5, PoolShutdownError("")).runs(1.2)),
    "a stopped job that runs again": ("4: ", History().dispatch(1, 2).runs(1.2, 4).stop(3, 5).runs(7, 9, token=2)),
    "a stopped job that never stopped": ("4: ", History().dispatch(1, 2).runs(1.2).stop(3, 5)),
    "a stopped job that stopped later": ("4: ", History().dispatch(1, 2).runs(1.2, 8).stop(3, 5)),
    "a gone job that a stop was too late for, and that runs again": (
        "3: ",
        History().dispatch(1, 5, JobGoneError("")).stop(6, 7).runs(8, 9),
    ),
    "a live key dispatched twice": (
        "4: ",
        History().dispatch(1, 2).runs(1.2, 40).dispatch(41, 42, payload=b"2").runs(41, token=2, payload=b"2"),
    ),
    "two concurrent dispatches of which both won": (
        "4: ",
        History().dispatch(1, 4).runs(1.2, 2).dispatch(1.1, 3, payload=b"2").runs(2.1, token=2, payload=b"2"),
    ),
    "one that was refused without another job": ("4: ", History().dispatch(1, 2, JobExistsError(""))),
    "one that was refused by a job of the future": (
        "4: ",
        History().dispatch(1, 2, JobExistsError("")).dispatch(3, 4, payload=b"2").runs(3.2, payload=b"2"),
    ),
    "one that was refused by a refused one": (
        "4: ",
        History().dispatch(1, 2, JobExistsError("")).dispatch(1, 2, JobExistsError(""), b"2"),
    ),
    "one that was refused by a job that had been stopped": (
        "4: ",
        History().dispatch(1, 2).runs(1.2, 4).stop(3, 5).dispatch(6, 7, JobExistsError(""), b"2"),
    ),
    "one that was refused by a job that was left behind": (
        "4: ",
        History().dispatch(1, 3, JobStartError("")).runs(1.2, 2, fails=True).dispatch(6, 7, JobExistsError(""), b"2"),
    ),
    "a token that goes back": ("5: ", History().dispatch(1, 2).runs(1.2, 4, token=5).runs(6, on="b", token=4)),
    "a token given twice": ("5: ", History().dispatch(1, 2).runs(1.2, 4, token=5).runs(6, on="b", token=5)),
    "a sleeper's token is the larger one": (
        "5: ",
        History().dispatch(1, 2).runs(1.2, 60, token=5, suspended=True).runs(30, on="b", token=4),
    ),
    "a tick that fired on two nodes": ("8: ", ticking(("t", 1, "a"), ("t", 2, "b"), ("t", 1, "b"))),
    "a tick that fired twice on one node": ("8: ", ticking(("t", 1, "a"), ("t", 1, "a"))),
    "a dispatch that never returned": ("9: ", History().dispatch(1, None).runs(1.2)),
    "a stop that never returned": ("9: ", History().dispatch(1, 2).runs(1.2).stop(3, None)),
    "a confirmed notification that nobody heard": ("notify: ", notified(None)),
    "a notification that was heard after it was confirmed": ("notify: ", notified(None, 7.0)),
}

CORRECT: dict[str, History] = {
    "nothing": History(),
    "a job that runs": History().dispatch(1, 2).runs(1.2),
    "a job that moved": History().dispatch(1, 2).runs(1.2, 30).runs(31, on="b", token=2),
    "a job that died with its worker": History().dispatch(1, 2).runs(1.2, 30).runs(45, on="b", token=2),
    "a job that was stopped and dispatched again": History()
    .dispatch(1, 2)
    .runs(1.2, 4)
    .stop(3, 5)
    .dispatch(6, 7, payload=b"2")
    .runs(6.1, token=2, payload=b"2"),
    "a start that failed": History().dispatch(1, 3, JobStartError("")).runs(1.2, 1.7, fails=True),
    "a start that was tried three times": History()
    .dispatch(1, 9)
    .runs(1.2, 1.7, fails=True)
    .runs(3, 3.5, on="b", token=2, fails=True)
    .runs(5, on="a", token=3),
    "one that was never started": History().dispatch(1, 5, DispatchTimeoutError("")),
    "one that was gone, having run": History().dispatch(1, 9, JobGoneError("")).runs(1.2, 8),
    "one that was gone because another stopped it": History().dispatch(1, 9, JobGoneError("")).runs(1.2, 5).stop(4, 6),
    "an unknown outcome that was applied": History().dispatch(1, 5, UNKNOWN).runs(9),
    "an unknown outcome that was not": History().dispatch(1, 5, UNKNOWN),
    "an unknown outcome that was applied and stopped": History().dispatch(1, 5, UNKNOWN).runs(4, 9).stop(8, 10),
    "an unknown outcome that came after a stop": History().dispatch(1, 5, UNKNOWN).stop(6, 7).runs(8),
    "an unknown outcome that refuses another": History()
    .dispatch(1, 5, UNKNOWN)
    .dispatch(6, 7, JobExistsError(""), b"2")
    .runs(8),
    "an unknown dispatch that never returned": History().dispatch(1, None, UNKNOWN).runs(30),
    "an unknown stop that was carried out": History().dispatch(1, 2).runs(1.2, 9).stop(3, 4, UNKNOWN),
    "an unknown stop that was not": History().dispatch(1, 2).runs(1.2).stop(3, 4, UNKNOWN),
    "an unknown stop of long ago, after which a stop finds nothing": History()
    .dispatch(10, 12)
    .runs(11, 20)
    .stop(1, 4, UNKNOWN)
    .stop(30, 31, JobNotFoundError("")),
    "a paused owner that wakes up late": History()
    .dispatch(1, 2)
    .runs(1.2, 60, suspended=True)
    .runs(30, on="b", token=2),
    "a paused owner that wakes up after its job was stopped": History()
    .dispatch(1, 2)
    .runs(1.2, 60, suspended=True)
    .stop(30, 31),
    "a paused owner that wakes up after its job was given up": History()
    .dispatch(1, 20, JobGoneError(""))
    .runs(1.2, 60, suspended=True),
    "a crash in the middle of a start": History().dispatch(1, 9).runs(1.2, 1.6, fails=True).runs(5, on="b", token=2),
    "two concurrent dispatches, one refused": History()
    .dispatch(1, 3)
    .dispatch(1.1, 2, JobExistsError(""), b"2")
    .runs(1.5),
    "two concurrent dispatches and a stop between": History()
    .dispatch(1, 4)
    .stop(1.5, 2)
    .dispatch(1.1, 6, payload=b"2")
    .runs(1.2, 1.9)
    .runs(3, token=2, payload=b"2"),
    "one that was refused by a job that is being stopped": History()
    .dispatch(1, 2)
    .runs(1.2, 5)
    .stop(3, 6)
    .dispatch(4, 5, JobExistsError(""), b"2"),
    "one that was refused while another failed": History()
    .dispatch(1, 5, JobStartError(""))
    .runs(1.2, 3, fails=True)
    .dispatch(2, 2.5, JobExistsError(""), b"2"),
    "a stop that found nothing, before": History().stop(0, 0.5, JobNotFoundError("")).dispatch(1, 2).runs(1.2),
    "a stop that found nothing, after another": History()
    .dispatch(1, 2)
    .runs(1.2, 4)
    .stop(3, 5)
    .stop(6, 7, JobNotFoundError("")),
    "a shutdown that ended the job later": History().dispatch(1, 5, PoolShutdownError("")).runs(1.2, 9),
    "ticks that take turns": ticking(("t", 1, "a"), ("t", 2, "b"), ("u", 1, "b"), ("t", 3, "a")),
    "a notification that was heard twice": notified(None, 5.2, 5.4),
    "a notification that was heard though nobody knew": notified(UNKNOWN, 9.0),
    "a notification that was lost, and said so": notified(UNKNOWN),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_promise_is_named(name: str) -> None:
    number, history = BROKEN[name]
    with pytest.raises(HistoryViolation) as caught:
        history.judge()
    assert str(caught.value).startswith(number)


@pytest.mark.parametrize("name", CORRECT)
def test_a_correct_history_is_accepted(name: str) -> None:
    CORRECT[name].judge()


def test_a_job_that_failed_for_good_is_not_missed() -> None:
    history = History().dispatch(1, 2).runs(1.2, 9).runs(10, 11, on="b", token=2, fails=True)
    history.judge(failed={"k"})
    with pytest.raises(HistoryViolation, match=r"^2: "):
        history.judge()


def test_keys_are_judged_apart() -> None:
    """Two jobs of two keys at once break nothing; the one that does is named."""
    ours = History().dispatch(1, 2).runs(1.2)
    theirs = attrs.evolve(ours.dispatches[0], key="other", payload=b"2")
    running = attrs.evolve(ours.effects[0], key="other", payload=b"2", token=FencingToken(0, 1))
    judge([*ours.dispatches, theirs], [], [*ours.effects, running], settled_at=SETTLED)
    with pytest.raises(HistoryViolation, match="'other'"):
        judge([*ours.dispatches, theirs], [], [*ours.effects], settled_at=SETTLED)


def test_every_number_is_covered() -> None:
    """Each promise that the judge claims to judge is broken by some history here."""
    assert {number for number, _ in BROKEN.values()} == {f"{n}: " for n in (1, 2, 3, 4, 5, 8, 9)} | {"notify: "}
