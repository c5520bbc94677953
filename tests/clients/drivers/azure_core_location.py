"""azure-core for services that have `Location` alone: what is polled becomes the response."""

from __future__ import annotations

from typing import Any

from azure.core.polling.base_polling import LocationPolling, LROBasePolling

from tests.clients.drivers.azure_core import AzureCore
from tests.clients.drivers.harness import drive


class ByLocation(AzureCore):
    method = "PUT"

    def polling(self) -> LROBasePolling[Any, Any, Any]:
        return LROBasePolling(timeout=1, lro_algorithms=[LocationPolling()])


if __name__ == "__main__":
    drive(ByLocation)
