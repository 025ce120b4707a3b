"""Who watches whom: keep-alives observed by neighbours on the ring (R10), and how long a death can go unseen.

Purpose: nodes on a ring, each of which observes the next one (k = 1, the hardest case; the pool uses 3 or more). Nodes
die and join at any time. A death is found when somebody has observed an unchanged keep-alive for ``worker_ttl`` = T
periods.
Invariants: the dead change nothing, the living renew in every period. An observation counts from the observer's own
first look. The bound is DESIGN 4.3: 2 T + poll period after the last death, for any number of deaths and whatever joins
meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tests.model.explore import Model, Step

TTL = 3
BOUND = 2 * TTL + 1
NAMES = "ABCDEFG"

FOUND_IN_TIME = "11. a death is found within 2 T + poll period"

ALIVE, DEAD, GONE, ABSENT = "alive", "dead", "gone", "absent"
"""DEAD: crashed, still listed in ``nodes``. GONE: found and cleaned. ABSENT: may join."""


class Node(NamedTuple):
    status: str
    watches: tuple[tuple[int, int], ...] = ()
    """Pairs of (observed node, periods for which it was seen not to change), sorted."""
    alarmed: bool = False
    """It found a death and looks at everybody until none is suspect."""


class Ring(NamedTuple):
    nodes: tuple[Node, ...]
    since_death: int = 0
    deaths: int = 0
    joins: int = 0


class WatchModel(Model[Ring]):
    name = "watch"

    def __init__(self, members: str, joiners: str, deaths: int, off: Iterable[str] = ()) -> None:
        super().__init__(off)
        self.members, self.joiners, self.deaths = members, joiners, deaths

    def initial(self) -> Iterable[Ring]:
        size = len(self.members) + len(self.joiners)
        nodes = tuple(Node(ALIVE if NAMES[index] in self.members else ABSENT) for index in range(size))
        yield self._watched(Ring(nodes, 0, self.deaths, len(self.joiners)))

    def steps(self, state: Ring) -> Iterator[Step[Ring]]:
        for index, node in enumerate(state.nodes):
            if node.status == ALIVE and state.deaths and sum(other.status == ALIVE for other in state.nodes) > 1:
                dead = self._set(state, index, Node(DEAD))
                yield Step(f"node {NAMES[index]}", "dies", dead._replace(deaths=state.deaths - 1, since_death=0), True)
            if node.status == ABSENT:
                joined = self._watched(self._set(state, index, Node(ALIVE)))
                yield Step(f"node {NAMES[index]}", "joins", joined, True)
        if any(node.status == DEAD for node in state.nodes):
            yield Step("time", "a period passes, everybody polls", self._poll(state))

    def _poll(self, state: Ring) -> Ring:
        """Everybody alive renews and polls once; who was silent for T is found, cleaned, and leaves the ring."""
        nodes = list(state.nodes)
        found: set[int] = set()
        for index, node in enumerate(nodes):
            if node.status != ALIVE:
                continue
            ages = {other: (age + 1 if nodes[other].status == DEAD else 0) for other, age in node.watches}
            silent = {other for other, age in ages.items() if age >= TTL}
            found |= silent
            alarmed = bool(silent) or (node.alarmed and any(ages.values()))
            kept = tuple(sorted((other, age) for other, age in ages.items() if other not in silent))
            nodes[index] = node._replace(watches=kept, alarmed=alarmed)
        for index in found:
            nodes[index] = Node(GONE)
        return self._watched(state._replace(nodes=tuple(nodes), since_death=min(state.since_death + 1, BOUND + 1)))

    def _watched(self, state: Ring) -> Ring:
        """The ring changed, or a keep-alive did: who has to observe whom now."""
        nodes = list(state.nodes)
        listed = [index for index, node in enumerate(nodes) if node.status in (ALIVE, DEAD)]
        for index in listed:
            node = nodes[index]
            if node.status == DEAD:
                continue
            next_one = listed[(listed.index(index) + 1) % len(listed)]
            everybody = node.alarmed and "R10.alarm" not in self.off
            wanted = {other for other in listed if other != index} if everybody else {next_one} - {index}
            old = dict(node.watches)
            if "R10.handover" not in self.off:
                # One whom the ring took away stays observed until it is seen to change; the dead never do.
                wanted |= {other for other, age in old.items() if age and nodes[other].status in (ALIVE, DEAD)}
            nodes[index] = node._replace(watches=tuple(sorted((other, old.get(other, 0)) for other in wanted)))
        return state._replace(nodes=tuple(nodes))

    @staticmethod
    def _set(state: Ring, index: int, node: Node) -> Ring:
        return state._replace(nodes=(*state.nodes[:index], node, *state.nodes[index + 1 :]))

    def broken(self, state: Ring) -> str | None:
        dead = any(node.status == DEAD for node in state.nodes)
        return FOUND_IN_TIME if dead and state.since_death > BOUND else None

    def broken_at_rest(self, state: Ring) -> str | None:
        return FOUND_IN_TIME if any(node.status == DEAD for node in state.nodes) else None

    def landmarks(self, state: Ring) -> Iterable[str]:
        dead = sum(node.status == DEAD for node in state.nodes)
        if dead:
            yield f"{dead} dead at a time"
            if state.since_death > TTL:
                yield "found by nobody for longer than T"
        if any(node.alarmed for node in state.nodes):
            yield "alarmed"

    def show(self, state: Ring) -> str:
        parts = []
        for name, node in zip(NAMES, state.nodes, strict=False):
            if node.status == ALIVE:
                watched = " ".join(f"{NAMES[other]}:{age}" for other, age in node.watches)
                parts.append(f"{name} watches {watched}" + (" (alarmed)" if node.alarmed else ""))
            elif node.status == DEAD:
                parts.append(f"{name} dead")
        return f"{state.since_death} after the last death | " + " | ".join(parts)
