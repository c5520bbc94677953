"""FastAPI: validation and dependencies answer synchronously, and stay alive for the handler."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio
import pytest
from fastapi import (
    APIRouter,
    BackgroundTasks,
    Body,
    Depends,
    FastAPI,
    Header,
    HTTPException,
    UploadFile,
)
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from raincheck import LongRunningMiddleware, MemoryStore, long_running, report
from raincheck.testing import follow
from tests.conftest import virtual_jobs
from tests.support import client_of, running, settled

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]


class Order(BaseModel):
    item: str
    count: int


class Receipt(BaseModel):
    item: str
    total: int


class Session:
    def __init__(self) -> None:
        self.open = True


sessions: list[Session] = []
background: list[str] = []


async def note(what: str) -> None:
    background.append(what)


async def session() -> Any:
    there = Session()
    sessions.append(there)
    yield there
    there.open = False


def user(authorization: Annotated[str | None, Header()] = None) -> str:
    if authorization is None:
        raise HTTPException(401, "who are you?")
    if authorization == "bob":
        raise HTTPException(403, "not you")
    return authorization


router = APIRouter(prefix="/v1", dependencies=[Depends(user)])


@router.post("/orders", status_code=201)
@long_running(timeout=60)
async def order(
    order: Order, who: Annotated[str, Depends(user)], db: Annotated[Session, Depends(session)]
) -> Receipt:
    """Place an order."""
    report(0.5, "half")
    await anyio.sleep(10)
    assert db.open
    return Receipt(item=f"{order.item} for {who}", total=order.count * 2)


@router.post("/upload")
@long_running
async def upload(file: UploadFile, tasks: BackgroundTasks) -> dict[str, Any]:
    await anyio.sleep(0.1)
    content = await file.read()
    tasks.add_task(note, "ran")
    return {"name": file.filename, "size": len(content), "open": not file.file.closed}


@router.get("/plain")
async def plain() -> str:
    return "plain"


sub = FastAPI()


@sub.post("/slow/{number}")
@long_running
async def below_a_mount(number: int) -> int:
    return number


app = FastAPI()
app.include_router(router, prefix="/api")
app.mount("/sub", sub)

KNOWN = {"authorization": "ann"}
ORDER = {"item": "tea", "count": 2}


async def test_401_403_404_405_and_422_come_back_at_once_and_store_nothing() -> None:
    store = MemoryStore()
    wrapped = LongRunningMiddleware(app, jobs=virtual_jobs(store=store))
    async with running(wrapped) as client:
        url = "/api/v1/orders"
        for response, status in (
            (await client.post(url, json=ORDER), 401),
            (await client.post(url, json=ORDER, headers={"authorization": "bob"}), 403),
            (await client.post("/api/v2/orders", json=ORDER, headers=KNOWN), 404),
            (await client.get(url, headers=KNOWN), 405),
            (await client.post(url, json={"item": "tea"}, headers=KNOWN), 422),
            (await client.post(url, content=b"{", headers=KNOWN), 422),
            (await client.post("/sub/slow/x"), 422),
            (await client.post("/api/v1/upload", headers=KNOWN), 422),
        ):
            assert response.status_code == status, response.text
        assert len(store) == 0
        assert (await client.get("/api/v1/plain", headers=KNOWN)).json() == "plain"


async def test_a_dependency_stays_open_until_the_handler_is_done() -> None:
    sessions.clear()
    async with running(LongRunningMiddleware(app, jobs=virtual_jobs())) as client:
        accepted = await client.post("/api/v1/orders", json=ORDER, headers=KNOWN)
        assert accepted.status_code == 202
        assert accepted.headers["vary"] == "Prefer"
        assert [there.open for there in sessions] == [True]
        response = await follow(client, accepted)
        assert response.status_code == 201
        assert response.json() == {"item": "tea for ann", "total": 4}
        await settled()
        assert [there.open for there in sessions] == [False]


@pytest.mark.real  # the file of an upload of this size is read in a thread
async def test_an_upload_stays_open_until_the_handler_is_done() -> None:
    background.clear()
    async with running(LongRunningMiddleware(app, jobs=virtual_jobs())) as client:
        files = {"file": ("film.mp4", b"x" * 2_000_000)}
        accepted = await client.post("/api/v1/upload", files=files, headers=KNOWN)
        assert accepted.status_code == 202
        response = await follow(client, accepted)
        assert response.json() == {"name": "film.mp4", "size": 2_000_000, "open": True}
        await settled()
        assert background == ["ran"]


async def test_a_mounted_application_is_seen_too() -> None:
    async with running(LongRunningMiddleware(app, jobs=virtual_jobs())) as client:
        accepted = await client.post("/sub/slow/7")
        assert accepted.headers["location"].startswith("/jobs/")
        assert (await follow(client, accepted)).json() == 7


async def test_added_by_add_middleware_it_works_the_same() -> None:
    inside = FastAPI()
    inside.include_router(router)
    inside.add_middleware(LongRunningMiddleware, jobs=virtual_jobs())
    async with running(inside) as client:
        assert (await client.post("/v1/orders", json={}, headers=KNOWN)).status_code == 422
        accepted = await client.post("/v1/orders", json=ORDER, headers=KNOWN)
        assert (await follow(client, accepted)).status_code == 201


async def test_a_mount_that_limits_bodies_refuses_at_once() -> None:
    pytest.importorskip("starlette.middleware.body_limit")  # of Starlette 1
    limited = FastAPI(max_body_size=10)
    limited.include_router(router)
    async with running(LongRunningMiddleware(limited, jobs=virtual_jobs())) as client:
        assert (await client.post("/v1/orders", json=ORDER, headers=KNOWN)).status_code == 413


@pytest.mark.parametrize("path", ["/api/v1/orders", "/api/v1/upload"])
async def test_the_openapi_document_describes_the_endpoint_as_written(path: str) -> None:
    document = app.openapi()
    assert "requestBody" in document["paths"][path]["post"]
    if path.endswith("orders"):
        assert document["paths"][path]["post"]["description"] == "Place an order."
        schema = document["paths"][path]["post"]["responses"]["201"]["content"]
        assert schema["application/json"]["schema"]["$ref"].endswith("Receipt")


@pytest.mark.real
async def test_a_def_path_function_is_a_job_too() -> None:
    there = FastAPI()

    @there.post("/slow")
    @long_running
    def slow(order: Order) -> Receipt:
        report(1.0)
        return Receipt(item=order.item, total=order.count)

    async with running(LongRunningMiddleware(there, jobs=virtual_jobs())) as client:
        assert (await client.post("/slow", json={})).status_code == 422
        response = await follow(client, await client.post("/slow", json=ORDER))
        assert response.json() == {"item": "tea", "total": 2}


def stripping(app: ASGIApp, prefix: str = "/api") -> ASGIApp:
    """As a proxy does that takes a prefix away, and knows nothing else."""

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            if not path.startswith(prefix + "/"):
                await PlainTextResponse("no such place", 404)(scope, receive, send)
                return
            path = path.removeprefix(prefix)
            scope = {**scope, "path": path, "raw_path": path.encode()}
        await app(scope, receive, send)

    return proxy


def with_root_path(root_path: str, *, added: bool) -> Any:
    """A FastAPI app that says what is in front of it, with raincheck added or around."""
    app = FastAPI()
    app.root_path = root_path  # as `FastAPI(root_path=...)` does, which newer versions deprecate

    @app.post("/slow")
    @long_running
    async def slow(request: Request) -> dict[str, Any]:
        return {"url": request.url_for("slow").path}

    if added:
        app.add_middleware(LongRunningMiddleware, jobs=virtual_jobs())
        return app
    return LongRunningMiddleware(app, jobs=virtual_jobs())


@pytest.mark.parametrize("strips", [True, False])
@pytest.mark.parametrize("root_path", ["/api", "/api/v1"])
@pytest.mark.parametrize("added", [True, False])
async def test_urls_carry_the_root_path_that_the_app_has(
    added: bool, root_path: str, strips: bool
) -> None:
    """Whether the proxy in front takes the prefix away or not: FastAPI serves both."""
    app = with_root_path(root_path, added=added)
    async with running(stripping(app, root_path) if strips else app) as client:
        accepted = await client.post(f"{root_path}/slow")
        id = accepted.json()["job_id"]
        assert accepted.headers["location"] == f"{root_path}/jobs/{id}"
        links = accepted.json()["links"]
        assert (await client.get(links["self"])).json()["links"] == links
        response = await follow(client, accepted)
        assert (response.status_code, response.json()) == (200, {"url": f"{root_path}/slow"})


async def test_the_root_path_may_be_set_after_the_app_was_made() -> None:
    app = FastAPI()
    around = LongRunningMiddleware(app, jobs=virtual_jobs())
    app.root_path = "/api/"

    @app.post("/slow")
    @long_running
    async def slow() -> dict[str, str]:
        return {}

    async with client_of(around) as client:  # without a lifespan
        accepted = await client.post("/slow")
        assert accepted.headers["location"].startswith("/api/jobs/")


async def test_a_body_that_was_read_before_the_entry_is_no_larger_than_it_may_be() -> None:
    app = FastAPI()

    @app.post("/slow")
    @long_running(max_request_size=100)
    async def slow(text: Annotated[str, Body()]) -> str:
        return text

    async def sent_in_chunks(size: int) -> AsyncIterator[bytes]:  # their number is not said before
        yield b'"' + b"x" * size
        yield b'"'

    async with running(LongRunningMiddleware(app, jobs=virtual_jobs())) as client:
        json = {"content-type": "application/json"}
        for size, status in ((98, 202), (99, 413)):
            response = await client.post("/slow", content=sent_in_chunks(size), headers=json)
            assert response.status_code == status
