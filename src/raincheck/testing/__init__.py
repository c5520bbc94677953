"""For tests: of apps that use raincheck, and of stores and runners written for it.

An endpoint marked `@long_running` is a plain one without the middleware, so most tests of an app
need nothing from here. Those that want the 202 follow it with `follow()`.

Authors of a store or a runner subclass `StoreContract` or `RunnerContract` and give a fixture:

    @pytest.mark.anyio
    class TestMyStore(StoreContract):
        @pytest.fixture
        def store(self): return MyStore()
"""

from raincheck.lifespan import lifespan
from raincheck.testing.following import follow
from raincheck.testing.runners import RunnerContract
from raincheck.testing.stores import StoreContract

__all__ = ["RunnerContract", "StoreContract", "follow", "lifespan"]
