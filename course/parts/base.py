"""What all parts share: a part is a frozen dataclass that knows its own formula, what it needs
and how far it looks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from course.errors import Clash, CourseError

Scope = Literal["token", "sample", "group", "batch"]

DECLARED = ("scope", "reads")
# what a class may redefine without computing anything else than its parent does
HARMLESS = (
    *DECLARED, "needs", "policy_needs", "uses_ratio", "check", "clash",
    "latex", "text", "short", "symbol", "plain", "wrap", "wrap_text",
)  # fmt: skip


class Declares:
    """What parts, and the places and anchors of a KL, say of themselves: how far they look.

    `scope` is how far away a sample or token may be that changes what is computed for one token:

    - "token": nothing but that token;
    - "sample": other tokens of its sample;
    - "group": other samples of its prompt;
    - "batch": samples of other prompts.

    Only what depends on chance counts: which outcome was sampled there. What is the same whatever
    happens (Q, G, the generation limit, β, the greedy answer's reward of the own prompt) may be
    used in every scope. So `SequenceSum`, which divides by the number N of samples that have a
    token, looks across the batch, but reads of the others only whether they are "empty"; where no
    sample can be, N is a constant, and nothing is seen. With `count_empty` N = Q·G and its scope is
    "token".

    `reads` names what a part of scope "group" or "batch" uses of OTHER samples: arguments of its
    call ("returns", "advantage", "mask") or fields of the rollout ("total_reward", "reward",
    "truncated", "value", ...); of a mask less may be enough, "length" (how many tokens it has) or
    "empty" (whether it has none). None: anything. A baseline or filter uses of its own sample
    nothing beyond that either, so that its result for another sample follows from what was read. A
    weight's mask is the one that the filter left.

    Who declares nothing looks at everything: "batch", None. A class that overrides what is computed
    and does not declare anew is one of these, whatever its parent said. Both may be properties that
    use the fields. `course.exact` takes prompts apart and lumps outcomes by these words, and
    tests/course/test_scope.py derives them by changing what should not be seen.
    """

    @property
    def scope(self) -> Scope:
        """How far it looks; see the class."""
        return "batch"

    @property
    def reads(self) -> tuple[str, ...] | None:
        """What it uses of other samples; see the class."""
        return None

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
    """Whether this entry of a class may change what the class computes: methods, properties and
    other callables, unless they only show or check it.
    """
    dunder = name.startswith("__") and name.endswith("__") and name != "__call__"
    return not dunder and name not in HARMLESS and (callable(value) or hasattr(value, "__get__"))


@dataclass(frozen=True)
class Part(Declares):
    """One replaceable term of the objective.

    A part of your own subclasses one of its eight kinds and adds `__call__`. Say its `scope` and
    what it `reads` of other samples (`Declares`), and the microscope takes larger cases.

    `symbol` is the LaTeX of the term, `plain` its form for a terminal; both may be properties that
    use the fields. `needs` names the optional fields of the `Rollout` without which the part cannot
    work, `policy_needs` those of the `Policy`; both may be properties.
    """

    symbol: ClassVar[str] = ""
    plain: ClassVar[str] = ""

    @property
    def needs(self) -> tuple[str, ...]:
        """The optional fields of the rollout without which it cannot work."""
        return ()

    @property
    def policy_needs(self) -> tuple[str, ...]:
        """The optional fields of the policy without which it cannot work."""
        return ()

    @property
    def pieces(self) -> tuple[Declares, ...]:
        """Itself, and what it is put together from, which declares for itself."""
        return (self,)

    @property
    def latex(self) -> str:
        """The term in LaTeX; its class name where a part of your own defines no `symbol`."""
        return self.symbol or rf"\mathrm{{{type(self).__name__}}}"

    @property
    def text(self) -> str:
        """The term for a terminal."""
        return self.plain or type(self).__name__

    @property
    def short(self) -> str:
        """The part as one would write it: only the fields that differ from the defaults."""
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
        """Raise `Clash` if this part cannot work among the estimator's parts, by their places."""

    def clash(self, other: Part, why: str) -> Clash:
        """The error that names both parts and the reason."""
        return Clash(f"{self.short} clashes with {other.short}: {why}")


T = TypeVar("T")
OWN = "course_own_"  # modules loaded from FILE.py:NAME are called this and their path


def ask(place: str, part: Part, how: Callable[..., T], *arguments: object) -> T:
    """What `how(*arguments)` of a part answers; whatever it raises is told in one line that names
    the part and its place in the estimator.
    """
    try:
        return how(*arguments)
    except CourseError:
        raise
    except (Exception, SystemExit) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise CourseError(
            f"estimator.{place}: {_who(part)} raised {what}; allowed is a part that computes"
        ) from error


def ask_tensor(
    place: str, part: Part, shape: torch.Size, how: Callable[..., object], *arguments: object
) -> Tensor:
    """`ask` for a floating-point tensor of exactly this shape: another one might broadcast, and
    compare samples of different prompts.
    """
    answer = ask(place, part, how, *arguments)
    if isinstance(answer, Tensor) and answer.shape == shape and answer.is_floating_point():
        return answer
    raise wrong_answer(place, part, answer, f"a floating-point tensor of shape {tuple(shape)}")


def wrong_answer(place: str, part: Part, answer: object, allowed: str) -> CourseError:
    """The error for what a part answered and cannot be used: one line."""
    got: object = type(answer).__name__
    if isinstance(answer, Tensor):
        got = f"shape {tuple(answer.shape)} of {answer.dtype}"
    return CourseError(f"estimator.{place}: got {got} from {_who(part)}; allowed is {allowed}")


def _who(part: Part) -> str:
    """The part as one would write it, with its file where it was loaded from FILE.py:NAME."""
    module = type(part).__module__
    own = module.startswith(OWN) and f" of {module.removeprefix(OWN)}"
    return f"{part.short}{own or ''}"


def number(value: float) -> str:
    """A coefficient as LaTeX writes it: 0.04, 10^{-6}, 3\\times10^{-4}."""
    text = f"{value:.4g}"
    if "e" not in text:
        return text
    mantissa, exponent = text.split("e")
    power = f"10^{{{int(exponent)}}}"
    return power if mantissa == "1" else rf"{mantissa}\times {power}"
