"""Lets tests import their own helpers (``tests.servers``, …) whatever way corepool was installed.

The root comes last on the path: what is under test is the installed package, not the folder beside it.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
