"""Dialects spell jobs on the wire; a middleware speaks one (`dialect=`)."""

from raincheck.dialects.base import Dialect
from raincheck.dialects.google import GoogleDialect
from raincheck.dialects.ogc import OGCDialect
from raincheck.dialects.openai import OpenAIDialect
from raincheck.dialects.plain import PlainDialect
from raincheck.dialects.replicate import ReplicateDialect

__all__ = [
    "Dialect",
    "GoogleDialect",
    "OGCDialect",
    "OpenAIDialect",
    "PlainDialect",
    "ReplicateDialect",
]
