"""What every app here does for a client: work that ends as its name says, and a log of how it went.

A name is the client's and the scenario's: `owslib-success`.
"""

from __future__ import annotations

import os
from pathlib import Path

import anyio

from raincheck import report

LOG = Path(os.environ.get("RAINCHECK_TEST_LOG", os.devnull))
URL = os.environ.get("RAINCHECK_TEST_URL")
"""Where the server is, for those whose URLs are absolute."""

TIMEOUT = 5.0
"""Seconds that a handler may take."""

REFUSAL = "The gauge of this station is broken."
"""What a handler says that has failed."""


def note(line: str) -> None:
    with LOG.open("a") as log:
        log.write(line + "\n")


async def measure(name: str) -> float | None:
    """Measure the rain, which takes a second; None if that cannot be done."""
    scenario = name.rpartition("-")[2]
    note(f"{name} began")
    try:
        for step in range(10):
            report(step / 10, f"step {step} of 10")
            await anyio.sleep(60 if scenario in ("cancel", "timeout") else 0.1)
    except anyio.get_cancelled_exc_class():
        note(f"{name} cancelled")
        raise
    note(f"{name} finished")
    return None if scenario == "failure" else 12.5
