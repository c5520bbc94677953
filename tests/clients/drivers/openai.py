"""openai: background responses, which its users poll in a loop of their own."""

from __future__ import annotations

from typing import Any

from openai import OpenAI

from tests.clients.drivers.harness import Driver, Shown, drive, ended


class OpenAIResponses(Driver):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.client = OpenAI(base_url=f"{url}/v1", api_key="key")

    def begin(self, name: str) -> str:
        response = self.client.responses.create(model="rain-1", input=name, background=True)
        assert response.status in ("queued", "in_progress")
        assert response.output_text == ""
        return response.id

    def run(self, name: str) -> Any:
        return self.end(self.begin(name))

    def cancel(self, name: str) -> Any:
        id = self.begin(name)
        assert self.client.responses.cancel(id).id == id
        return self.end(id)

    def resume(self, name: str) -> Any:
        return type(self)(self.url).end(self.begin(name))

    def end(self, id: str) -> Any:
        response = ended(
            lambda: self.client.responses.retrieve(id),
            lambda response: response.status not in ("queued", "in_progress"),
        )
        assert response.id == id
        if response.status != "completed":
            raise Shown(response.error, response.error and response.error.message, response.status)
        return response.output_text


if __name__ == "__main__":
    drive(OpenAIResponses)
