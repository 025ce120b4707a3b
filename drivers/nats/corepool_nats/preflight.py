"""Settings of a NATS server that endanger data, or surprise.

Purpose: findings with remedies, from what an ordinary client may ask.
Invariants: never raises for a missing right or a lost connection: that is a finding ("could not be verified").
Neighbours: called by the backend.
"""

from __future__ import annotations

from collections.abc import Sequence

from corepool.driver import Finding, Severity
from corepool.errors import CorepoolError
from corepool_nats import api
from corepool_nats.assets import check_jetstream
from corepool_nats.client import Client
from corepool_nats.namespace import NatsNamespace

__all__ = ["preflight"]


async def preflight(client: Client, spaces: Sequence[NatsNamespace]) -> list[Finding]:
    """Look at the server, the account, and the streams of the namespaces in use."""
    findings: list[Finding] = []
    deadline = client.deadline()
    clustered = False
    try:
        link = await client.link(deadline)
        clustered = bool(link.info.get("cluster"))
        findings += _of_account(await check_jetstream(client, deadline))
        if client.settings.authenticates and not (link.info.get("tls_required") or client.settings.secure):
            findings.append(
                Finding(
                    Severity.WARNING,
                    "nats-plaintext-credentials",
                    "Credentials travel over a connection that is not encrypted.",
                    "Configure TLS on the server and use tls:// (or wss://).",
                )
            )
    except CorepoolError as error:
        findings.append(_unverified("the account's JetStream", error))
    findings += _of_settings(client, clustered)
    for space in spaces:
        for asset in (space.assets.maps.asset, space.assets.streams.asset):
            try:
                info = await client.api(f"STREAM.INFO.{asset}", b"", api.StreamInfo, deadline)
            except CorepoolError as error:
                findings.append(_unverified(f"the stream {asset}", error))
                continue
            if info.config is not None:
                findings += _of_stream(info.config, clustered, client)
    findings.append(
        Finding(
            Severity.WARNING,
            "nats-lazy-fsync",
            "By default nats-server writes to disk at once but syncs every 2 minutes only: a power cut or kernel crash of the "
            "machine (not a crash of the server) can lose acknowledged writes (Jepsen, NATS 2.12.1). Whether the server is "
            "configured otherwise cannot be asked.",
            "Set `sync_interval: always` in the server's jetstream block, or use 3 replicas on machines that do not lose power "
            "together.",
        )
    )
    return findings


def _unverified(what: str, error: CorepoolError) -> Finding:
    return Finding(
        Severity.WARNING,
        "nats-unverified",
        f"{what} could not be verified: {error}",
        "Allow this user $JS.API.INFO and $JS.API.STREAM.INFO.*, or look at the settings yourself.",
    )


def _of_account(account: api.AccountInfo) -> list[Finding]:
    limits = account.limits
    findings: list[Finding] = []
    if 0 <= limits.max_streams < account.streams + 2:
        findings.append(
            Finding(
                Severity.WARNING,
                "nats-max-streams",
                f"The account may have {limits.max_streams} streams and has {account.streams}; each namespace needs two.",
                "Raise max_streams of the account.",
            )
        )
    if 0 <= limits.max_consumers < 1000:
        findings.append(
            Finding(
                Severity.WARNING,
                "nats-max-consumers",
                f"A stream of the account may have {limits.max_consumers} consumers; each watch, reader and sink takes one.",
                "Raise max_consumers of the account to 1000 or more.",
            )
        )
    if limits.max_storage >= 0 and account.storage > 0.8 * limits.max_storage:
        findings.append(
            Finding(
                Severity.WARNING,
                "nats-storage-full",
                f"{account.storage} of the account's {limits.max_storage} bytes of storage are used; when it is full, writes "
                f"are refused.",
                "Raise max_file of the account, or remove streams.",
            )
        )
    return findings


def _of_settings(client: Client, clustered: bool) -> list[Finding]:
    settings = client.settings
    findings: list[Finding] = []
    if settings.storage == "memory":
        findings.append(_memory("New streams"))
    if clustered and settings.replicas == 1:
        findings.append(_single("New streams"))
    if clustered and settings.replicas > 1:
        findings.append(
            Finding(
                Severity.INFO,
                "nats-failover-pause",
                "When the leader of a stream dies, writes pause for 5 to 9 seconds. A worker_ttl that is not clearly longer "
                "makes a healthy pool fence itself.",
                "Keep worker_ttl at 30 s (the default) or more.",
            )
        )
    if settings.timeout < 12 and clustered:
        findings.append(
            Finding(
                Severity.WARNING,
                "nats-short-timeout",
                f"Calls give up after {settings.timeout:g} s, and the election of a leader takes 5 to 9 s.",
                "Use ?timeout=15 or more on a cluster.",
            )
        )
    return findings


def _of_stream(config: api.StreamConfig, clustered: bool, client: Client) -> list[Finding]:
    findings: list[Finding] = []
    name = f"The stream {config.name}"
    settings = client.settings
    if config.storage == "memory":
        findings.append(_memory(name))
    if clustered and config.num_replicas == 1:
        findings.append(_single(name))
    if config.num_replicas != settings.replicas:
        findings.append(
            Finding(
                Severity.INFO,
                "nats-replicas-differ",
                f"{name} has {config.num_replicas} replica(s), the URL asks for {settings.replicas}.",
                f"An existing stream is left as it is; run `nats stream edit {config.name} --replicas {settings.replicas}` and "
                f"restart the clients.",
            )
        )
    if config.max_age or config.max_msgs > 0 or (config.discard == "old" and config.max_bytes > 0):
        findings.append(
            Finding(
                Severity.DANGER,
                "nats-stream-drops",
                f"{name} has limits (max_age, max_msgs or max_bytes with discard old) by which the server drops what nobody "
                f"acknowledged.",
                f"Remove them: nats stream edit {config.name} --max-age 0 --max-msgs=-1 --discard new.",
            )
        )
    if config.duplicate_window < 30_000_000_000:
        findings.append(
            Finding(
                Severity.DANGER,
                "nats-duplicate-window",
                f"{name} remembers message ids for {config.duplicate_window / 1e9:g} s only: the outcome of a lost write is "
                f"found out by them.",
                f"nats stream edit {config.name} --dupe-window 2m.",
            )
        )
    return findings


def _memory(what: str) -> Finding:
    return Finding(
        Severity.DANGER,
        "nats-memory-storage",
        f"{what} are kept in memory: a restart of the server loses them.",
        "Use ?storage=file.",
    )


def _single(what: str) -> Finding:
    return Finding(
        Severity.DANGER,
        "nats-single-replica",
        f"{what} have one replica on a cluster: if that server is down everything stands still, and if its disk is lost "
        f"so is the data.",
        "Use ?replicas=3.",
    )
