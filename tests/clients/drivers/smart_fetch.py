"""smart-fetch: `smart-fetch bulk`, a bulk export of FHIR resources.

It asks 408, 429, 500, 502, 503 and 504 again for fifteen minutes, whatever they are about. So that
a test need not wait for them, its event loop's clock runs sixty times as fast.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import selectors
import tempfile
from pathlib import Path
from typing import Any

from smart_fetch.cli.main import main
from smart_fetch.lifecycle import OutputMetadata

from tests.clients.drivers.harness import Driver, drive

SPEED = 60


class Selector(selectors.DefaultSelector):
    def select(self, timeout: float | None = None) -> Any:
        return super().select(None if timeout is None else timeout / SPEED)


class FastLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        super().__init__(Selector())

    def time(self) -> float:
        return super().time() * SPEED


class SmartFetch(Driver):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.folder = Path(tempfile.mkdtemp())

    def bulk(self, name: str, *arguments: str) -> None:
        with asyncio.Runner(loop_factory=FastLoop) as runner:
            runner.run(main(self.command(name, *arguments)))

    def command(self, name: str, *arguments: str) -> list[str]:
        url = f"{self.url}/fhir/{name}"
        return ["bulk", str(self.folder), "--fhir-url", url, "--type", "Patient", *arguments]

    def run(self, name: str) -> Any:
        try:
            self.bulk(name)
        except SystemExit as error:
            raise SystemExit(f"{error}\n{self.told()}") from error
        with gzip.open(self.folder / "Patient.001.ndjson.gz", "rt") as patients:
            return json.load(patients)

    def told(self) -> Any:
        """What the log of the export keeps of the answer."""
        lines = (self.folder / "log.ndjson").read_text().splitlines()
        return json.loads(lines[-1])["eventDetail"]["body"]

    def cancel(self, name: str) -> Any:
        self.leave(name)
        self.bulk(name, "--cancel")
        return self.run(name)

    def resume(self, name: str) -> Any:
        self.leave(name)
        return self.run(name)

    def leave(self, name: str) -> None:
        """Interrupt it once it has kept where its export is."""

        async def leave() -> None:
            bulk = asyncio.create_task(main(self.command(name)))
            while not OutputMetadata(str(self.folder)).get_bulk_status_url():
                assert not bulk.done()
                await asyncio.sleep(0.05 * SPEED)
            bulk.cancel()
            await asyncio.wait([bulk])
            assert bulk.cancelled()

        with asyncio.Runner(loop_factory=FastLoop) as runner:
            runner.run(leave())


if __name__ == "__main__":
    drive(SmartFetch, at_once=1)  # it has the terminal to itself
