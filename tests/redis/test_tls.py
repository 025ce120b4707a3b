"""TLS: the certificate and the host's name are checked, and a client certificate is shown.

The servers stand behind a proxy that ends TLS, since not every build of them can.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme

from corepool.errors import BackendUnavailable
from corepool_redis.backend import open_redis
from tests.redis.conftest import Connect, fresh
from tests.redis.lives import live
from tests.servers.valkey import Server


@contextlib.asynccontextmanager
async def tls_proxy(port: int, context: ssl.SSLContext) -> AsyncIterator[int]:
    """End TLS and pass the bytes on; yields the port."""
    tasks: set[asyncio.Task[None]] = set()
    writers: list[asyncio.StreamWriter] = []

    async def pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                sink.write(data)
        sink.transport.abort()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        answers, upstream = await asyncio.open_connection("127.0.0.1", port)
        writers.extend((writer, upstream))
        await asyncio.gather(pipe(reader, upstream), pipe(answers, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.gather(*tasks, *(writer.wait_closed() for writer in writers), return_exceptions=True)


def context_for(authority: trustme.CA, name: str, *, clients: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    if clients:
        authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return str(tmp_path / "ca.pem")


async def works(connect: Connect, url: str, **options: object) -> None:
    items = (await connect(url, **options)).namespace(fresh()).map("m")
    watch = items.watch()
    await anext(watch)
    large = b"x" * 200_000
    await items.set("k", large)
    entry = await items.get("k")
    assert entry is not None
    assert entry.value == large
    await watch.aclose()


async def test_a_certificate_that_fits(server: Server, connect: Connect, authority: trustme.CA, ca_file: str) -> None:
    async with tls_proxy(server.port, context_for(authority, "localhost")) as port:
        await works(connect, f"rediss://localhost:{port}/0?ssl_ca_certs={ca_file}")


async def test_a_pool_lives_behind_tls(server: Server, authority: trustme.CA, ca_file: str) -> None:
    async with tls_proxy(server.port, context_for(authority, "localhost")) as port:
        await live(f"rediss://localhost:{port}/0?ssl_ca_certs={ca_file}")


@pytest.mark.parametrize("wrong", ["host", "authority", "plain"])
async def test_what_does_not_fit_is_refused(server: Server, authority: trustme.CA, ca_file: str, wrong: str) -> None:
    issuer = trustme.CA() if wrong == "authority" else authority
    name = "other.example" if wrong == "host" else "localhost"
    options = {"connect_timeout": 1.0}
    if wrong == "plain":
        with pytest.raises(BackendUnavailable):
            await open_redis(f"rediss://localhost:{server.port}/0?ssl_ca_certs={ca_file}", options)
        return
    async with tls_proxy(server.port, context_for(issuer, name)) as port:
        with pytest.raises(BackendUnavailable, match="certificate verify failed"):
            await open_redis(f"rediss://localhost:{port}/0?ssl_ca_certs={ca_file}", options)


async def test_the_name_is_not_checked_only_if_told_so(
    server: Server, connect: Connect, authority: trustme.CA, ca_file: str
) -> None:
    async with tls_proxy(server.port, context_for(authority, "other.example")) as port:
        await works(connect, f"rediss://localhost:{port}/0?ssl_ca_certs={ca_file}&ssl_check_hostname=false")


async def test_a_client_certificate_is_shown(
    server: Server, connect: Connect, authority: trustme.CA, ca_file: str, tmp_path: Path
) -> None:
    mine = authority.issue_cert("client")
    mine.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    mine.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    async with tls_proxy(server.port, context_for(authority, "localhost", clients=True)) as port:
        with pytest.raises(BackendUnavailable):
            await open_redis(f"rediss://localhost:{port}/0?ssl_ca_certs={ca_file}", {"connect_timeout": 1.0})
        await works(
            connect,
            f"rediss://localhost:{port}/0?ssl_ca_certs={ca_file}",
            ssl_certfile=str(tmp_path / "cert.pem"),
            ssl_keyfile=str(tmp_path / "key.pem"),
        )
