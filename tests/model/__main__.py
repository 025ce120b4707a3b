"""``python -m tests.model [RULE ...]``: what goes wrong without each rule, as stories.

``python -m tests.model clean`` explores the cases with all rules on.
"""

from __future__ import annotations

import sys
import time

from tests.model.broken import BROKEN
from tests.model.cases import CLEAN
from tests.model.explore import explore


def main(arguments: list[str]) -> int:
    """Print the stories of the named rules (R1, or R1.claimed), or of all."""
    if arguments == ["clean"]:
        for clean in CLEAN:
            began = time.perf_counter()
            result = explore(clean.make(), limit=clean.limit)
            bound = "all" if result.complete else "the first"
            took = time.perf_counter() - began
            print(f"{clean.name}: {bound} {result.states} states, {result.depth} steps deep, {took:.1f} s")
            print(result.violation or "  nothing is broken")
        return 0
    wanted = [case for case in BROKEN if not arguments or {case.rule, case.rule.partition(".")[0]} & set(arguments)]
    for case in wanted:
        result = explore(case.make(), limit=150_000, only=case.invariant)
        print(f"{case.rule} off: {case.means}")
        print(f"{result.violation or '  nothing is broken'}\n")
    if not wanted:
        print(
            f"no rule is named {' '.join(arguments)}; there are {', '.join(case.rule for case in BROKEN)}",
            file=sys.stderr,
        )
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
