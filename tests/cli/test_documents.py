"""What the documents say can be run, and agrees with the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

import corepool.errors
from corepool.cli.app import app
from corepool.cli.exits import Exit
from corepool.pool import NodeOptions

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")))]


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_the_readmes_handler_runs_as_it_stands(tmp_path: Path) -> None:
    (block,) = [block for block in python_blocks(README) if "asyncio.run(main())" in block]
    (tmp_path / "feeds.py").write_text(block)
    done = subprocess.run(
        [sys.executable, "-W", "error", "feeds.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("looking at https://example.org/feed.xml") >= 3
    assert done.stderr == ""


def test_the_readmes_simulation_runs_as_it_stands(tmp_path: Path) -> None:
    (example,) = [block for block in python_blocks(README) if "asyncio.run(main())" in block]
    (test,) = [block for block in python_blocks(README) if "corepool_simulation" in block]
    handler = example[: example.index("async def main")]
    (tmp_path / "test_feeds.py").write_text(f"{handler}\n\n{test}")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "test_feeds.py", "--corepool-seeds", "3"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_the_readmes_handler_is_as_short_as_it_says() -> None:
    (block,) = [block for block in python_blocks(README) if "asyncio.run(main())" in block]
    handler = block[block.index("class Feeds") : block.index("async def main")]
    assert len([line for line in handler.splitlines() if line.strip()]) <= 15


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    source = ROOT / page
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", source.read_text()):
        assert (source.parent / target).exists(), f"{page} links to {target}"


@pytest.mark.parametrize("code", list(Exit))
def test_help_and_document_list_every_exit_code(code: Exit) -> None:
    assert re.search(rf"^ *{code:d}  |, {code:d} ", str(app.info.help), flags=re.MULTILINE)
    assert f"| {code:d} |" in (ROOT / "docs/cli.md").read_text()


def test_the_options_of_a_node_are_documented_with_their_defaults() -> None:
    rows: dict[str, str] = {}
    for names, values in re.findall(
        r"^\| ((?:`\w+`(?:, )?)+) \| ([^|]+) \|", (ROOT / "docs/index.md").read_text(), re.M
    ):
        rows |= dict(zip(re.findall(r"\w+", names), values.split(","), strict=False))
    for option, value in attrs.asdict(NodeOptions(), recurse=False).items():
        said = rows[option].strip().strip("`")
        match value:
            case bool():
                assert said == str(value).lower(), option
            case float() | int():
                assert float(said) == value, option
            case _:
                assert type(value).__name__.lower() == said, option


def test_every_error_is_documented() -> None:
    document = (ROOT / "docs/index.md").read_text()
    named = [name for name in corepool.errors.__all__ if name != "CorepoolError"]
    assert not [name for name in named if f"`{name}`" not in document]


def test_every_command_is_documented() -> None:
    document = (ROOT / "docs/cli.md").read_text()
    names = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    assert names
    for name in names:
        assert f"`corepool {name}" in document
    for group in app.registered_groups:
        assert f"`corepool {group.name}" in document
