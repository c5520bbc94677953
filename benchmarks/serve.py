"""Serve one app of the benchmarks, in a process of its own, on a free port that it prints.

    python benchmarks/serve.py peers.handwritten_app:app

A real uvicorn as it is run in production: uvloop, httptools, one worker, no access log. It ends
with whoever started it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import socket
import sys
import threading

import uvicorn


def load(name: str, settings: dict[str, object] | None) -> object:
    """`module:app`, or, with settings, what `module:factory` makes of them."""
    module, _, attribute = name.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    return found if settings is None else found(**settings)


def end_with_the_parent() -> None:
    """The parent never closes its end of the pipe while it lives."""
    sys.stdin.read()
    os._exit(0)


def main() -> None:
    app = load(sys.argv[1], json.loads(sys.argv[2]) if len(sys.argv) > 2 else None)
    with contextlib.suppress(ValueError, OSError):  # a thousand connections need files
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(4096)
        print(listening.getsockname()[1], flush=True)
        if not sys.stdin.isatty():
            threading.Thread(target=end_with_the_parent, daemon=True).start()
        config = uvicorn.Config(
            app,  # type: ignore[arg-type]
            loop="uvloop",
            http="httptools",
            access_log=False,
            log_level="warning",
            timeout_keep_alive=60,
        )
        uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
