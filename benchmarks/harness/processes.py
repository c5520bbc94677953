"""Processes of a benchmark: pinned, spoken to in lines, and ended by whoever started them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

BENCHMARKS = Path(__file__).resolve().parents[1]

# Seconds that a server has to start, and that one answer may take.
PATIENCE = 60.0

# Seconds that a process has to end once it is told to.
GRACE = 10.0


@dataclass(frozen=True)
class Cores:
    """Who runs where: a server by itself, the load on another core, the rest anywhere.

    Queues' workers and their Redis are the rest: they may use both, which is what suits them best.
    """

    server: int | None = None
    load: int | None = None

    @classmethod
    def here(cls) -> Cores:
        """The first core and the last, where the system allows it."""
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        return cls(cores[0], cores[-1]) if len(cores) > 1 else cls()


class Child:
    """A process in a session of its own. Leaving it ends it, and all that it has started.

    Args:
        command: what to run, in the benchmarks' folder.
        core: the core to stay on; None: any.
        variables: of its environment, besides this process's own.
        log: where its standard error goes; None: to this process's own.
        gently: whether it has something to clear away: then its standard input is closed, and it
            is ended by force only if that does not help.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        core: int | None = None,
        variables: Mapping[str, str] | None = None,
        log: Path | None = None,
        gently: bool = False,
    ) -> None:
        def pin() -> None:
            if core is not None:
                os.sched_setaffinity(0, {core})

        self._log = log
        self._gently = gently
        with contextlib.ExitStack() as stack:
            errors = None if log is None else stack.enter_context(log.open("ab"))
            self._process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=BENCHMARKS,
                env={**os.environ, **(variables or {})},
                start_new_session=True,
                preexec_fn=pin,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        process = self._process
        if self._gently:
            with contextlib.suppress(OSError):
                process.stdin.close()  # type: ignore[union-attr]
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # also what it has started
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]

    @property
    def pid(self) -> int:
        return self._process.pid

    def pause(self) -> None:
        """Let it do nothing until `resume()`, so that it disturbs nobody."""
        os.killpg(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        os.killpg(self._process.pid, signal.SIGCONT)

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def hear(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Failed(f"a process of the benchmark has ended{self.said()}")
        return line

    def said(self) -> str:
        """The end of its log."""
        if self._log is None or not self._log.exists():
            return "; see above"
        return ":\n" + self._log.read_text(errors="replace")[-2000:]

    def processor_seconds(self) -> float:
        """Processor time spent so far; not a number where the system does not say."""
        try:
            stat = Path(f"/proc/{self._process.pid}/stat").read_text()
        except OSError:
            return float("nan")
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def memory(self, field: str = "VmRSS") -> int:
        """Bytes resident now, or with `VmHWM` at most since `forget_peak()`.

        Raises:
            OSError: a system without `/proc`.
        """
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
        raise OSError(f"/proc does not say {field}")

    def forget_peak(self) -> None:
        """Let the peak begin again (proc(5), `clear_refs`)."""
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")


class Failed(Exception):
    """A benchmark did not do what it had to; its figures would be worth nothing."""


class Server(Child):
    """An app under a real uvicorn, see `serve.py`.

    Args:
        app: `module:app`, or with settings `module:factory`.
        settings: what the factory is called with.
        python: of the environment that it runs in.
        others: as for `Child`.
    """

    def __init__(
        self,
        app: str,
        settings: Mapping[str, Any] | None = None,
        *,
        python: Path | str = sys.executable,
        core: int | None = None,
        variables: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> None:
        command = [python, BENCHMARKS / "serve.py", app]
        if settings is not None:
            command.append(json.dumps(settings))
        super().__init__(command, core=core, variables=variables, log=log)
        self.app = app
        try:
            self.port = int(self.hear())
        except BaseException:
            self.__exit__()
            raise
        self.answered = 0
        self.elapsed = 0.0

    def ask(
        self,
        method: str,
        path: str,
        body: str = "",
        patience: float = PATIENCE,
        fields: Sequence[str] = (),
    ) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own."""
        with socket.create_connection(("127.0.0.1", self.port), patience) as connection:
            connection.sendall(spell(method, path, body, "connection: close", *fields).encode())
            with connection.makefile("rb") as answer:
                first = answer.readline().split()
                if len(first) < 2:
                    raise Failed(f"{self.app} did not answer {method} {path}{self.said()}")
                lines = iter(answer.readline, b"\r\n")
                parts = (line.decode("latin-1").partition(":") for line in lines)
                headers = {name.lower(): value.strip() for name, _, value in parts}
                return int(first[1]), headers, answer.read()

    def start_job(self, path: str, body: str, *, finished: bool) -> str:
        """Post; returns the status URL, when it shows that the job runs or has finished."""
        status, headers, answer = self.ask("POST", path, body)
        if status != 202:
            raise Failed(f"{self.app} answered {status} to POST {path}: {answer!r}{self.said()}")
        wanted = 200 if finished else 202
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            status, _, answer = self.ask("GET", headers["location"])
            if status == wanted:
                return headers["location"]
            time.sleep(0.02)
        raise Failed(f"{self.app}: a job's status URL answered {status}: {answer!r}{self.said()}")


def spell(method: str, path: str, body: str = "", *fields: str) -> str:
    """A request on the wire."""
    lines = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1", "accept: */*", *fields]
    if body:
        lines += ["content-type: application/json", f"content-length: {len(body)}"]
    return "\r\n".join([*lines, "", body])
