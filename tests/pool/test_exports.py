"""The public names: all there, all documented, loaded only when used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import corepool


@pytest.mark.parametrize("name", corepool.__all__)
def test_every_public_name_exists_and_is_documented(name: str) -> None:
    value = getattr(corepool, name)
    if isinstance(value, type) or callable(value):
        assert value.__doc__, name


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="'nodes'"):
        _ = corepool.nodes  # type: ignore[attr-defined]


def test_importing_corepool_loads_nothing_else() -> None:
    script = "import sys, corepool; print([name for name in sys.modules if name.startswith('corepool.')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "[]"
