"""What stores on a server have in common: the name of what is theirs, and why they never work."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from raincheck.errors import ConfigurationError, StoreError

# What is no letter of a glob, of SQL or of a cluster's hash tag, and not longer than PostgreSQL's
# own names.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")


def checked(deployment: str) -> str:
    """The name, if it can be one.

    Raises:
        ConfigurationError: it cannot.
    """
    if not isinstance(deployment, str) or not _NAME.fullmatch(deployment):
        raise ConfigurationError(
            f"deployment={deployment!r}: give what runs on this store a name of its own, such as "
            "'shop': 1 to 63 letters, digits, '_', '-' and '.'"
        )
    return deployment


class NeverWorks(StoreError):
    """A server, or what it lets the store do, that time alone does not change."""


@contextmanager
def opening() -> Iterator[None]:
    """Make of what never works what it is at the start: a setting that cannot work."""
    try:
        yield
    except NeverWorks as error:
        raise ConfigurationError(str(error)) from error
