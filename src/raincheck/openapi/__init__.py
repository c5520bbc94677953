"""An app's OpenAPI document, with what its long-running operations really answer."""

from raincheck.openapi.documents import document, install

__all__ = ["document", "install"]
