"""A server that is going to stop, as it looks from inside."""

from __future__ import annotations


class Uvicorn:
    """What raincheck knows of it."""

    def __init__(self) -> None:
        self.should_exit = False

    def handle_exit(self, number: int, frame: object) -> None:
        self.should_exit = True
