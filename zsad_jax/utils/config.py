"""Checks of types: of configs, frozen dataclasses made of a user's mapping, and of arguments."""

import dataclasses
import functools
import inspect
import os
import re
import types
import typing
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np

from zsad_jax.utils.errors import UserError, did_you_mean, nearest, suggest

Config = TypeVar("Config")
Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")
TYPES = {  # in words: one, several
    bool: ("True or False", "booleans"),
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    str: ("a string", "strings"),
    os.PathLike[str]: ("a path", "paths"),
    Mapping: ("a mapping", "mappings"),
    types.NoneType: ("None", "None"),
    Any: ("a value", "values"),
}
LARGEST = 10**6  # of numbers whose fields have no other bound


def within(default: Any, low: float, high: float = LARGEST) -> Any:
    """Returns a dataclass field whose value must be in [low, high]."""
    return dataclasses.field(default=default, metadata={"within": (low, high)})


def check_fields(config: Any) -> None:
    """Checks every field of a dataclass and makes it `plain`; call it in `__post_init__`.

    Raises `UserError` that names the first wrong key, its value and what is accepted.
    """
    hints = _hints(cast(Hashable, type(config)))
    for field in dataclasses.fields(config):
        value, hint = plain(getattr(config, field.name)), hints[field.name]
        object.__setattr__(config, field.name, value)  # it may be frozen
        if not fits(value, hint):
            choices = [arg for arg in typing.get_args(hint) if isinstance(arg, str)]
            remedy = did_you_mean(nearest(str(value), choices))
            words = f"Config key '{field.name}' is {value!r}. Expected {describe_type(hint)}."
            raise UserError(f"{words}{' ' * bool(remedy)}{remedy}")
        low, high = field.metadata.get("within", (-LARGEST, LARGEST))
        ranged = isinstance(value, Mapping) and "within" in field.metadata
        for number in value.values() if ranged else (value,):
            if isinstance(number, int | float) and not low <= number <= high:
                words = f"Config key '{field.name}' is {value!r}."
                raise UserError(f"{words} It must be between {low} and {high}.")


def checked(function: Callable[Arguments, Returned]) -> Callable[Arguments, Returned]:
    """Makes a public function raise `UserError` for named arguments that, `plain`, do not fit its types."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Returned:
        hints = _hints(function)
        bound = signature.bind(*args, **kwargs)
        bound.arguments |= {name: plain(value) for name, value in bound.arguments.items()}
        for name, value in bound.arguments.items():
            various = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
            if not various and not fits(value, hints[name]):
                raise UserError(f"{name}={value!r} is not {describe_type(hints[name])}. Pass one.")
        return function(*bound.args, **bound.kwargs)

    return call


def plain(value: Any) -> Any:
    """Returns ConfigDicts as dicts, sequences as tuples and NumPy's numbers as Python's, nested ones too."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if type(value) in (list, tuple):  # not a named tuple
        return tuple(plain(item) for item in value)
    return value.item() if isinstance(value, np.generic) else value


def merged(before: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a mapping with changes, mapping by mapping."""
    result = dict(before)
    for key, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(before.get(key), Mapping)
        result[key] = merged(before[key], value) if nested else value
    return result


def config_from(cls: type[Config], mapping: Config | Mapping[str, Any] | None) -> Config:
    """Returns a config dataclass made of a mapping of its keys, None for none; a config is returned unchanged.

    The class calls `check_fields` in `__post_init__` and may have a table `renamed` of former keys. Raises
    `UserError` that names an unknown key (with the nearest known one) or a bad value.
    """
    if isinstance(mapping, cls):
        return mapping
    values = dict(cast(Mapping[str, Any], mapping).items()) if mapping is not None else {}
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    renamed: Mapping[str, str] = getattr(cls, "renamed", {})
    for key in values:
        if key in renamed:
            raise UserError(f"Unknown key '{key}'. It was renamed to {renamed[key]}.")
        if key not in known:
            raise UserError(f"Unknown key '{key}'. {suggest(str(key), known)}")
    for name, argument in inspect.signature(cls).parameters.items():
        if argument.default is argument.empty and name not in values:
            raise UserError(f"The key '{name}' is missing. Add it.")
    return cls(**values)


def documented(source: Any) -> dict[str, str]:
    """Returns the descriptions of arguments or attributes in a docstring of Google's style, by name.

    The source is a function, or a class, whose bases' attributes are included.
    """
    found: dict[str, str] = {}
    for one in reversed(source.__mro__) if isinstance(source, type) else (source,):
        text = inspect.cleandoc(one.__doc__ or "")
        # An entry is indented by two spaces, its further lines by four.
        section = re.search(r"^(?:Args|Attributes):\n((?: .*\n?)+)", text, re.MULTILINE)
        for entry in re.split(r"\n(?=  \S)", section[1]) if section else ():
            names, _, words = entry.partition(": ")
            found |= dict.fromkeys(map(str.strip, names.split(",")), " ".join(words.split()))
    return found


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
    if origin in (tuple, Sequence):
        return isinstance(value, origin) and all(fits(item, args[0]) for item in value)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(
            fits(item, arg) for pair in value.items() for item, arg in zip(pair, args, strict=True)
        )
    if hint is Any:
        return True
    if isinstance(value, bool):  # bool is an int to Python, but not to a reader of configs
        return hint is bool
    # ml_collections keeps `sigma=8` as an int; the shapes and types of traced values do not depend on it.
    if hint is float:
        return isinstance(value, int | float)
    return isinstance(value, origin or hint)


def describe_type(hint: Any, *, several: bool = False) -> str:
    """Returns an annotation in words: "a number or None", or "numbers or None" for several."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " or ".join(repr(arg) for arg in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe_type(arg, several=several) for arg in args)
    if origin in (tuple, Sequence):
        return f"a {origin.__name__.lower()} of {describe_type(args[0], several=True)}"
    if origin is Mapping and args[1] is not Any and not several:
        keys, values = (describe_type(arg, several=True) for arg in args)
        return f"a mapping of {keys} to {values}"
    name = getattr(hint, "__name__", str(hint))
    return TYPES.get(hint if hint in TYPES else origin, (f"a {name}", name))[several]
