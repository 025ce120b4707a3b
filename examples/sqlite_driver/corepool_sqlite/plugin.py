"""What corepool learns of this driver without opening a file."""

from __future__ import annotations

from corepool.driver import Capabilities, DriverSpec, hookimpl

CAPABILITIES = Capabilities(
    atomic_commit=True,  # a commit is one transaction
    value_ops=True,  # read, change and write in one transaction
    durable=True,  # synchronous=FULL: what was acknowledged is on the disk
    multi_process=True,
    strict_receipts=True,  # a receipt is looked up, and there is one per delivery
    max_key_bytes=1024,
    max_name_bytes=256,
    max_value_bytes=1024 * 1024,
    max_commit_ops=256,
)


@hookimpl
def corepool_driver(scheme: str) -> DriverSpec | None:
    """The driver for ``sqlite://``."""
    if scheme != "sqlite":
        return None
    return DriverSpec(
        name="sqlite",
        summary="a file, shared by the processes of one machine",
        extra=None,
        distribution="corepool-sqlite",
        capabilities=CAPABILITIES,
        loader="corepool_sqlite.backend:open_sqlite",
        example="sqlite:///var/lib/feeds/corepool.db",
    )
