"""Webhook delivery of the examples: real receivers that fail, hang and answer late; real kills."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from email.utils import formatdate
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from examples.webhook_delivery.sending import Sender, asked_for
from standardwebhooks import Webhook

from raincheck.callbacks import Callbacks
from tests.doubles.receivers import SECRET, Sites
from tests.e2e.served import ROOT, Served, until

pytestmark = [pytest.mark.anyio, pytest.mark.real]

OLDER = "whsec_" + "b2xkZXIgb2xkZXIgb2xkZXIgb2xkZXIgb2xk"
"""A secret that is being replaced."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Told:
    """A request that a receiver got."""

    def __init__(self, at: float, head: bytes, body: bytes) -> None:
        self.at = at
        self.body = body
        first, *fields = head.decode().split("\r\n")
        self.path = first.split()[1]
        self.headers = {
            name.lower(): value for name, _, value in (each.partition(": ") for each in fields)
        }


class Receiver:
    """A server on a socket of its own, which answers what it is told to, byte for byte.

    Args:
        answers: one for each request, as they come; the last one for all others. What is empty is
            no answer: it keeps the connection open, and silent; None closes it.

    Attributes:
        told: what has come.
        port: its own.
    """

    def __init__(self, *answers: bytes | None) -> None:
        self.told: list[Told] = []
        self.port = 0
        self._answers = answers
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hooks/7"

    async def __aenter__(self) -> Receiver:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1")
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in [*self._open]:
            writer.transport.abort()
        await asyncio.sleep(0)

    def has_heard(self, times: int) -> bool:
        return len(self.told) >= times

    def ids(self) -> set[str]:
        """What it knows messages by."""
        return {each.headers["webhook-id"] for each in self.told}

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            head = (await reader.readuntil(b"\r\n\r\n"))[:-4]
            told = Told(time.time(), head, b"")
            told.body = await reader.readexactly(int(told.headers["content-length"]))
            self.told.append(told)
            answer = self._answers[min(len(self.told), len(self._answers)) - 1]
            if answer is not None:
                writer.write(answer)
                await writer.drain()
                if not answer.startswith(b"HTTP/1.1 2"):
                    await reader.read()  # until the other side has enough
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()


def answer(status: int, *fields: str, length: int = 0) -> bytes:
    lines = (f"HTTP/1.1 {status} X", f"content-length: {length}", *fields, "", "")
    return "\r\n".join(lines).encode()


HANGS = b""
DROPS = None


@asynccontextmanager
async def forwarding(folder: Path, *receivers: Receiver, **settings: str) -> AsyncIterator[Served]:
    """The example, which may deliver to these."""
    settings = {
        "WEBHOOK_SECRETS": f"{SECRET} {OLDER}",
        "WEBHOOK_ALLOW": " ".join(f"http://127.0.0.1:{each.port}/hooks/*" for each in receivers),
        "WEBHOOK_TIMEOUT": "5",  # which nobody exceeds because the machine is busy
        "WEBHOOK_FIRST_WAIT": "0.2",
        **settings,
    }
    async with Served("examples.webhook_delivery.app:app", folder, **settings) as served:
        yield served


def event(url: str, **members: Any) -> dict[str, Any]:
    return {"url": url, "type": "invoice.paid", "data": {"invoice": 7}} | members


async def handed_in(served: Served, url: str, key: str = "7") -> str:
    return await served.accepted("/webhooks", json=event(url), headers={"idempotency-key": key})


async def test_what_is_sent_is_signed_by_each_secret_at_each_try(tmp_path: Path) -> None:
    async with (
        Receiver(answer(503), answer(204)) as receiver,
        forwarding(tmp_path, receiver) as served,
    ):
        response = await served.outcome(await handed_in(served, receiver.url))
    (id,) = receiver.ids()
    assert (response.status_code, response.json()) == (
        200,
        {"webhook_id": id, "delivered": True, "said": "The receiver answered 204."},
    )
    first, second = receiver.told
    assert first.body == second.body
    sent = json.loads(first.body)
    assert (sent["type"], sent["data"]) == ("invoice.paid", {"invoice": 7})
    for told in (first, second):
        assert abs(int(told.headers["webhook-timestamp"]) - told.at) <= 10
        assert told.headers["content-type"] == "application/json"
        for secret in (SECRET, OLDER):
            assert Webhook(secret).verify(told.body, told.headers) == sent


BAD = {
    "fails": answer(503),
    "is not there yet": answer(404),
    "has moved": answer(307, "location: /hooks/elsewhere"),
    "hangs": HANGS,
    "hangs in the middle": b"HTTP/1.1 20",
    "hangs up": DROPS,
    "is no web server": b"220 mail.example.com ESMTP\r\n",
}


@pytest.mark.slow
async def test_receivers_that_did_not_take_it_are_told_again(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        receivers = {
            name: await stack.enter_async_context(Receiver(bad, bad, answer(204)))
            for name, bad in BAD.items()
        }
        told = forwarding(tmp_path, *receivers.values(), WEBHOOK_TIMEOUT="2")
        served = await stack.enter_async_context(told)
        jobs = {
            name: await handed_in(served, receiver.url, name.replace(" ", "-"))
            for name, receiver in receivers.items()
        }
        for name, url in jobs.items():
            response = await served.outcome(url)
            assert (response.status_code, response.json()["delivered"]) == (200, True), name
            assert [told.path for told in receivers[name].told] == ["/hooks/7"] * 3, name
            assert len(receivers[name].ids()) == 1, name


@pytest.mark.slow
async def test_one_that_has_taken_it_but_answers_too_late_can_drop_the_double(
    tmp_path: Path,
) -> None:
    """As each receiver in production does: it has it, and its sender does not know."""
    async with (
        Receiver(HANGS, answer(204)) as receiver,
        forwarding(tmp_path, receiver, WEBHOOK_TIMEOUT="2") as served,
    ):
        await served.outcome(await handed_in(served, receiver.url))
        assert len(receiver.told) == 2
        assert len(receiver.ids()) == 1
        await served.outcome(await handed_in(served, receiver.url, key="8"))
        assert len(receiver.ids()) == 2


@pytest.mark.slow
async def test_two_words_of_the_sender_are_one_webhook(tmp_path: Path) -> None:
    async with Receiver(answer(204)) as receiver, forwarding(tmp_path, receiver) as served:
        url = await handed_in(served, receiver.url)
        assert await handed_in(served, receiver.url) == url
        await served.outcome(url)
        assert await handed_in(served, receiver.url) == url
        assert len(receiver.told) == 1
        response = await served.client.post("/webhooks", json=event(receiver.url))
        assert response.status_code == 400  # without a key


@pytest.mark.slow
async def test_it_waits_longer_each_time_and_as_long_as_it_is_asked_to(tmp_path: Path) -> None:
    asked = answer(429, "retry-after: 2")
    bad = [answer(503)] * 5
    async with (
        Receiver(*bad, answer(204)) as patient,
        Receiver(asked, answer(204)) as busy,
        forwarding(tmp_path, patient, busy) as served,
    ):
        first = await handed_in(served, patient.url, "1")
        second = await handed_in(served, busy.url, "2")
        await served.outcome(first)
        await served.outcome(second)
    waits = [b.at - a.at for a, b in zip(patient.told, patient.told[1:], strict=False)]
    assert len(waits) == 5
    assert waits[4] > max(0.8, 2 * waits[0])  # 0.83, if each is 20 % shorter than on average
    assert busy.told[1].at - busy.told[0].at > 1.9


def test_it_is_asked_to_wait_by_seconds_or_by_a_date() -> None:
    assert asked_for("120") == 120.0
    assert 110 < asked_for(formatdate(time.time() + 120, usegmt=True)) < 121
    assert asked_for("Fri, 31 Dec 9999 23:59:59 GMT") > 10**9  # of which it is given six hours
    for nonsense in ("", "soon", "-5", "1e9", "²", "Fri, 31 Dec 99999 23:59:59 GMT"):
        assert asked_for(nonsense) == 0.0


@pytest.mark.slow
async def test_one_that_is_given_up_has_failed_and_says_why(tmp_path: Path) -> None:
    async with (
        Receiver(answer(410)) as gone,
        Receiver(answer(503)) as broken,
        forwarding(tmp_path, gone, broken, WEBHOOK_PATIENCE="3") as served,
    ):
        first = await handed_in(served, gone.url, "1")
        second = await handed_in(served, broken.url, "2")
        for url, status in ((first, 410), (second, 503)):
            response = await served.outcome(url)
            assert response.status_code == 502
            assert response.json()["said"] == f"The receiver answered {status}."
            assert (await served.job(url))["status"] == "failed"
    assert len(gone.told) == 1
    assert len(broken.told) > 1


@pytest.mark.slow
async def test_those_that_hang_do_not_hold_up_the_others(tmp_path: Path) -> None:
    async with (
        Receiver(HANGS) as silent,
        Receiver(answer(204)) as steady,
        forwarding(tmp_path, silent, steady, WEBHOOK_TIMEOUT="60") as served,
    ):
        for number in range(50):
            await handed_in(served, silent.url, f"silent-{number}")
        start = time.monotonic()
        response = await served.outcome(await handed_in(served, steady.url))
        assert response.json()["delivered"]
        assert time.monotonic() - start < 30


@pytest.mark.slow
async def test_a_sender_that_is_killed_tells_all_the_same_and_under_the_same_id(
    tmp_path: Path,
) -> None:
    async with (
        Receiver(HANGS, HANGS, answer(204)) as receiver,
        forwarding(tmp_path, receiver, WEBHOOK_TIMEOUT="30") as served,
    ):
        url = await handed_in(served, receiver.url)
        for times in (1, 2):
            await until(partial(receiver.has_heard, times))
            served.kill()
        response = await served.outcome(url)
        assert (response.status_code, response.json()["delivered"]) == (200, True)
        assert (await served.job(url))["runs"] == 3
    assert len(receiver.told) == 3
    assert len(receiver.ids()) == 1
    assert len({told.body for told in receiver.told}) == 1


@pytest.mark.slow
async def test_what_waits_for_its_next_try_when_its_sender_stops_is_not_forgotten(
    tmp_path: Path,
) -> None:
    async with (
        Receiver(answer(503, "retry-after: 2"), answer(204)) as receiver,
        forwarding(tmp_path, receiver) as served,
    ):
        url = await handed_in(served, receiver.url)
        await until(partial(receiver.has_heard, 1))
        served.kill()
        assert (await served.outcome(url)).json()["delivered"]
    assert len(receiver.ids()) == 1


REFUSED = {
    "http://example.com/hooks/7": "not https",
    "https://10.0.0.1/hooks/7": "not public",
    "https://[::1]/hooks/7": "not public",
    "http://169.254.169.254/latest/meta-data": "not https",
    "https://user@example.com/hooks/7": "no http or https URL",
    "file:///etc/passwd": "no http or https URL",
}


async def test_nothing_is_delivered_to_private_addresses(tmp_path: Path) -> None:
    async with Receiver(answer(204)) as receiver, forwarding(tmp_path) as served:
        for url, why in {**REFUSED, receiver.url: "not https"}.items():
            headers = {"idempotency-key": "7"}
            response = await served.client.post("/webhooks", json=event(url), headers=headers)
            assert response.status_code == 422, url
            assert why in response.json()["detail"][0]["msg"], url
        # What a name leads to is seen when it is delivered.
        response = await served.outcome(await handed_in(served, "https://localhost:8443/"))
        assert response.status_code == 502
        assert response.json()["said"] == "The host has an address that is not public."
        assert not receiver.told


async def test_what_json_has_no_word_for_is_refused_at_once(tmp_path: Path) -> None:
    async with Receiver(answer(204)) as receiver, forwarding(tmp_path, receiver) as served:
        for number in ("NaN", "-Infinity", "1e999"):
            body = json.dumps(event(receiver.url, data={"litres": ["?"]}))
            body = body.replace('"?"', number)
            headers = {"idempotency-key": "7", "content-type": "application/json"}
            response = await served.client.post("/webhooks", content=body, headers=headers)
            assert response.status_code == 422, number
            assert response.json() == {"detail": "The data has a number that is not finite."}
        for half in ({"data": {"a": "\ud83d"}}, {"data": {"\udc00": 1}}, {"type": "rain.\ud800"}):
            body = json.dumps(event(receiver.url, **half))
            response = await served.client.post("/webhooks", content=body, headers=headers)
            assert response.status_code == 422, half
            assert "half of a character" in response.json()["detail"]
        await served.outcome(await handed_in(served, receiver.url))  # its key is free
        assert len(receiver.told) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "taken"), [("tls.example", True), ("other.example", False)])
async def test_a_receiver_is_who_its_name_says_by_its_certificate(
    monkeypatch: pytest.MonkeyPatch, name: str, taken: bool
) -> None:
    """Connected to by the address that was checked, it is verified by its name."""
    certificate = str(ROOT / "tests" / "doubles" / "tls.example.pem")
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(certificate)

    async def resolved(*_: object, **__: object) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]

    monkeypatch.setattr("anyio.getaddrinfo", resolved)
    async with Sites(lambda address: 204, tls=theirs) as sites:
        guard = Callbacks(
            secrets=[SECRET],
            allow=[f"https://{name}:{sites.port}/"],
            ssl_context=ssl.create_default_context(cafile=certificate),
        )
        attempt = await Sender(guard, timeout=10).send("7", f"https://{name}:{sites.port}/", b"{}")
        assert attempt.delivered == taken
        assert len(sites.got) == taken


@pytest.mark.slow
def test_the_example_prints_its_exchange() -> None:
    command = [sys.executable, "-m", "examples.webhook_delivery"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (run.returncode, run.stderr) == (0, "")
    url = r"/jobs/[A-Za-z0-9_-]{30}"
    expected = (
        r"POST /webhooks without a key: 400\n"
        r"to http://169\.254\.169\.254/latest/meta-data: 422 Value error, The URL is not .+\n"
        rf"to steady: 202, see ({url})\n"
        rf"(?:to .+: 202, see {url}\n){{6}}"
        r"to steady under the same key: 202, see \1\n"
        r"to steady: 200 Delivered\. Told 1, taken 1\n"
        r"to fails: 200 Delivered\. Told 3, taken 1\n"
        r"to busy: 200 Delivered\. Told 2, taken 1\n"
        r"to hangs: 200 Delivered\. Told 2, taken 1\n"
        r"to gone: 502 The receiver answered 410\. Told 1, taken 0\n"
        r"to moved: 502 The receiver answered 307\. Told \d, taken 0\n"
        r"to https://localhost/: 502 The host has an address that is not public\. "
        r"Told 0, taken 0\n"
        rf"to late: 202, see {url}\n"
        r"kill -9 \d+, when late has taken its webhook, and has not answered\n"
        r"to late: 200 Delivered\. Told 2, taken 1\n"
    )
    assert re.fullmatch(expected, run.stdout) is not None, run.stdout
