"""The demo watches real files, the same in every process."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from corepool.cli.demo import files


def test_the_files_are_real_distinct_and_the_same_each_time() -> None:
    chosen = files.choose_files(200)
    assert len(chosen) == 200
    assert len(set(chosen.values())) == 200
    assert all(path.is_file() and path.stat().st_size > 0 for path in chosen.values())
    assert chosen == files.choose_files(200)


def test_the_standard_library_makes_up_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.importlib.metadata, "distributions", list)
    chosen = files.choose_files(120)
    assert len(chosen) == 120
    assert all(key.startswith("python/") for key in chosen)


def test_a_file_is_hashed_as_a_whole(tmp_path: Path) -> None:
    data = b"x" * (files.CHUNK * 2 + 17)
    (tmp_path / "file").write_bytes(data)
    assert files.hash_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()
