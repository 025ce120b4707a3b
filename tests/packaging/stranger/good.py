"""A sound plugin: it says what its driver is and imports no client library."""

from corepool.driver import Capabilities, DriverSpec, hookimpl

CAPABILITIES = Capabilities(
    atomic_commit=True,
    value_ops=False,
    durable=False,
    multi_process=False,
    strict_receipts=True,
    max_key_bytes=512,
    max_name_bytes=128,
    max_value_bytes=64 * 1024,
    max_commit_ops=64,
)


@hookimpl
def corepool_driver(scheme: str) -> DriverSpec | None:
    if not scheme.startswith("stranger"):
        return None
    return DriverSpec(
        name="stranger",
        summary="a driver from another distribution",
        extra=None,
        distribution="corepool-stranger",
        capabilities=CAPABILITIES,
        loader="corepool_stranger.backend:open_stranger",
        example="stranger://here",
    )
