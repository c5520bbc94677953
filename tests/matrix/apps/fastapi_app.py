"""The matrix app in FastAPI: included routers, `yield` dependencies, background tasks, a mount."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio
from fastapi import (
    APIRouter,
    BackgroundTasks,
    Depends,
    FastAPI,
    Request,
    Response,
    UploadFile,
    WebSocket,
)
from fastapi.responses import PlainTextResponse, StreamingResponse
from pydantic import BaseModel

from raincheck import Limits, LongRunningMiddleware, Policy, long_running
from tests.matrix.apps import work


class Order(BaseModel):
    item: str
    count: int


class Receipt(BaseModel):
    item: str
    total: int


class Session:
    open = True


async def session() -> AsyncIterator[Session]:
    there = Session()
    yield there
    await anyio.sleep(0.01)
    there.open = False
    work.note("session closed")


router = APIRouter()


@router.post("/orders", status_code=201, response_model=Receipt)
@long_running(timeout=60)
async def order(
    order: Order, db: Annotated[Session, Depends(session)], tasks: BackgroundTasks
) -> dict[str, Any]:
    total = await work.total(order.count)
    work.note(f"session {'open' if db.open else 'lost'}")
    tasks.add_task(work.note, "background task")
    return {"item": order.item, "total": total, "secret": "not in the response model"}


@router.post("/upload")
@long_running
async def upload(request: Request) -> Response:
    await anyio.sleep(0.2)
    response = Response((await request.body())[::-1], media_type="application/octet-stream")
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    return response


@router.post("/file")
@long_running
async def file(film: UploadFile) -> dict[str, Any]:
    await anyio.sleep(0.2)
    return {"name": film.filename, "size": len(await film.read())}


@router.post("/slow", response_class=PlainTextResponse)
@long_running(timeout=60)
async def slow(name: str, seconds: float) -> str:
    return await work.slow(name, seconds)


@router.post("/in-thread", response_class=PlainTextResponse)
@long_running
def in_thread() -> str:
    return work.in_thread()


@router.post("/stream")
@long_running
async def stream() -> StreamingResponse:
    return StreamingResponse(work.chunks(), media_type="text/csv")


@router.post("/meter")
async def meter(request: Request) -> dict[str, Any]:
    return await work.meter(request.stream())


@router.websocket("/echo")
async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


@router.post("/videos", response_class=PlainTextResponse)
async def videos() -> str:
    return await work.slow("video", 0.2)


@router.post("/exports", response_class=PlainTextResponse)
async def exports() -> str:
    return await work.slow("export", 60)


mounted = FastAPI()


@mounted.post("/slow/{number}")
@long_running
async def below_a_mount(number: int) -> int:
    await anyio.sleep(0.1)
    return number


app = FastAPI()
app.include_router(router)
app.mount("/mounted", mounted)
app.add_middleware(
    LongRunningMiddleware,
    routes={"POST /videos": Policy(timeout=3600), "POST /exports": Policy()},
    limits=Limits(drain_timeout=work.DRAIN),
)


@app.get("/plain", response_class=PlainTextResponse)
async def plain() -> str:
    return "plain"
