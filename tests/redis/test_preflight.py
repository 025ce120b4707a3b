"""Preflight: what endangers data is said, with a remedy, also to a user who may not ask."""

from __future__ import annotations

from pathlib import Path

import pytest

import corepool.driver
from corepool.driver import Severity
from corepool.errors import PreflightError
from tests.redis.conftest import Connect
from tests.redis.test_conformance import least_rights
from tests.servers.valkey import Server, command, eventually, running


async def codes(connect: Connect, url: str) -> dict[str, Severity]:
    findings = await (await connect(url, timeout=1.0)).preflight()
    assert all(finding.text.endswith(".") and finding.remedy.endswith(".") for finding in findings)
    return {finding.code: finding.severity for finding in findings}


async def test_a_safe_server_has_no_danger(own_server: Server, connect: Connect) -> None:
    assert await codes(connect, own_server.url) == {"no-replica": Severity.INFO}
    keys = command(own_server.port, "KEYS", "*")
    assert isinstance(keys, list)
    assert [key for key in keys if command(own_server.port, "PTTL", key) == -1] == [], "the look leaves nothing"


async def test_eviction_and_a_missing_appendonly_file_are_dangers(own_server: Server, connect: Connect) -> None:
    command(own_server.port, "CONFIG", "SET", "maxmemory", "100mb")
    command(own_server.port, "CONFIG", "SET", "maxmemory-policy", "volatile-lru")
    command(own_server.port, "CONFIG", "SET", "appendonly", "no")
    found = await codes(connect, own_server.url)
    assert found["eviction"] is Severity.DANGER
    assert found["no-appendonly"] is Severity.DANGER
    with pytest.raises(PreflightError, match="noeviction"):
        async with corepool.driver.connect(own_server.url, strict=True):
            pass
    command(own_server.port, "CONFIG", "SET", "maxmemory", "0")
    assert (await codes(connect, own_server.url))["eviction"] is Severity.WARNING


async def test_replicas_are_told_to_be_asynchronous(binary: Path, tmp_path: Path, connect: Connect) -> None:
    primary = Server(binary, tmp_path / "p", ("--appendonly", "yes"))
    replica = Server(binary, tmp_path / "r")
    with running([primary, replica]):
        primary.start()
        replica.args = ("--replicaof", f"127.0.0.1 {primary.port}", "--repl-diskless-sync-delay", "0")
        replica.start()
        eventually(lambda: b"state=online" in bytes(command(primary.port, "INFO", "replication")), primary.log)  # type: ignore[call-overload]
        assert "asynchronous-replication" in await codes(connect, primary.url)


async def test_a_user_who_may_not_ask_is_told_so(own_server: Server, connect: Connect) -> None:
    command(own_server.port, "ACL", "SETUSER", "small", "reset", "on", ">p", *least_rights().split())
    assert await codes(connect, f"redis://small:p@127.0.0.1:{own_server.port}") == {"unverified": Severity.WARNING}


@pytest.mark.parametrize("right", ["xadd", "xreadgroup", "xread", "evalsha", "hscan", "xclaim"])
async def test_a_missing_right_is_a_danger(
    own_server: Server, connect: Connect, right: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("corepool_redis.preflight._PATIENCE", 1.0)
    command(own_server.port, "ACL", "SETUSER", "less", "reset", "on", ">p", *least_rights().split(), f"-{right}")
    found = await codes(connect, f"redis://less:p@127.0.0.1:{own_server.port}")
    assert found["missing-right"] is Severity.DANGER
