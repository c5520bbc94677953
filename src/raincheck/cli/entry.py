"""Where the command begins: it needs no extra to say that it needs one."""

from __future__ import annotations

import os
import sys

_NEEDED = frozenset({"click", "httpx2", "rich", "uvicorn"})
"""What the extra `cli` brings."""


def main() -> int:
    """Run the command line of this process.

    Returns:
        Its exit code, as `raincheck.cli.outcomes.Exit` has them.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # it is closed, as by `>&-`
            mode = "w" if number else "r"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    try:
        from raincheck.cli.commands import run

        return run()
    except KeyboardInterrupt:  # before there is anything that could be asked about
        return 130
    except ModuleNotFoundError as error:
        if error.name not in _NEEDED:
            raise
        message = (
            f"the command line needs {error.name}. Install it with: pip install raincheck[cli]"
        )
        sys.stderr.write(f"raincheck: {message}\n")
        return 1
