"""Telemetry in the log: what becomes of jobs that nobody wanted."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection
from typing import Any, ClassVar

from raincheck.errors import CRASHED
from raincheck.job import Job, State
from raincheck.telemetry.base import Telemetry, Transition, reason_of

logger: logging.Logger = logging.getLogger("raincheck")


class LoggingTelemetry(Telemetry):
    """Writes to the logger `raincheck`: a line for each job that fails for a reason of ours.

    Also for one whose app raises, whose failed run is repeated, that another process takes over, or
    that holds the event loop.
    Each line about a job has in `extra` what a log in JSON makes fields of:

    - `job`, `route`, `state`, and `run`, which counts them from 1;
    - `reason`: the name of the problem, e.g. `timeout`; `crashed` of what has raised;
    - `seconds`: how long that run took until then; None if there was none;
    - `owner`: the first 16 hexadecimal digits of the SHA-256 of the owner; None without one. Who
      knows or guesses an owner finds its lines by that, and who reads the log learns no name.

    Never a body, nor a header field. Nothing is written of a job that goes well.
    """

    states: ClassVar[Collection[State]] = frozenset({State.FAILED})

    def transition(self, change: Transition) -> None:
        job, error = change.job, change.job.error
        # Of one whose handler raised the handler's own end says more.
        if error is not None and not job.gone and error.name != CRASHED:
            logger.warning(
                "job %s (%s) has failed: %s",
                job.id,
                job.route,
                change.why or f"{error.title}. {error.detail}",
                extra=fields(job, job.finished_at),
            )

    def raised(self, job: Job, error: BaseException, now: float) -> None:
        told = fields(job, now) | {"reason": CRASHED}
        logger.error("job %s on %s raised", job.id, job.route, exc_info=error, extra=told)

    def repeats(self, job: Job, reason: str) -> None:
        logger.warning(
            "job %s (%s): run %d of %d has failed (%s), and is repeated",
            *(job.id, job.route, job.runs, job.max_runs, reason),
            extra=fields(job, None) | {"reason": reason},
        )

    def lost(self, job: Job, now: float, *, ended: bool, deleted: bool) -> None:
        told = fields(job, now) | {"reason": "deleted" if deleted else "taken-over"}
        if ended:
            logger.warning(
                "job %s (%s) was taken over; its outcome here is dropped",
                job.id,
                job.route,
                extra=told,
            )
            return
        # Of a synchronous one the client is answered here all the same.
        what = "its answer is not kept" if job.synchronous else "it stops here"
        logger.log(
            logging.INFO if deleted else logging.WARNING,
            "job %s (%s) was taken over by another process, or deleted; %s",
            job.id,
            job.route,
            what,
            extra=told,
        )

    def held(self, seconds: float, routes: Collection[str]) -> None:
        logger.warning(
            "the event loop was held for %.1f seconds while jobs of these routes ran: %s; what "
            "computes for long, or waits without await, belongs into a thread: write it as def",
            seconds,
            ", ".join(sorted(routes)),
            extra={"seconds": seconds, "routes": sorted(routes)},
        )


def fields(job: Job, now: float | None) -> dict[str, Any]:
    """What a line about a job has in `extra`: see `LoggingTelemetry`.

    Args:
        job: the job.
        now: when that is, in seconds since the epoch.
    """
    began = job.started_at
    return {
        "job": job.id,
        "route": job.route,
        "owner": None if job.owner is None else _hashed(job.owner),
        "state": job.state.value,
        "run": job.runs,
        "seconds": None if began is None or now is None else round(max(0.0, now - began), 3),
        "reason": reason_of(job),
    }


def _hashed(owner: str) -> str:
    return hashlib.sha256(owner.encode("utf-8", "surrogateescape")).hexdigest()[:16]
