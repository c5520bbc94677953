"""The e-mail campaign of the examples: real SMTP, processes that are killed, no letter twice."""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiosmtpd.smtp import SMTP, Envelope, Session
from examples.email_campaign.mailboxes import Mailboxes

from tests.e2e.served import ROOT, Served, until

pytestmark = [pytest.mark.anyio, pytest.mark.real]

SEND = "/campaigns/november/send"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Relay(Mailboxes):
    """An SMTP server whose sender can be stopped in the middle of what it does.

    Attributes:
        came: how often a letter for an address came whole.
        holds: at which addresses it keeps silent, and when: `"before"` it has the letter, or
            `"after"`.
        held: those at which it does so.
        sender: what it says of that.
        hangs_up_after: letters, on each connection.
        pause: seconds that a letter takes.
        newest: letter that has come.
    """

    def __init__(self) -> None:
        super().__init__()
        self.came = Counter[str]()
        self.holds: dict[str, str] = {}
        self.held: list[str] = []
        self.sender = "250 2.1.0 OK"
        self.hangs_up_after = 10_000
        self.pause = 0.0
        self._on: Counter[int] = Counter()
        self._server: asyncio.Server | None = None
        self.port = 0
        self.newest: EmailMessage | None = None

    async def listen(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: SMTP(self, loop=loop), "127.0.0.1", self.port
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def __aenter__(self) -> Relay:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()

    async def handle_MAIL(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        envelope.mail_from = address
        return self.sender

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        await self._hold(address, "before")
        return await super().handle_RCPT(server, session, envelope, address, options)

    async def handle_DATA(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        if envelope.rcpt_tos[0].startswith("choosy"):
            return "554 5.7.1 That is spam"
        said = await super().handle_DATA(server, session, envelope)
        assert isinstance(envelope.content, bytes)
        self.newest = message_from_bytes(envelope.content, policy=policy.default)
        self.came.update(envelope.rcpt_tos)
        await anyio.sleep(self.pause)
        await self._hold(envelope.rcpt_tos[0], "after")
        self._on[id(session)] += 1
        if self._on[id(session)] >= self.hangs_up_after:
            assert isinstance(server.transport, asyncio.WriteTransport)
            asyncio.get_running_loop().call_later(0.01, server.transport.abort)
        return said

    async def _hold(self, address: str, when: str) -> None:
        if self.holds.get(address) == when:
            del self.holds[address]
            self.held.append(address)
            await anyio.sleep_forever()

    def is_silent(self, address: str) -> bool:
        return address in self.held

    def has_got(self, letters: int) -> bool:
        return self.came.total() >= letters

    def each_once(self, addresses: Any) -> bool:
        """Whether each of these mailboxes has one letter, and no other has any."""
        return {
            address: len(letters) for address, letters in self.letters.items()
        } == dict.fromkeys(addresses, 1)


def campaign(*names: str) -> dict[str, Any]:
    """A letter to each of them."""
    recipients = {f"{name}@example.com": name.title() for name in names}
    return {"subject": "November", "text": "Dear $name,\nit rains.\n", "recipients": recipients}


def readers(number: int) -> list[str]:
    return [f"r{each:03}" for each in range(number)]


def addresses(names: list[str]) -> list[str]:
    return [f"{name}@example.com" for name in names]


@asynccontextmanager
async def world(folder: Path, waits: str = "0.2 0.2 0.2") -> AsyncIterator[tuple[Relay, Served]]:
    """A relay, and the example, which sends by it."""
    async with (
        Relay() as relay,
        Served(
            "examples.email_campaign.app:app", folder, SMTP_PORT=str(relay.port), SMTP_WAITS=waits
        ) as served,
    ):
        yield relay, served


@pytest.mark.slow
async def test_a_sender_that_is_killed_at_any_step_sends_no_letter_twice(tmp_path: Path) -> None:
    names = readers(40)
    async with world(tmp_path) as (relay, served):
        steps = {"r007": "before", "r016": "after", "r039": "after"}
        relay.holds = {f"{name}@example.com": when for name, when in steps.items()}
        url = await served.accepted(SEND, json=campaign(*names))
        for name in steps:
            await until(partial(relay.is_silent, f"{name}@example.com"))
            served.kill()
        response = await served.outcome(url)
        assert (response.status_code, response.json()["counts"]) == (200, {"sent": 40})
        assert relay.each_once(addresses(names))
        # The window of SMTP: what it has taken, and its sender did not hear of, comes once more.
        again = {f"{name}@example.com" for name, when in steps.items() if when == "after"}
        assert {address for address, came in relay.came.items() if came > 1} == again
        tries = {each["address"]: each["tries"] for each in response.json()["letters"]}
        stopped = {f"{name}@example.com" for name in steps}
        assert tries == {each: 2 if each in stopped else 1 for each in addresses(names)}
        assert (await served.job(url))["runs"] == 4


@pytest.mark.slow
async def test_kills_at_random_moments_cost_one_letter_each_at_most(tmp_path: Path) -> None:
    names = readers(200)
    chance = random.Random(21)
    async with world(tmp_path) as (relay, served):
        relay.pause = 0.01
        url = await served.accepted(SEND, json=campaign(*names))
        for part in (1, 2):
            await until(partial(relay.has_got, 60 * part))
            await anyio.sleep(chance.random() / 20)
            served.kill()
        response = await served.outcome(url)
        assert (response.status_code, response.json()["counts"]) == (200, {"sent": 200})
        assert relay.each_once(addresses(names))
        assert relay.came.total() <= 200 + served.kills


async def test_each_recipient_gets_what_its_server_says_of_it(tmp_path: Path) -> None:
    async with world(tmp_path) as (_, served):
        url = await served.accepted(SEND, json=campaign("ann", "busy", "choosy", "nobody"))
        response = await served.outcome(url)
        assert response.status_code == 200
        assert response.json() == {
            "campaign": "november",
            "counts": {"refused": 2, "sent": 2},
            "letters": [
                {"address": "ann@example.com", "state": "sent", "tries": 1, "reply": "250"},
                {"address": "busy@example.com", "state": "sent", "tries": 2, "reply": "250"},
                {
                    "address": "choosy@example.com",
                    "state": "refused",
                    "tries": 1,
                    "reply": "554 5.7.1 That is spam",
                },
                {
                    "address": "nobody@example.com",
                    "state": "refused",
                    "tries": 1,
                    "reply": "550 5.1.1 No such mailbox",
                },
            ],
        }
        assert (await served.client.get("/campaigns/november")).json() == response.json()
        job = await served.job(url)
        assert (job["progress"], job["message"]) == (1.0, "2 sent, 2 refused, of 4")


async def test_a_letter_is_its_recipients(tmp_path: Path) -> None:
    async with world(tmp_path) as (relay, served):
        letter = {"subject": "Regen und Hägel", "text": "Liebe $name,\n" + "ä" * 1200 + " $9\n"}
        recipients = {"ann@EXAMPLE.com": "Änn", "ann@example.com": "Änn"}
        request = letter | {"recipients": recipients}
        response = await served.outcome(await served.accepted(SEND, json=request))
        assert (response.status_code, response.json()["counts"]) == (200, {"sent": 1})
    assert relay.newest is not None
    assert relay.newest["To"] == "ann@example.com"
    assert relay.newest["Subject"] == letter["subject"]
    text = relay.newest.get_content().replace("\r\n", "\n")
    assert text == letter["text"].replace("$name", "Änn")


@pytest.mark.slow
async def test_a_relay_that_hangs_up_is_called_again(tmp_path: Path) -> None:
    names = readers(23)
    async with world(tmp_path) as (relay, served):
        relay.hangs_up_after = 5
        response = await served.outcome(await served.accepted(SEND, json=campaign(*names)))
        assert (response.status_code, response.json()["counts"]) == (200, {"sent": 23})
        assert relay.each_once(addresses(names))


@pytest.mark.slow
async def test_what_a_relay_that_is_away_did_not_take_goes_with_the_next_request(
    tmp_path: Path,
) -> None:
    names = readers(3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # and does not listen
        port = silent.getsockname()[1]
        where = {"SMTP_PORT": str(port), "SMTP_WAITS": "0.1 0.1"}
        async with Served("examples.email_campaign.app:app", tmp_path, **where) as served:
            response = await served.outcome(await served.accepted(SEND, json=campaign(*names)))
            assert (response.status_code, response.json()["counts"]) == (
                503,
                {"waiting": 3},
            )
            silent.close()
            relay = Relay()
            relay.port = port
            async with relay:
                others = ["r000", "r001", "r003"]  # and whom it does not name it leaves alone
                response = await served.outcome(await served.accepted(SEND, json=campaign(*others)))
            assert response.status_code == 200
            assert response.json()["counts"] == {"sent": 3, "waiting": 1}
            assert relay.each_once(addresses(others))


@pytest.mark.slow
async def test_a_relay_that_does_not_like_the_sender_refuses_no_recipient(tmp_path: Path) -> None:
    async with world(tmp_path, waits="0.1") as (relay, served):
        relay.sender = "550 5.7.1 Who are you?"
        response = await served.outcome(await served.accepted(SEND, json=campaign("ann")))
        assert (response.status_code, response.json()["counts"]) == (503, {"deferred": 1})
        assert response.json()["letters"][0]["reply"] == relay.sender
        relay.sender = "250 2.1.0 OK"
        response = await served.outcome(await served.accepted(SEND, json=campaign("ann")))
        assert (response.status_code, response.json()["counts"]) == (200, {"sent": 1})


@pytest.mark.slow
async def test_of_two_jobs_for_one_campaign_the_newer_one_sends(tmp_path: Path) -> None:
    names = readers(60)
    async with world(tmp_path) as (relay, served):
        relay.pause = 0.02
        first = await served.accepted(SEND, json=campaign(*names))
        await until(partial(relay.has_got, 5))
        relay.pause = 0.5  # so that it goes on for half a minute, however busy the machine is
        second = await served.accepted(SEND, json=campaign(*names))
        relay.pause = 0.02
        assert (await served.outcome(first)).status_code == 409
        response = await served.outcome(second)
        assert (response.status_code, response.json()["counts"]) == (200, {"sent": 60})
        assert relay.each_once(addresses(names))
        assert relay.came.total() <= 61


@pytest.mark.slow
async def test_a_campaign_that_was_cancelled_stops_and_goes_on_when_it_is_asked_for(
    tmp_path: Path,
) -> None:
    names = readers(60)
    async with world(tmp_path) as (relay, served):
        relay.pause = 0.02
        url = await served.accepted(SEND, json=campaign(*names))
        await until(partial(relay.has_got, 5))
        relay.pause = 0.5  # so that it would go on for half a minute, however busy the machine is
        await served.client.post(f"{url}/cancel")
        assert (await served.outcome(url)).status_code == 410
        relay.pause = 0.02
        stopped_at = relay.came.total()
        assert stopped_at < 30
        await anyio.sleep(0.3)
        assert relay.came.total() == stopped_at
        response = await served.outcome(await served.accepted(SEND, json=campaign(*names)))
        assert (response.status_code, response.json()["counts"]) == (200, {"sent": 60})
        assert max(relay.came.values()) == 1


WRONG: tuple[dict[str, Any], ...] = (
    {"subject": "November\r\nBcc: eve@example.com"},
    *({"subject": f"Novem{end}ber"} for end in "\v\f\x1c\x1d\x1e\x85\u2028\u2029"),
    {"recipients": {}},
    {"recipients": {"ann@example.com\r\nRCPT TO:<eve@example.com>": "Ann"}},
    {"recipients": {"ann": "Ann"}},
    {"text": "\ud83d"},
    {"subject": "Nov\udc00ember"},
    {"recipients": {"ann@example.com": "\udfff"}},
    {"recipients": {"\ud800@example.com": "Ann"}},
)


async def test_what_is_no_campaign_is_422_at_once(tmp_path: Path) -> None:
    async with world(tmp_path) as (relay, served):
        for wrong in WRONG:
            content, headers = (
                json.dumps(campaign("ann") | wrong),
                {"content-type": "application/json"},
            )
            response = await served.client.post(SEND, content=content, headers=headers)
            assert response.status_code == 422, wrong
        assert (await served.client.get("/campaigns/november")).status_code == 404
        assert not relay.letters


@pytest.mark.slow
def test_the_example_prints_its_exchange() -> None:
    command = [sys.executable, "-m", "examples.email_campaign"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (run.returncode, run.stderr) == (0, "")
    url = r"/jobs/[A-Za-z0-9_-]{30}"
    mailboxes = "39 mailboxes have 39 letters; 1 came twice, and was dropped by its Message-ID\n"
    expected = (
        rf"POST {SEND}: 202, see ({url})\n"
        r"  running \d+% \d+ sent, [01] refused, of 40\n"
        r"kill -9 \d+, when slow@example\.com has the letter, and nobody was told so\n"
        r"(?:  queued.*\n|  running.*\n)*"
        r"  succeeded 100% 39 sent, 1 refused, of 40\n"
        r'GET \1: 200 {"refused": 1, "sent": 39}\n'
        r"  busy@example\.com: sent at try 2: 250\n"
        r"  nobody@example\.com: refused at try 1: 550 5\.1\.1 No such mailbox\n"
        r"  slow@example\.com: sent at try 2: 250\n"
        rf"{mailboxes}"
        rf'POST {SEND}, once more: 200 {{"refused": 1, "sent": 39}}\n'
        rf"{mailboxes}"
    )
    assert re.fullmatch(expected, run.stdout) is not None, run.stdout
