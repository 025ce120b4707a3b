"""Drivers are found by URL scheme, across distributions, and a broken one breaks nobody else.

The third-party distribution is really built and installed (see conftest): its entry points come from its own metadata.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from corepool.driver import connect, installed_drivers, load_spec
from corepool.errors import DriverLoadError, InvalidUrlError, UnknownSchemeError

from .conftest import PythonRunner

BROKEN = ["backleaver", "explosive", "garbage", "leaver", "noloader", "needy", "quitter", "silent", "vanished"]

TRY_TO_CONNECT = """
import asyncio, json, sys
from corepool.driver import connect
from corepool.errors import CorepoolError
async def attempt(url, **options):
    try:
        async with connect(url, **options) as backend:
            return {"url": backend.url, "options": getattr(backend, "options", None)}
    except CorepoolError as error:
        return {"error": type(error).__name__, "text": str(error)}
"""


def test_a_stranger_is_found_opened_and_closed(strangers_site: Path, run_python: PythonRunner) -> None:
    code = TRY_TO_CONNECT + (
        "out = asyncio.run(attempt('stranger://here', colour='blue'))\n"
        "import corepool_stranger.backend as backend\n"
        "out['closed'] = backend.StrangerBackend.closed\n"
        "print(json.dumps(out))\n"
    )
    out = json.loads(run_python(code, site=strangers_site).stdout)
    assert out == {"url": "stranger://here", "options": {"colour": "blue"}, "closed": 1}


def test_one_driver_may_serve_several_schemes_and_says_where_it_comes_from(
    strangers_site: Path, run_python: PythonRunner
) -> None:
    code = """
    import json
    from corepool.driver import installed_drivers, load_spec
    drivers = installed_drivers()
    print(json.dumps([drivers["stranger"], drivers["stranger+lazy"], load_spec("stranger+lazy").name, "memory" in drivers]))
    """
    out = json.loads(run_python(code, site=strangers_site).stdout)
    assert out == ["corepool-stranger 1.2.3", "corepool-stranger 1.2.3", "stranger", True]


@pytest.mark.parametrize("scheme", BROKEN)
def test_a_broken_plugin_is_one_clear_error_and_breaks_no_other(
    scheme: str, strangers_site: Path, run_python: PythonRunner
) -> None:
    code = TRY_TO_CONNECT + (
        f"out = [asyncio.run(attempt(url)) for url in ('{scheme}://x', 'stranger://here')]\n"
        "from corepool.driver import load_spec\n"
        "out.append(load_spec('memory').name)\n"
        "print(json.dumps(out))\n"
    )
    broken, sound, memory = json.loads(run_python(code, site=strangers_site).stdout)
    assert broken["error"] == "DriverLoadError"
    assert f"{scheme}://" in broken["text"]
    assert "corepool-stranger" in broken["text"]
    assert sound["url"] == "stranger://here"
    assert memory == "memory"


@pytest.mark.parametrize(
    ("scheme", "says"),
    [
        ("explosive", "RuntimeError: this plugin was built for another corepool"),
        ("vanished", "ModuleNotFoundError"),
        ("quitter", "KeyError"),
        ("leaver", "SystemExit: leaver: run me as a script"),
        ("backleaver", "importing corepool_stranger.leaver raised SystemExit"),
        ("garbage", "instead of a DriverSpec"),
        ("silent", "gave None instead of a DriverSpec"),
        ("noloader", "corepool_stranger.backend:no_such_function"),
        ("needy", "run: pip install 'corepool-stranger[client]'"),
    ],
)
def test_the_error_says_what_is_wrong_and_what_to_do(
    scheme: str, says: str, strangers_site: Path, run_python: PythonRunner
) -> None:
    code = TRY_TO_CONNECT + f"print(json.dumps(asyncio.run(attempt('{scheme}://x'))))"
    assert says in json.loads(run_python(code, site=strangers_site).stdout)["text"]


def test_only_the_schemes_own_plugin_is_loaded(strangers_site: Path, run_python: PythonRunner) -> None:
    code = TRY_TO_CONNECT + (
        "asyncio.run(attempt('stranger://here'))\n"
        "print(json.dumps([name for name in sys.modules if 'stranger' in name or 'corepool_redis' in name]))\n"
    )
    loaded = json.loads(run_python(code, site=strangers_site).stdout)
    assert sorted(loaded) == ["corepool_stranger", "corepool_stranger.backend", "corepool_stranger.good"]


def test_asking_what_a_driver_is_does_not_load_it(strangers_site: Path, run_python: PythonRunner) -> None:
    code = """
    import sys
    from corepool.driver import load_spec
    load_spec("stranger")
    assert "corepool_stranger.good" in sys.modules
    assert "corepool_stranger.backend" not in sys.modules
    """
    run_python(code, site=strangers_site)


def test_strict_refuses_dangerous_settings_and_closes(strangers_site: Path, run_python: PythonRunner) -> None:
    code = TRY_TO_CONNECT + (
        "out = [asyncio.run(attempt('stranger://here', strict=True, dangerous=bad)) for bad in (True, False)]\n"
        "import corepool_stranger.backend as backend\n"
        "print(json.dumps([*out, backend.StrangerBackend.closed]))\n"
    )
    refused, allowed, closed = json.loads(run_python(code, site=strangers_site).stdout)
    assert refused["error"] == "PreflightError"
    assert "everything is forgotten at exit" in refused["text"]
    assert "use a real one" in refused["text"]
    assert allowed["url"] == "stranger://here"
    assert closed == 2


@pytest.mark.parametrize(("scheme", "near"), [("rediss3", "rediss"), ("memry", "memory"), ("natss", "nats")])
def test_an_unknown_scheme_names_the_nearest_and_the_installed(scheme: str, near: str) -> None:
    with pytest.raises(UnknownSchemeError) as caught:
        load_spec(scheme)
    text = str(caught.value)
    assert f"no driver for {scheme}:// is installed; did" in text
    assert f"did you mean {near}://?" in text
    for installed in ("memory", "redis", "nats"):
        assert installed in text
    assert "corepool.drivers" in text


def test_an_unknown_scheme_like_no_other_still_names_the_installed() -> None:
    with pytest.raises(UnknownSchemeError, match=r"Installed: .*memory") as caught:
        load_spec("zookeeper")
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "localhost:6379", "memory:/x", "://x", "6://x"])
async def test_a_url_without_a_scheme_names_the_installed_ones(url: str) -> None:
    with pytest.raises(InvalidUrlError, match=r"memory://"):
        async with connect(url):
            raise AssertionError("such a URL opens nothing")


@pytest.mark.parametrize("scheme", ["nats", "tls", "ws"])
def test_a_missing_extra_names_the_command_that_helps(scheme: str, run_python: PythonRunner) -> None:
    code = (
        "import sys; sys.modules['nats'] = None\n"
        + TRY_TO_CONNECT
        + f"print(json.dumps(asyncio.run(attempt('{scheme}://localhost:1'))))"
    )
    out = json.loads(run_python(code).stdout)
    assert out["error"] == "DriverLoadError"
    assert "pip install 'corepool[nats]'" in out["text"]


def test_the_redis_driver_loads_without_its_accelerator(run_python: PythonRunner) -> None:
    code = """
    import importlib, sys
    sys.modules["hiredis"] = sys.modules["redis"] = None
    from corepool.driver import load_spec
    module, _, attribute = load_spec("redis").loader.partition(":")
    assert callable(getattr(importlib.import_module(module), attribute))
    """
    run_python(code)


def test_every_installed_driver_of_ours_describes_itself() -> None:
    ours = {scheme for scheme, origin in installed_drivers().items() if origin.startswith("corepool ")}
    assert ours >= {"memory", "redis", "rediss", "unix", "redis+sentinel", "redis+cluster", "nats", "tls", "ws", "wss"}
    for scheme in ours:
        spec = load_spec(scheme)
        assert spec.distribution == "corepool"
        assert "://" in spec.example
        assert spec.summary


def test_load_spec_raises_the_same_error_in_process(monkeypatch: pytest.MonkeyPatch, strangers_site: Path) -> None:
    monkeypatch.syspath_prepend(str(strangers_site))
    with pytest.raises(DriverLoadError, match="built for another corepool"):
        load_spec("explosive")
