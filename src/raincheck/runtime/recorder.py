"""Recording: what a handler sends, message by message, becomes the response that is stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raincheck.messages import BODILESS, CapturedResponse, Head, end_to_end, unsendable

# Bytes that come together before the store is asked to keep them: a response of many small
# messages is not as many calls. What is left at the end goes with the outcome. Joined, they leave
# the memory that they came in to the next ones; to touch new memory takes longer than to copy. Of a
# body that is large by then it is a quarter, up to the most: each call has its price.
PIECE, MOST = 256 * 1024, 1024 * 1024

# Of what comes in these media nobody wants to wait for the end.
_EVENTS = b"text/event-stream"  # 17 letters


class ProtocolError(RuntimeError):
    """The handler's messages are not those of one HTTP response (ASGI HTTP, "Response")."""


class TooLarge(Exception):
    """The response body is larger than it may be."""


class Recorder:
    """Takes the messages of one response in order.

    Args:
        method: the request's method; a response to HEAD may announce more than it sends.
        max_size: bytes of body.
        live: whether the response is kept as it comes, whatever it is.

    Attributes:
        max_size: as given.
        live: whether it is to be kept as it comes: then `cut` makes pieces as well.
        piece: a piece of the body that has come together, and where it begins: whoever records has
            it kept, and says so by `kept()`. There is no next one before.
    """

    __slots__ = (
        "_enough",
        "_gathered",
        "_headed",
        "_headers",
        "_method",
        "_passed_on",
        "_size",
        "_status",
        "live",
        "max_size",
        "piece",
    )

    def __init__(self, method: str, max_size: int, live: bool = False) -> None:
        self.max_size: int = max_size
        self.live: bool = live
        self.piece: tuple[int, bytes] | None = None
        self._method = method
        self._status: int | None = None
        self._headers: Any = ()
        self._size = 0
        self._passed_on = 0
        self._enough = PIECE
        self._headed = False  # whether the head has gone with a piece
        self._gathered: list[bytes] = []

    def allow(self, max_size: int) -> None:
        """Let the body have so many bytes from now on."""
        self.max_size = max_size

    def kept(self) -> None:
        """The piece is kept."""
        self.piece = None

    @property
    def started(self) -> bool:
        """Whether status and headers are here."""
        return self._status is not None

    @property
    def head(self) -> Head | None:
        """Status and headers, if they are here."""
        return None if self._status is None else Head(self._status, self._headers)

    @property
    def tail(self) -> bytes:
        """The end of the body, which nobody was asked to keep so far."""
        return b"".join(self._gathered)

    @property
    def full(self) -> bool:
        """Whether as much has come that is in no piece yet as one holds."""
        return self._size - self._passed_on >= self._enough

    @property
    def unkept(self) -> bool:
        """Whether anything has come that nobody was asked to keep so far, be it the head alone."""
        return bool(self._gathered) or not self._headed or self.piece is not None

    def cut(self) -> None:
        """Make what has come together a piece, if there is none that is still to be kept."""
        if self.piece is None and (self._gathered or not self._headed):
            self.piece = (self._passed_on, self.tail)
            self._passed_on = self._size
            self._enough = max(PIECE, min(self._size // 4, MOST))
            self._headed = True
            self._gathered.clear()

    def take(self, message: Mapping[str, Any]) -> CapturedResponse | None:
        """Take one message.

        Returns:
            The response, with the message that completes it; None before.

        Raises:
            ProtocolError: a message out of order, or a response that no server could send.
            TooLarge: more body than `max_size`; it is not kept.
        """
        kind = message["type"]
        if kind != "http.response.body":
            if kind == "http.response.start":
                self._start(message)
            elif not kind.startswith("http.response."):
                raise ProtocolError(f"the handler sent {kind!r}")
            return None  # others belong to extensions that the scope does not offer
        if self._status is None:
            raise ProtocolError("the handler sent a body before the start of its response")
        chunk = message.get("body", b"")
        self._size += len(chunk)
        if self._size > self.max_size:
            raise TooLarge
        if chunk:
            if self._status in BODILESS:  # at once: it may be followed
                raise _cannot_be_sent(f"a {self._status} response has no body")
            self._gathered.append(bytes(chunk))
        if message.get("more_body", False):
            if self.full:
                self.cut()
            return None
        fields = (self._status, self._headers, self._size)
        response = tuple.__new__(CapturedResponse, fields)  # as in `Job.accepted`
        if reason := unsendable(response, self._method):
            raise _cannot_be_sent(reason)
        return response

    def _start(self, message: Mapping[str, Any]) -> None:
        if self._status is not None:
            raise ProtocolError("the handler started its response twice")
        status = message.get("status")
        if not isinstance(status, int) or not 200 <= status <= 599:
            raise _cannot_be_sent("its status is none of 200 to 599")
        try:
            headers = self._headers = end_to_end(message.get("headers", ()))
        except ValueError as error:
            raise _cannot_be_sent(error) from error
        self._status = int(status)
        for name, value in headers:
            if len(name) == 12 and value[:17].lower() == _EVENTS:
                self.live = self.live or name.lower() == b"content-type"


def _cannot_be_sent(reason: object) -> ProtocolError:
    return ProtocolError(f"the handler's response cannot be sent: {reason}")
