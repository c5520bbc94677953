"""The name under which a store on a server keeps what is its own."""

from __future__ import annotations

import re

from raincheck.errors import ConfigurationError

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
