"""Products: their table, what a row of CSV has to be, and the ways between. No HTTP in here."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from itertools import islice
from typing import Annotated, BinaryIO, NamedTuple

from pydantic import BaseModel, Field, ValidationError
from sqlalchemy import Engine, func, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

BATCH = 1000


class Table(DeclarativeBase):
    """What the database has."""


class Product(Table):
    """One that is kept; the price in cents, since SQLite has no decimal numbers."""

    __tablename__ = "products"

    sku: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    cents: Mapped[int]
    stock: Mapped[int]


class Row(BaseModel):
    """One of a file; its fields are the file's columns."""

    sku: Annotated[str, Field(pattern=r"^[A-Z]{2}-\d{6}$")]
    name: Annotated[str, Field(min_length=1, max_length=200)]
    price: Annotated[Decimal, Field(ge=0, max_digits=10, decimal_places=2)]
    stock: Annotated[int, Field(ge=0, le=2**31)]


COLUMNS = list(Row.model_fields)


class Problem(NamedTuple):
    """What is wrong where: the row as spreadsheets count them, 1 is the heading."""

    row: int
    column: str | None
    problem: str


def read(file: BinaryIO) -> Iterator[Row | list[Problem]]:
    """What a file of CSV says, from its beginning, row by row: a `Row`, or all its problems."""
    file.seek(0)
    # What is no UTF-8 is let through, so that its row and column can be named.
    text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
    number, seen = 0, dict[str, int]()
    try:
        rows = csv.reader(text, strict=True)
        heading, number = next(rows, []), 1
        if heading != COLUMNS:
            yield [Problem(1, None, f"The heading has to be {','.join(COLUMNS)}")]
            return
        for number, cells in enumerate(rows, start=2):
            if not cells:
                continue  # an empty line
            if len(cells) != len(COLUMNS):
                yield [Problem(number, None, f"There are {len(cells)} cells, not {len(COLUMNS)}")]
                continue
            try:
                row = Row.model_validate(dict(zip(COLUMNS, cells, strict=True)))
            except ValidationError as error:
                found = error.errors(include_url=False, include_input=False)
                yield [Problem(number, str(one["loc"][0]), one["msg"]) for one in found]
                continue
            if (first := seen.setdefault(row.sku, number)) != number:
                yield [Problem(number, "sku", f"Row {first} has the same")]
            else:
                yield row
    except csv.Error as error:
        yield [Problem(number + 1, None, f"From here on it cannot be read: {error}")]
    finally:
        text.detach()  # it would close the file


def save(engine: Engine, rows: Iterable[Row], done: Callable[[int], None]) -> int:
    """Write all of them, or none; those that are there already are overwritten.

    Args:
        engine: of the database.
        rows: any number; a thousand at a time are in memory.
        done: called after each thousand with how many they are. If it raises, nothing is written.
    """
    new = insert(Product)
    kept = {name: new.excluded[name] for name in ("name", "cents", "stock")}
    statement = new.on_conflict_do_update(index_elements=[Product.sku], set_=kept)
    count, rows = 0, iter(rows)
    with engine.begin() as transaction:
        while batch := [values(row) for row in islice(rows, BATCH)]:
            transaction.execute(statement, batch)
            count += len(batch)
            done(count)
    return count


def values(row: Row) -> dict[str, str | int]:
    return {**row.model_dump(exclude={"price"}), "cents": int(row.price * 100)}


def write(engine: Engine, done: Callable[[int, int], None]) -> Iterator[bytes]:
    """All products as CSV, a thousand rows at a time, as they are at one moment.

    Args:
        engine: of the database.
        done: called after each thousand with how many are written, and how many there are.
    """
    columns = (Product.sku, Product.name, Product.cents, Product.stock)
    with engine.connect() as connection:
        total = connection.scalar(select(func.count()).select_from(Product)) or 0
        found = connection.execution_options(yield_per=BATCH).execute(select(*columns))
        yield piece([COLUMNS])
        for number, rows in enumerate(found.partitions()):
            yield piece([(sku, name, f"{cents / 100:.2f}", n) for sku, name, cents, n in rows])
            done(number * BATCH + len(rows), total)


def piece(rows: Iterable[Iterable[object]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()
