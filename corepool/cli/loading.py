"""Loads what the user names as ``module:attribute``: a handler, a scenario.

Invariants: whatever the user's module does when it is imported, ending the process included, becomes one error that names it;
the current folder is on the import path, as it is for ``python -m``.
Neighbours: ``worker_command`` and ``scenarios`` say what they make of it.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

__all__ = ["LoadError", "load", "why"]


class LoadError(Exception):
    """Nothing can be loaded under this name; the text is one line for the user."""


def load(path: str, form: str) -> Any:
    """What ``module:attribute`` names; ``form`` is what the user should have written.

    Raises:
        LoadError: it has another form, its module cannot be imported, or nothing is there.
    """
    module, colon, attribute = path.partition(":")
    if not colon or not module or not attribute:
        raise LoadError(f"{path!r} is not {form}")
    if module.endswith(".py") or "/" in module:
        raise LoadError(f"{path!r} is not {form}: write the module as in 'import', not the path of its file")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    # the user's module may raise anything on import, and a script without a main guard ends the process
    except (Exception, SystemExit) as error:
        raise LoadError(f"cannot load {path}: {why(error)}") from error
    return found


def why(error: BaseException) -> str:
    """The error of somebody else's code in one line."""
    if isinstance(error, SystemExit):
        return f"the code asked to end the process (SystemExit: {error.code})"
    return f"{type(error).__name__}: {error}"
