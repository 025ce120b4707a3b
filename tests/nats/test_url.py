"""URLs and options: what they mean, and that no credential is ever shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from corepool.errors import InvalidOptionError, InvalidUrlError
from corepool_nats.url import Settings, parse_url

SECRET = "s3cr/et@:,?#%"
QUOTED = "s3cr%2Fet%40%3A%2C%3F%23%25"


def test_several_servers_and_options() -> None:
    settings = parse_url("nats://h1:5000,h2,nats://[::1]:4000/?replicas=3&storage=memory&timeout=20", {"name": "me"})
    assert settings.servers == ("nats://h1:5000", "nats://h2:4222", "nats://[::1]:4000")
    assert (settings.replicas, settings.storage, settings.timeout, settings.name) == (3, "memory", 20.0, "me")
    assert settings.redacted == "nats://h1:5000,h2:4222,[::1]:4000?replicas=3&storage=memory"
    assert parse_url("wss://h", {}).servers == ("wss://h:443",)
    assert parse_url("tls://h", {}).secure
    assert not parse_url("nats://h", {}).secure


def test_options_win_over_the_query() -> None:
    assert parse_url("nats://h?replicas=3", {"replicas": 1, "storage": None}).replicas == 1


@pytest.mark.parametrize(
    ("url", "found"),
    [
        (f"nats://bob:{QUOTED}@h", {"user": "bob", "password": SECRET}),
        (f"nats://{QUOTED}@h1,{QUOTED}@h2", {"token": SECRET}),
        (f"nats://h?user=bob&password={QUOTED}", {"user": "bob", "password": SECRET}),
        (f"nats://h?token={QUOTED}", {"token": SECRET}),
    ],
)
def test_credentials_are_read_and_never_shown(url: str, found: dict[str, str]) -> None:
    settings = parse_url(url, {})
    for field, value in found.items():
        assert getattr(settings, field) == value
    assert settings.authenticates
    for shown in (repr(settings), str(settings), settings.redacted):
        assert SECRET not in shown
        assert QUOTED not in shown
        assert "bob" not in shown


@pytest.mark.parametrize(
    "url",
    [
        "nats://",
        "nats://h:99999",
        "nats://h:0",
        "nats://bob:hunter2/x@h",
        "nats://bob:hunter2#x@h",
        "nats://bob:hunter2?x@h",
        "nats://bob:hun@ter2:x@h",
        "nats://bob:hunter2@h,alice:hunter2@i",
        "nats://:hunter2@h",
        "nats://bob:@h",
        "nats://bob:hunter2,x@h",
        "nats://hunter2 x",
    ],
)
def test_a_bad_url_does_not_leak(url: str) -> None:
    with pytest.raises((InvalidUrlError, InvalidOptionError)) as caught:
        parse_url(url, {})
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "options",
    [
        {"replicas": 2},
        {"replicas": 7},
        {"replicas": True},
        {"storage": "tape"},
        {"timeout": float("nan")},
        {"timeout": 0},
        {"heartbeat": "soon"},
        {"nonsense": 1},
        {"creds": "/no/such/file"},
        {"user": "bob"},
        {"password": "x"},
        {"token": "x", "user": "bob", "password": "y"},
        {"tls_cert": __file__},
        {"tls_first": "maybe"},
        {"domain": "a b"},
        {"max_bytes": 1},
        {"placement_tags": ["a b"]},
    ],
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        parse_url("nats://h", options)
    assert "hunter2" not in str(caught.value)


def test_files_and_placement() -> None:
    here = Path(__file__)
    settings = parse_url(
        "nats://h", {"creds": str(here), "tls_ca": here, "placement_tags": "ssd,eu", "placement_cluster": "c1"}
    )
    assert settings.creds == here
    assert settings.tls_ca == here
    assert settings.placement_tags == ("ssd", "eu")
    assert isinstance(settings, Settings)
