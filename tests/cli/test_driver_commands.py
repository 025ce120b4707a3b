"""``corepool drivers`` and ``corepool check``."""

from __future__ import annotations

import json

import attrs
import pytest
from typer.testing import CliRunner

from corepool.cli import driver_commands
from corepool.cli.app import app
from corepool.driver import Capabilities
from corepool.errors import DriverLoadError

from .conftest import Cli


def test_the_matrix_has_every_capability_of_every_driver() -> None:
    result = CliRunner().invoke(app, ["drivers", "--json"])
    assert result.exit_code == 0
    rows = {row["scheme"]: row for row in json.loads(result.stdout)["drivers"]}
    assert {"memory", "redis", "nats"} <= rows.keys()
    for row in rows.values():
        assert row["usable"], row
        assert row["capabilities"].keys() == attrs.fields_dict(Capabilities).keys()


def test_the_table_is_for_people() -> None:
    result = CliRunner().invoke(app, ["drivers"])
    assert result.exit_code == 0
    for text in ("memory://", "redis://", "nats://", *attrs.fields_dict(Capabilities)):
        assert text in result.stdout


def test_a_broken_driver_is_a_row_and_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = driver_commands.load_spec

    def load(scheme: str) -> object:
        if scheme == "redis":
            raise DriverLoadError("the driver plugin for redis:// is broken")
        return sound(scheme)

    monkeypatch.setattr(driver_commands, "load_spec", load)
    result = CliRunner().invoke(app, ["drivers", "--json"])
    assert result.exit_code == 0
    rows = {row["scheme"]: row for row in json.loads(result.stdout)["drivers"]}
    assert rows["redis"]["usable"] is False
    assert "is broken" in rows["redis"]["problem"]
    assert rows["memory"]["usable"] is True
    assert "is broken" in CliRunner().invoke(app, ["drivers"]).stdout


async def test_check_reports_and_exits_by_severity(cli: Cli) -> None:
    result = await cli("check", "--json", url="memory://check")
    report = json.loads(result.stdout)
    dangers = [one for one in report["findings"] if one["severity"] == "danger"]
    assert report["dangers"] == len(dangers)
    assert result.exit_code == (1 if dangers else 0)
    assert report["capabilities"].keys() == attrs.fields_dict(Capabilities).keys()


async def test_check_without_a_server_exits_with_3_and_shows_no_password(cli: Cli) -> None:
    result = await cli("check", "redis://user:se-cret@127.0.0.1:1/0")
    assert result.exit_code == 3
    assert "se-cret" not in result.stderr + result.stdout
