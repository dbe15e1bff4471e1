"""Arguments checked by their annotations, for classes and functions that users call.

The annotations say what is allowed, so that no class repeats it in code.
"""

from __future__ import annotations

import functools
import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch

from course.errors import as_float, require

Made = TypeVar("Made", bound=Callable[..., Any])
IN_WORDS = {
    torch.Tensor: "a tensor (dense, and not complex)",
    torch.device: "a device of this machine, such as 'cpu'",
    torch.dtype: "a dtype of torch",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text",
    type(None): "None",
    Callable: "a function",
}


def typed(made: Made) -> Made:
    """Decorate a function or class: its arguments must be of the types that it declares.

    Raises `CourseError` otherwise, which names the argument: "Softmax.logits: got [0.0]; allowed is
    a tensor". NaN is no float, True no number, and a string no sequence. An annotation that is a
    `Protocol` asks for its attributes alone. The function itself checks shapes and ranges. A check
    takes microseconds, so functions that are called for every token or update go without.
    """
    if isinstance(made, type):
        made.__init__ = _typed(made.__init__, None)  # type: ignore[misc]
        return cast(Made, made)
    return cast(Made, _typed(made, made.__qualname__.rpartition("<locals>.")[2]))


def require_type(field: str, value: object, kind: Any) -> None:
    """Raise `CourseError` unless `value` is of the type `kind`, as an annotation would be."""
    if not _fits(value, kind):
        require(False, field, value, _named(kind))


def _typed(function: Callable[..., Any], name: str | None) -> Callable[..., Any]:
    """`function` with its arguments checked; `name` None stands for the class of its object."""
    signature = inspect.signature(function)

    @functools.cache
    def kinds() -> dict[str, Any]:  # at the first call, when all names are defined
        hints = typing.get_type_hints(function)
        return {
            argument: _declared(signature.parameters[argument], hint)
            for argument, hint in hints.items()
            if argument != "return"
        }

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return function(*args, **kwargs)  # Python's own message says what is missing
        for argument, kind in kinds().items():
            if argument in given and not _fits(given[argument], kind):
                owner = type(args[0]).__name__ if name is None else name
                require_type(f"{owner}.{argument}", given[argument], kind)
        return function(*args, **kwargs)

    return checked


def _declared(parameter: inspect.Parameter, hint: Any) -> Any:
    """The type of what `inspect` binds to a parameter: *args are a tuple, **kwargs a mapping."""
    if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
        return tuple[hint, ...]
    return Mapping[str, hint] if parameter.kind is inspect.Parameter.VAR_KEYWORD else hint


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a declared type; types that cannot be checked fit."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in _options(inner))
    if origin is typing.Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if kind is Any:
        return True
    if kind is float:
        return not math.isnan(as_float(value, numbers.Real))
    if kind is int:
        return abs(as_float(value, numbers.Integral)) < 2**63  # NaN if it is none
    if Callable in (kind, origin):
        return callable(value)
    outer: Any = type(None) if kind is None else origin or kind
    if not isinstance(outer, type):
        return True
    if outer is torch.device:
        return isinstance(value, outer) or _exists(value)
    if getattr(outer, "_is_protocol", False) and outer.__module__ != "collections.abc":
        return not isinstance(value, type) and all(hasattr(value, name) for name in _members(outer))
    if outer is torch.Tensor:
        return isinstance(value, outer) and value.layout is torch.strided and not value.is_complex()
    is_one, is_text = isinstance(value, outer), isinstance(value, str | bytes)
    if not is_one or (is_text and origin is not None):
        return False
    if origin is tuple and inner[-1:] != (Ellipsis,):
        return len(value) == len(inner) and all(map(_fits, value, inner))
    if origin is not None and issubclass(origin, Mapping):
        return all(_fits(one, inner[1]) for one in value.values())
    return (
        origin is None
        or not issubclass(origin, Sequence)
        or isinstance(value, range)
        or all(_fits(one, inner[0]) for one in value)
    )


def _options(inner: tuple[Any, ...]) -> tuple[Any, ...]:
    """The types of a union. Beside a device, a text must name one."""
    return tuple(one for one in inner if one is not str or torch.device not in inner)


def _members(protocol: type) -> set[str]:
    """The names of the attributes and methods of a protocol."""
    own = {name for name in vars(protocol) if not name.startswith("_")}
    return own | set(typing.get_type_hints(protocol))


def _exists(name: Any) -> bool:
    """Whether `name` is the name of a device that this machine has."""
    if not isinstance(name, str):
        return False
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError):
        return False
    return True


def _named(kind: Any) -> str:
    """A declared type in words: "a tensor or None"."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_named, _options(inner))))
    if origin is typing.Literal:
        return " or ".join(map(repr, inner))
    if isinstance(origin, type) and issubclass(origin, Sequence):
        fixed = origin is tuple and inner[-1:] != (Ellipsis,)
        return f"{len(inner)} values" if fixed else f"a sequence, each item {_named(inner[0])}"
    kind = origin or kind
    name = getattr(kind, "__name__", str(kind))
    return IN_WORDS.get(kind, f"{'an' if name[:1] in 'AEIOU' else 'a'} {name}")
