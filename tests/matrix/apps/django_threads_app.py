"""Views in Django that compute in threads: Django's own, and asgiref's.

Below middleware that is not asynchronous an `async def` view has a thread that waits for it.
"""

from __future__ import annotations

from collections.abc import Callable

import django
from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path

from raincheck import LongRunningMiddleware, Policy, long_running
from tests.matrix.apps import work


class Synchronous:
    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)


settings.configure(
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    SECRET_KEY="x",
    MIDDLEWARE=[f"{__name__}.Synchronous"],
)
django.setup()


@long_running(max_running=1)
def marked(request: HttpRequest) -> HttpResponse:
    return HttpResponse(work.compute("marked"))


@long_running(max_running=1)
async def awaiting(request: HttpRequest) -> HttpResponse:
    return HttpResponse(await sync_to_async(work.compute, thread_sensitive=False)("awaiting"))


def rule(request: HttpRequest) -> HttpResponse:
    return HttpResponse(work.compute("rule"))


async def coroutine(request: HttpRequest) -> HttpResponse:
    return HttpResponse(await work.slow("coroutine", 60))


urlpatterns = [
    path("marked", marked),
    path("awaiting", awaiting),
    path("rule", rule),
    path("coroutine", coroutine),
]
app = LongRunningMiddleware(
    get_asgi_application(),
    routes={"POST /rule": Policy(max_running=1), "POST /coroutine": Policy()},
)
