"""For tests: of apps that use raincheck, and of stores and runners written for it.

Tests of apps follow a 202 with `follow()`, look at its job with `assert_job()`, and bend what is
in their way: `synchronous()`, `hold()`, `later()`, which the pytest plugin has as fixtures, too.
`docs/testing.md` shows them at work.

Authors of a store, a runner or bodies subclass `StoreContract`, `RunnerContract` or
`BodiesContract` and give a fixture:

    @pytest.mark.anyio
    class TestMyStore(StoreContract):
        @pytest.fixture
        def store(self): return MyStore()
"""

from raincheck.lifespan import lifespan
from raincheck.testing.apart import BodiesContract
from raincheck.testing.bending import hold, later, synchronous
from raincheck.testing.following import assert_job, follow
from raincheck.testing.gates import Gate
from raincheck.testing.runners import RunnerContract
from raincheck.testing.stores import StoreContract

__all__ = [
    "assert_job",
    "BodiesContract",
    "follow",
    "Gate",
    "hold",
    "later",
    "lifespan",
    "RunnerContract",
    "StoreContract",
    "synchronous",
]
