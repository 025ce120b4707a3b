"""The options of a node, validated once.

Purpose: every number that the pool's timing depends on, with its unit, its default and what it bounds.
Invariants: an instance that exists is valid; a node never changes its options.
Neighbours: made by ``Node.open`` from keyword arguments, read by every part of the pool.
"""

from __future__ import annotations

import attrs

from corepool.driver import check_duration
from corepool.errors import InvalidOptionError
from corepool.pool.placement import MultiProbe, Placement, placement_by_name

__all__ = ["NodeOptions"]


def _duration(_: NodeOptions, attribute: attrs.Attribute[float], value: float) -> None:
    check_duration(attribute.name, value)


def _count(_: NodeOptions, attribute: attrs.Attribute[int], value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidOptionError(f"{attribute.name} is a whole number of at least 1, not {value!r}")


@attrs.frozen(slots=True, kw_only=True)
class NodeOptions:
    """Options of a `Node`; all durations are seconds. Nodes of one pool should share them.

    worker_ttl: a worker whose keep-alive has not changed for so long is declared dead. A worker that could not renew for
        three quarters of it fences itself (R8).
    worker_shutdown_ttl: how long closing a node or removing a worker may take; what is left then is taken over by others.
    ack_grace_period: how long an event or an intermediate record may stay unattended before it is looked at again.
    call_timeout: how long dispatch_job, stop_job and notify_worker wait for their answer.
    max_queued_jobs: how many jobs may wait while the pool has no active worker.
    max_moves_in_flight: how many jobs one node hands over at a time.
    max_start_attempts: how often a job that had started before is tried again until it is FAILED.
    start_backoff, max_start_backoff: the first and the longest pause between those attempts; they double, with jitter.
    max_handover: how many jobs a cleaner moves at a time.
    full_scan_interval: how often one node looks at every record of the pool, as a backstop.
    neighbours: how many nodes' keep-alives a node watches.
    placement: ``multiprobe`` or ``jump``, or a `Placement` of your own (the same on all nodes).
    client_only: the node dispatches, stops and notifies, but holds no workers.
    """

    worker_ttl: float = attrs.field(default=30.0, validator=_duration)
    worker_shutdown_ttl: float = attrs.field(default=120.0, validator=_duration)
    ack_grace_period: float = attrs.field(default=20.0, validator=_duration)
    call_timeout: float = attrs.field(default=30.0, validator=_duration)
    max_queued_jobs: int = attrs.field(default=1000, validator=_count)
    max_moves_in_flight: int = attrs.field(default=32, validator=_count)
    max_start_attempts: int = attrs.field(default=5, validator=_count)
    start_backoff: float = attrs.field(default=0.5, validator=_duration)
    max_start_backoff: float = attrs.field(default=30.0, validator=_duration)
    max_handover: int = attrs.field(default=64, validator=_count)
    full_scan_interval: float = attrs.field(default=600.0, validator=_duration)
    neighbours: int = attrs.field(default=3, validator=_count)
    placement: Placement = attrs.field(factory=MultiProbe, converter=placement_by_name)
    client_only: bool = False

    @property
    def poll_period(self) -> float:
        """How often a node renews its keep-alives and looks at its neighbours'."""
        return self.worker_ttl / 5

    @property
    def fence_after(self) -> float:
        """How long a worker may run without a confirmed renewal (R8)."""
        return 0.75 * self.worker_ttl
