"""Jobs that are submitted to one process and asked for, cancelled and deleted in others."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.e2e.durable import Answer, Deployment, Line

LONG = 20.0
"""Seconds that a handler takes which is to be cancelled."""

WAYS = {
    "polls": 30,
    "long polls": 40,
    "cancels": 12,
    "cancels while it waits": 5,
    "deletes": 8,
    "deletes when it has ended": 5,
}
"""What becomes of a job, and how often out of 100."""

ROUTES = {"rerun": 45, "once": 35, "narrow": 10, "stream": 10}


class Sharing:
    """The load, and the check.

    Args:
        deployment: the server, with several workers, which answers.
        chance: decides what is asked for.

    Attributes:
        violations: what was not as it was promised.
        ways: what became of jobs.
        asked: requests by kind.
        cancel_delays: seconds from a cancel or a delete in another process until the handler heard.
        knowledge_delays: seconds from a handler's end until a long poll in another process was
            answered.
    """

    def __init__(self, deployment: Deployment, chance: random.Random) -> None:
        self._deployment = deployment
        self._chance = chance
        self._idle: dict[int, asyncio.Queue[Line]] = {}
        self._lines: list[Line] = []
        self._number = 0
        self._told: dict[str, float] = {}  # when a long poll was answered
        self._stopped: dict[str, float] = {}  # when a running job was told to stop
        self._succeeded: dict[str, str] = {}  # the run that a job's response is from
        self.violations: list[str] = []
        self.ways: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.cancel_delays: list[float] = []
        self.knowledge_delays: list[float] = []

    async def run(self, jobs: int, in_flight: int) -> None:
        """Submit this many jobs, and see each to its end."""
        await self._connect(2 + in_flight)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(in_flight, jobs)):
                    group.create_task(self._client(jobs))
        finally:
            for line in self._lines:
                line.close()
        self._check()

    async def _connect(self, lines: int) -> None:
        """Open so many to each process; which one takes a connection is the system's choice."""
        pids = self._deployment.pids()
        self._idle = {pid: asyncio.Queue() for pid in pids}
        async with asyncio.timeout(60):
            while any(idle.qsize() < lines for idle in self._idle.values()):
                line = Line(self._deployment.port)
                self._lines.append(line)
                pid = (await line.ask("GET", "/plain")).by
                if self._idle[pid].qsize() < lines:
                    self._idle[pid].put_nowait(line)
                else:
                    line.close()

    @asynccontextmanager
    async def _line(self, *others: int) -> AsyncIterator[Line]:
        """A connection to another process than these."""
        pid = self._chance.choice([pid for pid in self._idle if pid not in others])
        line = await self._idle[pid].get()
        try:
            yield line
        finally:
            self._idle[pid].put_nowait(line)

    async def _ask(
        self, what: str, method: str, url: str, *others: int, prefer: str | None = None
    ) -> Answer:
        self.asked[what] += 1
        async with self._line(*others) as line:
            return await line.ask(method, url, prefer=prefer)

    async def _client(self, last: int) -> None:
        while self._number < last:
            self._number += 1
            await self._job(f"order-{self._number}")

    async def _job(self, nonce: str) -> None:
        way = self._chance.choices(list(WAYS), list(WAYS.values()))[0]
        route = self._chance.choices(list(ROUTES), list(ROUTES.values()))[0]
        seconds = self._chance.uniform(0.0, 0.1 if route == "narrow" else 0.5)
        if way in ("cancels", "deletes"):
            route, seconds = "once", LONG
        elif way == "cancels while it waits":
            route, seconds = "narrow", 0.1
        self.ways[way] += 1
        self.asked["submissions"] += 1
        async with self._line() as line:
            order = json.dumps({"nonce": nonce, "seconds": seconds}).encode()
            accepted = await line.ask("POST", f"/{route}", order)
        if accepted.status != 202:
            self._wrong(nonce, "a submission", accepted)
            return
        home, links = accepted.by, accepted.document()["links"]
        at_once = await self._ask("polls", "GET", links["self"], home)
        if at_once.status != 200:
            self._wrong(nonce, "a poll at once", at_once)
        if way == "polls":
            await self._poll(nonce, links, home)
        elif way in ("long polls", "deletes when it has ended"):
            await self._wait(nonce, links, home)
        if way == "deletes when it has ended":
            await self._delete(nonce, links, home, 204)
        elif way == "deletes":
            await self._delete(nonce, links, home, 202)
        elif way == "cancels":
            await self._cancel(nonce, links, home)
        elif way == "cancels while it waits":
            await self._cancel_waiting(nonce, links, home)

    async def _poll(self, nonce: str, links: dict[str, str], home: int) -> None:
        while True:
            answer = await self._ask("polls", "GET", links["result"], home)
            if answer.status != 202:
                self._take(nonce, answer)
                return
            await asyncio.sleep(0.1)

    async def _wait(self, nonce: str, links: dict[str, str], home: int) -> None:
        """Follow by long polls, each in a process chosen anew."""
        while True:
            answer = await self._ask("long polls", "GET", links["result"], home, prefer="wait=10")
            if answer.status != 202:
                self._told[nonce] = time.time()
                self._take(nonce, answer)
                return

    def _take(self, nonce: str, answer: Answer) -> None:
        if answer.status != 200:
            self._wrong(nonce, "a result", answer)
            return
        made = json.loads(answer.body.partition(b"}")[0] + b"}")
        if made["nonce"] != nonce:
            self._wrong(nonce, "a result of another job", answer)
        self._succeeded[nonce] = made["run"]

    async def _cancel(self, nonce: str, links: dict[str, str], home: int) -> None:
        """Cancel in one process what runs in another, while a third waits for it."""
        waiting = asyncio.create_task(
            self._ask("long polls", "GET", links["self"], home, prefer="wait=10")
        )
        await asyncio.sleep(self._chance.uniform(0.0, 0.2))
        self._stopped[nonce] = time.time()
        answer = await self._ask("cancels", "POST", links["cancel"], home)
        if answer.status not in (200, 202):  # 200: it has stopped already
            self._wrong(nonce, "a cancel", answer)
        answer = await waiting
        while answer.status == 200 and answer.document()["status"] in ("running", "canceling"):
            answer = await self._ask("long polls", "GET", links["self"], home, prefer="wait=10")
        if answer.status != 200 or answer.document()["status"] != "canceled":
            self._wrong(nonce, "a cancelled job", answer)

    async def _cancel_waiting(self, nonce: str, links: dict[str, str], home: int) -> None:
        """Cancel what may wait, run, or have ended."""
        cancelled = await self._ask("cancels", "POST", links["cancel"], home)
        answer = cancelled
        while answer.status in (200, 202) and answer.document()["status"] == "canceling":
            answer = await self._ask("long polls", "GET", links["self"], home, prefer="wait=10")
        result = await self._ask("polls", "GET", links["result"], home)
        if result.status == 200:  # it was too late
            self._take(nonce, result)
        elif result.status != 410 or cancelled.status == 409:
            self._wrong(nonce, f"after a cancel answered {cancelled.status}", result)

    async def _delete(self, nonce: str, links: dict[str, str], home: int, expected: int) -> None:
        if expected == 202:
            self._stopped[nonce] = time.time()
        answer = await self._ask("deletes", "DELETE", links["result"], home)
        if answer.status != expected:
            self._wrong(nonce, "a delete", answer)
        for url in links["result"], links["self"]:
            answer = await self._ask("polls", "GET", url, answer.by)
            if answer.status != 410:
                self._wrong(nonce, "after a delete", answer)

    def _check(self) -> None:
        notes = self._deployment.notes()
        runs: defaultdict[str, dict[str, float]] = defaultdict(dict)
        ends: dict[tuple[str, str], float] = {}
        for note in notes:
            if note.what == "begun":
                runs[note.nonce][note.run] = note.at
            else:
                ends[note.nonce, note.what] = note.at
        for nonce, began in runs.items():
            if len(began) != 1:
                self.violations.append(f"{nonce} ran {len(began)} times")
        for nonce, run in self._succeeded.items():
            if run not in runs[nonce]:
                self.violations.append(f"{nonce} has the response of another run")
            elif nonce in self._told:
                self.knowledge_delays.append(self._told[nonce] - ends[nonce, "ended"])
        for nonce, told in self._stopped.items():
            stopped = ends.get((nonce, "stopped"))
            if stopped is None:
                self.violations.append(f"{nonce} has not heard that it is to stop")
            else:
                self.cancel_delays.append(stopped - told)

    def _wrong(self, nonce: str, what: str, answer: Answer) -> None:
        self.violations.append(f"{nonce}: {what}: {answer.status} {answer.body[:300]!r}")
