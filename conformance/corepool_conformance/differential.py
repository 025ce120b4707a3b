"""The same operations on the driver under test and on the memory driver: the same answers, or a short program that differs.

Purpose: a second opinion on everything that one client can see; the memory driver is the model.
Invariants: a program is symbolic (a condition says "the key's current revision", not "17"), so that both sides run the same;
what may differ between backends (revisions, ids, timestamps) is compared by its order alone; the model is opened with the
capabilities of the driver under test.
Neighbours: ``contract/test_differential.py`` runs it. The model is opened by its URL; nothing of the memory driver is imported.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

import attrs

from corepool.driver import (
    ABSENT,
    ALWAYS,
    Append,
    Appended,
    AppendValues,
    Backend,
    Capabilities,
    Commit,
    CommitResult,
    Delete,
    DeleteKey,
    Entry,
    GetKey,
    Increment,
    MapStore,
    Namespace,
    NewEvent,
    Op,
    RemoveValues,
    Set,
    SetKey,
    StreamConfig,
    StreamKind,
    StreamStore,
    Updated,
    ValueOp,
    When,
    Write,
)
from corepool.errors import CorepoolError

__all__ = ["Difference", "Side", "Step", "compare", "generate", "model_url"]

KEYS = ("a", "b", "a.b", "*", "ä")
MAPS = ("m1", "m2")
STREAMS = ("s1", "s2")
_NOBODYS = 2**50 + 12345
"""A revision that no commit of a short program has, on a store that counts from one or from the time of day."""

Observation: TypeAlias = object
"""What a step showed, without what may differ between backends. Compared by ``==``."""


@attrs.frozen(slots=True)
class Step:
    """One operation: its name and its symbolic arguments."""

    name: str
    arguments: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(repr, self.arguments))})"


@attrs.frozen(slots=True)
class Difference:
    """Where two sides disagree: the program up to there, and what each side said last."""

    program: tuple[Step, ...]
    tested: Observation
    model: Observation

    @property
    def promise(self) -> str:
        """What the step that differs is about."""
        name = self.program[-1].name
        if name == "commit":
            return "COMMIT"
        streams = ("create", "append", "exists", "length", "seal", "destroy_stream", "range", "remove")
        return "STREAMS" if name in streams else "MAPS"

    def lines(self) -> list[str]:
        """For people."""
        steps = [f"{number:>3}. {step}" for number, step in enumerate(self.program, 1)]
        return [*steps, f"     the driver under test: {self.tested}", f"     the memory driver:     {self.model}"]


def model_url(capabilities: Capabilities) -> str:
    """A memory backend that declares what the driver under test does."""
    flags = {"atomic_commit": capabilities.atomic_commit, "value_ops": capabilities.value_ops}
    return "memory://?" + "&".join(f"{name}={str(value).lower()}" for name, value in flags.items())


# --- programs --------------------------------------------------------------------------------------------------------


def generate(rng: random.Random, length: int) -> list[Step]:
    """A random program."""
    return [_step(rng, number) for number in range(length)]


def _condition(rng: random.Random) -> str:
    return rng.choice(("always", "always", "absent", "current", "current", "stale", "other"))


def _step(rng: random.Random, number: int) -> Step:
    name, key, value = rng.choice(MAPS), rng.choice(KEYS), f"v{number}"
    stream = rng.choice(STREAMS)
    makers: list[Callable[[], Step]] = [
        lambda: Step("get", (name, key)),
        lambda: Step("get_many", (name,)),
        lambda: Step("scan", (name, rng.choice(("", "a", "*", "zz")))),
        *[lambda: Step("set", (name, key, rng.choice((value, "")), _condition(rng)))] * 4,
        *[lambda: Step("delete", (name, key, _condition(rng)))] * 2,
        lambda: Step("clear", (name, rng.choice(("always", "absent", "current", "stale")))),
        lambda: Step("destroy_map", (name,)),
        lambda: Step("apply", (name, tuple(_write(rng, f"{value}.{at}") for at in range(rng.randrange(1, 5))))),
        lambda: Step("update", (name, key, _value_op(rng))),
        lambda: Step("create", (stream, rng.choice(("work", "log")), rng.choice((None, 2, 3)))),
        *[lambda: Step("append", (stream, value, rng.random() < 0.5))] * 4,
        lambda: Step("exists", (stream,)),
        lambda: Step("length", (stream,)),
        lambda: Step("seal", (stream,)),
        lambda: Step("destroy_stream", (stream,)),
        lambda: Step("range", (stream, rng.choice((None, 0, 1, 2)), rng.choice((1, 2, 100)))),
        lambda: Step("remove", (stream, tuple(rng.sample(range(6), 2)))),
        *[lambda: Step("commit", tuple(_op(rng, f"{value}.{at}") for at in range(rng.randrange(1, 6))))] * 3,
    ]
    return rng.choice(makers)()


def _write(rng: random.Random, value: str) -> tuple[str, str | None, str]:
    return rng.choice(KEYS), rng.choice((value, None)), _condition(rng)


def _value_op(rng: random.Random) -> str:
    return rng.choice(("increment", "append", "append_unique", "remove"))


def _op(rng: random.Random, value: str) -> tuple[Any, ...]:
    optional = rng.random() < 0.3
    match rng.randrange(5):
        case 0:
            return ("get", rng.choice(MAPS), rng.choice(KEYS))
        case 1:
            return ("append", rng.choice(STREAMS), value, optional)
        case 2:
            return ("delete", rng.choice(MAPS), rng.choice(KEYS), _condition(rng), optional)
        case _:
            return ("set", rng.choice(MAPS), rng.choice(KEYS), value, _condition(rng), optional)


# --- one side --------------------------------------------------------------------------------------------------------


class Side:
    """Runs programs on one backend, in maps and streams of its own (``prefix``), and tells what it saw."""

    def __init__(self, backend: Backend, namespace: str, prefix: str) -> None:
        self._space: Namespace = backend.namespace(namespace)
        self._prefix = prefix
        self._seen: dict[tuple[str, str], list[int]] = {}  # revisions of each key, oldest first
        self._newest: dict[str, list[int]] = {}  # revisions of each map, since it was last destroyed
        self._floor: dict[str, int] = {}  # the largest revision of each map
        self._unsure: set[str] = set()  # maps whose revision a write that changed nothing may have moved, or not
        self._ids: dict[str, list[str]] = {}

    async def run(self, step: Step) -> Observation:
        """One step; an error of corepool is an observation too."""
        act: Callable[..., Awaitable[Observation]] = getattr(self, f"_do_{step.name}")
        try:
            return await act(*step.arguments)
        except CorepoolError as error:
            return type(error).__name__

    async def remove(self) -> None:
        """Destroy what the programs made."""
        for name in MAPS:
            await self._map(name).destroy()
        for name in STREAMS:
            await self._stream(name).destroy()

    def _map(self, name: str) -> MapStore:
        return self._space.map(self._prefix + name)

    def _stream(self, name: str) -> StreamStore:
        return self._space.stream(self._prefix + name)

    # --- what is the same on every backend ---------------------------------------------------------------------------

    def _when(self, name: str, key: str, condition: str) -> When:
        revisions = self._seen.get((name, key), [])
        match condition:
            case "always":
                return ALWAYS
            case "absent":
                return ABSENT
            case "current":
                return When(revisions[-1]) if revisions else ABSENT
            case "stale":
                return When(revisions[0]) if revisions else When(_NOBODYS)
            case _:
                others = [known[-1] for (of, other), known in sorted(self._seen.items()) if of == name and other != key]
                return When(others[0]) if others else When(_NOBODYS)

    def _commit(self, name: str, key: str, value: str | None, commit: Commit) -> Observation:
        grew = True
        if commit.applied:
            nothing = value is None and commit.previous is None  # may have a revision of its own, or the map's
            grew = nothing or commit.revision > self._floor.get(name, 0)
            if nothing:
                self._unsure.add(name)
            else:
                self._reached(name, commit.revision)
                self._seen.setdefault((name, key), []).append(commit.revision)
        return (
            "applied" if commit.applied else "refused",
            self._entry(name, commit.previous),
            "grew" if grew else "shrank",
        )

    def _reached(self, name: str, revision: int) -> None:
        self._unsure.discard(name)
        if revision > self._floor.get(name, 0):
            self._floor[name] = revision
            self._newest.setdefault(name, []).append(revision)

    def _entry(self, name: str, entry: Entry | None) -> Observation:
        if entry is None:
            return None
        known = self._seen.get((name, entry.key), [])
        age = known[::-1].index(entry.revision) if entry.revision in known else "of a revision never told"
        return (entry.key, entry.value, age)

    # --- maps --------------------------------------------------------------------------------------------------------

    async def _do_get(self, name: str, key: str) -> Observation:
        return self._entry(name, await self._map(name).get(key))

    async def _do_get_many(self, name: str) -> Observation:
        entries = await self._map(name).get_many(KEYS)
        return [self._entry(name, entries[key]) for key in sorted(entries)]

    async def _do_scan(self, name: str, prefix: str) -> Observation:
        found = [entry async for entry in self._map(name).scan(prefix)]
        return [self._entry(name, entry) for entry in sorted(found, key=lambda entry: entry.key)]

    async def _do_set(self, name: str, key: str, value: str, condition: str) -> Observation:
        when = self._when(name, key, condition)
        return self._commit(name, key, value, await self._map(name).set(key, value.encode(), when))

    async def _do_delete(self, name: str, key: str, condition: str) -> Observation:
        when = self._when(name, key, condition)
        return self._commit(name, key, None, await self._map(name).delete(key, when))

    async def _do_clear(self, name: str, condition: str) -> Observation:
        revisions = self._newest.get(name, [])
        when = ALWAYS if condition == "always" else ABSENT
        if condition == "stale":
            when = When(revisions[0] if len(revisions) > 1 else _NOBODYS)
        elif condition == "current" and revisions and name not in self._unsure:
            when = When(revisions[-1])
        commit = await self._map(name).clear(when)
        if commit.applied:  # of an empty map it changes nothing, and what its revision then is stays open
            self._newest[name] = []
        return ("applied" if commit.applied else "refused", commit.previous)

    async def _do_destroy_map(self, name: str) -> Observation:
        await self._map(name).destroy()
        self._newest[name] = []
        return None

    async def _do_apply(self, name: str, writes: Sequence[tuple[str, str | None, str]]) -> Observation:
        asked: list[Write] = [
            Delete(key, self._when(name, key, condition))
            if value is None
            else Set(key, value.encode(), self._when(name, key, condition))
            for key, value, condition in writes
        ]
        done = await self._map(name).apply(asked)
        return [self._commit(name, key, value, commit) for (key, value, _), commit in zip(writes, done, strict=True)]

    async def _do_update(self, name: str, key: str, kind: str) -> Observation:
        ops: dict[str, ValueOp] = {
            "increment": Increment(3),
            "append": AppendValues((b"x", b"y")),
            "append_unique": AppendValues((b"x", b"z"), unique=True),
            "remove": RemoveValues((b"x",)),
        }
        updated: Updated = await self._map(name).update(key, ops[kind])
        previous = self._entry(name, updated.previous)
        known = self._seen.setdefault((name, key), [])
        if updated.revision not in known:
            known.append(updated.revision)
            self._reached(name, updated.revision)
        return (updated.value, previous)

    # --- streams -----------------------------------------------------------------------------------------------------

    def _id(self, name: str, known: str | None) -> Observation:
        if known is None:
            return None
        ids = self._ids.setdefault(name, [])
        grew = not ids or known > ids[-1]
        ids.append(known)
        return ("id", len(ids), "grew" if grew else "shrank")

    async def _do_create(self, name: str, kind: str, most: int | None) -> Observation:
        return await self._stream(name).create(StreamConfig(StreamKind(kind), most))

    async def _do_append(self, name: str, payload: str, only_if_exists: bool) -> Observation:
        event = NewEvent("e", payload.encode())
        return self._id(name, await self._stream(name).append(event, only_if_exists=only_if_exists))

    async def _do_exists(self, name: str) -> Observation:
        return await self._stream(name).exists()

    async def _do_length(self, name: str) -> Observation:
        return await self._stream(name).length()

    async def _do_seal(self, name: str) -> Observation:
        await self._stream(name).seal()
        return None

    async def _do_destroy_stream(self, name: str) -> Observation:
        await self._stream(name).destroy()
        return None

    async def _do_range(self, name: str, after: int | None, limit: int) -> Observation:
        ids = self._ids.get(name, [])
        start = ids[after] if after is not None and after < len(ids) else ""
        return [event.payload for event in await self._stream(name).range(start, limit)]

    async def _do_remove(self, name: str, numbers: Sequence[int]) -> Observation:
        ids = self._ids.get(name, [])
        return await self._stream(name).remove([ids[number] for number in numbers if number < len(ids)])

    # --- commits -----------------------------------------------------------------------------------------------------

    async def _do_commit(self, *symbolic: tuple[Any, ...]) -> Observation:
        ops = [self._op(op) for op in symbolic]
        return self._shown(symbolic, await self._space.commit(ops))

    def _shown(self, symbolic: Sequence[tuple[Any, ...]], result: CommitResult) -> Observation:
        void = result.stopped is not None and self._atomic
        shown: list[Observation] = []
        for at, (op, answer) in enumerate(zip(symbolic, result.results, strict=False)):
            if void and at != result.stopped:
                continue  # results before the stop of an atomic commit mean nothing
            match answer:
                case Commit():
                    shown.append(self._commit(op[1], op[2], op[3] if op[0] == "set" else None, answer))
                case Appended(id=known, refusal=refusal):
                    shown.append((self._id(op[1], known), refusal))
                case Entry():
                    shown.append(self._entry(op[1], answer))
                case _:
                    shown.append(answer)
        return (result.stopped, shown)

    _atomic = True

    def declares(self, capabilities: Capabilities) -> Side:
        """Read the results of stopped commits as these capabilities say."""
        self._atomic = capabilities.atomic_commit
        return self

    def _op(self, op: tuple[Any, ...]) -> Op:
        target = self._prefix + str(op[1])
        match op[0]:
            case "get":
                return GetKey(target, op[2])
            case "append":
                return Append(target, NewEvent("e", str(op[2]).encode()), optional=op[3])
            case "delete":
                return DeleteKey(target, op[2], self._when(op[1], op[2], op[3]), optional=op[4])
            case _:
                return SetKey(target, op[2], str(op[3]).encode(), self._when(op[1], op[2], op[4]), optional=op[5])


async def compare(program: Sequence[Step], tested: Side, model: Side) -> Difference | None:
    """Run a program on both sides, step by step; where they first disagree."""
    for number, step in enumerate(program):
        one, two = await tested.run(step), await model.run(step)
        if one != two:
            return Difference(tuple(program[: number + 1]), one, two)
    return None
