"""What corepool learns of this driver without loading it.

Purpose: the entry point ``memory`` in the group ``corepool.drivers``.
Invariants: importing this module imports neither the server nor asyncio machinery of the driver.
"""

from __future__ import annotations

from corepool.driver import DriverSpec, hookimpl
from corepool_memory.options import DEFAULTS

__all__ = ["corepool_driver"]


@hookimpl
def corepool_driver(scheme: str) -> DriverSpec | None:
    """The driver for ``memory://``."""
    if scheme != "memory":
        return None
    return DriverSpec(
        name="memory",
        summary="in this process, for demos, development and tests; nothing survives the process",
        extra=None,
        distribution="corepool",
        capabilities=DEFAULTS.capabilities,
        loader="corepool_memory.stores:open_memory",
        example="memory://demo",
    )
