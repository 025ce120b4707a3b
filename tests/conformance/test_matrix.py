"""The matrix page is fresh, and says so when it is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from corepool_conformance.matrix import main

DOCS = Path(__file__).parents[2] / "docs"
RESULTS, PAGE = DOCS / "results", DOCS / "matrix.md"


@pytest.fixture
def copy(tmp_path: Path) -> tuple[Path, Path]:
    """The results and the page, to be spoiled."""
    shutil.copytree(RESULTS, tmp_path / "results")
    shutil.copy(PAGE, tmp_path / "matrix.md")
    return tmp_path / "results", tmp_path / "matrix.md"


def check(results: Path, page: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What the check complains of; "" if the page is fresh."""
    status = main([str(results), str(page), "--check"])
    complaint = capsys.readouterr().err
    assert (status == 0) == (complaint == "")
    return complaint


def change(results: Path, name: str, **fields: Any) -> None:
    path = results / name
    document = json.loads(path.read_text(encoding="utf-8"))
    document["targets"][0].update(fields)
    path.write_text(json.dumps(document), encoding="utf-8")


def test_the_page_is_fresh(capsys: pytest.CaptureFixture[str]) -> None:
    assert check(RESULTS, PAGE, capsys) == ""


def test_a_page_that_was_edited_is_stale(copy: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    results, page = copy
    page.write_text(page.read_text(encoding="utf-8").replace("core", "corr"), encoding="utf-8")
    assert "is not what the reports say" in check(results, page, capsys)
    assert main([str(results), str(page)]) == 0
    assert check(results, page, capsys) == ""
    page.unlink()
    assert "is not what the reports say" in check(results, page, capsys)


def test_new_results_make_the_page_stale(copy: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    results, page = copy
    change(results, "memory.json", levels=[])
    assert "is not what the reports say" in check(results, page, capsys)


def test_a_kit_with_other_tests_makes_the_results_stale(
    copy: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    results, page = copy
    tests = json.loads((results / "memory.json").read_text(encoding="utf-8"))["targets"][0]["tests"]
    change(results, "memory.json", tests=tests[1:])
    main([str(results), str(page)])
    assert "1 tests of the kit were not run" in check(results, page, capsys)
    change(results, "memory.json", tests=[*tests, {**tests[0], "id": "maps::test_of_long_ago"}])
    main([str(results), str(page)])
    assert "has no maps::test_of_long_ago any more" in check(results, page, capsys)


def test_reports_that_cannot_be_used(
    copy: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    results, page = copy
    shutil.copy(results / "memory.json", results / "memory2.json")
    assert "a second report of memory" in check(results, page, capsys)
    (results / "memory2.json").write_text('{"format": 0, "targets": []}', encoding="utf-8")
    assert "has format 0" in check(results, page, capsys)
    (tmp_path / "empty").mkdir()
    assert "holds no reports" in check(tmp_path / "empty", page, capsys)


def test_what_fails_is_said(copy: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    results, page = copy
    tests = json.loads((results / "memory.json").read_text(encoding="utf-8"))["targets"][0]["tests"]
    tests[0] |= {"outcome": "failed", "text": "M6 cancellation: …\nmore"}
    change(results, "memory.json", tests=tests, levels=[])
    assert main([str(results), str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "1 failed" in text
    assert "## What does not hold" in text
    assert f"- memory: `{tests[0]['id']}` (failed): M6 cancellation: …" in text
