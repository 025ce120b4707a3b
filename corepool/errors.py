"""Every error corepool raises, named by what the caller can do about it.

Purpose: one catalogue, so that ``except`` clauses read like decisions.
Invariants: each error derives from :class:`CorepoolError`; a message names the offending value, the limit and the
remedy; no message holds a credential.
Neighbours: everything imports this module; it imports nothing of corepool.
"""

from __future__ import annotations

__all__ = [
    "BackendUnavailable",
    "ClientOnlyError",
    "CorepoolError",
    "DispatchTimeoutError",
    "DriverLoadError",
    "InvalidHandlerError",
    "InvalidKeyError",
    "InvalidOptionError",
    "InvalidUrlError",
    "JobExistsError",
    "JobGoneError",
    "JobNotFoundError",
    "JobNotifyError",
    "JobStartError",
    "NodeClosedError",
    "OutcomeUnknown",
    "PayloadTooLarge",
    "PoolShutdownError",
    "PreflightError",
    "QueueFullError",
    "Requeue",
    "ScheduleStop",
    "StreamFull",
    "StreamSealed",
    "UnknownSchemeError",
    "UnsupportedCapability",
    "UnsupportedServer",
    "WireError",
]


class CorepoolError(Exception):
    """The root of all errors of corepool."""


# --- the caller's input: correct it and call again -------------------------------------------------------------------


class InvalidKeyError(CorepoolError, ValueError):
    """A key or name is empty, too long, or cannot be encoded. Nothing was sent."""


class InvalidOptionError(CorepoolError, ValueError):
    """An option is out of its range (negative, NaN, ...). Nothing was sent."""


class InvalidUrlError(CorepoolError, ValueError):
    """A backend URL cannot be understood. The message never repeats the part that may hold a password."""


class InvalidHandlerError(CorepoolError, TypeError):
    """A job handler lacks ``start`` or ``stop``, or one of them cannot be called."""


class PayloadTooLarge(CorepoolError, ValueError):
    """A payload is over the backend's limit. Nothing was sent."""


# --- the backend: install, configure, wait ---------------------------------------------------------------------------


class UnknownSchemeError(InvalidUrlError):
    """No installed driver serves the URL's scheme; the message names those that are installed."""


class DriverLoadError(CorepoolError):
    """A driver is registered but cannot be loaded: a missing extra, or a broken plugin. Other drivers still work."""


class UnsupportedCapability(CorepoolError):
    """The backend does not declare what the call needs. Nothing was changed."""


class UnsupportedServer(CorepoolError):
    """The server is too old, or a feature it needs is off. The message names the remedy."""


class PreflightError(CorepoolError):
    """``connect(strict=True)`` found a setting that endangers data. The message lists findings and remedies."""


class BackendUnavailable(CorepoolError):
    """The backend cannot be reached. The operation was certainly **not** applied; it is safe to call again."""


class OutcomeUnknown(CorepoolError):
    """The operation may or may not have been applied (or may still be). Look before calling again."""


class StreamFull(CorepoolError):
    """A work stream holds as many events as it may. Nothing was appended: wait, or raise the limit."""


class StreamSealed(CorepoolError):
    """The stream takes no more appends; it can still be drained."""


class WireError(CorepoolError):
    """Bytes from the backend are not what this version writes. They are set aside and counted, never executed."""


# --- jobs ------------------------------------------------------------------------------------------------------------


class JobExistsError(CorepoolError):
    """A job with this key exists already, on some worker or on its way to one."""


class JobNotFoundError(CorepoolError):
    """No job with this key exists."""


class JobStartError(CorepoolError):
    """The handler's ``start`` failed on a new job. No job is left behind. The text is the handler's own error."""


class JobNotifyError(CorepoolError):
    """The handler's ``notify`` failed, or the handler has none. The job runs on."""


class DispatchTimeoutError(CorepoolError):
    """No worker claimed the job in time. It was certainly never started, and no job is left behind."""


class JobGoneError(CorepoolError):
    """The job is gone although nobody answered: none is left, but it may have run (stopped, or withdrawn)."""


class QueueFullError(CorepoolError):
    """No worker is active and as many jobs wait as may. Nothing was admitted: add a worker, or raise the limit."""


# --- the node --------------------------------------------------------------------------------------------------------


class NodeClosedError(CorepoolError):
    """The node is closed or closing; use another one."""


class PoolShutdownError(CorepoolError):
    """The pool was shut down; a new node opens its next incarnation."""


class ClientOnlyError(CorepoolError):
    """The node was opened with ``client_only=True`` and cannot hold workers."""


# --- raised by the user's own code -----------------------------------------------------------------------------------


class Requeue(CorepoolError):
    """Raised by a handler's ``start``: this worker cannot take the job now; try again later, here or elsewhere."""


class ScheduleStop(CorepoolError):
    """Raised by a schedule's producer: the schedule ends, on every node."""
