"""What the author of a route says (`Policy`), and what the whole middleware keeps to (`Limits`)."""

from __future__ import annotations

import inspect
import math
import re
import secrets
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from typing import Any, Literal, NamedTuple, Self, TypedDict

from raincheck.errors import ConfigurationError
from raincheck.messages import CapturedRequest, RawHeaders

Seconds = float | timedelta
"""A span of time: seconds, or a `timedelta`."""

CallbackOf = Callable[[Any], "str | Awaitable[str | None] | None"]
"""Gives the URL that the end of a request's job is told to, if any; sync or async. It is given the
`starlette.requests.Request`, without its body."""

MIB = 1024 * 1024


# What is kept longer than this is kept for ever, and its dates may be beyond those of a calendar.
_LONGEST = 100 * 365.25 * 86400

# Seconds between two runs, by a backoff that is doubled. A multiple of what an outage takes mostly.
_LONGEST_BACKOFF = 600.0

_FIELD_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 §5.1


def seconds(span: Seconds) -> float:
    """A span of time in seconds."""
    return span.total_seconds() if isinstance(span, timedelta) else float(span)


class Failure(NamedTuple):
    """A run that has failed, as `Retry(on=...)` and `Retry(backoff=...)` see it.

    Attributes:
        status: of the handler's response; 500 if there is none, since it raised; None if it ran out
            of time.
        headers: the fields of that response, as ASGI has them; none if there is none.
        exception: what the handler raised, if that is known; a `TimeoutError` if it ran out of
            time. On a route by a path rule, what came out of the app.
        runs: how many runs the job has had, this one counted.
    """

    status: int | None
    headers: RawHeaders
    exception: BaseException | None
    runs: int


RetryOn = (
    int | type[BaseException] | Collection[int | type[BaseException]] | Callable[[Failure], bool]
)
"""What `Retry` takes as `on`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Which failed runs are repeated, how often, and after which pause. Frozen.

    Between two runs the job is `queued`, with a time before which it does not run; what the failed
    run sent is thrown away. What raincheck itself makes a failure of, since the response is too
    large or not valid, is not repeated, nor is what was cancelled.

    Attributes:
        on: the statuses (400 to 599) of the responses and the types of the exceptions that are
            repeated: one, or several, mixed as you like; or a function that is given the `Failure`
            and says whether. It is called on the event loop and must not block; if it raises, that
            is logged, and the failure is the outcome. A handler that raised counts as 500, and one
            that ran out of time as `TimeoutError` alone. Default `(502, 503, 504)`.
        max_runs: how many runs a job may have in all; those that were interrupted count. Default 3.
        backoff: seconds before the second run; before each further one twice as long, ten minutes
            at most, and up to a quarter more by chance, so that those who failed together do not
            come back together. Or a function that is given the `Failure` and says how long exactly,
            as by the `Retry-After` in its headers. Default 1.

    Raises:
        ConfigurationError: a value that cannot work; the message names the field.
    """

    on: RetryOn = (502, 503, 504)
    max_runs: int = 3
    backoff: Seconds | Callable[[Failure], Seconds] = 1.0

    def __post_init__(self) -> None:
        check = Check(self)
        if not self._asks:
            given = [*self.on] if isinstance(self.on, Collection) else [self.on]
            if not given or not all(_may_be_named(each) for each in given):
                check.fail(
                    "on",
                    "is made of statuses, 400 to 599, and types of exceptions, like "
                    "(503, OSError), or is a function of the failure",
                )
            object.__setattr__(self, "on", tuple(given))
        elif inspect.iscoroutinefunction(self.on):
            check.fail("on", "is a plain function: nothing waits for it")
        check.integer("max_runs", at_least=1)
        if not callable(self.backoff):
            check.seconds("backoff")
        elif inspect.iscoroutinefunction(self.backoff):
            check.fail("backoff", "is seconds or a plain function: nothing waits for it")

    @property
    def _asks(self) -> bool:
        return callable(self.on) and not inspect.isclass(self.on)

    def may_repeat(self, status: int | None) -> bool:
        """Whether a run with this status (see `Failure`) may be repeated, whatever it raised."""
        on: Any = self.on
        return self._asks or status in on or any(inspect.isclass(each) for each in on)

    def pause(self, failure: Failure) -> float | None:
        """Seconds until the next run; None if there is none, but for `max_runs`.

        Raises:
            Exception: whatever the functions raise that it was given, or what they gave is nothing.
        """
        on: Any = self.on
        if self._asks:
            wanted = _at_once("on", on(failure))
        else:
            types = tuple(each for each in on if inspect.isclass(each))
            wanted = failure.status in on or isinstance(failure.exception, types)
        return self._pause(failure) if wanted else None

    def _pause(self, failure: Failure) -> float:
        if not callable(self.backoff):
            usual = seconds(self.backoff) * 2.0 ** min(failure.runs - 1, 64)
            return min(usual, _LONGEST_BACKOFF) * (1 + secrets.randbelow(1000) / 4000)
        pause = _at_once("backoff", self.backoff(failure))
        if isinstance(pause, timedelta | int | float) and 0 <= seconds(pause) <= _LONGEST:
            return seconds(pause)
        raise ValueError(f"Retry(backoff=...) gave {pause!r}; it gives seconds, or a timedelta")


def _at_once(field: str, given: Any) -> Any:
    """What a function of a `Retry` has given, unless that would have to be awaited."""
    if inspect.isawaitable(given):
        if inspect.iscoroutine(given):
            given.close()
        raise TypeError(f"Retry({field}=...) gave something to await, and nothing waits for it")
    return given


def _may_be_named(each: object) -> bool:
    """Whether `Retry(on=...)` may have it."""
    if inspect.isclass(each):
        return issubclass(each, BaseException)
    return isinstance(each, int) and not isinstance(each, bool) and 400 <= each <= 599


class PolicySettings(TypedDict, total=False):
    """The fields of `Policy`, for `@long_running(...)`; the meanings stand there."""

    respond: Literal["always", "preferred"]
    wait: Seconds
    max_wait: Seconds
    timeout: Seconds | None
    ttl: Seconds
    max_running: int | None
    max_queued: int | None
    max_request_size: int
    max_response_size: int
    max_running_per_owner: int | None
    max_queued_per_owner: int | None
    max_stored_bytes_per_owner: int | None
    retry_after: int | None
    idempotency: Literal["optional", "required", "off"]
    coalesce: bool | Callable[[CapturedRequest], str | None]
    hold: bool
    on_interrupt: Literal["fail", "rerun"] | None
    max_runs: int | None
    retry: Retry | None
    max_wait_queued: Seconds | None
    queue: str | None
    drop_headers: Collection[str]
    live: bool
    callback: str | CallbackOf | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How one long-running route behaves. Frozen; times are seconds or `timedelta`.

    Attributes:
        respond: `"always"` answers 202 unasked; `"preferred"` only to `Prefer: respond-async`
            (RFC 7240 §4.1), and is synchronous otherwise.
        wait: seconds that an accepted request waits for its response before the 202; a response
            in time is returned as if nothing had happened. Default 0; at most `max_wait`.
        max_wait: the longest `Prefer: wait=N` (RFC 7240 §4.3) that is honoured, and that a request
            waits for the synchronous answer to an earlier one with its key. Default 30.
        timeout: seconds a handler may run; then the job fails with 504 and the handler is
            cancelled. Default None: as long as it likes.
        ttl: seconds a finished job is kept. Default 3600.
        max_running: handlers of this route at once. Default None: only `Limits` bound them. This
            bound and the next three hold for all processes that share a store.
        max_queued: requests of this route that may wait for their turn. Default None, as above.
        max_request_size: bytes of request body; more is refused with 413. Default 16 MiB.
        max_response_size: bytes of response body; more fails the job. Default 64 MiB.
        max_running_per_owner: handlers of this route at once for one owner; further ones wait.
            Default None: no bound. Requests without an owner are not counted.
        max_queued_per_owner: requests of this route that may wait for one owner; more are refused
            with 429. Default None: no bound.
        max_stored_bytes_per_owner: bytes of response bodies that are kept for one owner's jobs of
            this route, each counted with 4 KiB at least; from there on more are refused with 429,
            until some have expired or been deleted. What runs and waits by then may end beyond it.
            In all processes that share a store; what was accepted before it was set does not
            count, nor does what has no owner. Default None: no bound.
        retry_after: seconds to put into `Retry-After`; an integer of at least 1. Default None:
            estimated from what this route's jobs took before.
        idempotency: what an `Idempotency-Key` means: `"optional"` (the default) replays the 202 of
            the job that was accepted under the same key, or a synchronous answer itself;
            `"required"` refuses requests without one with 400, `"off"` ignores it.
        coalesce: identical requests of one owner to one host share one run while it lasts: same
            method, path, query, body, credentials, range, conditions, and whatever earlier
            responses named in `Vary`. A function of the captured request gives a key of your own;
            None shares nothing. Default False.
        hold: keep the live request while it waits for its turn, instead of releasing and
            replaying it: for routes whose preliminaries cannot run twice. Default False.
        on_interrupt: what becomes of a job whose process died or stopped while it ran, if its
            store is shared: `"fail"` ends it with a problem, 503 if the process stopped and 502 if
            it died, `"rerun"` runs it again from the captured request. Only for handlers that may
            run twice. Default None: `"rerun"` with `retry`, which is for these alone and refuses
            `"fail"`; else `"fail"`.
        max_runs: how many runs a job may have in all with `on_interrupt="rerun"`; an exception
            or an error response is an outcome, not an interruption. Default None: 3 with
            `"rerun"`, else 1; with `retry` it is that one's.
        retry: run a job again whose run has failed in one of these ways: see `Retry`. Only for
            handlers that may run twice; so what is interrupted runs again as well. Default None: a
            failure is the outcome.
        max_wait_queued: seconds from its acceptance in which a job has to begin its first run;
            then it has failed with 503 and never begins. Default None: it waits as long as it
            takes.
        queue: the queue to wait in, if the runner has several. Default None: its own.
        drop_headers: names of request header fields that are not kept with a captured request,
            such as `"Cookie"`: a replay goes without them. Default: none, since authentication
            runs again in a replay.
        live: keep the response as it comes, ten times a second at most, so that whoever follows it
            (`/stream`) sees it in time. Of `text/event-stream` that is always done; of others what
            comes is kept in pieces of 256 KiB. Default False.
        callback: where the end of each job is told by POST: a URL, or a function of the request
            that gives one or None; sync or async. It takes `Jobs(callbacks=Callbacks(...))`. What
            it raises, and a URL that may not be told to, refuses the request with 500. Default
            None: nobody is told, unless the client asks for it and may.

    Raises:
        ConfigurationError: a value that cannot work; the message names the field.
    """

    respond: Literal["always", "preferred"] = "always"
    wait: Seconds = 0.0
    max_wait: Seconds = 30.0
    timeout: Seconds | None = None
    ttl: Seconds = 3600.0
    max_running: int | None = None
    max_queued: int | None = None
    max_request_size: int = 16 * MIB
    max_response_size: int = 64 * MIB
    max_running_per_owner: int | None = None
    max_queued_per_owner: int | None = None
    max_stored_bytes_per_owner: int | None = None
    retry_after: int | None = None
    idempotency: Literal["optional", "required", "off"] = "optional"
    coalesce: bool | Callable[[CapturedRequest], str | None] = False
    hold: bool = False
    on_interrupt: Literal["fail", "rerun"] | None = None
    max_runs: int | None = None
    retry: Retry | None = None
    max_wait_queued: Seconds | None = None
    queue: str | None = None
    drop_headers: Collection[str] = ()
    live: bool = False
    callback: str | CallbackOf | None = None

    def __post_init__(self) -> None:
        check = Check(self)
        if self.respond not in ("always", "preferred"):
            check.fail("respond", "is 'always' or 'preferred'")
        check.seconds("wait", at_least=0)
        check.seconds("max_wait", at_least=0)
        check.seconds("timeout", above=0, optional=True)
        check.seconds("ttl", above=0)
        check.integer("max_running", at_least=1, optional=True)
        check.integer("max_queued", at_least=0, optional=True)
        check.integer("max_running_per_owner", at_least=1, optional=True)
        check.integer("max_queued_per_owner", at_least=0, optional=True)
        check.integer("max_stored_bytes_per_owner", at_least=1, optional=True)
        check.integer("max_request_size", at_least=0)
        check.integer("max_response_size", at_least=0)
        check.integer("retry_after", at_least=1, optional=True)
        if seconds(self.wait) > seconds(self.max_wait):
            check.fail("wait", "is at most max_wait")
        if self.idempotency not in ("optional", "required", "off"):
            check.fail("idempotency", "is 'optional', 'required' or 'off'")
        if not isinstance(self.coalesce, bool) and not callable(self.coalesce):
            check.fail("coalesce", "is True, False or a function of the request")
        check.boolean("hold")
        check.seconds("max_wait_queued", above=0, optional=True)
        self._check_runs(check)
        if self.queue is not None and not (isinstance(self.queue, str) and self.queue):
            check.fail("queue", "is a name or None")
        check.names("drop_headers")
        check.boolean("live")
        if not (self.callback is None or isinstance(self.callback, str) or callable(self.callback)):
            check.fail("callback", "is a URL, a function of the request or None")

    def _check_runs(self, check: Check) -> None:
        if self.on_interrupt not in ("fail", "rerun", None):
            check.fail("on_interrupt", "is 'fail', 'rerun' or None")
        check.integer("max_runs", at_least=1, optional=True)
        if self.retry is None:
            if not self.reruns and (self.max_runs or 1) > 1:
                check.fail("max_runs", "is more than 1 only with on_interrupt='rerun'")
            if self.reruns and self.hold:
                check.fail("hold", "keeps what cannot run twice, so that on_interrupt is 'fail'")
            return
        if not isinstance(self.retry, Retry):
            check.fail("retry", "is a Retry or None, like Retry(on=(502, 503, 504))")
        if self.max_runs is not None:
            check.fail(
                "max_runs", "is not given with retry, which has its own: Retry(max_runs=...)"
            )
        if self.hold:
            check.fail("hold", "keeps what cannot run twice, so that retry is None")
        if self.on_interrupt == "fail":
            check.fail(
                "on_interrupt",
                "is not 'fail' with retry, which is for handlers that may run twice: leave one out",
            )

    @property
    def reruns(self) -> bool:
        """Whether a job whose run was interrupted may run again."""
        return self.on_interrupt == "rerun" or self.retry is not None

    @property
    def runs(self) -> int:
        """How many runs a job may have in all."""
        if self.retry is not None:
            return self.retry.max_runs
        if self.max_runs is not None:
            return self.max_runs
        return 3 if self.reruns else 1

    def with_settings(self, settings: PolicySettings) -> Self:
        """This policy with some fields replaced."""
        return replace(self, **settings) if settings else self


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one middleware keeps to over all its routes. Frozen; times as in `Policy`.

    Attributes:
        max_running: handlers at once in a process, and threads for synchronous ones. Default 100.
        max_queued: requests that wait for their turn in a process. Default 1000.
        drain_timeout: seconds that shutdown gives accepted jobs to finish. Default 30.
        cancel_grace: seconds that a cancelled handler's cleanup has before it is cancelled
            again, and that shutdown waits for the last ones. Default 5.
        tombstone_ttl: seconds that an expired or deleted job answers 410. Default 3600.
        lease: seconds after which other processes take over what a process had that died or hangs;
            with a store that they share. Longer than anything blocks the event loop. Default 30.
        store_timeout: seconds that a call to a shared store may take; then it counts as failed.
            Default 10.
        abandon_after: seconds after the end of its lease when a job that no process could take
            over is given up: nobody can read its record, or has its route. Default 3600.
        require_owner: refuse with 401 what would be a job without an owner, whose URL would be all
            that it takes to read and cancel it. Default False.

    Raises:
        ConfigurationError: a value that cannot work; the message names the field.
    """

    max_running: int = 100
    max_queued: int = 1000
    drain_timeout: Seconds = 30.0
    cancel_grace: Seconds = 5.0
    tombstone_ttl: Seconds = 3600.0
    lease: Seconds = 30.0
    store_timeout: Seconds = 10.0
    abandon_after: Seconds = 3600.0
    require_owner: bool = False

    def __post_init__(self) -> None:
        check = Check(self)
        check.integer("max_running", at_least=1)
        check.integer("max_queued", at_least=0)
        check.seconds("drain_timeout", at_least=0)
        check.seconds("cancel_grace", above=0)
        check.seconds("tombstone_ttl", at_least=0)
        check.seconds("lease", above=0)
        check.seconds("store_timeout", above=0)
        check.seconds("abandon_after", above=0)
        check.boolean("require_owner")


def require_kind(argument: str, value: object, kind: type, example: str) -> None:
    """Check what an argument is given, before it fails somewhere else.

    Args:
        argument: its name.
        value: what it is given; None is left to whoever has a default.
        kind: what it has to be an instance of.
        example: how one is made.

    Raises:
        ConfigurationError: it is none.
    """
    if value is None or isinstance(value, kind):
        return
    is_class = inspect.isclass(value) and issubclass(value, kind)
    raise ConfigurationError(
        f"{argument}={value!r}: it is {'the class and no' if is_class else 'no'} {kind.__name__}; "
        f"give {'an instance' if is_class else 'one'}, like {example}"
    )


class Check:
    """Checks the fields of a frozen settings object, and turns time spans into floats."""

    def __init__(self, settings: Any) -> None:
        self._settings = settings

    def seconds(
        self,
        field: str,
        *,
        at_least: float = 0.0,
        above: float | None = None,
        optional: bool = False,
    ) -> None:
        value = getattr(self._settings, field)
        if value is None and optional:
            return
        if not isinstance(value, int | float | timedelta) or isinstance(value, bool):
            self.fail(field, "is a number of seconds or a timedelta" + " or None" * optional)
        try:
            value = seconds(value)
        except OverflowError:  # a whole number beyond any float
            value = math.inf
        if not math.isfinite(value):
            self.fail(field, "is finite")
        if value > _LONGEST:
            self.fail(field, f"is at most {_LONGEST:.0f} seconds, which is a hundred years")
        if above is not None and value <= above:
            self.fail(field, f"is more than {above:g} seconds")
        if above is None and value < at_least:
            self.fail(field, f"is at least {at_least:g} seconds")
        object.__setattr__(self._settings, field, value)

    def integer(self, field: str, *, at_least: int, optional: bool = False) -> None:
        value = getattr(self._settings, field)
        if value is None and optional:
            return
        if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
            none = " or None" if optional else ""
            self.fail(field, f"is a whole number of at least {at_least}{none}")

    def boolean(self, field: str) -> None:
        if not isinstance(getattr(self._settings, field), bool):
            self.fail(field, "is True or False")

    def names(self, field: str) -> None:
        value = getattr(self._settings, field)
        named = not isinstance(value, str) and isinstance(value, Collection)
        if not named or not all(isinstance(name, str) for name in value):
            self.fail(field, "is a collection of names, like ('Cookie',)")
        if not all(_FIELD_NAME.fullmatch(name) for name in value):
            self.fail(field, "is a collection of names of header fields, like ('Cookie',)")
        object.__setattr__(self._settings, field, frozenset(name.lower() for name in value))

    def fail(self, field: str, rule: str) -> None:
        owner = type(self._settings).__name__
        value = getattr(self._settings, field)
        raise ConfigurationError(f"{owner}({field}={value!r}): {field} {rule}")


def setting_names() -> frozenset[str]:
    """The names that `@long_running(...)` takes."""
    return frozenset(field.name for field in fields(Policy))
