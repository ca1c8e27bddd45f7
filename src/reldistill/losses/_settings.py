"""A loss's settings, written once: a frozen dataclass that its function and its class take by keyword."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

Result = TypeVar("Result")

_KINDS: dict[type, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
}


def takes(kind: type) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """A function of `settings` becomes one of the settings' fields, by keyword; `inspect.signature` lists them.

    Args:
        kind: a dataclass whose fields all have defaults.
    """

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        kinds = get_type_hints(kind)
        fields = {
            field.name: inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=kinds[field.name]
            )
            for field in dataclasses.fields(kind)
        }

        @functools.wraps(function)
        def call(*given: Any, **keywords: Any) -> Result:
            settings = kind(**{name: keywords.pop(name) for name in fields.keys() & keywords.keys()})
            return function(*given, settings=settings, **keywords)

        signature = inspect.signature(function)
        others = [parameter for name, parameter in signature.parameters.items() if name != "settings"]
        call.__dict__["__signature__"] = signature.replace(parameters=[*others, *fields.values()])
        return call

    return decorate


def check_kinds(settings: Any) -> None:
    """Raise ValueError unless every field holds what it is declared to: a word of its list, a number, a truth value."""
    for name, kind in get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        if get_origin(kind) is Literal:
            if value not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, got {value!r}")
            continue
        allowed, words = _KINDS[kind]
        if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{name} must be {words}, got {value!r}")


def check_above(settings: Any, bound: float, *names: str) -> None:
    """Raise ValueError unless these fields are above a bound."""
    for name in names:
        if not getattr(settings, name) > bound:
            raise ValueError(f"{name} must be above {bound}, got {getattr(settings, name)}")


def check_at_least(settings: Any, bound: float, *names: str) -> None:
    """Raise ValueError unless these fields are at least a bound."""
    for name in names:
        if not getattr(settings, name) >= bound:
            raise ValueError(f"{name} must be at least {bound}, got {getattr(settings, name)}")
