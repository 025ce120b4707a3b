"""The promises by name, as failure messages and reports quote them.

Purpose: one place that turns ``M3`` into a sentence.
Neighbours: the docstrings of ``corepool.driver.maps``, ``streams`` and ``backend`` are the law; this is its short form.
"""

from __future__ import annotations

__all__ = ["PROMISES", "explain"]

PROMISES = {
    "M1": "order: commits of a map are totally ordered by revision, and every watcher sees them in that order",
    "M2": "atomicity: a conditional write is decided and applied atomically; a lost race is a value, not an exception",
    "M3": "no gaps: every live watch eventually yields a state at or past each acknowledged commit, and never goes back",
    "M4": "no blocking: what nobody reads blocks no writer, no other reader and no close",
    "M5": "outcome: a write that raises was certainly not applied (BackendUnavailable) or is OutcomeUnknown",
    "M6": "cancellation: a cancelled call leaves the connection usable, and no later call receives its reply",
    "S1": "stream order: ids increase in append order, also across destroy and re-creation",
    "S2": "delivery: an event not acked within ack_wait is delivered again; after an ack it never is",
    "S3": "members: a member that vanished leaves nothing behind, and its events are delivered again before it is forgotten",
    "S4": "no loss: a stream never drops what nobody acked; a full work stream rejects, only a log drops its oldest",
    "S5": "no revival: after destroy is acknowledged no append with only_if_exists revives the stream",
    "P1": "ownership: a key has at most one live owner; after a pause or a cut the later owner's token is larger",
    "P2": "success: a dispatch that returned has its job running, or stopped by a stop, or on its way to a next owner",
    "P3": "failure: a dispatch that raised anything but OutcomeUnknown left no job behind",
    "P4": "stop: a stopped job never runs again; a second dispatch of a live key is refused",
    "P5": "tokens: the fencing tokens of a key only grow",
    "P9": "return: every call returns",
    "P10": "recovery: once faults stop, every admitted job runs on an active worker",
    "P11": "no litter: nothing of a dead node is left",
    "CAP": "capabilities: what is declared works, what is not declared refuses and changes nothing",
    "COMMIT": "commits: operations apply in order and stop at the first condition that does not hold",
    "LIMITS": "limits: every name, key and value within the declared limits works; beyond them nothing is sent",
    "MAPS": "maps: each operation does what the protocol's docstring says",
    "STREAMS": "streams: each operation does what the protocol's docstring says",
    "CLOSE": "close: idempotent, bounded, ends everything that waits, leaves no task behind",
    "SECRETS": "secrets: no credential appears in a repr, a log line or an error",
    "WIRE": "strict decoding: what cannot be decoded is refused or set aside, and blocks nothing behind it",
}


def explain(name: str) -> str:
    """``M2 atomicity: …``."""
    return f"{name} {PROMISES[name]}"
