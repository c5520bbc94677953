"""The load, as those who measure see it: this project's own client, or wrk for single routes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from harness.processes import BENCHMARKS, Child, Failed, Server

# Requests in one slice at most, so that the memory of a server that keeps jobs stays bounded.
MOST = 50_000

_SCRIPT = """
local requests = %s
local turn = 0
request = function()
  turn = turn %% #requests + 1
  return requests[turn]
end
done = function(summary, latency, all)
  local e = summary.errors
  local wrong = e.connect + e.read + e.write + e.status + e.timeout
  io.write(string.format("RESULT [%%d, %%d, %%d]\\n", summary.requests, summary.duration, wrong))
end
"""


class Load:
    """Puts load on servers, from a process on a core of its own.

    Args:
        core: the load's core; None: any.
        by: `"own"` or `"wrk"`.
    """

    def __init__(self, core: int | None, by: str = "own") -> None:
        self._core = core
        self.wrk = shutil.which("wrk") if by == "wrk" else None
        if by == "wrk" and self.wrk is None:
            raise SystemExit("error: --load wrk, but there is no wrk on the PATH")
        self._child = Child([sys.executable, BENCHMARKS / "harness/load.py"], core=core)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._child.__exit__(*exc_info)

    @property
    def name(self) -> str:
        """What makes the load, for the report."""
        own = "own client (plain sockets)"
        if self.wrk is None:
            return own
        return f"{wrk_version()} for single routes, in whole seconds; {own} for the rest"

    def ask(self, role: str, server: Server, **settings: Any) -> dict[str, Any]:
        """Have the client play a role of `load.py`.

        Raises:
            Failed: the server answered something else than it had to.
        """
        self._child.tell(json.dumps({"role": role, "port": server.port, **settings}))
        answer: dict[str, Any] = json.loads(self._child.hear())
        if "wrong" in answer:
            raise Failed(f"{server.app}: {answer['wrong']}{server.said()}")
        return answer

    def press(
        self,
        server: Server,
        requests: Sequence[str],
        *,
        status: int,
        clients: int,
        seconds: float,
        most: int = MOST,
    ) -> None:
        """A slice of load on single routes; the server counts what it answered, and how long."""
        if self.wrk is not None and most == MOST:
            answered, elapsed = self._press_by_wrk(server, requests, clients, seconds)
        else:
            answer = self.ask(
                "press",
                server,
                requests=requests,
                status=status,
                clients=clients,
                seconds=seconds,
                most=most,
            )
            answered, elapsed = answer["answered"], answer["elapsed"]
        server.answered += answered
        server.elapsed += elapsed

    def _press_by_wrk(
        self, server: Server, requests: Sequence[str], clients: int, seconds: float
    ) -> tuple[int, float]:
        """By wrk, which counts in whole seconds and tells 2xx from the rest only."""
        assert self.wrk is not None
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder) / "requests.lua"
            script.write_text(_SCRIPT % _lua(requests))
            command = [self.wrk, "-t1", f"-c{clients}", f"-d{max(1, round(seconds))}s"]
            command += ["-s", str(script), f"http://127.0.0.1:{server.port}/"]
            with Child(command, core=self._core) as wrk:
                line = ""
                while not line.startswith("RESULT "):
                    line = wrk.hear()
        answered, microseconds, wrong = json.loads(line.removeprefix("RESULT "))
        if wrong:
            raise Failed(f"{server.app}: wrk counted {wrong} wrong answers{server.said()}")
        return answered, microseconds / 1e6


def wrk_version() -> str:
    """As wrk itself says it."""
    said = subprocess.run(["wrk", "-v"], capture_output=True, text=True)
    return " ".join((said.stdout + said.stderr).split()[:2])


def _lua(texts: Sequence[str]) -> str:
    """A Lua table of strings; Lua reads JSON's escapes of ASCII texts as they are meant."""
    return "{" + ",".join(json.dumps(text) for text in texts) + "}"
