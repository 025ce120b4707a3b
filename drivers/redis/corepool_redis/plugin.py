"""What corepool learns of this driver without loading it.

Purpose: the entry points of the five Redis schemes in the group ``corepool.drivers``.
Invariants: importing this module imports no client library and nothing of the driver that connects.
"""

from __future__ import annotations

from corepool.driver import DriverSpec, hookimpl
from corepool_redis.capabilities import capabilities

__all__ = ["corepool_driver"]

_EXAMPLES = {
    "redis": "redis://localhost:6379/0",
    "rediss": "rediss://user:password@redis.example.org:6379/0",
    "unix": "unix:///run/redis/redis.sock?db=0",
    "redis+sentinel": "redis+sentinel://sentinel-1:26379,sentinel-2:26379/mymaster/0",
    "redis+cluster": "redis+cluster://node-1:6379,node-2:6379",
}


@hookimpl
def corepool_driver(scheme: str) -> DriverSpec | None:
    """The driver for the scheme, if it is one of ours."""
    if scheme not in _EXAMPLES:
        return None
    return DriverSpec(
        name="redis",
        summary="on Redis 6.2 or newer and Valkey: one primary, Sentinel or cluster",
        extra="redis",
        distribution="corepool",
        capabilities=capabilities(),
        loader="corepool_redis.backend:open_redis",
        example=_EXAMPLES[scheme],
    )
