"""Exit codes, named like the errors: by what the caller can do.

Invariants: the numbers are public and never change their meaning; each of corepool's errors has exactly one.
Neighbours: ``corepool --help`` and docs/cli.md list them; tests hold both to this table.
"""

from __future__ import annotations

import enum

from corepool import errors

__all__ = ["Exit", "exit_for"]


class Exit(enum.IntEnum):
    """What an exit code of ``corepool`` means."""

    OK = 0
    FOUND = 1
    """The command ran, and what it looked for is bad: a lost job, a violated invariant, a dangerous setting."""
    USAGE = 2
    """A wrong argument, URL, key, option or handler: correct it and call again. Nothing was sent."""
    UNAVAILABLE = 3
    """The backend cannot be reached, or refuses. Nothing was changed: calling again later is safe."""
    NOT_FOUND = 4
    """No such job."""
    EXISTS = 5
    """A job with this key exists already."""
    HANDLER = 6
    """The handler's own code failed."""
    NOT_STARTED = 7
    """No worker took the job in time, or too many wait. It was certainly not started: calling again is safe."""
    UNKNOWN = 8
    """The operation may or may not have happened: look (``corepool explain KEY``) before calling again."""
    NOT_INSTALLED = 9
    """A driver or an extra is missing or broken; the message says what to install."""
    POOL_CLOSED = 10
    """The pool was shut down, or the node is closing."""
    INTERRUPTED = 130
    """Ctrl-C, after cleaning up."""
    TERMINATED = 143
    """SIGTERM, after cleaning up. A ``corepool worker`` that handed its jobs over exits with 0 instead."""


_EXITS: dict[type[errors.CorepoolError], Exit] = {
    errors.UnknownSchemeError: Exit.NOT_INSTALLED,
    errors.DriverLoadError: Exit.NOT_INSTALLED,
    errors.InvalidKeyError: Exit.USAGE,
    errors.InvalidOptionError: Exit.USAGE,
    errors.InvalidUrlError: Exit.USAGE,
    errors.InvalidHandlerError: Exit.USAGE,
    errors.PayloadTooLarge: Exit.USAGE,
    errors.ClientOnlyError: Exit.USAGE,
    errors.BackendUnavailable: Exit.UNAVAILABLE,
    errors.UnsupportedServer: Exit.UNAVAILABLE,
    errors.UnsupportedCapability: Exit.UNAVAILABLE,
    errors.StreamFull: Exit.UNAVAILABLE,
    errors.StreamSealed: Exit.UNAVAILABLE,
    errors.PreflightError: Exit.FOUND,
    errors.WireError: Exit.FOUND,
    errors.JobNotFoundError: Exit.NOT_FOUND,
    errors.JobGoneError: Exit.NOT_FOUND,
    errors.JobExistsError: Exit.EXISTS,
    errors.JobStartError: Exit.HANDLER,
    errors.JobNotifyError: Exit.HANDLER,
    errors.Requeue: Exit.HANDLER,
    errors.ScheduleStop: Exit.HANDLER,
    errors.DispatchTimeoutError: Exit.NOT_STARTED,
    errors.QueueFullError: Exit.NOT_STARTED,
    errors.OutcomeUnknown: Exit.UNKNOWN,
    errors.NodeClosedError: Exit.POOL_CLOSED,
    errors.PoolShutdownError: Exit.POOL_CLOSED,
}


def exit_for(error: errors.CorepoolError) -> Exit:
    """The exit code that says what can be done about ``error``."""
    for kind in type(error).__mro__:
        if kind in _EXITS:
            return _EXITS[kind]
    return Exit.FOUND
