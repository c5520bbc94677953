"""The commands: what can be written behind `raincheck`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from errno import ENOSPC
from importlib.metadata import version
from math import isnan
from pathlib import Path
from typing import Any, TypeVar

import click
import httpx2

from raincheck.cli.display import display_for
from raincheck.cli.following import CONNECT, POLL, Conversation, Output, deliver, job_at
from raincheck.cli.outcomes import Exit, Stop, of_answer, of_job
from raincheck.cli.printable import printable
from raincheck.cli.requests import Body, build
from raincheck.client.knowledge import Knowledge
from raincheck.client.wire import has_ended
from raincheck.errors import ConfigurationError

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the commands that ask a server have in common.

    Attributes:
        headers, user, insecure: how it is asked.
        output, include: where the answer goes.
        silent: whether progress is shown.
        deadline: seconds that it may take.
    """

    headers: Sequence[str]
    user: str | None
    insecure: bool
    output: str | None = None
    include: bool = False
    silent: bool = False
    deadline: float | None = None

    def check(self) -> None:
        """Say before anything is sent that its answer would have no place."""
        output = self.output
        if output == "":  # as of a variable that is not set
            raise click.BadParameter("it is empty; name a file, or - for stdout", param_hint="-o")
        if output not in (None, "-") and not Path(str(output)).absolute().parent.is_dir():
            raise click.BadParameter(f"there is no directory for {output!r}", param_hint="-o")

    @property
    def place(self) -> Output:
        """Where the answer goes."""
        return Output(path=self.output, include=self.include)

    def client(self, *, read: float | None = None) -> httpx2.Client:
        """A client that waits for an answer as long as it takes, and asks for no coding of it."""
        try:
            client = httpx2.Client(
                verify=not self.insecure,
                timeout=httpx2.Timeout(read, connect=CONNECT),
                headers={"user-agent": f"raincheck/{version('raincheck')}"},
            )
        except (ImportError, OSError, ValueError) as error:  # of what it reads there
            raise Stop(
                Exit.USAGE,
                "no request can be sent by what the environment says of proxies and certificates "
                f"(HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE): {error}",
            ) from error
        del client.headers["accept-encoding"]
        return client

    def request(self, client: httpx2.Client, method: str, url: str, **more: Any) -> httpx2.Request:
        """A request with these fields."""
        return build(client, method, url, headers=self.headers, user=self.user, **more)

    def conversation(
        self, client: httpx2.Client, request: httpx2.Request, *, known: Knowledge | None = None
    ) -> Conversation:
        """What is said about one job."""
        return Conversation(
            client,
            request,
            display_for(silent=self.silent),
            known=known,
            deadline=self.deadline,
            resume=self._resume(),
        )

    def _resume(self) -> list[str]:
        """The words that go on with a job, without secrets: of a field its name is enough."""
        words = ["raincheck", "watch"]
        for given in self.headers:
            name, colon, _ = given.partition(":")
            if given.startswith("@"):
                words += ["-H", given]
            elif colon and name.strip().lower() not in _OF_THE_REQUEST:
                words += ["-H", f"{name.strip()}: ..."]
        if self.user is not None:
            words += ["-u", self.user.partition(":")[0]]
        if self.insecure:
            words.append("-k")
        return [*words, *(["-o", self.output] if self.output else [])]


class _Seconds(click.FloatRange):
    """A range that has no place for what is no number."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if isnan(found):
            self.fail(f"{value!r} is no number.", param, ctx)
        return found


_ASYNC = [("prefer", "respond-async")]

_MONTHS = 1e7
"""Seconds that nobody waits for; what is more than that, or no number, is a mistake."""

_OF_THE_REQUEST = ("content-type", "prefer", "idempotency-key", "accept")
"""Fields that are not needed to ask for a job."""


def run() -> int:
    """Run the command line of this process.

    Returns:
        Its exit code.
    """
    try:
        return int(raincheck.main(prog_name="raincheck", standalone_mode=False) or 0)
    except ConfigurationError as error:
        click.echo(f"raincheck: {error}", err=True)
        return Exit.USAGE
    except Stop as stop:
        stop.show()
        return stop.code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return Exit.INTERRUPTED
    except OSError as error:
        if error.errno != ENOSPC:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nor can what is left be written at the end
        with suppress(OSError):  # stderr may be there, too
            click.echo(f"raincheck: stdout cannot be written: {error.strerror}", err=True)
        return Exit.UNWRITTEN


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="raincheck", message="raincheck %(version)s")
def raincheck() -> None:
    """Send requests that are answered 202, follow their jobs, and serve apps that answer so."""


def _of_client(command: F) -> F:
    """The options of all commands that ask a server."""
    options = (
        click.option(
            "-H",
            "--header",
            "headers",
            multiple=True,
            metavar="'NAME: VALUE'",
            help="A header field; 'Name:' leaves it out, @FILE reads lines of them.",
        ),
        click.option("-u", "--user", metavar="NAME:PASSWORD", help="Basic authentication."),
        click.option("-k", "--insecure", is_flag=True, help="Do not verify certificates of TLS."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _of_output(command: F) -> F:
    """The options of those that print an answer."""
    options = (
        click.option(
            "-o",
            "--output",
            metavar="FILE",
            type=click.Path(dir_okay=False, writable=True, allow_dash=True),
            help="Write the body there; - is stdout, whatever it is.",
        ),
        click.option("-i", "--include", is_flag=True, help="Write status and fields before it."),
        click.option("-s", "--silent", is_flag=True, help="Show no progress."),
        click.option(
            "--deadline",
            type=_Seconds(min=0, max=_MONTHS, min_open=True),
            metavar="SECONDS",
            help="How long it may take in all; then the job goes on without you.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@raincheck.command()
@click.argument("method_and_url", metavar="[METHOD] URL", nargs=-1, required=True)
@click.option("-X", "--request", "method", metavar="METHOD", help="The method, as curl has it.")
@click.option("-d", "--data", multiple=True, help="A body; @FILE reads one, without its line ends.")
@click.option("--data-binary", "binary", multiple=True, help="A body; @FILE reads one as it is.")
@click.option("--json", multiple=True, help="A body of JSON, and the fields that say so; or @FILE.")
@click.option(
    "-F", "--form", multiple=True, help="A part of a form: name=value, or name=@FILE;type=TYPE."
)
@click.option("--detach", is_flag=True, help="Print the status URL, and wait for nothing.")
@_of_client
@_of_output
def request(
    method_and_url: Sequence[str],
    method: str | None,
    data: Sequence[str],
    binary: Sequence[str],
    json: Sequence[str],
    form: Sequence[str],
    detach: bool,
    **said: Any,
) -> int:
    """Send a request, as curl does, and wait for the job that it may become.

    The body of the final response goes to stdout or to -o FILE, progress to stderr. Without a
    METHOD it is POST if there is a body, else GET. Ctrl-C asks what is to become of the job.
    """
    body = Body(data=data, binary=binary, json=json, form=form)
    *before, url = method_and_url
    if len(before) + (method is not None) > 1:
        raise click.UsageError("there is more than one method; give METHOD URL")
    verb = (before[0] if before else method) or ("GET" if body.empty else "POST")
    options = Options(**said)
    options.check()
    with options.client() as client:
        made = options.request(client, verb.upper(), url, body=body, otherwise=_ASYNC)
        talk = options.conversation(client, made)
        answer = talk.submit()
        if answer is not None:
            return deliver(answer, options.place, of_answer(answer), talk)
        if detach:
            click.echo(talk.status_url)
            return Exit.SUCCEEDED
        return _waited(talk, options)


def _waited(talk: Conversation, options: Options) -> int:
    """Wait for the end of the job, and print its response."""
    answer = talk.wait()
    return deliver(answer, options.place, of_job(answer), talk)


@raincheck.command()
@click.argument("status_url")
@_of_client
@_of_output
def watch(status_url: str, **said: Any) -> int:
    """Wait for a job by its STATUS_URL, and print its response."""
    options = Options(**said)
    options.check()
    with options.client() as client:
        made = options.request(client, "GET", status_url)
        return _waited(options.conversation(client, made, known=job_at(made)), options)


@raincheck.command()
@click.argument("status_url")
@_of_client
def cancel(status_url: str, **said: Any) -> int:
    """Ask the job of a STATUS_URL to stop, and print how it stands then."""
    options = Options(silent=True, **said)
    with options.client() as client:
        made = options.request(client, "GET", status_url)
        document = options.conversation(client, made, known=job_at(made)).cancel()
    word = printable(document["status"]).lower()
    click.echo(word)
    stopped = word in ("canceled", "cancelled") or not has_ended(document)
    return Exit.SUCCEEDED if stopped else Exit.ENDED_BEFORE


@raincheck.command(name="list")
@click.argument("url")
@click.option("--status", help="Only jobs that stand so: running, or queued,running.")
@click.option("--route", help="Only jobs of this route.")
@click.option("--owner", help="Only jobs of this owner.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
@click.option("--watch", "watching", is_flag=True, help="Show it again and again, until Ctrl-C.")
@click.option(
    "--every",
    type=_Seconds(min=0.1, max=_MONTHS),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How often --watch asks.",
)
@_of_client
def list_(
    url: str,
    status: str | None,
    route: str | None,
    owner: str | None,
    limit: int,
    watching: bool,
    every: float,
    **said: Any,
) -> int:
    """Show the jobs at the URL of a server's jobs, the newest first, as a table.

    They are all jobs for an operator, and one's own for others, where the server lists them at all.
    """
    from raincheck.cli.listing import Listing, follow, show

    asked = {"status": status, "route": route, "owner": owner, "limit": str(min(limit, 200))}
    options = Options(**said)
    with options.client(read=POLL) as client:
        made = options.request(client, "GET", url)
        wanted = made.url.copy_merge_params(
            {name: value for name, value in asked.items() if value is not None}
        )
        extensions = {"timeout": client.timeout.as_dict()}
        made = httpx2.Request("GET", wanted, headers=made.headers, extensions=extensions)
        listing = Listing(client, made, limit)
        if not watching:
            show(listing)
            return Exit.SUCCEEDED
        with suppress(KeyboardInterrupt):
            follow(listing, every)
        return Exit.SUCCEEDED


@raincheck.command()
@click.argument("app", metavar="MODULE:APP")
@click.argument("uvicorn", metavar="[-- UVICORN'S OPTIONS]", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--route",
    "routes",
    multiple=True,
    metavar="'[METHOD] PATH [FIELD=VALUE ...]'",
    help="A long-running route, and perhaps fields of its policy. Again for more.",
)
@click.option(
    "--policy", multiple=True, metavar="FIELD=VALUE", help="Holds for all of them. Again for more."
)
@click.option("--limits", multiple=True, metavar="FIELD=VALUE", help="Holds for all together.")
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A TOML file that says the same. Options come before it.",
)
@click.option(
    "--store",
    envvar="RAINCHECK_STORE",
    show_envvar=True,
    metavar="URL",
    help="memory:, sqlite:FILE, redis://... or postgresql://...; memory: if nothing is said.",
)
@click.option("--deployment", help="The name of what runs there; for the last two.")
@click.option("--path", help="Where the status routes are: /jobs if nothing is said.")
@click.option("--base-url", help="Makes URLs absolute.")
@click.option("--owner", help="Whose a request is: header:NAME, cookie:NAME or MODULE:FUNCTION.")
@click.option("--operator", help="Who may list all jobs: MODULE:FUNCTION.")
@click.option("--own-list/--no-own-list", default=None, help="Owners may list their own jobs.")
@click.option("--factory", is_flag=True, help="MODULE:APP is a function that makes the app.")
@click.option("--wsgi", is_flag=True, help="The app is one of WSGI (extra wsgi).")
@click.option("--check", is_flag=True, help="Show which routes each rule matches, and serve none.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option(
    "--workers", type=click.IntRange(min=1), help="Processes: $WEB_CONCURRENCY if nothing is said."
)
def serve(
    app: str,
    uvicorn: Sequence[str],
    config: Path | None,
    factory: bool,
    wsgi: bool,
    check: bool,
    host: str,
    port: int,
    workers: int | None,
    **said: Any,
) -> int:
    """Serve an app whose code is not touched, with long-running routes, under uvicorn."""
    from raincheck.cli.serving import Served, show
    from raincheck.cli.serving import serve as start
    from raincheck.cli.settings import Settings, read, with_options

    settings = with_options(Settings() if config is None else read(config), **said)
    served = Served(app=app, factory=factory, wsgi=wsgi, settings=settings)
    if check:
        found = served.load()
        served.wrapped(found)
        return show(served.checked(found))
    arguments = ["--host", host, "--port", str(port), *uvicorn]
    start(served, arguments if workers is None else [f"--workers={workers}", *arguments])
    return Exit.SUCCEEDED
