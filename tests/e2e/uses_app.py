"""An example of a whole use, with shorter times: a lease of two seconds, and no long drain."""

from __future__ import annotations

import importlib
import os

from raincheck import Limits, LongRunningMiddleware, Policy
from raincheck.stores.sqlite import SQLiteStore

app = LongRunningMiddleware(
    importlib.import_module(f"examples.{os.environ['USE']}.app").api,
    policy=Policy(timeout=float(os.environ.get("TIMEOUT", "3600"))),
    store=SQLiteStore(os.environ.get("JOBS", "jobs.db")),
    limits=Limits(lease=2, drain_timeout=0.2),
)
