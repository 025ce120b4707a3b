"""A plugin whose hook raises."""

from corepool.driver import DriverSpec, hookimpl


@hookimpl
def corepool_driver(scheme: str) -> DriverSpec | None:
    raise KeyError(scheme)
