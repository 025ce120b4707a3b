"""The driver itself, loaded only when a URL asks for it: a stand-in that remembers how it was opened."""

from collections.abc import Mapping
from typing import Any

from corepool.driver import Finding, Severity


class StrangerBackend:
    closed = 0

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self.url = url
        self.options = dict(options)

    async def preflight(self) -> list[Finding]:
        severity = Severity.DANGER if self.options.get("dangerous") else Severity.INFO
        return [Finding(severity, "stranger-memory", "everything is forgotten at exit", "use a real one")]

    async def aclose(self) -> None:
        StrangerBackend.closed += 1


async def open_stranger(url: str, options: Mapping[str, Any]) -> StrangerBackend:
    return StrangerBackend(url, options)
