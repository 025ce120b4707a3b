"""The result of a run, for people and for machines.

Purpose: levels, a table, JSON.
Invariants: a level says exactly what was tested: ``core`` stands only if every core test ran and none failed, known failures
included; what was not tested is listed beside it.
Neighbours: reads a ``Run``; ``matrix.py`` reads the JSON.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from corepool_conformance.run import Run, Verdict

__all__ = ["as_json", "levels", "summary", "table"]

FORMAT = 1
"""The version of the JSON document."""


def levels(run: Run) -> list[str]:
    """``["core", "atomic_commit", …]``: empty if the run was partial or a core test did not hold."""
    if not run.complete or run.capabilities is None:
        return []
    held: list[str] = []
    if _holds([verdict for verdict in run.verdicts.values() if verdict.test.capability is None]):
        held.append("core")
        declared = attrs.asdict(run.capabilities)
        by_capability: dict[str, list[Verdict]] = {}
        for verdict in run.verdicts.values():
            if verdict.test.capability is not None:
                by_capability.setdefault(verdict.test.capability, []).append(verdict)
        held += sorted(name for name, verdicts in by_capability.items() if declared.get(name) and _proven(verdicts))
    return held


def _holds(verdicts: list[Verdict]) -> bool:
    return all(verdict.outcome in ("passed", "not tested") for verdict in verdicts)


def _proven(verdicts: list[Verdict]) -> bool:
    return _holds(verdicts) and any(verdict.outcome == "passed" for verdict in verdicts)


def summary(run: Run) -> dict[str, Any]:
    """The result as plain data; sorted, so that two equal results are equal texts."""
    return {
        "format": FORMAT,
        "url": run.shown_url,
        "seed": run.seed,
        "complete": run.complete,
        "levels": levels(run),
        "capabilities": attrs.asdict(run.capabilities) if run.capabilities else None,
        "tests": [
            {
                "id": name,
                "promises": list(verdict.test.promises),
                "capability": verdict.test.capability,
                "outcome": verdict.outcome,
                "seconds": round(verdict.seconds, 3),
                "text": verdict.text,
            }
            for name, verdict in sorted(run.verdicts.items())
        ],
    }


def as_json(run: Run) -> str:
    """`summary` as a JSON document."""
    return json.dumps(summary(run), indent=2, ensure_ascii=False)


def table(run: Run) -> list[str]:
    """One line per promise, then what was not tested, then the level."""
    outcomes: dict[str, Counter[str]] = {}
    for verdict in run.verdicts.values():
        for name in verdict.test.promises:
            outcomes.setdefault(name, Counter())[verdict.outcome] += 1
    lines = [f"{'promise':<10}{'passed':>8}{'failed':>8}{'known':>8}{'not tested':>12}"]
    for name in sorted(outcomes):
        count = outcomes[name]
        lines.append(
            f"{name:<10}{count['passed']:>8}{count['failed']:>8}{count['known failure']:>8}{count['not tested']:>12}"
        )
    for name, verdict in sorted(run.verdicts.items()):
        if verdict.outcome in ("not tested", "known failure"):
            lines.append(f"{verdict.outcome}: {name}: {verdict.text.removeprefix('not tested: ')}")
    lines.append(_verdict(run))
    return lines


def _verdict(run: Run) -> str:
    if not run.complete:
        return "level: none claimed, this was a part of the kit only"
    held = levels(run)
    if not held:
        return "level: none"
    return "level: " + held[0] + ("" if len(held) == 1 else " + {" + ", ".join(held[1:]) + "}")
