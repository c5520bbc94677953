"""replicate: predictions; `run` waits for one."""

from __future__ import annotations

from typing import Any

from replicate.client import Client

from tests.clients.drivers.harness import Driver, Shown, drive

VERSION = "5c7d5dc6dd8bf75c1acaa8565735e7986bc5b66206b55cca93cb72c9bf15ccaa"


class Replicate(Driver):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.client = Client(api_token="token", base_url=url)

    def begin(self, name: str) -> Any:
        return self.client.predictions.create(version=VERSION, input={"name": name})

    def run(self, name: str) -> Any:
        return self.client.run(f"rain/gauge:{VERSION}", input={"name": name})

    def cancel(self, name: str) -> Any:
        prediction = self.begin(name)
        prediction.cancel()
        return self.end(prediction)

    def resume(self, name: str) -> Any:
        later = type(self)(self.url)
        return self.end(later.client.predictions.get(self.begin(name).id))

    def end(self, prediction: Any) -> Any:
        prediction.wait()
        if prediction.status != "succeeded":
            raise Shown(prediction, prediction.error, prediction.status)
        return prediction.output


if __name__ == "__main__":
    drive(Replicate)
