"""The command `raincheck`, which Ctrl-C ends without a word also while it is being loaded."""

from __future__ import annotations

import os
import signal
from contextlib import suppress


def main() -> int:
    """Run the command line of this process.

    This stands beside the package, since to import anything of that takes a moment already.

    Returns:
        Its exit code, as `raincheck.cli.outcomes.Exit` has them.
    """
    given = signal.getsignal(signal.SIGINT)
    if given is signal.default_int_handler:  # else it is ignored, as in the background of a script
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from raincheck.cli import entry

    with suppress(ModuleNotFoundError):  # as it says itself
        import raincheck.cli.commands  # noqa: F401
    signal.signal(signal.SIGINT, given)
    return entry.main()
