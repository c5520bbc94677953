"""The tables of `PostgresStore`, and how they are brought up to date."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from shlex import quote
from typing import Any

import asyncpg  # type: ignore[import-untyped]  # it brings no types

from raincheck.stores._postgres_server import Server, quoted
from raincheck.stores.servers import NeverWorks

MIGRATIONS = (
    # Collation "C" compares bytes: it is the fastest, and no upgrade of the system's C library
    # leaves its indexes out of order. What is compressed already need not be compressed by TOAST.
    """
    CREATE TABLE raincheck.version (number integer NOT NULL);
    INSERT INTO raincheck.version VALUES (0);

    CREATE TABLE raincheck.jobs (
        id text COLLATE "C" PRIMARY KEY,
        version integer NOT NULL,
        fence integer NOT NULL,
        route bytea NOT NULL,       -- digests: a name may be longer than what an index takes
        owner bytea,
        state text COLLATE "C",     -- of a job that is unfinished
        gone boolean NOT NULL,      -- whether it is a tombstone
        due double precision,       -- when it expires, or the tombstone goes: seconds, epoch
        lease_until timestamptz,    -- by this server's clock
        record text NOT NULL        -- the job itself, as JSON
    );
    CREATE INDEX ON raincheck.jobs (lease_until, id) WHERE lease_until IS NOT NULL;
    CREATE INDEX ON raincheck.jobs (due) WHERE due IS NOT NULL AND NOT gone;
    CREATE INDEX ON raincheck.jobs (due) WHERE gone;
    CREATE INDEX ON raincheck.jobs (route, state, owner) WHERE state IS NOT NULL;  -- for bounds

    CREATE TABLE raincheck.keys (
        key text COLLATE "C" PRIMARY KEY,
        id text COLLATE "C" NOT NULL
    );
    CREATE INDEX ON raincheck.keys (id);

    CREATE TABLE raincheck.requests (
        id text COLLATE "C" PRIMARY KEY,
        request bytea NOT NULL
    );
    ALTER TABLE raincheck.requests ALTER request SET STORAGE EXTERNAL;

    CREATE TABLE raincheck.chunks (
        id text COLLATE "C",
        fence integer,
        start bigint,               -- its place in the response body, in bytes
        chunk bytea NOT NULL,
        PRIMARY KEY (id, fence, start)
    );
    ALTER TABLE raincheck.chunks ALTER chunk SET STORAGE EXTERNAL;

    -- Which bound a job would break by coming to one of these states: 'owner', 'route' or NULL.
    -- Its lock is held until the caller's change is committed, and the statements behind it see all
    -- that was committed before they got it: the caller's own may have begun long before. No more
    -- is counted than there may be. The setting is that of the store's connections, which those
    -- through a proxy do not have.
    CREATE FUNCTION raincheck.no_room(
        job text, before integer, others text[], schema text, route_of_job bytea,
        owner_of_job bytea, states text[], route_bound integer, owner_bound integer
    ) RETURNS text LANGUAGE plpgsql SET enable_seqscan = off AS $no_room$
    DECLARE
        broken text;
    BEGIN
        PERFORM pg_advisory_xact_lock(
            hashtextextended(
                concat_ws(' ', 'raincheck', schema, states[1], encode(route_of_job, 'hex')), 0
            )
        );
        IF owner_bound <= (SELECT count(*) FROM (
            SELECT FROM raincheck.jobs
            WHERE route = route_of_job AND owner = owner_of_job
                AND state = ANY (states) AND state IS NOT NULL
            LIMIT coalesce(owner_bound, 0)
        ) AS alike) THEN
            broken := 'owner';
        ELSIF route_bound <= (SELECT count(*) FROM (
            SELECT FROM raincheck.jobs
            WHERE route = route_of_job AND state = ANY (states) AND state IS NOT NULL
            LIMIT coalesce(route_bound, 0)
        ) AS alike) THEN
            broken := 'route';
        ELSE
            RETURN NULL;
        END IF;
        -- It may be another job of these keys, or the next version of this one, that took the room.
        IF before <> coalesce((SELECT version FROM raincheck.jobs WHERE id = job), 0)
            OR EXISTS (SELECT FROM raincheck.keys WHERE key = ANY (others))
        THEN
            RAISE serialization_failure;
        END IF;
        RETURN broken;
    END
    $no_room$;
    """,
    # What is there already becomes that of the deployment which comes first: until now there was
    # one. Every index begins with it, and all but the first are small.
    """
    ALTER TABLE raincheck.jobs ADD deployment text COLLATE "C" NOT NULL DEFAULT 'deployment';
    ALTER TABLE raincheck.jobs ALTER deployment DROP DEFAULT,
        DROP CONSTRAINT jobs_pkey, ADD PRIMARY KEY (deployment, id);
    DROP INDEX raincheck.jobs_lease_until_id_idx, raincheck.jobs_due_idx, raincheck.jobs_due_idx1,
        raincheck.jobs_route_state_owner_idx;
    CREATE INDEX ON raincheck.jobs (deployment, lease_until, id) WHERE lease_until IS NOT NULL;
    CREATE INDEX ON raincheck.jobs (deployment, due) WHERE due IS NOT NULL AND NOT gone;
    CREATE INDEX ON raincheck.jobs (deployment, due) WHERE gone;
    CREATE INDEX ON raincheck.jobs (deployment, route, state, owner) WHERE state IS NOT NULL;

    ALTER TABLE raincheck.keys ADD deployment text COLLATE "C" NOT NULL DEFAULT 'deployment';
    ALTER TABLE raincheck.keys ALTER deployment DROP DEFAULT,
        DROP CONSTRAINT keys_pkey, ADD PRIMARY KEY (deployment, key);
    DROP INDEX raincheck.keys_id_idx;
    CREATE INDEX ON raincheck.keys (deployment, id);

    ALTER TABLE raincheck.requests ADD deployment text COLLATE "C" NOT NULL DEFAULT 'deployment';
    ALTER TABLE raincheck.requests ALTER deployment DROP DEFAULT,
        DROP CONSTRAINT requests_pkey, ADD PRIMARY KEY (deployment, id);

    ALTER TABLE raincheck.chunks ADD deployment text COLLATE "C" NOT NULL DEFAULT 'deployment';
    ALTER TABLE raincheck.chunks ALTER deployment DROP DEFAULT,
        DROP CONSTRAINT chunks_pkey, ADD PRIMARY KEY (deployment, id, fence, start);

    DROP FUNCTION raincheck.no_room;
    -- Which bound a job would break by coming to one of these states: 'owner', 'route' or NULL.
    -- Its lock is held until the caller's change is committed, and the statements behind it see all
    -- that was committed before they got it: the caller's own may have begun long before. No more
    -- is counted than there may be. The setting is that of the store's connections, which those
    -- through a proxy do not have.
    CREATE FUNCTION raincheck.no_room(
        of_deployment text, job text, before integer, others text[], schema text,
        route_of_job bytea, owner_of_job bytea, states text[], route_bound integer,
        owner_bound integer
    ) RETURNS text LANGUAGE plpgsql SET enable_seqscan = off AS $no_room$
    DECLARE
        broken text;
    BEGIN
        PERFORM pg_advisory_xact_lock(
            hashtextextended(
                concat_ws(
                    ' ', 'raincheck', schema, of_deployment, states[1], encode(route_of_job, 'hex')
                ), 0
            )
        );
        IF owner_bound <= (SELECT count(*) FROM (
            SELECT FROM raincheck.jobs
            WHERE deployment = of_deployment AND route = route_of_job AND owner = owner_of_job
                AND state = ANY (states) AND state IS NOT NULL
            LIMIT coalesce(owner_bound, 0)
        ) AS alike) THEN
            broken := 'owner';
        ELSIF route_bound <= (SELECT count(*) FROM (
            SELECT FROM raincheck.jobs
            WHERE deployment = of_deployment AND route = route_of_job
                AND state = ANY (states) AND state IS NOT NULL
            LIMIT coalesce(route_bound, 0)
        ) AS alike) THEN
            broken := 'route';
        ELSE
            RETURN NULL;
        END IF;
        -- It may be another job of these keys, or the next version of this one, that took the room.
        IF before <> coalesce((
                SELECT version FROM raincheck.jobs WHERE deployment = of_deployment AND id = job
            ), 0) OR EXISTS (
                SELECT FROM raincheck.keys
                WHERE deployment = of_deployment AND key = ANY (others)
            )
        THEN
            RAISE serialization_failure;
        END IF;
        RETURN broken;
    END
    $no_room$;
    """,
    # A key's fingerprint and whether it lasts stood in the record of its job, and in its name. As
    # text: one record that is no JSON must not be in the way.
    """
    ALTER TABLE raincheck.keys
        ADD fingerprint text COLLATE "C",
        ADD lasting boolean NOT NULL DEFAULT true;  -- whether the job has it until it is gone
    ALTER TABLE raincheck.keys ALTER lasting DROP DEFAULT;
    UPDATE raincheck.keys SET
        lasting = key NOT LIKE 'run-%',
        fingerprint = CASE WHEN key NOT LIKE 'run-%'
            THEN substring(record FROM '"fingerprint":"([^"]*)"') END
    FROM raincheck.jobs
    WHERE jobs.deployment = keys.deployment AND jobs.id = keys.id;
    """,
    """
    CREATE TABLE raincheck.varying (
        deployment text COLLATE "C",
        route bytea,                -- a digest
        name text COLLATE "C",      -- of a request header field by which its responses vary
        PRIMARY KEY (deployment, route, name)
    );
    """,
    # Lists and totals: what they look at, and their indexes. A process of the version before this
    # one leaves it as it is, and the last of these indexes has the jobs of which it is not true.
    r"""
    -- A time in a record. As text: a record need not be JSON, and has no field's name in a value.
    CREATE FUNCTION raincheck.time_in(record text, field text) RETURNS double precision
    LANGUAGE sql IMMUTABLE AS $time_in$
        SELECT substring(
            split_part(record, '"' || field || '":', 2) FROM '^-?\d+(?:\.\d+)?(?:e[+-]?\d\d?)?'
        )::double precision
    $time_in$;

    ALTER TABLE raincheck.jobs
        ADD created_at double precision,    -- of those that are listed: seconds, epoch
        ADD status text COLLATE "C",        -- its state, also when that is terminal
        ADD seconds double precision;       -- how long it has run, once it has ended
    -- The digest is that of no route: of synchronous jobs.
    UPDATE raincheck.jobs SET
        created_at = CASE WHEN route <> '\xcae66941d9efbd404e4d88758ea67670'
            THEN raincheck.time_in(record, 'created_at') END,
        status = coalesce(state, substring(record FROM '"state":"([a-z]+)"')),
        seconds = CASE WHEN state IS NULL
            THEN raincheck.time_in(record, 'finished_at') - raincheck.time_in(record, 'started_at')
        END
    WHERE NOT gone;
    CREATE INDEX ON raincheck.jobs (deployment, route, status, created_at, id) INCLUDE (seconds)
        WHERE NOT gone AND created_at IS NOT NULL;
    CREATE INDEX ON raincheck.jobs (deployment, owner, route, status, created_at, id)
        WHERE NOT gone AND created_at IS NOT NULL AND owner IS NOT NULL;
    -- One index where there were two, as every index is a part of what a change costs.
    DROP INDEX raincheck.jobs_deployment_due_idx, raincheck.jobs_deployment_due_idx1;
    CREATE INDEX ON raincheck.jobs (deployment, gone, due) WHERE due IS NOT NULL;
    CREATE INDEX ON raincheck.jobs (deployment)
        WHERE NOT gone AND (
            status IS NULL OR state <> status
            OR state IS NULL AND status IN ('queued', 'running', 'cancelling')
        );
    """,
    # In the first chunk, that it goes with the body, whoever drops that.
    """
    ALTER TABLE raincheck.chunks ADD head text;    -- of the response, if it may be followed
    """,
    # Totals: to look at all jobs that have ended takes too long. Each that ends or is forgotten
    # adds a row, and a sweep makes one of many: nobody who ends a job waits for another one's row.
    # By a trigger, so that those that processes of an older version end are counted, too.
    """
    CREATE TABLE raincheck.ended (
        deployment text COLLATE "C" NOT NULL,
        route bytea NOT NULL,
        status text COLLATE "C" NOT NULL,
        jobs bigint NOT NULL,               -- how many more, or fewer
        seconds double precision NOT NULL   -- that these have run
    );
    CREATE FUNCTION raincheck.count_ended() RETURNS trigger LANGUAGE plpgsql AS $count_ended$
    DECLARE
        was boolean := false;
        is_now boolean := false;
    BEGIN
        IF TG_OP <> 'INSERT' THEN
            was := OLD.state IS NULL AND NOT OLD.gone AND OLD.created_at IS NOT NULL
                AND OLD.status IS NOT NULL;
        END IF;
        IF TG_OP <> 'DELETE' THEN
            is_now := NEW.state IS NULL AND NOT NEW.gone AND NEW.created_at IS NOT NULL
                AND NEW.status IS NOT NULL;
        END IF;
        IF was THEN
            INSERT INTO raincheck.ended
            VALUES (OLD.deployment, OLD.route, OLD.status, -1, -coalesce(OLD.seconds, 0));
        END IF;
        IF is_now THEN
            INSERT INTO raincheck.ended
            VALUES (NEW.deployment, NEW.route, NEW.status, 1, coalesce(NEW.seconds, 0));
        END IF;
        RETURN NULL;
    END
    $count_ended$;
    CREATE TRIGGER count_begun AFTER INSERT ON raincheck.jobs
        FOR EACH ROW WHEN (NEW.state IS NULL) EXECUTE FUNCTION raincheck.count_ended();
    CREATE TRIGGER count_changed AFTER UPDATE ON raincheck.jobs
        FOR EACH ROW WHEN (NEW.state IS NULL OR OLD.state IS NULL)
        EXECUTE FUNCTION raincheck.count_ended();
    CREATE TRIGGER count_dropped AFTER DELETE ON raincheck.jobs
        FOR EACH ROW WHEN (OLD.state IS NULL AND NOT OLD.gone)
        EXECUTE FUNCTION raincheck.count_ended();
    INSERT INTO raincheck.ended
    SELECT deployment, route, status, count(*), coalesce(sum(seconds), 0) FROM raincheck.jobs
    WHERE state IS NULL AND NOT gone AND created_at IS NOT NULL AND status IS NOT NULL
    GROUP BY deployment, route, status;
    """,
    # What results of an owner take on a route, of those jobs of which that is counted; of all
    # others it is NULL, and they are not in the index. Processes of older versions leave it so.
    """
    ALTER TABLE raincheck.jobs ADD stored bigint;
    CREATE INDEX ON raincheck.jobs (deployment, route, owner) INCLUDE (stored)
        WHERE stored > 0 AND NOT gone;
    """,
    # The jobs whose end somebody is to be told of: few, and those that are not leave it alone. What
    # becomes of a message changes no job's count.
    """
    CREATE TABLE raincheck.deliveries (
        deployment text COLLATE "C",
        id text COLLATE "C",
        due double precision NOT NULL,      -- when somebody turns to it: seconds, epoch
        lease_until timestamptz,            -- by this server's clock
        PRIMARY KEY (deployment, id)
    );
    CREATE INDEX ON raincheck.deliveries (deployment, due);
    DROP TRIGGER count_changed ON raincheck.jobs;
    CREATE TRIGGER count_changed AFTER UPDATE ON raincheck.jobs
        FOR EACH ROW WHEN ((NEW.state IS NULL OR OLD.state IS NULL)
            AND (NEW.state, NEW.gone, NEW.status, NEW.created_at, NEW.seconds)
                IS DISTINCT FROM (OLD.state, OLD.gone, OLD.status, OLD.created_at, OLD.seconds))
        EXECUTE FUNCTION raincheck.count_ended();
    """,
    # Jobs that end together are counted together, by the statement that ends them, which says so by
    # changing a column: the trigger counts all others, and those of processes of older versions.
    """
    ALTER TABLE raincheck.jobs ADD counted boolean;
    DROP TRIGGER count_changed ON raincheck.jobs;
    CREATE TRIGGER count_changed AFTER UPDATE ON raincheck.jobs
        FOR EACH ROW WHEN ((NEW.state IS NULL OR OLD.state IS NULL)
            AND NEW.counted IS NOT DISTINCT FROM OLD.counted
            AND (NEW.state, NEW.gone, NEW.status, NEW.created_at, NEW.seconds)
                IS DISTINCT FROM (OLD.state, OLD.gone, OLD.status, OLD.created_at, OLD.seconds))
        EXECUTE FUNCTION raincheck.count_ended();
    """,
)
"""Each makes of the schema what the next version of this module needs. Only ever append."""

_DENIED = """
SELECT string_agg(concat_ws(' ON ', privilege, relname), ', ' ORDER BY relname, privilege)
FROM pg_class, unnest('{SELECT,INSERT,UPDATE,DELETE}'::text[]) AS privilege
WHERE relnamespace = to_regnamespace($1) AND relname = ANY ($2)
    AND NOT has_table_privilege(pg_class.oid, privilege)
"""

TABLES = ("jobs", "keys", "requests", "chunks", "varying", "ended", "deliveries")
"""Those that the store writes to."""

_LOCK = "SELECT pg_advisory_xact_lock(hashtext('raincheck'), hashtext($1))"

_STATE = """
SELECT current_user, to_regnamespace($1) IS NOT NULL, to_regclass($1 || '.version') IS NOT NULL
"""

_VERSION = "SELECT number FROM raincheck.version"

_MIGRATED = "UPDATE raincheck.version SET number = {}"


async def migrate(server: Server, connection: Any, *, allowed: bool = True) -> tuple[int, int]:
    """Make the tables, or bring them up to date.

    Args:
        server: whose tables.
        connection: to it.
        allowed: if not, only see whether there is anything to do.

    Returns:
        The version that they had, 0 if there were none, and that which they have now.

    Raises:
        NeverWorks: a newer version of raincheck made them, another application did, the role may
            not make or use them, or there is something to do that is not `allowed`.
    """
    schema = quoted(server.schema)
    async with connection.transaction(isolation="read_committed"):
        if allowed:
            await connection.execute(_LOCK, schema)
        role, there, versioned = await connection.fetchrow(_STATE, schema)
        try:
            with _ours(server):
                before = await _version(server, connection) if versioned else 0
                if before < len(MIGRATIONS) and not allowed:
                    raise NeverWorks(
                        f"{server}: the tables in schema {schema} have version {before}, and this "
                        f"version of raincheck needs {len(MIGRATIONS)}: {_command(server)}"
                    )
                for statement in _statements(server, there, before):
                    await connection.execute(statement)
                denied = await connection.fetchval(_DENIED, schema, TABLES)
        except asyncpg.InsufficientPrivilegeError as error:
            raise NeverWorks(
                f"{server}: {error}; {_command(server)}; or give the store a schema that belongs "
                f"to its role: let somebody run CREATE SCHEMA {schema} AUTHORIZATION {quoted(role)}"
            ) from error
    if denied:
        raise NeverWorks(
            f"{server}: schema {schema} belongs to another role, and {quoted(role)} lacks {denied}:"
            " let its owner grant that"
        )
    return before, len(MIGRATIONS)


async def script(server: Server, connection: Any) -> str:
    """What `migrate` would do, as SQL for somebody else, who gives the role what it needs of it.

    Raises:
        NeverWorks: a newer version of raincheck made the tables, or another application did.
        asyncpg.InsufficientPrivilegeError: the role may not look at them.
    """
    schema = quoted(server.schema)
    role, there, versioned = await connection.fetchrow(_STATE, schema)
    with _ours(server):
        before = await _version(server, connection) if versioned else 0
    lines = ["BEGIN", *_statements(server, there, before), f"GRANT USAGE ON SCHEMA {schema} TO "]
    lines[-1] += quoted(role)
    tables = ", ".join(f"{schema}.{table}" for table in TABLES)
    lines.append(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {tables} TO {quoted(role)}")
    lines.append(f"GRANT SELECT ON {schema}.version TO {quoted(role)}")
    return ";\n".join([*lines, "COMMIT"]) + ";\n"


@contextmanager
def _ours(server: Server) -> Iterator[None]:
    """What is found if tables have other columns than ours is `NeverWorks`."""
    try:
        yield
    except asyncpg.InsufficientPrivilegeError:
        raise
    except (asyncpg.SyntaxOrAccessError, TypeError) as error:
        raise NeverWorks(
            f"{server}: schema {quoted(server.schema)} is another application's ({error}): give "
            "the store a schema of its own"
        ) from error


async def _version(server: Server, connection: Any) -> int:
    number: int = await connection.fetchval(server.in_schema(_VERSION))
    if number > len(MIGRATIONS):
        raise NeverWorks(
            f"{server}: the tables in schema {quoted(server.schema)} have version {number}, and "
            f"this version of raincheck knows {len(MIGRATIONS)}: install a newer one"
        )
    return number


def _statements(server: Server, there: bool, number: int) -> Iterator[str]:
    """What makes of tables of this version those of the newest."""
    if not there:
        yield f"CREATE SCHEMA {quoted(server.schema)}"
    for migration in MIGRATIONS[number:]:
        number += 1
        yield server.in_schema(migration).rstrip().removesuffix(";")
        yield server.in_schema(_MIGRATED.format(number))


def _command(server: Server) -> str:
    """The cure, for those who may not do it themselves."""
    return (
        "let somebody who may run `python -m raincheck.stores.postgres migrate DSN "
        f"--schema {quote(server.schema)}`, or what it prints with --print"
    )
