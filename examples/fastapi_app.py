"""FastAPI: validation answers at once; dependencies and uploads stay open for the handler.

`uvicorn examples.fastapi_app:app` serves it; `python examples/fastapi_app.py` prints

    no file: 422 Field required
    a file: 202, see /jobs/...
    the job: 201 {"rows":3,"session_open":true}
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

import httpx
from fastapi import Depends, FastAPI, UploadFile

from raincheck import LongRunningMiddleware, long_running
from raincheck.testing import follow, lifespan


class Session:
    """Stands for one of a database."""

    open = True


async def open_session() -> AsyncIterator[Session]:
    session = Session()
    yield session
    session.open = False


app = FastAPI()
app.add_middleware(LongRunningMiddleware)


@app.post("/imports", status_code=201)
@long_running(timeout=600)  # below the path decorator, next to the function
async def import_users(
    file: UploadFile, session: Annotated[Session, Depends(open_session)]
) -> dict[str, int | bool]:
    await asyncio.sleep(0.5)  # the 202 has long gone; the upload and the session are still there
    rows = (await file.read()).splitlines()
    return {"rows": len(rows), "session_open": session.open}


async def main() -> None:
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app")
    async with lifespan(app), client:
        invalid = await client.post("/imports")
        print(f"no file: {invalid.status_code} {invalid.json()['detail'][0]['msg']}")
        files = {"file": ("users.csv", b"ada\ngrace\nbarbara\n")}
        accepted = await client.post("/imports", files=files)
        print(f"a file: {accepted.status_code}, see {accepted.headers['location']}")
        done = await follow(client, accepted)
        print(f"the job: {done.status_code} {done.text}")


if __name__ == "__main__":
    asyncio.run(main())
