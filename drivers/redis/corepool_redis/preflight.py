"""What of a server's settings endangers data.

Purpose: findings with remedies, before anybody relies on a server.
Invariants: never raises for a missing right: what could not be looked at is a finding of its own; tells rights by using them
in a namespace of its own that it removes again, since what an ACL allows can be asked reliably in no other way.
Neighbours: ``RedisBackend.preflight``.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from typing import Protocol

from corepool.driver import Finding, MapStore, NewEvent, Severity, StreamStore, When
from corepool.errors import CorepoolError
from corepool_redis.link import Link, Refused

__all__ = ["look"]

_PATIENCE = 5.0  # seconds


class _Namespace(Protocol):
    def map(self, name: str) -> MapStore: ...

    def stream(self, name: str) -> StreamStore: ...


async def look(link: Link, namespace: Callable[[str], _Namespace]) -> list[Finding]:
    """All findings; the gravest first."""
    findings: list[Finding] = []
    facts: dict[str, str] = {}
    try:
        reply = await link.command("INFO")
        facts = (
            dict(re.findall(r"(\w+):([^\r\n]*)", reply.decode(errors="replace"))) if isinstance(reply, bytes) else {}
        )
    except (CorepoolError, Refused) as error:
        findings.append(
            Finding(
                Severity.WARNING,
                "unverified",
                f"the settings for eviction, persistence and replication could not be read ({error}).",
                "Grant +info, or check maxmemory-policy noeviction and appendonly yes by hand.",
            )
        )
    if facts:
        findings += _eviction(facts) + _persistence(facts) + _replication(facts)
    findings += await _rights(namespace)
    order = list(Severity)
    return sorted(findings, key=lambda finding: order.index(finding.severity))


def _eviction(facts: dict[str, str]) -> list[Finding]:
    policy = facts.get("maxmemory_policy", "")
    if not policy:
        return [
            Finding(
                Severity.WARNING,
                "eviction-unverified",
                "the server does not say which eviction policy it has.",
                "Make sure that maxmemory-policy is noeviction.",
            )
        ]
    if policy == "noeviction":
        return []
    limit = facts.get("maxmemory", "0")
    return [
        Finding(
            Severity.DANGER if limit != "0" else Severity.WARNING,
            "eviction",
            f"maxmemory-policy is {policy}: with full memory the server silently drops maps and whole streams"
            + ("." if limit != "0" else ", once maxmemory is set."),
            "Set maxmemory-policy noeviction; full memory then refuses writes instead of losing jobs.",
        )
    ]


def _persistence(facts: dict[str, str]) -> list[Finding]:
    if facts.get("aof_enabled") == "1":
        if facts.get("aof_last_write_status", "ok") != "ok":
            return [
                Finding(
                    Severity.DANGER,
                    "appendonly-failing",
                    "the server cannot write its appendonly file.",
                    "Free its disk; what is acknowledged now would not survive a restart.",
                )
            ]
        return []
    return [
        Finding(
            Severity.DANGER,
            "no-appendonly",
            "appendonly is off: a restart of the server loses what was acknowledged since its last snapshot, or everything.",
            "Set appendonly yes (appendfsync everysec is enough for a crash of the process).",
        )
    ]


def _replication(facts: dict[str, str]) -> list[Finding]:
    if facts.get("connected_slaves", "0") == "0":
        return [
            Finding(
                Severity.INFO,
                "no-replica",
                "the server has no replica: while it is down the pool waits.",
                "Run replicas with Sentinel or a cluster if the pool must go on without this machine.",
            )
        ]
    return [
        Finding(
            Severity.WARNING,
            "asynchronous-replication",
            "replication is asynchronous: a failover can lose the newest acknowledged writes. The pool notices and repairs "
            "itself, but a job dispatched in that moment may be gone.",
            "Set min-replicas-to-write 1 and min-replicas-max-lag 10 to bound what can be lost.",
        )
    ]


async def _rights(namespace: Callable[[str], _Namespace]) -> list[Finding]:
    """Go once through everything the driver does."""
    space = namespace(f"corepool-preflight-{os.urandom(6).hex()}")
    items, stream = space.map("m"), space.stream("s")
    try:
        await items.set("k", b"v", When(0))
        await items.get("k")
        await items.get_many(["k"])
        async for _ in items.scan():
            pass
        await stream.create()
        await stream.append(NewEvent("e", b""))
        async with asyncio.timeout(_PATIENCE):
            sink = await stream.sink("s", ack_wait=5.0)
            delivery = (await sink.receive())[0]
            await sink.extend(delivery.receipt)
            await sink.nack(delivery.receipt)
            await sink.ack([(await sink.receive())[0].receipt])
            await sink.aclose()
        await stream.length()
        await stream.range()
        async with asyncio.timeout(_PATIENCE):  # a feed waits for ever for a server that refuses it
            watch = items.watch()
            await anext(watch)
            await items.delete("k")
            await anext(watch)
            await watch.aclose()
    except (CorepoolError, TimeoutError) as error:
        return [
            Finding(
                Severity.DANGER,
                "missing-right",
                f"the driver cannot do its work on this server: {str(error).rstrip('.') or 'a read was refused, see the log'}.",
                "Give the user the rights that docs/redis.md lists.",
            )
        ]
    finally:
        for removal in (items.destroy(), stream.destroy()):
            try:
                await removal
            except CorepoolError:
                continue  # reported above already
    return []
