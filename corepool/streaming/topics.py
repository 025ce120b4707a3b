"""Which topics a reader or sink wants, decided on the client.

Purpose: one filter for exact topics, shell-style patterns and regular expressions.
Invariants: no topics and no patterns means everything; an event without a topic has the topic ``""``.
Neighbours: used by `Reader` and `Sink`.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from typing import TypeAlias

from corepool.driver import shorten
from corepool.errors import InvalidOptionError

__all__ = ["Pattern", "TopicFilter"]

Pattern: TypeAlias = "str | re.Pattern[str]"


class TopicFilter:
    """Wants an event whose topic is one of ``topics``, or matches one of ``patterns`` as a whole.

    A pattern is text with ``*``, ``?`` and ``[…]`` as in a shell (case counts), or a compiled regular expression.

    Raises:
        InvalidOptionError: a topic is not text, or a pattern is neither text nor a compiled expression over text.
    """

    def __init__(self, topics: str | Iterable[str] = (), patterns: Pattern | Iterable[Pattern] = ()) -> None:
        named = (topics,) if isinstance(topics, str) else tuple(topics)
        for topic in named:
            if not isinstance(topic, str):  # pyright: ignore[reportUnnecessaryIsInstance]  callers without a type checker
                raise InvalidOptionError(f"a topic is text, not {shorten(topic)}")
        self._topics = frozenset(named)  # looked up, never iterated
        given = (patterns,) if isinstance(patterns, str | re.Pattern) else tuple(patterns)
        self._patterns = tuple(_compile(pattern) for pattern in given)

    @property
    def everything(self) -> bool:
        """Whether every event is wanted."""
        return not self._topics and not self._patterns

    def wants(self, topic: str) -> bool:
        """Whether an event with this topic is wanted."""
        if self.everything or topic in self._topics:
            return True
        return any(pattern.fullmatch(topic) for pattern in self._patterns)


def _compile(pattern: Pattern) -> re.Pattern[str]:
    if isinstance(pattern, str):
        return re.compile(fnmatch.translate(pattern))
    if not isinstance(pattern, re.Pattern) or not isinstance(pattern.pattern, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidOptionError(f"a topic pattern is text or a compiled regular expression, not {shorten(pattern)}")
    return pattern
