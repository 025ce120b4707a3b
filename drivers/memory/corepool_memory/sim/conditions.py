"""What a run depends on besides its scenario, seed and decisions.

Purpose: a replay under other faults, or on another store, would be another run: refuse it, and say what differs.
Invariants: conditions are written as the Python expressions that a person would give; what is not the default is recorded, and
nothing else.
Neighbours: :mod:`~corepool_memory.sim.run` puts them into tokens and compares them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from corepool_memory.sim.errors import OtherConditions

__all__ = ["expression", "refuse_others"]


def expression(value: attrs.AttrsInstance, **presets: Any) -> str:
    """The expression that makes a value of options: ``Faults(crash_every=60.0)``, or the name of the preset it equals."""
    kind = type(value)
    for name, preset in presets.items():
        if value == preset:
            return f"{kind.__name__}.{name}()"
    given = [
        f"{field.name}={found!r}"
        for field in attrs.fields(kind)
        if (found := getattr(value, field.name)) != field.default
    ]
    return f"{kind.__name__}({', '.join(given)})"


def refuse_others(recorded: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Compare what a token was recorded with to what it is to be replayed with.

    Raises:
        OtherConditions: they differ.
    """
    differing = sorted(name for name in {*recorded, *here} if recorded.get(name) != here.get(name))
    if not differing:
        return
    raise OtherConditions(
        f"the token was recorded with {_said(recorded, differing)}, and this run has {_said(here, differing)}: that would be "
        "another run; replay it with the same",
        recorded=recorded,
    )


def _said(found: Mapping[str, str], names: list[str]) -> str:
    return ", ".join(f"{name}={found[name]}" if name in found else f"the default {name}" for name in names)
