"""What exists: the registry of logical streams.

Purpose: one registry message per logical stream, in the same JetStream stream as its events; every append names its sequence.

========  ===========================================================================================================
state     meaning
========  ===========================================================================================================
waiting   does not exist; sinks that were opened before it are kept for its first life
open      takes appends
sealed    takes none
gone      destroyed; everything up to this message is about to be purged (then there is no message at all)
========  ===========================================================================================================

Invariants:

- A registry changes by compare-and-set, and an append is stored only while the registry message it knows is the newest:
  so after ``gone`` is stored no append of an earlier life gets in (S5), and no check-then-append can be raced.
- The purge of a destroyed stream names the sequence of its ``gone`` message: late or twice, it never reaches a later life.
- In a cluster a leader compares with what is applied and keeps apart what is under way *by the text of the guard*. So
  all guards of one logical stream are the same text: its registry subject, or for bounded work streams everything of it.

Neighbours: :mod:`corepool_nats.streams` and :mod:`corepool_nats.sink`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
import msgspec

from corepool.driver import StreamConfig, StreamKind
from corepool.errors import WireError
from corepool_nats import api
from corepool_nats.assets import Assets
from corepool_nats.client import Refused, expect
from corepool_nats.names import StreamSubjects
from corepool_nats.records import Reads
from corepool_nats.writes import after_the_fact

__all__ = ["Known", "Registries", "Registry", "SinkSpec"]


class SinkSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A sink: its ack_wait in seconds, and where it starts: at a sequence, or at a time (seconds since 1970)."""

    wait: float
    start: int
    since: float | None = None


class Registry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A registry message. ``life``: what tells this life of the stream from others; ``most``: its bound."""

    state: str
    life: str
    kind: str = "work"
    most: int | None = None
    sinks: Mapping[str, SinkSpec] = {}

    @property
    def exists(self) -> bool:
        return self.state in ("open", "sealed")

    @property
    def bounded(self) -> bool:
        """Whether an append needs to know the stream's length."""
        return self.kind == "work" and self.most is not None


@attrs.frozen(slots=True)
class Known:
    """The registry message at a sequence; sequence 0 and no registry: there is none."""

    sequence: int
    registry: Registry | None

    @property
    def exists(self) -> bool:
        return self.registry is not None and self.registry.exists


_NOTHING = Known(0, None)


class Registries:
    """The registry of one namespace, with a memory of what was read last."""

    def __init__(self, assets: Assets, reads: Reads) -> None:
        self._assets = assets
        self._client = assets.client
        self._target = assets.streams
        self._reads = reads
        self._memory: dict[str, Known] = {}

    def remembered(self, subjects: StreamSubjects) -> Known | None:
        """What was read last; a guard finds out whether it still holds."""
        return self._memory.get(subjects.base)

    def forget(self, subjects: StreamSubjects | None = None) -> None:
        if subjects is None:
            self._memory.clear()
        else:
            self._memory.pop(subjects.base, None)

    async def load(self, subjects: StreamSubjects, deadline: float) -> Known:
        """Read it now.

        Raises:
            BackendUnavailable
        """
        found = await self._reads.newest(self._target, [subjects.registry], deadline)
        record = found.get(subjects.registry)
        if record is None:
            self._memory.pop(subjects.base, None)
            return _NOTHING
        try:
            registry = msgspec.json.decode(record.data, type=Registry)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise WireError(f"the registry of {subjects.base} cannot be read: {error}") from None
        known = Known(record.sequence, registry)
        if len(self._memory) > 4096:
            self._memory.clear()
        self._memory[subjects.base] = known
        return known

    async def create(self, subjects: StreamSubjects, config: StreamConfig, deadline: float) -> bool:
        """Begin a life; False if one is under way."""

        def begin(registry: Registry | None) -> Registry | None:
            if registry is not None and registry.exists:
                return None
            return Registry(
                "open",
                registry.life if registry is not None else self._client.new_id(),
                "log" if config.kind is StreamKind.LOG else "work",
                config.max_length,
                registry.sinks if registry is not None else {},
            )

        return await self.change(subjects, begin, deadline)

    async def seal(self, subjects: StreamSubjects, deadline: float) -> None:
        await self.change(
            subjects,
            lambda registry: (
                msgspec.structs.replace(registry, state="sealed")
                if registry is not None and registry.state == "open"
                else None
            ),
            deadline,
        )

    async def destroy(self, subjects: StreamSubjects, deadline: float) -> None:
        """End the life there is, and free everything of it; finishes what a crashed destroyer began."""
        await self.change(
            subjects,
            lambda registry: msgspec.structs.replace(registry, state="gone") if registry is not None else None,
            deadline,
            finish=False,
        )
        known = self._memory.get(subjects.base)
        if known is not None and known.registry is not None and known.registry.state == "gone":
            with after_the_fact():
                await self._finish(subjects, known, deadline)

    async def change(
        self,
        subjects: StreamSubjects,
        to: Callable[[Registry | None], Registry | None],
        deadline: float,
        *,
        finish: bool = True,
    ) -> bool:
        """Compare-and-set; ``to`` says what shall stand there, None to leave it. True if something was written.

        finish: first complete a destruction that was left half done; ``to`` then sees nothing.

        Raises:
            BackendUnavailable, OutcomeUnknown
        """
        while True:
            newest = await self._newest(subjects, deadline)
            known = await self.load(subjects, deadline)
            registry = known.registry
            if registry is not None and registry.state == "gone":
                if not finish:
                    return False
                await self._finish(subjects, known, deadline)
                continue
            changed = to(registry)
            if changed is None:
                return False
            if registry is not None and registry.exists and registry.bounded:
                guard = expect(newest, subjects.everything)
            else:
                guard = expect(known.sequence, subjects.registry)
            try:
                data = msgspec.json.encode(changed)
                stored = await self._client.publish(self._target, subjects.registry, data, guard, deadline)
            except Refused:
                await self._client.yield_to_others(deadline)
                continue
            self._memory[subjects.base] = Known(stored.sequence, changed)
            return True

    async def _newest(self, subjects: StreamSubjects, deadline: float) -> int:
        known = self._memory.get(subjects.base)
        if known is not None and known.registry is not None and not known.registry.bounded:
            return 0  # only the guard of a bounded stream asks for it
        await self._assets.get(self._target, deadline)
        record = await self._reads.one(self._target, {"last_by_subj": subjects.everything}, deadline)
        return record.sequence if record is not None else 0

    async def _finish(self, subjects: StreamSubjects, known: Known, deadline: float) -> None:
        assert known.registry is not None
        for sink in known.registry.sinks:
            consumer = subjects.consumer(sink, known.registry.life)
            await self._client.api(f"CONSUMER.DELETE.{self._target.asset}.{consumer}", b"", api.Done, deadline)
        body = msgspec.json.encode({"filter": subjects.everything, "seq": known.sequence + 1})
        await self._client.api(f"STREAM.PURGE.{self._target.asset}", body, api.Done, deadline)
        self._memory.pop(subjects.base, None)
