"""Names, keys and sizes: everything within the declared limits works, beyond them nothing is sent."""

from __future__ import annotations

import pytest

from corepool.driver import ABSENT, REVISION, NewEvent
from corepool.errors import InvalidKeyError, PayloadTooLarge
from corepool_conformance.contract.test_maps import contents
from corepool_conformance.kit import Contract, Kit, promise
from corepool_conformance.waiting import Follower, take

ODD = [
    " ", "  ", ".", "..", "a.", ".a", "a..b", "*", ">", "a.*", "a.>", ":", "a:b", "{", "}", "{a}", "{}", "/", "a/b",
    "\\", "%", "%41", "=", "=41", "==", "_", "-", "~", "+", "?", "[", "]", "\"", "'", "`", "$", "$JS", "#", "&", ";",
    "|", "(", "\n", "\r\n", "\t", "\u0000", "a\u0000b", "\u007f", "\u00e9", "e\u0301", "\u00df", "SS", "ss",
    "\u0130", "i", "I", "\u2028", "\ufeff", "\ufeffa", "\u65e5\u672c\u8a9e", "\U0001f9a6",
    "\U0001f468\u200d\U0001f469", "\uffff", "\U0010ffff", "None", "null", "0", "00", "-1", "A", "a", "a ", " a",
    "key", "KEY", "k" * 200,
]  # fmt: skip
"""Names that some encoding somewhere takes for something else, or for each other."""


class TestLimits(Contract):
    @promise("LIMITS")
    async def test_the_declared_limits_are_large_enough(self, kit: Kit) -> None:
        limits = await kit.capabilities()
        assert limits.max_key_bytes >= 512
        assert limits.max_name_bytes >= 128
        assert limits.max_value_bytes >= 64 * 1024
        assert limits.max_commit_ops >= 64

    @promise("LIMITS")
    async def test_any_text_is_a_key(self, kit: Kit) -> None:
        m = await kit.map()
        follower = await Follower.start(kit, m)
        keys = list(dict.fromkeys([*ODD, *(self._text(kit, 20) for _ in range(100))]))
        expected = {key: key.encode() for key in keys}
        newest = 0
        for key, value in expected.items():
            commit = await m.set(key, value, ABSENT)
            assert commit.applied, f"{key!r} meets another key: {commit.previous}"
            newest = commit.revision
        assert await contents(m) == expected
        assert {key: entry.value for key, entry in (await m.get_many(keys)).items()} == expected
        await follower.reached(newest)
        assert follower.replica == expected
        for key in keys:
            assert (await m.delete(key)).previous is not None
        assert await contents(m) == {}

    @promise("LIMITS")
    async def test_any_text_is_a_name(self, kit: Kit) -> None:
        backend = await kit.main()
        odd = kit.random.sample(ODD, 25)
        for name in odd:
            m, stream = await kit.map(name), await kit.stream(name)
            await m.set("k", name.encode())
            await stream.append(NewEvent(name, b"x", name))
        for name in odd:
            assert await contents(await kit.map(name)) == {"k": name.encode()}
            (event,) = await (await kit.stream(name)).range()
            assert (event.name, event.topic) == (name, name)
        for name in odd[:6]:
            stream = await kit.stream(odd[0])
            sink = await stream.sink(name, ack_wait=kit.ack_wait)
            await stream.append(NewEvent("e", name.encode()))
            (delivery, *_) = await kit.within(5, sink.receive(), f"a sink named {name!r}", "LIMITS")
            assert await sink.ack([delivery.receipt]) == [True]
        room = backend.capabilities.max_name_bytes - len(kit.namespace_name.encode())
        fitting = [name for name in odd if len(name.encode()) <= room]
        spaces = [backend.namespace(kit.namespace_name + name) for name in fitting[:6]]
        try:
            for number, space in enumerate(spaces):
                await space.map("m").set("k", b"%d" % number)
            for number, space in enumerate(spaces):
                assert await contents(space.map("m")) == {"k": b"%d" % number}, f"namespace {space.name!r}"
        finally:
            for space in spaces:
                await space.map("m").destroy()

    @promise("LIMITS")
    async def test_keys_and_names_of_the_greatest_length(self, kit: Kit) -> None:
        backend = await kit.main()
        limits = backend.capabilities
        for filler in ("x", "\x00", "*", "é", "☃", "\U0001f9a6"):
            name = self._filled(filler, limits.max_name_bytes)
            key = self._filled(filler, limits.max_key_bytes)
            space = backend.namespace(self._filled(filler, limits.max_name_bytes, kit.namespace_name))
            m, stream = space.map(name), space.stream(name)
            try:
                commit = await m.set(key, b"v")
                assert await contents(m) == {key: b"v"}, f"a key of {limits.max_key_bytes} bytes of {filler!r}"
                assert (await m.delete(key, REVISION(commit.revision))).applied
                await stream.append(NewEvent(name, b"x", name))
                (event,) = await take(kit, stream.read(), 1)
                assert (event.name, event.topic) == (name, name)
                sink = await stream.sink(name, ack_wait=kit.ack_wait)
                (delivery,) = await kit.within(5, sink.receive(), f"a sink named by {filler!r}", "LIMITS")
                assert await sink.ack([delivery.receipt]) == [True]
                await sink.aclose()
            finally:
                await stream.destroy()
                await m.destroy()

    @promise("LIMITS", "M5")
    async def test_what_is_too_long_or_no_text_is_refused(self, kit: Kit) -> None:
        backend = await kit.main()
        limits = backend.capabilities
        m, stream = await kit.map(), await kit.stream()
        await m.set("k", b"v")
        await stream.create()
        for key in ("", "k" * (limits.max_key_bytes + 1), "\ud800", self._filled("☃", limits.max_key_bytes) + "☃"):
            with pytest.raises(InvalidKeyError):
                await m.get(key)
            with pytest.raises(InvalidKeyError):
                await m.set(key, b"v")
            with pytest.raises(InvalidKeyError):
                await m.delete(key)
            with pytest.raises(InvalidKeyError):
                await m.get_many(["k", key])
        for name in ("", "n" * (limits.max_name_bytes + 1), "\ud800"):
            with pytest.raises(InvalidKeyError):
                backend.namespace(name)
            with pytest.raises(InvalidKeyError):
                await (await kit.namespace()).map(name).get("k")
            with pytest.raises(InvalidKeyError):
                await (await kit.namespace()).stream(name).append(NewEvent("e", b""))
            with pytest.raises(InvalidKeyError):
                await stream.append(NewEvent(name, b""))
            with pytest.raises(InvalidKeyError):
                await stream.sink(name)
            if name:
                with pytest.raises(InvalidKeyError):
                    await stream.append(NewEvent("e", b"", topic=name))
        assert await contents(m) == {"k": b"v"}
        assert await stream.length() == 0, "something that was refused was sent"

    @promise("LIMITS")
    async def test_values_and_payloads_of_the_greatest_size(self, kit: Kit) -> None:
        m, stream = await kit.map(), await kit.stream()
        limit = (await kit.capabilities()).max_value_bytes
        size = min(limit, 8 * 2**20)
        value = kit.random.randbytes(1024) * (size // 1024) + b"\x00" * (size % 1024)
        follower = await Follower.start(kit, m)
        commit = await kit.within(15, m.set("k", value), "writing a value of the greatest size")
        entry = await kit.within(15, m.get("k"), "reading a value of the greatest size")
        assert entry is not None
        assert entry.value == value
        await follower.reached(commit.revision, within=15)
        assert follower.replica["k"] == value
        await kit.within(15, stream.append(NewEvent("e", value)), "appending a payload of the greatest size")
        (event,) = await take(kit, stream.read(), 1)
        assert event.payload == value

    @promise("LIMITS", "M5")
    async def test_what_is_too_large_is_refused(self, kit: Kit) -> None:
        m, stream = await kit.map(), await kit.stream()
        await stream.create()
        await m.set("k", b"v")
        limit = (await kit.capabilities()).max_value_bytes
        if limit <= 2**29:  # larger ones are taken at their word: the test would need the memory
            huge = bytes(limit + 1)
            with pytest.raises(PayloadTooLarge):
                await m.set("k", huge)
            with pytest.raises(PayloadTooLarge):
                await stream.append(NewEvent("e", huge))
        with pytest.raises((TypeError, PayloadTooLarge)):
            await m.set("k", "text")  # type: ignore[arg-type]  # what a caller without a type checker does
        assert await contents(m) == {"k": b"v"}
        assert await stream.length() == 0

    def _text(self, kit: Kit, most: int) -> str:
        """Random text of any planes, surrogates excepted."""
        points = [kit.random.choice((0x80, 0x800, 0x10000, 0x110000)) for _ in range(kit.random.randint(1, most))]
        return (
            "".join(chr(point) for point in (kit.random.randrange(p) for p in points) if not 0xD800 <= point < 0xE000)
            or "x"
        )

    def _filled(self, filler: str, size: int, start: str = "") -> str:
        """Text of exactly ``size`` bytes in UTF-8, made of ``filler``, padded with ``x``."""
        width = len(filler.encode())
        room = size - len(start.encode())
        return start + filler * (room // width) + "x" * (room % width)
