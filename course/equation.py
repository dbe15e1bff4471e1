"""The objective of an estimator as an equation: LaTeX for a page, one line of text for a terminal.

Each part has a formula of its own; the functions here put them together.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from course.parts import (
    KL,
    AdaptiveEntropy,
    Aggregation,
    Baseline,
    Correction,
    Credit,
    RatioLevel,
    SampleFilter,
    Scale,
    Surrogate,
)
from course.parts.base import number


class Objective(Protocol):
    """What `latex` and `text` read: the parts and coefficients of an `Estimator`."""

    @property
    def credit(self) -> Credit: ...
    @property
    def baseline(self) -> Baseline: ...
    @property
    def scale(self) -> Scale: ...
    @property
    def correction(self) -> Correction: ...
    @property
    def ratio(self) -> RatioLevel: ...
    @property
    def surrogate(self) -> Surrogate: ...
    @property
    def kl(self) -> KL: ...
    @property
    def aggregation(self) -> Aggregation: ...
    @property
    def sample_filter(self) -> SampleFilter: ...
    @property
    def entropy_coef(self) -> float | AdaptiveEntropy: ...
    @property
    def value_coef(self) -> float: ...
    @property
    def value_clip(self) -> float | None: ...
    @property
    def uses_ratio(self) -> bool: ...


Show = Callable[[str, str], str]  # the name of a field and its LaTeX → the LaTeX, coloured or not


def latex(objective: Objective, changed: Collection[str] = (), colour: str | None = None) -> str:
    """The objective in LaTeX, with the fields named in `changed` in `colour` (None: plain)."""
    coloured = changed if colour else ()

    def show(name: str, body: str) -> str:
        # the outer braces are for LaTeX and KaTeX, where \color holds to the end of its group; the
        # inner ones are for MathJax, where \color takes one argument
        return rf"{{\color{{{colour}}}{{{body}}}}}" if name in coloured else body

    bracket = _bracket(objective, coloured, show)
    lines = [rf"L(\theta)&={show('aggregation', objective.aggregation.latex)}{bracket}"]
    lines.append(_advantage(objective, coloured, show))
    if not objective.correction.implied or "correction" in coloured:
        lines.append(_correction(objective, show))
    if objective.uses_ratio:
        lines.append(rf"&{show('ratio', objective.ratio.latex)}")
    if objective.kl.in_reward:
        lines.append(rf"r_{{i,t}}&\leftarrow r_{{i,t}}-{show('kl', objective.kl.latex)}")
    if not objective.sample_filter.implied or "sample_filter" in coloured:
        lines.append(rf"&i:\;{show('sample_filter', objective.sample_filter.latex)}")
    return r"\begin{aligned}" + r"\\ ".join(lines) + r"\end{aligned}"


def _returned(objective: Objective) -> str:
    """The LaTeX of the return: R_i if it is one per sample, else R_{i,t}."""
    return "R_i" if objective.credit.implied else "R_{i,t}"


def _bracket(objective: Objective, coloured: Collection[str], show: Show) -> str:
    """The term that is summed over tokens, in brackets if it has several terms."""
    surrogate = show("surrogate", objective.surrogate.latex)
    if not objective.correction.implied:
        inner = rf"\left({surrogate}\right)" if _is_sum(objective.surrogate.latex) else surrogate
        surrogate = rf"c_{{i,t}}\,{inner}"
    terms = surrogate
    if not objective.kl.implied:
        place = show("kl", objective.kl.latex)
        terms += "" if objective.kl.in_reward else rf"-{place}"
    elif "kl" in coloured:
        terms += show("kl", r"-0")
    if objective.entropy_coef:
        bonus = objective.entropy_coef
        if isinstance(bonus, AdaptiveEntropy):
            written = r"\alpha_{\text{adaptive}}"
        else:
            written = number(bonus)
        coefficient = show("entropy_coef", written)
        terms += rf"+{coefficient}\,\mathcal H_{{i,t}}"
    if objective.value_coef:
        coefficient = show("value_coef", number(objective.value_coef))
        terms += rf"-{coefficient}\,\tfrac12{_error(objective, show)}"
    alone = terms == surrogate and not _is_sum(objective.surrogate.latex)
    return terms if alone else rf"\left[{terms}\right]"


def _error(objective: Objective, show: Show) -> str:
    """The LaTeX of the critic's squared error, clipped or not."""
    target = _returned(objective)
    plain = rf"(V_{{i,t}}-{target})^2"
    if objective.value_clip is None:
        return plain
    near = rf"V^{{\text{{old}}}}_{{i,t}}\pm {number(objective.value_clip)}"
    cut = rf"\operatorname{{clip}}(V_{{i,t}},{near})"
    return show("value_clip", rf"\max\left({plain},({cut}-{target})^2\right)")


def _is_sum(term: str) -> bool:
    """Whether a term has a + or − outside all brackets, so that a factor before it needs some."""
    depth = 0
    for place, letter in enumerate(term):
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 0 and place > 0 and letter in "+-−":
            return True
    return False


def _correction(objective: Objective, show: Show) -> str:
    """The line that defines c, and the symbols in it."""
    line = rf"c_{{i,t}}&={show('correction', objective.correction.latex)}"
    defines = objective.correction.defines
    return rf"{line},\qquad {defines}" if defines else line


def _advantage(objective: Objective, coloured: Collection[str], show: Show) -> str:
    """The line that defines A."""
    numerator = _returned(objective)
    if not objective.baseline.implied or "baseline" in coloured:
        numerator += "-" + show("baseline", objective.baseline.latex)
    scaled = objective.scale.wrap(numerator)
    scaled = show("scale", scaled) if "scale" in coloured else scaled
    return rf"A_{{i,t}}&={scaled},\qquad {show('credit', objective.credit.latex)}"


def text(objective: Objective) -> str:
    """The objective on one line, for a terminal."""
    terms = objective.surrogate.text
    if not objective.correction.implied:
        terms = f"c·({terms})" if _is_sum(terms) else f"c·{terms}"
    if not objective.kl.implied and not objective.kl.in_reward:
        terms += f" − {objective.kl.text}"
    if objective.entropy_coef:
        bonus = objective.entropy_coef
        terms += " + α·H" if isinstance(bonus, AdaptiveEntropy) else f" + {bonus:g}·H"
    if objective.value_coef:
        error = "(V − R)²"
        if objective.value_clip is not None:
            error = f"max({error}, (clip(V, V_old ± {objective.value_clip:g}) − R)²)"
        terms += f" − {objective.value_coef:g}·½{error}"
    plain = objective.baseline.implied
    numerator = "R" if plain else f"R − {objective.baseline.text}"
    advantage = objective.scale.wrap_text(numerator)
    line = f"{objective.aggregation.text} [{terms}],  A = {advantage}"
    if not objective.credit.implied:
        line += f",  {objective.credit.text}"
    if not objective.correction.implied:
        says = objective.correction.says
        line += f",  c = {objective.correction.text}" + (f", {says}" if says else "")
    if objective.uses_ratio and not objective.ratio.implied:
        line += f",  {objective.ratio.text}"
    if objective.kl.in_reward:
        line += f",  r ← r − {objective.kl.text}"
    if not objective.sample_filter.implied:
        line += f",  {objective.sample_filter.text}"
    return line
