"""The driver's Lua scripts, and how one is invoked.

Purpose: everything that must be atomic on the server, kept as packaged ``lua/*.lua`` files.
Invariants: a script is sent by its digest and, only when the server does not know it (a restart, a failover, another cluster
node), once more as text; server-side functions are not used, since two library versions would collide in a rolling upgrade.
Neighbours: :mod:`corepool_redis.link` invokes; the stores name keys and arguments.

Each script is put together from the gate, shared files and its own. It has one of two settings, because a
server whose memory is full refuses a script as a whole by its flags:

- ``deny``: the script may make the data grow; refused when memory is full.
- ``allow``: the script only shrinks, or must work to be able to shrink (acknowledging, claiming): runs when memory is full.

Servers before 7.0 know no flags: there, a script that starts with a delete is let through, which ``allow`` does (of a key that
never exists).
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
from collections.abc import Sequence

from corepool_redis.resp import Arg, encode

__all__ = ["Script"]

# name -> (files put together, memory, fenced)
_SCRIPTS = {
    "apply": (("common", "apply"), "deny", True),
    "apply-shrink": (("common", "apply"), "allow", True),
    "set": (("common", "set"), "deny", True),
    "map-clear": (("common", "map", "map_clear"), "allow", True),
    "map-destroy": (("common", "map", "map_destroy"), "allow", True),
    "map-update": (("common", "map", "map_update"), "deny", True),
    "fence": (("common", "fence"), "allow", True),
    "snapshot": (("snapshot",), "allow", False),
    "check": (("common", "check"), "allow", False),
    "stream-create": (("common", "stream_create"), "deny", True),
    "stream-admin": (("common", "stream_admin"), "allow", True),
    "sink-join": (("common", "members", "sink_join"), "allow", False),
    "sink-tend": (("common", "members", "sink_tend"), "allow", False),
    "sink-pending": (("sink_pending",), "allow", False),
    "sink-settle": (("common", "members", "sink_settle"), "allow", True),
    "sink-leave": (("common", "members", "sink_leave"), "allow", False),
}

# A fenced script of a socket that its client has given up is refused, wherever its bytes were lying until now.
_GATE = """local fence = redis.call('GET', KEYS[1])
if fence and tonumber(fence) > tonumber(ARGV[1]) then
  return redis.error_reply('FENCED a later connection of this client has closed this door')
end
"""


class Script:
    """One script in its two spellings: with flags, and for servers that know none."""

    def __init__(self, name: str) -> None:
        files, memory, fenced = _SCRIPTS[name]
        folder = importlib.resources.files("corepool_redis") / "lua"
        *shared, body = ((folder / f"{file}.lua").read_text("utf-8") for file in files)
        before, mark, after = body.partition(
            "--SHARED--\n"
        )  # where the shared functions belong, if not at the beginning
        body = before + "".join(shared) + after if mark else "".join((*shared, body))
        body = (f"do\n{_GATE}end\n" if fenced else "") + body
        flags = " flags=allow-oom" if memory == "allow" else ""
        unlock = "redis.call('DEL', KEYS[1] .. ':never')\n" if memory == "allow" else ""
        self.name = name
        self._flagged = _Text(f"#!lua{flags}\n{body}")
        self._plain = _Text(f"{unlock}{body}")

    @staticmethod
    @functools.cache
    def named(name: str) -> Script:
        """The script of that name; read from the package once."""
        return Script(name)

    def invoke(self, keys: Sequence[bytes], args: Sequence[Arg], *, full: bool, flagged: bool) -> bytes:
        """The command that runs it: by digest, or as text if ``full``."""
        text = self._flagged if flagged else self._plain
        head: tuple[Arg, Arg] = ("EVAL", text.source) if full else ("EVALSHA", text.digest)
        return encode((*head, len(keys), *keys, *args))


class _Text:
    """A script's source and its digest."""

    __slots__ = ("digest", "source")

    def __init__(self, source: str) -> None:
        self.source = source.encode()
        self.digest = hashlib.sha1(self.source, usedforsecurity=False).hexdigest().encode()
