"""Placement: how much moves, how even it is, and that it is the same everywhere."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections import Counter

import pytest

from corepool.pool import JumpHash, MultiProbe

KEYS = [f"key {n}" for n in range(20_000)]
WORKERS = sorted(f"w{n:x}" for n in range(0x1000, 0x100A))


def owners(workers: list[str], strategy: MultiProbe | JumpHash | None = None) -> dict[str, str]:
    placer = (strategy or MultiProbe()).place(workers)
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


def seconds_of_a_lookup(workers: int) -> float:
    """Of a key nobody looked up before; the best of several rounds: what else runs on the machine only adds to it."""
    placer = MultiProbe().place([f"w{n:020x}" for n in range(workers)])
    rounds = []
    for start in range(0, 10_000, 1_000):
        began = time.process_time()
        for n in range(start, start + 1_000):
            placer.owner(f"fresh {n}")
        rounds.append((time.process_time() - began) / 1_000)
    return min(rounds)


def test_a_lookup_grows_with_the_logarithm_of_the_workers() -> None:
    """A few µs with 100 workers; here by how much more a hundred times as many cost, on whatever machine this is."""
    assert seconds_of_a_lookup(1_000) < 10 * seconds_of_a_lookup(10)


def test_the_load_is_even_on_a_hundred_workers_too() -> None:
    placer = MultiProbe().place([f"w{n:020x}" for n in range(100)])
    load = Counter(placer.owner(f"key {n}") for n in range(100_000))
    assert max(load.values()) / 1_000 <= 1.25
    assert len(load) == 100


def test_jump_hash_moves_little_when_the_last_joins() -> None:
    before, after = owners(WORKERS, JumpHash()), owners([*WORKERS, "zzz"], JumpHash())
    assert moved(before, after) <= 1.1 * len(KEYS) / (len(WORKERS) + 1)


def test_every_process_places_alike() -> None:
    script = (
        "import hashlib; from corepool.pool import MultiProbe;"
        f"p = MultiProbe().place({WORKERS!r});"
        "print(hashlib.sha256(''.join(p.owner(f'key {n}') for n in range(500)).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", script], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True, text=True
        ).stdout
        for seed in ("0", "1", "42")
    }
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("placement", "digest"),
    [
        (MultiProbe(), "630ee5e6d54837c32a546d68edcc61e780c1b4fe1b6e2a0752ea95d1a09ccdc2"),
        (JumpHash(), "561eb05a72fbb0467e75a08c47437d228723a3c1052ed65646d22cd78c013b7d"),
    ],
    ids=repr,
)
def test_every_version_places_alike(placement: MultiProbe | JumpHash, digest: str) -> None:
    """While a pool is upgraded node by node, both versions are in its ring. Another placement needs another name."""
    placer = placement.place(["w1", "w2", "w3", "w4", "w5"])
    placed = "".join(placer.owner(f"key {n}") for n in range(1000))
    assert hashlib.sha256(placed.encode()).hexdigest() == digest
