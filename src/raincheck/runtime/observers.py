"""Observers: those who are told of jobs, none of whom can change one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

from starlette.types import Scope

from raincheck.job import Job, State, Trace
from raincheck.telemetry.base import Source, Span, Telemetry, Transition

logger: logging.Logger = logging.getLogger("raincheck")

T = TypeVar("T")


class Spans:
    """What the telemetries of one middleware follow together; none of their errors gets out.

    Args:
        spans: one at least.

    Attributes:
        trace: the place in a trace that one of them has.
    """

    __slots__ = ("_spans", "trace")

    def __init__(self, spans: Sequence[Span]) -> None:
        self._spans = spans
        traces = [_tell(getattr, span, "trace") for span in spans]
        self.trace: Trace | None = next((trace for trace in traces if trace), None)

    def enter(self) -> None:
        """See `Span.enter`."""
        for span in self._spans:
            _tell(span.enter)

    def end(self, job: Job | None, error: BaseException | None = None) -> None:
        """See `Span.end`."""
        for span in self._spans:
            _tell(span.end, job, error)


class Observers:
    """Tells all telemetries of a middleware. What they raise is logged, and changes no job (law 5).

    Args:
        telemetries: told one after the other.

    Attributes:
        of: who is told of transitions to a state.
        follow: whether any of them makes spans.
        figures: whether any of them reads the store's figures.
    """

    def __init__(self, telemetries: Sequence[Telemetry]) -> None:
        self._all = telemetries
        self.of: dict[State, Sequence[Callable[[Transition], None]]] = {
            state: [each.transition for each in telemetries if state in each.states]
            for state in State
        }
        self._accepting = _overridden("accepting", telemetries)
        self._running = _overridden("running", telemetries)
        self.follow: bool = bool(self._accepting or self._running)
        self.figures: bool = any(each.figures for each in telemetries)

    def bind(self, source: Source) -> None:
        """See `Telemetry.bind`. Raises what it raises."""
        for each in self._all:
            each.bind(source)

    def tell(self, job: Job, before: State | None, why: str | None = None) -> None:
        """Tell of a transition: see `Transition`."""
        for told in self.of[job.state]:
            _tell(told, Transition(job, before, why))

    def raised(self, job: Job, error: BaseException, now: float) -> None:
        """See `Telemetry.raised`."""
        for each in self._all:
            _tell(each.raised, job, error, now)

    def repeats(self, job: Job, reason: str) -> None:
        """See `Telemetry.repeats`."""
        for each in self._all:
            _tell(each.repeats, job, reason)

    def lost(self, job: Job, now: float, *, ended: bool = False, deleted: bool = False) -> None:
        """See `Telemetry.lost`."""
        for each in self._all:
            _tell(each.lost, job, now, ended=ended, deleted=deleted)

    def held(self, seconds: float, routes: Collection[str]) -> None:
        """See `Telemetry.held`."""
        for each in self._all:
            _tell(each.held, seconds, routes)

    def accepting(self, route: str, scope: Scope) -> Spans | None:
        """See `Telemetry.accepting`."""
        return _together([_begun(begin, route, scope) for begin in self._accepting])

    def running(self, job: Job) -> Spans | None:
        """See `Telemetry.running`."""
        return _together([_begun(begin, job) for begin in self._running])


def _overridden(name: str, telemetries: Sequence[Telemetry]) -> list[Callable[..., Span | None]]:
    """This method of those that have one of their own."""
    default = getattr(Telemetry, name)
    return [getattr(each, name) for each in telemetries if getattr(type(each), name) is not default]


def _begun(begin: Callable[..., Span | None], *arguments: Any) -> Span | None:
    span: object = _tell(begin, *arguments)
    if span is None or isinstance(span, Span):
        return span
    logger.error("%r gave %r; only a Span is followed, and no coroutine", begin, span)
    return None


def _together(spans: Sequence[Span | None]) -> Spans | None:
    made = [span for span in spans if span is not None]
    return Spans(made) if made else None


def _tell(told: Callable[..., T], *arguments: Any, **more: Any) -> T | None:
    try:
        return told(*arguments, **more)
    except (KeyboardInterrupt, SystemExit):  # the process is to end
        raise
    except BaseException:  # whatever it is, the job is what it is (law 5); nobody has awaited
        logger.exception("an observer of jobs raised")
        return None
