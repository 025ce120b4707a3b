"""What the driver promises and its limits: light, for the plugin module imports it."""

from __future__ import annotations

from corepool.driver import Capabilities

__all__ = ["capabilities"]


def capabilities(max_value_bytes: int = 1024 * 1024) -> Capabilities:
    """``durable`` speaks of a restart of a server with its appendonly file on; preflight tells whether it is."""
    return Capabilities(
        atomic_commit=True,
        value_ops=True,
        durable=True,
        multi_process=True,
        strict_receipts=True,
        max_key_bytes=4096,
        max_name_bytes=1024,
        max_value_bytes=max_value_bytes,
        max_commit_ops=256,
    )
