"""What of a request goes with the polls for its job, and to whom."""

from __future__ import annotations

from types import ModuleType

from raincheck.client.wire import Request, Response, origin_of

# What belongs to the one request, and not to a poll (RFC 9110 §8, §10.1, §13, §14; RFC 7240).
_OF_THE_REQUEST = frozenset(
    {
        *("host", "content-length", "content-type", "content-encoding", "content-language"),
        *("transfer-encoding", "expect", "prefer", "idempotency-key", "range", "if-range"),
        *("if-match", "if-none-match", "if-modified-since", "if-unmodified-since", "origin"),
        *("content-location", "content-digest", "digest", "cookie"),
    }
)

# What may go to another origin: nothing that could be a credential.
_FOR_ANYBODY = frozenset({"accept", "accept-language", "accept-encoding", "user-agent"})


class Credentials:
    """The fields and cookies of a request, for its own origin alone.

    Cookies that an origin sets on the way go back to that origin (scheme, host and port), which
    is narrower than RFC 6265, and to nobody else.

    Args:
        http: httpx2 or httpx.
        request: the request.
    """

    def __init__(self, http: ModuleType, request: Request) -> None:
        self._http = http
        self._request = request
        self._origin = origin_of(request.url)
        self._cookies: dict[object, dict[str, str]] = {
            self._origin: _pairs(request.headers.get("cookie", ""))
        }

    def ours(self, url: object) -> bool:
        """Whether a URL has the origin of the request."""
        return origin_of(url) == self._origin

    def keep(self, response: Response) -> None:
        """Take the cookies that it sets."""
        url = response.request.url
        jar = self._http.Cookies()
        jar.extract_cookies(response)
        self._cookies.setdefault(origin_of(url), {}).update(
            {cookie.name: cookie.value or "" for cookie in jar.jar}
        )

    def fields(self, url: object) -> list[tuple[str, str]]:
        """The fields of a poll of this URL."""
        ours = self.ours(url)
        carried = [
            (name, value)
            for name, value in self._request.headers.multi_items()
            if name not in _OF_THE_REQUEST and (ours or name in _FOR_ANYBODY)
        ]
        if cookies := self._cookies.get(origin_of(url)):
            carried.append(("cookie", "; ".join(f"{n}={v}" for n, v in cookies.items())))
        return carried

    def extensions(self, url: object) -> dict[str, object]:
        """The extensions of a poll: not what names a target, nor another host's name in TLS."""
        of_one = {"target"} if self.ours(url) else {"target", "sni_hostname"}
        return {
            name: value for name, value in self._request.extensions.items() if name not in of_one
        }


def _pairs(cookies: str) -> dict[str, str]:
    found = (pair.strip().partition("=") for pair in cookies.split(";") if "=" in pair)
    return {name: value for name, _, value in found}
