"""The apps that are compared: raincheck, and what people write without it.

All take the same orders and do the same work, and all have the same three routes: `POST /orders`
and `POST /reports` answer 202 with a `Location`, which answers 202 until the job has finished and
then 200. Each is as its own documentation has it, by somebody who wants it to win.
"""

LEAN = 22
"""So many duties of `floor_app` are what a 202 of this kind is nothing without: "all duties"."""
