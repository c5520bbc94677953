"""To whom a job's end may be told: by URL, by address, by pattern; and who can verify that."""

from __future__ import annotations

import base64
import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import anyio
import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from raincheck import Policy
from raincheck.callbacks import (
    Callbacks,
    Refused,
    Target,
    Unreachable,
    address_of,
    is_public,
)
from raincheck.errors import ConfigurationError
from raincheck.runtime.posting import Poster

OLD, NEW = ("whsec_" + base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2))

ADDRESSES = {
    "8.8.8.8": True,
    "1.1.1.1": True,
    "100.63.255.255": True,
    "172.32.0.1": True,
    "223.255.255.255": True,
    "2606:4700:4700::1111": True,
    "2a00:1450:4001:81b::200e": True,
    "::ffff:8.8.8.8": True,
    "64:ff9b::808:808": True,  # NAT64 of 8.8.8.8
    "2002:808:808::1": True,  # 6to4 of it
    "2001:0:808:808:0:0:f7f7:f7f7": True,  # Teredo, of a server and a client there
    "0.0.0.0": False,
    "0.1.2.3": False,
    "10.0.0.1": False,
    "100.64.0.1": False,
    "100.100.100.200": False,  # where Alibaba's cloud keeps its secrets
    "127.0.0.1": False,
    "127.255.255.254": False,
    "168.63.129.16": False,  # Azure's host
    "169.254.169.254": False,  # the metadata of most clouds
    "172.16.0.1": False,
    "172.31.255.255": False,
    "192.0.0.170": False,
    "192.0.2.1": False,
    "192.88.99.1": False,
    "192.168.1.1": False,
    "198.18.0.1": False,
    "198.51.100.1": False,
    "203.0.113.1": False,
    "224.0.0.1": False,
    "239.255.255.250": False,
    "240.0.0.1": False,
    "255.255.255.255": False,
    "::": False,
    "::1": False,
    "::7f00:1": False,  # IPv4-compatible
    "::ffff:127.0.0.1": False,
    "::ffff:169.254.169.254": False,
    "::ffff:0:127.0.0.1": False,  # IPv4-translated
    "64:ff9b::7f00:1": False,
    "64:ff9b::a9fe:a9fe": False,
    "64:ff9b:1::1": False,
    "64:ff9b:1::808:808": False,
    "100::1": False,
    "2001::1": False,  # Teredo of 0.0.0.0
    "2001:0:7f00:1:0:0:f7f7:f7f7": False,
    "2001:0:808:808:0:0:80ff:fffe": False,  # a client at 127.0.0.1
    "2001:2::1": False,
    "2001:20::1": False,
    "2001:db8::1": False,
    "2002:7f00:1::": False,
    "2002:a9fe:a9fe::1": False,
    "3fff::1": False,
    "5f00::1": False,
    "fc00::1": False,
    "fd00:ec2::254": False,  # the metadata of AWS
    "fe80::1": False,
    "fe80::1%eth0": False,
    "2606:4700:4700::1111%1": False,
    "fec0::1": False,
    "ff02::1": False,
    "ff0e::1": False,
}
"""Addresses, and whether anybody may be told there."""

ANSWERS = """
import json, sys
from ipaddress import ip_address
from raincheck.callbacks import is_public
print(json.dumps([is_public(ip_address(each)) for each in json.load(sys.stdin)]))
"""


@pytest.fixture(autouse=True)
def nobody_is_dialled(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("real"):
        return

    def dialled(*_: Any, **__: Any) -> None:
        raise AssertionError("something was connected to")

    monkeypatch.setattr(socket.socket, "connect", dialled)


def callbacks(*allow: str, **settings: Any) -> Callbacks:
    return Callbacks(secrets=[NEW], allow=allow, **settings)


@pytest.mark.parametrize(("address", "public"), ADDRESSES.items())
def test_who_is_public(address: str, public: bool) -> None:
    assert is_public(ip_address(address)) is public


@pytest.mark.real
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_every_version_of_python_says_the_same(version: str) -> None:
    python = shutil.which(f"python{version}")
    asked = None if python is None else subprocess.run([python, "-c", ""], capture_output=True)
    if asked is None or asked.returncode:  # a shim may stand for one that is not there
        pytest.skip(f"there is no Python {version}")
    packages = Path(anyio.__file__).parents[1]  # none of those that are needed is compiled
    done = subprocess.run(
        [str(python), "-c", ANSWERS],
        input=json.dumps([*ADDRESSES]),
        env={"PYTHONPATH": f"{Path(__file__).parents[1] / 'src'}:{packages}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [*ADDRESSES.values()]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "//example.com/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "https://",
        "https:///hook",
        "https://user@example.com/",
        "https://user:password@example.com/",
        "https://example.com#fragment",
        "https://example.com/#fragment",
        "https://example.com:0/",
        "https://example.com:65536/",
        "https://example.com:https/",
        "https://exämple.com/",
        "https://example.com/ä",
        "http\N{LATIN SMALL LETTER LONG S}://example.com/",
        "https://\N{LATIN SMALL LETTER LONG S}.example.com/",
        "https://\N{KELVIN SIGN}.example.com/",
        "https://example.com/\N{LATIN SMALL LETTER LONG S}",
        "https://example.com/a b",
        "https://example.com/\r\nx-a: b",
        "https://example.com\\@internal/",
        "https://example.com/a\\b",
        "https://example.com/../admin",
        "https://example.com/hook/..",
        "https://example.com/hook/%2e%2E/admin",
        "https://example.com/hook/..%2fadmin",
        "https://example.com/./hook",
        "https://example.com/hook/..;/admin",
        "https://example.com/hook/..%3ba=b/admin",
        "https://example.com?url",
        "https://[::1",
        "https://[::1%25eth0]/",
        "https://example.com/" + "x" * 2048,
    ],
)
def test_what_can_be_read_otherwise_is_refused(url: str) -> None:
    with pytest.raises(Refused):
        Target.of(url)
    for asked in (True, False):
        with pytest.raises(Refused):
            callbacks("https://example.com/*").check(url, asked=asked)


@pytest.mark.parametrize(
    ("url", "target", "authority"),
    [
        ("https://Example.com", ("https", "example.com", 443, "/"), "example.com"),
        ("https://example.com:443/a?b=/../c", ("https", "example.com", 443, "/a?b=/../c"), None),
        ("HTTP://example.com:8080/a", ("http", "example.com", 8080, "/a"), "example.com:8080"),
        ("https://[2606:4700::1]:8443/", ("https", "2606:4700::1", 8443, "/"), None),
    ],
)
def test_what_a_url_names(url: str, target: tuple[Any, ...], authority: str | None) -> None:
    found = Target.of(url)
    assert tuple(found) == target
    assert found.authority == (authority or url.partition("//")[2].partition("/")[0]).removesuffix(
        ":443"
    )


@pytest.mark.parametrize(
    ("url", "client", "author"),
    [
        ("https://hooks.example.com/in/7", True, True),
        ("https://hooks.example.com/in/", True, True),
        ("https://hooks.example.com/in/7?again=1", True, True),
        ("https://hooks.example.com:443/in/7", True, True),
        ("https://HOOKS.example.com/in/7", True, True),
        ("https://hooks.example.com/in", False, True),
        ("https://hooks.example.com/out/in/7", False, True),
        ("https://hooks.example.com:8443/in/7", False, True),
        ("http://hooks.example.com/in/7", False, False),
        ("https://xhooks.example.com/in/7", False, True),
        ("https://hooks.example.com.evil.example/in/7", False, True),
        ("https://hooks.example.com:9000/in/7", False, False),
        ("http://10.0.0.7:8080/hook", True, True),
        ("http://10.0.0.7:8080/hook?a", False, False),
        ("http://10.0.0.7:8081/hook", False, False),
        ("https://10.0.0.7/hook", False, False),
        ("https://[::1]/hook", False, False),
        ("https://[::ffff:10.0.0.7]/hook", False, False),
        ("https://8.8.8.8/hook", False, True),
    ],
)
def test_who_may_name_what(url: str, client: bool, author: bool) -> None:
    settings = callbacks("https://hooks.example.com/in/*", "http://10.0.0.7:8080/hook")
    for asked, may in ((True, client), (False, author)):
        if may:
            assert settings.check(url, asked=asked) == Target.of(url)
        else:
            with pytest.raises(Refused):
                settings.check(url, asked=asked)


@pytest.mark.parametrize(
    ("path", "may"),
    [
        ("/a/in/b/in/c/hook", True),
        ("/a/in/b/hook/hook", True),
        ("//in//hook", True),
        ("/a/in/hook", False),
        ("/a/in/b/hook/c", False),
        ("/a/out/b/hook", False),
        ("/in/" * 500 + "/hooks", False),
    ],
)
def test_a_pattern_of_several_stars_is_soon_compared(path: str, may: bool) -> None:
    target = Target.of(f"https://example.com{path}")
    began = time.perf_counter()
    assert callbacks("https://example.com/*/in/*/hook").allows(target) is may
    assert callbacks("https://example.com/*/*/*/*/hook").allows(target) is (
        path.endswith("/hook") and path.count("/") >= 5
    )
    assert time.perf_counter() - began < 0.5


def test_without_a_pattern_no_client_may_name_any() -> None:
    with pytest.raises(Refused, match="No pattern"):
        callbacks().check("https://example.com/hook", asked=True)


def test_every_address_of_a_name_has_to_be_public() -> None:
    target, settings = Target.of("https://example.com/"), callbacks("http://inside.example/")
    assert settings.check_addresses(target, ["8.8.8.8", "8.8.8.8", "1.1.1.1"]) == [
        "8.8.8.8",
        "1.1.1.1",
    ]
    for found in (["8.8.8.8", "127.0.0.1"], ["64:ff9b::7f00:1"], [], ["nonsense"]):
        with pytest.raises(Refused):
            settings.check_addresses(target, found)
    inside = Target.of("http://inside.example/")
    assert settings.check_addresses(inside, ["10.0.0.1"]) == ["10.0.0.1"]


@pytest.mark.parametrize("secrets", [[NEW], [NEW, OLD]])
def test_the_library_verifies_what_is_signed(secrets: list[str]) -> None:
    settings = Callbacks(secrets=secrets)
    body = json.dumps({"status": "succeeded", "ü": 1}).encode()
    timestamp = int(time.time())
    headers = {
        "webhook-id": "4Xn",
        "webhook-timestamp": str(timestamp),
        "webhook-signature": settings.sign("4Xn", timestamp, body).decode(),
    }
    for secret in (NEW, OLD):
        if secret in secrets:
            assert Webhook(secret).verify(body.decode(), headers) == json.loads(body)
        else:
            with pytest.raises(WebhookVerificationError):
                Webhook(secret).verify(body.decode(), headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(NEW).verify(body.decode() + " ", headers)


def test_later_and_later_until_it_is_given_up() -> None:
    settings = callbacks(deliveries=12)
    waits = [settings.wait(tries) for tries in range(1, 13)]
    assert waits[0] == 5.0
    assert waits[-4:] == [86400.0, 86400.0, 86400.0, None]
    assert [wait for wait in waits if wait] == sorted(wait for wait in waits if wait)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"secrets": []}, "secrets"),
        ({"secrets": NEW}, "secrets"),
        ({"secrets": ["geheim"]}, "secrets"),
        ({"secrets": ["whsec_!"]}, "secrets"),
        ({"secrets": ["whsec_" + base64.b64encode(b"x" * 23).decode()]}, "secrets"),
        ({"secrets": ["whsec_" + base64.b64encode(b"x" * 65).decode()]}, "secrets"),
        ({"secrets": [7]}, "secrets"),
        ({"allow": "https://example.com/"}, "allow"),
        ({"allow": ["example.com"]}, "allow"),
        ({"allow": ["https://*.example.com/"]}, "allow"),
        ({"allow": ["https://example.com:*/"]}, "allow"),
        ({"allow": [7]}, "allow"),
        ({"timeout": 0}, "timeout"),
        ({"deliveries": 0}, "deliveries"),
        ({"ssl_context": True}, "ssl_context"),
    ],
)
def test_what_cannot_work_is_named_with_its_cure(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named) as caught:
        Callbacks(**{"secrets": [NEW], **settings})
    assert "geheim" not in str(caught.value)


def test_no_secret_is_shown() -> None:
    settings = Callbacks(secrets=[NEW, OLD])
    assert NEW not in repr(settings)
    assert "_keys" not in repr(settings)


@pytest.mark.parametrize("callback", [7, True, ["https://example.com/"]])
def test_a_policy_names_a_url_or_a_function(callback: Any) -> None:
    with pytest.raises(ConfigurationError, match="callback"):
        Policy(callback=callback)


def test_without_its_extra_the_error_names_the_cure() -> None:
    source = (
        "import sys; sys.modules['httpx2'] = None\n"
        "from raincheck import Jobs\n"
        "from raincheck.callbacks import Callbacks\n"
        "Jobs()\n"
        f"Jobs(callbacks=Callbacks(secrets=[{NEW!r}]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=False
    )
    assert "pip install raincheck[callbacks]" in done.stderr.splitlines()[-1]


# --- posting, over real sockets ------------------------------------------------------------------


class Resolver:
    """Gives a name addresses, one list after another."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = [*answers]
        self.asked: list[str] = []

    def __call__(self, host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        found = [host]  # of an address, as trio asks for
        if address_of(host) is None:
            self.asked.append(host)
            found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in found]


@asynccontextmanager
async def listening(answer: Callable[[Any], Awaitable[None]]) -> AsyncIterator[int]:
    """A port at which each connection is given to `answer`."""

    async def serve(stream: Any) -> None:
        async with stream:
            await answer(stream)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, serve)
        with anyio.fail_after(20):
            yield listener.extra(anyio.abc.SocketAttribute.local_port)
        group.cancel_scope.cancel()


class Once:
    """Reads a request and answers it.

    Attributes:
        got: the requests.
    """

    def __init__(self, answer: bytes) -> None:
        self.got: list[bytes] = []
        self._answer = answer

    async def __call__(self, stream: Any) -> None:
        head, end, body = b"", b"", b""
        size = 1
        while len(body) < size:  # they may come in two pieces
            head, end, body = (head + end + body + await stream.receive(65536)).partition(
                b"\r\n\r\n"
            )
            found = re.search(rb"content-length: (\d+)", head.lower())
            size = int(found[1]) if found and end else 0 if end else 1
        self.got.append(head + end + body)
        await stream.send(self._answer)


@pytest.mark.real
@pytest.mark.anyio
async def test_a_resolver_that_changes_its_mind_is_asked_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """First a public address, then a private one: what was checked is what is connected to."""
    resolver = Resolver(["127.0.0.1"], ["10.0.0.1"])
    receiver = Once(b"HTTP/1.1 204 No Content\r\n\r\n")
    async with listening(receiver) as port:
        monkeypatch.setattr("raincheck.runtime.posting.socket.getaddrinfo", resolver)
        poster = Poster(callbacks(f"http://rebinding.example:{port}/"))
        target = Target.of(f"http://rebinding.example:{port}/")
        answer = await poster.post(target, {"webhook-id": "a"}, b"{}")
        await poster.aclose()
    assert answer.status == 204
    assert resolver.asked == ["rebinding.example"]
    assert f"host: rebinding.example:{port}".encode() in receiver.got[0].lower()
    assert receiver.got[0].endswith(b"\r\n\r\n{}")


@pytest.mark.real
@pytest.mark.anyio
async def test_one_private_address_among_public_ones_is_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "raincheck.runtime.posting.socket.getaddrinfo", Resolver(["8.8.8.8", "127.0.0.1"])
    )

    def dialled(*_: Any, **__: Any) -> None:
        raise AssertionError("something was connected to")

    poster = Poster(callbacks())
    monkeypatch.setattr(poster, "_send", dialled)
    with pytest.raises(Refused, match="not public"):
        await poster.post(Target.of("https://example.com/"), {}, b"")
    await poster.aclose()


@pytest.mark.real
@pytest.mark.anyio
@pytest.mark.parametrize("host", ["0x7f000001", "2130706433", "127.1", "localhost"])
async def test_other_spellings_of_this_machine_are_refused(host: str) -> None:
    poster = Poster(callbacks())
    with pytest.raises((Refused, Unreachable)):
        await poster.post(Target.of(f"https://{host}/"), {}, b"")
    await poster.aclose()


@pytest.mark.real
@pytest.mark.anyio
async def test_the_next_address_is_tried_where_nobody_listens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolver = Resolver(["127.0.0.2", "127.0.0.1"])
    receiver = Once(b"HTTP/1.1 302 Found\r\nlocation: /x\r\n\r\n")
    async with listening(receiver) as port:
        monkeypatch.setattr("raincheck.runtime.posting.socket.getaddrinfo", resolver)
        poster = Poster(callbacks(f"http://two.example:{port}/"))
        answer = await poster.post(Target.of(f"http://two.example:{port}/"), {}, b"")
        await poster.aclose()
    assert answer.status == 302
    assert len(receiver.got) == 1  # nobody follows it


@pytest.mark.real
@pytest.mark.anyio
async def test_an_answer_without_an_end_is_read_no_further_than_its_cap() -> None:
    sent = 0

    async def flood(stream: Any) -> None:
        nonlocal sent
        await stream.receive(65536)
        await stream.send(b"HTTP/1.1 200 OK\r\nretry-after: 7\r\n\r\n")
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            while True:
                await stream.send(b"x" * 65536)
                sent += 65536

    async with listening(flood) as port:
        poster = Poster(callbacks(f"http://127.0.0.1:{port}/"))
        answer = await poster.post(Target.of(f"http://127.0.0.1:{port}/"), {}, b"")
        await poster.aclose()
    assert answer == (200, 7.0)
    assert sent < 50_000_000
