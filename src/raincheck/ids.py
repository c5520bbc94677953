"""Job ids: unguessable, and able to say that another process minted them."""

from __future__ import annotations

import os
import re
import secrets
import zlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import b2a_base64
from enum import Enum

# Bytes of an id: random, of the process, and to check both; and how many letters that makes.
_RANDOM, _PROCESS, _CHECK = 16, 3, 3
_LENGTH = 30

# Ids whose random bits are drawn from the system at once: to ask it takes longer than all the rest.
_AT_ONCE = 64

_URL_SAFE = bytes.maketrans(b"+/", b"-_")
_SHAPE = re.compile(r"[A-Za-z0-9_-]{30}", re.ASCII)


def is_id(text: str) -> bool:
    """Whether a job could have this id: whether it has the length and the letters of one."""
    return _SHAPE.fullmatch(text) is not None


class Origin(Enum):
    """Where an id comes from."""

    HERE = "this process"
    ELSEWHERE = "another process with the same mount"
    UNKNOWN = "nobody knows"


class Ids:
    """Mints ids and recognises them.

    An id names no user, route or time. Its last letters say only whether the same process minted
    it, for the sake of those who run several workers over a store that they do not share.

    Args:
        mount: where the status routes are, which all processes of a deployment have in common.
    """

    def __init__(self, mount: str) -> None:
        self._salt = mount.encode()
        self._pid = 0
        self._tag = b""
        self._drawn: list[bytes] = []

    def mint(self) -> str:
        """A new id: 30 URL-safe letters with 128 random bits from `secrets`."""
        if self._pid != os.getpid():  # the first id, or the first after a fork
            self._process()
        if not self._drawn:
            bits = secrets.token_bytes(_AT_ONCE * _RANDOM)
            self._drawn = [bits[i : i + _RANDOM] for i in range(0, len(bits), _RANDOM)]
        unsigned = self._drawn.pop() + self._tag
        check = zlib.crc32(unsigned + self._salt).to_bytes(4)[:_CHECK]  # as `_check` has it
        return b2a_base64(unsigned + check)[:_LENGTH].translate(_URL_SAFE).decode()

    def origin(self, id: str) -> Origin:
        """Where an id comes from, to go by its marker. Any string is safe to ask about."""
        if not is_id(id):
            return Origin.UNKNOWN
        signed = urlsafe_b64decode(id + "==")
        unsigned, check = signed[:-_CHECK], signed[-_CHECK:]
        genuine = urlsafe_b64encode(signed)[:_LENGTH].decode() == id  # no other letters, no others
        marked, here = self._check(unsigned) == check, unsigned.endswith(self._process())
        if not (genuine and marked):  # only now, so that it takes as long
            return Origin.UNKNOWN
        return Origin.HERE if here else Origin.ELSEWHERE

    def _check(self, unsigned: bytes) -> bytes:
        # A checksum is enough: who fakes it is told to look for another process, and no more.
        return zlib.crc32(unsigned + self._salt).to_bytes(4)[:_CHECK]

    def _process(self) -> bytes:
        if self._pid != os.getpid():  # the first id, or the first after a fork
            self._pid = os.getpid()
            self._tag = secrets.token_bytes(_PROCESS)
            self._drawn = []
        return self._tag
