"""The conformance kit on NATS: on one server with every hook and the documented rights alone, and on a cluster of three."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import nats
import pytest

from corepool.driver import Backend, open_backend
from corepool_conformance import ConformanceSuite, Harness
from corepool_conformance.contract.test_commit import TestCommit as CommitContract
from corepool_conformance.contract.test_histories import TestHistories as HistoriesContract
from corepool_conformance.contract.test_map_watch import TestMapWatch as MapWatchContract
from corepool_conformance.contract.test_maps import TestMaps as MapsContract
from corepool_conformance.contract.test_sinks import TestSinks as SinksContract
from corepool_conformance.contract.test_streams import TestStreams as StreamsContract
from corepool_conformance.proxy import TcpProxy
from corepool_nats.names import Space
from tests.servers.nats import NatsCluster, NatsServer

DOCS = Path(__file__).parents[2] / "docs" / "nats.md"


def documented_rights() -> str:
    """The permissions that docs/nats.md gives to a user."""
    match = re.search(r"permissions: \{\n(.+?)\n\s*\}", DOCS.read_text(), re.DOTALL)
    assert match is not None, "docs/nats.md names the rights"
    return f"permissions: {{\n{match[1]}\n}}"


class NatsHarness(Harness):
    """One server, a proxy to cut, a look past the driver by a user who may do anything."""

    ack_wait = 0.6
    server: NatsServer

    def __init__(self) -> None:
        self._proxy: TcpProxy | None = None

    async def begin(self, needs: Collection[str]) -> None:
        if "cut" in needs:
            self._proxy = await TcpProxy.start("127.0.0.1", self.server.port)

    async def end(self) -> None:
        proxy, self._proxy = self._proxy, None
        if proxy is not None:
            await proxy.aclose()

    async def connect(self) -> Backend:
        port = self.server.port if self._proxy is None else self._proxy.port
        return await open_backend(f"nats://corepool:least@127.0.0.1:{port}")

    async def cut(self) -> None:
        assert self._proxy is not None
        await self._proxy.cut()

    async def heal(self) -> None:
        assert self._proxy is not None
        await self._proxy.heal()

    async def restart(self) -> None:
        await asyncio.to_thread(self.server.restart)

    async def _ask(self, subject: str, body: Any = None) -> dict[str, Any]:
        client = await nats.connect(f"nats://127.0.0.1:{self.server.port}", user="root", password="root")
        try:
            data = json.dumps(body).encode() if body is not None else b""
            reply = await client.request(f"$JS.API.{subject}", data, timeout=5)
            return json.loads(reply.data)  # type: ignore[no-any-return]
        finally:
            await client.close()

    async def raw_read(self, namespace: str, map_name: str, key: str) -> bytes | None:
        space = Space(namespace)
        query = {"last_by_subj": space.map(map_name).key(key)}
        found = await self._ask(f"STREAM.MSG.GET.{space.maps_asset}", query)
        return base64.b64decode(found["message"].get("data", "")) if "message" in found else None

    async def raw_write(self, namespace: str, map_name: str, key: str, data: bytes) -> None:
        client = await nats.connect(f"nats://127.0.0.1:{self.server.port}", user="root", password="root")
        headers = {"Cp-If": "not a number"}
        await client.request(Space(namespace).map(map_name).key(key), data, timeout=5, headers=headers)
        await client.close()

    async def leaks(self, namespace: str) -> list[str]:
        """All but the fences, of which the newest stay, and the markers of destroyed maps, which are swept later."""
        space = Space(namespace)
        left: list[str] = []
        for asset in (space.maps_asset, space.streams_asset):
            info = await self._ask(f"STREAM.INFO.{asset}", {"subjects_filter": ">"})
            left += [
                subject
                for subject in info["state"].get("subjects") or {}
                if not re.fullmatch(r"cp\.[^.]+\.(mf|sf|mw\..+|m\.[^.]+\.r)", subject)
            ]
            left += (await self._ask(f"CONSUMER.NAMES.{asset}"))["consumers"] or []
        return left

    async def members(self, namespace: str, stream: str, sink: str) -> list[str]:
        """A server knows no members; what it has of them are their open requests."""
        asset = Space(namespace).streams_asset
        open_requests: list[str] = []
        for consumer in (await self._ask(f"CONSUMER.NAMES.{asset}"))["consumers"] or []:
            info = await self._ask(f"CONSUMER.INFO.{asset}.{consumer}")
            open_requests += [consumer] * info["num_waiting"]
        return open_requests


class ClusterHarness(Harness):
    """Three servers, three replicas."""

    ack_wait = 1.0
    patience = 4.0
    cluster: NatsCluster

    async def connect(self) -> Backend:
        return await open_backend(f"{self.cluster.url}?replicas=3")


@pytest.fixture(autouse=True, scope="module")
def servers() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        NatsHarness.server = NatsServer(
            directory=Path(folder) / "one",
            config="authorization { users: [\n{ user: root, password: root },\n"
            f"{{ user: corepool, password: least, {documented_rights()} }} ] }}",
        )
        NatsHarness.url = f"nats://corepool:least@127.0.0.1:{NatsHarness.server.port}"
        ClusterHarness.cluster = NatsCluster(directory=Path(folder) / "three")
        NatsHarness.server.start()
        ClusterHarness.cluster.start()
        yield
        NatsHarness.server.kill()
        for server in ClusterHarness.cluster.servers:
            server.kill()


class TestOneServer(ConformanceSuite):
    harness = NatsHarness


class TestCluster(MapsContract, MapWatchContract, HistoriesContract, CommitContract, StreamsContract, SinksContract):
    harness = ClusterHarness
