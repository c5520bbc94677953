"""Server-Sent Events as a client reads them (WHATWG HTML, "Server-sent events", 9.2.6)."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from typing import NamedTuple

_LINE_END = re.compile(r"\r\n|\n|\r(?!\Z)")  # a CR at the end may be half of a CRLF


class ServerSentEvent(NamedTuple):
    """One event.

    Attributes:
        event: its type.
        data: its lines of data, joined by LF.
        id: the last id that the stream has named.
    """

    event: str
    data: str
    id: str


class Parser:
    """Takes a stream as it comes, in pieces of any size, and gives its events.

    Attributes:
        retry: seconds after which to come back when the stream has ended; 3 if it says nothing,
            and from 0.1 to 30 whatever it says.
    """

    def __init__(self) -> None:
        self.retry: float = 3.0
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._text = ""
        self._event = ""
        self._data: list[str] = []
        self._id = ""

    def feed(self, piece: bytes) -> Iterator[ServerSentEvent]:
        """The events that this piece completes. One without data is none."""
        *lines, self._text = _LINE_END.split(self._text + self._decoder.decode(piece))
        for line in lines:
            if line:
                self._take(line)
                continue
            if self._data:
                yield ServerSentEvent(self._event or "message", "\n".join(self._data), self._id)
            self._event, self._data = "", []

    def _take(self, line: str) -> None:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "event":
            self._event = value
        elif field == "id" and "\0" not in value:
            self._id = value
        elif field == "retry" and value.isascii() and value.isdigit():
            self.retry = min(30.0, max(0.1, float(value) / 1000))
