"""Deduplication: when a request is an earlier job, by its idempotency key or by sharing its run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import anyio
import anyio.to_thread

from raincheck.acceptance.handoff import Handoff
from raincheck.errors import IllegalTransition, StoreUnavailable
from raincheck.idempotency import (
    ANYTHING,
    IDEMPOTENT,
    SHARED_RUN,
    coalesce_key,
    compare,
    fingerprint,
    host_of,
    parse_key,
    scoped,
)
from raincheck.job import Job, Key
from raincheck.messages import CapturedRequest
from raincheck.runtime.environment import Environment
from raincheck.stores.base import Found

# Seconds that a request waits to hear what became of an earlier one, how often it looks, and after
# how many its client is to come again.
_UNSURE, _LOOK, _RETRY_AFTER = 1.0, 0.2, 1


class Deduplication:
    """Finds the job that a request is one with.

    Args:
        environment: where the jobs are, and how they are changed.
        sure_of: whether a job is known to be accepted: it may have been refused after all.
    """

    def __init__(self, environment: Environment, sure_of: Callable[[Job], bool]) -> None:
        self._store = environment.store
        self._ledger = environment.ledger
        self._environment = environment
        self._sure_of = sure_of

    async def varying(self, handoff: Handoff) -> frozenset[str]:
        """What the responses of a request's route vary by.

        Of the store, each time: another process may have heard of more.

        Raises:
            StoreError: whatever the store raises.
        """
        assert handoff.route is not None
        return await self._store.learned(handoff.route)

    async def keys(
        self, handoff: Handoff, owner: str | None, varying: frozenset[str]
    ) -> tuple[Key, ...]:
        """Under which keys a request may be an earlier job; its body is read if there are any.

        Args:
            handoff: the request.
            owner: whose it is.
            varying: what the responses of its route vary by.

        Raises:
            Refusal: its idempotency key is malformed, or missing where one is required; or it is
                too large.
        """
        key, policy = None, handoff.policy
        assert handoff.decision is not None
        coalesce = policy.coalesce if handoff.decision.asynchronous else False
        if policy.idempotency != "off":
            required = policy.idempotency == "required"
            key = parse_key(handoff.fields, required=required)
        if key is None and not coalesce:
            return ()
        await handoff.drain()
        request, keys = await handoff.capture(), tuple[Key, ...]()
        compute = _at_once
        if request.apart is not None:
            request, compute = await _looked_through(handoff, request), _in_thread
        assert handoff.route is not None
        whose = owner, host_of(request), handoff.route
        if key is not None:
            found = await compute(partial(fingerprint, request))
            keys = (Key(scoped(IDEMPOTENT, *whose, key), found),)
        shared = None
        if callable(coalesce):
            shared = coalesce(replace(request, body=bytes(request.body), apart=None))
        elif coalesce and ANYTHING not in varying:
            shared = await compute(partial(coalesce_key, request, varying))
        if shared is not None:
            keys = (*keys, Key(scoped(SHARED_RUN, *whose, shared), lasting=False))
        return keys

    async def join(self, handoff: Handoff, keys: tuple[Key, ...]) -> bool:
        """Let a request be the job that one of its keys names, if there is one.

        Returns:
            Whether it has become that job; else it makes one of its own, under all of its keys.

        Raises:
            KeyReused: that job came from another request.
            StoreUnavailable: nobody knows yet what has become of that job.
            StoreError: whatever the store raises.
        """
        free: list[Key] = []
        for key in keys:
            found = await self._find(key)
            if found is None:
                pass
            elif found.job.expired(self._environment.clock()):
                await self._ledger.expire(found.job)  # no sweep has freed its keys yet
            elif key.lasting:
                compare(key, found.fingerprint)
                handoff.join(found.job, replayed=True)
                return True
            else:
                try:
                    handoff.join(await self._ledger.join(found.job, free))
                    return True
                except IllegalTransition:  # it has just ended, or is about to
                    pass
            free.append(key)
        return False

    async def _find(self, key: Key) -> Found | None:
        """The job that has a key, once it is known whether that was accepted."""
        late = anyio.current_time() + _UNSURE
        while (found := await self._store.find(key.name)) is not None:
            if self._sure_of(found.job):
                break
            if anyio.current_time() >= late:
                detail = "What became of an earlier request with this key is not known yet."
                raise StoreUnavailable(detail, retry_after=_RETRY_AFTER)
            with anyio.move_on_after(_LOOK):
                await self._store.changed(found.job.id, found.job.version)
        return found


async def _looked_through(handoff: Handoff, request: CapturedRequest) -> CapturedRequest:
    """A request whose body is apart, with all of it as if it were in memory."""
    content: Any = await handoff.upload.content()
    return replace(request, body=content)


async def _at_once(compute: Callable[[], str]) -> str:
    return compute()


async def _in_thread(compute: Callable[[], str]) -> str:
    return await anyio.to_thread.run_sync(compute)
