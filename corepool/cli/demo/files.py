"""The demo's real work: which files it watches, and how it reads one.

Invariants: a key is unique and the same in every process; reading is in bounded chunks.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import sysconfig
from pathlib import Path

__all__ = ["choose_files", "hash_file"]

CHUNK = 64 * 1024
LARGEST = 4 * 1024 * 1024


def hash_file(path: Path) -> str:
    """The SHA-256 of the file's contents, read chunk by chunk.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def choose_files(count: int) -> dict[str, Path]:
    """``count`` real files of the installed packages, spread evenly over them, by a short key of their own.

    Where fewer are installed, files of the standard library make up the number; fewer are returned only if those run out too.
    """
    found: dict[str, Path] = {}
    for distribution in importlib.metadata.distributions():
        for entry in distribution.files or ():
            path = Path(str(distribution.locate_file(entry)))
            if entry.suffix == ".py" and ".." not in entry.parts and _usable(path):
                found[entry.as_posix()] = path
    keys = sorted(found)
    if len(keys) < count:
        library = Path(sysconfig.get_path("stdlib"))
        for path in sorted(library.rglob("*.py")):
            if len(found) >= count:
                break
            if "site-packages" not in path.parts and _usable(path):
                found[f"python/{path.relative_to(library).as_posix()}"] = path
        keys = sorted(found)
    step = max(len(keys) / count, 1.0)
    chosen = [keys[int(index * step)] for index in range(min(count, len(keys)))]
    return {key: found[key] for key in chosen}


def _usable(path: Path) -> bool:
    try:
        return path.is_file() and 0 < path.stat().st_size <= LARGEST
    except OSError:  # a broken link or a folder that is not ours to read: there are other files
        return False
