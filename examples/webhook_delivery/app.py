"""Webhook delivery: hand in an event, get a 202, and it is delivered, however long that takes.

    WEBHOOK_SECRETS=whsec_... uvicorn examples.webhook_delivery.app:app

The jobs are a file in the working directory.
"""

import hashlib
import json
import os
import random
import time
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, Field, JsonValue

from raincheck import (
    Failure,
    Job,
    Jobs,
    Limits,
    LongRunningMiddleware,
    Retry,
    current_job,
    long_running,
)
from raincheck.callbacks import Callbacks, Refused
from raincheck.stores.sqlite import SQLiteStore
from raincheck.telemetry.logging import LoggingTelemetry

from .sending import Sender

# Signs, by the newest secret and by those that it replaces, and says whom one may deliver to:
# public addresses by https, and what these patterns permit, like http://10.0.0.7:8080/hooks/*
GUARD = Callbacks(
    secrets=os.environ["WEBHOOK_SECRETS"].split(),
    allow=os.environ.get("WEBHOOK_ALLOW", "").split(),
)
SENDER = Sender(GUARD, timeout=float(os.environ.get("WEBHOOK_TIMEOUT", "15")))

# Seconds between tries at first and at last, and after which a webhook is given up.
FIRST_WAIT = float(os.environ.get("WEBHOOK_FIRST_WAIT", "5"))
LONGEST_WAIT = 6 * 3600.0
PATIENCE = float(os.environ.get("WEBHOOK_PATIENCE", "259200"))


def permitted(url: str) -> str:
    try:
        GUARD.check(url, asked=False)
    except Refused as refused:
        raise ValueError(str(refused)) from None
    return url


class Webhook(BaseModel):
    """An event, as Standard Webhooks has it, and who is told."""

    url: Annotated[str, AfterValidator(permitted)]
    type: Annotated[str, Field(pattern=r"^\w+(\.\w+)*$", max_length=100)]
    data: dict[str, JsonValue]


async def writable(request: Request) -> None:
    """Refuse what Python reads, and receivers need not: NaN, Infinity, half of a character."""
    try:
        content: Any = await request.json()
    except ValueError:
        return  # it is no JSON at all, as is said without this
    try:
        json.dumps(content, allow_nan=False, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise HTTPException(422, "The data has half of a character (a lone surrogate).") from None
    except ValueError:
        raise HTTPException(422, "The data has a number that is not finite.") from None


def pause(failure: Failure) -> float:
    """Seconds until the next try: each time twice as many, or as many as the receiver asks for."""
    wait = min(FIRST_WAIT * 2.0 ** (failure.runs - 1), LONGEST_WAIT) * random.uniform(0.8, 1.2)
    return max(wait, float(dict(failure.headers).get(b"retry-after", b"0")))


app = FastAPI()


@app.post("/webhooks", dependencies=[Depends(writable)])
@long_running(
    idempotency="required",
    retry=Retry(on=503, max_runs=1000, backoff=pause),  # a run is a try
    max_request_size=20_000,
)
async def deliver(webhook: Webhook) -> JSONResponse:
    job = current_job()
    assert job is not None
    # The same at each try, in whichever process. A job's own id would let receivers ask for it.
    id = "msg_" + hashlib.sha256(job.id.encode()).hexdigest()[:32]
    attempt = await SENDER.send(id, webhook.url, written(webhook, job.created_at))
    told = {"webhook_id": id, "delivered": attempt.delivered, "said": attempt.said}
    if attempt.delivered:
        return JSONResponse(told)
    if attempt.over or time.time() - job.created_at > PATIENCE:
        return JSONResponse(told, 502)
    asked = min(max(attempt.wait, 0.0), LONGEST_WAIT)
    return JSONResponse(told, 503, headers={"retry-after": f"{asked:.0f}"})


def written(webhook: Webhook, created_at: float) -> bytes:
    at = datetime.fromtimestamp(created_at, UTC).isoformat()
    return json.dumps({"type": webhook.type, "timestamp": at, "data": webhook.data}).encode()


class Quiet(LoggingTelemetry):
    """The log, but for tries that have failed: a job says when its next one is."""

    def repeats(self, job: Job, reason: str) -> None:
        pass


# A lease is 30 s by default.
limits = Limits(max_running=1000, max_queued=10_000, lease=2)
jobs = Jobs(store=SQLiteStore("jobs.db"), limits=limits, telemetry=Quiet())
app.add_middleware(LongRunningMiddleware, jobs=jobs)
