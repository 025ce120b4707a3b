"""Find the driver for a URL, and open it.

Purpose: from ``redis://…`` to an open `Backend`, loading only what that scheme needs.
Invariants: one scheme's entry point is loaded and no other, so a broken plugin breaks nobody else; client libraries are
imported by the loader, never by a plugin module; an error names the installed schemes, the nearest match and the remedy.
Neighbours: a driver distribution registers in the entry-point group ``corepool.drivers`` (name: the scheme; value: a light
module with the pluggy hook :meth:`DriverHooks.corepool_driver`). The core calls `connect`.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeAlias, cast

import attrs
import pluggy

from corepool.driver.backend import Backend, Capabilities, Finding, Severity
from corepool.errors import DriverLoadError, InvalidUrlError, PreflightError, UnknownSchemeError

__all__ = [
    "ENTRY_POINT_GROUP",
    "DriverHooks",
    "DriverSpec",
    "Opener",
    "connect",
    "hookimpl",
    "installed_drivers",
    "load_spec",
    "open_backend",
]

ENTRY_POINT_GROUP = "corepool.drivers"
_PROJECT = "corepool"

hookspec = pluggy.HookspecMarker(_PROJECT)
hookimpl = pluggy.HookimplMarker(_PROJECT)

Opener: TypeAlias = Callable[[str, Mapping[str, Any]], Awaitable[Backend]]
"""What a loader names: ``async def open(url, options) -> Backend``. An option it does not know is an InvalidOptionError."""


@attrs.frozen(slots=True, kw_only=True)
class DriverSpec:
    """What a plugin says of its driver without importing its client library.

    name: the driver's, e.g. ``redis`` (several schemes may share one).
    summary: one line for ``corepool drivers``.
    extra: the extra of the distribution that brings the client library, or None.
    distribution: the distribution to install, e.g. ``corepool``.
    capabilities: as of a default installation; an open backend may know better.
    loader: ``module:attribute`` of an :data:`Opener`.
    example: a URL to show in help and errors.
    """

    name: str
    summary: str
    extra: str | None
    distribution: str
    capabilities: Capabilities
    loader: str
    example: str

    @property
    def install_command(self) -> str:
        wanted = f"{self.distribution}[{self.extra}]" if self.extra else self.distribution
        return f"pip install '{wanted}'"


class DriverHooks:
    """The hooks a driver plugin implements with :data:`hookimpl`."""

    @hookspec(firstresult=True)
    def corepool_driver(self, scheme: str) -> DriverSpec | None:
        """The driver for ``scheme``, or None if the plugin does not serve it."""
        raise AssertionError("a specification is never called")


def installed_drivers() -> dict[str, str]:
    """The schemes that have a driver, and the distribution each comes from. Loads none of them."""
    found: dict[str, str] = {}
    for entry in sorted(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: entry.name):
        found[entry.name] = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "unknown distribution"
    return found


def load_spec(scheme: str) -> DriverSpec:
    """Load one scheme's plugin and return what it says of its driver.

    Raises:
        UnknownSchemeError: no installed driver serves the scheme.
        DriverLoadError: its plugin is broken.
    """
    origins = installed_drivers()
    if scheme not in origins:
        near = difflib.get_close_matches(scheme, origins, n=1)
        hint = f"; did you mean {near[0]}://?" if near else "."
        raise UnknownSchemeError(
            f"no driver for {scheme}:// is installed{hint} Installed: {', '.join(origins) or 'none'}. "
            f"A driver is a package with an entry point {scheme!r} in the group {ENTRY_POINT_GROUP!r}"
        )
    manager = pluggy.PluginManager(_PROJECT)
    manager.add_hookspecs(DriverHooks)
    try:
        manager.load_setuptools_entrypoints(ENTRY_POINT_GROUP, name=scheme)
        spec = manager.hook.corepool_driver(scheme=scheme)
    # whatever a third party's module raises on import, to end the process included, becomes one error that names it
    except (Exception, SystemExit) as error:
        raise DriverLoadError(
            f"the driver plugin for {scheme}:// (from {origins[scheme]}) is broken: {type(error).__name__}: {error}. "
            f"Other drivers are not affected; reinstall or remove that distribution"
        ) from error
    if not isinstance(spec, DriverSpec):
        raise DriverLoadError(
            f"the driver plugin for {scheme}:// (from {origins[scheme]}) gave {spec!r} instead of a DriverSpec; "
            f"its module needs a function corepool_driver(scheme) marked with corepool.driver.hookimpl"
        )
    return spec


def _load_opener(scheme: str, spec: DriverSpec) -> Opener:
    module, _, attribute = spec.loader.partition(":")
    try:
        return cast("Opener", getattr(importlib.import_module(module), attribute))
    except ImportError as error:
        raise DriverLoadError(
            f"the driver for {scheme}:// needs a package that is not installed ({error}); run: {spec.install_command}"
        ) from error
    except AttributeError as error:
        raise DriverLoadError(
            f"the driver for {scheme}:// names a loader that does not exist: {spec.loader}; report it to {spec.distribution}"
        ) from error
    except (Exception, SystemExit) as error:  # as for the plugin: the other drivers are not affected
        raise DriverLoadError(
            f"the driver for {scheme}:// is broken: importing {module} raised {type(error).__name__}: {error}; "
            f"report it to {spec.distribution}"
        ) from error


_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?=://)")


async def open_backend(url: str, *, strict: bool = False, **options: Any) -> Backend:
    """Open the backend that ``url`` names; the caller closes it with ``aclose``. See `connect`."""
    match = _SCHEME.match(url)
    if match is None:
        schemes = ", ".join(f"{scheme}://" for scheme in installed_drivers())
        raise InvalidUrlError(f"a backend URL starts with a scheme and '://'; installed: {schemes}")
    scheme = match.group().lower()
    spec = load_spec(scheme)
    backend = await _load_opener(scheme, spec)(url, options)
    if strict:
        try:
            _refuse(backend.url, await backend.preflight())
        except BaseException:  # whatever ends the preflight, cancellation included, must not leak the connection
            await backend.aclose()
            raise
    return backend


def _refuse(url: str, findings: list[Finding]) -> None:
    dangers = [finding for finding in findings if finding.severity is Severity.DANGER]
    if dangers:
        lines = [f"  {finding.code}: {finding.text} Remedy: {finding.remedy}" for finding in dangers]
        raise PreflightError("\n".join([f"{url} is not safe for acknowledged data (strict=True):", *lines]))


@asynccontextmanager
async def connect(url: str, *, strict: bool = False, **options: Any) -> AsyncGenerator[Backend]:
    """Open a backend for the length of an ``async with`` block.

    url: its scheme picks the driver: ``memory://name``, ``redis://host``, ``nats://host``, …
    strict: refuse a backend whose settings endanger acknowledged data.
    options: the driver's own, as its documentation lists them; they may also stand in the URL's query.

    Raises:
        UnknownSchemeError, DriverLoadError, InvalidUrlError, InvalidOptionError, PreflightError, UnsupportedServer,
        BackendUnavailable
    """
    backend = await open_backend(url, strict=strict, **options)
    try:
        yield backend
    finally:
        await backend.aclose()
