"""The matrix app in Django, under ASGI: async and sync views."""

# mypy: disallow-untyped-decorators=False
# (checked without Django installed, too)

from __future__ import annotations

import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.http import require_POST

from raincheck import Limits, LongRunningMiddleware, Policy, long_running
from tests.matrix.apps import work

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x", MIDDLEWARE=[])
django.setup()

View = Callable[[HttpRequest], Awaitable[HttpResponse]]


def checked(view: View) -> View:
    """A decorator on top of the mark: what it answers is answered at once."""

    @functools.wraps(view)
    async def check(request: HttpRequest) -> HttpResponse:
        if problem := work.problem_of(json.loads(request.body)):
            return JsonResponse({"detail": problem}, status=422)
        return await view(request)

    return check


async def plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse("plain")


@require_POST
@checked
@long_running
async def order(request: HttpRequest) -> HttpResponse:
    order = json.loads(request.body)
    receipt = {"item": order["item"], "total": await work.total(order["count"])}
    return JsonResponse(receipt, status=201)


@require_POST
@long_running
async def upload(request: HttpRequest) -> HttpResponse:
    await anyio.sleep(0.2)
    response = HttpResponse(request.body[::-1], content_type="application/octet-stream")
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    return response


@require_POST
@long_running
async def file(request: HttpRequest) -> HttpResponse:
    await anyio.sleep(0.2)
    film = request.FILES["film"]
    return JsonResponse({"name": film.name, "size": len(film.read())})


@require_POST
@long_running(timeout=60)
async def slow(request: HttpRequest) -> HttpResponse:
    return HttpResponse(await work.slow(request.GET["name"], float(request.GET["seconds"])))


@require_POST
@long_running
def in_thread(request: HttpRequest) -> HttpResponse:
    return HttpResponse(work.in_thread())


@require_POST
@long_running
async def stream(request: HttpRequest) -> Any:
    return StreamingHttpResponse(work.chunks(), content_type="text/csv")


@require_POST
async def meter(request: HttpRequest) -> HttpResponse:
    async def parts() -> AsyncIterator[bytes]:
        while part := request.read(65536):
            yield part

    return JsonResponse(await work.meter(parts()))


@require_POST
def videos(request: HttpRequest) -> HttpResponse:
    """A sync view, untouched: it runs in Django's own thread."""
    work.in_thread()
    work.note("video finished")
    return HttpResponse("video is done")


@require_POST
async def exports(request: HttpRequest) -> HttpResponse:
    return HttpResponse(await work.slow("export", 60))


urlpatterns = [
    path("plain", plain),
    path("orders", order),
    path("upload", upload),
    path("file", file),
    path("slow", slow),
    path("in-thread", in_thread),
    path("stream", stream),
    path("meter", meter),
    path("videos", videos),
    path("exports", exports),
]

app = LongRunningMiddleware(
    get_asgi_application(),
    routes={"POST /videos": Policy(timeout=3600), "POST /exports": Policy()},
    limits=Limits(drain_timeout=work.DRAIN),
)
