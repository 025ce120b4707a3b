"""Questions that several callers ask in one turn of the event loop, asked together.

Purpose: many calls at once want to know the same: the newest marker of a map, the registry of a stream. Those that begin in one
turn of the loop share a request for it, and all requests of a turn go to the server in one write.
Invariants:

- A request is sent after every call that shares it began, so its answer is as fresh as that of a request of one's own; and
  after everything that these calls give to the connection in the turn in which they ask.
- Cancelling a call takes nothing from those that share its requests.
- Only for what may be asked in any number: reads, and publishes that can never hold.

Neighbours: on one `Link`; :mod:`corepool_nats.client` gives meaning to the outcomes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from corepool_nats.link import Call, Link, LinkError, Message, NotSent

__all__ = ["Asked", "Question", "Together"]


class Question(NamedTuple):
    """A request. ``many``: it is answered by several messages, the last one with a status."""

    subject: str
    data: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    many: bool = False


class _Round:
    """The questions of one turn, and who waits for their answers."""

    __slots__ = ("answers", "left", "timeout", "waiters")

    def __init__(self) -> None:
        self.answers: dict[Question, list[Message] | LinkError | None] = {}
        self.waiters: list[asyncio.Future[None]] = []
        self.left = 0
        self.timeout = float("inf")

    def take(self, question: Question, answer: list[Message] | LinkError) -> None:
        """The last answer wakes everybody."""
        self.answers[question] = answer
        self.left -= 1
        if self.left == 0:
            for waiter in self.waiters:
                if not waiter.done():
                    waiter.set_result(None)


class Asked:
    """One caller's part of a round."""

    __slots__ = ("_questions", "_round", "_waiter")

    def __init__(self, asked: _Round, questions: Sequence[Question], waiter: asyncio.Future[None]) -> None:
        self._round = asked
        self._questions = questions
        self._waiter = waiter

    async def answers(self) -> list[list[Message]]:
        """The messages that answer each question. Await it once, or never.

        Raises:
            ReplyLost, NoResponders, Denied, NotSent: of one of them.
        """
        await self._waiter
        found: list[list[Message]] = []
        for question in self._questions:
            answer = self._round.answers[question]
            if isinstance(answer, LinkError):
                raise answer
            assert answer is not None
            found.append(answer)
        return found


class Together:
    """The questions to one link."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self._round: _Round | None = None

    def ask(self, questions: Sequence[Question], timeout: float) -> Asked:
        """Have them sent at the end of this turn. Does not suspend.

        timeout: for how many seconds an answer is waited for; those that share a round wait for the shortest of their times,
            and who has more left asks again.
        """
        loop = asyncio.get_running_loop()
        if not questions:  # a round of nothing else would get no answer that ends it
            nothing: asyncio.Future[None] = loop.create_future()
            nothing.set_result(None)
            return Asked(_Round(), questions, nothing)
        asked = self._round
        if asked is None:
            asked = self._round = _Round()
            loop.call_soon(self._send)
        asked.answers.update(dict.fromkeys(questions))
        asked.timeout = min(asked.timeout, timeout)
        waiter = loop.create_future()
        asked.waiters.append(waiter)
        return Asked(asked, questions, waiter)

    def _send(self) -> None:
        asked, self._round = self._round, None
        assert asked is not None
        asked.left = len(asked.answers)
        for question in list(asked.answers):

            def told(call: Call, question: Question = question) -> None:
                asked.take(question, call.outcome())

            subject, data, headers, many = question
            try:
                self.link.begin(subject, data, dict(headers), timeout=asked.timeout, many=many, told=told)
            except NotSent as error:
                asked.take(question, error)
