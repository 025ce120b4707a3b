"""R10: whom a node watches, and when it calls somebody silent. Pure, with a clock of the test's own."""

from __future__ import annotations

from corepool.pool.liveness import NODE, Member, Suspect, Watcher, neighbours

X, Y = Member(NODE, "x"), Member(NODE, "y")


def poll(watcher: Watcher, now: float, **revisions: int) -> list[Suspect]:
    watcher.poll_succeeded(now)
    for name, revision in revisions.items():
        watcher.saw(Member(NODE, name), revision, now)
    return watcher.silent(now)


def test_silence_counts_from_the_first_own_observation() -> None:
    watcher = Watcher(ttl=10, gap=5)
    assert poll(watcher, 100, x=7) == []
    for now in range(102, 111, 2):
        assert poll(watcher, now, x=7) == []
    assert poll(watcher, 110.5, x=7) == [Suspect(X, 7)]


def test_a_change_is_a_sign_of_life_whatever_it_is() -> None:
    watcher = Watcher(ttl=10, gap=5)
    for step in range(20):
        assert poll(watcher, step * 4, x=7 + step // 2) == []
    assert poll(watcher, 80, x=3) == []  # an older revision is a change as well: the store went back


def test_a_member_without_keep_alive_is_silent_too() -> None:
    watcher = Watcher(ttl=10, gap=5)
    for now in range(0, 11, 2):
        assert poll(watcher, now, x=0) == []
    assert poll(watcher, 11, x=0) == [Suspect(X, 0)]


def test_a_gap_in_the_own_polls_forgives_everybody() -> None:
    watcher = Watcher(ttl=10, gap=5)
    for now in range(0, 9, 2):
        poll(watcher, now, x=7, y=9)
    assert poll(watcher, 60, x=7, y=9) == []  # the backend was away: nobody could renew
    for now in range(62, 71, 2):
        assert poll(watcher, now, x=7, y=9) == []
    assert poll(watcher, 71, x=7, y=10) == [Suspect(X, 7)]


def test_who_is_not_watched_any_more_is_forgotten() -> None:
    watcher = Watcher(ttl=10, gap=5)
    poll(watcher, 0, x=7, y=7)
    watcher.forget_all_but([Y])
    for now in range(2, 12, 2):
        poll(watcher, now)
    assert watcher.silent(11) == [Suspect(Y, 7)]


def test_neighbours_are_the_next_on_the_ring_of_names() -> None:
    names = ["a", "b", "c", "d", "e"]
    assert neighbours("b", names, 3) == ["c", "d", "e"]
    assert neighbours("d", names, 3) == ["e", "a", "b"]
    assert neighbours("e", names, 9) == ["a", "b", "c", "d"]
    assert neighbours("bb", names, 2) == ["c", "d"]
    watched = [name for me in names for name in neighbours(me, names, 3)]
    assert all(watched.count(name) == 3 for name in names), "everybody is watched equally often"
