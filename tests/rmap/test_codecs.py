"""Codecs: what goes in comes out equal; what is not theirs raises and never passes for something else."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corepool.driver import encode_list
from corepool.errors import InvalidOptionError, WireError
from corepool.rmap import BYTES, JSON, TEXT

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=12,
)


@given(st.text())
def test_text_comes_back(value: str) -> None:
    assert TEXT.decode(TEXT.encode(value)) == value


@given(st.binary())
def test_bytes_come_back(value: bytes) -> None:
    assert BYTES.decode(BYTES.encode(value)) == value


@given(json_values)
def test_json_comes_back(value: Any) -> None:
    back = JSON.decode(JSON.encode(value))
    assert back == value
    assert JSON.encode(back) == JSON.encode(value)


@given(st.lists(json_values, max_size=4))
def test_json_reads_the_lists_that_append_values_made(values: list[Any]) -> None:
    assert JSON.decode(encode_list(JSON.encode(value) for value in values)) == values


@given(st.binary())
def test_decoding_strange_bytes_gives_a_value_or_a_wire_error(data: bytes) -> None:
    for codec in (TEXT, JSON):
        with contextlib.suppress(WireError):
            codec.decode(data)


def test_json_is_canonical() -> None:
    assert JSON.encode({"b": 1, "a": {"d": 1, "c": 2}}) == JSON.encode({"a": {"c": 2, "d": 1}, "b": 1})


@pytest.mark.parametrize(("codec", "value"), [(TEXT, b"x"), (TEXT, None), (BYTES, "x"), (BYTES, 1), (JSON, b"x")])
def test_values_of_another_type_are_refused(codec: Any, value: Any) -> None:
    with pytest.raises(TypeError):
        codec.encode(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", ["\udfff"]])
def test_what_json_cannot_say_is_refused(value: Any) -> None:
    with pytest.raises(InvalidOptionError):
        JSON.encode(value)


def test_a_lone_surrogate_is_no_text() -> None:
    with pytest.raises(InvalidOptionError, match="lone surrogate"):
        TEXT.encode("\ud800")


@pytest.mark.parametrize(
    "data", [b"NaN", b"Infinity", b"[1", b"\xff", b"\xfe\xff\x00[\x00]", b"[" * 100_000, b"3:abc,"]
)
def test_what_is_not_json_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        JSON.decode(data)
