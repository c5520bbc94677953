"""What is fixed: a middleware's store, runner and limits, whatever event loop they are used on."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from raincheck.bodies.base import Bodies
from raincheck.callbacks import Callbacks
from raincheck.errors import ConfigurationError
from raincheck.job import Bounds, Job, State
from raincheck.policy import Limits, Policy, seconds
from raincheck.routing.policies import RoutePolicies, bounds
from raincheck.runners.base import Runner
from raincheck.runtime.ledger import Ledger
from raincheck.runtime.observers import Observers
from raincheck.stores.availability import Availability
from raincheck.stores.base import Store
from raincheck.stores.bounded import BoundedStore
from raincheck.stores.divided import DividedStore
from raincheck.tasks import TimeLimits


class Environment:
    """The store, the runner and the limits of one middleware, and what follows from them.

    Args:
        store: where jobs are kept.
        runner: where they run.
        limits: what all routes together keep to.
        clock: seconds since the epoch.
        observers: told of what becomes of jobs. Default: nobody.
        callbacks: to whom the end of jobs may be told; None: to nobody.
        bodies: where large bodies are kept; None: where the store says.

    Attributes:
        inner: the store as given.
        store: the same, with calls that end in time if processes share it, and large bodies apart
            if they are.
        bodies: where large bodies are kept; None: in the store.
        availability, engine: whether the store answers, and the runner's engine.
        runner, limits, clock, observers, callbacks: as given.
        poster: makes what posts, if there are callbacks.
        in_place: whether accepted handlers go on where they are.
        cancel_grace: seconds that cleanup code has before it is cancelled again.
        name: of this process, as the holder of its jobs.
        lease: seconds that a job is its own without renewal; None where no other could take it.
        ledger: how jobs change.
        policies: of the routes.

    Raises:
        ConfigurationError: the runner's workers could not see the jobs of this store.
        ImportError: what posts callbacks is not installed.
    """

    def __init__(
        self,
        store: Store,
        runner: Runner,
        limits: Limits,
        clock: Callable[[], float],
        observers: Observers | None = None,
        callbacks: Callbacks | None = None,
        bodies: Bodies | None = None,
    ) -> None:
        if not store.shared and not runner.in_place:
            raise ConfigurationError(
                "runner=...: it runs jobs in other processes, which cannot see those of "
                f"{type(store).__name__}; give store=... one that they share"
            )
        self.availability: Availability = Availability("the store")
        self.engine: Availability = Availability("the engine that runs jobs")
        timeout = seconds(limits.store_timeout)
        self._in_time = TimeLimits(timeout)
        self.bodies: Bodies | None = store.bodies if bodies is None else bodies
        self.inner = store
        self.store: Store = store
        if self.bodies is not None:
            self.store = DividedStore(store, self.bodies, timeout, self.availability)
        elif store.shared:
            self.store = BoundedStore(store, timeout, self.availability)
        self.runner = runner
        self.in_place: bool = runner.in_place
        self.limits = limits
        self.clock = clock
        self.cancel_grace: float = seconds(limits.cancel_grace)
        self.name: str = secrets.token_urlsafe(9)
        # Where no other process sees them nobody could take jobs over, and leases are spared.
        self.lease: float | None = seconds(limits.lease) if store.shared else None
        self.ledger: Ledger = Ledger(
            self.store,
            clock,
            seconds(limits.tombstone_ttl),
            availability=self.availability,
            holder=self.name,
            lease=self.lease,
            observers=observers,
        )
        self.observers: Observers = self.ledger.observers
        self.policies: RoutePolicies = RoutePolicies(runner, store, told=callbacks is not None)
        self.callbacks = callbacks
        self.poster: Callable[[], Any] | None = None if callbacks is None else _poster(callbacks)

    def know_nothing(self) -> None:
        """Forget whether store and engine answered: that was on another event loop, if ever."""
        self.availability.reset()
        self.engine.reset()

    def bounds(self, policy: Policy, state: State) -> Bounds | None:
        """What the store is to count; a process that is alone with it counts for itself."""
        return None if self.lease is None else bounds(policy, state)

    async def bring(self, job: Job) -> None:
        """Tell the engine of a job, in time. Raises whatever it raises."""
        with self._in_time():
            await self.runner.submit(job.id, job.queue)
        if self.engine.away:
            self.engine.answered()

    async def bring_again(self, job: Job) -> bool:
        """Tell the engine of a job once more, in time; if that fails, it is found abandoned."""
        try:
            await self.bring(job)
        except Exception as error:
            self.engine.failed(error)
            return False
        return True


def _poster(callbacks: Callbacks) -> Callable[[], Any]:
    """What makes a poster on an event loop; only here is needed what it is made of."""
    from raincheck.runtime.posting import Poster

    return lambda: Poster(callbacks)
