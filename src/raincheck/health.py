"""Health: what probes, autoscalers and load balancers ask of a process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router

from raincheck.job import State
from raincheck.routing.policies import RoutePolicies
from raincheck.stores.base import Total
from raincheck.telemetry.base import Figures, Statistics

STALE = 10.0
"""Seconds after which figures say nothing of a queue any more."""

_NO_STORE = {"cache-control": "no-store"}


class Subject(Protocol):
    """What is asked for.

    Attributes:
        clock: gives seconds since the epoch.
        policies: of the routes that are known.
    """

    clock: Callable[[], float]
    policies: RoutePolicies

    async def unready(self) -> str | None:
        """Why no request should come here now; None if they may."""

    @property
    def figures(self) -> Figures | None: ...

    def statistics(self) -> Statistics: ...


class Health:
    """Answers for the health of a process.

    `/live` is 200 as long as the event loop turns. `/ready` is 200, or 503 with why not. `/queue`
    has how much waits in the whole deployment and for how long, by route as well; it is 503 while
    that is not known, since a number that is not true would have an autoscaler do the wrong thing.

    Args:
        subject: whose.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self.app: Router = Router(
            [
                Route("/live", self._live),
                Route("/ready", self._ready),
                Route("/queue", self._queue),
            ]
        )

    async def _live(self, request: Request) -> Response:
        return _answer(200, {"status": "alive"})

    async def _ready(self, request: Request) -> Response:
        why = await self._subject.unready()
        here = self._subject.statistics()
        document = {
            "status": why or "ready",
            "running": here.running,
            "queued": here.queued,
        }
        return _answer(503 if why else 200, document)

    async def _queue(self, request: Request) -> Response:
        why = await self._subject.unready()
        figures, now = self._subject.figures, self._subject.clock()
        age = None if figures is None else max(0.0, now - figures.at)
        known = figures is not None and age is not None and age <= STALE and why != "stopped"
        if figures is None or not known:
            return _answer(503, {"status": "unknown", "age_seconds": age})
        # Also those that have no job: a scaler that asks for one of them wants its 0.
        routes = {route for route, _ in figures.totals} | self._subject.policies.by_route.keys()
        document = {
            "status": "known",
            **_counted(figures, routes, now),
            "age_seconds": age,
            "routes": [{"route": each} | _counted(figures, {each}, now) for each in sorted(routes)],
        }
        return _answer(200, document)


def _counted(figures: Figures, routes: set[str], now: float) -> dict[str, Any]:
    """What waits and runs of these routes."""
    queued, running = list[Total](), 0
    for (route, state), total in figures.totals.items():
        if route in routes:
            queued += [total] * (state is State.QUEUED)
            running += total.count * (state in (State.RUNNING, State.CANCELLING))
    oldest = min((total.oldest for total in queued if total.oldest is not None), default=now)
    return {
        "queued": sum(total.count for total in queued),
        "running": running,
        "oldest_queued_seconds": round(max(0.0, now - oldest), 3),
    }


def _answer(status: int, document: dict[str, Any]) -> Response:
    return JSONResponse(document, status, _NO_STORE)
