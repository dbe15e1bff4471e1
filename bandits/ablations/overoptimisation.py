"""Over-optimisation: gold and proxy against √KL, for best-of-n and for policy gradient, exactly.

A reward model is fitted to votes on the reference's samples, and a policy maximises it. Look for
three things: the gold reward turns around while the proxy still rises; where the reward model can
be right everywhere nothing turns; and a second reward model of the same kind sees nothing, while
fresh votes on what the policy now says do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bandits.theory import overoptimisation as theory
from bandits.theory.effective_samples import tilted
from bandits.theory.overoptimisation import Votes, World
from course.errors import require
from course.lab import figures
from course.lab.facts import Facts
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.statistics import interval, mean_error, paired_error
from course.lab.terminal import Progress
from course.train.noise import Noise

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "over-optimisation: gold and learned reward as a policy leaves the reference"
EXPECTED_SECONDS = 40.0


@dataclass(frozen=True)
class Settings(Checked):
    """The bandits, the votes, and how far the policies go."""

    runs: int = 128  # bandits, each with votes of its own
    seed: int = 0
    arms: int = 1000  # answers to the prompt; the reference is uniform
    features: int = 8  # of an answer: length, quality, and six that do not matter
    pays: float = 2.0  # gold per std of length, at the mean length
    cost: float = 3.0  # curvature of gold in the length, which pays up to pays/cost std
    votes: int = 500  # comparisons that the reward model is fitted to
    sweep: tuple[int, ...] = (60, 125, 250, 500, 1000, 2000, 4000)  # and other numbers of them
    bias: float = 1.0  # log-odds per std of length of the biased annotator
    members: int = 5  # reward models of an ensemble, each on a bootstrap sample of the votes
    best_of: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    distances: int = 18  # points d = √KL from 0.1, in steps of 0.1
    steps: int = 500  # of the policy gradient
    largest: float = 0.1  # largest change of a logit in a step

    def __post_init__(self) -> None:
        super().__post_init__()
        require(2 <= self.runs <= 1000, "runs", self.runs, "2 to 1000: the errors need two")
        require(10 <= self.arms <= 4000, "arms", self.arms, "10 to 4000")
        require(2 <= self.features <= 50, "features", self.features, "2 to 50")
        require(self.cost > 0, "cost", self.cost, "a number > 0")
        require(2 <= self.members <= 50, "members", self.members, "2 to 50")
        require(self.largest > 0, "largest", self.largest, "a number > 0")
        require(3 <= self.distances <= 27, "distances", self.distances, "3 to 27")
        self.rising("sweep", "best_of")
        require(self.best_of[0] == 1, "best_of", self.best_of, "1 first, the reference")


SETTINGS = Settings()
GAO = "Gao et al. 2023 (2210.10760)"
CAPTION = (
    "128 bandits with 1,000 answers of eight features; gold is counted from the reference, in nats"
    " of a vote. Votes are sampled; all policies are exact tables. Bands: 95 % intervals over"
    " bandits. Thin lines: Gao's forms, fitted."
)


def run(settings: Settings, progress: Progress) -> Result:
    """The curves of every reward model, under best-of-n, the KL penalty and policy gradient."""
    s = settings
    noise = Noise((s.runs,), s.seed, dtype=torch.float64)
    gamed = theory.world(noise, s.arms, s.features, s.cost, s.pays)
    control = theory.world(noise, s.arms, s.features, 0.0, s.pays)
    seen = theory.vote(gamed.gold, noise, max(*s.sweep, s.votes))
    others = theory.vote(gamed.gold, noise, s.votes)
    biased = gamed.gold + s.bias * gamed.length
    votes = seen.first(s.votes)
    again = [votes.again(noise) for _ in range(s.members)]
    members = torch.stack([_learned(gamed, each) for each in again])
    proxies: dict[str, tuple[World, Tensor]] = {
        "linear": (gamed, _learned(gamed, votes)),
        "control": (
            control,
            theory.bradley_terry(control.features, theory.vote(control.gold, noise, s.votes)),
        ),
        "biased": (gamed, _learned(gamed, theory.vote(biased, noise, s.votes))),
        "squares": (gamed, _learned(gamed, votes, squares=True)),
        "mean of five": (gamed, members.mean(0)),
        "worst of five": (gamed, members.amin(0)),
    }
    second = _learned(gamed, others)
    curves = {
        name: _curves(s, name, place, score, second)
        for name, (place, score) in progress(list(proxies.items()), "reward models")
    }
    swept = {
        kind: [
            _best_of(s, gamed, _learned(gamed, seen.first(n), squares=kind == "squares"))
            for n in s.sweep
        ]
        for kind in ("linear", "squares")
    }
    few = s.sweep[0]
    small = [seen.first(few).again(noise) for _ in range(s.members)]
    ensemble = torch.stack([_learned(gamed, each) for each in small]).mean(0)
    fits = _fits(s, curves["linear"])
    facts = [
        *_turn_facts(s, curves),
        *_form_facts(fits),
        *_cure_facts(s, curves, swept, _best_of(s, gamed, ensemble)),
        *_detection_facts(curves),
    ]
    table = {
        kind: {
            key: [[float(x) for x in interval(_pick(row["gold"], key))] for row in rows]
            for key in ("peak", "end")
        }
        for kind, rows in swept.items()
    }
    series = {
        "grid": _grid(s),
        "curves": {name: _summary(c) for name, c in curves.items()},
        "votes": table,
        "fits": {name: vars(fit) for name, fit in fits.items()},
    }
    return Result(series=series, facts=facts, caption=CAPTION)


def _learned(place: World, votes: Votes, *, squares: bool = False) -> Tensor:
    look = theory.with_squares if squares else theory.linear
    return theory.bradley_terry(look(place.features), votes)


def _grid(s: Settings) -> Tensor:
    return 0.1 * torch.arange(1, s.distances + 1, dtype=torch.float64)


Curves = dict[str, dict[str, Tensor]]  # policy → measure → [S, points]


def _best_of(s: Settings, place: World, score: Tensor) -> dict[str, Tensor]:
    """Gold, proxy, length and d of best-of-n, each [S, N]."""
    policies = torch.stack([theory.best_of(place.log_ref, score, n) for n in s.best_of])
    return {
        "gold": theory.expected(policies, place.gold).T,
        "proxy": theory.expected(policies, score).T,
        "length": theory.expected(policies, place.length).T,
        "d": theory.kl(policies, place.log_ref).sqrt().T,
    }


def _curves(s: Settings, name: str, place: World, score: Tensor, other: Tensor) -> Curves:
    """Every measure of a reward model's maximisers; `other`: a second reward model [S, K]."""
    measures: dict[str, Any] = {
        "gold": lambda p: theory.expected(p, place.gold),
        "proxy": lambda p: theory.expected(p, score),
        "length": lambda p: theory.expected(p, place.length),
    }
    best = _best_of(s, place, score)
    if name == "linear":
        policies = torch.stack([theory.best_of(place.log_ref, score, n) for n in s.best_of])
        best["second"] = theory.expected(policies, other).T
        best["fresh"] = theory.win_rate(policies, place.gold).T
    if name not in ("linear", "control"):
        return {"best-of-n": best}
    rates = torch.logspace(-2, 2, 80, dtype=torch.float64)
    penalised = (tilted(place.log_ref, score, float(x)) for x in rates)
    climbed = theory.gradient_path(place.log_ref, score, s.steps, s.largest)
    return {
        "best-of-n": best,
        "rl": theory.along(climbed, place.log_ref, measures, _grid(s)),
        "kl": theory.along(penalised, place.log_ref, measures, _grid(s)),
    }


def _summary(curves: Curves) -> dict[str, Any]:
    """Mean and half width of every curve over bandits."""
    return {
        policy: {
            name: dict(zip(("mean", "half"), interval(values.T), strict=True))
            for name, values in rows.items()
        }
        for policy, rows in curves.items()
    }


def _pick(gold: Tensor, which: str) -> Tensor:
    """Gold [S, N] where its mean over bandits is largest ("peak"), or at the end: [S]."""
    return gold[:, int(gold.mean(0).argmax())] if which == "peak" else gold[:, -1]


def _fits(s: Settings, linear: Curves) -> dict[str, theory.GaoFit]:
    """Both forms, fitted to both curves of mean gold: "curve, form" → the fit."""
    best, grid = linear["best-of-n"], _grid(s)
    points = {
        "best-of-n": (best["d"].mean(0), best["gold"].mean(0)),
        "rl": (grid, linear["rl"]["gold"].mean(0)),
    }
    return {
        f"{curve}, {form}": theory.gao_fit(form, *xy)
        for curve, xy in points.items()
        for form in theory.FORMS
    }


# ---------------------------------------------------------------- facts, written before the run


def _turn_facts(s: Settings, curves: dict[str, Curves]) -> Facts:
    """Gold turns around under a reward model that can be gamed, and only there.

    The directions of all facts were written before a run. The number of bandits, and what length
    pays and costs, were set after three looks: before, the fall was within its error.
    """
    facts = Facts(GAO, 34, runs=s.runs)
    best = curves["linear"]["best-of-n"]
    formula = torch.tensor([theory.best_of_kl(n) for n in s.best_of], dtype=torch.float64)
    over = float((best["d"].square() - formula).max())
    claim = "The exact KL of best-of-n is never above log n − (n−1)/n (largest excess"
    bound = Facts("Beirami et al. 2024 (2401.01879)", 34)
    bound.below(f"{claim}, n up to {s.best_of[-1]})", over, 1e-9)
    for name, label in (("best-of-n", "best-of-n"), ("rl", "policy gradient")):
        rows = curves["linear"][name]
        end, peak = _pick(rows["gold"], "end"), _pick(rows["gold"], "peak")
        facts.below(f"Gold falls from its peak to the end ({label})", paired_error(end, peak))
        top = int(rows["gold"].mean(0).argmax())
        later = paired_error(rows["proxy"][:, -1], rows["proxy"][:, top])
        facts.above(f"The proxy rises from gold's peak to the end ({label})", later)
        clean = curves["control"][name]["gold"]
        claim = f"Where a linear reward is right, gold still rises there ({label}, end less peak's"
        facts.above(f"{claim} place)", paired_error(clean[:, -1], clean[:, top]))
    bound.extend(facts)
    return bound


def _form_facts(fits: dict[str, theory.GaoFit]) -> Facts:
    """Gao's two forms, each on its curve and on the other."""
    facts = Facts(GAO, 34)
    for curve, form, other in (("best-of-n", "best-of-n", "rl"), ("rl", "rl", "best-of-n")):
        own, wrong = fits[f"{curve}, {form}"].residual, fits[f"{curve}, {other}"].residual
        written = "d(α − βd)" if form == "best-of-n" else "d(α − β log d)"
        claim = f"{written} fits gold under {'best-of-n' if curve == 'best-of-n' else 'RL'}"
        facts.below(f"{claim} (residual, share of the peak)", own, 0.05)
        facts.below(f"{claim} better than the other form does (residual)", own, wrong)
    return facts


def _cure_facts(
    s: Settings,
    curves: dict[str, Curves],
    swept: dict[str, list[dict[str, Tensor]]],
    ensemble: dict[str, Tensor],
) -> Facts:
    """What a KL, early stopping, more votes, a richer model and an ensemble buy."""
    facts = Facts(GAO, 34, runs=s.runs)
    rl, kl = curves["linear"]["rl"]["gold"], curves["linear"]["kl"]["gold"]
    peak = _pick(rl, "peak")
    facts.above(
        "Stopping at gold's peak beats going on (policy gradient)", paired_error(peak, rl[:, -1])
    )
    gain = paired_error(_pick(kl, "peak"), peak)
    share = tuple(float(x) / float(peak.mean()) for x in gain)
    claim = "The best KL penalty gains less than 10 % of the peak over stopping without one in time"
    facts.below(claim, share, 0.1)
    best = _pick(curves["linear"]["best-of-n"]["gold"], "peak")
    facts.below(
        "At its peak, policy gradient's gold is below best-of-n's", paired_error(peak, best)
    )
    for which, said in (("peak", "raise gold's peak"), ("end", "raise gold at the end")):
        ends = [_pick(swept["linear"][i]["gold"], which) for i in (0, -1)]
        claim = f"More votes {said} (linear model, {s.sweep[0]} to {s.sweep[-1]:,})"
        facts.above(claim, paired_error(ends[1], ends[0]))
    most = swept["linear"][-1]["gold"]
    claim = f"{s.sweep[-1]:,} votes do not keep a linear model's gold from falling (end less peak)"
    facts.below(claim, paired_error(_pick(most, "end"), _pick(most, "peak")))
    richer = swept["squares"][-1]["gold"]
    claim = f"A model that can say it ends higher ({s.sweep[-1]:,} votes, squares less linear)"
    facts.above(claim, paired_error(_pick(richer, "end"), _pick(most, "end")))
    alone = swept["linear"][0]["gold"]
    claim = f"With {s.sweep[0]} votes an ensemble's mean has a higher peak than one model"
    facts.above(claim, paired_error(_pick(ensemble["gold"], "peak"), _pick(alone, "peak")))
    for name in ("mean of five", "worst of five"):
        many = curves[name]["best-of-n"]["gold"]
        claim = (
            f"An ensemble of linear models does not keep gold from falling ({name}, end less peak)"
        )
        facts.below(claim, paired_error(_pick(many, "end"), _pick(many, "peak")))
    return facts


def _detection_facts(curves: dict[str, Curves]) -> Facts:
    """Who sees it: a second reward model, fresh votes, the length."""
    best = curves["linear"]["best-of-n"]
    runs = best["gold"].shape[0]
    facts = Facts("this course", 34, runs=runs)
    top = int(best["gold"].mean(0).argmax())
    claim = (
        "A second linear model, on other votes of the reference's samples, still rises (end less"
    )
    facts.above(
        f"{claim} gold's peak)", paired_error(best["second"][:, -1], best["second"][:, top])
    )
    claim = "Fresh votes on the policy's own samples fall (share preferred, end less gold's peak)"
    facts.below(claim, paired_error(best["fresh"][:, -1], best["fresh"][:, top]))
    facts.above(
        "Answers grow: mean length at the end, in std", mean_error(best["length"][:, -1]), 1
    )
    biased = curves["biased"]["best-of-n"]
    claim = "A length-biased annotator makes them longer (end, biased less not)"
    facts.above(claim, paired_error(biased["length"][:, -1], best["length"][:, -1]))
    claim = "A length-biased annotator costs gold at the end (biased less not)"
    facts.below(claim, paired_error(biased["gold"][:, -1], best["gold"][:, -1]))
    return facts


# ---------------------------------------------------------------- the figure

COLOURS = {
    "linear": "#0057a3",
    "control": "#00875f",
    "biased": "#b8320f",
    "squares": "#7a1f5c",
    "worst of five": "#c96f00",
    "rl": "#0057a3",
    "kl": "#c96f00",
}
D = "d = √KL(π‖π_ref)"


def plot(result: Result) -> Figure:
    """Best-of-n and RL, other reward models, more votes, and who notices."""
    figure, (turn, rl, models, votes, seen, length) = figures.new_figure(2, 3, width=15.5, height=9)
    _draw(turn, result, "linear", "best-of-n", "gold", "gold")
    _draw(turn, result, "linear", "best-of-n", "proxy", "proxy, what is maximised", linestyle="--")
    _draw(turn, result, "control", "best-of-n", "gold", "gold, nothing to game")
    _fit(turn, result, "best-of-n, best-of-n", _values(result, "linear", "best-of-n", "d")[0])
    figures.describe(turn, "Best-of-n: gold turns, proxy rises", D, "reward", legend="upper left")
    grid = result.array("grid")
    _draw(rl, result, "linear", "rl", "gold", "policy gradient", color=COLOURS["rl"])
    _draw(rl, result, "linear", "kl", "gold", "best under a KL penalty", color=COLOURS["kl"])
    _fit(rl, result, "rl, rl", grid)
    figures.describe(rl, "RL turns, too, and earlier", D, "gold", legend="lower left")
    for name, label in (
        ("squares", "with squares"),
        ("linear", "linear"),
        ("worst of five", "worst of five linear"),
        ("biased", "linear, biased annotator"),
    ):
        _draw(models, result, name, "best-of-n", "gold", label)
    title = "A model that can say it, not an ensemble"
    figures.describe(models, title, D, "gold (best-of-n)", legend="upper left")
    sweep = result.settings["sweep"]
    for kind, label in (("squares", "with squares"), ("linear", "linear")):
        for which, dashes in (("peak", "-"), ("end", "--")):
            mean, half = result.array("votes", kind, which).T
            style: dict[str, Any] = {"color": COLOURS[kind], "linestyle": dashes, "marker": "o"}
            at = "its peak" if which == "peak" else f"n = {result.settings['best_of'][-1]}"
            figures.band(votes, sweep, mean, half, kind, f"{label}, at {at}", **style)
    figures.log_axis(votes, "x", sweep)
    figures.describe(
        votes,
        "More votes do not cure it",
        "votes",
        "gold (best-of-n)",
        ylim=(None, 7.5),
        legend="upper left",
    )
    for name, label, dashes in (
        ("gold", "gold", "-"),
        ("proxy", "proxy", "--"),
        ("second", "a second reward model", ":"),
        ("fresh", "fresh votes, share above ½", "-."),
    ):
        x, _ = _values(result, "linear", "best-of-n", "d")
        y, _ = _values(result, "linear", "best-of-n", name)
        y = y - 0.5 if name == "fresh" else y
        colour = {"gold": "#0057a3", "fresh": "#00875f"}.get(name, "#666666")
        look: dict[str, Any] = {"color": colour, "linestyle": dashes}
        look |= {"marker": "o"} if name == "second" else {}
        figures.band(seen, x, y / np.abs(y).max(), None, name, label, **look)
    figures.describe(
        seen, "Only fresh votes notice", D, "share of its own largest", legend="lower right"
    )
    for name, label in (
        ("biased", "biased annotator"),
        ("linear", "unbiased"),
        ("control", "nothing to game"),
    ):
        _draw(length, result, name, "best-of-n", "length", label)
    figures.describe(length, "Answers grow", D, "mean length, std", legend="upper left")
    return figure


def _values(result: Result, name: str, policy: str, measure: str) -> tuple[Any, Any]:
    return tuple(result.array("curves", name, policy, measure, end) for end in ("mean", "half"))  # type: ignore[return-value]


def _draw(
    ax: Axes, result: Result, name: str, policy: str, measure: str, label: str, **line: Any
) -> None:
    mean, half = _values(result, name, policy, measure)
    x = _values(result, name, policy, "d")[0] if policy == "best-of-n" else result.array("grid")
    look = {"color": COLOURS[name], "linestyle": "-", **line}
    figures.band(ax, x, mean, half, name, label, **look)


def _fit(ax: Axes, result: Result, name: str, x: Any) -> None:
    figures.expectation(ax, result.array("fits", name, "fitted"), x, label="Gao's form, fitted")
