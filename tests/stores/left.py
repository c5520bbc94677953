"""What is left in a store, for a later version to find: the files in `fixtures` have it.

What is here stays as it is, as what old versions wrote does; a later version may add to it.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from raincheck.errors import Problem
from raincheck.job import Job, Key, Progress, State
from raincheck.messages import CapturedRequest, CapturedResponse, Head
from raincheck.stores.base import Claim, Partial, Store
from raincheck.testing.samples import body_of

DEPLOYMENT = SCHEMA = "fixture"

BODY = bytes(range(256)) * 64

REQUEST = CapturedRequest(
    method="POST",
    path="/vidéos",
    raw_path=b"/vid%C3%A9os",
    query_string=b"a=\xff",
    headers=((b"content-type", b"text/plain"), (b"x-a", b"\xe9")),
    body=b"\x00one\ntwo\xff",
    scheme="https",
    http_version="2",
    root_path="/api",
    client=("192.0.2.1", 4711),
    server=("example.org", None),
    path_params=(("tenant", "ü"), ("n", 7), ("id", UUID(int=1 << 78 | 1 << 63))),
    app_root_path="",
)

QUEUED = Job(
    id="queued",
    route="POST /vidéos",
    state=State.QUEUED,
    created_at=1700000000.25,
    fence=1,
    max_runs=3,
    replayable=True,
    holder="host-1",
    queue="videos",
    owner="ann ü",
    clients=2,
    orphaned_at=1700000000.5,
    extra={"weight": [1.5, {"of": None}]},
)
RUNNING = Job(
    id="running",
    route="r",
    state=State.RUNNING,
    created_at=1700000000.25,
    fence=1,
    runs=1,
    started_at=1700000001.0,
    progress=Progress(0.5, "halb fertig: ½"),
)
LONG = 4e9  # seconds until what has ended expires: some 130 years
DONE = RUNNING._replace(id="done").finish(
    State.SUCCEEDED,
    1700000002.5,
    ttl=LONG,
    tombstone_ttl=60.0,
    response=CapturedResponse(201, ((b"x-a", b"\xe9"), (b"x-a", b"2")), len(BODY)),
)
FAILED = RUNNING._replace(id="failed", synchronous=True).finish(
    State.FAILED,
    1700000002.5,
    ttl=LONG,
    tombstone_ttl=60.0,
    error=Problem("crashed", 500, "The handler failed", "It broke."),
)
EXPIRED = RUNNING._replace(id="gone", owner="bob").finish(
    State.CANCELLED, 1700000002.5, ttl=60.0, tombstone_ttl=LONG
)
EXPIRED_AT = 1700000062.5
CLAIMED = QUEUED._replace(id="claimed").start(1700000003.5, "here")
HEAD = Head(201, ((b"x-a", b"\xe9"),))
LASTING = Key("lasting", "fingerprint")
SHARED = Key("shared", None, lasting=False)


async def leave(store: Store) -> None:
    """Put it into an empty store."""
    await store.create(QUEUED, REQUEST, keys=(LASTING, SHARED), lease=0.0)
    await store.create(QUEUED._replace(id="claimed"), REQUEST, lease=0.0)
    claimed = await store.claim(
        "claimed", routes=(QUEUED.route,), holder="here", now=1700000003.5, lease=0.0
    )
    assert claimed == Claim(CLAIMED, REQUEST, begun=True)
    for ended in (RUNNING, DONE, FAILED, EXPIRED):
        began = RUNNING._replace(id=ended.id, owner=ended.owner, synchronous=ended.synchronous)
        await store.create(began, lease=0.0, keys=(Key("key of " + ended.id, "f"),))
        await store.append_body(ended.id, 1, 0, BODY[:10_000], head=HEAD)
        if ended is not RUNNING:
            assert await store.replace(ended, tail=BODY[10_000:] if ended is DONE else b"")
    await store.sweep(EXPIRED_AT)
    await store.learn("r", ["x-tenant", "cookie"])


async def find(store: Store) -> None:
    """See that all of it is there, and goes on."""
    for job in (QUEUED, CLAIMED, RUNNING, DONE, FAILED, EXPIRED.tombstone(EXPIRED_AT)):
        assert await store.get(job.id) == job
    assert await store.request("queued") == REQUEST
    assert await store.partial("running") == Partial(RUNNING, HEAD, 10_000)
    listed = {each.id for each in (await store.list()).jobs}
    assert listed == {"queued", "claimed", "running", "done"}
    assert (await store.totals())["r", State.SUCCEEDED].count == 1
    assert await body_of(store, "running") == BODY[:10_000]
    assert await body_of(store, "done") == BODY
    assert await body_of(store, "failed") == b""
    for key in (LASTING, SHARED):
        assert await store.find(key.name) == (QUEUED, key.fingerprint)
    assert await store.find("key of done") == (DONE, "f")
    assert await store.find("key of gone") is None
    assert await store.learned("r") == {"x-tenant", "cookie"}
    assert {each.id: each.job async for each in store.abandoned()} == {
        "queued": QUEUED,
        "claimed": CLAIMED,
        "running": RUNNING,
    }
    ending: dict[str, Any] = {"ttl": 60.0, "tombstone_ttl": 60.0}
    started = QUEUED.start(1700000100.0, "here")
    done = started.finish(State.FAILED, 1700000200.0, **ending)
    for job in (started, done, done.tombstone(1700000300.0)):
        assert await store.replace(job)
        assert await store.get("queued") == job
    assert await store.find("lasting") is None
    assert await store.append_body("running", 1, 10_000, BODY[10_000:])
    assert await body_of(store, "running") == BODY
    await store.sweep(1700000100.0)
    assert await store.get("done") == DONE
