"""Who was sent which campaign: an SQLite file that outlives the jobs and the processes."""

import sqlite3
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, Self

Outcome = Literal["sent", "deferred", "refused"]
DONE = ("sent", "refused")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS campaign (name TEXT PRIMARY KEY, run INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS letter (
    campaign TEXT NOT NULL,
    address TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting',
    tries INTEGER NOT NULL DEFAULT 0,
    reply TEXT,
    PRIMARY KEY (campaign, address)
) STRICT, WITHOUT ROWID;
"""


class TakenOver(Exception):
    """A newer run sends this campaign."""


class Ledger:
    """The letters of all campaigns, each `waiting`, `sending`, `sent`, `deferred` or `refused`.

    A letter is `sending` from before the SMTP server hears of it until what that answered is on the
    disk. One that is `sending` while nobody sends may have arrived, or not: nobody can tell.
    """

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, timeout=30)
        # What was sent has to be remembered through a power cut as well.
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.executescript(_SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def take_over(self, campaign: str, addresses: Collection[str]) -> "Run":
        """Begin to send a campaign, or go on with it; whoever did so before stops."""
        with self._database as database:
            (number,) = database.execute(
                "INSERT INTO campaign VALUES (?, 1) ON CONFLICT DO UPDATE SET run = run + 1 "
                "RETURNING run",
                (campaign,),
            ).fetchone()
            database.executemany(
                "INSERT OR IGNORE INTO letter (campaign, address) VALUES (?, ?)",
                ((campaign, address) for address in addresses),
            )
        return Run(self._database, campaign, number, addresses)

    def letters(self, campaign: str) -> list[dict[str, Any]]:
        """What has become of each letter."""
        names = ("address", "state", "tries", "reply")
        rows = self._database.execute(
            f"SELECT {', '.join(names)} FROM letter WHERE campaign = ?", (campaign,)
        )
        return [dict(zip(names, row, strict=True)) for row in rows]


class Run:
    """One attempt to send a campaign to some addresses. Only the newest may send.

    Attributes:
        total: how many letters those are.
        counts: how many of them had which outcome.
    """

    def __init__(
        self,
        database: sqlite3.Connection,
        campaign: str,
        number: int,
        addresses: Collection[str],
    ) -> None:
        self._database = database
        self._campaign = campaign
        self._number = number
        self._addresses = addresses
        self.total = len(addresses)
        self.counts = Counter(state for _, state in self._letters() if state in DONE)

    def open(self) -> list[str]:
        """The addresses that are still to be sent to; what was tried before comes last."""
        return [address for address, state in self._letters() if state not in DONE]

    def claim(self, address: str) -> bool:
        """Write down that this letter is about to be sent; False: an older run has sent it.

        Raises:
            TakenOver: that is for a newer run to do.
        """
        with self._database as database:
            claimed = database.execute(
                "UPDATE letter SET state = 'sending', tries = tries + 1 "
                "WHERE campaign = ? AND address = ? AND state NOT IN ('sent', 'refused') "
                "AND (SELECT run FROM campaign WHERE name = letter.campaign) = ?",
                (self._campaign, address, self._number),
            )
            newest = database.execute("SELECT run FROM campaign WHERE name = ?", (self._campaign,))
            if newest.fetchone() != (self._number,):
                raise TakenOver(f"A newer job sends the campaign {self._campaign}.")
        return claimed.rowcount == 1

    def record(self, address: str, outcome: Outcome, reply: str) -> None:
        """Write down what the SMTP server answered; that it took a letter is true of any run."""
        with self._database as database:
            database.execute(
                "UPDATE letter SET state = ?, reply = ? WHERE campaign = ? AND address = ? "
                "AND (? = 'sent' OR (SELECT run FROM campaign WHERE name = letter.campaign) = ?)",
                (outcome, reply, self._campaign, address, outcome, self._number),
            )
        self.counts[outcome] += 1

    def _letters(self) -> list[tuple[str, str]]:
        rows = self._database.execute(
            "SELECT address, state FROM letter WHERE campaign = ? ORDER BY tries, address",
            (self._campaign,),
        )
        return [row for row in rows if row[0] in self._addresses]
