"""What `raincheck serve` is told: by a TOML file, and by options, which come before it."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from raincheck.errors import ConfigurationError
from raincheck.policy import Limits, Policy, Retry
from raincheck.routing.table import Rule

T = TypeVar("T", Policy, Limits)

_RULE_OF_OPTION = re.compile(r"\s*((?:[A-Za-z-]+\s+)?/\S*)((?:\s+\w+=\S+)*)\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What stands around an app. The names are those of the file's keys, and of the options.

    Attributes:
        store: the URL of the store.
        deployment: the name of what runs there; for stores on a server.
        path: where the status routes are.
        base_url: put in front of every URL.
        owner: whose a request is: `header:NAME`, `cookie:NAME` or `module:function`.
        operator: who may list all jobs: `module:function`.
        own_list: whether owners may list theirs.
        policy: what holds for every route, by the names of the fields of `Policy`.
        limits: the fields of `Limits`.
        routes: the path rules, each with what holds for it besides.
    """

    store: str = "memory:"
    deployment: str | None = None
    path: str = "/jobs"
    base_url: str | None = None
    owner: str | None = None
    operator: str | None = None
    own_list: bool = False
    policy: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[str, Any] = field(default_factory=dict)
    routes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def default_policy(self) -> Policy:
        """What holds where a route says nothing else."""
        return _made(Policy, self.policy)

    def made_limits(self) -> Limits:
        """The limits."""
        return _made(Limits, self.limits)

    def rules(self) -> dict[str, Policy]:
        """The path rules with their policies."""
        return {
            name: _made(Policy, {**self.policy, **given}) for name, given in self.routes.items()
        }


_TEXTS = ("store", "deployment", "path", "base_url", "owner", "operator")
_KEYS = (*_TEXTS, "own_list", "policy", "limits", "routes")


def read(path: Path) -> Settings:
    """The settings of a TOML file.

    Raises:
        ConfigurationError: it cannot be read, or says something that cannot work; the message
            names the file and the field.
    """
    try:
        with path.open("rb") as file:
            said = tomllib.load(file)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: {error}") from error
    _check_names(str(path), said, _KEYS)
    for name in _TEXTS:
        if name in said and not isinstance(said[name], str):
            raise ConfigurationError(f"{path}: {name} = {said[name]!r} is no string")
    if not isinstance(said.get("own_list", False), bool):
        raise ConfigurationError(f"{path}: own_list = {said['own_list']!r} is not true or false")
    _check_table(f"{path}: [policy]", said.get("policy", {}), Policy)
    _check_table(f"{path}: [limits]", said.get("limits", {}), Limits)
    routes = said.get("routes", {})
    if not isinstance(routes, dict):
        raise ConfigurationError(f'{path}: routes is no table; write [routes."POST /videos"]')
    common = said.get("policy", {})
    for name, given in routes.items():
        place = f'{path}: [routes."{name}"]'
        _within(place, lambda name=name: Rule.parse(name, Policy()))  # type: ignore[misc] # a name
        _check_table(place, given, Policy, common)
    return Settings(**said)


def with_options(
    settings: Settings,
    *,
    routes: Iterable[str] = (),
    policy: Iterable[str] = (),
    limits: Iterable[str] = (),
    **given: Any,
) -> Settings:
    """These settings, with what the options say put in front.

    Args:
        settings: of the file, or the defaults.
        routes: of `--route`: a rule, and perhaps fields: `"POST /videos timeout=600"`.
        policy: of `--policy`: `name=value`.
        limits: of `--limits`: the same.
        given: the others by their names; None says nothing.

    Raises:
        ConfigurationError: one of them cannot work; the message names the option.
    """
    common = {**settings.policy, **_assignments("--policy", policy)}
    bounds = {**settings.limits, **_assignments("--limits", limits)}
    _check_table("--policy", common, Policy)
    _check_table("--limits", bounds, Limits)
    ruled: dict[str, Mapping[str, Any]] = {}
    for text in routes:
        place = f"--route {text!r}"
        match = _RULE_OF_OPTION.fullmatch(text)
        if match is None:
            raise ConfigurationError(
                f"{place}: give a path, or a method and a path, and perhaps fields behind them, "
                'like "POST /videos timeout=600"'
            )
        name = " ".join(match[1].split())
        _within(place, lambda name=name: Rule.parse(name, Policy()))  # type: ignore[misc] # a name
        own = {**settings.routes.get(name, {}), **_assignments(place, match[2].split())}
        _check_table(place, own, Policy, common)
        ruled[name] = own
    others = {name: own for name, own in settings.routes.items() if name not in ruled}
    said = {name: value for name, value in given.items() if value is not None}
    return replace(settings, policy=common, limits=bounds, routes={**ruled, **others}, **said)


def _assignments(place: str, texts: Iterable[str]) -> dict[str, Any]:
    """What `name=value` says: values as TOML has them, and words without their quotes."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigurationError(f"{place} {text!r}: give name=value, like timeout=600")
        try:
            found[name.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[name.strip()] = value
    return found


def _check_table(
    place: str, given: Any, kind: type[T], common: Mapping[str, Any] | None = None
) -> None:
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"{place} is no table of settings")
    _check_names(place, given, [each.name for each in fields(kind)])
    _within(place, lambda: _made(kind, {**(common or {}), **given}))


def _check_names(place: str, given: Iterable[str], known: Collection[str]) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"do you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise ConfigurationError(f"{place}: there is no {name}; {hint}")


def _within(place: str, make: Callable[[], object]) -> None:
    """Make something, and say where what it is made of stands if that cannot be."""
    try:
        make()
    except ConfigurationError as error:
        raise ConfigurationError(f"{place}: {error}") from error


def _made(kind: type[T], given: Mapping[str, Any]) -> T:
    if kind is Policy and isinstance(given.get("retry"), Mapping):
        _check_names("retry", given["retry"], [each.name for each in fields(Retry)])
        given = {**given, "retry": Retry(**given["retry"])}
    return kind(**given)
