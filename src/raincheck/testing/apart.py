"""The contract of bodies: what is kept of large ones, apart from their records."""

from __future__ import annotations

from collections.abc import Awaitable

from raincheck.bodies.base import LARGE, Bodies
from raincheck.errors import BodyLost, StoreError


async def content(bodies: Bodies, name: str = "a.1", offset: int = 0) -> bytes:
    """A body as it is kept."""
    return b"".join([chunk async for chunk in bodies.read(name, offset)])


async def refused(call: Awaitable[None]) -> bool:
    """Whether a call raises `BodyLost`."""
    try:
        await call
    except BodyLost:
        return True
    return False


class BodiesContract:
    """What every `Bodies` promises. Subclass it, with a fixture `bodies`."""

    async def test_a_body_comes_back_in_order(self, bodies: Bodies) -> None:
        size = 0
        for chunk in (b"one", b"\x00\xff", b"three" * LARGE, b"4"):
            await bodies.append("a.1", size, chunk)
            await bodies.append("b.1", 2 * size, chunk + chunk)
            size += len(chunk)
            assert await bodies.size("a.1") == size
        assert await content(bodies) == b"one\x00\xff" + b"three" * LARGE + b"4"
        assert await bodies.size("b.1") == 2 * size

    async def test_a_body_is_read_from_any_offset(self, bodies: Bodies) -> None:
        whole = bytes(range(256)) * 2048  # 512 KiB
        for start in range(0, len(whole), LARGE):
            await bodies.append("a.1", start, whole[start : start + LARGE])
        for offset in (0, 1, LARGE - 1, LARGE, LARGE + 1, len(whole) - 1, len(whole), 2**40):
            assert await content(bodies, offset=offset) == whole[offset:]

    async def test_a_body_comes_in_chunks_that_are_not_empty(self, bodies: Bodies) -> None:
        await bodies.append("a.1", 0, b"x" * 9 * LARGE)
        sizes = [len(chunk) async for chunk in bodies.read("a.1")]
        assert sum(sizes) == 9 * LARGE
        assert min(sizes) > 0
        assert max(sizes) <= 4 * LARGE  # whoever reads it has not all of it in memory

    async def test_what_is_not_there_is_no_body(self, bodies: Bodies) -> None:
        assert await bodies.size("a.1") is None
        assert await content(bodies) == b""
        await bodies.delete(["a.1"])
        assert await bodies.names() == {}

    async def test_a_chunk_that_is_there_is_not_put_there_again(self, bodies: Bodies) -> None:
        for offset, chunk in ((0, b"one"), (0, b"one"), (3, b"two"), (3, b"two"), (0, b"one")):
            await bodies.append("a.1", offset, chunk)
        assert await content(bodies) == b"onetwo"

    async def test_of_a_chunk_that_is_there_in_part_the_rest_is_put(self, bodies: Bodies) -> None:
        """A call has failed half-way, and is made again."""
        await bodies.append("a.1", 0, b"onet")
        await bodies.append("a.1", 3, b"two")
        assert await content(bodies) == b"onetwo"

    async def test_a_body_has_no_gap(self, bodies: Bodies) -> None:
        assert await refused(bodies.append("a.1", 3, b"two"))
        assert await bodies.size("a.1") is None
        await bodies.append("a.1", 0, b"on")
        assert await refused(bodies.append("a.1", 3, b"two"))
        assert await content(bodies) == b"on"

    async def test_a_body_that_is_deleted_begins_anew(self, bodies: Bodies) -> None:
        for name in ("a.1", "a.2", "b.1"):
            await bodies.append(name, 0, name.encode())
        await bodies.delete(["a.1", "b.1", "c.1"])
        assert set(await bodies.names()) == {"a.2"}
        assert await refused(bodies.append("a.1", 3, b"!"))
        assert await bodies.size("a.1") is None
        await bodies.append("a.1", 0, b"new")
        assert await content(bodies) == b"new"

    async def test_a_body_that_goes_while_it_is_read_does_not_end_early(
        self, bodies: Bodies
    ) -> None:
        """Whoever reads it may get the rest all the same, but no end before."""
        body = b"x" * 9 * LARGE
        await bodies.append("a.1", 0, body)
        had = b""
        try:
            async for chunk in bodies.read("a.1"):
                had += chunk
                await bodies.delete(["a.1"])
        except StoreError:
            return
        assert had == body

    async def test_a_body_that_grows_is_read_as_it_is(self, bodies: Bodies) -> None:
        await bodies.append("a.1", 0, b"x" * LARGE)
        had = b""
        async for chunk in bodies.read("a.1"):
            if not had:
                await bodies.append("a.1", LARGE, b"y" * LARGE)
            had += chunk
        assert had in (b"x" * LARGE, b"x" * LARGE + b"y" * LARGE)

    async def test_all_names_are_known_and_how_long_nothing_came(self, bodies: Bodies) -> None:
        names = {"a.1", "shop/a.request", "ü ~.2", ".3", "..", "a/../b.1", "x" * 80}
        for name in names:
            await bodies.append(name, 0, name.encode())
        idle = await bodies.names()
        assert set(idle) == names
        assert all(0 <= seconds < 60 for seconds in idle.values())
        for name in names:
            assert await content(bodies, name) == name.encode()

    async def test_what_is_synced_is_what_it_was(self, bodies: Bodies) -> None:
        await bodies.append("a.1", 0, b"one")
        await bodies.sync("a.1")
        assert await content(bodies) == b"one"

    async def test_a_temporary_file_is_no_body(self, bodies: Bodies) -> None:
        with bodies.temporary() as file:
            file.write(b"one")
            file.seek(0)
            assert file.read() == b"one"
            assert await bodies.names() == {}
        assert await bodies.names() == {}
