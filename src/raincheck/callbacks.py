"""Callbacks: to whom the end of a job may be told, and how that is signed.

What may not be told to is decided twice: by the URL itself, when a request is accepted, and by the
addresses of its host, when it is delivered. Pure: nothing here asks a resolver or a server.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import ssl
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import NamedTuple
from urllib.parse import unquote

from raincheck.errors import ConfigurationError
from raincheck.policy import Check, Seconds

PORTS = (443, 8443)
"""Those that a URL may have without a pattern that permits it."""

LONGEST_URL = 2048
"""Characters that a URL has at most."""

_PREFIX = "whsec_"

# Seconds until the next try, as Standard Webhooks advises: five seconds, then minutes, up to a day.
_WAITS = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)

_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<target>(?:/[!-~]*)?)",
    re.IGNORECASE | re.ASCII,  # without the second "s" is also the long one, "k" also kelvin
)
_DEFAULT_PORTS = {"http": 80, "https": 443}


class Refused(Exception):
    """A URL, or an address of its host, that nothing is sent to; the message says why."""


class Unreachable(Exception):
    """No receiver has answered; the message says why, and nothing of addresses."""


class Answer(NamedTuple):
    """What a receiver has answered.

    Attributes:
        status: its status code.
        retry_after: seconds that it asks to be left alone; None if it does not.
    """

    status: int
    retry_after: float | None


class Target(NamedTuple):
    """Where a message goes.

    Attributes:
        scheme: `http` or `https`.
        host: a name or an address in lower case, without brackets.
        port: its port.
        path: what the request asks for: path and query.
    """

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def of(cls, url: str) -> Target:
        """What a URL names, if there is only one way to read it.

        Raises:
            Refused: there is not, or it has a user, a fragment or dot segments.
        """
        found = _URL.fullmatch(url) if len(url) <= LONGEST_URL else None
        if found is None:
            raise Refused("The URL is no http or https URL of plain ASCII.")
        scheme, target = found["scheme"].lower(), found["target"] or "/"
        if "\\" in target or "#" in target:
            raise Refused("The URL has a backslash or a fragment.")
        segments = unquote(target.partition("?")[0]).replace("\\", "/").split("/")
        # Also with parameters, which servers of servlets take away before they go up.
        if not {".", ".."}.isdisjoint(each.partition(";")[0] for each in segments):
            raise Refused("The path of the URL has dot segments.")
        port = int(found["port"] or _DEFAULT_PORTS[scheme])
        if not 0 < port < 65536:
            raise Refused("The port of the URL is none.")
        return cls(scheme, found["host"].lower().strip("[]"), port, target)

    @property
    def authority(self) -> str:
        """Host and port, as the field `Host` has them (RFC 9110 §7.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Callbacks:
    """That the end of jobs may be told by POST, and to whom; an argument of `Jobs`. Frozen.

    Messages are signed as Standard Webhooks 1.0 has it, by each of the secrets: while one is
    rotated, receivers that know either of two can verify.

    Attributes:
        secrets: one or two or more, each `whsec_` and the base64 of 24 to 64 random bytes; the
            newest first. They are in no record.
        allow: patterns like `"https://hooks.example.com/in/*"`: a `*` in path and query stands for
            anything, and scheme, host and port are exactly these. A client's URL is taken only if
            one of them matches; default none, so that no client's is. An author's URL needs one
            only if it is not public https on port 443 or 8443. What a pattern permits may have a
            private address.
        timeout: seconds for a delivery in all, from the resolver to the end of the answer.
            Default 15.
        deliveries: how often one message is tried at most, each time later, from five seconds to a
            day. Default 10, which takes three days.
        ssl_context: how receivers are verified; for those that have a private CA. Default None: by
            the usual ones.

    Raises:
        ConfigurationError: a value that cannot work; the message names the field.
    """

    secrets: Collection[str] = field(repr=False)
    allow: Collection[str] = ()
    timeout: Seconds = 15.0
    deliveries: int = 10
    ssl_context: ssl.SSLContext | None = None
    _keys: tuple[bytes, ...] = field(init=False, repr=False, default=())
    _patterns: tuple[tuple[Target, re.Pattern[str]], ...] = field(
        init=False, repr=False, default=()
    )

    def __post_init__(self) -> None:
        check = Check(self)
        check.seconds("timeout", above=0)
        check.integer("deliveries", at_least=1)
        if self.ssl_context is not None and not isinstance(self.ssl_context, ssl.SSLContext):
            check.fail("ssl_context", "is an ssl.SSLContext or None")
        if isinstance(self.allow, str) or not isinstance(self.allow, Collection):
            check.fail("allow", "is a collection of patterns, like ['https://example.com/hook/*']")
        object.__setattr__(self, "_keys", _keys_of(self.secrets))
        object.__setattr__(self, "_patterns", tuple(map(_pattern, self.allow)))

    def allows(self, target: Target) -> bool:
        """Whether a pattern matches."""
        return any(
            target[:3] == pattern[:3] and path.fullmatch(target.path) is not None
            for pattern, path in self._patterns
        )

    def check(self, url: str, *, asked: bool) -> Target:
        """Where a URL leads, if it is not visibly one that nothing is sent to.

        Args:
            url: the URL.
            asked: whether it is a client's.

        Raises:
            Refused: it is.
        """
        target = Target.of(url)
        if self.allows(target):
            return target
        if asked:
            raise Refused("No pattern permits the URL.")
        if target.scheme != "https" or target.port not in PORTS:
            raise Refused("The URL is not https on a usual port, and no pattern permits it.")
        address = address_of(target.host)
        if address is not None and not is_public(address):
            raise Refused("The address is not public, and no pattern permits the URL.")
        return target

    def check_addresses(self, target: Target, found: Iterable[str]) -> list[str]:
        """The addresses of a host, if all of them may be sent to.

        Raises:
            Refused: one of them is not public, and no pattern permits the URL; or there is none.
        """
        addresses = list(dict.fromkeys(found))
        if not addresses:
            raise Refused("The host has no address.")
        if not self.allows(target):
            for each in addresses:
                address = address_of(each)
                if address is None or not is_public(address):
                    raise Refused("The host has an address that is not public.")
        return addresses

    def sign(self, id: str, timestamp: int, body: bytes) -> bytes:
        """The value of `webhook-signature`: one signature by each secret."""
        signed = f"{id}.{timestamp}.".encode() + body
        digests = (hmac.digest(key, signed, "sha256") for key in self._keys)
        return b" ".join(b"v1," + base64.b64encode(digest) for digest in digests)

    def wait(self, tries: int) -> float | None:
        """Seconds until the next try after so many that have failed; None: there is none."""
        if tries >= self.deliveries:
            return None
        return float(_WAITS[min(tries, len(_WAITS)) - 1])


def _keys_of(secrets: Collection[str]) -> tuple[bytes, ...]:
    """What signatures are made with; no error tells anything of them."""
    cure = (
        "Callbacks(secrets=...): secrets is a list of secrets, each `whsec_` and the base64 of 24 "
        'to 64 random bytes; make one with: python -c "import base64, os; '
        "print('whsec_' + base64.b64encode(os.urandom(32)).decode())\""
    )
    if isinstance(secrets, str) or not isinstance(secrets, Collection) or not secrets:
        raise ConfigurationError(cure)
    keys = []
    for secret in secrets:
        if not isinstance(secret, str) or not secret.startswith(_PREFIX):
            raise ConfigurationError(cure)
        try:
            key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
        except (binascii.Error, ValueError):
            raise ConfigurationError(cure) from None
        if not 24 <= len(key) <= 64:
            raise ConfigurationError(cure)
        keys.append(key)
    return tuple(keys)


def _pattern(text: str) -> tuple[Target, re.Pattern[str]]:
    try:
        if not isinstance(text, str):
            raise Refused("The pattern is no text.")
        target = Target.of(text)
    except Refused as error:
        raise ConfigurationError(
            f"Callbacks(allow=[{text!r}]): {error} A pattern is scheme://host[:port]/path with * "
            "in the path, like 'https://hooks.example.com/in/*'"
        ) from None
    first, *rest = map(re.escape, target.path.split("*"))
    if not rest:
        return target, re.compile(first)
    *middle, last = rest
    # Each piece where it comes first: to try the others takes a power of the length of the URL.
    return target, re.compile(first + "".join(f"(?>.*?{each})" for each in middle) + ".*" + last)


# --- addresses ---------------------------------------------------------------------------------

Address = IPv4Address | IPv6Address

# What is not a public unicast address, by the IANA's registries of special purpose addresses, and
# what clouds serve their secrets at. Spelt out: `is_global` of one version of Python says otherwise
# than that of another.
_NOT_PUBLIC = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "168.63.129.16/32",  # Azure's host, from each of its machines
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/3",  # multicast, reserved and broadcast
            "2001::/23",  # but for Teredo, which is unwrapped
            "2001:db8::/32",
            "3fff::/20",
        ),
    )
)
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_MAPPED = IPv6Network("::ffff:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")
_6TO4 = IPv6Network("2002::/16")
_TEREDO = IPv6Network("2001::/32")


def address_of(host: str) -> Address | None:
    """The address that a host is written as; None for a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def is_public(address: Address) -> bool:
    """Whether an address is one that anybody on the Internet may have, whatever wraps it.

    The same on every version of Python.
    """
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return False
        wrapped = _unwrapped(address)
        if wrapped:
            return all(map(is_public, wrapped))
        if address not in _GLOBAL_UNICAST:
            return False
    return not any(address in network for network in _NOT_PUBLIC)


def _unwrapped(address: IPv6Address) -> tuple[IPv4Address, ...]:
    """The IPv4 addresses that what is sent to it ends at; none if it wraps none."""
    bits = int(address)
    if address in _MAPPED or address in _NAT64:
        return (IPv4Address(bits & 0xFFFFFFFF),)
    if address in _6TO4:
        return (IPv4Address(bits >> 80 & 0xFFFFFFFF),)
    if address in _TEREDO:  # a server, and a client with its bits turned
        return IPv4Address(bits >> 64 & 0xFFFFFFFF), IPv4Address(~bits & 0xFFFFFFFF)
    return ()
