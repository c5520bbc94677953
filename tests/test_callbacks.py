"""Callbacks: who asks, who may, what is told, and what the job's own clients see of that."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
from standardwebhooks import Webhook
from starlette.requests import Request
from starlette.responses import JSONResponse

from raincheck import (
    ConfigurationError,
    Jobs,
    Limits,
    LongRunningMiddleware,
    MemoryStore,
    Pages,
    Policy,
    Retry,
    State,
)
from raincheck.callbacks import Answer, Callbacks, Refused, Unreachable
from tests.conftest import virtual_jobs
from tests.doubles.receivers import SECRET, Message, Network
from tests.doubles.stores import DamagedStore, Line
from tests.support import Gate, app_of, running, said, slow_route

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]

ALLOWED = "https://hooks.example/in/*"
URL = "https://hooks.example/in/7"
ASKS = {"prefer": f'respond-async, callback; url="{URL}"'}
TAKEN = "respond-async, callback"


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    network = Network()
    monkeypatch.setattr("raincheck.runtime.posting.Poster", network)
    return network


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages are looked for once an hour, in tests that last for days."""
    monkeypatch.setattr("raincheck.runtime.deliveries._INTERVAL", 3600.0)
    monkeypatch.setattr("raincheck.runtime.expiry.SWEEP_INTERVAL", 36_000.0)


def settings(**of: Any) -> Callbacks:
    return Callbacks(**{"secrets": [SECRET], "allow": [ALLOWED], **of})


def told(**of: Any) -> Jobs:
    return virtual_jobs(callbacks=settings(), **of)


async def done(request: Request) -> Any:
    return {"rows": 7}


@asynccontextmanager
async def client_for(
    answer: Callable[[Request], Any] = done,
    jobs: Jobs | None = None,
    middleware: dict[str, Any] | None = None,
    **policy: Any,
) -> AsyncIterator[httpx.AsyncClient]:
    app = app_of(
        slow_route(answer, **policy), jobs=told() if jobs is None else jobs, **(middleware or {})
    )
    async with running(app) as client:
        yield client


async def callback_of(client: httpx.AsyncClient, accepted: httpx.Response) -> Any:
    found = await client.get(accepted.headers["location"] + "/status")
    return found.json().get("callback")


# --- who asks, and who may ---------------------------------------------------------------------


async def test_a_client_that_may_is_told_of_the_end(network: Network) -> None:
    async with client_for() as client:
        accepted = await client.post("/slow", headers=ASKS)
        assert accepted.status_code == 202
        assert accepted.headers["preference-applied"] == TAKEN
        waiting = {"status": "pending", "deliveries": 0, "last_error": None}
        assert accepted.json()["callback"] == waiting
        await anyio.sleep(2)
        monitor = await client.get(accepted.headers["location"] + "/status")
    (message,) = network.got
    assert message.target == ("https", "hooks.example", 443, "/in/7")
    document = monitor.json()
    assert document.pop("callback") == {"status": "delivered", "deliveries": 1, "last_error": None}
    assert json.loads(message.body) == document
    assert message.headers["webhook-id"] == document["job_id"]
    assert message.headers["content-type"] == "application/json"
    timestamped = Webhook(SECRET).verify(message.body.decode(), dict(message.headers))
    assert timestamped == document


async def test_only_the_end_of_its_last_run_is_told(network: Network) -> None:
    runs = []

    async def answer(request: Request) -> Any:
        runs.append(1)
        return JSONResponse({}, 503 if len(runs) < 3 else 200)

    async with client_for(answer, callback=URL, retry=Retry(backoff=lambda failure: 20)) as client:
        accepted = await client.post("/slow")
        await anyio.sleep(30)
        assert (len(runs), network.got) == (2, [])
        assert (await client.get(accepted.headers["location"])).json()["callback"][
            "deliveries"
        ] == 0
        await anyio.sleep(30)
    (message,) = network.got
    assert (json.loads(message.body)["status"], json.loads(message.body)["runs"]) == (
        "succeeded",
        3,
    )


@pytest.mark.parametrize(
    ("allow", "prefer", "applied"),
    [
        ([], ASKS["prefer"], "respond-async"),
        ([ALLOWED], 'respond-async, callback; url="https://elsewhere.example/"', "respond-async"),
        ([ALLOWED], 'respond-async, callback; url="https://127.0.0.1/in/7"', "respond-async"),
        ([ALLOWED], "respond-async, callback", "respond-async"),
        ([ALLOWED], 'respond-async, callback; other="x"', "respond-async"),
        ([ALLOWED], f'respond-async, Callback; a; URL = "{URL}"', TAKEN),
        ([ALLOWED], f'callback; url="{URL}"', "callback"),
        ([ALLOWED], 'respond-async, callback; url="https:\\/\\/hooks.example/in/7"', TAKEN),
        ([ALLOWED], f"respond-async, callback, callback; url={URL}", "respond-async"),
    ],
)
async def test_what_is_taken_is_named_and_nothing_else(
    network: Network, allow: list[str], prefer: str, applied: str
) -> None:
    jobs = virtual_jobs(callbacks=settings(allow=allow))
    async with client_for(jobs=jobs) as client:
        accepted = await client.post("/slow", headers={"prefer": prefer})
        assert (accepted.status_code, accepted.headers["preference-applied"]) == (202, applied)
        assert ("callback" in accepted.json()) == ("callback" in applied)
        await anyio.sleep(2)
    assert len(network.got) == ("callback" in applied)


async def test_where_callbacks_are_off_nobody_is_told(network: Network) -> None:
    async with client_for(jobs=virtual_jobs()) as client:
        accepted = await client.post("/slow", headers=ASKS)
        assert accepted.headers["preference-applied"] == "respond-async"
        await anyio.sleep(60)
    assert not network.got


@pytest.mark.parametrize("how", ["a URL", "a function", "an async function"])
async def test_an_author_names_whom_to_tell(network: Network, how: str) -> None:
    def named(request: Request) -> str | None:
        return f"https://example.com/{request.url.path[1:]}?{request.query_params['of']}"

    async def later(request: Request) -> str | None:
        return named(request)

    ways: dict[str, Any] = {
        "a URL": "https://example.com/slow?ann",
        "a function": named,
        "an async function": later,
    }
    async with client_for(callback=ways[how]) as client:
        accepted = await client.post("/slow?of=ann", headers=ASKS)
        assert accepted.headers["preference-applied"] == "respond-async"  # the author's comes first
        await anyio.sleep(2)
        assert (await callback_of(client, accepted))["status"] == "delivered"
    (message,) = network.got
    assert message.target == ("https", "example.com", 443, "/slow?ann")


async def test_a_function_that_names_nobody_leaves_it_to_the_client(network: Network) -> None:
    async with client_for(callback=lambda request: None) as client:
        accepted = await client.post("/slow")
        assert "callback" not in accepted.json()
        accepted = await client.post("/slow", headers=ASKS)
        assert accepted.headers["preference-applied"] == TAKEN
        await anyio.sleep(2)
    assert len(network.got) == 1


def broken(request: Request) -> str:
    raise LookupError("no tenant")


@pytest.mark.parametrize(
    "callback", ["http://example.com/", "https://10.0.0.1/", broken, lambda request: 7]
)
async def test_what_an_author_may_not_name_refuses_the_request(
    network: Network, callback: Any, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = told()
    async with client_for(jobs=jobs, callback=callback) as client:
        refused = await client.post("/slow")
        assert refused.status_code == 500
        assert refused.json()["type"] == "urn:raincheck:problem:callback-unknown"
        assert not (await jobs.list()).jobs
    assert "cannot be used" in said(caplog)[0].message


async def test_an_authors_callback_without_callbacks_is_a_setting_that_cannot_work() -> None:
    with pytest.raises(ConfigurationError, match=r"callbacks=Callbacks\(secrets"):
        LongRunningMiddleware(app_of(), routes={"POST /a": Policy(callback="https://a.example")})


async def test_a_rule_for_a_path_tells_as_well(network: Network) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await JSONResponse({})(scope, receive, send)

    routes = {"POST /a": Policy(callback="https://example.com/")}
    async with running(LongRunningMiddleware(app, routes=routes, jobs=told())) as client:
        assert (await client.post("/a")).status_code == 202
        await anyio.sleep(2)
    assert len(network.got) == 1


async def test_the_urls_in_the_message_are_those_of_the_202(network: Network) -> None:
    middleware = {"base_url": "https://api.example", "path": "/api/jobs"}
    async with client_for(middleware=middleware) as client:
        accepted = await client.post("/slow", headers=ASKS)
        await anyio.sleep(2)
    document = json.loads(network.got[0].body)
    assert document["links"]["result"] == accepted.headers["location"]
    assert document["links"]["result"].startswith("https://api.example/api/jobs/")


async def test_an_answer_in_time_is_no_job_and_nobody_is_told(network: Network) -> None:
    async with client_for(wait=5, max_wait=10) as client:
        answered = await client.post("/slow", headers=ASKS)
        assert answered.status_code == 200
        await anyio.sleep(60)
    assert not network.got


@pytest.mark.parametrize("takes", [1, 10])
async def test_nobody_is_told_while_an_answer_in_time_is_still_being_sent(
    network: Network, takes: float
) -> None:
    app = app_of(slow_route(done, wait=5, max_wait=10), jobs=told())

    async def slowly(scope: Any, receive: Any, send: Any) -> None:
        async def late(message: Any) -> None:
            await anyio.sleep(takes)
            await send(message)

        await app(scope, receive, late if scope["type"] == "http" else send)

    async with running(slowly) as client:
        assert (await client.post("/slow", headers=ASKS)).status_code == 200
        await anyio.sleep(60)
    assert not network.got


async def test_one_that_is_late_is_told_of(network: Network) -> None:
    async def slow(request: Request) -> Any:
        await anyio.sleep(7)

    async with client_for(slow, wait=5, max_wait=10) as client:
        accepted = await client.post("/slow", headers=ASKS)
        assert accepted.status_code == 202
        await anyio.sleep(5)
    assert len(network.got) == 1


async def test_a_synchronous_answer_is_told_to_nobody(network: Network) -> None:
    headers = {"idempotency-key": "k", "prefer": f'callback; url="{URL}"'}
    async with client_for(respond="preferred") as client:
        answered = await client.post("/slow", headers=headers)
        assert answered.status_code == 200
        assert "preference-applied" not in answered.headers
        await anyio.sleep(60)
    assert not network.got


async def test_a_key_brings_no_second_message_and_names_whose_is_taken(network: Network) -> None:
    headers = {**ASKS, "idempotency-key": "k"}
    other = {**headers, "prefer": 'respond-async, callback; url="https://hooks.example/in/8"'}
    async with client_for() as client:
        for asked, applied in ((headers, TAKEN), (headers, TAKEN), (other, "respond-async")):
            accepted = await client.post("/slow", headers=asked)
            assert accepted.headers["preference-applied"] == applied
        await anyio.sleep(2)
    assert len(network.got) == 1


# --- what is told, and of which end --------------------------------------------------------------


async def crashes(request: Request) -> Any:
    raise RuntimeError("broken")


async def refuses(request: Request) -> Any:
    return JSONResponse({}, 422)


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (done, "succeeded", None),
        (crashes, "failed", "handler-response"),
        (refuses, "failed", "handler-response"),
    ],
)
async def test_each_end_is_told_of(
    network: Network, answer: Any, status: str, code: str | None
) -> None:
    async with client_for(answer, retry_after=1) as client:
        await client.post("/slow", headers=ASKS)
        await anyio.sleep(2)
    document = json.loads(network.got[0].body)
    assert document["status"] == status
    assert code is None or document["error"]["code"] == code
    assert "callback" not in document


async def test_a_cancelled_job_is_told_of_whether_it_ran_or_waited(network: Network) -> None:
    gate = Gate()

    async def held(request: Request) -> Any:
        await gate.wait()

    async with client_for(held, max_running=1) as client:
        jobs = [await client.post("/slow", headers=ASKS) for _ in range(2)]
        for accepted in reversed(jobs):
            await client.post(accepted.headers["location"] + "/cancel")
        await anyio.sleep(2)
    assert [json.loads(message.body)["status"] for message in network.got] == ["canceled"] * 2


async def test_a_deleted_job_is_told_of_no_more(network: Network) -> None:
    network.says(500)
    async with client_for() as client:
        accepted = await client.post("/slow", headers=ASKS)
        await anyio.sleep(2)
        assert (await client.delete(accepted.headers["location"])).status_code == 204
        await anyio.sleep(60)
    assert len(network.got) == 1


async def test_what_ends_with_the_process_is_told_before_that(network: Network) -> None:
    gate = Gate()

    async def held(request: Request) -> Any:
        await gate.wait()

    jobs = told(limits=Limits(drain_timeout=0.1))
    async with client_for(held, jobs=jobs) as client:
        await client.post("/slow", headers=ASKS)
    (message,) = network.got
    assert json.loads(message.body)["error"]["code"] == "interrupted"


async def test_an_expired_job_is_told_of_and_is_gone_to_its_client(network: Network) -> None:
    network.says(503)
    async with client_for(ttl=60) as client:
        accepted = await client.post("/slow", headers=ASKS)
        await anyio.sleep(100)
        monitor = accepted.headers["location"] + "/status"
        assert (await client.get(monitor)).status_code == 410
        assert (await client.get(accepted.headers["location"])).status_code == 410
        network.says(204)
        await anyio.sleep(400)
        assert len(network.got) == 3  # at once, after 5 seconds and after 5 minutes
        assert (await client.get(monitor)).status_code == 410
    first, *_, last = network.got
    assert json.loads(last.body) == json.loads(first.body)
    assert last.headers["webhook-id"] == first.headers["webhook-id"]


async def test_an_expired_job_whose_key_is_used_again_is_told_of_as_well(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raincheck.runtime.expiry.SWEEP_INTERVAL", 36_000.0)
    network.says(503)
    async with client_for(ttl=60) as client:
        headers = {**ASKS, "idempotency-key": "k"}
        first = await client.post("/slow", headers=headers)
        await anyio.sleep(100)
        network.says(204)
        second = await client.post("/slow", headers=headers)
        assert second.headers["location"] != first.headers["location"]
        assert (await client.get(first.headers["location"])).status_code == 410
        await anyio.sleep(400)
    told_of = [message.headers["webhook-id"] for message in network.got]
    assert told_of == [first.json()["job_id"]] * 2 + [
        second.json()["job_id"],
        first.json()["job_id"],
    ]


# --- receivers that do not take it ----------------------------------------------------------------


async def test_it_is_tried_later_and_later_and_then_given_up(
    network: Network, caplog: pytest.LogCaptureFixture, patient: None
) -> None:
    network.says(500)
    async with client_for(ttl=1e6) as client:
        accepted = await client.post("/slow", headers=ASKS)
        await anyio.sleep(4 * 86400)
        found = await callback_of(client, accepted)
        answered = await client.get(accepted.headers["location"])
        assert (answered.status_code, answered.json()) == (200, {"rows": 7})  # law 5
    assert found == {
        "status": "failed",
        "deliveries": 10,
        "last_error": "The receiver answered 500.",
    }
    waits = [
        later.at - earlier.at for earlier, later in zip(network.got, network.got[1:], strict=False)
    ]
    expected = [5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400]
    assert len(waits) == len(expected)
    for wait, least in zip(waits, expected, strict=True):
        assert least <= wait <= 1.1 * least + 3601
    assert len({message.headers["webhook-timestamp"] for message in network.got}) == 10
    (line,) = [record for record in said(caplog) if "callback" in record.message]
    assert line.levelno == logging.WARNING


@pytest.mark.parametrize("status", [200, 201, 204, 299, 410])
async def test_what_ends_it(network: Network, status: int) -> None:
    network.says(status)
    async with client_for() as client:
        accepted = await client.post("/slow", headers=ASKS)
        await anyio.sleep(60)
        found = await callback_of(client, accepted)
    assert len(network.got) == 1
    if status == 410:
        error = "The receiver answered 410."
        assert found == {"status": "failed", "deliveries": 1, "last_error": error}
    else:
        assert found == {"status": "delivered", "deliveries": 1, "last_error": None}


@pytest.mark.parametrize("status", [301, 302, 307, 400, 404, 429, 502])
async def test_what_does_not(network: Network, status: int) -> None:
    network.says(status)
    async with client_for() as client:
        await client.post("/slow", headers=ASKS)
        await anyio.sleep(10)
    assert len(network.got) == 2


async def test_a_receiver_that_asks_for_time_has_it(network: Network, patient: None) -> None:
    network.says(429, 2 * 3600.0)
    async with client_for(ttl=1e6) as client:
        await client.post("/slow", headers=ASKS)
        await anyio.sleep(1.5 * 3600)
        assert len(network.got) == 1
        network.says(503, 1e9)
        await anyio.sleep(3 * 3600)
        assert len(network.got) == 2
        await anyio.sleep(20 * 3600)
        assert len(network.got) == 2
        await anyio.sleep(6 * 3600)
        assert len(network.got) == 3  # for ever is a day


async def test_one_that_hangs_is_left_in_time(network: Network) -> None:
    async def hang(message: Message) -> Answer:
        await anyio.sleep_forever()
        raise AssertionError

    network.answer = hang
    jobs = virtual_jobs(callbacks=settings(timeout=3))
    async with client_for(jobs=jobs) as client:
        accepted = await client.post("/slow", headers=ASKS)
        await anyio.sleep(4)
        found = await callback_of(client, accepted)
        network.answer = network.takes
    error = "The receiver has not answered within 3 seconds."
    assert found == {"status": "pending", "deliveries": 1, "last_error": error}


@pytest.mark.parametrize(
    ("raised", "ends", "error"),
    [
        (Unreachable("Nobody is there."), False, "Nobody is there."),
        (Refused("The host has an address that is not public."), True, "The host has an a"),
        (ZeroDivisionError("10.0.0.7"), False, "The message could not be sent."),
    ],
)
async def test_what_goes_wrong_is_told_to_the_owner(
    network: Network, raised: Exception, ends: bool, error: str
) -> None:
    async def fail(message: Message) -> Answer:
        raise raised

    network.answer = fail
    async with client_for() as client:
        accepted = await client.post("/slow", headers=ASKS)
        await anyio.sleep(2)
        found = await callback_of(client, accepted)
        assert found["status"] == ("failed" if ends else "pending")
        assert found["last_error"].startswith(error)
        network.answer = network.takes
        await anyio.sleep(60)
    assert len(network.got) == (1 if ends else 2)


async def test_a_url_that_settings_do_not_permit_is_not_sent_to_and_left_to_those_that_do(
    network: Network,
) -> None:
    """A process that has not been told of a pattern yet, or not of this app's."""
    store = MemoryStore()
    network.says(500)
    async with client_for(jobs=told(store=store)) as client:
        await client.post("/slow", headers=ASKS)
        await anyio.sleep(2)
    before = len(network.got)
    network.says(204)
    async with client_for(jobs=virtual_jobs(store=store, callbacks=settings(allow=[]))):
        await anyio.sleep(60)
    assert len(network.got) == before
    (job,) = (await store.list()).jobs
    assert job.delivery is not None
    assert (job.delivery.status, job.delivery.last_error) == (
        "pending",
        "No pattern permits the URL.",
    )
    async with client_for(jobs=told(store=store)):
        await anyio.sleep(2000)
    assert len(network.got) == before + 1


async def test_no_secret_is_in_the_record(network: Network) -> None:
    store = MemoryStore()
    async with client_for(jobs=told(store=store)) as client:
        await client.post("/slow", headers=ASKS)
        await anyio.sleep(2)
    assert SECRET.removeprefix("whsec_") not in repr((await store.list()).jobs)


async def test_a_store_that_is_away_delays_it_and_loses_nothing(network: Network) -> None:
    line = Line(MemoryStore())
    network.says(500)
    async with client_for(jobs=told(store=line)) as client:
        await client.post("/slow", headers=ASKS)
        await anyio.sleep(2)
        network.says(204)
        line.cut()
        await anyio.sleep(30)
        assert len(network.got) == 1
        line.mend()
        await anyio.sleep(10)
        assert len(network.got) == 2


async def test_what_can_be_read_no_more_when_it_is_noted_stops_no_other(network: Network) -> None:
    """A process of a newer version has changed it meanwhile."""
    store = DamagedStore()

    async def change(message: Message) -> Answer:
        network.answer = network.takes
        job = await store.get(id := message.headers["webhook-id"])
        assert job is not None
        await store.replace(job.confirm())
        store.unreadable.add(id)
        return Answer(204, None)

    network.answer = change
    async with client_for(jobs=told(store=store)) as client:
        await client.post("/slow", headers=ASKS)
        await anyio.sleep(2)
        accepted = await client.post("/slow", headers=ASKS)
        await anyio.sleep(2)
        assert (await callback_of(client, accepted))["status"] == "delivered"


# --- clients that follow the job ------------------------------------------------------------------


async def test_who_has_seen_the_end_is_not_told_of_it_again(network: Network) -> None:
    """What becomes of the message is no news of the job: its event has the id that it had."""
    network.says(500)
    async with client_for() as client:
        accepted = await client.post("/slow", headers=ASKS)
        url = accepted.headers["location"] + "/events"
        events = (await client.get(url)).text
        (id,) = [line[4:] for line in events.splitlines() if line.startswith("id: ")]
        await anyio.sleep(10)
        assert len(network.got) == 2
        again = await client.get(url, headers={"last-event-id": id})
        assert again.status_code == 204
        tag = (await client.get(accepted.headers["location"])).headers["etag"]
        network.says(204)
        await anyio.sleep(400)
        assert len(network.got) == 3
        assert (await client.get(accepted.headers["location"])).headers["etag"] == tag


# --- the operator -------------------------------------------------------------------------------


def is_operator(connection: Any) -> bool:
    return "x-operator" in connection.headers


OPERATOR = {"x-operator": "1"}


async def test_an_operator_has_it_delivered_once_more(network: Network) -> None:
    network.says(410)
    middleware = {"pages": Pages(operator=is_operator)}
    async with client_for(middleware=middleware) as client:
        accepted = await client.post("/slow", headers=ASKS)
        url = accepted.headers["location"] + "/redeliver"
        await anyio.sleep(2)
        assert (await client.post(url)).status_code == 404
        assert (await client.get(url, headers=OPERATOR)).status_code == 405
        elsewhere = {**OPERATOR, "sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
        assert (await client.post(url, headers=elsewhere)).status_code == 403
        await anyio.sleep(60)
        assert len(network.got) == 1
        network.says(204)
        again = await client.post(url, headers=OPERATOR)
        assert again.status_code == 200
        assert again.json()["callback"]["status"] == "pending"
        await anyio.sleep(2)
        found = await callback_of(client, accepted)
        assert found == {"status": "delivered", "deliveries": 2, "last_error": None}
        assert (await client.post(url, headers=OPERATOR)).status_code == 200  # as often as wanted
        await anyio.sleep(2)
        silent = await client.post("/slow")
        await anyio.sleep(2)
        refused = await client.post(silent.headers["location"] + "/redeliver", headers=OPERATOR)
        assert (refused.status_code, refused.json()["type"][-11:]) == (409, "no-callback")
        missing = await client.post("/jobs/" + "x" * 30 + "/redeliver", headers=OPERATOR)
        assert missing.status_code == 404
    assert len(network.got) == 3


async def test_a_job_that_runs_has_nothing_to_deliver_yet(network: Network) -> None:
    gate = Gate()

    async def held(request: Request) -> Any:
        await gate.wait()

    middleware = {"pages": Pages(operator=is_operator)}
    async with client_for(held, middleware=middleware) as client:
        accepted = await client.post("/slow", headers=ASKS)
        url = accepted.headers["location"] + "/redeliver"
        assert (await client.post(url, headers=OPERATOR)).status_code == 409
        gate.open()


async def test_the_bound_counts_from_the_last_time_that_it_was_asked_for(network: Network) -> None:
    network.says(500)
    jobs = virtual_jobs(callbacks=settings(deliveries=2))
    async with client_for(jobs=jobs) as client:
        accepted = await client.post("/slow", headers=ASKS)
        await anyio.sleep(60)
        assert len(network.got) == 2
        id = accepted.json()["job_id"]
        job = await jobs.redeliver(id)
        assert job is not None
        assert job.state is State.SUCCEEDED
        await anyio.sleep(60)
        assert len(network.got) == 4
        assert (await callback_of(client, accepted))["deliveries"] == 4


async def test_the_button_of_an_operators_page_sends_it_again(network: Network) -> None:
    network.says(410)
    middleware = {"pages": Pages(operator=is_operator)}
    async with client_for(middleware=middleware) as client:
        await client.post("/slow", headers=ASKS)
        await client.post("/slow")
        await anyio.sleep(2)
        browser = {**OPERATOR, "accept": "text/html", "sec-fetch-site": "same-origin"}
        page = (await client.get("/jobs", headers=browser)).text
        shown = [line for line in page.splitlines() if 'data-do="redeliver"' in line]
        (form,) = [line for line in shown if "hidden" not in line]
        action = form.partition('action="')[2].partition('"')[0]
        network.says(204)
        answer = await client.post(httpx.URL("http://test/jobs").join(action), headers=browser)
        assert (answer.status_code, answer.headers["location"]) == (303, "../../jobs")
        await anyio.sleep(2)
    assert len(network.got) == 2


async def test_the_list_of_an_operator_says_what_became_of_messages(network: Network) -> None:
    network.says(500)
    middleware = {"pages": Pages(operator=is_operator)}
    async with client_for(middleware=middleware) as client:
        await client.post("/slow", headers=ASKS)
        await anyio.sleep(2)
        (listed,) = (await client.get("/jobs", headers=OPERATOR)).json()["jobs"]
        network.says(204)
    assert listed["callback"]["last_error"] == "The receiver answered 500."
    assert URL not in json.dumps(listed)


# --- many ---------------------------------------------------------------------------------------


@pytest.mark.one_loop
async def test_what_many_ask_for_is_delivered_by_few_at_once(network: Network) -> None:
    now = most = 0

    async def count(message: Message) -> Answer:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await anyio.sleep(0.01)
        now -= 1
        return Answer(204, None)

    network.answer = count
    async with client_for(jobs=told(limits=Limits(max_running=2000, max_queued=0))) as client:
        for _ in range(800):
            assert (await client.post("/slow", headers=ASKS)).status_code == 202
        await anyio.sleep(10)
    assert len(network.got) == 800
    assert most <= 16  # to one receiver


@pytest.mark.slow
async def test_one_receiver_that_hangs_takes_no_others_place(network: Network) -> None:
    async def answer(message: Message) -> Answer:
        if message.target.path == "/in/hangs":
            await anyio.sleep_forever()
        return Answer(204, None)

    network.answer = answer
    allow = ["https://hangs.example/in/hangs", "https://hooks.example/in/*"]
    jobs = virtual_jobs(
        callbacks=settings(allow=allow), limits=Limits(max_running=5000, max_queued=0)
    )
    hangs = {"prefer": 'respond-async, callback; url="https://hangs.example/in/hangs"'}
    async with client_for(jobs=jobs) as client:
        for _ in range(1000):
            await client.post("/slow", headers=hangs)
        for _ in range(100):
            await client.post("/slow", headers=ASKS)
        await anyio.sleep(5)
        well = [message for message in network.got if message.target.path == "/in/7"]
        assert len(well) == 100
        await anyio.sleep(40)  # what waits for one that hangs gives way; one may try again
        assert 16 <= len(network.got) - 100 <= 24
        network.answer = network.takes
        await anyio.sleep(200)
    assert len({message.headers["webhook-id"] for message in network.got}) == 1100


@pytest.mark.slow
async def test_many_receivers_that_hang_take_no_others_place(network: Network) -> None:
    """Once each has let one request go unanswered: more of them than there are places."""

    async def answer(message: Message) -> Answer:
        if message.target.host != "hooks.example":
            await anyio.sleep_forever()
        return Answer(204, None)

    network.answer = answer
    urls = [f"https://hangs{number}.example/in" for number in range(300)]
    jobs = virtual_jobs(
        callbacks=settings(allow=[ALLOWED, *urls]), limits=Limits(max_running=5000, max_queued=0)
    )
    async with client_for(jobs=jobs) as client:
        for wait in (100, 2):
            for url in urls:
                hangs = {"prefer": f'respond-async, callback; url="{url}"'}
                await client.post("/slow", headers=hangs)
            await anyio.sleep(wait)
        await client.post("/slow", headers=ASKS)
        await anyio.sleep(2)
        assert "hooks.example" in {message.target.host for message in network.got}
