"""Where the command starts: says how to get the extra if it is missing, else hands over to the application.

Invariants: imports nothing outside the standard library before it is sure to be able to explain a failure.
"""

from __future__ import annotations

import sys

__all__ = ["main"]

MISSING_EXTRA_EXIT = 9
"""`corepool.cli.exits.Exit.NOT_INSTALLED`, which cannot be imported before the extra is known to be there."""


def main() -> None:
    """The console script ``corepool``."""
    try:
        from corepool.cli.app import run
    except ModuleNotFoundError as error:
        if (error.name or "corepool").startswith("corepool"):
            raise
        print(
            f"corepool: the command line needs {error.name}, which is not installed; run: pip install 'corepool[cli]'",
            file=sys.stderr,
        )
        sys.exit(MISSING_EXTRA_EXIT)
    run()


if __name__ == "__main__":
    main()
