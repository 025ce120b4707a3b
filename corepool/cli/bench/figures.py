"""What the benchmark found: figures, the floors they stand on, the goals they are held to.

Invariants: a goal is met or missed by the figure as it is printed; a figure without its floor has no verdict on a ratio.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import attrs

__all__ = ["Figure", "Goal", "Results", "percentile"]


def percentile(samples: Sequence[float], share: float) -> float:
    """The sample below which ``share`` of them lie."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@attrs.frozen(slots=True)
class Goal:
    """A bound on a figure, or on its ratio to the floor."""

    text: str
    most: float | None = None
    least: float | None = None
    of_ratio: bool = True

    def met_by(self, figure: Figure) -> bool | None:
        """Whether the figure keeps it; None if that cannot be told."""
        value = figure.ratio if self.of_ratio else figure.value
        if value is None:
            return None
        return (self.most is None or value <= self.most) and (self.least is None or value >= self.least)


@attrs.frozen(slots=True, kw_only=True)
class Figure:
    """One measured figure.

    value: a median for times, else a rate or a count; in ``unit``.
    p99: of times.
    floor: what it is measured against, in the same unit, taken between the samples of the figure.
    against: the floor in words.
    """

    name: str
    title: str
    value: float
    unit: str
    p99: float | None = None
    floor: float | None = None
    against: str = ""
    goal: Goal | None = None

    @classmethod
    def of_times(cls, name: str, title: str, seconds: Sequence[float], **more: Any) -> Figure:
        """From single durations in seconds; shown in microseconds."""
        micros = [second * 1e6 for second in seconds]
        return cls(
            name=name,
            title=title,
            value=statistics.median(micros),
            unit="µs",
            p99=percentile(micros, 0.99),
            **more,
        )

    @property
    def ratio(self) -> float | None:
        """The figure in units of its floor."""
        return self.value / self.floor if self.floor else None

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without a goal, or if it cannot be told."""
        return None if self.goal is None else self.goal.met_by(self)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "title": self.title,
            "value": self.value,
            "unit": self.unit,
            "p99": self.p99,
            "floor": self.floor,
            "against": self.against,
            "ratio": self.ratio,
            "goal": self.goal.text if self.goal else None,
            "met": self.met,
        }


@attrs.define(slots=True)
class Results:
    """All figures of a run, in the order they were taken, and the reasons why others are missing."""

    figures: dict[str, Figure] = attrs.field(factory=dict[str, Figure])
    missing: dict[str, str] = attrs.field(factory=dict[str, str])

    def add(self, figure: Figure) -> None:
        self.figures[figure.name] = figure

    def miss(self, name: str, why: str) -> None:
        self.missing[name] = why
