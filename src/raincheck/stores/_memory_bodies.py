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


_HUGE_PAGES = hasattr(mmap, "MADV_HUGEPAGE")


class Body:
    """A body of several pieces.

    They are kept as they come, up to the size of a block. What follows is copied into blocks that
    Linux is asked to back with huge pages (madvise(2), `MADV_HUGEPAGE`): memory that nobody has
    touched before is handed out page by page, and in pages of 4 KiB that takes several times as
    long as it takes to fill them. A block goes back to the system with its body. On other systems
    all pieces are kept as they come, and so is one for which the system has no block left.
    """

    __slots__ = ("_parts", "size")

    def __init__(self, first: bytes) -> None:
        self.size = len(first)
        self._parts: list[bytes | mmap.mmap] = [first]

    def append(self, piece: bytes) -> None:
        """Add a piece at the end."""
        self.size += len(piece)
        if self.size <= BLOCK or not _HUGE_PAGES:
            self._parts.append(piece)
            return
        rest = memoryview(piece)
        while rest:
            block = self._parts[-1]
            if isinstance(block, bytes) or block.tell() == BLOCK:
                try:
                    block = _block()
                except OSError:  # too many mappings, or a limit on the address space
                    self._parts.append(bytes(rest))
                    return
                self._parts.append(block)
            taken = rest[: BLOCK - block.tell()]
            block.write(taken)
            rest = rest[len(taken) :]

    def read(self) -> Iterator[bytes]:
        """What is there now, in order."""
        for part, size in [(part, _used(part)) for part in self._parts]:
            if isinstance(part, bytes):
                yield part
            else:
                for start in range(0, size, PIECE):
                    yield part[start : min(start + PIECE, size)]


def _used(part: bytes | mmap.mmap) -> int:
    return len(part) if isinstance(part, bytes) else part.tell()


def _block() -> mmap.mmap:
    block = mmap.mmap(-1, BLOCK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them: ordinary pages do
        block.madvise(mmap.MADV_HUGEPAGE)
    return block
