"""The base class of all parts: a frozen dataclass with a formula, its needs and its scope."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from course.errors import Clash, CourseError

Scope = Literal["token", "sample", "group", "batch"]

DECLARED = ("scope", "reads", "implied")
# names that a class may redefine without changing what it computes
HARMLESS = (
    *DECLARED, "needs", "policy_needs", "uses_ratio", "check", "clash",
    "least_group", "latex", "text", "short", "symbol", "plain", "wrap", "wrap_text",
)  # fmt: skip


class Declares:
    """What parts, and the places and anchors of a KL, declare: which other samples they use.

    `scope` names the farthest tokens that may change the result for one token:

    - "token": only that token;
    - "sample": other tokens of its sample;
    - "group": other samples of its prompt;
    - "batch": samples of other prompts.

    Only random quantities count, that is, which outcome was sampled. Quantities that are the same
    for every outcome (Q, G, the generation limit, β, the reward of the prompt's greedy answer) may
    be used in every scope. For example, `SequenceSum` divides by the number N of samples that have
    a token. It looks across the batch, but of other samples it reads only whether they are "empty".
    If no sample can be empty, N is a constant and the scope makes no difference. With `count_empty`
    N = Q·G, and the scope is "token".

    `reads` names what a part of scope "group" or "batch" uses of OTHER samples: arguments of its
    call ("returns", "advantage", "mask") or fields of the rollout ("total_reward", "reward",
    "truncated", "value", ...); a filter on tokens names the fields of `Tokens`. A part that uses
    only the number of chosen tokens says "length" instead of "mask", and a part that uses only
    whether there is one says "empty". None means that it may use anything. A baseline or filter
    uses nothing else of its own sample either, so its result for every sample follows from what it
    reads. An aggregation's mask is the one that the filter left.

    `implied` True means that an equation leaves the part out, since it is the usual case: no
    baseline, no KL, all samples, the return of the whole sample, a ratio per token.

    The defaults are "batch", None and False: everything may be used, and the part is named. A class
    that overrides a computation without declaring again gets these defaults, whatever its parent
    declared. All may be properties that use the fields. `course.exact` relies on scope and reads to
    enumerate prompts separately and to merge equivalent outcomes. tests/course/test_scope.py checks
    these declarations by changing what the part should not see.
    """

    @property
    def scope(self) -> Scope:
        """The farthest tokens that may change the result for one token; see the class."""
        return "batch"

    @property
    def reads(self) -> tuple[str, ...] | None:
        """What is used of other samples; None means anything. See the class."""
        return None

    @property
    def implied(self) -> bool:
        """Whether an equation leaves it out; see the class."""
        return False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for name in DECLARED:
            for base in cls.__mro__[: cls.__mro__.index(Declares)]:
                if name in vars(base):
                    break
                if any(_computes(key, value) for key, value in vars(base).items()):
                    setattr(cls, name, vars(Declares)[name])
                    break


def _computes(name: str, value: object) -> bool:
    """Whether this entry of a class may change what the class computes.

    True for methods, properties and other callables, unless they only display or check the part.
    """
    dunder = name.startswith("__") and name.endswith("__") and name != "__call__"
    return not dunder and name not in HARMLESS and (callable(value) or hasattr(value, "__get__"))


@dataclass(frozen=True)
class Part(Declares):
    """One replaceable term of the objective.

    To write a part of your own, subclass one of the nine kinds and define `__call__`. If you also
    declare its `scope` and what it `reads` of other samples (see `Declares`), the exact microscope
    can handle larger cases.

    `symbol` is the LaTeX of the term and `plain` its form for a terminal. `needs` names the
    optional fields of the `Rollout` that the part cannot work without, `policy_needs` those of the
    `Policy`. All four may be properties that use the fields.
    """

    symbol: ClassVar[str] = ""
    plain: ClassVar[str] = ""

    @property
    def needs(self) -> tuple[str, ...]:
        """The optional fields of the rollout that the part cannot work without."""
        return ()

    @property
    def policy_needs(self) -> tuple[str, ...]:
        """The optional fields of the policy that the part cannot work without."""
        return ()

    @property
    def least_group(self) -> int:
        """The fewest samples per prompt that the part says it needs."""
        return 1

    @property
    def pieces(self) -> tuple[Declares, ...]:
        """The part itself and the objects it is made of, each with its own scope."""
        return (self,)

    @property
    def latex(self) -> str:
        """The term in LaTeX; the class name if the class defines no `symbol`."""
        return self.symbol or rf"\mathrm{{{type(self).__name__}}}"

    @property
    def text(self) -> str:
        """The term for a terminal."""
        return self.plain or type(self).__name__

    @property
    def short(self) -> str:
        """The part as a Python call with the fields that differ from their defaults."""
        default = {
            f.name: f.default_factory() if callable(f.default_factory) else f.default
            for f in fields(self)
        }
        given = [
            f"{name}={getattr(self, name)!r}"
            for name in default
            if getattr(self, name) != default[name]
        ]
        return f"{type(self).__name__}({', '.join(given)})"

    def check(self, parts: Mapping[str, Part]) -> None:
        """Raise `Clash` if this part cannot work with the others; `parts` maps place to part."""

    def clash(self, other: Part, why: str) -> Clash:
        """The error that names both parts and the reason."""
        return Clash(f"{self.short} clashes with {other.short}: {why}")


T = TypeVar("T")
OWN = "course_own_"  # prefix of the module name of a file loaded as FILE.py:NAME; its path follows


def ask(place: str, part: Part, how: Callable[..., T], *arguments: object) -> T:
    """Return `how(*arguments)` of a part.

    Whatever it raises becomes a `CourseError` of one line, with the part and its place in the
    estimator. A `CourseError` passes through.
    """
    try:
        return how(*arguments)
    except CourseError:
        raise
    except (Exception, SystemExit, GeneratorExit) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise CourseError(
            f"estimator.{place}: {_who(part)} raised {what}; allowed is a part that computes"
        ) from error


def ask_tensor(
    place: str,
    part: Part,
    shape: torch.Size,
    how: Callable[..., object],
    *arguments: object,
    flags: bool = False,
) -> Tensor:
    """Call `ask` and check that the answer is a dense floating-point tensor (`flags`: one of bools)
    of exactly this shape.

    Raises `CourseError` otherwise: a tensor of another shape may broadcast, and then samples of
    different prompts are compared.
    """
    answer = ask(place, part, how, *arguments)
    kind = "torch.bool" if flags else "floating-point"
    if (
        isinstance(answer, Tensor)
        and answer.shape == shape
        and answer.layout == torch.strided
        and (answer.dtype == torch.bool if flags else answer.is_floating_point())
    ):
        return answer
    raise wrong_answer(place, part, answer, f"a {kind} tensor of shape {tuple(shape)}")


def ask_factor(
    place: str, part: Part, shape: torch.Size, how: Callable[..., object], *arguments: object
) -> Tensor | float:
    """Call `ask` and check that the answer is a number, or a floating-point tensor with as many
    axes as `shape`, each of length 1 or the same. Raises `CourseError` otherwise.
    """
    answer = ask(place, part, how, *arguments)
    if isinstance(answer, Tensor):
        fits = answer.dim() == len(shape) and answer.is_floating_point()
        pairs = zip(answer.shape, shape, strict=False)
        if fits and all(have in (1, want) for have, want in pairs):
            return answer
    elif isinstance(answer, int | float) and not isinstance(answer, bool):
        return answer
    allowed = f"a number or a tensor [..., Q, G, T] = {tuple(shape)}, each axis 1 or the same"
    raise wrong_answer(place, part, answer, allowed)


def wrong_answer(place: str, part: Part, answer: object, allowed: str) -> CourseError:
    """The error for a result of a part that cannot be used."""
    got: object = type(answer).__name__
    if isinstance(answer, Tensor):
        got = f"shape {tuple(answer.shape)} of {answer.dtype}"
    return CourseError(f"estimator.{place}: got {got} from {_who(part)}; allowed is {allowed}")


def _who(part: Part) -> str:
    """The part as a Python call, with its file if it was loaded from FILE.py:NAME."""
    module = type(part).__module__
    own = module.startswith(OWN) and f" of {module.removeprefix(OWN)}"
    return f"{part.short}{own or ''}"


def number(value: float) -> str:
    """A coefficient in LaTeX: 0.04, 10^{-6}, 3\\times10^{-4}."""
    text = f"{value:.4g}"
    if "e" not in text:
        return text
    mantissa, exponent = text.split("e")
    power = f"10^{{{int(exponent)}}}"
    return power if mantissa == "1" else rf"{mantissa}\times {power}"
