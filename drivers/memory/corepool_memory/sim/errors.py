"""What a simulation raises, named by what was found.

Purpose: every way in which a run can end early, so that :mod:`~corepool_memory.sim.run` can turn it into a verdict.
Invariants: messages hold no addresses, no task counters of the interpreter and nothing else that differs between
processes.
Neighbours: raised by the loop and the world, caught by ``simulate``; `NodeCrashed` reaches the scenario.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = [
    "BudgetExceeded",
    "DeadlockError",
    "InvariantViolated",
    "LivelockError",
    "NodeCrashed",
    "NotInTime",
    "OtherConditions",
    "SimulationError",
    "SimulationFailed",
    "SimulationUnsupported",
    "TokenError",
]


class SimulationError(Exception):
    """The root of what a simulation finds or refuses."""


class DeadlockError(SimulationError):
    """Nothing is ready and nothing is timed: no task can ever go on. The message is the whole report."""


class BudgetExceeded(SimulationError):
    """The run took more steps or more virtual time than it was given. Raise the budget, or find what does not end."""


class LivelockError(BudgetExceeded):
    """Very many steps were made within one instant of virtual time: something spins without ever waiting."""


class InvariantViolated(SimulationError, AssertionError):
    """A check that must hold after every step did not."""


class NotInTime(SimulationError, AssertionError):
    """``eventually``: the condition did not come true within its virtual seconds."""


class SimulationFailed(SimulationError, AssertionError):
    """A simulated run failed. The message is the whole report: story, token, and the command that replays it."""


class NodeCrashed(SimulationError):
    """The call ran on a node that was crashed meanwhile; as with any power cut, nobody will ever answer it."""


class SimulationUnsupported(SimulationError, NotImplementedError):
    """A simulated loop has no threads, sockets, signals or subprocesses: they would make a run depend on more than its
    seed."""


class TokenError(SimulationError, ValueError):
    """A replay token is damaged, was written by another version, or belongs to another scenario."""


class OtherConditions(TokenError):
    """A replay token was recorded under other faults, or on another store, than it is to be replayed with.

    recorded: what it was recorded with, where that is not the default.
    """

    def __init__(self, text: str, *, recorded: Mapping[str, str]) -> None:
        super().__init__(text)
        self.recorded = recorded
