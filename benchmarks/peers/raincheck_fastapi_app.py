"""raincheck on FastAPI: what the peers on FastAPI do, with `@long_running` instead."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from peers.orders import Order
from peers.work import REPORT, fill
from raincheck import LongRunningMiddleware, MemoryStore, long_running

app = FastAPI()
app.add_middleware(LongRunningMiddleware, store=MemoryStore(max_bytes=16 * 1024**3))


@app.post("/orders")
@long_running
async def create_order(order: Order) -> JSONResponse:
    return JSONResponse(fill(order.model_dump()))


@app.post("/reports")
@long_running
async def create_report(order: Order) -> JSONResponse:
    return JSONResponse(REPORT)
