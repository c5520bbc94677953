"""How far a reader has to walk: bounds for the calls, files and returns of `benchmarks/walks.py`.

A change that makes a walk longer fails here. One that makes it shorter lowers the bounds in the
table with it; a bound that is more than twice what is found is too high to hold anything.
"""

from __future__ import annotations

import sys

import pytest
from benchmarks.walks import WALKS, walk

EAGER = sys.version_info >= (3, 12)
"""Whether a task takes its first steps in the midst of what starts it, which leads back there."""

# Name of the walk: the most calls of our functions, files that they stand in, returns to a file
# that was left before, and `get`s of the store.
BOUNDS = {
    "a request to its 202": (66, 18, 19, 0),
    "the same, queued": (105, 20, 34, 0),
    "its turn comes: a replay, while two jobs end": (196, 23, 109 if EAGER else 107, 0),
    "a poll, pending": (18, 13, 2, 1),
    "a poll, finished": (17, 11, 2, 1),
    "a cancel": (119, 16, 15, 0),
    "the handler stops: its outcome": (39, 12, 10, 0),
    "an unmarked request": (2, 2, 0, 0),
}


@pytest.mark.parametrize("name", WALKS)
def test_no_walk_is_longer_than_it_was(name: str) -> None:
    most = BOUNDS[name]
    found = walk(WALKS[name])
    taken = (found.calls, found.files, found.returns, found.gets)
    assert all(one <= bound for one, bound in zip(taken, most, strict=True)), (taken, most)
    assert found.calls > most[0] / 2, (taken, most)


def test_the_table_has_every_walk() -> None:
    assert BOUNDS.keys() == WALKS.keys()
