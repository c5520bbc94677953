"""The app whose OpenAPI document schemathesis holds it to."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, HTTPException, Path
from pydantic import BaseModel, Field
from starlette.requests import HTTPConnection

from raincheck import LongRunningMiddleware, Pages, Policy, long_running, report
from raincheck.openapi import install


def an_operator(connection: HTTPConnection) -> bool:
    return True


app = FastAPI()
app.add_middleware(
    LongRunningMiddleware, routes={"POST /videos": Policy()}, pages=Pages(operator=an_operator)
)
install(app)


class Order(BaseModel):
    item: str
    count: int = Field(ge=0, le=9)


class Receipt(BaseModel):
    item: str
    total: int


@app.get("/plain")
async def plain() -> str:
    return "plain"


@app.post("/orders", status_code=201)
@long_running(timeout=10)
async def order(order: Order) -> Receipt:
    report(0.5, order.item)
    return Receipt(item=order.item, total=order.count)


@app.post("/renders")
@long_running(max_running=1)
async def render() -> dict[str, str]:
    await asyncio.sleep(0.2)
    return {"rendered": "yes"}


@app.post("/broken", responses={409: {"description": "It never works."}})
@long_running(idempotency="required")
async def broken() -> None:
    raise HTTPException(409, "It never works.")


@app.post("/crashes")
@long_running(idempotency="off")
async def crash() -> None:
    raise ValueError


router = APIRouter()


@router.get("/reports/{number}")
@long_running(respond="preferred")
async def reports(number: Annotated[int, Path(ge=0, le=99)]) -> dict[str, Any]:
    return {"number": number}


app.include_router(router, prefix="/v1")


@app.post("/videos")
async def videos(order: Order) -> Receipt:
    return Receipt(item=order.item, total=order.count)
