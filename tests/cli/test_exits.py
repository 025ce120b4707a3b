"""Every error has an exit code, and the help lists every code."""

from __future__ import annotations

import pytest

from corepool import errors
from corepool.cli.exits import Exit, exit_for
from corepool.cli.main import MISSING_EXTRA_EXIT

ERRORS = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("kind", [kind for kind in ERRORS if kind is not errors.CorepoolError])
def test_every_error_has_an_exit_code_of_its_own_choosing(kind: type[errors.CorepoolError]) -> None:
    from corepool.cli import exits

    assert kind in exits._EXITS, f"decide what {kind.__name__} means to a script"
    assert exit_for(kind("text")) is exits._EXITS[kind]


def test_an_error_of_a_later_version_counts_as_a_finding() -> None:
    class NewError(errors.CorepoolError):
        pass

    assert exit_for(NewError()) is Exit.FOUND


def test_the_missing_extra_has_the_code_of_what_is_not_installed() -> None:
    assert MISSING_EXTRA_EXIT == Exit.NOT_INSTALLED
