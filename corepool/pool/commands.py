"""What an owner can be asked to do with one job.

Neighbours: a worker puts them, ``job`` carries them out in order. ``bell``: the event that asked, if one did.
"""

from __future__ import annotations

from typing import TypeAlias

import attrs

from corepool.pool.doorbells import Doorbell
from corepool.pool.wire import NotifyEvent, StartEvent, StopEvent

__all__ = ["Command", "Fence", "Fenced", "HandOver", "Notify", "Review", "Start", "Stop"]


@attrs.frozen(slots=True)
class Start:
    bell: Doorbell | None
    event: StartEvent


@attrs.frozen(slots=True)
class Stop:
    bell: Doorbell | None
    event: StopEvent


@attrs.frozen(slots=True)
class Notify:
    bell: Doorbell
    event: NotifyEvent


@attrs.frozen(slots=True)
class HandOver:
    """Let go of the job, if the ring says that it belongs elsewhere."""

    why: str


@attrs.frozen(slots=True)
class Fence:
    """The lease may have run out: stop the handler before anyone may take the job (R8). Writes nothing."""


@attrs.frozen(slots=True)
class Review:
    """Compare the record with what is running here (R9, R13)."""


Command: TypeAlias = Start | Stop | Notify | HandOver | Fence | Review


class Fenced(Exception):
    """The lease was not valid at the moment of the call."""
