"""The same tests on every backend: whoever asks for ``backend_url`` runs once on each.

``--backend=memory,memory-steps,valkey,redis,nats`` chooses (by default all; Redis only where ``redis-server`` is on PATH). URLs
of your own servers are taken as well, also from the environment variable ``COREPOOL_TEST_URL``. The servers are started when
the first test needs them. Another version of a NATS server: ``COREPOOL_NATS_SERVER``, see ``tests/servers/nats.py``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.chaos.summary import pytest_sessionfinish, pytest_terminal_summary, pytest_testnodedown  # noqa: F401  hooks
from tests.servers.live import Servers, check_backends, default_backends, real_servers

BACKENDS = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("backends")
    group.addoption(
        "--backend",
        metavar="NAMES",
        default=os.environ.get("COREPOOL_TEST_URL"),
        help="what the tests that run on every backend run on: names or URLs, separated by commas "
        f"(default: {','.join(default_backends())})",
    )


def pytest_configure(config: pytest.Config) -> None:
    chosen = config.getoption("--backend")
    try:
        config.stash[BACKENDS] = check_backends(default_backends() if chosen is None else chosen.split(","))
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    backends = metafunc.config.stash[BACKENDS]
    if "backend_url" in metafunc.fixturenames:
        # The ids end up in reports: of a URL, which may hold a password, they show the scheme.
        ids = [name.partition("://")[0] for name in backends]
        metafunc.parametrize("backend_url", backends, ids=ids, indirect=True)
    if "server_name" in metafunc.fixturenames:
        metafunc.parametrize("server_name", [name for name in backends if name in real_servers()])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Whoever chose no server chose not to run what needs one; that is no skip."""
    if not set(config.stash[BACKENDS]) & set(real_servers()):
        config.hook.pytest_deselected(items=[item for item in items if "server_name" in _fixtures(item)])
        items[:] = [item for item in items if "server_name" not in _fixtures(item)]


def _fixtures(item: pytest.Item) -> list[str]:
    return getattr(item, "fixturenames", [])


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """The servers of this session. Tests have namespaces of their own on them; who breaks a server makes one for itself."""
    servers = Servers(tmp_path_factory.mktemp("servers"))
    yield servers
    servers.end()


@pytest.fixture
def backend_url(request: pytest.FixtureRequest, servers: Servers) -> str:
    """A backend to test on. The drivers run the very same tests."""
    return servers.url(request.param)


@pytest.fixture
def server_url(server_name: str, servers: Servers) -> str:
    """A server that other processes can reach; shared, so it must not be broken."""
    return servers.url(server_name)
