"""cuiman: a process of OGC API; its users poll in a loop of their own."""

from __future__ import annotations

from typing import Any

from cuiman import Client, ClientError
from gavicore.models import ProcessRequest

from tests.clients.drivers.harness import Driver, Shown, drive, ended


class Cuiman(Driver):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.client = Client(api_url=url)

    def begin(self, name: str) -> str:
        info = self.client.execute_process("measure", ProcessRequest(inputs={"name": name}))
        id: str = info.jobID
        return id

    def run(self, name: str) -> Any:
        return self.end(self.begin(name))

    def cancel(self, name: str) -> Any:
        id = self.begin(name)
        assert self.client.dismiss_job(id).jobID == id
        return self.end(id)

    def resume(self, name: str) -> Any:
        return type(self)(self.url).end(self.begin(name))

    def end(self, id: str) -> Any:
        ended(
            lambda: self.client.get_job(id),
            lambda info: info.status.value not in ("accepted", "running"),
        )
        try:
            return self.client.get_job_results(id).root
        except ClientError as error:
            raise Shown(error, error.api_error.detail, error.api_error.title) from error


if __name__ == "__main__":
    drive(Cuiman)
