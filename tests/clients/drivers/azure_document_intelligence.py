"""azure-ai-documentintelligence: a client that was generated for a service of Azure's."""

from __future__ import annotations

from typing import Any

from azure.ai.documentintelligence import DocumentIntelligenceClient
from azure.core.credentials import AzureKeyCredential
from azure.core.rest import HttpRequest

from tests.clients.drivers.harness import Driver, drive


class DocumentIntelligence(Driver):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.client: Any = DocumentIntelligenceClient(url, AzureKeyCredential("key"))

    def begin(self, name: str, **settings: Any) -> Any:
        return self.client.begin_analyze_document(
            name, b"a picture of a gauge", polling_interval=1, **settings
        )

    def run(self, name: str) -> Any:
        return self.begin(name).result().content

    def cancel(self, name: str) -> Any:
        answers: list[Any] = []
        poller = self.begin(name, raw_response_hook=lambda answer: answers.append(answer))
        url = answers[0].http_response.json()["links"]["cancel"]
        assert self.client.send_request(HttpRequest("POST", url)).status_code in (200, 202)
        return poller.result().content

    def resume(self, name: str) -> Any:
        poller = self.begin(name)
        poller.wait(0.3)
        token = poller.continuation_token()
        later = type(self)(self.url)
        return later.begin(name, continuation_token=token).result().content


if __name__ == "__main__":
    drive(DocumentIntelligence)
