"""google-api-core: an operation, and the client of operations that it polls with."""

from __future__ import annotations

from typing import Any

from google.api_core import exceptions, operation, operations_v1
from google.auth.credentials import AnonymousCredentials
from google.auth.transport.requests import AuthorizedSession
from google.longrunning import operations_pb2
from google.protobuf import json_format, struct_pb2

from tests.clients.drivers.harness import Driver, drive


class Google(Driver):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        credentials: Any = AnonymousCredentials()
        self.session = AuthorizedSession(credentials)
        transport = operations_v1.OperationsRestTransport(host=url, credentials=credentials)
        self.operations = operations_v1.AbstractOperationsClient(transport=transport)

    def begin(self, name: str) -> Any:
        """As the generated clients do."""
        url = f"{self.url}/v1/projects/rain/stations/{name}:measure"
        answer = self.session.post(url, json={})
        answer.raise_for_status()
        return self.known(json_format.Parse(answer.content, operations_pb2.Operation()))

    def known(self, message: Any) -> Any:
        return operation.from_gapic(message, self.operations, struct_pb2.Struct)

    def run(self, name: str) -> Any:
        return dict(self.begin(name).result())

    def cancel(self, name: str) -> Any:
        found = self.begin(name)
        assert found.cancel()
        return dict(found.result())

    def resume(self, name: str) -> Any:
        begun = self.begin(name)
        try:
            begun.result(timeout=0.2)
        except (TimeoutError, exceptions.RetryError):
            later = type(self)(self.url)
            return dict(later.known(later.operations.get_operation(begun.operation.name)).result())
        raise AssertionError("it has not given up")


if __name__ == "__main__":
    drive(Google)
