"""R7 and R8 from the side of the living: what a lease makes of the answers to its renewals."""

from __future__ import annotations

import logging

import pytest

from corepool import open_backend
from corepool.driver import ABSENT, Commit, Entry
from corepool.errors import BackendUnavailable
from corepool.pool.context import PoolLog
from corepool.pool.lease import Lease, Renewal
from corepool.pool.store import PoolStore
from corepool.pool.wire import KeepAlive, encode


class Ticks:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return 0.0


@pytest.fixture
async def clock() -> Ticks:
    return Ticks()


@pytest.fixture
async def lease(clock: Ticks) -> Lease:
    backend = await open_backend("memory://")
    store = PoolStore(backend.namespace("p"), backend.capabilities, 1, PoolLog(logging.getLogger("test")))
    return Lease(store, store.worker_keep_alive, "w", clock, fence_after=7.5)


def entry(lease: Lease, revision: int, nonce: int, *, dead: bool = False) -> Entry:
    return Entry(lease.holder, encode(KeepAlive(nonce, 0.0, dead)), revision)


def begun(lease: Lease, revision: int = 1) -> None:
    assert lease.renewal().when == ABSENT
    lease.begin(Commit(True, revision, None))


async def test_a_lease_counts_from_the_sending_not_from_the_answer(lease: Lease, clock: Ticks) -> None:
    assert not lease.valid
    lease.renewal()
    clock.now += 5
    lease.begin(Commit(True, 1, None))
    assert lease.remaining == 2.5
    clock.now += 2.5
    assert not lease.valid


async def test_a_renewal_names_the_revision_it_knows(lease: Lease) -> None:
    begun(lease, revision=41)
    assert lease.renewal().when.revision == 41


async def test_a_renewal_whose_answer_was_lost_counts_from_when_it_was_sent(lease: Lease, clock: Ticks) -> None:
    begun(lease)
    clock.now += 3
    lost = lease.renewal()
    clock.now += 3
    lease.renewal()
    stands = Entry("w", lost.value, 2)
    assert lease.answered(Commit(False, 2, stands)) is Renewal.HELD
    assert lease.remaining == 7.5 - 3
    assert lease.renewal().when.revision == 2


async def test_an_old_renewal_never_shortens_a_lease(lease: Lease, clock: Ticks) -> None:
    begun(lease)
    old = lease.renewal()
    clock.now += 3
    lease.renewal()
    assert lease.answered(Commit(True, 3, None)) is Renewal.HELD
    assert lease.found(Entry("w", old.value, 4)) is Renewal.HELD
    assert lease.remaining == 7.5


async def test_a_tombstone_ends_it_for_ever(lease: Lease) -> None:
    begun(lease)
    lease.renewal()
    assert lease.answered(Commit(False, 2, entry(lease, 2, 77, dead=True))) is Renewal.LOST
    assert lease.dead
    assert not lease.valid


async def test_nothing_there_is_death_as_well(lease: Lease) -> None:
    begun(lease)
    lease.renewal()
    assert lease.answered(Commit(False, 0, None)) is Renewal.LOST


async def test_an_older_one_of_ones_own_tells_that_the_store_went_back(lease: Lease) -> None:
    begun(lease, revision=1)
    lease.renewal()
    lease.answered(Commit(True, 9, None))
    lease.renewal()
    assert lease.answered(Commit(False, 1, entry(lease, 1, 1))) is Renewal.ROLLED_BACK
    assert not lease.dead
    assert lease.renewal().when.revision == 1


async def test_one_that_was_declared_dead_before_it_was_born(lease: Lease) -> None:
    lease.renewal()
    with pytest.raises(BackendUnavailable, match="declared dead"):
        lease.begin(Commit(False, 5, entry(lease, 5, 3, dead=True)))
    assert lease.dead


async def test_one_that_holds_nothing_of_ones_own_is_no_beginning(lease: Lease) -> None:
    """What stands there is alive, and no renewal of this holder's: it cannot tell how old it is."""
    lease.renewal()
    with pytest.raises(BackendUnavailable, match="declared dead"):
        lease.begin(Commit(False, 5, entry(lease, 5, 99)))
    assert lease.dead
    assert not lease.was_held


async def test_the_age_of_a_lease(lease: Lease, clock: Ticks) -> None:
    assert lease.age == float("inf")
    assert lease.remaining == 0
    begun(lease)
    clock.now += 3
    assert lease.age == 3


async def test_a_lease_remembers_only_so_many_of_its_renewals(lease: Lease) -> None:
    begun(lease)
    sizes = set()
    for revision in range(2, 500):
        lease.renewal()
        lease.answered(Commit(True, revision, None))
        sizes.add(len(lease._sent))
    assert max(sizes) < 100
