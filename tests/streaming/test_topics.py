"""Topic filters."""

from __future__ import annotations

import re
from typing import Any

import pytest

from corepool.errors import InvalidOptionError
from corepool.streaming import TopicFilter


@pytest.mark.parametrize(
    ("topics", "patterns", "wanted", "unwanted"),
    [
        ((), (), ["", "a", "é"], []),
        ("a", (), ["a"], ["", "b", "aa"]),
        (["a", ""], (), ["a", ""], ["b"]),
        ((), "a.*", ["a.b", "a."], ["a", "ab", "b.a.c", ""]),
        ((), ["?", "x[12]"], ["a", "x1", "x2"], ["", "ab", "x3"]),
        ((), re.compile(r"\d+"), ["1", "12"], ["", "1a"]),
        (["exact"], ["p*"], ["exact", "p", "pq"], ["q", "EXACT", "P"]),
        (["a*"], (), ["a*"], ["ab"]),
        ((), "*", ["", "a\nb"], []),
    ],
)
def test_what_is_wanted(topics: Any, patterns: Any, wanted: list[str], unwanted: list[str]) -> None:
    topic_filter = TopicFilter(topics, patterns)
    assert all(topic_filter.wants(topic) for topic in wanted)
    assert not any(topic_filter.wants(topic) for topic in unwanted)


@pytest.mark.parametrize(("topics", "patterns"), [([1], ()), ((), [1]), ((), [re.compile(b"a")]), ([b"a"], ())])
def test_what_is_no_topic_or_pattern_is_refused(topics: Any, patterns: Any) -> None:
    with pytest.raises(InvalidOptionError):
        TopicFilter(topics, patterns)
