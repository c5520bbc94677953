"""Both event loops, on virtual clocks: a test may wait for hours and takes milliseconds.

Virtual clocks skip idle time, so they are never used with real sockets, threads or processes: such
tests are marked `real` and run on the plain event loops.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from typing import Any

import anyio
import pytest
import trio.testing
from hypothesis import Phase

from raincheck import Jobs

PHASES = [Phase.explicit, Phase.generate]
"""What Hypothesis does. Making an example that fails smaller takes minutes, which no test has in
continuous integration, where the run as a whole is bounded; `print_blob` brings it back."""
if not os.environ.get("RAINCHECK_CI"):
    PHASES += [Phase.target, Phase.shrink, Phase.explain]


def pytest_collection_finish() -> None:
    """Let no garbage collection of a test look at all that was imported and collected before."""
    gc.freeze()


def long(tests: str) -> bool:
    """Whether these tests are to try all that they can, which takes minutes.

    Asked for by an environment variable: `RAINCHECK_FAULTS=long pytest tests/test_faults.py`.
    """
    return os.environ.get(f"RAINCHECK_{tests}") == "long"


class AutojumpLoop(asyncio.SelectorEventLoop):
    """An asyncio loop that jumps to the next timer when nothing else is left to do."""

    _skipped = 0.0

    def time(self) -> float:
        return super().time() + self._skipped

    def _run_once(self) -> None:
        if not self._ready:  # type: ignore[attr-defined] # asyncio's own
            timers = self._scheduled  # type: ignore[attr-defined] # too
            due = min((timer.when() for timer in timers if not timer.cancelled()), default=None)
            if due is not None:
                self._skipped += max(0.0, due - self.time())
        super()._run_once()  # type: ignore[misc] # asyncio's own


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    real = request.node.get_closest_marker("real") is not None
    options: dict[str, Any] = {}
    if request.param == "trio" and not real:
        options = {"clock": trio.testing.MockClock(autojump_threshold=0)}
    elif request.param == "asyncio" and not real:
        options = {"loop_factory": AutojumpLoop}
    return request.param, options


class Clock:
    """Seconds since the epoch that go with the event loop's own time."""

    def __init__(self) -> None:
        self._offset: float | None = None

    def __call__(self) -> float:
        now = anyio.current_time()
        if self._offset is None:
            self._offset = time.time() - now
        return now + self._offset


@pytest.fixture
def clock() -> Clock:
    return Clock()


def virtual_jobs(**settings: Any) -> Jobs:
    """`Jobs` whose clock goes with the event loop."""
    return Jobs(clock=Clock(), **settings)
