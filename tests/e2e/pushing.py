"""The engine that calls a URL (`push_engine`), as a process of its own."""

from __future__ import annotations

import json
import sys
import urllib.request

from tests.e2e.durable import ROOT
from tests.servers import Server


class Engine(Server):
    """The engine, in a process of its own.

    Attributes:
        target: what it calls, once it has been started.
    """

    target = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "RAINCHECK_TEST_TARGET": self.target}

    def command(self) -> list[str]:
        command = [sys.executable, "-m", "uvicorn", "tests.e2e.push_engine:app"]
        return [*command, f"--port={self.port}", "--no-access-log", "--lifespan=off"]

    def counts(self) -> dict[str, int]:
        with urllib.request.urlopen(f"{self.url}/counts", timeout=10) as answer:
            found: dict[str, int] = json.load(answer)
        return found
