"""The whole contract as one class, for a driver author's own test module.

Purpose: ``class TestMine(ConformanceSuite): harness = MyHarness`` runs every contract test with the author's harness.
Invariants: names of tests are unique across the kit's classes, so that none hides another here (the kit tests that).
Neighbours: ``corepool_conformance.plugin`` refuses a subclass that overrides a test.
"""

from __future__ import annotations

from corepool_conformance.contract.test_cancellation import TestCancellation
from corepool_conformance.contract.test_capabilities import TestCapabilities
from corepool_conformance.contract.test_commit import TestCommit
from corepool_conformance.contract.test_differential import TestDifferential
from corepool_conformance.contract.test_histories import TestHistories
from corepool_conformance.contract.test_limits import TestLimits
from corepool_conformance.contract.test_map_watch import TestMapWatch
from corepool_conformance.contract.test_maps import TestMaps
from corepool_conformance.contract.test_pool import TestPool
from corepool_conformance.contract.test_sinks import TestSinks
from corepool_conformance.contract.test_streams import TestStreams

__all__ = ["CLASSES", "ConformanceSuite"]

CLASSES = (
    TestMaps,
    TestMapWatch,
    TestHistories,
    TestDifferential,
    TestCommit,
    TestStreams,
    TestSinks,
    TestLimits,
    TestCancellation,
    TestCapabilities,
    TestPool,
)


class ConformanceSuite(
    TestMaps,
    TestMapWatch,
    TestHistories,
    TestDifferential,
    TestCommit,
    TestStreams,
    TestSinks,
    TestLimits,
    TestCancellation,
    TestCapabilities,
    TestPool,
):
    """Subclass it as ``Test…``, set ``harness``, and override no test."""
