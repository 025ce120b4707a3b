"""Placement: how much moves, how even it is, and that it is the same everywhere."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest

from corepool.pool import JumpHash, Rendezvous

KEYS = [f"key {n}" for n in range(20_000)]
WORKERS = sorted(f"w{n:x}" for n in range(0x1000, 0x100A))


def owners(workers: list[str], strategy: Rendezvous | JumpHash | None = None) -> dict[str, str]:
    placer = (strategy or Rendezvous()).place(workers, None)
    return {key: placer.owner(key) for key in KEYS}


BEFORE = owners(WORKERS)


def moved(before: dict[str, str], after: dict[str, str]) -> int:
    return sum(before[key] != after[key] for key in KEYS)


def test_the_load_is_even() -> None:
    load = Counter(BEFORE.values())
    assert len(load) == len(WORKERS)
    assert max(load.values()) / (len(KEYS) / len(WORKERS)) <= 1.25


@pytest.mark.parametrize("leaver", range(len(WORKERS)))
def test_any_one_leave_moves_its_share_and_nothing_else(leaver: int) -> None:
    rest = [worker for n, worker in enumerate(WORKERS) if n != leaver]
    after = owners(rest)
    assert moved(BEFORE, after) <= 1.1 * len(KEYS) / len(WORKERS)
    assert all(BEFORE[key] == WORKERS[leaver] for key in KEYS if BEFORE[key] != after[key])


@pytest.mark.parametrize("joiner", ["a", "w1004z", "zzz", "w0fff"])
def test_any_one_join_moves_its_share_and_nothing_else(joiner: str) -> None:
    after = owners(sorted([*WORKERS, joiner]))
    assert moved(BEFORE, after) <= 1.1 * len(KEYS) / (len(WORKERS) + 1)
    assert all(after[key] == joiner for key in KEYS if BEFORE[key] != after[key])


@pytest.mark.parametrize(
    "workers", [WORKERS[1:], sorted([*WORKERS, "new"]), sorted([*WORKERS[3:], "new", "newer"]), WORKERS]
)
def test_reusing_the_previous_placer_changes_nothing(workers: list[str]) -> None:
    placer = Rendezvous().place(WORKERS, None)
    for key in KEYS[:5000]:
        placer.owner(key)
    reused, fresh = Rendezvous().place(workers, placer), Rendezvous().place(workers, None)
    assert all(reused.owner(key) == fresh.owner(key) for key in KEYS)


def test_jump_hash_moves_little_when_the_last_joins() -> None:
    before, after = owners(WORKERS, JumpHash()), owners([*WORKERS, "zzz"], JumpHash())
    assert moved(before, after) <= 1.1 * len(KEYS) / (len(WORKERS) + 1)


def test_every_process_places_alike() -> None:
    script = (
        "import hashlib; from corepool.pool import Rendezvous;"
        f"p = Rendezvous().place({WORKERS!r}, None);"
        "print(hashlib.sha256(''.join(p.owner(f'key {n}') for n in range(500)).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", script], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True, text=True
        ).stdout
        for seed in ("0", "1", "42")
    }
    assert len(digests) == 1
