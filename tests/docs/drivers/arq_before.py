"""Drives `before.py` of arq's section, with arq's own worker; it runs where arq is installed."""

import asyncio

import before
import httpx
from arq import Worker


async def main() -> None:
    transport = httpx.ASGITransport(before.app)
    async with (
        before.lifespan(before.app),
        httpx.AsyncClient(transport=transport, base_url="http://t") as client,
    ):
        accepted = await client.post("/reports?year=2026")
        assert accepted.status_code == 202, accepted.text
        place = f"/reports/{accepted.json()['id']}"
        assert (await client.get(place)).json() == {"status": "queued"}
        settings = before.WorkerSettings
        worker = Worker(settings.functions, redis_settings=settings.redis_settings, burst=True)
        await worker.async_run()
        await worker.close()
        print((await client.get(place)).json())


asyncio.run(main())
