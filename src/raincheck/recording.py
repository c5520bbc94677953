"""Recording: what a handler sends goes to the store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raincheck.messages import CapturedResponse, end_to_end, unsendable
from raincheck.stores.base import Store


class ProtocolError(RuntimeError):
    """The handler's messages are not those of one HTTP response (ASGI HTTP, "Response")."""


class TooLarge(Exception):
    """The response body is larger than it may be."""


class Recorder:
    """Takes the messages of one response in order, and keeps its body in the store.

    Args:
        store: where the body goes.
        id: the job's id.
        method: the request's method; a response to HEAD may announce more than it sends.
        max_size: bytes of body.
    """

    __slots__ = ("_headers", "_id", "_max_size", "_method", "_size", "_status", "_store")

    def __init__(self, store: Store, id: str, method: str, max_size: int) -> None:
        self._store = store
        self._id = id
        self._method = method
        self._max_size = max_size
        self._status: int | None = None
        self._headers: Any = ()
        self._size = 0

    @property
    def started(self) -> bool:
        """Whether status and headers are here."""
        return self._status is not None

    async def take(self, message: Mapping[str, Any]) -> CapturedResponse | None:
        """Take one message.

        Returns:
            The response, with the message that completes it; None before.

        Raises:
            ProtocolError: a message out of order, or a response that no server could send.
            TooLarge: more body than `max_size`; it is not stored.
        """
        kind = message["type"]
        if kind != "http.response.body":
            self._take_other(kind, message)
            return None
        if self._status is None:
            raise ProtocolError("the handler sent a body before the start of its response")
        chunk = message.get("body", b"")
        more = message.get("more_body", False)
        self._size += len(chunk)
        if self._size > self._max_size:
            raise TooLarge
        response = None
        if not more:
            response = CapturedResponse(self._status, self._headers, self._size)
            if reason := unsendable(response, self._method):
                raise ProtocolError(f"the handler's response cannot be sent: {reason}")
        if chunk:
            await self._store.append_body(self._id, bytes(chunk))
        return response

    def _take_other(self, kind: str, message: Mapping[str, Any]) -> None:
        if kind == "http.response.start":
            if self._status is not None:
                raise ProtocolError("the handler started its response twice")
            self._status = message["status"]
            self._headers = end_to_end(message.get("headers", ()))
        elif not kind.startswith("http.response."):
            raise ProtocolError(f"the handler sent {kind!r}")
        # Others belong to extensions that the scope does not offer.
