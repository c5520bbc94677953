"""OWSLib: a process of OGC API, executed asynchronously; its users poll in a loop of their own."""

from __future__ import annotations

from typing import Any

from owslib.ogcapi.processes import Processes

from tests.clients.drivers.harness import Driver, drive, ended


class OWSLib(Driver):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.processes: Any = Processes(url)

    def begin(self, name: str) -> str:
        self.processes.execute("measure", inputs={"name": name}, async_=True)
        location: str = self.processes.response_headers["Location"]
        return location.rpartition("/")[2]

    def run(self, name: str) -> Any:
        return self.end(self.begin(name))

    def cancel(self, name: str) -> Any:
        id = self.begin(name)
        assert self.processes._request("DELETE", f"jobs/{id}")["jobID"] == id
        return self.end(id)

    def resume(self, name: str) -> Any:
        return type(self)(self.url).end(self.begin(name))

    def end(self, id: str) -> Any:
        ended(
            lambda: self.processes._request(path=f"jobs/{id}"),
            lambda info: info["status"] not in ("accepted", "running"),
        )
        return self.processes._request(path=f"jobs/{id}/results")


if __name__ == "__main__":
    drive(OWSLib)
