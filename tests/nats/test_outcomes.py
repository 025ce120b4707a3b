"""What became of a write whose reply was lost (M5, R2), and what a dead connection may still deliver."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from corepool.driver import ABSENT, REVISION, NewEvent, SetKey
from corepool.errors import BackendUnavailable, OutcomeUnknown
from corepool_nats import client as client_module
from corepool_nats import link as link_module
from corepool_nats.client import Client
from tests.nats.conftest import Open, space_of
from tests.nats.relay import Relay
from tests.servers.nats import NatsServer
from tests.waiting import until


async def test_a_lost_reply_is_found_out(relay: Relay, open_nats: Open, name: str) -> None:
    backend = await open_nats(relay)
    m = backend.namespace(name).map("m")
    first = await m.set("k", b"1")
    relay.drop_replies = True
    relay.replies.clear()
    writing = asyncio.create_task(m.set("k", b"2", REVISION(first.revision)))
    await until(lambda: b"MSG " in relay.replies)  # the server has answered
    relay.cut()
    relay.drop_replies = False
    commit = await writing
    assert commit.applied, "it was applied once, and the driver found out"
    assert commit.previous is not None
    assert commit.previous.value == b"1"
    entry = await m.get("k")
    assert entry is not None
    assert (entry.value, entry.revision) == (b"2", commit.revision)


async def test_a_request_that_never_arrived_is_sent_again(relay: Relay, open_nats: Open, name: str) -> None:
    backend = await open_nats(relay)
    stream = backend.namespace(name).stream("s")
    await stream.create()
    relay.hold_requests = True
    appending = asyncio.create_task(stream.append(NewEvent("e", b"x")))
    await until(lambda: b"PUB " in relay.held)
    relay.cut()
    relay.hold_requests = False
    assert await appending is not None
    assert await stream.length() == 1


async def test_a_ghost_is_dropped_once_settled(relay: Relay, server: NatsServer, open_nats: Open, name: str) -> None:
    backend, witness = await open_nats(relay), await open_nats(server)
    space = backend.namespace(name)
    m, seen = space.map("m"), witness.namespace(name).map("m")
    await m.set("other", b"")
    relay.hold_requests = True
    writing = asyncio.create_task(m.set("ghost", b"boo", ABSENT))
    await until(lambda: b"PUB " in relay.held)
    writing.cancel()  # its outcome is unknown now
    await asyncio.wait([writing])
    relay.hold_requests = False
    relay.cut_clients()
    await space.settle()
    assert await m.get("ghost") is None, "settled, and not applied"
    relay.replies.clear()
    assert relay.release() > 0, "now the old connection delivers what it held"
    await until(lambda: b"MSG " in relay.replies)  # the server has decided, and answered nobody
    assert await seen.get("ghost") is None, "a write that was settled as not applied was applied afterwards"


async def test_without_the_fence_a_ghost_lands(
    relay: Relay, server: NatsServer, open_nats: Open, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The safeguard switched off: the same story ends with the write applied after it was said to be impossible."""

    async def no_fence(self: Client, identity: str, unknown: object, deadline: float) -> int | None:
        return None

    monkeypatch.setattr(Client, "_fence", no_fence)
    backend, witness = await open_nats(relay), await open_nats(server)
    space = backend.namespace(name)
    m, seen = space.map("m"), witness.namespace(name).map("m")
    await m.set("other", b"")
    relay.hold_requests = True
    writing = asyncio.create_task(m.set("ghost", b"boo", ABSENT))
    await until(lambda: b"PUB " in relay.held)
    writing.cancel()
    await asyncio.wait([writing])
    relay.hold_requests = False
    relay.cut_clients()
    await space.settle()
    assert await m.get("ghost") is None
    relay.release()

    async def landed() -> bool:
        return await seen.get("ghost") is not None

    await until(landed, otherwise=lambda: "the hazard this test is about does not exist any more: rethink the fence")


async def test_a_fenced_write_knows_that_it_was_dropped(
    relay: Relay, open_nats: Open, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A publish that is answered "duplicate" was fenced by somebody: it is not taken for applied."""
    backend = await open_nats(relay)
    space = space_of(backend, name)
    m = space.map("m")
    await m.set("other", b"")
    identity = f"{backend._client._prefix}{'z' * 8}"
    ids = iter([identity])
    monkeypatch.setattr(Client, "new_id", lambda self, real=Client.new_id: next(ids, None) or real(self))
    link = await space.client.link(space.client.deadline())
    await link.request(space.space.maps_fence, b"", {"Nats-Msg-Id": identity}, timeout=2)
    commit = await m.set("k", b"v", ABSENT)
    entry = await m.get("k")
    assert entry is not None
    assert entry.revision == commit.revision


async def test_unknown_stays_unknown_when_nothing_can_be_asked(relay: Relay, open_nats: Open, name: str) -> None:
    backend = await open_nats(relay, timeout=1.0)
    space = backend.namespace(name)
    m = space.map("m")
    await m.set("other", b"")
    relay.drop_replies = True
    with pytest.raises(OutcomeUnknown):
        await m.set("k", b"v")
    with pytest.raises(BackendUnavailable):
        await space.settle()
    relay.drop_replies = False
    relay.cut()
    await until(lambda: backend._client.connections._link is not None)
    await space.settle()
    entry = await m.get("k")
    assert entry is not None, "the request had arrived; settle says that it is decided"
    assert entry.value == b"v"


async def test_nothing_is_sent_while_disconnected(relay: Relay, server: NatsServer, open_nats: Open, name: str) -> None:
    backend = await open_nats(relay, timeout=0.6)
    m = backend.namespace(name).map("m")
    await m.set("k", b"1")
    relay.refuse = True
    relay.cut()
    await until(lambda: backend._client.connections._link is None)
    with pytest.raises(BackendUnavailable):
        await m.set("k", b"2")
    with pytest.raises(BackendUnavailable):
        await m.get("k")
    relay.refuse = False
    entry = None
    end = time.monotonic() + 10
    while entry is None and time.monotonic() < end:
        with contextlib.suppress(BackendUnavailable):
            entry = await m.get("k")
    assert entry is not None
    assert entry.value == b"1", "BackendUnavailable was raised, and the write landed after the reconnect"


async def test_a_half_open_connection_is_noticed(relay: Relay, open_nats: Open, name: str) -> None:
    backend = await open_nats(relay, ping=0.2)
    m = backend.namespace(name).map("m")
    await m.set("k", b"1")
    relay.hold_requests = relay.drop_replies = True  # the connection stays open, and nobody is there
    connections = relay.connections
    await until(lambda: relay.connections > connections, within=5)
    relay.hold_requests = relay.drop_replies = False
    relay.cut()
    assert (await m.set("k", b"2")).applied
    entry = await m.get("k")
    assert entry is not None
    assert entry.value == b"2"


async def test_a_group_that_lost_its_connection_is_finished_in_order(relay: Relay, open_nats: Open, name: str) -> None:
    backend = await open_nats(relay)
    space = backend.namespace(name)
    await space.map("m").set("other", b"")
    relay.hold_requests = True
    ops = [SetKey("m", f"k{number}", b"v") for number in range(20)]
    committing = asyncio.create_task(space.commit([*ops, SetKey("m", "last", b"v", ABSENT)]))
    await until(lambda: b"PUB " in relay.held)
    relay.cut()
    relay.hold_requests = False
    result = await committing
    assert result.stopped is None
    revisions = [commit.revision for commit in result.results]  # type: ignore[union-attr]
    assert len(revisions) == 21
    assert revisions == sorted(set(revisions)), "the operations are applied in their order"


async def test_cancelling_a_call_keeps_the_connection(server: NatsServer, open_nats: Open, name: str) -> None:
    backend = await open_nats(server)
    m = backend.namespace(name).map("m")
    link = await backend._client.link(backend._client.deadline())
    for number in range(200):
        task = asyncio.create_task(m.set("k", b"%d" % number))
        await asyncio.sleep(0 if number % 2 else 0.0005)
        task.cancel()
        await asyncio.wait([task])
    await m.set("k", b"last")
    assert await backend._client.link(backend._client.deadline()) is link, "the connection was lost by a cancellation"
    assert not link._calls, "calls are left behind"
    await backend.namespace(name).settle()
    assert not backend._client._unknown


async def test_closing_does_not_trust_a_cancellation_to_arrive(
    relay: Relay, open_nats: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nats-py's connect may swallow a cancellation on Python 3.11 and connect all the same."""
    backend = await open_nats(relay)
    connecting = asyncio.Event()
    original = link_module.Wire.connect

    async def swallowing(self: link_module.Wire, **options: object) -> None:
        connecting.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await original(self, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(link_module.Wire, "connect", swallowing)
    relay.cut()
    await connecting.wait()
    async with asyncio.timeout(5):
        await backend.aclose()
    tasks = [task for task in asyncio.all_tasks() if "supervisor" in task.get_name()]
    assert not tasks


async def test_what_is_unknown_is_not_kept_for_ever(
    server: NatsServer, open_nats: Open, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_MANY_UNKNOWN", 10)
    space = space_of(await open_nats(server), name)
    client, target = space.client, space.assets.maps
    for number in range(8):
        client._remember(f"old{number}", client_module._Unknown(target, time.monotonic() - 1000))
    for number in range(8):
        client._remember(f"new{number}", client_module._Unknown(target, time.monotonic()))
    assert set(client._unknown) == {f"new{number}" for number in range(8)}
    client._unknown.clear()


def test_the_expected_sequence_that_never_holds_is_out_of_reach() -> None:
    assert 1000 * time.time() * 1e3 < client_module._NEVER
