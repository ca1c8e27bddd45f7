"""A loss's settings, written once: a frozen dataclass whose fields its function and its class take by keyword."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

Result = TypeVar("Result")

_KINDS: dict[type, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
}


class Settings:
    """Base of a dataclass that, when made, checks that every field holds what it is declared to.

    A field is a truth value, a whole number, a number, or a word of a `Literal`.
    """

    words: ClassVar[dict[str, tuple[str, ...]]]
    kinds: ClassVar[dict[str, tuple[tuple[type, ...], str]]]

    def __init_subclass__(cls) -> None:
        # Here rather than at each check, which torch.compile has to be able to trace.
        declared = {name: kind for name, kind in get_type_hints(cls).items() if get_origin(kind) is not ClassVar}
        cls.words = {name: get_args(kind) for name, kind in declared.items() if get_origin(kind) is Literal}
        cls.kinds = {name: _KINDS[kind] for name, kind in declared.items() if name not in cls.words}

    def __post_init__(self) -> None:
        for name, words in self.words.items():
            value = getattr(self, name)
            if value not in words:
                raise ValueError(f"{name} must be one of {', '.join(words)}, got {value!r}")
        for name, (allowed, kind) in self.kinds.items():
            value = getattr(self, name)
            if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
                raise ValueError(f"{name} must be {kind}, got {value!r}")

    def check_above(self, bound: float, *names: str) -> None:
        """Raise ValueError unless these fields are above a bound."""
        for name in names:
            if not getattr(self, name) > bound:
                raise ValueError(f"{name} must be above {bound}, got {getattr(self, name)}")

    def check_at_least(self, bound: float, *names: str) -> None:
        """Raise ValueError unless these fields are at least a bound."""
        for name in names:
            if not getattr(self, name) >= bound:
                raise ValueError(f"{name} must be at least {bound}, got {getattr(self, name)}")


def takes(kind: type) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """A function of `settings` takes the fields of those by keyword instead, as `inspect.signature` tells.

    It can still be given `settings`, in place of all fields.

    Args:
        kind: a dataclass whose fields all have defaults.
    """

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        annotations = get_type_hints(kind)
        fields = {
            field.name: inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=annotations[field.name]
            )
            for field in dataclasses.fields(kind)
        }
        names = tuple(fields)

        @functools.wraps(function)
        def call(*given: Any, **keywords: Any) -> Result:
            if "settings" not in keywords:
                keywords["settings"] = kind(**{name: keywords.pop(name) for name in names if name in keywords})
            return function(*given, **keywords)

        signature = inspect.signature(function)
        others = [parameter for name, parameter in signature.parameters.items() if name != "settings"]
        call.__dict__["__signature__"] = signature.replace(parameters=[*others, *fields.values()])
        return call

    return decorate
