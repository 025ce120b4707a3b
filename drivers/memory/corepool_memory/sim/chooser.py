"""Every decision of a simulation, made in one place.

Purpose: turn a seed, or a short list of deviations, into the same decisions in every process.
Invariants:

- A decision is an integer from 0 to n - 1; **0 is the default**: no fault, no delay. A run of default decisions is
  the simplest there is, and minimising a failure means making decisions 0.
- Each label has a source of its own and counts its own decisions: one more message on one link moves nothing elsewhere.
- A decision is named by (label, ordinal). The non-default ones are recorded; replaying exactly these gives the same
  run.

Neighbours: network, faults, clocks and scenarios draw from it; :mod:`~corepool_memory.sim.minimise` reduces what it
recorded.
"""

from __future__ import annotations

import abc
import random
from collections.abc import Mapping
from typing import TypeAlias

__all__ = ["Chooser", "Deviations", "Risk", "SeededChooser", "Site", "SparseChooser"]

_AHEAD = 1000
_NEVER = 1 << 60

Deviations: TypeAlias = Mapping[tuple[str, int], int]
"""Decisions that are not 0, by label and ordinal."""


class Site:
    """The decisions of one label. Hold on to it where decisions are frequent."""

    __slots__ = ("_chooser", "_ordinal", "_random", "_wanted", "label", "ordinals", "values")

    def __init__(self, chooser: Chooser, label: str, source: random.Random | None, wanted: Mapping[int, int]) -> None:
        self._chooser = chooser
        self._random = source
        self._wanted = wanted
        self._ordinal = 0
        self.label = label
        # The decisions that are not the default, in two lists: a tuple for each would be the most that a run makes and keeps.
        self.ordinals: list[int] = []
        self.values: list[int] = []

    def choose(self, n: int) -> int:
        """An integer from 0 to ``n - 1``, each as likely."""
        ordinal = self._ordinal
        self._ordinal = ordinal + 1
        source = self._random
        # A deviation recorded under other circumstances may be out of range: clamp it, the run stays well-defined.
        value = int(source.random() * n) if source is not None else min(self._wanted.get(ordinal, 0), n - 1)
        if value:
            self._chooser.note(self, ordinal, value)
        return value

    def chance(self, probability: float) -> bool:
        """True with that probability; False is the default.

        A deviation in a replay wins over the probability: a minimised run keeps one fault while the
        plan that made faults likely is back at its default.
        """
        ordinal = self._ordinal
        self._ordinal = ordinal + 1
        if self._random is not None:
            if probability <= 0.0 or self._random.random() >= probability:
                return False
        elif not self._wanted.get(ordinal, 0):
            return False
        self._chooser.note(self, ordinal, 1)
        return True

    def look_ahead(self, probability: float) -> tuple[int, bool]:
        """How often `chance` would answer False from here on, and whether True then (or nobody knows). They count as asked."""
        ordinal, source = self._ordinal, self._random
        if source is None:
            wanted = min((at for at, value in self._wanted.items() if value and at >= ordinal), default=None)
            count, strikes = (_NEVER, False) if wanted is None else (wanted - ordinal, True)
        elif probability <= 0.0:
            count, strikes = _NEVER, False
        else:
            count, draw = 0, source.random
            while count < _AHEAD and draw() >= probability:
                count += 1
            strikes = count < _AHEAD
        self._ordinal = ordinal + count
        return count, strikes

    def strike(self) -> None:
        """`chance` answers True, as was foreseen."""
        self._chooser.note(self, self._ordinal, 1)
        self._ordinal += 1


class Risk:
    """``site.chance(probability)``, asked so often that it pays to know the answers beforehand.

    left: how many more times the answer is False: whoever asks may count it down himself instead.
    """

    __slots__ = ("_probability", "_site", "_strikes", "left")

    def __init__(self, site: Site, probability: float) -> None:
        self._site = site
        self._probability = probability
        self._strikes = False
        self.left = 0

    def strikes(self) -> bool:
        """Whether it happens now."""
        while not self.left and not self._strikes:
            self.left, self._strikes = self._site.look_ahead(self._probability)
        if self.left:
            self.left -= 1
            return False
        self._strikes = False
        self._site.strike()
        return True


class Chooser(abc.ABC):
    """Makes decisions and records those that are not the default."""

    def __init__(self) -> None:
        self._noted: list[Site] = []
        self._sites: dict[str, Site] = {}
        self._sealed = False

    def choose(self, n: int, label: str) -> int:
        """An integer from 0 to ``n - 1``: the next decision of ``label``. 0 is the default.

        Raises:
            ValueError: ``n`` is not positive.
        """
        if n < 1:
            raise ValueError(f"there is nothing to choose from {n} possibilities")
        return self.site(label).choose(n)

    def chance(self, probability: float, label: str) -> bool:
        """True with ``probability``: the next decision of ``label``. False is the default."""
        return self.site(label).chance(probability)

    def site(self, label: str) -> Site:
        """The decisions of ``label``."""
        site = self._sites.get(label)
        if site is None:
            site = self._sites[label] = self._make_site(label)
        return site

    def note(self, site: Site, ordinal: int, value: int) -> None:
        """Record a decision (called by sites)."""
        if self._sealed:
            raise AssertionError(f"a decision was made after the run ended: {site.label} {ordinal}")
        self._noted.append(site)
        site.ordinals.append(ordinal)
        site.values.append(value)

    @property
    def recorded(self) -> dict[tuple[str, int], int]:
        """The decisions that are not the default, in the order they were made."""
        each = {site: zip(site.ordinals, site.values, strict=True) for site in self._sites.values()}
        found: dict[tuple[str, int], int] = {}
        for site in self._noted:
            ordinal, value = next(each[site])
            found[site.label, ordinal] = value
        return found

    def seal(self) -> None:
        """The run is over: what its teardown would still decide must not be part of the record."""
        self._sealed = True

    @abc.abstractmethod
    def _make_site(self, label: str) -> Site: ...


class SeededChooser(Chooser):
    """Random decisions: a function of the seed, the label and the ordinal."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def _make_site(self, label: str) -> Site:
        return Site(self, label, random.Random(f"corepool:{self.seed}:{label}"), {})


class SparseChooser(Chooser):
    """The decisions given, and 0 for all others."""

    def __init__(self, deviations: Deviations) -> None:
        super().__init__()
        self._deviations: dict[str, dict[int, int]] = {}
        for (label, ordinal), value in deviations.items():
            self._deviations.setdefault(label, {})[ordinal] = value

    def _make_site(self, label: str) -> Site:
        return Site(self, label, None, self._deviations.get(label, {}))
