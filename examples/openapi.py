"""OpenAPI: the document says what the slow route really answers, and how to go on from there.

`uvicorn examples.openapi:app` serves it, pages too (/docs); `python examples/openapi.py` prints

    POST /reports answers 200, 202, 303, 400, 413, 422, 500, 502, 503, 504
    its 202 has Location, Retry-After, and leads to result, delete, monitor, events, stream, cancel
    the client asks jobs_result at /jobs/{job_id}
    202 running, then 200 {"pages":3}
"""

import asyncio

import httpx
from fastapi import FastAPI

from raincheck import LongRunningMiddleware, long_running
from raincheck.openapi import install
from raincheck.testing import lifespan

app = FastAPI()
app.add_middleware(LongRunningMiddleware)
install(app)  # the one line; before the routes or after them


@app.post("/reports")
@long_running(timeout=60)
async def report(pages: int = 3) -> dict[str, int]:
    await asyncio.sleep(0.2)
    return {"pages": pages}


async def main() -> None:
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app")
    async with lifespan(app), client:
        paths = (await client.get("/openapi.json")).json()["paths"]
        responses = paths["/reports"]["post"]["responses"]
        print("POST /reports answers", ", ".join(sorted(responses)))
        fields, links = responses["202"]["headers"], responses["202"]["links"]
        names = [name for name in ("Location", "Retry-After") if name in fields]
        print(f"its 202 has {', '.join(names)}, and leads to {', '.join(links)}")
        asked = links["result"]["operationId"]  # as a generated client does
        (path,) = (path for path in paths if paths[path].get("get", {}).get("operationId") == asked)
        print(f"the client asks {asked} at {path}")
        accepted = await client.post("/reports")
        job = accepted.json()
        url = path.replace("{job_id}", job["job_id"])
        done = await client.get(url, headers={"prefer": "wait=10"})
        print(f"{accepted.status_code} {job['status']}, then {done.status_code} {done.text}")


if __name__ == "__main__":
    asyncio.run(main())
