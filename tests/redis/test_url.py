"""URLs and options: what is understood, and that nothing secret is ever repeated."""

from __future__ import annotations

import ssl
import subprocess
import sys
from typing import Any

import pytest

from corepool.driver import load_spec
from corepool.errors import InvalidOptionError, InvalidUrlError
from corepool_redis.backend import RedisBackend
from corepool_redis.connection import Endpoint
from corepool_redis.keys import EventId, Receipt, decode_id, encode_id, escape
from corepool_redis.routes import slot_of
from corepool_redis.url import SCHEMES, parse


@pytest.mark.parametrize(
    ("url", "endpoints", "db"),
    [
        ("redis://", [Endpoint("localhost", 6379)], 0),
        ("redis://h", [Endpoint("h", 6379)], 0),
        ("redis://h:1/3", [Endpoint("h", 1)], 3),
        ("REDIS://h:1?db=4", [Endpoint("h", 1)], 4),
        ("rediss://[::1]:7/0", [Endpoint("::1", 7)], 0),
        ("unix:///run/r.sock?db=2", [Endpoint(path="/run/r.sock")], 2),
        ("unix://u:p@/run/a%20b.sock", [Endpoint(path="/run/a b.sock")], 0),
        ("redis+sentinel://a,b:5/pool/1", [Endpoint("a", 26379), Endpoint("b", 5)], 1),
        ("redis+cluster://a:1,b:2", [Endpoint("a", 1), Endpoint("b", 2)], 0),
    ],
)
def test_what_is_understood(url: str, endpoints: list[Endpoint], db: int) -> None:
    location = parse(url, {})
    assert list(location.endpoints) == endpoints
    assert location.options.db == db


def test_credentials_are_unquoted_and_keywords_go_first() -> None:
    location = parse("redis://us%3Aer:p%2Fa%23s%40s@h/0?timeout=2", {"timeout": 3, "db": 1})
    assert (location.options.username, location.options.password) == ("us:er", "p/a#s@s")
    assert (location.options.timeout, location.options.db) == (3.0, 1)


SECRET = "hunter2"


@pytest.mark.parametrize(
    "url",
    [
        f"redis://u:{SECRET}/x@h:1/0",
        f"redis://u:{SECRET}#x@h:1/0",
        f"redis://u:{SECRET}?x@h:1/0",
        f"redis://u:x/{SECRET}@h:1/0",
        f"redis://u:x@{SECRET}@h:1/0",
        f"redis://u:{SECRET}@h:99999/0",
        f"redis://u:{SECRET}@h:port/0",
        f"redis://u:{SECRET}",
        f"redis://{SECRET}@h",
        f"redis://u:{SECRET}@h/notanumber",
        f"redis://u:{SECRET}@h/0/1",
        f"redis://u:{SECRET}@a,b",
        f"redis://u:{SECRET}@h?nonsense=1",
        f"redis+sentinel://u:{SECRET}@h",
        f"redis+cluster://u:{SECRET}@h/1",
        f"unix://u:{SECRET}@",
        f"unix://u:{SECRET}@host/path",
        f"redis://h?password={SECRET}&password={SECRET}",
        f"redis://[::1:{SECRET}",
    ],
)
def test_what_is_not_understood_is_not_repeated(url: str) -> None:
    with pytest.raises((InvalidUrlError, InvalidOptionError)) as caught:
        parse(url, {})
    shown: list[BaseException | None] = [caught.value, caught.value.__cause__]
    if not caught.value.__suppress_context__:
        shown.append(caught.value.__context__)
    assert SECRET not in " ".join(map(repr, shown))


@pytest.mark.parametrize(
    "url", [f"redis://u:{SECRET}@h/1", f"redis+sentinel://:{SECRET}@h/pool", f"redis://h?password={SECRET}&username=u"]
)
async def test_a_backend_shows_no_secret(url: str) -> None:
    location = parse(url, {})
    backend = RedisBackend(location)
    space = backend.namespace("n")
    shown = " ".join(
        map(repr, (backend, backend.url, location, backend.settings, space, space.map("m"), space.stream("s")))
    )
    assert SECRET not in shown
    assert "***@" in backend.url
    await backend.aclose()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timeout", 0),
        ("timeout", "nan"),
        ("timeout", -1.0),
        ("timeout", True),
        ("timeout", "soon"),
        ("interval", float("inf")),
        ("log_length", 1),
        ("log_length", "many"),
        ("max_in_flight", 0),
        ("max_value_bytes", 10),
        ("db", -1),
        ("db", 1.5),
        ("ssl_check_hostname", "maybe"),
        ("ssl_ca_certs", "/no/such/file"),
        ("ssl_context", "x"),
        ("password", b"bytes"),
        ("nonsense", 1),
    ],
)
def test_options_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidOptionError):
        parse("redis://h", {name: value})


def test_tls_checks_certificate_and_host_by_default() -> None:
    context = parse("rediss://h", {}).tls
    assert context is not None
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert parse("redis://h", {}).tls is None
    assert parse("redis+cluster://h?ssl=true", {}).tls is not None


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_is_found(scheme: str) -> None:
    assert load_spec(scheme).name == "redis"
    parse(load_spec(scheme).example, {})


def test_the_plugin_loads_nothing_that_connects() -> None:
    code = "import sys, corepool_redis.plugin; print(sorted({'hiredis', 'redis', 'corepool_redis.link'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# --- names -----------------------------------------------------------------------------------------------------------


def test_names_are_escaped_without_loss() -> None:
    names = ["a", "a:b", "a%3Ab", "{a}", "}", "a%", "é", "\0", "a\n", ":", "::", "%7D"]
    escaped = [escape(name) for name in names]
    assert len(set(escaped)) == len(names)
    assert not any(mark in data for data in escaped for mark in (b":", b"{", b"}"))


def test_ids_compare_as_strings_in_append_order() -> None:
    raw = [b"9-9", b"10-1", b"10-2", b"10-10", b"1795528390334-0", b"1795528390334-11", b"1795528390335-2"]
    ids = [encode_id(one) for one in raw]
    assert ids == sorted(ids)
    assert [found.raw for one in ids if (found := decode_id(one))] == raw


@pytest.mark.parametrize(
    "text", ["", "x", "1", "1-", "-1", "1-x", "1-1-1", "99999999999999999999999-1", "\u0661-\u0662"]
)
def test_foreign_ids_are_none(text: str) -> None:
    assert decode_id(text) is None


def test_receipts_survive_any_stream_name() -> None:
    for name in ("s", "a.b.c", "é\0.", "."):
        receipt = Receipt(name, 3, EventId(12, 5), "client", 7)
        assert Receipt.parse(str(receipt)) == receipt
    for text in ("", "....", "1-1.0.1.c.", "1-1.x.1.c.s", "1-1.0.y.c.s", "z.0.1.c.s", "1-1.0.1.c.\ud800"):
        assert Receipt.parse(text) is None


def test_slots_are_those_of_the_specification() -> None:
    assert slot_of(b"123456789") == 0x31C3 % 16384
    assert slot_of(b"corepool:{user1000}:x") == slot_of(b"user1000")
    assert slot_of(b"foo{}{bar}") != slot_of(b"bar")
