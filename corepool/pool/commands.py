"""What an owner can be asked to do with one job.

Neighbours: a worker puts them, ``job`` carries them out in order. ``bell``: the event that asked, if one did.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from corepool.pool.doorbells import Doorbell
from corepool.pool.store import Stored
from corepool.pool.wire import NotifyEvent, StartEvent, StopEvent

__all__ = ["Command", "Fence", "Fenced", "HandOver", "Notify", "Review", "Start", "Stop"]


class Start(msgspec.Struct, frozen=True):
    bell: Doorbell | None
    event: StartEvent


class Stop(msgspec.Struct, frozen=True):
    bell: Doorbell | None
    event: StopEvent


class Notify(msgspec.Struct, frozen=True):
    bell: Doorbell
    event: NotifyEvent


class HandOver(msgspec.Struct, frozen=True):
    """Let go of the job, if the ring says that it belongs elsewhere."""

    why: str


class Fence(msgspec.Struct, frozen=True):
    """The lease may have run out: stop the handler before anyone may take the job (R8). Writes nothing."""


class Review(msgspec.Struct, frozen=True):
    """Compare the record with what is running here (R9, R13).

    found: the record, if whoever asks has just read it and nothing of the job runs or waits here: it need not be read again,
    for whatever is written because of it is written only if it still stands.
    """

    found: Stored | None = None


Command: TypeAlias = Start | Stop | Notify | HandOver | Fence | Review


class Fenced(Exception):
    """The lease was not valid at the moment of the call."""
