"""The work that every peer does: next to nothing, so that what is measured is all the rest."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from hashlib import sha256
from typing import Any

ORDER = {"customer": 4711, "lines": [{"sku": f"sku-{n}", "n": n} for n in range(7)]}
"""What is posted: about 200 bytes as JSON."""

REPORT = {"rows": [{"sku": f"sku-{n:04}", "sold": n, "left": 1000 - n} for n in range(24)]}
"""The result of a report: about 1 KB as JSON."""


def fill(order: dict[str, Any]) -> dict[str, Any]:
    """The result of an order: small."""
    return {"lines": len(order["lines"])}


def id_of(number: int) -> str:
    """The id of a job that is in the store from the start: 30 letters, as raincheck mints them."""
    return urlsafe_b64encode(sha256(b"%d" % number).digest())[:30].decode()
