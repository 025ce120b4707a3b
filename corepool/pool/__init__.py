"""The pool: nodes, workers, jobs. Written once, against the two protocols of :mod:`corepool.driver`.

The way of a job through the code: ``node`` (the call) → ``dispatch`` (the caller's side) → ``protocol`` (each transition as
one commit; ``transitions`` says which) → ``worker`` (the owner's inbox) → ``job`` (claim, start, stop, hand over).
What looks after it: ``liveness`` and ``lease`` (who is alive), ``cleanup`` (burying the dead), ``sweeper`` (what nobody looks
after), ``router`` (what waits for a worker).
"""

from corepool.pool.explain import Explanation, Health
from corepool.pool.handlers import FencingToken, Job, JobHandler
from corepool.pool.node import Node
from corepool.pool.options import NodeOptions
from corepool.pool.placement import JumpHash, MultiProbe, Placement, Placer
from corepool.pool.schedule import JobPlan, Producer, Schedule
from corepool.pool.wire import JobState, WorkerRecord
from corepool.pool.worker import Worker

__all__ = [
    "Explanation",
    "FencingToken",
    "Health",
    "Job",
    "JobHandler",
    "JobPlan",
    "JobState",
    "JumpHash",
    "MultiProbe",
    "Node",
    "NodeOptions",
    "Placement",
    "Placer",
    "Producer",
    "Schedule",
    "Worker",
    "WorkerRecord",
]
