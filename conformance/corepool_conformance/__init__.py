"""The conformance kit of corepool: one suite for every driver, ours or a stranger's.

Purpose: hold a driver to the contract of :mod:`corepool.driver`, and say in a table what it promises.
Run it without writing code (``pytest --pyargs corepool_conformance --corepool-url=mine://…``), or subclass
`ConformanceSuite` with a `Harness` that offers what only the driver's author can.
Invariants: importing this package imports neither corepool nor Hypothesis (the pytest plugin lives here and is loaded by
every pytest run); the public names are resolved when they are used.
Neighbours: imports ``corepool.driver`` and ``corepool.errors``; never a driver, the memory driver excepted, which the
differential layer opens by its URL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from corepool_conformance.harness import Harness, UrlHarness
    from corepool_conformance.kit import Kit, PromiseBroken, promise
    from corepool_conformance.suite import ConformanceSuite

__all__ = ["ConformanceSuite", "Harness", "Kit", "PromiseBroken", "UrlHarness", "promise"]

_HOMES = {
    "ConformanceSuite": "suite",
    "Harness": "harness",
    "Kit": "kit",
    "PromiseBroken": "kit",
    "UrlHarness": "harness",
    "promise": "kit",
}


def __getattr__(name: str) -> Any:
    """Resolve a public name on first use (PEP 562), so that the plugin stays light."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
