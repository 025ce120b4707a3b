"""What a run came to, and how it is told.

Purpose: the verdict of a run, and the report that a person needs to start looking.
Invariants: a story has at most 30 lines unless all of it is asked for; a report says what happened in the run that it tells,
not what might have; its last line is one command that replays it.
Neighbours: made by :mod:`~corepool_memory.sim.run`; printed by ``corepool.testing`` and the ``corepool`` command.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping

import attrs

from corepool_memory.sim.chooser import Deviations
from corepool_memory.sim.errors import SimulationFailed

__all__ = ["Result", "Violation"]

_STORY_LINES = 30

_NUMBER = re.compile(r"(?:[^:\n]*: )?(\d+)(?: \(\w+\))?: ")
"""The number of an invariant, behind the name of the check or of the exception."""


@attrs.frozen(slots=True)
class Violation:
    """What a run found.

    kind: ``raised`` (the scenario did), ``invariant``, ``deadlock``, ``budget``, or ``left over`` (unretrieved
        exceptions and tasks that nobody awaits, found at the end).
    signature: tells this failure from others of the same scenario: the kind, the exception and where it was raised.
    text: for people.
    error: the exception.
    """

    kind: str
    signature: str
    text: str
    error: BaseException | None = attrs.field(default=None, eq=False)

    def is_like(self, other: Violation | None) -> bool:
        """Whether the other is the same failure, in another run perhaps. One check may find violations of several invariants:
        if its message begins with a number, that counts as well."""
        return other is not None and (self.signature, self._number) == (other.signature, other._number)

    @property
    def _number(self) -> str:
        found = _NUMBER.match(self.text)
        return "" if found is None else found[1]


@attrs.frozen(slots=True, kw_only=True)
class Result:
    """The verdict of a run.

    digest: of all that happened; equal digests, equal runs.
    steps, virtual_seconds, wall_seconds: how long it took.
    plan: the kinds of faults the run drew. faults: how often each kind happened.
    sometimes: how often each named situation was reached.
    trace: the story, oldest first.
    violation: None if all went well.
    token: replays the run; of a failed one, reduced to the decisions that matter.
    decisions: those decisions; None if they all come from the seed.
    reproducible: whether a failure, replayed with all of its decisions, was the same.
    """

    scenario: str
    seed: int
    digest: str
    steps: int
    virtual_seconds: float
    wall_seconds: float
    plan: str
    faults: Mapping[str, int]
    sometimes: Mapping[str, int]
    trace: tuple[str, ...]
    violation: Violation | None
    token: str
    decisions: Deviations | None
    reproducible: bool = True

    @property
    def passed(self) -> bool:
        return self.violation is None

    def story(self, *, full: bool = False) -> list[str]:
        """What happened, oldest first: in at most 30 lines, or all that is known of it."""
        lines = [line for moment in self.trace for line in moment.splitlines()]
        return lines if full else _shortened(lines)

    def replay(self, command: str) -> str:
        """The command that replays the run. command: with ``{token}`` where the token goes."""
        return command.replace("{token}", self.token)

    def report(self, command: str | None = None, *, full: bool = False) -> str:
        """Everything a person needs to start: seed, token, story, versions, and one command that replays the run.

        command: with ``{token}`` where the token goes.
        full: tell all of the story.
        """
        if self.violation is None:
            return f"{self.scenario} passed with seed {self.seed}: {self.steps} steps, {self.virtual_seconds:.3f} virtual s"
        lines = [f"{self.scenario} failed with seed {self.seed}: {self.violation.text}"]
        if not self.reproducible:
            lines.append(
                "NOT REPRODUCIBLE: the same decisions led to another run. Something in the code under test does not come from "
                "the seed: the time or random module, uuid, id(), the order of a set of strings, or asyncio.as_completed over "
                "coroutines (give it tasks). Fix that first."
            )
        lines.append("")
        lines.append(f"what happened (virtual seconds, machine, event; faults: {self._happened()}):")
        lines.extend(self.story(full=full))
        if self.decisions is not None:
            lines.append(f"decisions that matter: {_decisions(self.decisions) or self._none()}")
        lines.append(f"Python {platform.python_version()}, digest {self.digest}")
        lines.append("replay: " + self.replay(command or "simulate(scenario, token='{token}')"))
        return "\n".join(lines)

    def _happened(self) -> str:
        """The faults of this very run: the plan may have had more in store, and what the scenario did is in no plan."""
        return ", ".join(f"{count} {kind}" for kind, count in self.faults.items() if count) or "none but latency"

    def _none(self) -> str:
        return "none: it fails without any fault or delay" + (
            " but those of the scenario itself" if self.faults else ""
        )

    def check(self, command: str | None = None) -> Result:
        """Return itself if the run passed.

        Raises:
            SimulationFailed: it did not; the message is the report.
        """
        if self.violation is not None:
            raise SimulationFailed(self.report(command)) from self.violation.error
        return self


def _shortened(lines: list[str]) -> list[str]:
    if len(lines) <= _STORY_LINES:
        return lines
    head, tail = _STORY_LINES // 3, _STORY_LINES - _STORY_LINES // 3 - 1
    return [*lines[:head], f"... {len(lines) - head - tail} more events ...", *lines[-tail:]]


def _decisions(decisions: Deviations) -> str:
    listed = [f"{label}[{ordinal}]={value}" for (label, ordinal), value in list(decisions.items())[:12]]
    more = len(decisions) - len(listed)
    return ", ".join(listed) + (f" and {more} more" if more else "")
