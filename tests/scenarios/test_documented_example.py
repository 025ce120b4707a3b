"""The example of docs/testing-your-handlers.md: it fails as the page says, and can be replayed as the page says.

The report in the page is pasted from a run. When the pool exchanges other messages its times and tokens change; what a reader
needs of it must not. To paste it anew: ``python -m tests.scenarios.test_documented_example``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "testing-your-handlers.md"
EXAMPLE = "examples/leaky_handler.py"
BEGIN, END = "```text\n", "```\n"


def _pytest(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "0", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "random", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def _report(output: str) -> list[str]:
    """The lines of the failure's report in pytest's output."""
    lines = output.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("leaky_handler.py::"))
    last = next(number for number, line in enumerate(lines) if line.startswith("replay: "))
    return lines[first : last + 1]


def _documented() -> list[str]:
    return PAGE.read_text().partition(BEGIN)[2].partition(END)[0].splitlines()


def _essential(report: list[str]) -> list[str]:
    """What a reader needs: the kinds of lines in their order, without what another placement or message of the pool changes."""
    wanted = re.compile(r"failed with seed|^what happened|is called|start\(|stop\(|^decisions|^Python|^replay")
    changing = re.compile(r"'(news|weather|sports)'|\bnews|weather|sports\b|cps1\S+|digest \S+|(?<!node-)\b\d+(\.\d+)*")
    lines = [changing.sub("#", " ".join(line.split())) for line in report if wanted.search(line)]
    return list(dict.fromkeys(lines))


@pytest.mark.timeout(180)
def test_the_example_fails_as_documented_and_can_be_replayed() -> None:
    done = _pytest(EXAMPLE)
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    report = _report(done.stdout)
    assert len(report) <= 40
    assert _essential(report) == _essential(_documented()), "paste it anew: see the first lines of this file"
    test, token = re.findall(r"pytest '(.+)' --corepool-replay (\S+)$", report[-1])[0]
    again = _pytest(test, "--corepool-replay", token)
    assert "1 failed" in again.stdout, again.stdout + again.stderr
    assert _report(again.stdout) == report, "a replay tells the same story, in another process with other hashes"


def test_the_page_shows_the_code_of_the_example() -> None:
    code = (ROOT / EXAMPLE).read_text()
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    of_the_example = [block for block in blocks if "corepool.testing" not in block]
    assert len(of_the_example) == 4
    for block in of_the_example:
        assert block in code


def _paste() -> None:
    before, begin, rest = PAGE.read_text().partition(BEGIN)
    report = "\n".join(_report(_pytest(EXAMPLE).stdout))
    PAGE.write_text(f"{before}{begin}{report}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    _paste()
