"""``known_failures.toml``: the only way to say "this test fails, and we know".

Purpose: read it strictly.
Invariants: every entry names a test of the kit, a reason, an issue and a kind; a second entry for a test, an unknown field or
an unknown test is an error.
Neighbours: ``run.py`` turns a listed failure into "known failure" and a listed pass into a failure.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any, cast

import attrs

__all__ = ["KINDS", "KnownFailure", "KnownFailuresError", "read_known_failures"]

KINDS = {
    "driver": "a fault of the driver that its author means to mend",
    "backend": "something the backend cannot do",
    "kit": "a fault of the kit, reported to corepool",
}
_FIELDS = ("test", "reason", "issue", "kind")


class KnownFailuresError(ValueError):
    """The file cannot be used; the text says which entry and why."""


@attrs.frozen(slots=True)
class KnownFailure:
    """One ``[[failure]]``: the test's id, why it fails, where that is followed up, and whose fault it is."""

    test: str
    reason: str
    issue: str
    kind: str


def read_known_failures(path: Path, known_tests: Collection[str]) -> dict[str, KnownFailure]:
    """The entries by test id.

    Raises:
        KnownFailuresError: unreadable, incomplete, or an entry that matches no test of the kit.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise KnownFailuresError(f"{path}: {error}") from error
    listed = cast("list[Any]", document.pop("failure", []))
    if document or not isinstance(listed, list):  # pyright: ignore[reportUnnecessaryIsInstance]  read from a file
        raise KnownFailuresError(f"{path}: a list of [[failure]] tables and nothing else; found {', '.join(document)}")
    found: dict[str, KnownFailure] = {}
    for number, raw in enumerate(listed, 1):
        entry = _entry(f"{path}: failure {number}", raw)
        if entry.test not in known_tests:
            raise KnownFailuresError(f"{path}: failure {number}: the kit has no test {entry.test!r}: remove the entry")
        if entry.test in found:
            raise KnownFailuresError(f"{path}: failure {number}: {entry.test!r} is listed twice")
        found[entry.test] = entry
    return found


def _entry(where: str, raw: Any) -> KnownFailure:
    if not isinstance(raw, dict):
        raise KnownFailuresError(f"{where}: a table with {', '.join(_FIELDS)}")
    fields = cast("dict[str, object]", raw)
    for name in _FIELDS:
        if not isinstance(fields.get(name), str) or not str(fields[name]).strip():
            raise KnownFailuresError(
                f"{where}: {name!r} is missing; an entry has {', '.join(_FIELDS)}, all of them text"
            )
    if unknown := sorted(set(fields) - set(_FIELDS)):
        raise KnownFailuresError(f"{where}: unknown fields {', '.join(unknown)}")
    if fields["kind"] not in KINDS:
        raise KnownFailuresError(f"{where}: kind is one of {', '.join(KINDS)}, not {fields['kind']!r}")
    return KnownFailure(**{name: str(fields[name]) for name in _FIELDS})
