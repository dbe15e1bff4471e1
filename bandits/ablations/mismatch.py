"""The sampler is not the learner: what each correction saves, exactly, as four kinds of drift grow.

Answers of three tokens are listed, so every number is exact. The sampler differs from the learner
by its temperature, by top-p, by the precision of its logits, or by weights some updates old. Look
for three things: one weight for a whole answer is exact until its cap binds, while a weight per
token is not; no weight brings back what top-p never samples; and a mask that is too narrow for the
drift drops the answers that teach most, and is then worse than no correction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from bandits.theory import mismatch as theory
from bandits.theory.effective_samples import Sums
from bandits.theory.mismatch import CORRECTIONS
from course.errors import require
from course.exact import Outcomes
from course.lab import figures
from course.lab.facts import Facts
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.terminal import Progress
from course.parts import SequenceTIS, TokenTIS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "a sampler that is not the learner: bias and noise of every correction as the drift grows"
EXPECTED_SECONDS = 2.0


@dataclass(frozen=True)
class Settings(Checked):
    """The answers, the learner, and how far the sampler drifts; nothing is sampled."""

    tokens: int = 3  # tokens of an answer
    words: int = 4  # choices of a token
    seed: int = 0  # of the learner's first logits
    updates: int = 16  # exact updates of the learner
    lr: float = 1.0  # their learning rate
    temperatures: tuple[float, ...] = (1.02, 1.05, 1.1, 1.2, 1.5, 2.0)  # of the sampler
    top_p: tuple[float, ...] = (0.99, 0.97, 0.95, 0.9, 0.8)  # of the sampler
    bits: tuple[int, ...] = (8, 7, 6, 5, 4, 3, 2)  # of its logits; bfloat16 has 8 significant ones
    stale: tuple[int, ...] = (1, 2, 4, 8, 16)  # updates by which its weights are old
    caps: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 1000.0)  # C, where it grows

    def __post_init__(self) -> None:
        super().__post_init__()
        Sums(self.tokens, self.words)
        require(1 <= self.updates <= 1000, "updates", self.updates, "from 1 to 1000")
        require(self.lr > 0, "lr", self.lr, "a number > 0")
        allowed = "temperatures above 1, rising"
        require(min(self.temperatures) > 1, "temperatures", self.temperatures, allowed)
        inside = min(self.top_p) > 0 and max(self.top_p) < 1
        require(inside, "top_p", self.top_p, "numbers between 0 and 1, falling")
        require(min(self.bits) >= 1, "bits", self.bits, "whole numbers ≥ 1, falling")
        inside = min(self.stale) >= 1 and max(self.stale) <= self.updates
        require(inside, "stale", self.stale, f"from 1 to updates = {self.updates}, rising")
        require(min(self.caps) > 0, "caps", self.caps, "numbers > 0, rising")
        for name in ("temperatures", "stale", "caps"):
            self.rising(name)

    @property
    def drifts(self) -> dict[str, tuple[float, ...]]:
        """Kind of drift → its sizes, from the smallest to the largest drift."""
        return {
            "temperature": self.temperatures,
            "top-p": self.top_p,
            "bits": self.bits,
            "updates": self.stale,
        }


SETTINGS = Settings()
SOURCE = "Yao et al. 2025; this course"
CAPTION = (
    "Exact, nothing sampled: the gradient of one sample (policy gradient, baseline J), answers of"
    " three tokens. Bias and noise are shares of ‖∇J‖; 0 is drawn at the lower edge, and no cosine"
    " where everything is dropped. bfloat16 keeps 8 bits of a logit, here of size 16."
)
COLOURS = {
    "none": "#000000",
    "token TIS": "#0057a3",
    "sequence TIS": "#b8320f",
    "token MIS": "#4a98e0",
    "sequence MIS": "#c96f00",
    "sequence-mask TIS": "#7a1f5c",
    "k3 rejection": "#00875f",
    "sequence weight": "#888888",
}
MASKS = ("token MIS", "sequence MIS", "sequence-mask TIS", "k3 rejection")
LOWEST = 1e-3  # where a bias of 0 is drawn


def run(settings: Settings, progress: Progress) -> Result:
    """Every correction at every size of every drift, and the bias as the cap grows."""
    s = settings
    task = Sums(s.tokens, s.words)
    path = theory.learner(task, s.seed, s.updates, s.lr)
    drawn = {
        kind: [theory.outcomes(task, path[-1], theory.sampler(kind, x, path)) for x in sizes]
        for kind, sizes in s.drifts.items()
    }
    table: dict[str, Any] = {}
    for kind, cases in progress(list(drawn.items()), "drifts"):
        rows = {
            name: [theory.table_row(part, case) for case in cases]
            for name, part in CORRECTIONS.items()
        }
        table[kind] = {
            name: {key: [row[key] for row in each] for key in each[0]}
            for name, each in rows.items()
        }
        table[kind]["kl"] = [theory.drift_kl(case) for case in cases]
    hottest = drawn["temperature"][-1]
    one = theory.as_arms(hottest)
    growing = {
        name: theory.by_cap(case, make, s.caps)
        for name, case, make in (
            ("token", hottest, TokenTIS),
            ("sequence", hottest, SequenceTIS),
            ("one token", one, TokenTIS),
        )
    }
    facts = [
        *_cap_facts(s, growing),
        *_table_facts(s, table),
        *_precision_facts(s, drawn["bits"]),
    ]
    series = {"table": table, "caps": {"cap": s.caps, **growing}}
    return Result(series=series, facts=facts, caption=CAPTION)


# ---------------------------------------------------------------- facts


def _cap_facts(s: Settings, growing: dict[str, Tensor]) -> Facts:
    """The bias of truncated weights as their cap grows, at the highest temperature."""
    facts = Facts(SOURCE, 28)
    where = f"relative bias, T = {s.tokens}, sampler at temperature {s.temperatures[-1]:g}"
    largest = f"C = {s.caps[-1]:g}"
    claim = f"Sequence TIS is unbiased where the cap does not bind ({where}, {largest})"
    facts.exact(claim, growing["sequence"][-1], 0.0)
    claim = f"Token TIS stays biased without a cap ({where}, {largest})"
    facts.above(claim, float(growing["token"][-1]))
    claim = f"With answers of one token, token TIS is unbiased, too (same case as arms, {largest})"
    facts.exact(claim, growing["one token"][-1], 0.0)
    falls = bool((growing["sequence"].diff() <= 1e-12).all())
    facts.exact(f"The bias of sequence TIS falls as the cap grows ({where})", falls, True)
    return facts


def _table_facts(s: Settings, table: dict[str, Any]) -> Facts:
    """Directions at the smallest and the largest drift; written before the table was computed.

    The learner's rate and the sizes of top-p were set after a first look at it.
    """
    facts = Facts(SOURCE, 28)
    for kind, sizes in s.drifts.items():
        rows, where = table[kind], f"{kind} {sizes[0]:g}, relative bias"
        claim = f"Token TIS has less bias than no correction ({where})"
        facts.below(claim, rows["token TIS"]["bias"][0], rows["none"]["bias"][0])
        if kind == "top-p":
            worst = min(rows["sequence weight"]["bias"])
            claim = "Under top-p even the whole answer's exact weight stays biased, since what is"
            facts.above(f"{claim} cut off is never sampled (least relative bias)", worst)
            continue
        off = max(rows["sequence weight"]["bias"])
        claim = f"The whole answer's weight is unbiased at every size of the drift ({kind}, largest"
        facts.exact(f"{claim} relative bias)", off, 0.0)
        claim = f"Sequence TIS at C = 2 is unbiased at the smallest drift ({where})"
        facts.exact(claim, rows["sequence TIS"]["bias"][0], 0.0)
        same = abs(rows["token MIS"]["bias"][0] - rows["token TIS"]["bias"][0])
        claim = f"Masked and truncated weights are one at the smallest drift ({where}, difference)"
        facts.exact(claim, same, 0.0)
        claim = f"The whole answer's weight is noisier than none at the largest drift ({kind}"
        noise = rows["sequence weight"]["noise"][-1]
        facts.above(f"{claim} {sizes[-1]:g})", noise, rows["none"]["noise"][-1])
    warm = table["temperature"]
    at = f"temperature {s.temperatures[0]:g}"
    claim = f"Uncorrected, the expected gradient still points the right way ({at}, cosine)"
    facts.above(claim, warm["none"]["cosine"][0], 0.99)
    claim = "Bounds of .999 to 1.002 on the geometric mean drop most tokens of short answers"
    facts.below(f"{claim} ({at}, share kept)", warm["sequence-mask TIS"]["kept"][0], 0.5)
    return facts


def _precision_facts(s: Settings, cases: list[Outcomes]) -> Facts:
    """A sampler in bfloat16 alone moves GSPO's ratio by more than its clip."""
    facts = Facts("Zheng et al. 2025 (GSPO, 2507.18071), ε = 3e-4 and 4e-4; this course", 28)
    move = theory.typical_move(cases[0])
    claim = f"Logits of {s.bits[0]} significant bits alone move an answer's (π/μ)^(1/|o|) by more"
    facts.above(f"{claim} than GSPO's ε of 4e-4 on policy (mean |s − 1|)", move, 4e-4)
    return facts


# ---------------------------------------------------------------- the figure


def plot(result: Result) -> Figure:
    """Bias, noise and cosine of each correction, for each kind of drift."""
    figure, panels = figures.new_figure(3, 4, width=15.5, height=10.5)
    settings = result.settings
    titles = {
        "temperature": ("Hotter sampler", "temperature of μ", settings["temperatures"]),
        "top-p": ("Top-p: what is cut is never seen", "top-p of μ", settings["top_p"]),
        "bits": ("Coarser logits", "significant bits of μ's logits", settings["bits"]),
        "updates": ("Older weights", "updates that μ is old", settings["stale"]),
    }
    measures = (
        ("bias", "‖E[ĝ] − ∇J‖ / ‖∇J‖"),
        ("noise", "standard deviation of ĝ / ‖∇J‖"),
        ("cosine", "cosine of E[ĝ] and ∇J"),
    )
    for row, (measure, label) in enumerate(measures):
        for column, (kind, (title, x, sizes)) in enumerate(titles.items()):
            ax = panels[4 * row + column]
            _draw(ax, result, kind, measure)
            ax.set_xticks(range(len(sizes)), [f"{size:g}" for size in sizes])
            y = label if column == 0 else ""
            figures.describe(ax, title if row == 0 else "", x if row == 2 else "", y)
    figures.legend_above(panels[:4], 8)
    return figure


def _draw(ax: Axes, result: Result, kind: str, measure: str) -> None:
    for name in CORRECTIONS:
        values = result.array("table", kind, name, measure)
        if measure == "bias":
            values = np.maximum(values, LOWEST)
        style: dict[str, Any] = {
            "color": COLOURS[name],
            "linestyle": "--" if name in MASKS else "-",
            "linewidth": 4.0 if name == "sequence weight" else 1.8,
            "zorder": 1.0 if name == "sequence weight" else 2.0,
        }
        label = name if name != "sequence weight" else "sequence weight, no cap"
        places = range(len(values))
        figures.band(ax, places, values, None, name, label, marker="o", markersize=3.5, **style)
    if measure == "bias":
        figures.log_axis(ax, "y")
        ax.set_ylim(LOWEST * 0.8, 3)
    elif measure == "noise":
        ax.set_ylim(0, 10)
    else:
        ax.set_ylim(-0.4, 1.05)
