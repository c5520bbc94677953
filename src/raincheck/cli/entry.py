"""Where the command begins: it needs no extra to say that it needs one."""

from __future__ import annotations

import sys

_NEEDED = frozenset({"click", "httpx2", "rich", "uvicorn"})
"""What the extra `cli` brings."""


def main() -> int:
    """Run the command line of this process.

    Returns:
        Its exit code, as `raincheck.cli.outcomes.Exit` has them.
    """
    try:
        from raincheck.cli.commands import run

        return run()
    except ModuleNotFoundError as error:
        if error.name not in _NEEDED:
            raise
        message = (
            f"the command line needs {error.name}. Install it with: pip install raincheck[cli]"
        )
        sys.stderr.write(f"raincheck: {message}\n")
        return 1
