"""Checks of types: of configs, frozen dataclasses made of a user's mapping, and of arguments."""

import dataclasses
import functools
import inspect
import os
import types
import typing
from collections.abc import Callable, Hashable, Mapping
from typing import Any, ParamSpec, TypeVar, cast

from zsad_jax.utils.errors import UserError, suggest

Config = TypeVar("Config")
Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")
TYPES = {  # in words: one, several
    bool: ("True or False", "booleans"),
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    str: ("a string", "strings"),
    os.PathLike[str]: ("a path", "paths"),
}


def within(default: Any, low: float, high: float = float("inf")) -> Any:
    """Returns a dataclass field whose value must be in [low, high]."""
    return dataclasses.field(default=default, metadata={"within": (low, high)})


def check_fields(config: Any) -> None:
    """Checks every field of a dataclass against its annotation and its range.

    Call it in `__post_init__`.

    Raises:
      UserError: naming the first wrong key, its value and what is accepted.
    """
    hints = _hints(cast(Hashable, type(config)))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not fits(value, hints[field.name]):
            raise UserError(
                f"Config key '{field.name}' is {value!r}. Expected {describe_type(hints[field.name])}."
            )
        low, high = field.metadata.get("within", (None, None))
        if low is not None and value is not None and not low <= value <= high:
            bounds = f"at least {low}" if high == float("inf") else f"between {low} and {high}"
            raise UserError(f"Config key '{field.name}' is {value!r}. It must be {bounds}.")


def checked(function: Callable[Arguments, Returned]) -> Callable[Arguments, Returned]:
    """Makes a public function check its named arguments against its annotations.

    Calling it with an argument of another type raises `UserError`, which says what is accepted.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Returned:
        hints = _hints(function)
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            various = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
            if not various and not fits(value, hints[name]):
                raise UserError(f"{name}={value!r} is not {describe_type(hints[name])}. Pass one.")
        return function(*args, **kwargs)

    return call


def config_from(cls: type[Config], mapping: Config | Mapping[str, Any] | None) -> Config:
    """Returns a config dataclass made of a mapping of its keys; a config is returned unchanged.

    Args:
      cls: a dataclass that calls `check_fields` in `__post_init__`; it may have a table `renamed` of former
        keys.
      mapping: keys and values (a dict or a ConfigDict); missing keys have their defaults; None is {}.

    Raises:
      UserError: naming an unknown key (with the nearest known one) or a bad value.
    """
    if isinstance(mapping, cls):
        return mapping
    values = dict(cast(Mapping[str, Any], mapping).items()) if mapping is not None else {}
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    renamed: Mapping[str, str] = getattr(cls, "renamed", {})
    for key in values:
        if key in renamed:
            raise UserError(
                f"Unknown key '{key}' for {cls.__name__}. It was renamed to {renamed[key]}."
            )
        if key not in known:
            raise UserError(f"Unknown key '{key}' for {cls.__name__}. {suggest(str(key), known)}")
    return cls(**values)


@functools.lru_cache
def _hints(cls: Hashable) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def fits(value: Any, hint: Any) -> bool:
    """Returns whether a value fits an annotation: plain types, Literal, unions, tuple[x, ...], mappings."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        # Types are compared too, since True == 1 == 1.0.
        return any(value == arg and type(value) is type(arg) for arg in args)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, arg) for arg in args)
    if origin is tuple:
        return isinstance(value, tuple) and all(fits(item, args[0]) for item in value)
    if hint is Any:
        return True
    if isinstance(value, bool):  # bool is an int to Python, but not to a reader of configs
        return hint is bool
    # ml_collections keeps `sigma=8` as an int; the shapes and types of traced values do not depend on it.
    if hint is float:
        return isinstance(value, int | float)
    return isinstance(value, origin or hint)


def describe_type(hint: Any) -> str:
    """Returns an annotation in words: "a number or None"."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " or ".join(repr(arg) for arg in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe_type(arg) for arg in args)
    if origin is tuple:
        return f"a tuple of {TYPES[args[0]][1]}"
    if origin is Mapping:
        return "a mapping"
    if hint is type(None):
        return "None"
    return TYPES[hint][0] if hint in TYPES else f"a {getattr(hint, '__name__', hint)}"
