"""What corepool learns of this driver without loading it.

Purpose: the entry points ``nats``, ``tls``, ``ws`` and ``wss`` in the group ``corepool.drivers``.
Invariants: importing this module imports neither nats-py nor anything that needs it.
"""

from __future__ import annotations

from corepool.driver import Capabilities, DriverSpec, hookimpl

__all__ = ["CAPABILITIES", "HEADER_ROOM", "corepool_driver"]

HEADER_ROOM = 4096
"""Of a server's ``max_payload``: what headers may take."""

CAPABILITIES = Capabilities(
    atomic_commit=False,
    value_ops=False,
    durable=True,
    multi_process=True,
    strict_receipts=False,
    max_key_bytes=512,
    max_name_bytes=200,
    max_value_bytes=(1 << 20) - HEADER_ROOM,
    max_commit_ops=256,
)


@hookimpl
def corepool_driver(scheme: str) -> DriverSpec | None:
    """The driver for ``nats://``, ``tls://``, ``ws://`` and ``wss://``."""
    if scheme not in ("nats", "tls", "ws", "wss"):
        return None
    return DriverSpec(
        name="nats",
        summary="NATS JetStream, server 2.11 or newer; one server or a cluster",
        extra="nats",
        distribution="corepool",
        capabilities=CAPABILITIES,
        loader="corepool_nats.backend:open_nats",
        example="nats://127.0.0.1:4222",
    )
