"""What a test bends, in all apps of the process: in which way, when and at what time jobs run.

The product has no switch for any of it. What is bent is replaced for the time of a block, so it
costs nothing outside of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import raincheck.acceptance.handoff as entries
from raincheck.acceptance.handoff import Handoff
from raincheck.decorator import Mark
from raincheck.errors import Release
from raincheck.jobs import Jobs
from raincheck.policy import Policy, Seconds, seconds
from raincheck.preferences import Decision, Preference
from raincheck.runtime.environment import Environment
from raincheck.runtime.ledger import Ledger
from raincheck.tasks import Stopper
from raincheck.testing.gates import Gate

_IN_PLACE = Decision(False, 0.0, None)

_ABSENT = object()


@contextmanager
def synchronous() -> Iterator[None]:
    """The block in which every marked route answers by itself, as if it were not marked.

    For tests of what an endpoint does: no 202, no job, and what the handler raises is raised where
    the app's other errors are. Routes marked by a path rule as well; whatever the client prefers.
    Jobs that were accepted before go on as they are.
    """

    def decide(policy: Policy, preference: Preference) -> Decision:
        return _IN_PLACE

    with _replaced(entries, "decide", decide):
        yield


@contextmanager
def hold() -> Iterator[Gate]:
    """The block in which the handler of every job that begins waits at its entry.

    Its job is accepted and runs, as clients see it; nothing of the handler has run. A cancel ends
    the waiting. A job of a path rule waits before its app is called.

    Yields:
        The gate: `open()` lets them go before the end of the block does.
    """
    enter, conduct = Handoff.enter, Handoff.conduct

    async def held_enter(handoff: Handoff, mark: Mark) -> Stopper | None:
        stopper = await enter(handoff, mark)
        if stopper is not None:
            try:
                await gate.wait()
            except BaseException as error:
                stopper.left(error)
                raise
        return stopper

    async def held_conduct(handoff: Handoff) -> None:
        if _by_rule(handoff) and handoff.job is not None and not handoff.in_place:
            with suppress(Release), handoff.stopping.inside():
                await gate.wait()
        await conduct(handoff)

    with (
        Gate() as gate,
        _replaced(Handoff, "enter", held_enter),
        _replaced(Handoff, "conduct", held_conduct),
    ):
        yield gate


def _by_rule(handoff: Handoff) -> bool:
    """Whether the route is a path rule's: no decorated endpoint can be called like a path."""
    return handoff.route is not None and "/" in handoff.route


@contextmanager
def later(by: Seconds) -> Iterator[None]:
    """The block in which the clock has jumped: jobs, keys and tombstones are that much older.

    What the event loop counts, such as a handler's timeout or its own sleeps, does not jump, nor
    does what other processes and a store's server go by.

    Args:
        by: seconds, or a `timedelta`; a little more than a `ttl` to see what comes after it. One
            block inside of another adds to it.
    """
    jump = seconds(by)
    with (
        _replaced(Jobs, "clock", _jumped(Jobs, "clock", jump)),
        _replaced(Environment, "clock", _jumped(Environment, "clock", jump)),
        _replaced(Ledger, "_clock", _jumped(Ledger, "_clock", jump)),
    ):
        yield


def _jumped(kind: type, name: str, jump: float) -> property:
    """A clock that each object of a class has, this much later.

    A property of the class goes before what its objects have by that name, and they keep it.
    """
    earlier = vars(kind).get(name)

    def clock(of: object) -> Callable[[], float]:
        own = vars(of)[name] if earlier is None else earlier.__get__(of)
        return lambda: own() + jump

    def keep(of: object, own: Callable[[], float]) -> None:
        vars(of)[name] = own

    return property(clock, keep)


@contextmanager
def _replaced(of: Any, name: str, new: object) -> Iterator[None]:
    """The block in which a module or a class has something else by this name."""
    before = vars(of).get(name, _ABSENT)
    setattr(of, name, new)
    try:
        yield
    finally:
        if before is _ABSENT:
            delattr(of, name)
        else:
            setattr(of, name, before)
