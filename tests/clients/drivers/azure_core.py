"""azure-core, as the clients that are generated on it: it polls at `Operation-Location`."""

from __future__ import annotations

from typing import Any

from azure.core import PipelineClient
from azure.core.polling import LROPoller
from azure.core.polling.base_polling import LROBasePolling
from azure.core.rest import HttpRequest

from tests.clients.drivers.harness import Driver, drive


class AzureCore(Driver):
    method = "POST"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.client: Any = PipelineClient(url)

    def polling(self) -> LROBasePolling[Any, Any, Any]:
        return LROBasePolling(timeout=1)

    def begin(self, name: str) -> tuple[LROPoller[Any], Any]:
        request = HttpRequest(self.method, f"{self.url}/stations/{name}")
        accepted = self.client.send_request(request, _return_pipeline_response=True)
        poller = LROPoller(self.client, accepted, document, self.polling())
        return poller, accepted.http_response.json()["links"]

    def run(self, name: str) -> Any:
        return self.begin(name)[0].result()

    def cancel(self, name: str) -> Any:
        poller, links = self.begin(name)
        cancelled = self.client.send_request(HttpRequest("POST", links["cancel"]))
        assert cancelled.status_code in (200, 202)
        return poller.result()

    def resume(self, name: str) -> Any:
        poller, _ = self.begin(name)
        poller.wait(0.3)
        token = poller.continuation_token()
        client: Any = PipelineClient(self.url)
        later = LROPoller.from_continuation_token(
            self.polling(), token, client=client, deserialization_callback=document
        )
        return later.result()


def document(response: Any) -> Any:
    return response.http_response.json()


if __name__ == "__main__":
    drive(AzureCore)
