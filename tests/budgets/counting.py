"""A store that counts what is asked of it.

Purpose: measure what a flow costs, in the units of DESIGN 4.2:

- a *command* is one request that a driver sends (a commit is one, however many operations it has, where the store can take it
  whole), or one delivery to a sink (on a store that is polled: the answer to one blocking read);
- the *path* is how many messages, one way, lie one behind the other from the call to its end. In a simulated network in which
  every message takes one millisecond and nothing else takes time, that is the virtual time itself: a round trip counts two,
  a delivery one.

Neighbours: stands on the tap of `tests.scenarios.wiretap`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable

import attrs

from corepool.testing import Cluster, Faults
from tests.scenarios.wiretap import Request, Wiretap

__all__ = ["MESSAGE", "ONE_MILLISECOND", "Cost", "Meter", "round_trips"]

MESSAGE = 0.001
ONE_MILLISECOND = Faults(latency=(MESSAGE, MESSAGE))
"""Every message takes as long as every other."""


def round_trips(trips: int, deliveries: int) -> float:
    """How long a path of so many sequential round trips and deliveries may be, in messages."""
    return 2 * trips + deliveries


@attrs.define(slots=True)
class Cost:
    """What something cost.

    requests, deliveries: by kind. operations: inside commits. path: messages one behind the other.
    """

    requests: Counter[str] = attrs.field(factory=Counter[str])
    deliveries: Counter[str] = attrs.field(factory=Counter[str])
    operations: int = 0
    path: float = 0.0

    @property
    def commands(self) -> int:
        return self.requests.total() + self.deliveries.total()

    def minus(self, other: Cost) -> Cost:
        """What this one cost more."""
        return Cost(
            Counter({kind: count - other.requests[kind] for kind, count in self.requests.items()}),
            Counter({kind: count - other.deliveries[kind] for kind, count in self.deliveries.items()}),
            self.operations - other.operations,
        )


class Meter:
    """Counts, in all and by machine."""

    def __init__(self, tap: Wiretap) -> None:
        self.total = Cost()
        self.of: dict[str, Cost] = {}
        tap.on_request.append(self._request)
        tap.on_delivery.append(self._delivery)

    def _request(self, request: Request) -> None:
        for cost in (self.total, self.of.setdefault(request.machine, Cost())):
            cost.requests[request.what] += 1
            cost.operations += len(request.ops)

    def _delivery(self, machine: str, feed: str) -> None:
        kind = feed.partition(" ")[0]
        for cost in (self.total, self.of.setdefault(machine, Cost())):
            cost.deliveries[kind] += 1

    def reset(self) -> None:
        self.total = Cost()
        self.of.clear()

    async def measure(self, cluster: Cluster, flow: Awaitable[object]) -> Cost:
        """What a flow costs, with what follows from it within a second."""
        self.reset()
        began = cluster.now
        await flow
        path = round((cluster.now - began) / MESSAGE, 3)
        await cluster.sleep(1.0)
        self.total.path = path
        return self.total
