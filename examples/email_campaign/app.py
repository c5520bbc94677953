"""An e-mail campaign: one POST, a 202, and one letter to each of its recipients.

    SMTP_HOST=relay.example.com uvicorn examples.email_campaign.app:app

The jobs and the ledger are files in the working directory.
"""

import hashlib
import json
import logging
import os
import smtplib
import time
from collections import deque
from email.message import EmailMessage
from email.utils import localtime
from pathlib import Path
from string import Template
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, Field

from raincheck import Limits, LongRunningMiddleware, long_running, raise_if_cancelled, report
from raincheck.stores.sqlite import SQLiteStore

from .ledger import Ledger, Outcome, Run, TakenOver

logger = logging.getLogger(__name__)

RELAY = (os.environ.get("SMTP_HOST", "127.0.0.1"), int(os.environ.get("SMTP_PORT", "25")))
SENDER = os.environ.get("SMTP_SENDER", "news@example.com")
LEDGER = Path("ledger.db")

# Seconds between rounds for those whose server has said "later": a greylist, a full disk.
WAITS = [float(wait) for wait in os.environ.get("SMTP_WAITS", "60 300 1200").split()]

# RFC 5321 §4.5.3.2.6: the answer to a letter may take ten minutes; who hangs up sooner sends twice.
PATIENCE = 600


def _normal(address: str) -> str:
    local, _, domain = address.rpartition("@")
    return f"{local}@{domain.lower()}"


# What browsers take for an address (HTML, `<input type=email>`): no quotes, no line breaks.
_ADDRESS = r"^[a-zA-Z0-9.!#$%&'*+/=?^_`{|}~-]+@[a-zA-Z0-9-]+(\.[a-zA-Z0-9-]+)+$"
Address = Annotated[str, Field(max_length=254, pattern=_ADDRESS), AfterValidator(_normal)]


class Campaign(BaseModel):
    """The letter, in which `$name` is the recipient's, and names by address."""

    # On one line, whatever Unicode takes for the end of one.
    subject: Annotated[str, Field(min_length=1, pattern=r"^[^\p{Cc}\p{Zl}\p{Zp}]+$")]
    text: str
    recipients: Annotated[dict[Address, str], Field(min_length=1, max_length=100_000)]


async def writable(request: Request) -> None:
    """Refuse what JSON can have, and no letter: half of a character."""
    try:
        json.dumps(await request.json(), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise HTTPException(422, "There is half of a character (a lone surrogate).") from None
    except ValueError:
        pass  # it is no JSON at all, as is said without this


app = FastAPI()


@app.post("/campaigns/{name}/send", dependencies=[Depends(writable)])
@long_running(on_interrupt="rerun", max_runs=20)  # what was sent is in the ledger
def send(name: str, campaign: Campaign) -> JSONResponse:
    with Ledger(LEDGER) as ledger:
        run = ledger.take_over(name, campaign.recipients)
        try:
            for wait in (0, *WAITS):
                pause(wait)
                post(run, name, campaign)
                if not run.open():
                    break
        except TakenOver as other:
            raise HTTPException(409, str(other)) from None
        # Those that are left are sent by the next POST of this campaign.
        return JSONResponse(summary(name, ledger), 503 if run.open() else 200)


@app.get("/campaigns/{name}")
def campaign_so_far(name: str) -> dict[str, Any]:
    with Ledger(LEDGER) as ledger:
        return summary(name, ledger)


def summary(name: str, ledger: Ledger) -> dict[str, Any]:
    letters = ledger.letters(name)
    if not letters:
        raise HTTPException(404, "There is no such campaign.")
    states = [letter["state"] for letter in letters]
    counts = {state: states.count(state) for state in sorted(set(states))}
    return {"campaign": name, "counts": counts, "letters": letters}


def post(run: Run, name: str, campaign: Campaign) -> None:
    """Try every letter that is open once, over as many connections as the relay makes of it."""
    letters = deque(run.open())
    while letters:
        left = len(letters)
        try:
            with smtplib.SMTP(*RELAY, timeout=PATIENCE) as smtp:  # then starttls(), login()
                while letters:
                    raise_if_cancelled()
                    address = letters[0]
                    if run.claim(address):
                        run.record(address, *handed_over(smtp, letter(name, campaign, address)))
                    letters.popleft()
                    tell(run)
        except OSError as error:  # as all of smtplib's errors are
            if len(letters) == left:
                logger.warning("the relay takes no letters: %r", error)
                return


def letter(name: str, campaign: Campaign, address: str) -> EmailMessage:
    """A letter: whenever it is made, and whoever makes it, under the same `Message-ID`."""
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = SENDER, address, campaign.subject
    message["Date"] = localtime()
    digest = hashlib.sha256(f"{name}\n{address}".encode()).hexdigest()[:40]
    message["Message-ID"] = f"<{digest}@{SENDER.rpartition('@')[2]}>"
    text = Template(campaign.text).safe_substitute(name=campaign.recipients[address])
    message.set_content(text, cte="quoted-printable")  # for servers without 8BITMIME as well
    return message


def handed_over(smtp: smtplib.SMTP, message: EmailMessage) -> tuple[Outcome, str]:
    """Hand a letter to the relay; what it says to that.

    Raises:
        OSError: it says nothing: it has hung up, and perhaps taken the letter.
    """
    try:
        smtp.send_message(message)
    except smtplib.SMTPRecipientsRefused as refused:
        ((code, text),) = refused.recipients.values()
    except (smtplib.SMTPSenderRefused, smtplib.SMTPDataError) as refused:
        code, text = refused.smtp_code, refused.smtp_error
        if isinstance(refused, smtplib.SMTPSenderRefused):  # which is not the recipient's fault
            return "deferred", told(code, text)
    else:
        return "sent", "250"
    return ("deferred" if code < 500 else "refused"), told(code, text)


def told(code: int, text: bytes | str) -> str:
    return f"{code} {text.decode(errors='replace') if isinstance(text, bytes) else text}"


def tell(run: Run) -> None:
    sent, refused = run.counts["sent"], run.counts["refused"]
    report((sent + refused) / run.total, f"{sent} sent, {refused} refused, of {run.total}")


def pause(seconds: float) -> None:
    """Sleep, and wake up if the job is cancelled."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        raise_if_cancelled()
        time.sleep(min(left, 0.2))


# A lease is how long a job counts as somebody's who is not heard of any more; 30 s by default.
app.add_middleware(LongRunningMiddleware, store=SQLiteStore("jobs.db"), limits=Limits(lease=2))
