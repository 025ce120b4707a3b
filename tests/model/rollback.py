"""A store that loses acknowledged writes (R13).

Purpose: one job, two workers, a store that goes back to an earlier revision once (failover, restored backup). Whoever
finds the store older than what it has seen lets the pool's generation grow; tokens are (generation, revision); all
owners reconcile, and one whose token is of an older generation claims again.
Invariants, *at rest* only: DESIGN does not promise them while nobody has noticed yet (docs/model.md says what can
happen then): one live owner, the one that the record names, and its token is larger than every token that was ever
given for the key.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tests.model.explore import Model, Step

ONE_OWNER = "1. at most one live owner"
TOKENS_GROW = "5. tokens of one key only grow"
RUNS = "10. an admitted job runs"

Token = tuple[int, int]
NO_TOKEN: Token = (-1, 0)


class Entry(NamedTuple):
    """The job's record at a revision. ``claimed``: STARTING or RUNNING, else PENDING for ``worker``."""

    revision: int
    worker: int
    claimed: bool
    token: Token = NO_TOKEN


class Owner(NamedTuple):
    live: Token = NO_TOKEN
    known: int = 1
    """The largest revision that it saw acknowledged."""
    dirty: bool = False
    generation: int = 0
    """What it takes the generation to be: the pool's (with "R13.local" off: what it counted itself)."""


class Store(NamedTuple):
    entry: Entry = Entry(1, 0, False)
    log: tuple[Entry, ...] = ()
    generation: int = 0
    owners: tuple[Owner, Owner] = (Owner(), Owner())
    given: Token = NO_TOKEN
    """History, for the judge: the largest token ever given to a handler."""
    moves: int = 2
    rollbacks: int = 1


class RollbackModel(Model[Store]):
    name = "rollback"

    def initial(self) -> Iterable[Store]:
        yield Store()

    def _with(self, state: Store, index: int, **changes: object) -> Store:
        owner = state.owners[index]._replace(**changes)  # type: ignore[arg-type]
        return state._replace(owners=(owner, state.owners[1]) if index == 0 else (state.owners[0], owner))

    def _write(self, state: Store, index: int, entry: Entry) -> Store:
        after = state._replace(entry=entry, log=(*state.log, state.entry) if state.rollbacks else ())
        return self._with(after, index, known=entry.revision)

    def steps(self, state: Store) -> Iterator[Step[Store]]:
        for index, name in enumerate("AB"):
            yield from self._worker(state, index, f"worker {name}")
        if state.rollbacks:
            for old in state.log:
                back = state._replace(entry=old, log=(), rollbacks=0)
                yield Step("store", f"goes back to revision {old.revision}", back, True)

    def _worker(self, state: Store, index: int, who: str) -> Iterator[Step[Store]]:
        me, entry = state.owners[index], state.entry
        if me.known > entry.revision and "R13" not in self.off:
            yield self._notice(state, index, who)
            return  # it does nothing else with a store that it knows to be wrong
        if me.known > entry.revision:
            # Without the rule it works on, and takes what it finds for the truth.
            yield Step(who, f"reads on: revision {entry.revision}", self._with(state, index, known=entry.revision))
        mine = entry.claimed and entry.worker == index
        running = me.live != NO_TOKEN
        if running and mine and entry.token == me.live:
            outdated = me.dirty and me.live[0] < state.generation
            if outdated:
                stopped = self._with(state, index, live=NO_TOKEN)
                yield Step(who, "reconciles: its token is of an older generation, stops the handler", stopped)
            elif state.moves:
                other = 1 - index
                released = self._write(state, index, Entry(entry.revision + 1, other, False))
                moved = self._with(released, index, live=NO_TOKEN)._replace(moves=state.moves - 1)
                yield Step(who, f"stops the handler, moves the job to {'AB'[other]}", moved, True)
        elif running:
            yield Step(
                who, "reconciles: not its own any more, stops the handler", self._with(state, index, live=NO_TOKEN)
            )
        elif mine or (not entry.claimed and entry.worker == index):
            generation = me.generation if "R13.local" in self.off else state.generation
            token = (generation, entry.revision + 1)
            claimed = self._write(state, index, Entry(entry.revision + 1, index, True, token))
            live = self._with(claimed, index, live=token, dirty=False)
            yield Step(who, f"claims, starts with token {token}", live._replace(given=max(state.given, token)))

    def _notice(self, state: Store, index: int, who: str) -> Step[Store]:
        """It has seen a later revision than the store has now: the generation grows, and everybody reconciles."""
        text = (
            f"has seen revision {state.owners[index].known}, the store is at {state.entry.revision}: generation grows"
        )
        if "R13.local" in self.off:
            generation = state.owners[index].generation + 1
            return Step(
                who, text, self._with(state, index, known=state.entry.revision, generation=generation, dirty=True)
            )
        after = state._replace(generation=state.generation + 1)
        for other in (0, 1):
            known = min(after.owners[other].known, state.entry.revision)
            after = self._with(after, other, dirty=True, known=known)
        return Step(who, text, after)

    def broken(self, state: Store) -> str | None:
        return None

    def broken_at_rest(self, state: Store) -> str | None:
        live = [index for index, owner in enumerate(state.owners) if owner.live != NO_TOKEN]
        if len(live) > 1:
            return ONE_OWNER
        if not live or not state.entry.claimed or live != [state.entry.worker]:
            return RUNS
        return TOKENS_GROW if state.owners[live[0]].live < state.given else None

    def landmarks(self, state: Store) -> Iterable[str]:
        if all(owner.live != NO_TOKEN for owner in state.owners):
            yield "two live owners until somebody notices"
        if state.generation:
            yield "a new generation"
        if any(NO_TOKEN < owner.live < state.given for owner in state.owners):
            yield "an owner with a smaller token than one given before"

    def show(self, state: Store) -> str:
        entry = state.entry
        record = f"{'claimed by' if entry.claimed else 'PENDING for'} {'AB'[entry.worker]}"
        parts = [f"revision {entry.revision}: {record}", f"generation {state.generation}"]
        parts += [
            f"{name} runs with {owner.live}"
            for name, owner in zip("AB", state.owners, strict=True)
            if owner.live != NO_TOKEN
        ]
        return " | ".join(parts)
