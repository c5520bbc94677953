"""A process with a job whose end it tells: `python -m tests.doubles.delivering FILE URL`."""

from __future__ import annotations

import sys
from typing import Any

import anyio
from starlette.requests import Request

from raincheck import Jobs
from raincheck.callbacks import Callbacks
from raincheck.runtime import deliveries
from raincheck.stores.sqlite import SQLiteStore
from tests.doubles.receivers import SECRET
from tests.support import app_of, running, slow_route


async def main(path: str, url: str) -> None:
    async def done(request: Request) -> Any:
        return {"rows": 7}

    callbacks = Callbacks(secrets=[SECRET], allow=[url], timeout=5)
    jobs = Jobs(store=SQLiteStore(path), callbacks=callbacks)
    async with running(app_of(slow_route(done), jobs=jobs)) as client:
        await client.post("/slow", headers={"prefer": f'callback; url="{url}"'})
        await anyio.sleep(60)


if __name__ == "__main__":
    deliveries._MARGIN = 1.0  # a lease of six seconds
    anyio.run(main, sys.argv[1], sys.argv[2])
