"""What a block of a page that is a part of something is given: all that stands around it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

Names = dict[str, Any]


def names(block: str) -> Names:
    """The names that a block is given: those of all, and those of its kind."""
    found = _common()
    for word, given in GIVEN.items():
        if word in block:
            found |= given()
    return found


def _common() -> Names:
    """What every page has told of before."""
    import anyio
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.requests import HTTPConnection, Request
    from starlette.responses import HTMLResponse, Response
    from starlette.routing import Mount, Route

    import raincheck
    from raincheck.stores.redis import RedisStore
    from raincheck.stores.sqlite import SQLiteStore

    public = {name: getattr(raincheck, name) for name in raincheck.__all__}
    mine = {"app": Starlette(), "store": None, "os": os, "anyio": anyio, "raincheck": raincheck}
    stores = {"RedisStore": RedisStore, "SQLiteStore": SQLiteStore}
    starlette: list[type] = [
        HTTPConnection,
        HTMLResponse,
        Middleware,
        Mount,
        Request,
        Response,
        Route,
        Starlette,
    ]
    return {**public, **mine, **stores, **{each.__name__: each for each in starlette}}


def _fastapi() -> Names:
    from typing import Annotated

    from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, UploadFile
    from pydantic import BaseModel

    class Order(BaseModel):
        item: str

    class Receipt(BaseModel):
        number: int

    class Session:
        pass

    def session() -> Iterator[Session]:
        yield Session()

    found: list[type] = [APIRouter, BackgroundTasks, FastAPI, UploadFile, Order, Receipt, Session]
    more = {"Annotated": Annotated, "Depends": Depends, "session": session}
    mine = {"app": FastAPI(), "router": APIRouter()}
    return {**{each.__name__: each for each in found}, **more, **mine}


def _litestar() -> Names:
    from dataclasses import dataclass
    from typing import Annotated

    from litestar import Litestar, post
    from litestar.params import Body

    @dataclass
    class Order:
        item: str

    @dataclass
    class Receipt:
        number: int

    found = {"Litestar": Litestar, "post": post, "Annotated": Annotated, "Body": Body}
    return {**found, "Order": Order, "Receipt": Receipt}


def _quart() -> Names:
    from quart import Quart

    return {"Quart": Quart}


def _django() -> Names:
    import django
    from django.conf import settings
    from django.core.asgi import get_asgi_application
    from django.http import HttpRequest, HttpResponse
    from django.urls import path
    from django.views.decorators.http import require_POST

    if not settings.configured:
        settings.configure(SECRET_KEY="s" * 50, ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"])
        django.setup()
    views = {"HttpRequest": HttpRequest, "HttpResponse": HttpResponse, "require_POST": require_POST}
    return {"get_asgi_application": get_asgi_application, "path": path, **views}


urlpatterns: list[Any] = []
"""Django's."""


def _rest() -> Names:
    given = _django()
    from rest_framework.decorators import api_view
    from rest_framework.request import Request
    from rest_framework.response import Response
    from rest_framework.views import APIView

    class Orders(APIView):  # type: ignore[misc]  # rest_framework has no types
        def post(self, request: Request) -> Response:
            return Response()

    return {
        **given,
        "api_view": api_view,
        "Request": Request,
        "Response": Response,
        "Orders": Orders,
    }


def _falcon() -> Names:
    import falcon
    import falcon.asgi

    async def checked(*arguments: Any) -> None: ...

    asgi = {"Request": falcon.asgi.Request, "falcon_app": falcon.asgi.App()}
    return {
        "falcon": falcon,
        "checked": checked,
        "Req": None,
        **asgi,
        "Response": falcon.asgi.Response,
    }


def _checked() -> Names:
    def checked(endpoint: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(endpoint)
        async def check(request: Any) -> Any:
            return await endpoint(request)

        return check

    return {"checked": checked}


def _bare() -> Names:
    async def bare(scope: Any, receive: Any, send: Any) -> None: ...

    return {"bare": bare}


def _metrics() -> Names:
    from prometheus_client import CollectorRegistry, make_asgi_app, multiprocess

    from raincheck.telemetry.prometheus import PrometheusTelemetry

    folder = functools.partial(multiprocess.MultiProcessCollector, path=os.curdir)
    return {
        "CollectorRegistry": CollectorRegistry,
        "make_asgi_app": make_asgi_app,
        "multiprocess": SimpleNamespace(MultiProcessCollector=folder),
        "prometheus": PrometheusTelemetry(registry=CollectorRegistry()),
    }


def _served() -> Names:
    import asyncio

    import uvicorn

    import raincheck

    found = {"asynccontextmanager": asynccontextmanager, "nullcontext": nullcontext}
    return {**found, "asyncio": asyncio, "uvicorn": uvicorn, "jobs": raincheck.Jobs()}


def _templates() -> Names:
    from raincheck.dialects.base import Urls

    return {"Urls": Urls, "templates": None}


def _brokers() -> Names:
    from nats.js.api import RetentionPolicy, StreamConfig
    from taskiq_aio_pika import AioPikaBroker
    from taskiq_nats import PullBasedJetStreamBroker
    from taskiq_redis import ListQueueBroker

    found = [
        AioPikaBroker,
        ListQueueBroker,
        PullBasedJetStreamBroker,
        RetentionPolicy,
        StreamConfig,
    ]
    return {each.__name__: each for each in found}


def _queues() -> Names:
    from taskiq_redis import ListQueueBroker

    from raincheck.runners.taskiq import TaskiqRunner

    brokers = {
        name: ListQueueBroker("redis://localhost", queue_name=name) for name in ("mail", "videos")
    }
    return {"TaskiqRunner": TaskiqRunner, **brokers}


def _middleware() -> Names:
    from starlette.middleware.authentication import AuthenticationMiddleware
    from starlette.middleware.cors import CORSMiddleware
    from starlette.middleware.gzip import GZipMiddleware
    from starlette.middleware.sessions import SessionMiddleware

    found: list[type] = [
        AuthenticationMiddleware,
        CORSMiddleware,
        GZipMiddleware,
        SessionMiddleware,
    ]
    return {each.__name__: each for each in found}


def _cloud() -> Names:
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import tasks_v2

    made = tasks_v2.CloudTasksAsyncClient
    if isinstance(made, type):  # else it was here before
        made = functools.partial(made, credentials=AnonymousCredentials())
        tasks_v2.CloudTasksAsyncClient = made
    return _secrets()


def _secrets() -> Names:
    url, secret = "redis://localhost", "whsec_" + "c2Vj" * 8
    environ = {"REDIS_URL": url, "RUN_SECRET": secret, "WEBHOOK_SECRET": secret}
    return {"os": SimpleNamespace(environ=environ)}


def _contract() -> Names:
    import asyncio

    import pytest

    from raincheck.stores.memory import MemoryStore
    from raincheck.testing import RunnerContract

    contract = {"RunnerContract": RunnerContract, "pytest": pytest, "MyStore": MemoryStore}
    more = {"asyncio": asyncio, "asynccontextmanager": asynccontextmanager, "QueueRunner": None}
    return {**contract, **more}


GIVEN: dict[str, Callable[[], Names]] = {
    "UploadFile": _fastapi,
    "Annotated[Session": _fastapi,
    "Litestar([order])": _litestar,
    "Quart(__name__)": _quart,
    "@require_POST": _django,
    "@api_view": _rest,
    "falcon": _falcon,
    "@checked  #": _checked,
    "bare, routes": _bare,
    "CollectorRegistry": _metrics,
    "uvicorn.Server": _served,
    "templates": _templates,
    "AioPikaBroker(": _brokers,
    "queues={": _queues,
    "CORSMiddleware": _middleware,
    "tasks_v2": _cloud,
    "Contract": _contract,
    "WEBHOOK_SECRET": _secrets,
    "RedisStore(url": lambda: {"url": "redis://localhost"},
    "limiter": lambda: {"limiter": None},
    "transcode(request)": lambda: {"frames": [], "encode": None},
    "run_sync(trace": lambda: {"trace": None},
    'Route("/emails/send"': lambda: {"send_emails": lambda request: None},
}
"""By what stands in a block: the names that it is given."""
