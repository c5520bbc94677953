"""Policies: which one holds for a route."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping

from raincheck.decorator import Mark
from raincheck.errors import ConfigurationError
from raincheck.job import Bounds, Job, State
from raincheck.policy import Policy, seconds
from raincheck.runners.base import Runner
from raincheck.stores.base import Store

logger: logging.Logger = logging.getLogger("raincheck")

_UNBOUNDED = Bounds()


class ByRoute(dict[str, Policy]):
    """The policies by the names of their routes; of one that is not known it is the default."""

    def __init__(self) -> None:
        super().__init__()
        self.default: Policy = Policy()

    def fall_back(self, default: Policy) -> None:
        """Take the policy of routes that are not known."""
        self.default = default

    def __missing__(self, route: str) -> Policy:
        return self.default


class _ByMark(dict[Mark, tuple[str, Policy]]):
    """The names and the policies of routes, by the marks of their endpoints.

    Args:
        meet: gives those of one that is not known yet.
    """

    def __init__(self, meet: Callable[[Mark], tuple[str, Policy]]) -> None:
        super().__init__()
        self._meet = meet

    def __missing__(self, mark: Mark) -> tuple[str, Policy]:
        found = self[mark] = self._meet(mark)
        return found


class RoutePolicies:
    """The policies of one middleware, by the names of their routes.

    A route is known by its name alone, here and in other processes: whoever needs a policy looks it
    up when it is needed, since a process may have jobs of a route before it has seen its endpoint.

    Args:
        runner: where jobs run; not every policy goes with every runner.
        store: where they are kept; nor with every store.
        told: whether anybody can be told of the end of a job.

    Attributes:
        by_route: the policies of the routes.
        of_mark: gives the name of a decorated endpoint's route, and the policy that it comes to.
            Raises ConfigurationError if that does not go with the runner, or if another endpoint
            has its name: in which order a process meets them is nothing to tell them apart by.
    """

    def __init__(self, runner: Runner, store: Store, *, told: bool = False) -> None:
        self.by_route: ByRoute = ByRoute()
        self._runner = runner
        self._store = store
        self._tells = told
        # Each request that enters one asks: those that are known are looked up without a call.
        self.of_mark: Callable[[Mark], tuple[str, Policy]] = _ByMark(self._meet).__getitem__
        self._met: set[str] = set()
        self._told: set[str] = set()
        self._unbounded: list[str] | None = None  # as long as no route comes
        self._rules: Collection[str] = ()
        self._complete: Callable[[], bool] = bool  # nothing was

    def bind(
        self, default: Policy, rules: Mapping[str, Policy], *, complete: Callable[[], bool]
    ) -> None:
        """Take the policy that holds where nothing else is said, and those of path rules.

        Args:
            default: the policy.
            rules: the path rules'.
            complete: whether all endpoints of the app were read by now.

        Raises:
            ConfigurationError: one of them does not go with the runner.
        """
        self.by_route.fall_back(default)
        self._rules = rules.keys()
        self._complete = complete
        for name, policy in rules.items():
            self._know(name, policy)

    def _meet(self, mark: Mark) -> tuple[str, Policy]:
        name = mark.name
        if name in self._met:
            raise ConfigurationError(
                f"two endpoints are called {name}, by which their jobs have to find them; give "
                "each a name of its own: @long_running(name=...)"
            )
        try:
            policy = self.by_route.default.with_settings(mark.settings)
        except ConfigurationError as error:  # each is one that can work, and both together are not
            raise ConfigurationError(f"{name}: {error}") from error
        policy = self._know(name, policy)
        self._met.add(name)
        return name, policy

    def _know(self, name: str, policy: Policy) -> Policy:
        self.by_route[name] = policy = self._checked(name, policy)
        self._unbounded = None
        return policy

    def knows(self, route: str) -> bool | None:
        """Whether this process has a route; None if only a request to the app can tell."""
        if route in self.by_route:
            return True
        # The names of path rules have a slash, and no others: all of them are known.
        return False if "/" in route or self._complete() else None

    def unbounded(self) -> Collection[str]:
        """The known routes of which any number of jobs may run, however old they are."""
        if self._unbounded is None:  # each job that an engine brings asks
            self._unbounded = [
                route
                for route, policy in self.by_route.items()
                if policy.max_wait_queued is None and bounds(policy, State.RUNNING) is None
            ]
        return self._unbounded

    def of(self, job: Job) -> Policy:
        """The policy of a job's route, as far as it is known here."""
        return self.by_route[job.route]

    def ruled(self, route: str) -> bool:
        """Whether a path rule made the route: the app has not seen what was accepted there."""
        return route in self._rules

    def ttl(self, job: Job) -> float:
        """Seconds that a job is kept when it has finished."""
        return seconds(self.of(job).ttl)

    def _checked(self, route: str, policy: Policy) -> Policy:
        if policy.callback is not None and not self._tells:
            raise ConfigurationError(
                f"{route}: callback=... has a message sent, and nothing here sends any; give "
                "Jobs(callbacks=Callbacks(secrets=[...]))"
            )
        if not self._runner.in_place:
            _check_elsewhere(route, policy)
        if policy.queue is not None:
            try:
                self._runner.check(policy.queue)
            except ConfigurationError as error:
                raise ConfigurationError(f"{route}: {error}") from error
            if self._runner.in_place:
                self._tell_once(f"{route}: queue={policy.queue!r}", "its runner has no queues")
        if policy.reruns and policy.retry is None and not self._store.shared:
            reason = "jobs end with the process, in which its store keeps them"
            self._tell_once(f"{route}: on_interrupt='rerun'", reason)
        return policy

    def _tell_once(self, setting: str, reason: str) -> None:
        """A setting has no effect here; no error, since it may have one where this is deployed."""
        if reason not in self._told:
            self._told.add(reason)
            logger.warning("%s has no effect, here and on other routes: %s", setting, reason)


def _check_elsewhere(route: str, policy: Policy) -> None:
    """Jobs run in other processes: not everything can be had there."""
    if policy.hold:
        raise ConfigurationError(
            f"{route}: hold=True keeps a live request waiting, and runner=... runs jobs in "
            "other processes; take one of them away"
        )
    for bound in ("max_queued", "max_queued_per_owner"):
        if getattr(policy, bound) == 0:
            raise ConfigurationError(
                f"{route}: {bound}=0 lets nothing wait, and with runner=... every job waits "
                "for a worker, if only for a moment; give at least 1"
            )


def bounds(policy: Policy, state: State) -> Bounds | None:
    """How many may be in this state on a route, in all processes together; None: any number."""
    if state is State.RUNNING:
        found = Bounds(policy.max_running, policy.max_running_per_owner)
    else:
        found = Bounds(policy.max_queued, policy.max_queued_per_owner)
    return None if found == _UNBOUNDED else found
