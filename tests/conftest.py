"""Both event loops, on virtual clocks: a test may wait for hours and takes milliseconds.

Virtual clocks skip idle time, so they are never used with real sockets, threads or processes: such
tests are marked `real` and run on the plain event loops.

All tests run on all cores; those that are named, by file or by test, in this process. What is
marked `slow` is left out unless it is asked for, by its place or by `-m slow`.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio.testing
from hypothesis import Phase

from raincheck import Jobs
from tests.stores.postgres import postgres_server

__all__ = ["postgres_server"]  # a fixture: imported by each file, it would be a server for each

PHASES = [Phase.explicit, Phase.generate]
"""What Hypothesis does. Making an example that fails smaller takes minutes, which no test has in
continuous integration, where the run as a whole is bounded; `print_blob` brings it back."""
if not os.environ.get("RAINCHECK_CI"):
    PHASES += [Phase.target, Phase.shrink, Phase.explain]

ROOT = Path(__file__).parents[1]

if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
    # As images for containers have it. Here every worker and every server that is started would
    # compile all of ours that it imports, which takes longer than most tests.
    sys.dont_write_bytecode = False

MOST_WORKERS = 8
"""Each has servers of its own, and tests that look at the clock have to come to their turn."""


def named(config: pytest.Config) -> list[Path]:
    """What is to be run, unless that is everything."""
    places = [Path(config.invocation_params.dir, arg.partition("::")[0]) for arg in config.args]
    return [place for place in places if place not in (ROOT, ROOT / "tests")]


def pytest_configure(config: pytest.Config) -> None:
    """Let no client read the certificates of the world: it takes longer than most tests.

    Where everything is run, which asks nobody but this machine; what installs packages is named.
    """
    if not named(config):
        os.environ.pop("SSL_CERT_FILE", None)
        os.environ["SSL_CERT_DIR"] = str(ROOT / "tests")  # there are none


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One for each core, two where quick real tests wait; or none but this process, as for `-s`."""
    if named(config) or config.option.capture == "no":
        return 0
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min(cores if config.option.markexpr else 2 * cores, MOST_WORKERS)


SPREAD = {
    *(f"tests/client/test_{name}.py" for name in ("docs", "handles", "real", "script")),
    "tests/cli/test_serve.py",
    *(f"tests/e2e/test_{name}.py" for name in ("bodies", "durable", "events", "push", "retry")),
    *(f"tests/runners/test_{name}.py" for name in ("celery", "http_push", "pgqueuer")),
    *(f"tests/stores/test_{name}.py" for name in ("postgres", "redis", "sqlite")),
    *(f"tests/test_{name}.py" for name in ("examples", "threads")),
}
"""Files with long tests, none of which needs another: they are shared among the workers.

One that has a server for all of its tests is none of them.
"""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each worker whole files, which may have servers of their own; of some, single tests.

    Sent one by one, quick tests take a quarter longer. Those of a file that is named are spread.
    """
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling, LoadScheduling

    if named(config):
        return LoadScheduling(config, log)

    class Scheduling(LoadFileScheduling):  # type: ignore[misc] # it has no types
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return nodeid if file in SPREAD else file

    return Scheduling(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is slow."""
    for item in items:
        if item.get_closest_marker("one_loop") and on_trio(item):
            item.add_marker("slow")
    if not named(config):
        items[:] = mixed(items)
        if "slow" not in config.option.markexpr:
            slow = [item for item in items if item.get_closest_marker("slow")]
            config.hook.pytest_deselected(items=slow)
            items[:] = [item for item in items if not item.get_closest_marker("slow")]


def mixed(items: list[pytest.Item]) -> list[pytest.Item]:
    """In the order in which workers are given them, so that one computes while another waits.

    The longest files are first, and the single tests of those that are spread, most of which wait
    for others, come between them, each file's from the beginning to the end.
    """
    files: dict[str, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.nodeid.partition("::")[0], []).append(item)
    places: list[tuple[float, list[pytest.Item]]] = []
    whole = sorted((files[file] for file in files if file not in SPREAD), key=length, reverse=True)
    before, all_of_them = 0, sum(map(length, whole))
    for tests in whole:
        places.append((before / all_of_them, tests))
        before += length(tests)
    for tests in (files[file] for file in files if file in SPREAD):
        places += [(n / len(tests), [test]) for n, test in enumerate(tests)]
    return [test for _, tests in sorted(places, key=lambda place: place[0]) for test in tests]


def length(tests: list[pytest.Item]) -> int:
    """About how long they take, where a test on virtual time takes 1."""
    return sum(50 if test.get_closest_marker("real") else 1 for test in tests)


def on_trio(item: pytest.Item) -> bool:
    """Whether a test runs on the second of the two event loops."""
    return isinstance(item, pytest.Function) and (
        hasattr(item, "callspec") and item.callspec.params.get("anyio_backend") == "trio"
    )


def pytest_collection_finish() -> None:
    """Let no garbage collection of a test look at all that was imported and collected before."""
    gc.freeze()


def long(tests: str) -> bool:
    """Whether these tests are to try all that they can, which takes minutes.

    Asked for by an environment variable: `RAINCHECK_FAULTS=long pytest tests/test_faults.py`.
    """
    return os.environ.get(f"RAINCHECK_{tests}") == "long"


class AutojumpLoop(asyncio.SelectorEventLoop):
    """An asyncio loop whose time stands still, and jumps to the next timer when nothing is left."""

    _now = 0.0

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        if not self._ready:  # type: ignore[attr-defined] # asyncio's own
            timers = self._scheduled  # type: ignore[attr-defined] # too, and a heap
            if timers and timers[0].cancelled():
                timers = sorted(timer for timer in timers if not timer.cancelled())
            if timers:
                self._now = max(self._now, timers[0].when())
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
