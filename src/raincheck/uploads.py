"""The request body on its way from the client to the app, kept for a capture."""

from __future__ import annotations

from starlette.types import Message


class Upload:
    """One request body: what has arrived, and how much of it the app has read.

    Args:
        limit: bytes that are kept. A larger body still passes through, but cannot be captured.
    """

    __slots__ = ("_chunks", "_keeps", "_read", "_told_end", "limit", "lost", "size", "whole")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self.whole = False
        self.lost = False
        self._chunks: list[bytes] = []
        self._read = 0
        self._told_end = False
        self._keeps = True

    @classmethod
    def of(cls, body: bytes) -> Upload:
        """A body that has arrived."""
        upload = cls(len(body))
        upload.arrive({"type": "http.request", "body": body})
        upload.let_go()
        return upload

    @property
    def too_large(self) -> bool:
        """Whether more has arrived than may be kept."""
        return self.lost or self.size > self.limit

    def arrive(self, message: Message) -> None:
        """Keep the next part."""
        chunk = message.get("body", b"")
        self.whole = not message.get("more_body", False)
        self.size += len(chunk)
        if self.size > self.limit:
            self.lost = True
            self._chunks.clear()
            self._read = 0
        elif chunk:
            self._chunks.append(bytes(chunk))

    def passed(self, message: Message) -> None:
        """Keep the next part, which the app is given as it comes."""
        self.arrive(message)
        self._read = len(self._chunks)
        self._told_end = self.whole

    def next(self) -> Message | None:
        """The next part for the app; None if nothing more is here."""
        chunk = b""
        if self._read < len(self._chunks):
            chunk = self._chunks[self._read]
            if not self._keeps:
                self._chunks[self._read] = b""
            self._read += 1
        elif not self.whole or self._told_end:
            return None
        self._told_end = self.whole and self._read == len(self._chunks)
        return {"type": "http.request", "body": chunk, "more_body": not self._told_end}

    def let_go(self) -> None:
        """Keep no longer what the app has read."""
        del self._chunks[: self._read]
        self._read = 0
        self._keeps = False

    def body(self) -> bytes:
        """All of it."""
        return b"".join(self._chunks)
