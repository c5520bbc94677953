"""What handlers call."""

from __future__ import annotations

import functools
import logging

from raincheck.job import Job, Progress
from raincheck.marking import current_handoff

logger = logging.getLogger("raincheck")


def report(fraction: float, message: str | None = None) -> None:
    """Say how far the handler is; clients see it in the status document.

    A plain function: the same call in `async def` and `def` handlers and in the threads they
    start with their context. It never blocks, costs next to nothing, and does nothing outside a
    job; where there is no middleware at all the log says so, once. The newest report counts; the
    store is told at most ten times a second.

    Args:
        fraction: 0 to 1; what lies outside is clamped.
        message: free text for a person, e.g. `"412 of 1000 sent"`.
    """
    handoff = current_handoff.get()
    if handoff is None:
        _warn_of_no_middleware()
    elif handoff.job is not None and not handoff.job.synchronous:
        handoff.report(Progress.of(fraction, message))


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
