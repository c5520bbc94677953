"""What FastAPI peers take: a model, as FastAPI's "Request Body" page has it."""

from __future__ import annotations

from pydantic import BaseModel


class Line(BaseModel):
    """One line of an order."""

    sku: str
    n: int


class Order(BaseModel):
    """An order."""

    customer: int
    lines: list[Line]
