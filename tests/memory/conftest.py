"""Fixtures: a server in hand-driven time, and a way to wait for turns of the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.memory.wires import World


@pytest.fixture
def world() -> World:
    return World()


async def _until(condition: Callable[[], object], turns: int = 1000) -> None:
    """Let the loop run until the condition holds; what is tested here takes turns, not time."""
    for _ in range(turns):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("the condition never came to hold")


@pytest.fixture
def until() -> Callable[..., Any]:
    return _until
