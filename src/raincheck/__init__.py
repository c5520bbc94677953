"""202 Accepted for any ASGI app."""

from raincheck.decorator import long_running
from raincheck.errors import Cancelled, ConfigurationError, RaincheckError
from raincheck.job import Job, Progress, State
from raincheck.jobs import Jobs
from raincheck.middleware import LongRunningMiddleware
from raincheck.pages import Pages
from raincheck.policy import Failure, Limits, Policy, Retry
from raincheck.progress import current_job, raise_if_cancelled, report
from raincheck.sites import EXPOSE_HEADERS
from raincheck.stores.memory import MemoryStore

__version__ = "0.1.0"

__all__ = [
    "Cancelled",
    "ConfigurationError",
    "current_job",
    "EXPOSE_HEADERS",
    "Failure",
    "Job",
    "Jobs",
    "Limits",
    "long_running",
    "LongRunningMiddleware",
    "MemoryStore",
    "Pages",
    "Policy",
    "Progress",
    "RaincheckError",
    "raise_if_cancelled",
    "report",
    "Retry",
    "State",
]
