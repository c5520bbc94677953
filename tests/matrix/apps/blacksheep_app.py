"""A typed handler in BlackSheep, with a type that the module defines after it."""

# mypy: disallow-untyped-decorators=False
# (checked without BlackSheep installed, too)

from __future__ import annotations

from dataclasses import dataclass

from blacksheep import Application, FromJSON

from raincheck import LongRunningMiddleware, long_running

inner = Application()


@inner.router.post("/orders")
@long_running
async def order(data: FromJSON[Order]) -> dict[str, object]:
    return {"item": data.value.item, "total": data.value.count * 2}


@inner.router.post("/in-thread")
@long_running
def in_thread(data: FromJSON[Order]) -> dict[str, object]:
    return {"item": data.value.item, "total": data.value.count * 2}


@dataclass
class Order:
    item: str
    count: int


app = LongRunningMiddleware(inner)
