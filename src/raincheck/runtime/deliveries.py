"""Deliveries: those who are to be told of a job's end are told, by whichever process has time."""

from __future__ import annotations

import logging
import secrets
from collections import Counter
from contextvars import Context
from functools import partial
from typing import Protocol

import anyio
from cachetools import LRUCache

from raincheck.callbacks import Answer, Callbacks, Refused, Target, Unreachable
from raincheck.dialects.base import Dialect, Mount
from raincheck.job import Delivery, Job
from raincheck.policy import seconds
from raincheck.runtime.environment import Environment
from raincheck.tasks import Tasks

logger: logging.Logger = logging.getLogger("raincheck")

# Seconds between looks for messages that are due. The first look at one is at most that late.
_INTERVAL = 0.5

# Messages that a process takes at most, to deliver them or to wait for that, and with one call; and
# the requests that are open at once: half for what has failed, and for receivers that have not
# answered the last one, however many there are of them; half for all others.
_HELD, _PAGE, _OPEN = 2048, 64, 256

# Requests at once to one receiver. One that has left so many in a row without an answer is sent one
# at a time, and nothing waits for that: it would take the room of others.
_AT_ONCE, _SILENT = 16, 4

# Receivers of which is remembered how they were.
_KNOWN = 4096

# Seconds of a lease beyond the time that a delivery may take; in half of them it begins, or not.
_MARGIN = 60.0

# The longest `Retry-After` that is honoured.
_DAY = 86_400.0


class Post(Protocol):
    """Sends one message."""

    async def post(self, target: Target, headers: dict[str, str], body: bytes) -> Answer:
        """See `posting.Poster.post`."""

    async def aclose(self) -> None:
        """Close what is open."""


class Deliveries:
    """Delivers the messages that are owed, on one event loop.

    A delivery that another process has begun is that process's for the time of its lease. What has
    become of it is noted with the job, which stays what it is (law 5). Whatever dies between the
    request and the note, it is delivered again: at least once.

    Args:
        environment: where the jobs are.
        callbacks: to whom, and how.
        dialect: spells the messages.
        post: sends one.
        tasks: the tasks of the event loop.
    """

    def __init__(
        self,
        environment: Environment,
        callbacks: Callbacks,
        dialect: Dialect,
        post: Post,
        tasks: Tasks,
    ) -> None:
        self._environment = environment
        self._callbacks = callbacks
        self._dialect = dialect
        self._post = post
        self._tasks = tasks
        self._timeout = seconds(callbacks.timeout)
        self._lease = self._timeout + _MARGIN
        self._receivers: LRUCache[tuple[str, int], Receiver] = LRUCache(maxsize=_KNOWN)
        self._held = Counter[tuple[str, int]]()
        self._new = anyio.CapacityLimiter(_OPEN // 2)
        self._failed = anyio.CapacityLimiter(_OPEN // 2)
        self._one_less = anyio.Event()
        self._closing = False

    def begin(self) -> None:
        """Look for messages from now on."""
        self._tasks.spawn(self._watch, Context())

    async def close(self) -> None:
        """Take nothing more, but what ends with this process; and let what was begun end."""
        self._closing = True
        if not self._environment.store.shared:
            while await self._take():
                pass
        while self._held:
            await self._one_less.wait()
        await self._post.aclose()

    async def _watch(self) -> None:
        while not self._closing:
            if not await self._take():
                await anyio.sleep(_INTERVAL)

    async def _take(self) -> bool:
        """Take some of what is due, once there is room; whether there may be more."""
        while self._held.total() >= _HELD:
            await self._one_less.wait()
        room = min(_PAGE, _HELD - self._held.total())
        environment = self._environment
        try:
            jobs = await environment.ledger.take_deliveries(self._lease, room)
        except Exception as error:
            environment.availability.failed(error)
            return False
        for job in jobs:
            self._begin(job)
        return len(jobs) == room

    def _begin(self, job: Job) -> None:
        delivery = job.owed
        if delivery is None:
            return
        try:
            target = self._callbacks.check(delivery.url, asked=delivery.asked)
        except Refused as refused:  # but not by whoever has accepted it, who may take it up later
            later = self._failed_once_more(delivery, str(refused), None)
            self._tasks.spawn(partial(self._note, job, later), Context())
            return
        place = target.host, target.port
        receiver = self._receivers.setdefault(place, Receiver())
        if not (receiver.silent and self._held[place]):  # else it is found when its lease has ended
            self._held[place] += 1
            self._tasks.spawn(partial(self._conduct, job, delivery, target, receiver), Context())

    async def _conduct(
        self, job: Job, delivery: Delivery, target: Target, receiver: Receiver
    ) -> None:
        place = target.host, target.port
        lane = self._failed if delivery.tries or receiver.doubtful else self._new
        late = anyio.current_time() + _MARGIN / 2  # then another process may soon have it
        try:
            async with receiver.requests, lane:
                crowded = receiver.silent and self._held[place] > 1
                if not crowded and anyio.current_time() < late:
                    receiver.answered(await self._deliver(job, delivery, target))
        finally:
            self._held[place] -= 1
            if not self._held[place]:
                del self._held[place]
            self._one_less.set()
            self._one_less = anyio.Event()

    async def _deliver(self, job: Job, delivery: Delivery, target: Target) -> bool:
        """Try once, and note what has become of it; whether the receiver has answered."""
        wait, answered = None, False
        try:
            with anyio.fail_after(self._timeout):
                answer = await self._post.post(target, *self._message(job, delivery))
        except Refused as refused:
            await self._note(job, delivery.tried(error=str(refused)))
            return True  # which says nothing of the receiver
        except TimeoutError:
            error = f"The receiver has not answered within {self._timeout:g} seconds."
        except Unreachable as unreachable:
            error = str(unreachable)
        except Exception:  # whatever it is, it is tried again
            logger.exception("job %s: its callback could not be sent", job.id)
            error = "The message could not be sent."
        else:
            wait, answered = answer.retry_after, True
            error = f"The receiver answered {answer.status}."
            if 200 <= answer.status < 300:
                await self._note(job, delivery.tried())
                return True
            if answer.status == 410:
                await self._note(job, delivery.tried(error=error))
                return True
        await self._note(job, self._failed_once_more(delivery, error, wait))
        return answered

    def _failed_once_more(self, delivery: Delivery, error: str, asked: float | None) -> Delivery:
        wait = self._callbacks.wait(delivery.tries + 1)
        if wait is None:
            return delivery.tried(error=error)
        wait *= 1 + secrets.randbelow(100) / 1000  # those that have failed together do not come so
        wait = max(wait, min(asked or 0.0, _DAY))
        return delivery.tried(error=error, again_at=self._environment.clock() + wait)

    def _message(self, job: Job, delivery: Delivery) -> tuple[dict[str, str], bytes]:
        """Header fields and body: what the monitor says of the job."""
        shown = job._replace(delivery=None, response=job.response or delivery.outline)
        mount = Mount(delivery.base, absolute=not delivery.base.startswith("/"))
        reply = self._dialect.monitor(shown, mount, None)
        kinds = [value.decode() for name, value in reply.headers if name == b"content-type"]
        timestamp = int(self._environment.clock())
        headers = {
            "content-type": kinds[0] if kinds else "application/json",
            "user-agent": "raincheck",
            "webhook-id": job.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": self._callbacks.sign(job.id, timestamp, reply.body).decode(),
        }
        return headers, reply.body

    async def _note(self, job: Job, delivery: Delivery) -> None:
        """Have it noted; if the store does not take it in time, it is delivered again."""
        environment = self._environment
        if delivery.status == "failed":
            logger.warning(
                "job %s (%s): its callback was given up: %s",
                job.id,
                job.route,
                delivery.last_error,
                extra={"job": job.id, "route": job.route},
            )
        with anyio.move_on_after(_MARGIN / 2):
            await environment.ledger.patiently(partial(environment.ledger.note, job, delivery))


class Receiver:
    """What is known of one host and port.

    Attributes:
        requests: those that are open at once.
    """

    __slots__ = ("_unanswered", "requests")

    def __init__(self) -> None:
        self.requests: anyio.CapacityLimiter = anyio.CapacityLimiter(_AT_ONCE)
        self._unanswered = 0  # in a row

    @property
    def doubtful(self) -> bool:
        """Whether it has left the last request without an answer."""
        return self._unanswered > 0

    @property
    def silent(self) -> bool:
        """Whether it seems to answer nothing."""
        return self._unanswered >= _SILENT

    def answered(self, answered: bool) -> None:
        """A request has ended, with an answer or without."""
        self._unanswered = 0 if answered else self._unanswered + 1
