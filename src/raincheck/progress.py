"""What handlers call."""

from __future__ import annotations

import functools
import logging

from raincheck.decorator import current_handoff
from raincheck.errors import Cancelled
from raincheck.job import Job, Progress

logger: logging.Logger = logging.getLogger("raincheck")

_SLIP = 1e-6
"""What a fraction may lie outside for being a sum of others."""


def report(fraction: float | None, message: str | None = None) -> None:
    """Say how far the handler is; clients see it in the status document.

    A plain function: the same call in `async def` and `def` handlers and in the threads they
    start with their context. It never blocks, costs next to nothing, and does nothing outside a
    job; where there is no middleware at all the log says so, once. The newest report counts; the
    store is told at most ten times a second.

    Args:
        fraction: 0 to 1; None leaves it as it was. What lies outside is clamped, and the log says
            so, once for each route.
        message: free text for a person, e.g. `"412 of 1000 sent"`; cut at 4 KiB.

    Raises:
        TypeError: the fraction is no number, in a job.
    """
    handoff = current_handoff.get()
    if handoff is None:
        _warn_of_no_middleware()
    elif handoff.job is not None and not handoff.job.synchronous:
        try:
            if fraction is not None and not -_SLIP <= fraction <= 1.0 + _SLIP:
                _warn_of_fraction(handoff.job.route)
        except TypeError:
            raise TypeError(
                f"report() was given {type(fraction).__name__} for a fraction, which is a number "
                "from 0 to 1, or None: a text alone is report(None, text)"
            ) from None
        handoff.report(Progress.of(fraction, message))


@functools.cache  # a route is told of once
def _warn_of_fraction(route: str) -> None:
    logger.warning(
        "report() was given a fraction outside of 0 to 1 on the route %s: it is clamped. Fifty per "
        "cent is report(0.5)",
        route,
    )


@functools.cache  # a process is told once: it may report a thousand times
def _warn_of_no_middleware() -> None:
    logger.warning(
        "report() was called where no LongRunningMiddleware has seen a request: it does nothing. "
        "If the app has one: a thread has to be started with the handler's context"
    )


def current_job() -> Job | None:
    """The job that the running code works for, as last recorded; None outside a job.

    It is `cancelling` as soon as this process has heard of a cancel: at once of one that came in
    here, within a second of one that came in elsewhere. Code in a thread, which cannot be stopped,
    may ask from time to time.
    """
    handoff = current_handoff.get()
    known = None if handoff is None else handoff.known
    return None if known is None or known.synchronous else known


def raise_if_cancelled() -> None:
    """Stop here, if the handler is to stop: its job was cancelled, or took longer than its timeout.

    Also if the server stops, or if another process has taken the job over. The same call in `async
    def` and `def` handlers and in the threads that they start with their context; it costs next to
    nothing, so a loop may ask each time. A cancel that came in at another process is heard of
    within a second. Outside a job it does nothing.

    Raises:
        Cancelled: which is no `Exception`. The job is `cancelled`, or has failed by its timeout,
            once the handler has unwound.
    """
    handoff = current_handoff.get()
    if handoff is not None and handoff.stops:
        handoff.unwind()
        raise Cancelled
