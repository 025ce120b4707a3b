"""``python -m corepool.cli``: the command, where its script is not on the path."""

from __future__ import annotations

from corepool.cli.main import main

main()
