"""Work that holds a processor, as rendering does; imported by the process that does it."""

from __future__ import annotations

import os
import time


def computes(place: str) -> None:
    """Compute for half a minute, and write which process does."""
    with open(place, "w") as file:
        file.write(str(os.getpid()))
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        pass
