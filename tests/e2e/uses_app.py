"""An example of a whole use, with shorter times: a lease of two seconds, and no long drain.

Reports take `MONTH` seconds longer for each month, so that a browser on a busy machine sees some.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable

from raincheck import Limits, LongRunningMiddleware, Policy
from raincheck.stores.sqlite import SQLiteStore

use = importlib.import_module(f"examples.{os.environ['USE']}.app")
if os.environ["USE"] == "pdf_report":
    write = use.paper.write

    def slowly(year: int, done: Callable[[int], None]) -> bytes:
        def later(month: int) -> None:
            done(month)
            time.sleep(float(os.environ.get("MONTH", "0")))

        result: bytes = write(year, later)
        return result

    use.paper.write = slowly

app = LongRunningMiddleware(
    use.api,
    policy=Policy(timeout=float(os.environ.get("TIMEOUT", "3600"))),
    store=SQLiteStore(os.environ.get("JOBS", "jobs.db")),
    limits=Limits(lease=2, drain_timeout=0.2),
)
