"""The operator's view: who may list, cancel and delete the jobs of all, and who lists their own.

`uvicorn examples.operator_view:app` serves it: open http://localhost:8000/ in a browser, log in as
`root` or as `ann`, with any password, and go to /jobs. `python examples/operator_view.py` prints
what a program gets:

    ann submits a report, and one that fails; bob submits a report
    root lists what runs: bob's report, ann's report
    root lists what has failed: ann's broken (The response has status 500.)
    root counts 2 running and 1 failed, by 1 worker
    root cancels bob's report: 202
    root opens ann's report: 404
    ann lists: broken failed, report running
    eve lists: 404
"""

import asyncio
import base64

import httpx
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from raincheck import LongRunningMiddleware, Pages, long_running, report
from raincheck.testing import lifespan


@long_running(name="report")
async def make_report(request: Request) -> Response:
    for page in range(1, 61):
        await asyncio.sleep(1)
        report(page / 60, f"page {page} of 60")
    return JSONResponse({"pages": 60})


@long_running(name="broken")
async def make_nothing(request: Request) -> Response:
    return PlainTextResponse("the printer is on fire", 500)


class Passwords(AuthenticationBackend):
    """Knows users by HTTP Basic, and takes any password."""

    async def authenticate(
        self, connection: HTTPConnection
    ) -> tuple[AuthCredentials, SimpleUser] | None:
        scheme, _, value = connection.headers.get("authorization", "").partition(" ")
        if scheme != "Basic":
            return None
        name = base64.b64decode(value).decode().partition(":")[0]  # your check of the password
        return AuthCredentials(["operator"] if name == "root" else []), SimpleUser(name)


def is_operator(connection: HTTPConnection) -> bool:
    return "operator" in connection.auth.scopes


async def home(request: Request) -> Response:
    if request.user.is_authenticated:
        return PlainTextResponse("POST /report and POST /broken; your jobs are at /jobs")
    return PlainTextResponse("who are you?", 401, {"www-authenticate": "Basic"})


pages = Pages(operator=is_operator, own_list=True)
routes = [
    Route("/", home),
    Route("/report", make_report, methods=["POST"]),
    Route("/broken", make_nothing, methods=["POST"]),
]
middleware = [
    Middleware(AuthenticationMiddleware, backend=Passwords()),
    Middleware(LongRunningMiddleware, pages=pages),
]
app = Starlette(routes=routes, middleware=middleware)


async def main() -> None:
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app")
    async with lifespan(app), client:
        ann = (await client.post("/report", auth=("ann", ""))).json()
        await client.post("/broken", auth=("ann", ""))
        bob = (await client.post("/report", auth=("bob", ""))).json()
        await asyncio.sleep(0.1)
        print("ann submits a report, and one that fails; bob submits a report")
        root = ("root", "")
        found = (await client.get("/jobs?status=running", auth=root)).json()["jobs"]
        print("root lists what runs:", ", ".join(f"{j['owner']}'s {j['route']}" for j in found))
        (job,) = (await client.get("/jobs?status=failed", auth=root)).json()["jobs"]
        why = job["error"]["message"]
        print(f"root lists what has failed: {job['owner']}'s {job['route']} ({why})")
        totals = (await client.get("/jobs/totals", auth=root)).json()
        running, failed, workers = totals["running"], totals["failed"], len(totals["workers"])
        print(f"root counts {running} running and {failed} failed, by {workers} worker")
        cancelled = await client.post(bob["links"]["cancel"], auth=root)
        print(f"root cancels bob's report: {cancelled.status_code}")
        opened = await client.get(ann["links"]["result"], auth=root)
        print(f"root opens ann's report: {opened.status_code}")
        own = (await client.get("/jobs", auth=("ann", ""))).json()["jobs"]
        print("ann lists:", ", ".join(f"{job['route']} {job['status']}" for job in own))
        print(f"eve lists: {(await client.get('/jobs')).status_code}")
        await client.delete(ann["links"]["result"], auth=("ann", ""))  # nobody waits for it
        await asyncio.sleep(0.1)


if __name__ == "__main__":
    asyncio.run(main())
