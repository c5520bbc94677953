"""The codes that Google's errors have: `google/rpc/code.proto`."""

from __future__ import annotations

_CODES = {
    "CANCELLED": 1,
    "INVALID_ARGUMENT": 3,
    "DEADLINE_EXCEEDED": 4,
    "NOT_FOUND": 5,
    "PERMISSION_DENIED": 7,
    "RESOURCE_EXHAUSTED": 8,
    "FAILED_PRECONDITION": 9,
    "ABORTED": 10,
    "OUT_OF_RANGE": 11,
    "UNIMPLEMENTED": 12,
    "INTERNAL": 13,
    "UNAVAILABLE": 14,
    "UNAUTHENTICATED": 16,
}

# By the HTTP status that says the same, as the comments in that file have it; and its like.
_NAMES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    409: "ABORTED",
    410: "NOT_FOUND",
    413: "OUT_OF_RANGE",
    422: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def name_of(status: int) -> str:
    """The name of the code that says most nearly what an HTTP status does."""
    return _NAMES.get(status, "INTERNAL" if status >= 500 else "FAILED_PRECONDITION")


def error(name: str, message: str) -> dict[str, object]:
    """The `error` of an operation (`google.rpc.Status`), as the only member."""
    return {"error": {"code": _CODES[name], "message": message}}
