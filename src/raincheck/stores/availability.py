"""Whether a store answers: found out by all who ask it, said once, and waited for together."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from raincheck.errors import BodyLost, IllegalTransition, StoreError, UnreadableRecord

logger: logging.Logger = logging.getLogger("raincheck")

T = TypeVar("T")

# Seconds between tries of one call, at first and at most.
_FIRST_RETRY, _LAST_RETRY = 0.1, 5.0

# Seconds between lines in the log about something that stays away. Within that time of the last one
# it is worth another line only when it has been away again for longer than a moment.
_REMINDER, _MOMENT = 60.0, 1.0


class Availability:
    """Whether something that is asked over a network or a disk answers.

    Whoever handles an error says so by `failed()`, and whoever has had an answer while it was
    `away` by `answered()`. The log has a line when it goes away, a reminder each minute, and a line
    when it is back, however many ask meanwhile.

    Args:
        what: its name in the log, e.g. "the store".

    Attributes:
        away: whether the last call failed.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self.reset()

    def reset(self) -> None:
        """Know nothing: another event loop has another clock."""
        self.away: bool = False
        self._told = False
        self._since = 0.0
        self._said = self._back = -math.inf
        self._answer: anyio.Event | None = None

    def failed(self, error: BaseException) -> None:
        """A call has failed, and whoever made it goes on without its answer.

        What the store has and nobody can read is no call that failed: whoever finds it says so.
        """
        if isinstance(error, UnreadableRecord | BodyLost):
            return
        now = anyio.current_time()
        if not self.away:
            self.away, self._told, self._since = True, False, now
        lasts = now - self._since >= _MOMENT
        if now - self._said >= _REMINDER or (lasts and not self._told):
            self._say(error, now)

    def _say(self, error: BaseException, now: float) -> None:
        reason = str(error) or repr(error)
        if self._told:
            logger.error(
                "%s has failed for %.0f seconds: %s", self._what, now - self._since, reason
            )
        else:
            # Where it is not away but wrong, whoever has written it wants to see where.
            trace = None if isinstance(error, StoreError | OSError) else error
            logger.error("%s fails, and is asked again: %s", self._what, reason, exc_info=trace)
        self._told, self._said = True, now

    def answered(self) -> None:
        """A call has been answered."""
        if self.away:
            self.away, self._back = False, anyio.current_time()
            if self._told:
                away = self._back - self._since
                logger.warning("%s answers again, after %.1f seconds", self._what, away)
        if self._answer is not None:
            self._answer.set()
            self._answer = None

    def back_for(self) -> float:
        """Seconds since it came back; none while it is away, for ever if it never was."""
        return 0.0 if self.away else anyio.current_time() - self._back

    async def back(self, within: float) -> bool:
        """Wait until anybody is answered, for some seconds at most; whether somebody was."""
        if self._answer is None:
            self._answer = anyio.Event()
        answer = self._answer
        with anyio.move_on_after(within):
            await answer.wait()
        return answer.is_set()

    async def patiently(
        self,
        ask: Callable[[], Awaitable[T]],
        *,
        first: float = _FIRST_RETRY,
        last: float = _LAST_RETRY,
        permanent: tuple[type[Exception], ...] = (IllegalTransition, UnreadableRecord),
    ) -> T:
        """Ask until there is an answer: again after a while, and as soon as anybody has one.

        Args:
            ask: makes the call.
            first: seconds from the first try to the second, if nobody is answered before.
            last: the same of late tries.
            permanent: what would be the same again, and is raised.
        """
        delay, hopes = first, True
        while True:
            began = anyio.current_time()
            try:
                return await ask()
            except permanent:
                raise
            except Exception as error:
                self.failed(error)
            rest = max(0.0, delay - (anyio.current_time() - began))  # it may have hung long enough
            delay = min(2 * delay, last)
            if hopes:  # where others are answered and this one is not, not every time
                hopes = not await self.back(rest)
            else:
                await anyio.sleep(rest)
                hopes = True
