"""Estimates: how long the jobs of a route take, and when to look again at one that goes on.

When to look for an end that nobody announces is an inspection schedule. The best ones are found by
search (Barlow, Hunter and Proschan 1963); nearly as good is to look each time when the same share
of those that are left has ended (Munford and Shahani, Operational Research Quarterly 23, 1972).
That takes quantiles of the durations and nothing else. Here they are those of the newest jobs
themselves, so that outliers, routes of two speeds and those that change need no rules of their own.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Sequence

# How many of the newest jobs of a route are remembered, and how few say little of how much their
# durations differ.
WINDOW, FEW = 64, 8

# A job is looked at first when one in so many has ended, and then each time when one in so many of
# those that are left has.
_FIRST, _NEXT = 20, 6

# The least and the most that a pause between looks adds to the time that a job has run.
_LEAST, _MOST = 0.08, 0.35

UNKNOWN = 0.5
"""What a pause adds to it where nothing is known."""

# Nothing is known of jobs that take longer than all but one in so many did.
_BEYOND = 20

# Of a route of which few jobs are known they are taken to differ widely: log-normal, sigma 1. (The
# exponent is sigma by 1.7, as the logistic distribution is near the normal one.) By how many are
# made up: what each takes, in medians.
_MADE_UP = [
    [((nth + 0.5) / (more - nth - 0.5)) ** 0.6 for nth in range(more)] for more in range(FEW + 1)
]

# So many times as long as the median is the most that one job counts for in the mean: one that took
# an hour among others of seconds is no reason to expect a queue to take hours.
_OUTLIER = 10.0


class Durations:
    """How long the newest jobs of one route took.

    It takes the same room however many jobs there are, a few kilobytes.
    """

    __slots__ = ("_likely", "_own", "_recent", "_sorted")

    def __init__(self) -> None:
        self._own = 0  # those of this process, up to `FEW`
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []  # the same, by their length
        self._likely: list[float] = []  # the same, and while they are few what others may take

    @property
    def few(self) -> bool:
        """Whether this process has run so few jobs that others know more."""
        return self._own < FEW

    def learn(self, seconds: float) -> None:
        """A job of this process took so long."""
        recent, known = self._recent, self._sorted
        recent.append(seconds)
        insort(known, seconds)
        if self._own < FEW:
            self._own += 1
            self._likely = _likely(known)
        if len(recent) > WINDOW:
            del known[bisect_left(known, recent.popleft())]

    def suppose(self, durations: Sequence[float]) -> None:
        """Jobs of other processes took so long, the newest last; forget what was known before.

        Unless this process has run enough jobs by itself.
        """
        if self._own < FEW and durations:
            self._recent = deque(durations[-WINDOW:])
            self._sorted = sorted(self._recent)
            self._likely = _likely(self._sorted)

    @property
    def mean(self) -> float | None:
        """Seconds that a job takes of its place; None if nothing is known."""
        known = self._sorted
        if not known:
            return None
        most = _OUTLIER * max(0.0, known[len(known) // 2])
        usual = bisect_right(known, most)
        return (sum(known[:usual]) + most * (len(known) - usual)) / len(known)

    def running(self, elapsed: float) -> tuple[float, float | None]:
        """What to expect of a job that runs.

        Args:
            elapsed: seconds that it has run.

        Returns:
            Seconds until the next look, and seconds after which half of the jobs have ended that
            have run for so long: None if nothing is known of such jobs.
        """
        likely, known = self._likely, self._sorted
        ended = bisect_right(likely, elapsed)
        left = len(likely) - ended
        if left * _BEYOND < len(likely) or not left:
            pause = UNKNOWN * elapsed
        elif not ended:
            pause = likely[left // _FIRST] - elapsed
        else:
            pause = likely[ended + left // _NEXT] - elapsed
            least, most = _LEAST * elapsed, _MOST * elapsed
            pause = least if pause < least else most if pause > most else pause
        if known is not likely:
            ended = bisect_right(known, elapsed)
            left = len(known) - ended
        if left * _BEYOND < len(known) or not left:
            return pause, None
        return pause, known[ended + left // 2] - elapsed

    def queued(self, turns: float | None, width: int, age: float) -> tuple[float, float | None]:
        """What to expect of a job that waits.

        Args:
            turns: how many turns until its own, 1 for the next; None if that is not known.
            width: how many jobs run at once.
            age: seconds that it has waited.

        Returns:
            As `running()` does.
        """
        mean, (early, usual) = self.mean, self.running(0.0)
        if turns is None or mean is None or usual is None:
            return max(early, UNKNOWN * age), None
        left = turns * mean / width + usual
        # Several durations together, and its own, differ from what is usual by less than each does.
        sooner = math.hypot(math.sqrt(turns) * (mean - early) / width, usual - early)
        return max(left - sooner, early, _LEAST * age), left


def by_progress(pause: float, elapsed: float, fraction: float) -> tuple[float, float]:
    """What to expect of a job that goes on as it did, by what it says itself.

    Args:
        pause: seconds until the next look, by what others took.
        elapsed: seconds that it has run.
        fraction: how far it says it is, more than 0 and at most 1.

    Returns:
        As `Durations.running()` does.
    """
    left = elapsed * (1 - fraction) / fraction
    if left < pause:
        return max(left, _LEAST * elapsed), left
    return max(pause, min(left, _MOST * elapsed)), left


def _likely(known: list[float]) -> list[float]:
    """What the next job may take, as far as these few say; they are in order, and stay as they are.

    As many as there are fewer than `FEW` are made up, around the median.
    """
    if len(known) >= FEW:
        return known
    usual = 1.0 * known[len(known) // 2]  # a clock may give whole seconds, as an int
    return sorted([*known, *map(usual.__mul__, _MADE_UP[FEW - len(known)])])
