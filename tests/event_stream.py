"""Reads event streams as the HTML Living Standard says (§9.2.6), from bytes as they come."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple


class Event(NamedTuple):
    """What `EventSource` would dispatch.

    Attributes:
        type: its name.
        data: its lines, joined by LF.
        id: the last event id, as it is then.
    """

    type: str
    data: str
    id: str

    @property
    def document(self) -> Any:
        """The data, which is JSON."""
        return json.loads(self.data)


class Reader:
    """A client of one stream.

    Attributes:
        id: what its next request has as `Last-Event-ID`.
        retry: milliseconds until that.
        comments: how many there were.
    """

    def __init__(self) -> None:
        self.id = ""
        self.retry: int | None = None
        self.comments = 0
        self._rest = b""
        self._data: list[str] = []
        self._type = ""
        self._id = ""

    def feed(self, *chunks: bytes) -> Iterator[Event]:
        """The events that are complete with these bytes."""
        for chunk in chunks:
            self._rest += chunk
            lines = (self._rest + b"\0").splitlines()  # bytes: at CR, LF and CRLF, nowhere else
            self._rest = lines.pop()[:-1]
            if self._rest == b"" and chunk.endswith(b"\r"):  # LF may follow, and is of the same end
                raise NotImplementedError("no frame of ours ends so")
            for line in lines:
                yield from self._line(line.decode())

    def events(self, chunks: Iterable[bytes]) -> list[Event]:
        """All of them."""
        return [*self.feed(*chunks)]

    def _line(self, line: str) -> Iterator[Event]:
        if not line:
            self.id = self._id
            if self._data:
                yield Event(self._type or "message", "\n".join(self._data), self.id)
            self._data, self._type = [], ""
            return
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "":
            self.comments += 1
        elif name == "data":
            self._data.append(value)
        elif name == "event":
            self._type = value
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isdecimal():
            self.retry = int(value)
