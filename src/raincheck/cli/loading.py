"""Apps by their names: `module:attribute`."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from types import ModuleType, TracebackType
from typing import Any

from raincheck.errors import ConfigurationError


def load(name: str, what: str = "the app") -> Any:
    """What a name of the form `module:attribute` stands for, from the current directory too.

    Args:
        name: the name; the attribute may have dots.
        what: what it is to be, for the error.

    Raises:
        ConfigurationError: there is no such thing, or its module cannot be imported; then the
            message ends with the traceback of its own code.
    """
    module_name, colon, path = name.partition(":")
    if module_name.endswith(".py") or "/" in module_name:
        module = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise ConfigurationError(
            f"{what} {name!r}: name the module, not its file: {module}:{path or 'app'}"
        )
    if not colon or not module_name or not path:
        raise ConfigurationError(f"{what} {name!r}: give module:attribute, like shop.main:app")
    found: Any = _module(module_name, name, what)
    at = module_name
    for attribute in path.split("."):
        try:
            found = getattr(found, attribute)
        except AttributeError:
            near = difflib.get_close_matches(attribute, dir(found), 1)
            hint = f"; do you mean {near[0]}?" if near else ""
            raise ConfigurationError(f"{what} {name!r}: {at} has no {attribute}{hint}") from None
        at = f"{at}.{attribute}"
    return found


def load_app(name: str, *, factory: bool = False, wsgi: bool = False) -> Any:
    """An app by its name.

    Args:
        name: as for `load`.
        factory: whether it is a function that makes the app.
        wsgi: whether it is to be an app of WSGI.

    Raises:
        ConfigurationError: there is none, or it is of the other kind.
    """
    app = load(name)
    if not callable(app):
        raise ConfigurationError(f"the app {name!r} is a {type(app).__name__}, and no app")
    if factory:
        try:
            app = app()
        except Exception as error:
            raise ConfigurationError(f"the factory {name!r} raised {_told(error)}") from error
        if not callable(app):
            raise ConfigurationError(
                f"the factory {name!r} has made a {type(app).__name__}, and no app"
            )
        return app
    wanted = _positional(app)
    if wanted == 0:
        raise ConfigurationError(
            f"the app {name!r} is a function without arguments; if it makes the app, add --factory"
        )
    if wanted == 2 and not wsgi and not inspect.isclass(app):
        raise ConfigurationError(
            f"the app {name!r} takes two arguments, as WSGI apps do; if it is one, add --wsgi"
        )
    if wanted == 3 and wsgi:
        raise ConfigurationError(
            f"the app {name!r} takes three arguments, as ASGI apps do; leave out --wsgi"
        )
    return app


def _module(module_name: str, name: str, what: str) -> ModuleType:
    try:
        here = os.getcwd()
    except FileNotFoundError:
        raise ConfigurationError(
            f"{what} {name!r}: the current directory is not there any more; change to one that is"
        ) from None
    if here not in sys.path:
        sys.path.insert(0, here)  # where `python -m` looks, too
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if f"{module_name}.".startswith(f"{missing}."):
            raise ConfigurationError(
                f"{what} {name!r}: there is no module {missing} in {here}, nor installed"
            ) from None
        raise ConfigurationError(f"{what} {name!r}: {_told(error)}") from error
    except Exception as error:
        raise ConfigurationError(f"{what} {name!r}: {_told(error)}") from error


def _told(error: Exception) -> str:
    """An exception with the part of its traceback that is the app's own code."""
    trace = error.__traceback__
    while trace is not None and _ours(trace):
        trace = trace.tb_next
    lines = traceback.format_exception(type(error), error, trace)
    return f"{type(error).__name__}: {error}\n{''.join(lines).rstrip()}"


def _ours(trace: TracebackType) -> bool:
    module = str(trace.tb_frame.f_globals.get("__name__", ""))
    return module == __name__ or module.partition(".")[0] == "importlib"


def _positional(app: Callable[..., Any]) -> int | None:
    """How many arguments it has to be given; None if that cannot be seen."""
    try:
        parameters = inspect.signature(app).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(each.kind is each.VAR_POSITIONAL for each in parameters):
        return None
    needed = [each for each in parameters if each.default is each.empty]
    return len([each for each in needed if each.kind is not each.VAR_KEYWORD])
