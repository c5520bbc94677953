"""Views of Django REST framework, marked where they can be, and one under a path rule."""

# mypy: disallow-untyped-decorators=False, disable-error-code=misc
# (checked without Django REST framework installed, too)

from __future__ import annotations

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.urls import path

from raincheck import LongRunningMiddleware, Policy, long_running

settings.configure(
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    SECRET_KEY="x",
    MIDDLEWARE=[],
    INSTALLED_APPS=["rest_framework"],
    REST_FRAMEWORK={
        "DEFAULT_AUTHENTICATION_CLASSES": [],
        "DEFAULT_PERMISSION_CLASSES": [],
        "UNAUTHENTICATED_USER": None,
    },
)
django.setup()

from rest_framework.decorators import api_view  # noqa: E402 - it reads the settings, too
from rest_framework.request import Request  # noqa: E402
from rest_framework.response import Response  # noqa: E402
from rest_framework.views import APIView  # noqa: E402


def total(request: Request) -> Response:
    order = request.data
    return Response({"item": order["item"], "total": order["count"] * 2})


class Orders(APIView):
    def post(self, request: Request) -> Response:
        return total(request)


@api_view(["POST"])
@long_running
def below(request: Request) -> Response:
    return total(request)


class Below(APIView):
    @long_running
    def post(self, request: Request) -> Response:
        return total(request)


REFUSED = {"function": below, "class": Below.as_view()}


def start(name: str) -> None:
    """Make the middleware of an app with one more view, whose mark is below the framework."""
    urlpatterns.append(path("refused", REFUSED[name]))
    LongRunningMiddleware(get_asgi_application())


urlpatterns = [
    path("function", long_running(api_view(["POST"])(total))),
    path("class", long_running(Orders.as_view())),
    path("rule", api_view(["POST"])(total)),
]
app = LongRunningMiddleware(get_asgi_application(), routes={"POST /rule": Policy()})
