"""The world outside: an SMTP server for the example, with mailboxes, and recipients of all kinds.

A mailbox takes a `Message-ID` once, as Cyrus does (`duplicatesuppression` of `imapd.conf`).
"""

import asyncio
from collections import Counter
from email import message_from_bytes

from aiosmtpd.smtp import SMTP, Envelope, Session


class Mailboxes:
    """What an aiosmtpd server does with letters.

    Attributes:
        letters: the `Message-ID` of what is in each mailbox, by address.
        doubles: how many letters were dropped, for they were there.
        slow_has_its_letter: the answer to it comes a minute later.
    """

    def __init__(self) -> None:
        self.letters: dict[str, list[str]] = {}
        self.doubles = 0
        self.slow_has_its_letter = asyncio.Event()
        self._asked = Counter[str]()

    async def handle_RCPT(  # noqa: N802 # aiosmtpd's name
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        self._asked[address] += 1
        if address.startswith("nobody"):
            return "550 5.1.1 No such mailbox"
        if address.startswith("busy") and self._asked[address] == 1:
            return "451 4.7.1 Greylisted, try again later"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        assert isinstance(envelope.content, bytes)
        name = message_from_bytes(envelope.content)["Message-ID"]
        for address in envelope.rcpt_tos:
            box = self.letters.setdefault(address, [])
            if name in box:
                self.doubles += 1
            else:
                box.append(name)
            if address.startswith("slow") and not self.slow_has_its_letter.is_set():
                self.slow_has_its_letter.set()
                await asyncio.sleep(60)
        return "250 2.0.0 OK"

    def __str__(self) -> str:
        letters = sum(map(len, self.letters.values()))
        came = f"{self.doubles} came twice, and was dropped by its Message-ID"
        return f"{len(self.letters)} mailboxes have {letters} letters; {came}"
