"""What the drivers in Python share. A driver does with its client what its users do.

    python -m tests.clients.drivers.NAME URL OUTCOMES NAME-SCENARIO ...

It runs them side by side, and writes what came of each to the file OUTCOMES.
"""

from __future__ import annotations

import json
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


class Driver(ABC):
    """A client.

    Each method returns what the client makes of the answer, or lets the client's own error out.

    Args:
        url: where the server is.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    @abstractmethod
    def run(self, name: str) -> Any:
        """Submit, and wait for the end."""

    @abstractmethod
    def cancel(self, name: str) -> Any:
        """The same; but it is cancelled as soon as it is there."""

    @abstractmethod
    def resume(self, name: str) -> Any:
        """Submit, stop waiting, and wait again with another client that has only what was kept."""


class Shown(Exception):
    """A failure that a client shows and does not raise.

    Args:
        kind: the client's own object that says so.
        message: what it says; None for nothing.
        status: how the client says that it has ended.
    """

    def __init__(self, kind: object, message: str | None, status: str) -> None:
        super().__init__(f"{status}: {message}")
        self.kind = kind


def drive(driver: Callable[[str], Driver], *, at_once: int = 8) -> None:
    """Run what the command line says.

    Args:
        driver: makes a client of a server.
        at_once: how many of the client can be in one process at a time.
    """
    url, outcomes, *names = sys.argv[1:]
    with ThreadPoolExecutor(at_once) as pool:
        found = pool.map(lambda name: outcome(driver(url), name), names)
        Path(outcomes).write_text(json.dumps(dict(zip(names, found, strict=True))))


def outcome(driver: Driver, name: str) -> dict[str, Any]:
    scenario = name.rpartition("-")[2]
    try:
        return {"value": getattr(driver, scenario, driver.run)(name)}
    except (Exception, SystemExit) as error:
        kind = type(error.kind if isinstance(error, Shown) else error)
        return {"error": [full_name(each) for each in kind.__mro__], "message": str(error)}


def full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def ended(look: Callable[[], Any], is_over: Callable[[Any], bool]) -> Any:
    """Ask until it is over: the loop that a client's documentation leaves to its users."""
    for _ in range(100):
        found = look()
        if is_over(found):
            return found
        time.sleep(0.3)
    raise TimeoutError(f"it is not over: {found!r}")
