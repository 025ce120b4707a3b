"""What a server refuses: an error that names the limit and the remedy, and never a credential."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Iterator

import pytest

from corepool.driver import NewEvent, Severity, connect
from corepool.errors import (
    BackendUnavailable,
    CorepoolError,
    InvalidKeyError,
    PayloadTooLarge,
    PreflightError,
    UnsupportedServer,
)
from tests.nats.conftest import Open, Start
from tests.nats.relay import listening
from tests.servers.nats import NatsCluster, NatsServer

SECRET = "correct-horse-battery"


@pytest.fixture(autouse=True)
def nothing_is_leaked(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a test here does: the secret is not logged, at any level."""
    logged = io.StringIO()
    handler = logging.StreamHandler(logged)
    root = logging.getLogger()
    root.addHandler(handler)
    level, root.level = root.level, logging.DEBUG
    yield
    root.level = level
    root.removeHandler(handler)
    assert SECRET not in logged.getvalue()
    assert SECRET not in caplog.text


def text(error: BaseException) -> str:
    """All that a traceback would show of an error."""
    parts: list[str] = []
    at: BaseException | None = error
    while at is not None:
        parts.append(f"{at!r} {at}")
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
    shown = "\n".join(parts)
    assert SECRET not in shown
    return shown


async def refused(where: NatsServer | NatsCluster | str, kind: type[CorepoolError], **options: object) -> str:
    url = where if isinstance(where, str) else where.url
    with pytest.raises(kind) as caught:
        async with connect(url, **options):
            pass
    return text(caught.value)


async def test_nobody_listens() -> None:
    said = await refused(f"nats://bob:{SECRET}@127.0.0.1:9", BackendUnavailable, connect_timeout=1)
    assert "127.0.0.1:9" in said
    assert "running" in said


async def test_something_else_listens() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail ready\r\n")

    async with listening(serve) as port:
        assert "INFO" in await refused(f"nats://127.0.0.1:{port}", BackendUnavailable, connect_timeout=1)


@pytest.mark.parametrize("version", ["2.10.26", "1.4.1", "", "nonsense"])
async def test_an_old_server(version: str) -> None:
    """A server that says so of itself: nothing but its greeting is needed."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        info = b'INFO {"server_id":"x","version":"%s","headers":true,"jetstream":true,"max_payload":1048576}\r\n'
        writer.write(info % version.encode())
        while line := await reader.readline():
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")

    async with listening(serve) as port:
        said = await refused(f"nats://127.0.0.1:{port}", UnsupportedServer, connect_timeout=2)
    assert "2.11" in said
    assert "upgrade" in said


async def test_jetstream_is_off(start: Start) -> None:
    said = await refused(start(jetstream=False), UnsupportedServer)
    assert "JetStream is off" in said
    assert "-js" in said


async def test_jetstream_is_off_for_the_account(start: Start) -> None:
    server = start(
        f'accounts {{ A: {{ users: [{{ user: bob, password: "{SECRET}" }}] }}, SYS: {{ users: [] }} }}\n'
        f"system_account: SYS\n"
    )
    said = await refused(f"nats://bob:{SECRET}@127.0.0.1:{server.port}", UnsupportedServer)
    assert "account" in said


@pytest.mark.parametrize("who", ["", f"bob:{SECRET}@", f"{SECRET}@"])
async def test_wrong_credentials(start: Start, who: str) -> None:
    server = start('authorization { user: alice, password: "something else" }')
    said = await refused(f"nats://{who}127.0.0.1:{server.port}", BackendUnavailable)
    assert "refuses" in said
    assert "check" in said


async def test_no_permission(start: Start, open_nats: Open, name: str) -> None:
    server = start(
        f'authorization {{ users: [ {{ user: bob, password: "{SECRET}", permissions: {{ '
        f'publish: ["$JS.API.>"], subscribe: ["_INBOX.>"] }} }} ] }}'
    )
    backend = await open_nats(f"nats://bob:{SECRET}@127.0.0.1:{server.port}")
    with pytest.raises(BackendUnavailable) as caught:
        await backend.namespace(name).map("m").set("k", b"v")
    said = text(caught.value)
    assert "permission" in said
    assert "cp.>" in said
    assert "$JS.ACK.>" in said


async def test_no_permission_for_the_inbox(start: Start) -> None:
    server = start(
        f'authorization {{ users: [ {{ user: bob, password: "{SECRET}", permissions: {{ '
        f'publish: [">"], subscribe: ["mine.>"] }} }} ] }}'
    )
    url = f"nats://bob:{SECRET}@127.0.0.1:{server.port}"
    assert "_INBOX" in await refused(url, BackendUnavailable, timeout=1)
    async with connect(url, inbox_prefix="mine") as backend:
        assert (await backend.namespace("n").map("m").set("k", b"v")).applied


async def test_the_permissions_the_documents_name_are_enough(start: Start, open_nats: Open, name: str) -> None:
    server = start(
        f'authorization {{ users: [ {{ user: bob, password: "{SECRET}", permissions: {{ '
        f'publish: ["cp.>", "$JS.API.>", "$JS.ACK.>", "$JS.FC.>"], subscribe: ["_INBOX.>"] }} }} ] }}'
    )
    space = (await open_nats(f"nats://bob:{SECRET}@127.0.0.1:{server.port}")).namespace(name)
    m, stream = space.map("m"), space.stream("s")
    watch = m.watch()
    await anext(watch)
    await m.set("k", b"v")
    await anext(watch)
    sink = await stream.sink("w", ack_wait=5)
    await stream.append(NewEvent("e", b"x"))
    (delivery,) = await sink.receive()
    assert await sink.extend(delivery.receipt)
    assert await sink.ack([delivery.receipt]) == [True]
    await m.clear()
    await stream.destroy()
    await space.settle()


async def test_the_servers_messages_are_too_small(start: Start) -> None:
    said = await refused(start("max_payload: 32768"), UnsupportedServer)
    assert "max_payload" in said
    assert "32768" in said


async def test_what_is_over_max_payload_is_not_sent(start: Start, open_nats: Open, name: str) -> None:
    server = start("max_payload: 100000")
    backend = await open_nats(server)
    limit = backend.capabilities.max_value_bytes
    assert limit == 100000 - 4096
    space = backend.namespace(name)
    m, stream = space.map("m"), space.stream("s")
    await m.set("k", bytes(limit))
    for refusing in (m.set("k", bytes(limit + 1)), stream.append(NewEvent("e", bytes(limit + 1)))):
        with pytest.raises(PayloadTooLarge, match=str(limit)):
            await refusing
    longest = "☃" * 66
    await stream.append(NewEvent(longest, bytes(limit), longest))
    assert len((await stream.range())[0].payload) == limit
    with pytest.raises(InvalidKeyError):
        await m.set("k" * 513, b"")
    link = await backend._client.link(backend._client.deadline())
    assert not link.ended.is_set(), "the connection has survived all of it"


async def test_more_replicas_than_servers(server: NatsServer, open_nats: Open, name: str) -> None:
    backend = await open_nats(server, replicas=3)
    with pytest.raises(BackendUnavailable) as caught:
        await backend.namespace(name).map("m").set("k", b"v")
    assert "replicas" in text(caught.value)


async def test_no_more_streams(start: Start, open_nats: Open, name: str) -> None:
    server = start(
        f'accounts {{ A: {{ jetstream: {{ max_streams: 1 }}, users: [{{ user: bob, password: "{SECRET}" }}] }} }}'
    )
    backend = await open_nats(f"nats://bob:{SECRET}@127.0.0.1:{server.port}")
    space = backend.namespace(name)
    await space.map("m").set("k", b"v")
    with pytest.raises(BackendUnavailable) as caught:
        await space.stream("s").append(NewEvent("e", b"x"))
    said = text(caught.value)
    assert "max_streams" in said
    assert "two per namespace" in said
    codes = {finding.code for finding in await backend.preflight()}
    assert "nats-max-streams" in codes


async def test_no_more_storage(start: Start, open_nats: Open, name: str) -> None:
    server = start(
        f'accounts {{ A: {{ jetstream: {{ max_file: 2MB }}, users: [{{ user: bob, password: "{SECRET}" }}] }} }}'
    )
    backend = await open_nats(f"nats://bob:{SECRET}@127.0.0.1:{server.port}")
    space = backend.namespace(name)
    m, stream = space.map("m"), space.stream("s")
    await stream.append(NewEvent("e", b"kept"))
    with pytest.raises(BackendUnavailable) as caught:
        for number in range(100):
            await m.set(f"k{number}", bytes(100_000))
    said = text(caught.value)
    assert "max_file" in said or "limit" in said
    assert [event.payload for event in await stream.range()] == [b"kept"], "a full store drops nothing"
    assert await m.get("k0") is not None


async def test_a_stream_with_a_limit_refuses_and_drops_nothing(start: Start, open_nats: Open, name: str) -> None:
    backend = await open_nats(start(), max_bytes=1 << 20)
    stream = backend.namespace(name).stream("s")
    count = 0
    with pytest.raises(BackendUnavailable) as caught:
        while True:
            await stream.append(NewEvent("e", bytes(50_000)))
            count += 1
    assert "max_bytes" in text(caught.value)
    assert await stream.length() == count


async def test_preflight_finds_what_endangers_data(start: Start, open_nats: Open, name: str) -> None:
    server = start(f'authorization {{ user: bob, password: "{SECRET}" }}')
    url = f"nats://bob:{SECRET}@127.0.0.1:{server.port}"
    backend = await open_nats(url, storage="memory")
    await backend.namespace(name).map("m").set("k", b"v")
    findings = {finding.code: finding for finding in await backend.preflight()}
    assert findings["nats-memory-storage"].severity is Severity.DANGER
    assert findings["nats-lazy-fsync"].severity is Severity.WARNING
    assert findings["nats-plaintext-credentials"].severity is Severity.WARNING
    assert all(finding.remedy and SECRET not in f"{finding}" for finding in findings.values())
    assert "nats-memory-storage" in await refused(f"{url}?storage=memory", PreflightError, strict=True)
    assert not backend.capabilities.durable
    async with connect(url, strict=True) as fine:
        assert fine.capabilities.durable
    await backend.aclose()
    shut = await backend.preflight()
    assert "nats-unverified" in {finding.code for finding in shut}, "never raises: what cannot be asked is a finding"


async def test_preflight_on_a_cluster(cluster: NatsCluster, open_nats: Open) -> None:
    single = {finding.code for finding in await (await open_nats(cluster, timeout=5)).preflight()}
    assert {"nats-single-replica", "nats-short-timeout"} <= single
    three = {finding.code for finding in await (await open_nats(cluster, replicas=3)).preflight()}
    assert "nats-failover-pause" in three
    assert not {"nats-single-replica", "nats-short-timeout"} & three
