"""Twins: when a request is an earlier job, by its idempotency key or by sharing its run."""

from __future__ import annotations

from collections.abc import Callable

from raincheck.errors import IllegalTransition
from raincheck.handoff import Handoff
from raincheck.idempotency import (
    IDEMPOTENT,
    coalesce_key,
    compare,
    fingerprint,
    parse_key,
    scoped,
)
from raincheck.job import SHARED_RUN
from raincheck.ledger import Ledger
from raincheck.messages import RawHeaders, named_in_vary
from raincheck.policy import Policy
from raincheck.stores.base import Store


class Twins:
    """Finds the job that a request is one with.

    Args:
        store: where the jobs are.
        ledger: how they are changed.
        clock: seconds since the epoch.
    """

    def __init__(self, store: Store, ledger: Ledger, clock: Callable[[], float]) -> None:
        self._store = store
        self._ledger = ledger
        self._clock = clock
        self._varying: dict[str, set[str]] = {}

    def keys(
        self, handoff: Handoff, policy: Policy, owner: str | None
    ) -> tuple[tuple[str, ...], str | None]:
        """Under which keys a request may be an earlier job, and its fingerprint if it has any.

        Raises:
            Refusal: its idempotency key is malformed, or missing where one is required.
        """
        key = None
        if policy.idempotency != "off":
            required = policy.idempotency == "required"
            key = parse_key(handoff.fields, required=required)
        if key is None and not policy.coalesce:
            return (), None
        request = handoff.capture()
        keys: tuple[str, ...] = ()
        if key is not None:
            keys = (scoped(IDEMPOTENT, owner, key),)
        shared = None
        if callable(policy.coalesce):
            shared = policy.coalesce(request)
        elif policy.coalesce:
            shared = coalesce_key(request, self._varying.get(handoff.route or "", ()))
        if shared is not None:
            keys = (*keys, scoped(SHARED_RUN, owner, f"{handoff.route} {shared}"))
        return keys, None if key is None else fingerprint(request)

    async def join(
        self, handoff: Handoff, keys: tuple[str, ...], mark: str | None
    ) -> tuple[str, ...] | None:
        """Let a request be the job that one of its keys names, if there is one.

        Returns:
            None if it has become that job; else the keys under which it makes one of its own.

        Raises:
            KeyReused: that job came from another request.
            StoreError: whatever the store raises.
        """
        free: list[str] = []
        for key in keys:
            job = await self._store.find(key)
            if job is not None and job.expired(self._clock()):
                await self._ledger.bury(job, remember=True)  # no sweep has freed its keys yet
            elif job is not None and not key.startswith(SHARED_RUN):
                compare(job, mark)
                handoff.accepted, handoff.replayed = job, True
                return None
            elif job is not None:
                if mark is not None and job.fingerprint not in (None, mark):
                    continue  # it could not remember the key of this request as well
                try:
                    handoff.accepted = await self._ledger.shared(job, 1, tuple(free), mark)
                    return None
                except IllegalTransition:  # it has just ended, or is about to
                    pass
            free.append(key)
        return tuple(free)

    def learn(self, route: str, headers: RawHeaders) -> None:
        """Remember what a route's responses vary by: later requests share a run by that."""
        self._varying.setdefault(route, set()).update(named_in_vary(headers))
