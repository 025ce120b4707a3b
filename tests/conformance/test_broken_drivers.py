"""The kit bites: every broken driver is caught by the test that names the promise it breaks, and by no accident."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from corepool_conformance import Kit
from corepool_conformance.kit import REGISTRY
from corepool_conformance.promises import PROMISES
from corepool_conformance.suite import CLASSES
from tests.conformance.broken import maps, streams
from tests.conformance.broken.base import FAULTS, Broken, BrokenHarness, Fault

MODULES = (maps, streams)


@functools.cache
def contract_tests() -> dict[str, tuple[Any, str]]:
    """The class and the method of each contract test, by id."""
    return {
        vars(cls)[name].corepool_contract.id: (cls, name)
        for cls in CLASSES
        for name in vars(cls)
        if name.startswith("test_")
    }


def run(test: str, harness: BrokenHarness, seed: str = "seed") -> Kit:
    """Run one contract test as the plugin does; returns its kit, raises what it raises."""
    kit = Kit(harness, seed)
    try:
        cls, name = contract_tests()[test]
        getattr(cls(), name)(kit)
    except BaseException as error:  # pytest's own failures are no Exceptions
        error.history = kit.history  # type: ignore[attr-defined]
        raise
    return kit


def test_there_are_enough_of_them() -> None:
    assert len({fault.broken for fault in FAULTS}) >= 15
    assert {promise for fault in FAULTS for promise in [fault.promise]} >= {
        *("M1", "M2", "M3", "M4", "M5", "M6", "S1", "S2", "S3", "S4", "S5"),
        *("CAP", "COMMIT", "LIMITS", "CLOSE"),
    }


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.name}-{fault.test}")
def test_a_broken_driver_is_caught(fault: Fault) -> None:
    with pytest.raises((fault.raises, pytest.fail.Exception)) as caught:
        run(fault.test, BrokenHarness(fault.broken, patience=fault.patience))
    named = str(caught.value).partition("\n")[0]
    promises = REGISTRY[fault.test].promises
    assert fault.promise in promises or named.startswith(f"{fault.promise} "), (named, promises)
    if named.split(" ")[0] in PROMISES:  # where the failure names a promise by itself, it must be the right one
        assert named.startswith(f"{fault.promise} "), named


@pytest.mark.parametrize("test", sorted({fault.test for fault in FAULTS}))
def test_the_unbroken_driver_passes(test: str) -> None:
    run(test, BrokenHarness(Broken))


def test_a_difference_is_shown_as_a_short_program() -> None:
    with pytest.raises(AssertionError) as caught:
        run("differential::test_the_same_answers_as_the_memory_driver", BrokenHarness(maps.EmptyValueIsATombstone))
    history = caught.value.history  # type: ignore[attr-defined]
    assert 4 <= len(history) <= 5, history  # set, get, and what both sides said
    assert "the memory driver" in history[-1]


def test_a_lost_update_is_shown_as_a_short_history() -> None:
    with pytest.raises(AssertionError) as caught:
        run("histories::test_histories_are_linearizable", BrokenHarness(maps.LostUpdate))
    history = caught.value.history  # type: ignore[attr-defined]
    assert 2 <= len(history) <= 5, history
    assert str(caught.value).startswith("M2 ")
