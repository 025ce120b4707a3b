"""What became of each contract test, per backend under test.

Purpose: plain values that travel from the process that ran a test (pytest-xdist has several) to the one that reports.
Invariants: a failure stays one, whatever a later phase of the test says; everything here survives JSON.
Neighbours: ``run.py`` makes results, ``report.py`` and ``matrix.py`` read them.
"""

from __future__ import annotations

from typing import Any

import attrs

__all__ = ["FAILED", "KNOWN", "NOT_TESTED", "PASSED", "Result", "Target"]

PASSED = "passed"
FAILED = "failed"
KNOWN = "known failure"
NOT_TESTED = "not tested"


@attrs.frozen(slots=True, kw_only=True)
class Result:
    """One test on one backend.

    target: the backend: "" for the one of ``--corepool-url``, else the name of the suite's class.
    label: what to call the backend in a table. shown: its URL without credentials, or where its harness is.
    test, promises, capability: see `corepool_conformance.kit.ContractTest`.
    outcome: PASSED, FAILED, KNOWN or NOT_TESTED; ``text`` says why.
    capabilities: what the backend declares; None if it was never reached.
    """

    target: str
    label: str
    shown: str
    test: str
    promises: tuple[str, ...]
    capability: str | None
    outcome: str
    seconds: float
    text: str = ""
    capabilities: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return attrs.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Result:
        """The inverse of `to_json`."""
        fields: dict[str, Any] = {**data, "promises": tuple(data["promises"])}
        return cls(**fields)


@attrs.define(slots=True)
class Target:
    """All results of one backend."""

    name: str
    label: str
    shown: str
    capabilities: dict[str, Any] | None = None
    results: dict[str, Result] = attrs.field(factory=dict[str, Result])

    def add(self, result: Result) -> None:
        """Take a result; an earlier failure of the same test is kept."""
        self.capabilities = result.capabilities or self.capabilities
        earlier = self.results.get(result.test)
        if earlier is None or earlier.outcome != FAILED:
            self.results[result.test] = result
