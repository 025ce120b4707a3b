"""Dedicated worker pools on the store you already run: every job has one owner, and none is lost.

>>> async with corepool.connect("memory://demo") as backend:
...     async with corepool.Node(backend, "feeds") as node:
...         await node.add_worker(Feeds())
...         await node.dispatch_job("https://example.org/feed", b"payload")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from corepool.driver.backend import Backend, Capabilities, Finding, Severity
    from corepool.driver.plugins import connect, installed_drivers, open_backend
    from corepool.errors import (
        BackendUnavailable,
        ClientOnlyError,
        CorepoolError,
        DispatchTimeoutError,
        DriverLoadError,
        InvalidHandlerError,
        InvalidKeyError,
        InvalidOptionError,
        InvalidUrlError,
        JobExistsError,
        JobGoneError,
        JobNotFoundError,
        JobNotifyError,
        JobStartError,
        NodeClosedError,
        OutcomeUnknown,
        PayloadTooLarge,
        PoolShutdownError,
        PreflightError,
        QueueFullError,
        Requeue,
        ScheduleStop,
        StreamFull,
        StreamSealed,
        UnknownSchemeError,
        UnsupportedCapability,
        UnsupportedServer,
        WireError,
    )
    from corepool.pool import (
        Explanation,
        FencingToken,
        Health,
        Job,
        JobHandler,
        JobPlan,
        JobState,
        JumpHash,
        MultiProbe,
        Node,
        NodeOptions,
        Placement,
        Producer,
        Schedule,
        Worker,
    )
    from corepool.rmap import BYTES, JSON, TEXT, Lagged, ReplicatedMap
    from corepool.streaming import Reader, Sink, Stream

__all__ = [
    "BYTES",
    "JSON",
    "TEXT",
    "Backend",
    "BackendUnavailable",
    "Capabilities",
    "ClientOnlyError",
    "CorepoolError",
    "DispatchTimeoutError",
    "DriverLoadError",
    "Explanation",
    "FencingToken",
    "Finding",
    "Health",
    "InvalidHandlerError",
    "InvalidKeyError",
    "InvalidOptionError",
    "InvalidUrlError",
    "Job",
    "JobExistsError",
    "JobGoneError",
    "JobHandler",
    "JobNotFoundError",
    "JobNotifyError",
    "JobPlan",
    "JobStartError",
    "JobState",
    "JumpHash",
    "Lagged",
    "MultiProbe",
    "Node",
    "NodeClosedError",
    "NodeOptions",
    "OutcomeUnknown",
    "PayloadTooLarge",
    "Placement",
    "PoolShutdownError",
    "PreflightError",
    "Producer",
    "QueueFullError",
    "Reader",
    "ReplicatedMap",
    "Requeue",
    "Schedule",
    "ScheduleStop",
    "Severity",
    "Sink",
    "Stream",
    "StreamFull",
    "StreamSealed",
    "UnknownSchemeError",
    "UnsupportedCapability",
    "UnsupportedServer",
    "WireError",
    "Worker",
    "connect",
    "installed_drivers",
    "open_backend",
]

# Each name is loaded on its first use: pytest imports this package in every session, for its fixtures, whether or not they
# are used, and a program that only watches a map has no need of the pool.
_HOMES = {
    "Backend": "corepool.driver.backend",
    "Capabilities": "corepool.driver.backend",
    "Finding": "corepool.driver.backend",
    "Severity": "corepool.driver.backend",
    "connect": "corepool.driver.plugins",
    "installed_drivers": "corepool.driver.plugins",
    "open_backend": "corepool.driver.plugins",
    "BackendUnavailable": "corepool.errors",
    "ClientOnlyError": "corepool.errors",
    "CorepoolError": "corepool.errors",
    "DispatchTimeoutError": "corepool.errors",
    "DriverLoadError": "corepool.errors",
    "InvalidHandlerError": "corepool.errors",
    "InvalidKeyError": "corepool.errors",
    "InvalidOptionError": "corepool.errors",
    "InvalidUrlError": "corepool.errors",
    "JobExistsError": "corepool.errors",
    "JobGoneError": "corepool.errors",
    "JobNotFoundError": "corepool.errors",
    "JobNotifyError": "corepool.errors",
    "JobStartError": "corepool.errors",
    "NodeClosedError": "corepool.errors",
    "OutcomeUnknown": "corepool.errors",
    "PayloadTooLarge": "corepool.errors",
    "PoolShutdownError": "corepool.errors",
    "PreflightError": "corepool.errors",
    "QueueFullError": "corepool.errors",
    "Requeue": "corepool.errors",
    "ScheduleStop": "corepool.errors",
    "StreamFull": "corepool.errors",
    "StreamSealed": "corepool.errors",
    "UnknownSchemeError": "corepool.errors",
    "UnsupportedCapability": "corepool.errors",
    "UnsupportedServer": "corepool.errors",
    "WireError": "corepool.errors",
    "Explanation": "corepool.pool",
    "FencingToken": "corepool.pool",
    "Health": "corepool.pool",
    "Job": "corepool.pool",
    "JobHandler": "corepool.pool",
    "JobPlan": "corepool.pool",
    "JobState": "corepool.pool",
    "JumpHash": "corepool.pool",
    "MultiProbe": "corepool.pool",
    "Node": "corepool.pool",
    "NodeOptions": "corepool.pool",
    "Placement": "corepool.pool",
    "Producer": "corepool.pool",
    "Schedule": "corepool.pool",
    "Worker": "corepool.pool",
    "BYTES": "corepool.rmap",
    "JSON": "corepool.rmap",
    "TEXT": "corepool.rmap",
    "Lagged": "corepool.rmap",
    "ReplicatedMap": "corepool.rmap",
    "Reader": "corepool.streaming",
    "Sink": "corepool.streaming",
    "Stream": "corepool.streaming",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'corepool' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
