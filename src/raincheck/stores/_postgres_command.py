"""`python -m raincheck.stores.postgres migrate`: the tables, by somebody who may make them."""

from __future__ import annotations

import asyncio
import sys
from argparse import ArgumentParser

from raincheck.errors import ConfigurationError, StoreError
from raincheck.stores._postgres_schema import migrate, script
from raincheck.stores._postgres_server import FAILURES, Server

_PATIENCE = 60.0
"""Seconds until the server has to let it in. Statements take the time that large tables need."""


def main() -> None:
    """Do what the command line says; what fails is said on standard error, and the status is 1."""
    parser = ArgumentParser(prog="python -m raincheck.stores.postgres")
    command = parser.add_subparsers(metavar="migrate", required=True).add_parser(
        "migrate",
        help="make the tables of PostgresStore, or bring them up to date",
        description="Makes the tables of PostgresStore, or brings them up to date.",
    )
    command.add_argument(
        "dsn", help="as PostgresStore takes it; the password may be in PGPASSWORD instead"
    )
    command.add_argument("--schema", default="raincheck", help="where the tables are (%(default)s)")
    command.add_argument(
        "--print",
        action="store_true",
        dest="printed",
        help="change nothing; print the SQL, for psql and somebody who may run it, with the grants "
        "that the role of the DSN needs",
    )
    arguments = parser.parse_args()
    try:
        said = asyncio.run(_migrated(arguments.dsn, arguments.schema, arguments.printed))
    except (ConfigurationError, StoreError) as error:
        sys.exit(str(error))
    sys.stdout.write(said)


async def _migrated(dsn: str, schema: str, printed: bool) -> str:
    # Only tables from before deployments would go to one by name, and no release made any.
    server = Server(dsn, "raincheck", schema, _PATIENCE, False)
    try:
        connection = await server.connect()
        try:
            if printed:
                return await script(server, connection)
            before, now = await migrate(server, connection)
        finally:
            connection.terminate()
    except FAILURES as error:
        raise server.failure(error) from error
    return f"schema {schema}: the tables have version {now}, and had {before}\n"
