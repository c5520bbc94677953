"""The world outside: receivers of all kinds, which verify what comes, and take it once."""

import asyncio
from collections import Counter, defaultdict

from standardwebhooks import Webhook, WebhookVerificationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


class Receivers:
    """One for each path; its first word says how that behaves.

    Args:
        secret: what senders sign with.

    Attributes:
        tries: how often each was told something.
        taken: the ids of what each has taken, in order.
        doubles: how often each was told what it had taken before.
        late_has_taken: it answers when all is over.
        over: those that hang may go.
    """

    def __init__(self, secret: str) -> None:
        self._webhook = Webhook(secret)
        self.tries = Counter[str]()
        self.taken = defaultdict[str, list[str]](list)
        self.doubles = Counter[str]()
        self.late_has_taken = asyncio.Event()
        self.over = asyncio.Event()
        self.app = Starlette(routes=[Route("/{name}", self.receive, methods=["POST"])])

    async def receive(self, request: Request) -> Response:
        name = request.path_params["name"]
        self.tries[name] += 1
        first = self.tries[name] == 1
        try:  # wrong, or older than five minutes
            self._webhook.verify(await request.body(), dict(request.headers))
        except WebhookVerificationError:
            return Response(status_code=401)
        match name:
            case "fails" if self.tries[name] < 3:
                return Response(status_code=503)
            case "busy" if first:
                return Response(status_code=429, headers={"retry-after": "2"})
            case "hangs" if first:
                await self.over.wait()
            case "moved":
                return Response(status_code=307, headers={"location": "/fails"})
            case "gone":
                return Response(status_code=410)
        # Take it, and remember that, in one transaction; for as long as senders try again.
        id = request.headers["webhook-id"]
        if id in self.taken[name]:
            self.doubles[name] += 1
        else:
            self.taken[name].append(id)
        if name == "late" and first:
            self.late_has_taken.set()
            await self.over.wait()
        return Response(status_code=204)
