"""The pytest plugin of raincheck: what its testing kit bends, as fixtures for a whole test.

pytest imports this at every start, whether anything uses raincheck or not. So it stands beside the
package, and imports nothing of it before a fixture is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from raincheck.testing import Gate


@pytest.fixture
def raincheck_synchronous() -> Iterator[None]:
    """While the test runs, marked routes answer synchronously: `raincheck.testing.synchronous`."""
    from raincheck.testing import synchronous

    with synchronous():
        yield


@pytest.fixture
def raincheck_hold() -> Iterator[Gate]:
    """Jobs wait at their entry until the test opens this gate: `raincheck.testing.hold`."""
    from raincheck.testing import hold

    with hold() as gate:
        yield gate


@pytest.fixture
def raincheck_jump() -> Iterator[Callable[[float | timedelta], None]]:
    """Makes the clock jump, until the test ends: `raincheck_jump(3601)`; see `testing.later`."""
    from raincheck.testing import later

    with ExitStack() as jumps:
        yield lambda by: jumps.enter_context(later(by))
