"""Drives `before.py` of the section of Azure Durable Functions, without their host.

What the host does is done by hand: the functions are called as they are registered.
"""

import asyncio
from types import SimpleNamespace
from typing import Any

import before

FUNCTIONS = {each.get_function_name(): each for each in before.app.get_functions()}


class Client:
    async def start_new(self, name: str, client_input: object) -> str:
        self.started = name, client_input
        return "1"

    def create_check_status_response(self, request: object, id: str) -> str:
        return id


def unwrapped(function: Any) -> Any:
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


async def main() -> None:
    assert set(FUNCTIONS) == {"make_report", "orchestrate", "work"}, FUNCTIONS
    triggers = {name: each.get_trigger().get_binding_name() for name, each in FUNCTIONS.items()}
    client = Client()
    request = SimpleNamespace(params={"year": "2026"})
    start = unwrapped(FUNCTIONS["make_report"].get_user_function())
    start = getattr(start, "client_function", start)
    assert await start(request, client) == "1"
    name, given = client.started
    assert triggers[name] == "orchestrationTrigger", triggers
    context = SimpleNamespace(
        get_input=lambda: given, call_activity=lambda name, given: (name, given)
    )
    orchestrate = FUNCTIONS[name].get_user_function()
    orchestrator = getattr(orchestrate, "orchestrator_function", orchestrate)(context)
    activity, given = next(orchestrator)
    result = FUNCTIONS[activity].get_user_function()(given)
    try:
        orchestrator.send(result)
    except StopIteration as end:
        print(end.value)


asyncio.run(main())
