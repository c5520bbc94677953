"""A store whose bodies are encrypted: a wrapper around any other, by the store port alone.

Sealed with AES-SIV (RFC 5297) are captured requests, with their credentials, and responses: body
and header fields, `Set-Cookie` among them. As they are stay ids, routes, states, times, owners,
what handlers report, and the status and rough size of a response. Start with an empty store. Large
bodies stay in it, and not in files beside it, which `Jobs(bodies=...)` would write as they are.

`uvicorn examples.encrypted_store:app` serves it, with its jobs in the file jobs.db (RAINCHECK_KEY:
the key, 128 hexadecimal digits); `python examples/encrypted_store.py` prints

    SQLiteStore: its files have the token, the name, the cookie and the report
    EncryptedStore: its files have none of them
    GET /jobs/...: 200 report-cookie=c00k1e "The report on Ada"
    GET /jobs/..., Range: bytes=14-: 206 "Ada"
"""

import asyncio
import contextlib
import os
import struct
import tempfile
from bisect import bisect_right
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from pathlib import Path
from typing import Any

import anyio
import httpx
from cachetools import LRUCache
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from raincheck import Job, LongRunningMiddleware, State, long_running
from raincheck.errors import StoreError, UnreadableRecord
from raincheck.job import Bounds, Key
from raincheck.messages import CapturedRequest, CapturedResponse, Head
from raincheck.serialization import dump_head, dump_request, load_head, load_request
from raincheck.stores.base import (
    SMALL,
    Abandoned,
    Claim,
    Fetched,
    Found,
    Page,
    Partial,
    Store,
    Total,
    told,
)
from raincheck.stores.sqlite import SQLiteStore
from raincheck.testing import follow, lifespan

LENGTH = struct.Struct(">I")  # before each sealed piece of a body: how many bytes it has
SIZE = struct.Struct(">Q")  # before the head of a response: how many bytes its body has
OVERHEAD = 16  # bytes that sealing adds

SEALED = b"sealed"


class Places:
    """Where the pieces of a body begin: `clear` as it is read, `kept` as it is stored."""

    def __init__(self) -> None:
        self.clear, self.kept = [0], [0]  # the last of each is the end of what is known

    def add(self, start: int, clear: int, kept: int) -> None:
        """The piece that begins there, if it is the next one."""
        if start == self.clear[-1]:
            self.clear.append(start + clear)
            self.kept.append(self.kept[-1] + kept)


def whole(kept: bytearray) -> Iterator[bytes]:
    """Take the sealed pieces from the front that are there to their end."""
    while len(kept) >= LENGTH.size:
        end = LENGTH.size + LENGTH.unpack_from(kept)[0]
        if len(kept) < end:
            break
        piece = bytes(kept[LENGTH.size : end])
        del kept[:end]
        yield piece


class EncryptedStore(Store):
    """Another store, which is given no request and no response in clear.

    A piece of a body is sealed together with its job, run and place, so that none can be altered,
    put elsewhere or taken from the middle. The same piece becomes the same bytes, so that one that
    is written again after a lost answer is one that is there already; AES-SIV stands that.

    Args:
        store: the other one.
        keys: each of 32, 48 or 64 random bytes. The first one seals; what others have sealed is
            read as well, until it has expired.
    """

    def __init__(self, store: Store, *keys: bytes) -> None:
        self._store = store
        self._ciphers = [AESSIV(key) for key in keys]
        # What the class says of others is so of each one here.
        self.shared = store.shared  # type: ignore[misc]
        self.deployment = store.deployment
        # By job and fence: only the newest run has a body.
        self._places: LRUCache[tuple[str, int], Places] = LRUCache(1000)

    # --- sealing ---------------------------------------------------------------------------------

    def _seal(self, text: bytes, *about: object) -> bytes:
        return self._ciphers[0].encrypt(text, [str(word).encode() for word in about])

    def _unseal(self, sealed: bytes, *about: object) -> bytes:
        for cipher in self._ciphers:
            with contextlib.suppress(InvalidTag):
                return cipher.decrypt(sealed, [str(word).encode() for word in about])
        raise UnreadableRecord(f"{about} was altered, or sealed with another key")

    def _sealed_request(self, id: str, request: CapturedRequest | None) -> CapturedRequest | None:
        if request is None:
            return None
        return CapturedRequest("", "", None, b"", (), self._seal(dump_request(request), id))

    def _request(self, id: str, sealed: CapturedRequest | None) -> CapturedRequest | None:
        return None if sealed is None else load_request(self._unseal(sealed.body, id))

    def _sealed_head(self, id: str, head: Head, size: int = 0) -> Head:
        sealed = self._seal(SIZE.pack(size) + dump_head(head), id, "head")
        return Head(head.status, ((SEALED, sealed),))

    def _head(self, id: str, sealed: Head) -> tuple[Head, int]:
        if [name for name, _ in sealed.headers] != [SEALED]:
            raise UnreadableRecord(f"the response of job {id} was not sealed")
        text = self._unseal(sealed.headers[0][1], id, "head")
        return load_head(text[SIZE.size :]), SIZE.unpack_from(text)[0]

    async def _sealed(self, job: Job, tail: bytes = b"") -> tuple[Job, bytes]:
        """A job and the end of its body as they are kept."""
        if job.response is None:
            return job, tail
        status, headers, size = job.response
        start = max(0, size - len(tail))
        kept = await self._kept(job.id, job.fence, start)
        if tail:
            tail = self._piece(job.id, job.fence, start, tail)
        head = self._sealed_head(job.id, Head(status, headers), size)
        return job._replace(response=CapturedResponse(*head, kept + len(tail))), tail

    def _job(self, job: Job) -> Job:
        if job.response is None:
            return job
        head, size = self._head(job.id, Head(*job.response[:2]))
        return job._replace(response=CapturedResponse(*head, size))

    # --- bodies ----------------------------------------------------------------------------------

    def _piece(self, id: str, fence: int, start: int, chunk: bytes) -> bytes:
        sealed = self._seal(chunk, id, fence, start)
        return LENGTH.pack(len(sealed)) + sealed

    def _places_of(self, id: str, fence: int) -> Places:
        return self._places.setdefault((id, fence), Places())

    async def _pieces(self, id: str, kept: int) -> AsyncGenerator[bytes, None]:
        """The sealed pieces from this byte on; of one that is not whole yet nothing."""
        rest = bytearray()
        chunks = self._store.read_body(id, kept)
        try:
            async for chunk in chunks:
                rest += chunk
                for piece in whole(rest):
                    yield piece
        finally:
            close: Callable[[], Any] | None = getattr(chunks, "aclose", None)
            if close is not None:
                await close()

    async def _look(self, id: str, places: Places) -> None:
        """See where the pieces begin that are not known yet: another process may write them."""
        async with contextlib.aclosing(self._pieces(id, places.kept[-1])) as pieces:
            async for piece in pieces:
                places.add(places.clear[-1], len(piece) - OVERHEAD, LENGTH.size + len(piece))

    async def _kept(self, id: str, fence: int, start: int) -> int:
        """Where the piece is kept that begins with this byte."""
        places = self._places_of(id, fence)
        if start > places.clear[-1]:
            await self._look(id, places)
        number = bisect_right(places.clear, start) - 1
        return places.kept[number] + max(0, start - places.clear[-1])  # a gap stays one

    async def append_body(
        self, id: str, fence: int, offset: int, chunk: bytes, *, head: Head | None = None
    ) -> bool:
        kept = await self._kept(id, fence, offset)
        piece = self._piece(id, fence, offset, chunk) if chunk else b""
        sealed = None if head is None else self._sealed_head(id, head)
        taken = await self._store.append_body(id, fence, kept, piece, head=sealed)
        if taken and piece:
            self._places_of(id, fence).add(offset, len(chunk), len(piece))
        return taken

    async def read_body(self, id: str, offset: int = 0) -> AsyncIterator[bytes]:
        begun = False
        while (job := await self._store.get(id)) is not None:
            try:
                async for chunk in self._read(id, job.fence, offset):
                    begun = True
                    yield chunk
                return
            except UnreadableRecord:
                newest = await self._store.get(id)
                if newest is not None and newest.fence == job.fence:
                    raise
                if begun:
                    raise StoreError(f"job {id} began anew while its body was read") from None

    async def _read(self, id: str, fence: int, offset: int) -> AsyncIterator[bytes]:
        places = self._places_of(id, fence)
        number = bisect_right(places.clear, offset) - 1
        start = places.clear[number]
        async with contextlib.aclosing(self._pieces(id, places.kept[number])) as pieces:
            async for piece in pieces:
                chunk = self._unseal(piece, id, fence, start)
                places.add(start, len(chunk), LENGTH.size + len(piece))
                if start + len(chunk) > offset:
                    yield chunk[max(0, offset - start) :]
                start += len(chunk)

    async def fetch(self, id: str) -> Fetched | None:
        fetched = await self._store.fetch(id)
        if fetched is None:
            return None
        job = self._job(fetched.job)
        if job.response is None or job.response.size > SMALL:
            return Fetched(job, None)
        body = b""
        if fetched.body is not None:
            for piece in whole(bytearray(fetched.body)):
                body += self._unseal(piece, id, job.fence, len(body))
        else:  # it is small, and was not as it is kept
            body = b"".join([chunk async for chunk in self.read_body(id)])
        return Fetched(job, body if len(body) == job.response.size else None)

    async def partial(self, id: str) -> Partial | None:
        return await self._partial(await self._store.partial(id))

    async def _partial(self, found: Partial | None) -> Partial | None:
        if found is None or found.job.stage is None:
            return found and told(self._job(found.job))
        id, places = found.job.id, self._places_of(found.job.id, found.job.fence)
        if places.kept[-1] < found.size:
            await self._look(id, places)
        size = places.clear[bisect_right(places.kept, found.size) - 1]
        return Partial(found.job, found.head and self._head(id, found.head)[0], size)

    async def grown(self, known: Partial) -> Partial | None:
        kept = await self._kept(known.job.id, known.job.fence, known.size)
        while True:
            found = await self._store.grown(Partial(known.job, known.head, kept))
            there = await self._partial(found)
            if found is None or there is None or there.beyond(known):
                return there
            kept = found.size  # a part of a piece has come

    # --- the rest --------------------------------------------------------------------------------

    async def open(self) -> None:
        await self._store.open()

    async def name(self) -> str:
        return await self._store.name()

    async def create(
        self,
        job: Job,
        request: CapturedRequest | None = None,
        *,
        keys: Collection[Key] = (),
        lease: float | None = None,
        bounds: Bounds | None = None,
    ) -> Job:
        sealed, kept = (await self._sealed(job))[0], self._sealed_request(job.id, request)
        there = await self._store.create(sealed, kept, keys=keys, lease=lease, bounds=bounds)
        return job if there is sealed else self._job(there)

    async def get(self, id: str) -> Job | None:
        job = await self._store.get(id)
        return None if job is None else self._job(job)

    async def find(self, name: str) -> Found | None:
        found = await self._store.find(name)
        return None if found is None else Found(self._job(found.job), found.fingerprint)

    async def learn(self, route: str, names: Collection[str]) -> None:
        await self._store.learn(route, names)

    async def learned(self, route: str) -> frozenset[str]:
        return await self._store.learned(route)

    async def request(self, id: str) -> CapturedRequest | None:
        return self._request(id, await self._store.request(id))

    async def claim(
        self, id: str, *, routes: Collection[str], holder: str, now: float, lease: float | None
    ) -> Claim | None:
        claim = await self._store.claim(id, routes=routes, holder=holder, now=now, lease=lease)
        if claim is None:
            return None
        return Claim(self._job(claim.job), self._request(id, claim.request), claim.begun)

    async def replace(
        self,
        job: Job,
        *,
        keys: Collection[Key] = (),
        tail: bytes = b"",
        lease: float | None = None,
        bounds: Bounds | None = None,
    ) -> bool:
        job, tail = await self._sealed(job, tail)
        return await self._store.replace(job, keys=keys, tail=tail, lease=lease, bounds=bounds)

    async def changed(self, id: str, after_version: int) -> Job | None:
        job = await self._store.changed(id, after_version)
        return None if job is None else self._job(job)

    async def list(self, **asked: Any) -> Page:
        page = await self._store.list(**asked)
        jobs = []
        for job in page.jobs:
            with contextlib.suppress(UnreadableRecord):  # one stands in no other's way
                jobs.append(self._job(job))
        return Page(jobs, page.after)

    async def totals(self) -> dict[tuple[str, State], Total]:
        return await self._store.totals()

    async def renew(self, fences: Mapping[str, int], lease: float) -> dict[str, State]:
        return await self._store.renew(fences, lease)

    def abandoned(self) -> AsyncIterator[Abandoned]:
        return self._store.abandoned()  # they have not ended, and so have no response

    async def claim_deliveries(self, now: float, lease: float, limit: int) -> Sequence[Job]:
        return [self._job(job) for job in await self._store.claim_deliveries(now, lease, limit)]

    async def discard(self, id: str) -> bool:
        return await self._store.discard(id)

    async def sweep(self, now: float) -> bool:
        return await self._store.sweep(now)

    async def aclose(self) -> None:
        await self._store.aclose()


@long_running(max_running=1)
async def report(request: Request) -> PlainTextResponse:
    name = (await request.body()).decode(errors="replace")
    await asyncio.sleep(1)
    response = PlainTextResponse(f"The report on {name}", headers={"Accept-Ranges": "bytes"})
    response.set_cookie("report-cookie", "c00k1e")
    return response


def serving(store: Store) -> Starlette:
    middleware = [Middleware(LongRunningMiddleware, store=store)]
    return Starlette(routes=[Route("/reports", report, methods=["POST"])], middleware=middleware)


KEY = bytes.fromhex(os.environ.get("RAINCHECK_KEY", "")) or AESSIV.generate_key(512)
app = serving(EncryptedStore(SQLiteStore("jobs.db"), KEY))


async def run(app: Starlette, folder: Path) -> list[str]:
    """Send two requests, of which one has to wait; say which secrets are found in the files."""
    secrets = {"the token": b"t0k3n", "the name": b"Ada", "the cookie": b"c00k1e"}
    secrets["the report"] = b"The report on"
    found: list[str] = []

    async def search() -> None:
        files = [await path.read_bytes() async for path in anyio.Path(folder).iterdir()]
        found.extend(name for name, text in secrets.items() if any(text in file for file in files))

    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app")
    async with lifespan(app), client:
        headers = {"Authorization": "Bearer t0k3n"}
        await client.post("/reports", content=b"Bob", headers=headers)
        waiting = await client.post("/reports", content=b"Ada", headers=headers)
        await search()
        done = await follow(client, waiting)
        await search()
        if not found:
            url, cookie = waiting.headers["location"], done.headers["set-cookie"].split(";")[0]
            print("EncryptedStore: its files have none of them")
            print(f'GET {url}: {done.status_code} {cookie} "{done.text}"')
            part = await client.get(url, headers={"Range": "bytes=14-"})
            print(f'GET {url}, Range: bytes=14-: {part.status_code} "{part.text}"')
    return found


async def main() -> None:
    for seals in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            store: Store = SQLiteStore(Path(folder, "jobs.db"))
            found = await run(serving(EncryptedStore(store, KEY) if seals else store), Path(folder))
            if found:
                *names, last = dict.fromkeys(found)
                print(f"{type(store).__name__}: its files have {', '.join(names)} and {last}")


if __name__ == "__main__":
    asyncio.run(main())
