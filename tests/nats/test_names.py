"""Names and keys as subjects: nothing lost, nothing confused."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corepool.errors import WireError
from corepool_nats.names import Space, decode, encode

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)


@given(texts)
def test_decode_inverts_encode(text: str) -> None:
    token = encode(text)
    assert decode(token) == text
    assert re.fullmatch(r"[A-Za-z0-9_/=-]+", token), "one subject token, without dots, wildcards or spaces"


@given(texts, texts, texts, texts)
def test_no_two_places_share_a_subject(a: str, b: str, c: str, d: str) -> None:
    same = (a, b) == (c, d)
    space = Space("s")
    assert (space.map(a).key(b) == space.map(c).key(d)) == same
    assert (Space(a).map(b).base == Space(c).map(d).base) == same
    assert (Space(a).stream(b).events == Space(c).stream(d).events) == same
    assert (Space(a).maps_asset == Space(c).maps_asset) == (a == c)


@given(texts)
def test_keys_come_back_from_their_subjects(key: str) -> None:
    subjects = Space("s").map("m")
    assert subjects.key_of(subjects.key(key)) == key
    assert subjects.key_of(subjects.marker) is None


@pytest.mark.parametrize("token", ["", "a b", "a.b", "=4", "=zz", "=C3", "é", "=c3=a9", "a=", "*", ">"])
def test_what_encode_never_makes_is_refused(token: str) -> None:
    with pytest.raises(WireError):
        decode(token)


def test_the_longest_subject_fits_a_control_line() -> None:
    worst = "\U0001f9a6"
    subject = Space(worst * 50).map(worst * 50).key(worst * 128)
    assert len(subject) < 3600


def test_long_names_of_assets_stay_apart() -> None:
    names = {"x" * 200, "x" * 201, "X" * 200, "cp-mh-" + "a" * 64}
    assert len({Space(name).maps_asset for name in names}) == len(names)
    assert all(len(Space(name).maps_asset) < 200 for name in names)
    assert not set("./\\ *>") & set(Space("a/b.c *>\\").streams_asset)
