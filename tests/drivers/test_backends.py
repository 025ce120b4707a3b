"""The choice of backends: what is named runs or fails; nothing is skipped, and no server outlives its session."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.servers import live
from tests.servers.live import Servers, check_backends, default_backends, real_servers
from tests.servers.valkey import command


def test_names_and_urls_are_taken_once_and_in_order() -> None:
    chosen = check_backends(["nats", " memory", "nats", "redis://:secret@elsewhere:6379/0"])
    assert chosen == ["nats", "memory", "redis://:secret@elsewhere:6379/0"]
    assert check_backends(default_backends()) == default_backends()


@pytest.mark.parametrize(("name", "says"), [("postgres", "memory, memory-steps, valkey"), ("", "no backend is named")])
def test_what_is_not_known_is_refused(name: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        check_backends(["memory", name])


def test_redis_is_a_default_only_where_it_is_installed_and_an_error_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert real_servers() == ["valkey", "nats"]
    with pytest.raises(ValueError, match="needs redis-server on PATH"):
        check_backends(["redis"])
    (tmp_path / "redis-server").write_text("#!/bin/sh\n")
    (tmp_path / "redis-server").chmod(0o755)
    assert real_servers() == ["valkey", "redis", "nats"]
    assert check_backends(["redis"]) == ["redis"]


def test_a_server_that_is_not_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COREPOOL_NATS_SERVER", str(tmp_path / "nowhere"))
    servers = Servers(tmp_path / "servers")
    for _ in range(2):  # in every test that asks for it
        with pytest.raises(FileNotFoundError):
            servers.url("nats")
    servers.end()


def test_a_server_starts_when_it_is_asked_for_and_ends_with_its_session(tmp_path: Path) -> None:
    servers = Servers(tmp_path)
    assert servers.url("memory") == live.IN_MEMORY["memory"]
    assert servers.url("nats://elsewhere:4222") == "nats://elsewhere:4222"
    assert not list(tmp_path.iterdir()), "nothing was started"
    url = servers.url("valkey")
    assert servers.url("valkey") == url
    port = int(url.rpartition(":")[2].partition("/")[0])
    assert command(port, "PING") == b"PONG"
    servers.end()
    with pytest.raises(ConnectionRefusedError):
        command(port, "PING")
