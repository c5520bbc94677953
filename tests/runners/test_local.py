from __future__ import annotations

import pytest

from raincheck.runners.local import LocalRunner
from raincheck.testing import RunnerContract


@pytest.mark.anyio
class TestLocalRunner(RunnerContract):
    @pytest.fixture
    def runner(self) -> LocalRunner:
        return LocalRunner()
