"""A plugin that returns something that is no DriverSpec."""

from corepool.driver import hookimpl


@hookimpl
def corepool_driver(scheme: str) -> dict[str, str]:
    return {"name": scheme}
