"""Settings: checked frozen dataclasses, and reading them from a command line.

`Checked` raises for a wrong value when the object is made, with the same message for every origin.
`read` fills the fields from a command line, by means of tyro.
"""

from __future__ import annotations

import dataclasses
import io
import re
import types
import typing
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from course.errors import CourseError, misnamed, require, require_number, unknown
from course.lab.terminal import Shown

Read = TypeVar("Read")

LARGEST_COUNT = 10_000_000  # more would not fit in memory
LARGEST_SEED = 2**32 - 1  # leaves room for the offsets and factors that turn it into streams
# fields whose whole number may be 0, which means none or never
MAY_BE_ZERO = ("rollouts", "lr_warmup", "eval_every", "sync_reference")
TRUTH = "true|false|none"  # what the help calls a flag that may be left to the program
RATES = ("lr", "lrs", "rate", "rates")  # the last word of a learning rate's name


# ---------------------------------------------------------------- checked when they are made


@dataclass(frozen=True)
class Checked:
    """The base class of all settings: it checks every field by type and name (see `check`).

    A subclass with further rules extends `__post_init__` and calls this one first.
    """

    def __post_init__(self) -> None:
        check(self)

    def at_least(self, least: int, *fields: str) -> None:
        """Raise `CourseError` for the first of these fields that is below `least`."""
        for name in fields:
            value = getattr(self, name)
            require(value >= least, name, value, f"a whole number ≥ {least}")

    def rising(self, *fields: str) -> None:
        """Raise `CourseError` for the first of these tuples that does not rise from above 0."""
        for name in fields:
            values = getattr(self, name)
            fits = min(values) > 0 and list(values) == sorted(set(values))
            require(fits, name, values, "numbers > 0 in rising order")


def check(settings: Any) -> None:
    """Raise `CourseError`, which names the field, if a field does not fit its type and name.

    - `int`: a whole number > 0, or ≥ 0 for a seed and for fields where 0 means none. True and 2.5
      do not count;
    - `float`: a finite number, > 0 if it is a learning rate;
    - tuple: not empty, and every item is checked;
    - Literal: one of its values;
    - `rung`, `rungs`: known names of estimators.

    Other types are left to the class itself.
    """
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        _check(field.name, getattr(settings, field.name), hints[field.name])


def _check(name: str, value: Any, kind: Any) -> None:
    """Check one value; `kind` is the declared type of the field."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in inner:
            return
        (kind,) = [option for option in inner if option is not type(None)][:1]
        _check(name, value, kind)
    elif origin is typing.Literal:
        require(value in inner, name, value, f"one of {', '.join(map(str, inner))}")
    elif origin is tuple:
        many = len(inner) == 2 and inner[1] is Ellipsis
        fits = isinstance(value, tuple) and (len(value) > 0 if many else len(value) == len(inner))
        require(fits, name, value, f"{'at least one value' if many else f'{len(inner)} values'}")
        for item, one in zip(value, inner[:1] * len(value) if many else inner, strict=True):
            _check(name, item, one)
    elif kind is bool:
        require(isinstance(value, bool), name, value, "True or False")
    elif kind is int:
        _check_whole(name, value)
    elif kind is float:
        rate = name.rpartition("_")[2] in RATES
        require_number(
            name,
            value,
            "a finite number > 0" if rate else "a finite number",
            above=0 if rate else None,
        )
    elif kind is str:
        require(isinstance(value, str) and value != "", name, value, "a text")
        if name in ("rung", "rungs"):
            _check_rung(name, value)


def _check_whole(name: str, value: Any) -> None:
    if name == "seed":
        allowed = f"a whole number from 0 to {LARGEST_SEED}"
        require_number(name, value, allowed, at_least=0, at_most=LARGEST_SEED, whole=True)
        return
    least = 0 if name in MAY_BE_ZERO else 1
    require_number(name, value, f"a whole number ≥ {least}", at_least=least, whole=True)
    require(value <= LARGEST_COUNT, name, value, f"at most {LARGEST_COUNT}")


def _check_rung(field: str, name: str) -> None:
    from course import ladder  # imported late, so that light commands stay fast

    if ".py:" in name or name in ladder.RUNGS:
        ladder.get(name)
    else:
        raise misnamed(field, "rung", name, ladder.RUNGS)


# ---------------------------------------------------------------- read from a command line


def read(
    kind: type[Read], argv: Sequence[str], prog: str, about: str = "", default: Read | None = None
) -> Read:
    """A dataclass filled from the arguments "--field value …", by means of tyro.

    The comment above or after a field is its help. A list is written a,b,c (or a b c). "none" means
    None if the type allows it. FILE.py:NAME is an estimator of the user's own, which is registered
    under NAME. `default` None takes the defaults of the class.

    For --help it shows the help and raises `Shown`. Raises `CourseError`, which names the option as
    it is typed, for anything that it does not understand.
    """
    import tyro  # imported late: a listing does not need it

    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_constructor)
    options: dict[str, Any] = {} if default is None else {"default": default}
    err = io.StringIO()
    try:
        with redirect_stderr(err):
            found, further = tyro.cli(
                typing.cast(Any, kind),
                prog=prog,
                description=about or None,  # None: the docstring of the class
                args=list(argv),
                return_unknown_args=True,
                registry=registry,
                **options,
            )
    except SystemExit as ended:
        if not ended.code:
            raise Shown from None
        raise _refusal(ended, err.getvalue(), kind, prog) from None
    if further:
        raise _unknown(further, kind)
    return typing.cast(Read, found)


def given(argv: Sequence[str]) -> list[str]:
    """The options of a command line as field names: "--held-out .1" gives held_out."""
    words = [word.partition("=")[0] for word in argv if word.startswith("--")]
    return [word[2:].removeprefix("no-").replace("-", "_") for word in words]


def option(field: str) -> str:
    """The name of a field as it is typed: held_out → --held-out."""
    return f"--{field.replace('_', '-')}"


def named(error: CourseError, kind: Any) -> CourseError:
    """The same error, but if it begins with fields of a settings class, with their options."""
    fields, sign, rest = str(error).partition(": got ")
    names = [name.strip().rpartition(".")[2] for name in fields.split(",")]
    known = option_names(kind)
    if sign and all(name in known for name in names):
        return CourseError(f"{', '.join(map(option, names))}{sign}{rest}")
    return error


def option_names(kind: Any) -> list[str]:
    """The fields of a settings class and of the settings nested in it."""
    found = []
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        inner = hints[field.name]
        found += option_names(inner) if dataclasses.is_dataclass(inner) else [field.name]
    return found


def _unknown(words: Sequence[str], kind: Any) -> CourseError:
    """The error for arguments that no option takes."""
    word = next((word for word in words if word.startswith("-")), words[0])
    if word == "--set":
        field, _, value = ([*words, "field=value"][words.index(word) + 1]).partition("=")
        return CourseError(
            f"--set: got '{field}={value}'; allowed is {option(field)} {value}: a setting is an"
            " option of its own"
        )
    if not word.startswith("-"):
        return CourseError(f"arguments: got {' '.join(words)!r}; allowed is --OPTION VALUE")
    return unknown("option", word.partition("=")[0], map(option, option_names(kind)))


def _refusal(ended: SystemExit, shown: str, kind: Any, prog: str) -> CourseError:
    """What tyro rejected, as an error of one line.

    It is the error that a setting itself raised, or else the text in tyro's box between its title
    and the next rule.
    """
    cause: BaseException | None = ended
    while cause is not None:
        if isinstance(cause, CourseError):
            return named(cause, kind)
        cause = cause.__context__
    boxed = "╭" in shown  # then the title is in the border; otherwise it is above the first rule
    lines = [line.strip(" │|") for line in shown.splitlines() if not re.search("[╭╰]", line)]
    parts = re.split(r"\n[-─]{3,}\n", "\n".join(line for line in lines if line))
    said = " ".join(parts[0 if boxed else min(1, len(parts) - 1)].split())
    return CourseError(said.removeprefix("Error parsing ") or f"{prog}: got what it cannot read")


def _constructor(info: Any) -> Any:
    """The rule that gives tyro a reader for numbers, strings, paths, lists of them, and None.

    tyro itself reads all other types, such as choices.
    """
    import tyro

    reader = _reader(info.type)
    if reader is None:
        return None
    metavar, parse = reader
    bare = "true" if metavar == TRUTH else ""  # the value of --flag without an argument
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="*" if metavar.endswith("…") else (0, 1) if metavar == TRUTH else 1,
        metavar=metavar,
        instance_from_str=lambda words: parse(",".join(words) if words else bare),
        is_instance=lambda value: True,
        str_from_instance=lambda value: [written(value)],
    )


def written(value: Any) -> str:
    """A setting as it is typed on the command line."""
    if value is None:
        return "none"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _reader(kind: Any) -> tuple[str, Callable[[str], Any]] | None:
    """(name in the help, function text → value) for a type; the function raises ValueError."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind in READERS:
        return READERS[kind]
    if origin in (typing.Union, types.UnionType) and len(inner) == 2 and type(None) in inner:
        (kind,) = (part for part in inner if part is not type(None))
        one = (TRUTH, _truth) if kind is bool else _reader(kind)
        return one and (one[0], lambda text: None if text.lower() == "none" else one[1](text))
    if origin is tuple and all(part in (*READERS, Ellipsis) for part in inner):
        return ",".join(READERS[part][0] for part in inner if part is not Ellipsis) + ",…", (
            lambda text: _items(inner, [part.strip() for part in text.split(",") if part.strip()])
        )
    return None


def _items(kinds: tuple[Any, ...], parts: list[str]) -> tuple[Any, ...]:
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(parts)
    if len(kinds) != len(parts):
        raise ValueError(f"got {','.join(parts)!r}; allowed is {len(kinds)} values")
    return tuple(READERS[kind][1](part) for kind, part in zip(kinds, parts, strict=True))


def _whole(text: str) -> int:
    with suppress(ValueError):
        value = float(text)  # 1e3
        if value.is_integer():
            return int(text) if re.fullmatch(r"[+-]?[\d_]+", text) else int(value)
    raise ValueError(f"got {text!r}; allowed is a whole number")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"got {text!r}; allowed is a number") from None


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"got {text!r}; allowed is true, false or none")
    return text.lower() == "true"


def _text(text: str) -> str:
    """A string; FILE.py:NAME registers that estimator and becomes its name."""
    if ".py:" not in text:
        return text
    from course import ladder

    return ladder.get(text).name


READERS: dict[Any, tuple[str, Callable[[str], Any]]] = {
    int: ("INT", _whole),
    float: ("NUMBER", _number),
    str: ("TEXT", _text),
    Path: ("PATH", Path),
}
