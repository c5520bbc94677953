"""A form in a browser: a page with a progress bar and a button that cancels, then the download.

`uvicorn examples.browser_form:app` serves it, for a browser at http://127.0.0.1:8000.
`python examples/browser_form.py` does what a browser without JavaScript does, and prints

    POST /reports: 303, see /jobs/...
    GET /jobs/...: 202, a page: In progress 33%, wrote page 1 of 3
    GET /jobs/...: 202, a page: In progress 67%, wrote page 2 of 3
    GET /jobs/...: 202, a page: In progress 100%, wrote page 3 of 3
    GET /jobs/...: 200, report.txt: 3 pages
    POST /jobs/.../cancel: 303, then 410, a page: It was canceled
"""

import asyncio
import re
from urllib.parse import urljoin

import httpx
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.routing import Route

from raincheck import LongRunningMiddleware, long_running, report
from raincheck.testing import lifespan

FORM = """<!doctype html><html lang="en"><title>Reports</title><h1>A report</h1>
<form method="post" action="reports"><button>Write it</button></form></html>"""


async def form(request: Request) -> HTMLResponse:
    return HTMLResponse(FORM)


@long_running
async def write(request: Request) -> PlainTextResponse:
    for page in (1, 2, 3):
        await asyncio.sleep(2)
        report(page / 3, f"wrote page {page} of 3")
    await asyncio.sleep(1)
    headers = {"Content-Disposition": 'attachment; filename="report.txt"'}
    return PlainTextResponse("3 pages", headers=headers)


routes = [Route("/", form), Route("/reports", write, methods=["POST"])]
app = Starlette(routes=routes, middleware=[Middleware(LongRunningMiddleware)])


async def main() -> None:
    browser = {"accept": "text/html,*/*;q=0.8"}
    transport = httpx.ASGITransport(app)
    client = httpx.AsyncClient(transport=transport, base_url="http://app", headers=browser)
    async with lifespan(app), client:
        sent = await client.post("/reports")
        url = sent.headers["location"]
        print(f"POST /reports: {sent.status_code}, see {url}")
        told = ""
        while (page := await client.get(url)).status_code == 202:
            state, percent, message = (shown(page, id) for id in ("state", "percent", "message"))
            if message not in ("", told):
                print(f"GET {url}: 202, a page: {state} {percent}, {message}")
                told = message
            await asyncio.sleep(0.5)
        name = page.headers["content-disposition"].split('"')[1]
        print(f"GET {url}: {page.status_code}, {name}: {page.text}")

        url = (await client.post("/reports")).headers["location"]
        sent = await client.post(url + "/cancel")
        back = urljoin(url + "/cancel", sent.headers["location"])
        await asyncio.sleep(0.5)
        page = await client.get(back)
        title = re.findall(r"<title>(.*)</title>", page.text)[0]
        print(f"POST {url}/cancel: {sent.status_code}, then {page.status_code}, a page: {title}")


def shown(page: httpx.Response, id: str) -> str:
    found = re.search(rf'id="{id}".*?>(.*?)<', page.text)
    return "" if found is None else found[1]


if __name__ == "__main__":
    asyncio.run(main())
