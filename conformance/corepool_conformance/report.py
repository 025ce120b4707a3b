"""The result of a run, for people and for machines.

Purpose: levels, a table, JSON.
Invariants: a level says exactly what was tested: ``core`` stands only if every core test of the kit was run (or is named as not
tested, for want of a hook) and none failed, known failures included; equal results are equal texts.
Neighbours: reads `corepool_conformance.results`; ``matrix.py`` reads the JSON.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from corepool_conformance.promises import PROMISES
from corepool_conformance.results import FAILED, KNOWN, NOT_TESTED, PASSED, Result, Target

__all__ = ["FORMAT", "as_json", "is_complete", "levels", "summary", "table"]

FORMAT = 1
"""The version of the JSON document."""


def is_complete(target: Target, kit: Collection[str]) -> bool:
    """Whether every test of the kit has a result."""
    return set(target.results) >= set(kit)


def levels(target: Target, kit: Collection[str]) -> list[str]:
    """``["core", "atomic_commit", …]``: empty if the run was partial or a core test did not hold."""
    if not is_complete(target, kit):
        return []
    results = list(target.results.values())
    if not _held([result for result in results if result.capability is None]):
        return []
    declared = target.capabilities or {}
    proven = [
        name
        for name in sorted({result.capability for result in results if result.capability})
        if declared.get(name) and _held([result for result in results if result.capability == name])
    ]
    return ["core", *proven]


def _held(results: Sequence[Result]) -> bool:
    outcomes = {result.outcome for result in results}
    return PASSED in outcomes and outcomes <= {PASSED, NOT_TESTED}


def summary(target: Target, kit: Collection[str]) -> dict[str, Any]:
    """One backend's result as plain data."""
    return {
        "name": target.name,
        "label": target.label,
        "url": target.shown,
        "complete": is_complete(target, kit),
        "levels": levels(target, kit),
        "capabilities": target.capabilities,
        "tests": [
            {
                "id": result.test,
                "promises": list(result.promises),
                "capability": result.capability,
                "outcome": result.outcome,
                "seconds": result.seconds,
                "text": result.text,
            }
            for _, result in sorted(target.results.items())
        ],
    }


def as_json(seed: int, targets: Sequence[Target], kit: Collection[str]) -> str:
    """The whole run as a JSON document."""
    document = {"format": FORMAT, "seed": seed, "targets": [summary(target, kit) for target in targets]}
    return json.dumps(document, indent=2, ensure_ascii=False)


def table(target: Target, kit: Collection[str]) -> list[str]:
    """One line per promise, then what was not tested, then the level."""
    outcomes: dict[str, Counter[str]] = {}
    for result in target.results.values():
        for name in result.promises:
            outcomes.setdefault(name, Counter())[result.outcome] += 1
    lines = [
        f"{target.label}  ({target.shown})",
        f"  {'promise':<10}{'passed':>8}{'failed':>8}{'known':>8}{'not tested':>12}",
    ]
    for name in sorted(outcomes, key=list(PROMISES).index):
        count = outcomes[name]
        lines.append(f"  {name:<10}{count[PASSED]:>8}{count[FAILED]:>8}{count[KNOWN]:>8}{count[NOT_TESTED]:>12}")
    for name, result in sorted(target.results.items()):
        if result.outcome in (NOT_TESTED, KNOWN):
            lines.append(f"  {result.outcome}: {name}: {result.text}")
    lines.append(f"  level: {_level(target, kit)}")
    return lines


def _level(target: Target, kit: Collection[str]) -> str:
    if not is_complete(target, kit):
        return f"none claimed: {len(set(kit) - set(target.results))} of {len(kit)} tests were not run"
    held = levels(target, kit)
    if not held:
        return "none"
    untested = sum(result.outcome == NOT_TESTED for result in target.results.values())
    capabilities = f" + {{{', '.join(held[1:])}}}" if held[1:] else ""
    return f"core{capabilities}" + (f" ({untested} tests of the harness's hooks not tested)" if untested else "")
