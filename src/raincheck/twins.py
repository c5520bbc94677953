"""Twins: when a request is an earlier job, by its idempotency key or by sharing its run."""

from __future__ import annotations

from collections.abc import Callable

from raincheck.errors import IllegalTransition
from raincheck.handoff import Handoff
from raincheck.idempotency import (
    IDEMPOTENT,
    SHARED_RUN,
    coalesce_key,
    compare,
    fingerprint,
    parse_key,
    scoped,
)
from raincheck.job import Key
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

    def keys(self, handoff: Handoff, policy: Policy, owner: str | None) -> tuple[Key, ...]:
        """Under which keys a request may be an earlier job.

        Raises:
            Refusal: its idempotency key is malformed, or missing where one is required.
        """
        key = None
        if policy.idempotency != "off":
            required = policy.idempotency == "required"
            key = parse_key(handoff.fields, required=required)
        if key is None and not policy.coalesce:
            return ()
        request = handoff.capture()
        keys: tuple[Key, ...] = ()
        if key is not None:
            keys = (Key(scoped(IDEMPOTENT, owner, key), fingerprint(request)),)
        shared = None
        if callable(policy.coalesce):
            shared = policy.coalesce(request)
        elif policy.coalesce:
            shared = coalesce_key(request, self._varying.get(handoff.route or "", ()))
        if shared is not None:
            name = scoped(SHARED_RUN, owner, f"{handoff.route} {shared}")
            keys = (*keys, Key(name, lasting=False))
        return keys

    async def join(self, handoff: Handoff, keys: tuple[Key, ...]) -> tuple[Key, ...] | None:
        """Let a request be the job that one of its keys names, if there is one.

        Returns:
            None if it has become that job; else the keys under which it makes one of its own.

        Raises:
            KeyReused: that job came from another request.
            StoreError: whatever the store raises.
        """
        free: list[Key] = []
        for key in keys:
            found = await self._store.find(key.name)
            if found is None:
                pass
            elif found.job.expired(self._clock()):
                await self._ledger.bury(found.job, remember=True)  # no sweep has freed its keys yet
            elif key.lasting:
                compare(key, found.fingerprint)
                handoff.accepted, handoff.replayed = found.job, True
                return None
            else:
                try:
                    handoff.accepted = await self._ledger.join(found.job, free)
                    return None
                except IllegalTransition:  # it has just ended, or is about to
                    pass
            free.append(key)
        return tuple(free)

    def learn(self, route: str, headers: RawHeaders) -> None:
        """Remember what a route's responses vary by: later requests share a run by that."""
        self._varying.setdefault(route, set()).update(named_in_vary(headers))
