"""The two JetStream streams of a namespace: one for all its maps, one for all its logical streams.

Purpose: make them when they are first needed, and know what matters of them.
Invariants: an existing stream is never reconfigured; a new one begins at a sequence taken from the clock
(microseconds), so that a stream that was deleted and made again goes on above every sequence it ever had, and revisions
never go back; concurrent makers end with one stream.
Neighbours: maps, streams and watches publish through `maps` and `streams`; the API is :mod:`corepool_nats.client`'s.
"""

from __future__ import annotations

import asyncio
from typing import Any

import attrs
import msgspec

from corepool.errors import BackendUnavailable, UnsupportedServer
from corepool_nats import api
from corepool_nats.client import Client, Target
from corepool_nats.names import Space

__all__ = ["Asset", "Assets", "check_jetstream"]


@attrs.frozen(slots=True)
class Asset:
    """What a client knows of one of its JetStream streams. ``created`` differs when it was deleted and made again."""

    created: str
    replicas: int


class Assets:
    """The JetStream streams of one namespace."""

    def __init__(self, client: Client, space: Space) -> None:
        self.client = client
        self.space = space
        self.maps = Target(space.maps_asset, space.maps_fence, self._ensure_maps)
        self.streams = Target(space.streams_asset, space.streams_fence, self._ensure_streams)
        self._known: dict[str, Asset] = {}
        self._making = asyncio.Lock()

    async def _ensure_maps(self, deadline: float) -> None:
        await self.refresh(self.maps, deadline)

    async def _ensure_streams(self, deadline: float) -> None:
        await self.refresh(self.streams, deadline)

    async def get(self, target: Target, deadline: float) -> Asset:
        """The asset, made if it does not exist; from memory if it was seen before."""
        known = self._known.get(target.asset)
        return known if known is not None else await self.refresh(target, deadline)

    async def refresh(self, target: Target, deadline: float) -> Asset:
        """Ask the server; make the stream if there is none.

        Raises:
            BackendUnavailable, UnsupportedServer
        """
        async with self._making:
            while True:
                info = await self.client.api(f"STREAM.INFO.{target.asset}", b"", api.StreamInfo, deadline)
                if info.error is not None and info.error.err_code == api.NO_STREAM:
                    info = await self._make(target, deadline)
                if info.error is not None:
                    if info.error.err_code == api.NAME_IN_USE:
                        continue  # somebody else made it a moment ago
                    if api.is_forming(info.error) and not self.client.expired(deadline):
                        await self.client.pause(deadline)
                        continue
                    raise api.explain(info.error, f"preparing the JetStream stream {target.asset}")
                if info.config is None:
                    raise BackendUnavailable(f"the server describes {target.asset} without its configuration")
                asset = Asset(info.created, info.config.num_replicas)
                self.client.windows[target.asset] = info.config.duplicate_window / 1e9
                before = self._known.get(target.asset)
                self._known[target.asset] = asset
                if before is not None and before.created != asset.created:
                    self.client.report_loss(target.asset)
                return asset

    async def _make(self, target: Target, deadline: float) -> api.StreamInfo:
        settings, space = self.client.settings, self.space
        is_maps = target is self.maps
        config: dict[str, Any] = {
            "name": target.asset,
            "description": f"corepool: {'maps' if is_maps else 'streams'} of {space.token}"[:200],
            "subjects": [space.maps, space.maps_fence, f"cp.{space.token}.mw.*"]
            if is_maps
            else [space.streams, space.streams_fence],
            "retention": "limits",
            "discard": "new",  # a stream that is full refuses: it never drops what nobody acknowledged
            "storage": settings.storage,
            "num_replicas": settings.replicas,
            "max_msgs_per_subject": settings.history if is_maps else -1,
            "max_bytes": settings.max_bytes if settings.max_bytes is not None else -1,
            "duplicate_window": int(settings.duplicate_window * 1e9),
            "allow_direct": True,
            "allow_msg_ttl": True,
            "first_seq": int(self.client.clock.wall() * 1e6),
        }
        if settings.placement_cluster or settings.placement_tags:
            config["placement"] = {
                "cluster": settings.placement_cluster or "",
                "tags": list(settings.placement_tags),
            }
        body = msgspec.json.encode(config)
        return await self.client.api(f"STREAM.CREATE.{target.asset}", body, api.StreamInfo, deadline)


async def check_jetstream(client: Client, deadline: float) -> api.AccountInfo:
    """Ask for the account's JetStream.

    Raises:
        UnsupportedServer: it is off.
    """
    link = await client.link(deadline)
    if not link.info.get("headers", False):
        raise UnsupportedServer("the server has message headers switched off (no_header_support); corepool needs them")
    if link.info.get("jetstream") is not True and not link.info.get("cluster"):
        raise UnsupportedServer(
            "JetStream is off on this server; start nats-server with -js, or add `jetstream {}` to its configuration"
        )
    info = await client.api("INFO", b"", api.AccountInfo, deadline)
    if info.error is not None:
        raise api.explain(info.error, "asking for JetStream")
    return info
