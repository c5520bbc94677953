"""Everything raincheck raises, and the problems it reports.

    RaincheckError
    ├── ConfigurationError (ValueError)     a setting that cannot work; names the field and the cure
    ├── IllegalTransition                   a job was asked for a move it may not make
    │   ├── LeaseLost                       another process has taken it over
    │   └── NoRoom                          as many are in that state as may be
    ├── MalformedCursor (ValueError)        no page of a list of jobs ended there
    ├── StoreError                          a store could not do what it promises
    │   ├── BodyLost                        what is left of a stored response is not all of it
    │   ├── StoreFull                       no room for another job; nothing was evicted
    │   └── UnreadableRecord                damaged, or of another version; it will not read later
    ├── BrokenOff                           a response that is followed does not come to its end
    └── Refusal                             the request was not accepted; nothing was stored
        ├── KeyMalformed            400
        ├── KeyMissing              400
        ├── OwnerRequired           401
        ├── KeyInUse                409
        ├── RequestTooLarge         413
        ├── KeyReused               422
        ├── OverQuota               429
        ├── StoredTooMuch           429
        ├── CallbackUnknown         500
        ├── OwnerUnknown            500
        ├── QueueFull               503
        ├── RunnerUnavailable       503
        ├── StoreUnavailable        503
        └── ShuttingDown            503

A `Refusal` reaches the client as a problem document (RFC 9457) with the status shown.
`Release` and `Cancelled` stand outside the tree on purpose: they are no errors, and no `except
Exception` may stop them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

PROBLEM_TYPE_PREFIX = "urn:raincheck:problem:"


@dataclass(frozen=True, slots=True)
class Problem:
    """What went wrong, in words a client may read (RFC 9457).

    Attributes:
        name: the last part of the `type` URI, e.g. `"timeout"`.
        status: the HTTP status that goes with it.
        title: one short line, the same for every problem of this name.
        detail: what happened this time; never an exception's text.
    """

    name: str
    status: int
    title: str
    detail: str

    def document(self) -> dict[str, Any]:
        """The members of the problem document (RFC 9457 §3.1)."""
        return {
            "type": PROBLEM_TYPE_PREFIX + self.name,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
        }


CRASHED = "crashed"
"""The name of the problem of a handler that raised."""


def crashed(detail: str = "The handler ended with an error.") -> Problem:
    """The handler raised before its response was complete."""
    return Problem(CRASHED, 500, "The handler failed", detail)


def invalid_response(detail: str) -> Problem:
    """The handler gave no whole response, or one that no server could send (law 14)."""
    return Problem("invalid-response", 500, "The handler gave no valid response", detail)


def timed_out(seconds: float) -> Problem:
    """The handler ran longer than its policy's `timeout`."""
    return Problem(
        "timeout", 504, "The handler took too long", f"The handler may run for {seconds:g} seconds."
    )


def response_too_large(limit: int) -> Problem:
    """The response body grew larger than the policy's `max_response_size`."""
    detail = f"The response may have {limit} bytes."
    return Problem("response-too-large", 500, "The response is too large", detail)


NOT_KEPT = Problem(
    "response-too-large",
    500,
    "The response is too large",
    "The job store has no room for the response.",
)
"""The store had no room for the response body, or for the end of it."""

UNREADABLE = Problem(
    "unreadable",
    500,
    "The request cannot be read",
    "The kept request is damaged, or in the format of another version.",
)
"""What was captured of the request cannot be read any more."""

RESPONSE_LOST = Problem(
    "unreadable",
    500,
    "The response cannot be read",
    "What is left of the kept response is not all of it.",
)
"""The body of a response that was kept is not whole any more, and will not be."""

INTERRUPTED = Problem(
    "interrupted", 503, "The job was interrupted", "The server stopped before the handler ended."
)
"""The server stopped before the handler ended."""

LOOP_ENDED = Problem(
    "interrupted",
    503,
    "The job was interrupted",
    "The event loop ended before the handler did, as it does where no lifespan makes it wait. "
    "A test client has one inside of `with TestClient(app) as client:`.",
)
"""The same, where no server has told of its start, so that nothing has told of its end."""

LOST_WORKER = Problem(
    "lost-worker",
    502,
    "The job's process was lost",
    "The process that had the job died, or could not reach the job store any more.",
)
"""Nobody renewed the job's lease, and it may not run again."""

WAITED_TOO_LONG = Problem(
    "waited-too-long",
    503,
    "The job waited too long",
    "Its turn did not come within the time that it may wait to begin.",
)
"""The job has not begun within its policy's `max_wait_queued`, and never will."""

UNKNOWN_ROUTE = Problem(
    "unknown-route",
    502,
    "No process knows the job's route",
    "Its endpoint was renamed or taken away while the job waited.",
)
"""No process has come that has an endpoint of the job's route."""


ANSWER_NOT_KEPT = Problem(
    "answer-not-kept",
    500,
    "The answer was not kept",
    "The request was answered, and the store could not keep what the answer was.",
)
"""A synchronous answer that the same key cannot be given again."""


class RaincheckError(Exception):
    """The root of everything raincheck raises on purpose."""


class ConfigurationError(RaincheckError, ValueError):
    """A setting cannot work. The message names the field and the cure."""


class IllegalTransition(RaincheckError):
    """A job was asked to make a move that `TRANSITIONS` does not hold."""


class LeaseLost(IllegalTransition):
    """Another process runs the job now: what this one made of it does not count."""


class NoRoom(IllegalTransition):
    """As many jobs are in the state that this one would be in as may be (see `job.Bounds`).

    Args:
        owner: whether those of its owner are meant, not those of its whole route.
        stored: whether it is what they keep once they have ended that leaves no room.
    """

    def __init__(self, *, owner: bool, stored: bool = False) -> None:
        super().__init__(f"no room for another job of this {'owner' if owner else 'route'}")
        self.owner = owner
        self.stored = stored


class MalformedCursor(RaincheckError, ValueError):
    """What a list of jobs was to go on after is not the end of a page of one."""


class StoreError(RaincheckError):
    """A store could not do what it promises."""


class BodyLost(StoreError):
    """The body of a stored response is not whole any more.

    Its job went while it was read, or what there was of it did while it was written.
    """


class BrokenOff(RaincheckError):
    """A response that is followed while it is produced does not come to its end.

    Raised to the server, which breaks its connection off: to end it would make it look whole. A
    server that logs what an app raises finds no traceback to log: where it was raised says nothing.
    """

    @property
    def __traceback__(self) -> None:
        return None

    @__traceback__.setter
    def __traceback__(self, traceback: object) -> None: ...


class StoreFull(StoreError):
    """The store has no room for another job, and evicts no result to make some."""


class UnreadableRecord(StoreError):
    """A record that this version of raincheck cannot read: asking again changes nothing.

    It is damaged, or another version wrote it.
    """


class Refusal(RaincheckError):
    """The request is refused before it was accepted; nothing was stored.

    Args:
        detail: what the client should know.
        retry_after: seconds, an integer of at least 1, after which another try makes sense.

    Attributes:
        name, status, title: see `Problem`.
        headers: fields that go with the status.
    """

    name: ClassVar[str]
    status: ClassVar[int]
    title: ClassVar[str]
    headers: ClassVar[tuple[tuple[bytes, bytes], ...]] = ()

    def __init__(self, detail: str, *, retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.retry_after = retry_after

    @property
    def problem(self) -> Problem:
        """This refusal as the client sees it."""
        return Problem(self.name, self.status, self.title, str(self))


class RequestTooLarge(Refusal):
    """The request body is larger than the policy's `max_request_size`."""

    name = "request-too-large"
    status = 413
    title = "The request body is too large"


class KeyMalformed(Refusal):
    """The Idempotency-Key cannot be read."""

    name = "idempotency-key-malformed"
    status = 400
    title = "The Idempotency-Key is malformed"


class KeyMissing(Refusal):
    """The route requires an Idempotency-Key."""

    name = "idempotency-key-missing"
    status = 400
    title = "An Idempotency-Key is required"


class KeyInUse(Refusal):
    """The request that came with the Idempotency-Key has not been answered yet."""

    name = "idempotency-key-in-use"
    status = 409
    title = "The Idempotency-Key is in use"


class KeyReused(Refusal):
    """The Idempotency-Key was used for another request."""

    name = "idempotency-key-reused"
    status = 422
    title = "The Idempotency-Key belongs to another request"


class OwnerRequired(Refusal):
    """The request has no owner, and `Limits(require_owner=True)` wants one of every job."""

    name = "owner-required"
    status = 401
    title = "Authentication is required"
    # RFC 9110 §11.6.1 wants a scheme. This one makes no browser ask for a password.
    headers: ClassVar[tuple[tuple[bytes, bytes], ...]] = ((b"www-authenticate", b"Bearer"),)


class OwnerUnknown(Refusal):
    """Whose the job would be cannot be determined, so that nobody could be let to it."""

    name = "owner-unknown"
    status = 500
    title = "The owner cannot be determined"


class CallbackUnknown(Refusal):
    """Where the end of the job is to be told cannot be determined, or may not be told to."""

    name = "callback-unknown"
    status = 500
    title = "The callback cannot be determined"


class OverQuota(Refusal):
    """As many requests of this owner wait as may."""

    name = "over-quota"
    status = 429
    title = "Too many requests wait already"


class StoredTooMuch(Refusal):
    """The results that are kept for this owner take as much room as they may."""

    name = "stored-too-much"
    status = 429
    title = "Too much is stored already"


class QueueFull(Refusal):
    """As many requests wait as the route, or the whole middleware, may keep waiting."""

    name = "queue-full"
    status = 503
    title = "The queue is full"


class StoreUnavailable(Refusal):
    """The store is full, or could not be reached."""

    name = "store-unavailable"
    status = 503
    title = "The job store is not available"


class RunnerUnavailable(Refusal):
    """The engine that runs jobs could not be reached."""

    name = "runner-unavailable"
    status = 503
    title = "Nobody can be asked to run the job"


class ShuttingDown(Refusal):
    """The server is shutting down and accepts nothing new."""

    name = "shutting-down"
    status = 503
    title = "The server is shutting down"


class Release(BaseException):
    """Unwinds a request from its handler's entry; raised and caught by raincheck alone.

    A frame that catches `BaseException` sees it and must pass it on. It is no cancellation, so
    that cleanup code on the way may still `await`.

    Args:
        status: the status of the answer that the client gets meanwhile; None if it gets none, or
            has got its own.
    """

    def __init__(self, status: int | None = None) -> None:
        super().__init__()
        self.status = status


class Cancelled(Release):
    """What `raise_if_cancelled()` raises: the handler is to stop, and unwinds from where it is.

    Like the cancellation of a task it is no `Exception`: `finally` and `with` clean up, and an
    `except Exception` on the way keeps nothing going.
    """


def is_release(error: BaseException | None) -> bool:
    """Whether `error` is a `Release`, or an exception group with one anywhere inside.

    `BaseHTTPMiddleware` turns a release into (nested) groups that also hold its own
    `RuntimeError("No response returned.")`.
    """
    if isinstance(error, BaseExceptionGroup):
        return any(is_release(inner) for inner in error.exceptions)
    return isinstance(error, Release)
