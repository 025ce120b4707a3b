"""The rights that docs/redis.md adds to the least ones, each for its purpose: enough with it, named by the error without."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from corepool.driver import Severity
from corepool.errors import BackendUnavailable
from corepool_redis.backend import RedisBackend
from corepool_redis.keys import scope_of
from corepool_redis.routes import slot_of
from tests.redis.conftest import Connect, fresh
from tests.redis.lives import live
from tests.redis.test_conformance import DOCS, least_rights
from tests.redis.test_failover import migrate, owner
from tests.servers.valkey import Server, command, running, start_cluster, start_sentinel


def documented(rules: str) -> list[str]:
    """Rules as the document spells them."""
    assert f"`{rules}`" in DOCS.read_text()
    return rules.split()


def give(servers: list[Server], *rules: str) -> None:
    """Make the user ``u`` with the least rights and these."""
    for server in servers:
        command(server.port, "ACL", "SETUSER", "u", "reset", "on", ">p", *least_rights().split(), *rules)


async def dangers(backend: RedisBackend) -> list[str]:
    """What preflight, which uses every right, finds to be missing."""
    return [finding.text for finding in await backend.preflight() if finding.severity is Severity.DANGER]


# --- another database, the preflight check ----------------------------------------------------------------------------


async def test_select_is_for_another_database(own_server: Server, connect: Connect) -> None:
    url = f"redis://u:p@127.0.0.1:{own_server.port}/3"
    give([own_server])
    with pytest.raises(BackendUnavailable, match=r"refused database 3 .*grant \+select"):
        await connect(url, connect_timeout=1.0)
    give([own_server], *documented("+select"))
    assert await dangers(await connect(url)) == []
    await live(url)
    keyspace = command(own_server.port, "INFO", "keyspace")
    assert isinstance(keyspace, bytes)
    assert b"db3:" in keyspace
    assert b"db0:" not in keyspace


async def test_info_is_for_the_preflight_check(own_server: Server, connect: Connect) -> None:
    give([own_server])
    backend = await connect(f"redis://u:p@127.0.0.1:{own_server.port}")
    (finding,) = await backend.preflight()
    assert (finding.code, finding.remedy.partition(",")[0]) == ("unverified", "Grant +info")
    give([own_server], *documented("+info"))
    found = {finding.code for finding in await (await connect(f"redis://u:p@127.0.0.1:{own_server.port}")).preflight()}
    assert found == {"no-replica"}


# --- cluster ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    servers: list[Server] = []
    with running(servers):
        servers += start_cluster(binary, tmp_path_factory.mktemp("cluster"))
        yield servers


async def test_cluster_slots_and_asking_are_for_a_cluster(cluster: list[Server], connect: Connect) -> None:
    give(cluster, *documented("+cluster|slots +asking"))
    url = f"redis+cluster://u:p@127.0.0.1:{cluster[0].port}"
    backend = await connect(url)
    assert await dangers(backend) == []
    await live(url)
    items = backend.namespace(name := fresh()).map("m")
    await items.set("k", b"0")
    last = await _write_while_it_moves(cluster, backend, name)
    entry = await items.get("k")
    assert entry is not None
    assert entry.value == last
    asked = [command(server.port, "INFO", "commandstats") for server in cluster]
    assert any(b"cmdstat_asking:" in found for found in asked if isinstance(found, bytes)), "ASKING was needed"


@pytest.mark.parametrize(("rules", "right"), [(["+asking"], "cluster|slots"), (["+cluster|slots"], "asking")])
async def test_the_missing_right_is_named(
    cluster: list[Server], connect: Connect, rules: list[str], right: str
) -> None:
    give(cluster, *rules)
    with pytest.raises(BackendUnavailable, match=rf"(?i)no permissions to run the '{re.escape(right)}' command"):
        backend = await connect(f"redis+cluster://u:p@127.0.0.1:{cluster[0].port}", timeout=1.0, connect_timeout=1.0)
        await backend.namespace(name := fresh()).map("m").set("k", b"0")
        await _write_while_it_moves(cluster, backend, name)


async def _write_while_it_moves(cluster: list[Server], backend: RedisBackend, name: str) -> bytes:
    """Write all the time; what was written last."""
    slot, items, number = slot_of(scope_of(name)), backend.namespace(name).map("m"), 0
    here = owner(cluster, slot)
    moving = asyncio.ensure_future(migrate(cluster, slot, next(server for server in cluster if server is not here)))
    try:
        while not moving.done():
            number += 1
            await items.set("k", b"%d" % number)
    finally:
        await moving
    return b"%d" % number


# --- Sentinel ---------------------------------------------------------------------------------------------------------


async def test_a_sentinel_is_asked_for_one_thing(binary: Path, tmp_path: Path, connect: Connect) -> None:
    servers, sentinels = start_sentinel(binary, tmp_path, sentinels=1)
    with running([*sentinels, *servers]):
        give(servers)
        url = (
            f"redis+sentinel://u:p@127.0.0.1:{sentinels[0].port}/pool?sentinel_username=watcher&sentinel_password=s%2Fp"
        )
        (rule,) = documented("+sentinel|get-master-addr-by-name")
        watcher = ("ACL", "SETUSER", "watcher", "reset", "on", ">s/p", "-@all")
        command(sentinels[0].port, *watcher)
        with pytest.raises(BackendUnavailable, match="no permissions to run the 'sentinel") as refused:
            await connect(url, connect_timeout=1.0)
        assert "s/p" not in str(refused.value)
        command(sentinels[0].port, *watcher, rule)
        assert await dangers(await connect(url)) == []
        await live(url)
