"""Response bodies of several pieces, in the memory of one process."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import suppress

BLOCK = 4 * 1024 * 1024
"""Bytes of a block, and of a body that needs none. A huge page is 2 MiB on most machines: so at
most a third of what a body takes is not used."""

PIECE = 128 * 1024
"""Bytes that are read from a block at a time."""


class Body:
    """A body of several pieces.

    They are kept as they come, up to the size of a block. What follows is copied into blocks that
    Linux is asked to back with huge pages (madvise(2), `MADV_HUGEPAGE`): memory that nobody has
    touched before is handed out page by page, and in pages of 4 KiB that takes several times as
    long as it takes to fill them. A block goes back to the system with its body. On other systems
    all pieces are kept as they come.
    """

    __slots__ = ("_blocks", "_pieces", "size")

    def __init__(self, first: bytes) -> None:
        self.size = len(first)
        self._pieces = [first]
        self._blocks: list[mmap.mmap] = []  # the last is the one that is being filled

    def append(self, piece: bytes) -> None:
        """Add a piece at the end."""
        self.size += len(piece)
        if self.size <= BLOCK or not _HUGE_PAGES:
            self._pieces.append(piece)
            return
        rest = memoryview(piece)
        while rest:
            if not self._blocks or self._blocks[-1].tell() == BLOCK:
                self._blocks.append(_block())
            block = self._blocks[-1]
            taken = rest[: BLOCK - block.tell()]
            block.write(taken)
            rest = rest[len(taken) :]

    def read(self) -> Iterator[bytes]:
        """What is there now, in order."""
        pieces, blocks = tuple(self._pieces), tuple((b, b.tell()) for b in self._blocks)
        yield from pieces
        for block, size in blocks:
            for start in range(0, size, PIECE):
                yield block[start : min(start + PIECE, size)]


_HUGE_PAGES = hasattr(mmap, "MADV_HUGEPAGE")


def _block() -> mmap.mmap:
    block = mmap.mmap(-1, BLOCK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them: ordinary pages do
        block.madvise(mmap.MADV_HUGEPAGE)
    return block
