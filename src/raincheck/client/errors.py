"""What goes wrong while a client waits.

FollowError
├── DeadlineExceeded    time is over; the job goes on, and can be waited for again by its URL
├── Unreachable         nobody has answered for two minutes; the same holds
└── NoResponse          there is none: the job failed or was cancelled where only a document says
                        so, or it is unknown or gone

Each is also an error of the module whose client is used, httpx2 or httpx: the first its
`TimeoutException`, the second its `TransportError`, the others its `RequestError`.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any


class FollowError(Exception):
    """Waiting for a job has ended without its response.

    Args:
        message: what happened.
        status_url: as below.

    Attributes:
        status_url: where the job can be asked for, also from another process:
            `RemoteJob.from_url(client, error.status_url)`.
    """

    def __init__(self, message: str, status_url: str) -> None:
        super().__init__(message)
        self.status_url = status_url

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (PLAIN[type(self).__name__], str(self), self.status_url)


class DeadlineExceeded(FollowError):
    """The job has not ended by the deadline. Nothing was cancelled: wait again with its URL."""


class Unreachable(FollowError):
    """Its server has not answered for two minutes, or only that it cannot. Wait again later."""


class NoResponse(FollowError):
    """What was asked of a job is not to be had any more."""


PLAIN: dict[str, type[FollowError]] = {
    kind.__name__: kind for kind in (FollowError, DeadlineExceeded, Unreachable, NoResponse)
}
"""The kinds by their names."""

_BASES = {
    FollowError: "RequestError",
    DeadlineExceeded: "TimeoutException",
    Unreachable: "TransportError",
    NoResponse: "RequestError",
}


def error_of(http: ModuleType, kind: type[FollowError], message: str, url: Any) -> FollowError:
    """An error that is also of the module that is used, for code that knows only that."""
    both: type[FollowError] = type(kind.__name__, (kind, getattr(http, _BASES[kind])), {})
    return both(message, str(url))


def _again(kind: type[FollowError], message: str, status_url: str) -> FollowError:
    """What comes out of a pickle: the plain kind."""
    return kind(message, status_url)
