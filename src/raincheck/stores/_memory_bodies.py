"""Response bodies of several pieces, in the memory of one process."""

from __future__ import annotations

import mmap
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress

BLOCK = 4 * 1024 * 1024
"""Bytes of a block, and of a body that needs none. A huge page is 2 MiB on most machines: so at
most a third of what a body takes is not used."""

PIECE = 128 * 1024
"""Bytes that are read from a block at a time."""


_HUGE_PAGES = hasattr(mmap, "MADV_HUGEPAGE")


class Body:
    """A body of several pieces.

    They are kept as they come, up to the size of a block. What follows is copied into blocks that
    Linux is asked to back with huge pages (madvise(2), `MADV_HUGEPAGE`): memory that nobody has
    touched before is handed out page by page, and in pages of 4 KiB that takes several times as
    long as it takes to fill them. A block goes back to the system with its body. On other systems
    all pieces are kept as they come, and so is one for which the system has no block left.
    """

    __slots__ = ("_parts", "_starts", "size")

    def __init__(self, first: bytes) -> None:
        self.size = len(first)
        self._parts: list[bytes | mmap.mmap] = [first]
        self._starts = [0]  # where each part begins: of a live response there are many

    def append(self, piece: bytes) -> None:
        """Add a piece at the end."""
        start, self.size = self.size, self.size + len(piece)
        if self.size <= BLOCK or not _HUGE_PAGES:
            self._add(start, piece)
            return
        rest = memoryview(piece)
        while rest:
            block = self._parts[-1]
            if isinstance(block, bytes) or block.tell() == BLOCK:
                try:
                    block = _block()
                except OSError:  # too many mappings, or a limit on the address space
                    self._add(self.size - len(rest), bytes(rest))
                    return
                self._add(self.size - len(rest), block)
            taken = rest[: BLOCK - block.tell()]
            block.write(taken)
            rest = rest[len(taken) :]

    def _add(self, start: int, part: bytes | mmap.mmap) -> None:
        self._parts.append(part)
        self._starts.append(start)

    def read(self, offset: int = 0) -> Iterator[bytes]:
        """What is there now from this byte on, in order."""
        first = bisect_right(self._starts, offset) - 1
        skip = offset - self._starts[first]
        for part, size in [(part, _used(part)) for part in self._parts[first:]]:
            if isinstance(part, bytes):
                yield part[skip:] if skip else part
            else:
                for start in range(skip, size, PIECE):
                    yield part[start : min(start + PIECE, size)]
            skip = 0


def _used(part: bytes | mmap.mmap) -> int:
    return len(part) if isinstance(part, bytes) else part.tell()


def _block() -> mmap.mmap:
    block = mmap.mmap(-1, BLOCK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them: ordinary pages do
        block.madvise(mmap.MADV_HUGEPAGE)
    return block
