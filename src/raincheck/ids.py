"""Job ids: unguessable, and able to say that another process minted them."""

from __future__ import annotations

import hashlib
import os
import secrets
from base64 import urlsafe_b64encode
from enum import Enum

# 16 random bytes, 3 of the process and 3 to check both: multiples of 3 come out of base64 without
# padding, the first part with its two padding signs cut off.
_RANDOM, _PROCESS, _CHECK = 22, 4, 4
_LENGTH = _RANDOM + _PROCESS + _CHECK


class Origin(Enum):
    """Where an id comes from."""

    HERE = "this process"
    ELSEWHERE = "another process of the same deployment"
    UNKNOWN = "nobody knows"


class Ids:
    """Mints ids and recognises them.

    An id names no user, route or time. Its last letters say only whether the same process minted
    it, for the sake of those who run several workers over a store that they do not share.

    Args:
        deployment: what all processes of one deployment have in common, e.g. the mount path.
    """

    def __init__(self, deployment: str) -> None:
        self._salt = deployment.encode()
        self._pid = 0
        self._tag = ""

    def mint(self) -> str:
        """A new id: 30 URL-safe letters with 128 random bits from `secrets`."""
        random = urlsafe_b64encode(secrets.token_bytes(16))[:_RANDOM].decode()
        return self._signed(random + self._process())

    def origin(self, id: str) -> Origin:
        """Where an id comes from, to go by its marker. Any string is safe to ask about."""
        if len(id) != _LENGTH or not id.isascii():
            return Origin.UNKNOWN
        body = id[:-_CHECK]
        if not secrets.compare_digest(self._signed(body), id):
            return Origin.UNKNOWN
        return Origin.HERE if body.endswith(self._process()) else Origin.ELSEWHERE

    def _signed(self, body: str) -> str:
        digest = hashlib.sha256(body.encode() + self._salt).digest()
        return body + urlsafe_b64encode(digest[:3]).decode()

    def _process(self) -> str:
        if self._pid != os.getpid():  # the first id, or the first after a fork
            self._pid = os.getpid()
            self._tag = urlsafe_b64encode(secrets.token_bytes(3)).decode()
        return self._tag
