"""Questions of one turn of the loop that share a request: how many are sent, when, and what a cancelled caller takes along."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from corepool.driver import REVISION, NewEvent
from corepool_nats.link import Call, Link, LinkError
from corepool_nats.together import Question, Together
from tests.nats.conftest import Open, space_of
from tests.servers.nats import NatsServer


class Sent(list[str]):
    """The subjects of the requests that were begun, in order."""

    def of(self, part: str) -> int:
        return sum(part in subject for subject in self)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    sent, begin = Sent(), Link.begin

    def noted(self: Link, subject: str, data: bytes, headers: Mapping[str, str] | None = None, **rest: Any) -> Call:
        probed = (headers or {}).get("Nats-Expected-Last-Subject-Sequence-Subject", "")
        sent.append(f"{subject} {data.decode('latin-1')} {probed}")
        return begin(self, subject, data, headers, **rest)

    monkeypatch.setattr(Link, "begin", noted)
    return sent


async def test_many_readers_ask_for_a_marker_once(server: NatsServer, open_nats: Open, name: str, sent: Sent) -> None:
    m = (await open_nats(server)).namespace(name).map("m")
    keys = [f"k{number}" for number in range(20)]
    for key in keys:
        await m.set(key, b"x")
    sent.clear()
    entries = await asyncio.gather(*(m.get(key) for key in keys))
    assert [entry.key for entry in entries if entry] == keys
    assert len(sent) == len(keys) + 1, "one for each key, one for the marker"
    assert sent.of("multi_last") == 0, "its cost grows with everything there is in the stream"


async def test_one_probe_serves_the_writes_of_a_turn_and_follows_them(
    server: NatsServer, open_nats: Open, name: str, sent: Sent
) -> None:
    m = (await open_nats(server)).namespace(name).map("m")
    revisions = [(await m.set(f"k{number}", b"1")).revision for number in range(20)]
    sent.clear()
    done = await asyncio.gather(*(m.set(f"k{number}", b"2", REVISION(each)) for number, each in enumerate(revisions)))
    assert all(commit.applied for commit in done)
    assert len(sent) == len(done) + 1
    assert sent[-1].endswith(".m.m.r"), "behind the writes: what it tells is as of all of them"


async def test_acknowledgements_share_the_registry(server: NatsServer, open_nats: Open, name: str, sent: Sent) -> None:
    space = (await open_nats(server)).namespace(name)
    stream = space.stream("s")
    await stream.create()
    sink = await stream.sink("sink")
    for _ in range(10):
        await stream.append(NewEvent("e", b"x"))
    taken = list[str]()
    while len(taken) < 10:
        taken += [each.receipt for each in await sink.receive(10)]
    sent.clear()
    done = await asyncio.gather(*(sink.ack([receipt]) for receipt in taken))
    assert done == [[True]] * 10
    assert sent.of(".s.s.g") == 1


async def test_who_asks_later_gets_a_request_of_his_own(
    server: NatsServer, open_nats: Open, name: str, sent: Sent
) -> None:
    """An answer that was asked for before a call began may be older than what the call must see."""
    client = space_of(await open_nats(server), name).client
    link = await client.link(client.deadline())
    together, question = Together(link), Question("nobody.listens")
    first = together.ask([question], 5.0)
    same = together.ask([question], 5.0)
    await asyncio.sleep(0)  # the end of the turn: it is sent
    later = together.ask([question], 5.0)
    await asyncio.sleep(0)
    assert sent.of("nobody.listens") == 2
    for asked in (first, same, later):
        with pytest.raises(LinkError):
            await asked.answers()


async def test_a_cancelled_caller_takes_nothing_from_the_others(
    server: NatsServer, open_nats: Open, name: str, sent: Sent
) -> None:
    m = (await open_nats(server)).namespace(name).map("m")
    await m.set("k", b"x")
    sent.clear()
    readers = [asyncio.create_task(m.get("k")) for _ in range(3)]
    while not sent:
        await asyncio.sleep(0)
    readers[0].cancel()
    entries = await asyncio.gather(*readers, return_exceptions=True)
    assert isinstance(entries[0], asyncio.CancelledError)
    assert [getattr(entry, "value", None) for entry in entries[1:]] == [b"x", b"x"]
    assert len(sent) == 2, "key and marker, for all three"


async def test_the_end_of_the_link_ends_every_wait(server: NatsServer, open_nats: Open, name: str) -> None:
    client = space_of(await open_nats(server), name).client
    link = await client.link(client.deadline())
    together = Together(link)
    before = together.ask([Question(f"{client.api_prefix}.INFO")], 60.0)
    await asyncio.sleep(0)
    behind = together.ask([Question(f"{client.api_prefix}.INFO")], 60.0)
    link.kill("cut")
    for asked in (before, behind):
        with pytest.raises(LinkError):
            async with asyncio.timeout(5):
                await asked.answers()


@pytest.mark.timeout(10)
async def test_nobody_waits_for_the_answers_to_no_question(server: NatsServer, open_nats: Open, name: str) -> None:
    client = (await open_nats(server))._client
    assert await client.direct([], client.deadline()) == []
