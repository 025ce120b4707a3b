"""Ways to log in, and encrypted connections."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import nkeys
import pytest
import trustme

from corepool.driver import NewEvent, connect
from corepool.errors import BackendUnavailable
from tests.nats.conftest import Start
from tests.nats.relay import listening
from tests.servers.nats import NatsServer, free_ports

SECRET = "pa$$:w@rd/with?odd#parts"
QUOTED = "pa%24%24%3Aw%40rd%2Fwith%3Fodd%23parts"


async def works(url: str, **options: Any) -> None:
    """A map and a stream can be used."""
    async with connect(url, **options) as backend:
        space = backend.namespace("login")
        m, stream = space.map("m"), space.stream("s")
        assert (await m.set("k", b"v")).applied
        watch = m.watch()
        await anext(watch)
        await stream.append(NewEvent("e", b"x"))
        sink = await stream.sink("w", ack_wait=5)
        (delivery,) = await sink.receive()
        assert await sink.ack([delivery.receipt]) == [True]
        assert SECRET not in f"{backend!r} {backend.url}"


# --- who -------------------------------------------------------------------------------------------------------------


async def test_user_and_password(start: Start) -> None:
    server = start(f"authorization {{ user: bob, password: {json.dumps(SECRET)} }}")
    await works(f"nats://bob:{QUOTED}@127.0.0.1:{server.port}")
    await works(f"nats://127.0.0.1:{server.port}", user="bob", password=SECRET)


async def test_token(start: Start) -> None:
    server = start(f"authorization {{ token: {json.dumps(SECRET)} }}")
    await works(f"nats://{QUOTED}@127.0.0.1:{server.port}")
    await works(f"nats://127.0.0.1:{server.port}", token=SECRET)


def seed_of(prefix: int) -> bytes:
    return bytes(nkeys.encode_seed(hashlib.sha256(str(prefix).encode()).digest(), prefix))


async def test_nkey(start: Start, tmp_path: Path) -> None:
    seed = seed_of(nkeys.PREFIX_BYTE_USER)
    file = tmp_path / "user.nk"
    file.write_bytes(seed)
    public = nkeys.from_seed(bytearray(seed)).public_key.decode()
    server = start(f"authorization {{ users: [{{ nkey: {public} }}] }}")
    await works(f"nats://127.0.0.1:{server.port}?nkey={file}")
    with pytest.raises(BackendUnavailable):
        await works(f"nats://127.0.0.1:{server.port}")


def jwt(issuer: bytes, subject: str, kind: str, claims: dict[str, Any]) -> str:
    """A token as NATS signs them (version 2): what an operator's tools write into a credentials file."""

    def part(value: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value, separators=(",", ":")).encode()).rstrip(b"=").decode()

    signer = nkeys.from_seed(bytearray(issuer))
    body = {
        "iat": int(time.time()),
        "iss": signer.public_key.decode(),
        "name": kind,
        "sub": subject,
        "nats": {"type": kind, "version": 2, **claims},
    }
    body["jti"] = base64.b32encode(hashlib.sha256(json.dumps(body).encode()).digest()).rstrip(b"=").decode()
    text = f"{part({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{part(body)}"
    signature = base64.urlsafe_b64encode(bytes(signer.sign(text.encode()))).rstrip(b"=").decode()
    return f"{text}.{signature}"


async def test_a_credentials_file(start: Start, tmp_path: Path) -> None:
    operator, account = seed_of(nkeys.PREFIX_BYTE_OPERATOR), seed_of(nkeys.PREFIX_BYTE_ACCOUNT)
    user = seed_of(nkeys.PREFIX_BYTE_USER)
    names = {
        kind: nkeys.from_seed(bytearray(seed)).public_key.decode()
        for kind, seed in (("operator", operator), ("account", account), ("user", user))
    }
    anything = {"subs": -1, "data": -1, "payload": -1}
    limits = {**anything, "conn": -1, "leaf": -1, "imports": -1, "exports": -1, "wildcards": True}
    limits |= {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}
    system = nkeys.from_seed(bytearray(nkeys.encode_seed(bytes(32), nkeys.PREFIX_BYTE_ACCOUNT))).public_key.decode()
    tokens = {
        "system": jwt(operator, system, "account", {"limits": {**anything, "conn": -1}}),
        "operator": jwt(operator, names["operator"], "operator", {}),
        "account": jwt(operator, names["account"], "account", {"limits": limits, "default_permissions": {}}),
        "user": jwt(account, names["user"], "user", {"pub": {}, "sub": {}, **anything}),
    }
    file = tmp_path / "user.creds"
    file.write_text(
        f"-----BEGIN NATS USER JWT-----\n{tokens['user']}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.decode()}\n------END USER NKEY SEED------\n"
    )
    server = start(
        f"operator: {tokens['operator']}\nsystem_account: {system}\nresolver: MEMORY\n"
        f"resolver_preload: {{ {names['account']}: {tokens['account']}, {system}: {tokens['system']} }}"
    )
    await works(f"nats://127.0.0.1:{server.port}?creds={file}")
    with pytest.raises(BackendUnavailable):
        await works(f"nats://127.0.0.1:{server.port}")


# --- encrypted -------------------------------------------------------------------------------------------------------


class Authority:
    """A certificate authority with a server's and a client's certificate in files."""

    def __init__(self, directory: Path) -> None:
        authority = trustme.CA()
        self.ca = directory / "ca.pem"
        authority.cert_pem.write_to_path(str(self.ca))
        self.cert, self.key = self._issue(authority, directory, "127.0.0.1")
        self.client_cert, self.client_key = self._issue(authority, directory, "bob@example.org")

    def _issue(self, authority: trustme.CA, directory: Path, name: str) -> tuple[Path, Path]:
        issued = authority.issue_cert(name)
        cert, key = directory / f"{name}.pem", directory / f"{name}.key"
        issued.private_key_pem.write_to_path(str(key))
        for blob in issued.cert_chain_pems:
            blob.write_to_path(str(cert), append=True)
        return cert, key

    def tls(self, more: str = "") -> str:
        return f'tls {{ cert_file: "{self.cert}", key_file: "{self.key}" {more} }}'


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def test_tls(start: Start, authority: Authority, tmp_path: Path) -> None:
    server = start(authority.tls())
    await works(f"tls://127.0.0.1:{server.port}", tls_ca=authority.ca)
    with pytest.raises(BackendUnavailable, match=r"(?i)certificate"):
        await works(f"tls://127.0.0.1:{server.port}", connect_timeout=2)
    with pytest.raises(BackendUnavailable, match=r"(?i)certificate|hostname"):
        await works(
            f"tls://127.0.0.1:{server.port}", tls_ca=authority.ca, tls_hostname="elsewhere.org", connect_timeout=2
        )


async def test_tls_with_a_client_certificate(start: Start, authority: Authority) -> None:
    server = start(authority.tls(f', ca_file: "{authority.ca}", verify: true'))
    url = f"tls://127.0.0.1:{server.port}?tls_ca={authority.ca}"
    await works(f"{url}&tls_cert={authority.client_cert}&tls_key={authority.client_key}")
    with pytest.raises(BackendUnavailable):
        await works(url, connect_timeout=2)


async def test_tls_before_anything_else(start: Start, authority: Authority) -> None:
    server = start(authority.tls(", handshake_first: true"))
    await works(f"tls://127.0.0.1:{server.port}?tls_ca={authority.ca}&tls_first=true")


async def test_no_credential_over_a_plain_connection() -> None:
    """A server, or somebody between, that does not offer TLS learns nothing from a tls:// URL."""
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        info = {"server_id": "x", "version": "2.15.0", "headers": True, "jetstream": True, "auth_required": True}
        writer.write(f"INFO {json.dumps(info)}\r\n".encode())
        while line := await reader.readline():
            heard.append(line)

    async with listening(serve) as port:
        with pytest.raises(BackendUnavailable, match="TLS"):
            await works(f"tls://bob:{QUOTED}@127.0.0.1:{port}", connect_timeout=1)
    assert not any(b"CONNECT" in line for line in heard), heard


# nats-py hands aiohttp a timeout in a form that aiohttp would like to see go.
websocket = pytest.mark.filterwarnings("ignore:parameter 'timeout':DeprecationWarning")


@websocket
async def test_websocket(start: Start) -> None:
    (port,) = free_ports(1)
    server: NatsServer = start(f"websocket {{ listen: 127.0.0.1:{port}, no_tls: true }}")
    await works(f"ws://127.0.0.1:{port}")
    async with connect(f"ws://127.0.0.1:{port}") as backend:
        m = backend.namespace("ws").map("m")
        await m.set("k", bytes(500_000))
        server.restart()
        assert (await m.set("k2", b"v")).applied
        entry = await m.get("k")
        assert entry is not None
        assert len(entry.value) == 500_000


@websocket
async def test_websocket_with_tls(start: Start, authority: Authority) -> None:
    (port,) = free_ports(1)
    start(f"websocket {{ listen: 127.0.0.1:{port}, {authority.tls()} }}")
    await works(f"wss://127.0.0.1:{port}", tls_ca=authority.ca)
    with pytest.raises(BackendUnavailable, match=r"(?i)certificate"):
        await works(f"wss://127.0.0.1:{port}", connect_timeout=2)
