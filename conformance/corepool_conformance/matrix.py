"""The matrix page: what each backend was shown to promise, made from the reports of real runs.

Purpose: ``python -m corepool_conformance.matrix RESULTS PAGE`` writes the page, ``--check`` says whether it is stale.
Invariants: nothing in the page comes from anywhere but the reports (``--corepool-report``) in the folder RESULTS; a report
that was made with another set of tests than the kit has now is stale.
Neighbours: reads what ``report.py`` writes; CI runs the check.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from corepool_conformance.kit import REGISTRY
from corepool_conformance.promises import PROMISES
from corepool_conformance.report import FORMAT
from corepool_conformance.results import FAILED, KNOWN, NOT_TESTED, PASSED
from corepool_conformance.suite import CLASSES

__all__ = ["StaleError", "load_reports", "main", "render", "stale_reasons"]

Target = dict[str, Any]


class StaleError(ValueError):
    """The reports cannot be used; the text says which and why."""


def load_reports(folder: Path) -> list[Target]:
    """The backends of all reports of a folder, by label.

    Raises:
        StaleError: no report, one of another format, or two of one backend.
    """
    found: dict[str, Target] = {}
    for path in sorted(folder.glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        if document.get("format") != FORMAT:
            raise StaleError(f"{path} has format {document.get('format')}, this kit writes {FORMAT}: run the kit again")
        for target in document["targets"]:
            if target["label"] in found:
                raise StaleError(f"{path}: a second report of {target['label']}; give it a label of its own")
            found[target["label"]] = target
    if not found:
        raise StaleError(f"{folder} holds no reports; make some with --corepool-report")
    return [found[label] for label in sorted(found, key=lambda label: (label != "memory", label))]


def stale_reasons(targets: Sequence[Target]) -> list[str]:
    """Why the reports do not speak of the kit as it is now."""
    reasons: list[str] = []
    assert len(CLASSES) > 1  # importing the suite is what fills the registry
    for target in targets:
        tested = {test["id"] for test in target["tests"]}
        if missing := sorted(set(REGISTRY) - tested):
            reasons.append(f"{target['label']}: {len(missing)} tests of the kit were not run, {missing[0]} among them")
        if gone := sorted(tested - set(REGISTRY)):
            reasons.append(f"{target['label']}: the kit has no {gone[0]} any more")
    return reasons


def render(targets: Sequence[Target]) -> str:
    """The page."""
    lines = [
        "# What each backend promises",
        "",
        "<!-- Made by `python -m corepool_conformance.matrix`; do not edit. -->",
        "",
        "Made from the reports of the [conformance kit](conformance.md) in `docs/results/`. A cell tells how many tests of the",
        "promise passed; a test counts for each promise it is about. *Not tested* means that the run had no way to",
        "do it (cutting connections, restarting the server, looking past the driver), not that it failed.",
        "",
        *_row(["", *(target["label"] for target in targets)]),
        *_rule(len(targets)),
        *_row(["**level**", *(_level(target) for target in targets)]),
        *(
            line
            for name in sorted(PROMISES, key=_order)
            for line in _row([_title(name), *(_cell(t, name) for t in targets)])
        ),
        "",
        "## Capabilities and limits",
        "",
        *_row(["", *(target["label"] for target in targets)]),
        *_rule(len(targets)),
    ]
    declared: list[dict[str, Any]] = [target["capabilities"] or {} for target in targets]
    for name in dict.fromkeys(name for one in declared for name in one):
        lines += _row([f"`{name}`", *(_value(one.get(name)) for one in declared)])
    failures = [
        (target["label"], test) for target in targets for test in target["tests"] if test["outcome"] in (FAILED, KNOWN)
    ]
    if failures:
        lines += ["", "## What does not hold", ""]
        lines += [
            f"- {label}: `{test['id']}` ({test['outcome']}): {_first_line(test['text'])}" for label, test in failures
        ]
    return "\n".join(lines) + "\n"


def _order(name: str) -> tuple[int, int, str]:
    """M1 to M6, S1 to S5, P1 to P11, then the rest."""
    return (
        {"M": 0, "S": 1, "P": 2}[name[0]] if name[1:].isdigit() else 3,
        int(name[1:]) if name[1:].isdigit() else 0,
        name,
    )


def _title(name: str) -> str:
    short, _, _ = PROMISES[name].partition(":")
    return f"{name} {short}" if name[1:].isdigit() else short


def _row(cells: Sequence[str]) -> list[str]:
    return ["| " + " | ".join(cells) + " |"]


def _rule(columns: int) -> list[str]:
    return ["|" + "---|" * (columns + 1)]


def _level(target: Target) -> str:
    held = target["levels"]
    if not held:
        return "none"
    return held[0] if len(held) == 1 else f"{held[0]} + {', '.join(held[1:])}"


def _cell(target: Target, promise: str) -> str:
    outcomes = [test["outcome"] for test in target["tests"] if promise in test["promises"]]
    passed, failed = outcomes.count(PASSED), outcomes.count(FAILED) + outcomes.count(KNOWN)
    untested = outcomes.count(NOT_TESTED)
    parts = [f"**{failed} failed**"] if failed else []
    parts += [f"{passed}"] if passed or not (failed or untested) else []
    parts += [f"{untested} not tested"] if untested else []
    return ", ".join(parts)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m corepool_conformance.matrix", description="The matrix page.")
    parser.add_argument("results", type=Path, help="the folder with the reports")
    parser.add_argument("page", type=Path, help="the page to write")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is stale")
    options = parser.parse_args(arguments)
    try:
        targets = load_reports(options.results)
    except StaleError as error:
        print(error, file=sys.stderr)
        return 1
    reasons = stale_reasons(targets)
    page = render(targets)
    if options.check:
        if not options.page.exists() or options.page.read_text(encoding="utf-8") != page:
            reasons.append(f"{options.page} is not what the reports say: run the command without --check")
    else:
        options.page.write_text(page, encoding="utf-8")
    for reason in reasons:
        print(reason, file=sys.stderr)
    return 1 if reasons else 0


if __name__ == "__main__":
    raise SystemExit(main())
