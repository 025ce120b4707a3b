"""A plugin whose loader names an attribute that does not exist."""

import attrs
from corepool_stranger.good import corepool_driver as sound_driver

from corepool.driver import DriverSpec, hookimpl


@hookimpl
def corepool_driver(scheme: str) -> DriverSpec | None:
    spec = sound_driver("stranger")
    assert spec is not None
    return attrs.evolve(spec, loader="corepool_stranger.backend:no_such_function")
