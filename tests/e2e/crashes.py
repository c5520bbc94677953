"""Jobs submitted at full speed while something dies again and again, and what became of each."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from itertools import pairwise
from typing import Any

from raincheck.errors import INTERRUPTED, LOST_WORKER
from tests.e2e.durable import Answer, Broken, Deployment, Line, Note, Unreachable, until

ROUTES = {"rerun": 45, "once": 25, "narrow": 20, "stream": 10}
"""What is asked for, and how often out of 100."""

LONGEST = 0.5
"""Seconds that a handler takes at most."""

SUBMITTERS = 16
FOLLOWERS = 8
"""Connections at once."""

TERMINAL = ("succeeded", "failed", "canceled")

INTERRUPTIONS = (INTERRUPTED.title, LOST_WORKER.title)
"""How a job ends that may run once, if its process stops or is killed."""


@dataclass(frozen=True)
class Strike:
    """Something was killed.

    Attributes:
        at: seconds since the epoch.
        pids: the processes of the server that went.
    """

    at: float
    pids: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Outcome:
    """What a client is told of a job that has ended."""

    state: str
    finished_at: str
    status: int
    content_type: str
    digest: str
    run: str | None
    problem: str | None


@dataclass
class Accepted:
    """A job whose 202 a client saw."""

    route: str
    nonce: str
    key: str | None
    body: bytes
    url: str
    outcome: Outcome | None = None
    told_at: float = 0.0


@dataclass
class Figures:
    """What was seen.

    Attributes:
        moments: how many strikes came when.
        silent: submissions that reached the server and had no answer.
        refused: submissions refused, by title.
        ends: jobs by route and end.
        begun: how often handlers began that are known to belong to an accepted job.
        repeated: jobs that ran more than once.
        most_runs: of one job.
        delays: seconds from the strike that interrupted a first run until the second one began, if
            there was no other strike in between.
        all_delays: the same of all runs, whatever happened in between, and with their back-off.
        settled: seconds from the last strike until all jobs had ended.
        seconds: the whole.
    """

    accepted: int = 0
    moments: Counter[str] = field(default_factory=Counter)
    silent: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    ends: Counter[tuple[str, str]] = field(default_factory=Counter)
    begun: int = 0
    repeated: int = 0
    most_runs: int = 0
    delays: list[float] = field(default_factory=list)
    all_delays: list[float] = field(default_factory=list)
    settled: float = 0.0
    seconds: float = 0.0

    @property
    def median_delay(self) -> float:
        return statistics.median(self.delays) if self.delays else 0.0


class Crashes:
    """The load, the strikes and the check.

    Args:
        deployment: the server, which answers.
        strike: kills something, and sees to it that it starts again.
        chance: decides what is asked for, and when there is a strike.
        patience: seconds after the last strike until every job has to have ended.
    """

    def __init__(
        self,
        deployment: Deployment,
        strike: Callable[[random.Random], Awaitable[Strike]],
        chance: random.Random,
        *,
        jobs: int,
        kills: int,
        patience: float = 120.0,
    ) -> None:
        self._deployment = deployment
        self._strike = strike
        self._chance = chance
        self._jobs = jobs
        self._kills = kills
        self._patience = patience
        self._not_beyond = 0  # more jobs than these: the strikes are to come while they come
        self._number = 0
        self._asking = 0
        self._accepted: list[Accepted] = []
        self._strikes: list[Strike] = []
        self._answered = True  # anything, since the last strike
        self._over = False
        self._to_follow: asyncio.Queue[Accepted] = asyncio.Queue()
        self.figures = Figures()
        self.violations: list[str] = []

    async def run(self) -> None:
        """Submit, strike, and follow every job to its end; then ask once more for each."""
        start = time.time()
        async with asyncio.TaskGroup() as group:
            followers = [group.create_task(self._follow_some()) for _ in range(FOLLOWERS)]
            striking = group.create_task(self._strike_often())
            async with asyncio.TaskGroup() as submitting:
                for _ in range(SUBMITTERS):
                    submitting.create_task(self._submit_some())
            self._over = True
            await striking
            for follower in followers:
                follower.cancel()
        last = self._strikes[-1].at
        await self._follow_all([job for job in self._accepted if job.outcome is None])
        self.figures.settled = max([job.told_at for job in self._accepted], default=last) - last
        # What is read now comes from the store, and not from anybody's memory.
        await asyncio.to_thread(self._deployment.kill)
        self._deployment.start()
        await self._deployment.answering()
        ended = [job for job in self._accepted if job.outcome]
        await self._in_turn(self._read_again, ended)
        await self._in_turn(self._send_again, [job for job in ended if job.key][:50])
        self._check(self._deployment.notes())
        self.figures.seconds = time.time() - start

    # --- while it lasts ------------------------------------------------------------------------

    async def _submit_some(self) -> None:
        async with Line(self._deployment.port) as line:
            while True:
                await until(lambda: len(self._accepted) <= self._not_beyond)
                if len(self._accepted) + self._asking >= self._jobs:
                    return
                self._asking += 1
                try:
                    await self._submit(line)
                finally:
                    self._asking -= 1

    async def _submit(self, line: Line) -> None:
        self._number += 1
        route = self._chance.choices(list(ROUTES), list(ROUTES.values()))[0]
        nonce = f"order-{self._number}"
        key = f"key-{self._number}" if self._chance.random() < 0.5 else None
        order = {"nonce": nonce, "seconds": self._chance.uniform(0.0, LONGEST)}
        body = json.dumps(order).encode()
        while True:
            try:
                answer = await line.ask("POST", f"/{route}", body, key=key)
            except Unreachable:
                await asyncio.sleep(0.02)
                continue
            except Broken:
                self.figures.silent += 1
                if key is None:
                    return  # it may have been accepted; its client will never know
                continue  # the key makes it the same job, if there is one
            self._answered = True
            if answer.status != 202:
                self._refused(answer)
                await asyncio.sleep(0.05)
                return
            self._accepted.append(
                Accepted(route, nonce, key, body, answer.document()["links"]["self"])
            )
            if self._chance.random() < 0.5:  # the others are not looked at until all is over
                self._to_follow.put_nowait(self._accepted[-1])
            return

    def _refused(self, answer: Answer) -> None:
        title = answer.document()["title"] if answer.status == 503 else f"{answer.status}"
        self.figures.refused[title] += 1
        if answer.status != 503:
            self._wrong(f"a submission was answered by {answer.status}: {answer.body[:200]!r}")

    async def _strike_often(self) -> None:
        for moment in sorted(self._chance.randrange(self._jobs) for _ in range(self._kills)):
            self._not_beyond = moment + 2 * self._jobs // self._kills
            if self._chance.random() < 0.2:  # whatever it is doing: it may still be starting
                await asyncio.sleep(self._chance.uniform(0.0, 1.5))
            else:
                await self._answers()  # there may be nobody who asks until the next strike
                await until(partial(self._has_come, moment))
                await asyncio.sleep(self._chance.uniform(0.0, 2.0 if self._over else 0.1))
            when = "recovering" if self._over else "submitting" if self._answered else "starting"
            self.figures.moments[when] += 1
            self._answered = False
            self._strikes.append(await self._strike(self._chance))
        self._not_beyond = self._jobs

    async def _answers(self) -> None:
        if not self._over and not self._answered:
            await self._deployment.answering()
            self._answered = True

    def _has_come(self, moment: int) -> bool:
        return self._over or len(self._accepted) >= moment

    async def _follow_some(self) -> None:
        while True:
            await self._follow(await self._to_follow.get())

    # --- what became of them -------------------------------------------------------------------

    async def _follow_all(self, jobs: list[Accepted]) -> None:
        try:
            async with asyncio.timeout(self._patience):
                await self._in_turn(self._follow, jobs)
        except TimeoutError:
            left = [job for job in self._accepted if job.outcome is None]
            self._wrong(f"{len(left)} jobs have not ended, such as {left[0]}")

    async def _in_turn(
        self, ask: Callable[[Accepted], Awaitable[None]], jobs: list[Accepted]
    ) -> None:
        """Ask for each, over a few connections at once."""
        left = iter(jobs)

        async def some() -> None:
            for job in left:
                await ask(job)

        await asyncio.gather(*(some() for _ in range(2 * FOLLOWERS)))

    async def _follow(self, job: Accepted) -> None:
        """Ask for a job until it has ended."""
        outcome = await self._outcome(job)
        job.outcome, job.told_at = outcome, time.time()

    async def _outcome(self, job: Accepted) -> Outcome | None:
        """What a job has come to; None if that cannot be told."""
        async with Line(self._deployment.port) as line:
            while True:
                try:
                    answer = await line.ask("GET", job.url, prefer="wait=2")
                    self._answered = True
                    if answer.status == 200:
                        document = answer.document()
                        if document["status"] in TERMINAL:
                            return await self._result(line, job, document)
                        continue
                except Broken:
                    await asyncio.sleep(0.05)
                    continue
                if answer.status != 503:  # that is a store which does not answer
                    self._wrong(f"{answer.status} for {job}")
                    return None
                await asyncio.sleep(0.05)

    async def _result(self, line: Line, job: Accepted, document: dict[str, Any]) -> Outcome | None:
        answer = await line.ask("GET", document["links"]["result"])
        problem = document.get("error", {}).get("title")
        if problem is None and answer.status == 503:
            raise Broken("the store does not answer")
        stored = problem or document.get("response", {}).get("status")
        shown = answer.document()["title"] if problem else answer.status
        if stored != shown:
            self._wrong(f"the monitor says {stored}, the result {shown}: {job}")
        return Outcome(
            state=document["status"],
            finished_at=document["finished_at"],
            status=answer.status,
            content_type=answer.headers["content-type"],
            digest=sha256(answer.body).hexdigest(),
            run=None if problem else self._run_of(job, answer.body),
            problem=problem,
        )

    def _run_of(self, job: Accepted, body: bytes) -> str | None:
        """The run that a response is from, and from it alone."""
        head, brace, rest = body.partition(b"}")
        made = json.loads(head + brace)
        run = str(made["run"])
        whole = {"nonce": job.nonce, "run": run, "by": made["by"]} == made
        expected = 20 * 1024 if job.route == "stream" else 0
        if not whole or rest != run.encode() * expected:
            self._wrong(f"a response of {len(body)} bytes is not of one run: {job}")
        return run

    async def _read_again(self, job: Accepted) -> None:
        again = await self._outcome(job)
        if again != job.outcome:
            self._wrong(f"an outcome has changed to {again}: {job}")

    async def _send_again(self, job: Accepted) -> None:
        """The key of a job leads to it, whatever happened in between."""
        async with Line(self._deployment.port) as line:
            answer = await line.ask("POST", f"/{job.route}", job.body, key=job.key)
        if answer.status != 202 or answer.document()["links"]["self"] != job.url:
            self._wrong(f"its key led to {answer.status} {answer.body[:200]!r}: {job}")

    # --- the check -----------------------------------------------------------------------------

    def _check(self, notes: list[Note]) -> None:
        figures = self.figures
        figures.accepted = len(self._accepted)
        runs: defaultdict[str, list[Note]] = defaultdict(list)
        ended = {note.run for note in notes if note.what == "ended"}
        for note in notes:
            if note.what == "begun":
                runs[note.nonce].append(note)
        urls = Counter(job.url for job in self._accepted)
        if shared := [url for url, times in urls.items() if times > 1]:
            self._wrong(f"several 202s led to one job: {shared}")
        for job in self._accepted:
            began = runs[job.nonce]
            figures.begun += len(began)
            figures.repeated += len(began) > 1
            figures.most_runs = max(figures.most_runs, len(began))
            self._check_one(job, began, ended)
            self._measure(job, began, ended)

    def _check_one(self, job: Accepted, began: list[Note], ended: set[str]) -> None:
        outcome = job.outcome
        if outcome is None:
            return  # said already
        self.figures.ends[job.route, outcome.problem or outcome.state] += 1
        if outcome.state == "succeeded":
            if outcome.run not in ended & {note.run for note in began}:
                self._wrong(f"no run of it ended so: {job}")
        elif job.route != "once" or outcome.problem not in INTERRUPTIONS:
            self._wrong(f"it has not succeeded: {job}")
        if job.route == "once" and len(began) > 1:
            self._wrong(f"it ran {len(began)} times: {job}")
        if any(note.at > job.told_at for note in began):
            self._wrong(f"it ran again when its client knew the outcome: {job}")

    def _measure(self, job: Accepted, began: list[Note], ended: set[str]) -> None:
        """How long it took until an interrupted run was made up for."""
        if job.route == "narrow":
            return  # it waits for others, too
        for number, (note, following) in enumerate(pairwise(began)):
            meanwhile = [strike for strike in self._strikes if note.at <= strike.at < following.at]
            if note.run in ended or not meanwhile or note.by not in meanwhile[0].pids:
                continue
            delay = following.at - meanwhile[0].at
            self.figures.all_delays.append(delay)
            if number == 0 and len(meanwhile) == 1:
                self.figures.delays.append(delay)

    def _wrong(self, what: str) -> None:
        self.violations.append(what)


def striking(deployment: Deployment, number: int) -> Callable[[random.Random], Awaitable[Strike]]:
    """Kill a server and start it again; of several workers, every other time just one."""

    async def strike(chance: random.Random) -> Strike:
        pids = deployment.pids()
        if len(pids) > 1 and chance.random() < 0.5:  # its supervisor starts another one
            victim = chance.choice(pids)
            deployment.strike(number, victim)
            return Strike(time.time(), frozenset({victim}))
        at = time.time()
        if number == signal.SIGKILL:
            await asyncio.to_thread(deployment.kill)
        elif not await asyncio.to_thread(deployment.stop):
            raise RuntimeError("the server has not stopped")
        deployment.start()
        return Strike(at, frozenset(pids))

    return strike
