"""A map that many processes share: reads are local and immediate, writes and conditions are decided by the store.

Purpose: `ReplicatedMap`, its codecs, and the two ways to listen to it. See :mod:`corepool.rmap.replicated`.
Neighbours: stands on :mod:`corepool.driver.maps`; the pool and users stand on it.
"""

from corepool.rmap.codecs import BYTES, JSON, TEXT, Codec
from corepool.rmap.reads import Held
from corepool.rmap.replicated import ReplicatedMap, Written
from corepool.rmap.subscriptions import Changes, Lagged, MapChange, MapCleared, MapEvent, MapSnapshot, Subscription

__all__ = [
    "BYTES",
    "JSON",
    "TEXT",
    "Changes",
    "Codec",
    "Held",
    "Lagged",
    "MapChange",
    "MapCleared",
    "MapEvent",
    "MapSnapshot",
    "ReplicatedMap",
    "Subscription",
    "Written",
]
