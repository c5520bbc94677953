"""A typed handler in Django Ninja, which looks names up in the function that it is given."""

# mypy: disallow-untyped-decorators=False, disable-error-code=misc
# (checked without Django Ninja installed, too)

from __future__ import annotations

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest
from django.urls import path

from raincheck import LongRunningMiddleware, long_running

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x", MIDDLEWARE=[])
django.setup()

from ninja import NinjaAPI, Schema  # noqa: E402 - it reads the settings when it is imported

api = NinjaAPI()


class Order(Schema):
    item: str
    count: int


@api.post("/orders")
@long_running
async def order(request: HttpRequest, order: Order) -> dict[str, object]:
    return {"item": order.item, "total": order.count * 2}


@api.post("/in-thread")
@long_running
def in_thread(request: HttpRequest, order: Order) -> dict[str, object]:
    return {"item": order.item, "total": order.count * 2}


urlpatterns = [path("", api.urls)]
app = LongRunningMiddleware(get_asgi_application())
