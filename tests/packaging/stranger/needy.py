"""A plugin whose loader needs a client library that an extra would bring."""

import attrs
from corepool_stranger.good import corepool_driver as sound_driver

from corepool.driver import DriverSpec, hookimpl


@hookimpl
def corepool_driver(scheme: str) -> DriverSpec | None:
    spec = sound_driver("stranger")
    assert spec is not None
    return attrs.evolve(spec, name="needy", extra="client", loader="corepool_stranger.needy_backend:open_needy")
