"""A prompt of the language model IS a bandit whose arms are all its completions: exact results.

A nano model (8,280 weights) learns one-digit sums. A prompt such as 3+7= has 5,220 completions of
at most three tokens, and all of them are listed. Only the training of the policies is sampled.

    each rung   bias, direction and spread of the gradient on the transformer, next to a bandit with
                one logit per completion: on-policy, and with stale samples
    the ratio   with the sequence ratio the bandit is exact: E[ĝ] = ∇J however far the policy has
                moved. With a ratio per token it is an approximation; look how good it is as the
                policy moves
    the KL      summed token by token, k2, ρ·k1, ρ·k3 and the exact KL of every token have the same
                expected gradient. It is not that of the answers' KL, because it omits the effect of
                a token on later tokens. k1 in the reward has the right gradient exactly
    the std     E[ĝ] = w_G(p) ∇p for every prompt, whatever the network; with 1/|o| it is not
                parallel to ∇p
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from course import ladder
from course.errors import require
from course.exact import Microscope, group_mean_factor, group_std_weight
from course.lab import figures
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.terminal import Progress
from course.learner import Learner
from course.rollout import Policy, Rollout
from course.train.noise import Noise
from course.train.optim import Adam
from tinylm.bridge import Bridge
from tinylm.model import Transformer
from tinylm.problem import LanguageModel
from tinylm.rewards import ExactMatch
from tinylm.tasks import Task, decode
from tinylm.token_level import TOKEN_KL, angle, identity_row, kl_row, ratio_row, weight_row
from tinylm.training import Training, TrainSettings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = (
    "a prompt is a bandit: exact bias and spread of each rung on a transformer, and what token by"
    " token costs"
)
EXPECTED_SECONDS = 30.0


# The error of working token by token is of second order in the policy's movement. A claim that it
# exists must exceed a bound that matters, not only rounding; a first run was at 4 to 9 times these.
RELATIVE, FORECAST, DEGREES = 0.01, 0.001, 1.0


@dataclass(frozen=True)
class Settings(Checked):
    """How the policies come about, and what is asked of them."""

    rungs: tuple[str, ...] = tuple(rung.name for rung in ladder.select())  # which estimators
    group: int = 4  # samples per prompt
    groups: tuple[int, ...] = (2, 4, 8)  # sizes of the group for w_G(p)
    warm_target: float = 0.3  # sampled accuracy of the reference, which the warm start ends with
    rollouts: int = 20  # of GRPO between the reference and the policy that samples
    # on one rollout, after which the policy is looked at again
    updates: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    stale: int = 8  # updates of the stale case of each rung
    lr: float = 2e-3  # of these updates (Adam, importance ratio)
    prompts: int = 5  # looked at, from hard to easy
    seed: int = 0  # seed of the training
    device: str = "cpu"  # where to run

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            2 <= self.group <= 8, "group", self.group, "from 2 to 8: every kind of group is listed"
        )
        require(all(2 <= g <= 8 for g in self.groups), "groups", self.groups, "numbers from 2 to 8")
        moved = self.stale in self.updates
        which = f"{self.stale} and {self.updates}"
        require(moved, "stale, updates", which, "one of the numbers of updates as stale")
        require(
            0 < self.warm_target < 0.9, "warm_target", self.warm_target, "a share between 0 and 0.9"
        )
        require(self.rollouts > 0, "rollouts", self.rollouts, "a whole number > 0")
        require(2 <= self.prompts <= 100, "prompts", self.prompts, "from 2 to 100")


SETTINGS = Settings()


# ---------------------------------------------------------------- policies


class Watched(LanguageModel):
    """The same problem, which keeps the weights as they are before each update."""

    seen: list[Transformer]

    def policy(self, rollout: Rollout) -> Policy:
        self.seen.append(self.model.copy())
        return super().policy(rollout)


@dataclass(frozen=True)
class Policies:
    """The task, the reference, the policy that samples, and that policy after n updates on one
    rollout of its own.
    """

    task: Task
    reference: Transformer
    old: Transformer
    moved: dict[int, Transformer]


def train(settings: Settings, progress: Progress) -> Policies:
    """Warm start, some GRPO, and then one rollout that is used again and again."""
    options = {
        "rollouts": settings.rollouts,
        "warm_target": settings.warm_target,
        "seed": settings.seed,
        "device": settings.device,
    }
    training = Training(
        TrainSettings(
            preset="nano",
            digits=1,
            rung="grpo",
            warm_batch=256,
            eval_every=0,
            **options,  # type: ignore[arg-type]
        )
    )
    with progress.bar(2 + settings.rollouts, "training") as bar:
        while training.phase == "warm":
            training.step()
        bar.update(1)
        reference = training.model.copy()
        while not training.done:
            training.step()
            bar.update(1)
        problem = Watched(training.model, training.task, prompts=64, group=8)
        problem.seen = []
        noise = Noise((), settings.seed + 77, device=settings.device)
        epochs = max(settings.updates) + 1  # the last one is looked at before it is updated
        Learner(
            problem,
            ladder.get("surrogate").estimator,
            Adam(settings.lr),
            noise,
            epochs=epochs,
            max_grad_norm=1.0,
        ).step()
        bar.update(1)
    return Policies(
        training.task, reference, problem.seen[0], {n: problem.seen[n] for n in settings.updates}
    )


def choose(model: Transformer, task: Task, count: int) -> list[int]:
    """Up to `count` rows of the task whose success probabilities are spread from the hardest
    prompt's to the easiest's.
    """
    p = torch.tensor([Bridge(model, task, row).objective for row in range(len(task.prompt))])
    wanted = torch.linspace(float(p.min()), float(p.max()), count)
    return sorted(
        {int((p - level).abs().argmin()) for level in wanted}, key=lambda row: float(p[row])
    )


# ---------------------------------------------------------------- what is measured


def seen(found: Microscope) -> dict[str, float]:
    """Bias and spread as a share of ‖∇J‖, and the angle to ∇J in degrees."""
    size = float(found.gradient.norm())
    return {
        "bias": found.relative_bias,
        "angle": angle(found.expected, found.gradient),
        "spread": found.std / size,
    }


# ---------------------------------------------------------------- run


def run(settings: Settings, progress: Progress) -> Result:
    """Train, list all completions of some prompts, and ask."""
    policies = train(settings, progress)
    task, old = policies.task, policies.old
    rows = choose(old, task, settings.prompts)
    middle = rows[len(rows) // 2]
    moved = policies.moved[settings.stale]
    cases = {
        "on policy": Bridge(old, task, middle, reference=policies.reference),
        "stale": Bridge(moved, task, middle, old=old, reference=policies.reference),
    }
    rungs: dict[str, dict[str, dict[str, dict[str, float]]]] = {name: {} for name in settings.rungs}
    for case, bridge in progress(cases.items(), "rungs"):
        for name in progress(settings.rungs, case):
            estimator = ladder.get(name).estimator
            transformer, bandit = (
                look(estimator, settings.group)
                for look in (bridge.microscope, bridge.bandit_microscope)
            )
            rungs[name][case] = {"transformer": seen(transformer), "bandit": seen(bandit)}
    bridge = cases["on policy"]
    noise = Noise((), settings.seed + 78, dtype=torch.float64, device=settings.device)
    series: dict[str, Any] = {
        "question": decode(task.prompt[middle].tolist()),
        "completions": len(bridge.tokens),
        "p": bridge.objective,
        "p_stale": cases["stale"].objective,
        "rungs": rungs,
        "rloo": seen(bridge.microscope(ladder.rloo, settings.group)),
        "identity": identity_row(cases["stale"], settings.group, noise),
        "prompts": [decode(task.prompt[row].tolist()) for row in rows],
    }
    distances: list[list[dict[str, float]]] = []
    nothing = ExactMatch(weight=0.0)
    for row in progress(rows, "prompts"):
        path = []
        for now in progress(policies.moved.values(), "updates"):
            found = ratio_row(Bridge(now, task, row, old=old, reference=old))
            path.append(found | kl_row(Bridge(now, task, row, reference=old, reward=nothing)))
        distances.append(path)
    series["distance"] = {
        name: [[step[name] for step in path] for path in distances] for name in distances[0][0]
    }
    spread = choose(policies.reference, task, settings.prompts)
    weights = [
        weight_row(Bridge(policies.reference, task, row), settings.groups, settings.group)
        for row in progress(spread, "w_G(p)")
    ]
    series["weight"] = {name: [row[name] for row in weights] for name in weights[0]}
    return Result(series=series, facts=_facts(settings, series), caption=CAPTION)


def _facts(settings: Settings, series: dict[str, Any]) -> list[Fact]:
    group, rungs, p = settings.group, series["rungs"], series["p"]
    facts = []
    if "reinforce" in rungs:
        here = rungs["reinforce"]["on policy"]["transformer"]
        text = "REINFORCE is unbiased on the transformer (relative bias on policy)"
        facts.append(Fact.exact(text, "Williams 1992, theorem 1", here["bias"], 0.0, number=9))
        claim = (
            "One completion alone pays, so REINFORCE's relative spread is √((1−p)/(pG)), on the"
            " transformer and on its bandit"
        )
        facts.append(Fact.exact(claim, "derived", here["spread"], math.sqrt((1 - p) / (p * group))))
    facts.append(
        Fact.exact(
            "RLOO is unbiased on the transformer (relative bias)",
            "Kool et al. 2019",
            series["rloo"]["bias"],
            0.0,
            number=3,
        )
    )
    for name in ("baseline", "clip", "group_mean"):
        if name in rungs:
            text = (
                f"{name}: a mean that includes the sample shrinks the transformer's gradient by 1/G"
                f" (relative bias, on policy, G = {group})"
            )
            measured = rungs[name]["on policy"]["transformer"]["bias"]
            facts.append(
                Fact.exact(
                    text, "Kool et al. 2019", measured, 1 - group_mean_factor(group), number=3
                )
            )
    distance = {name: np.array(values) for name, values in series["distance"].items()}
    facts += _bandit_facts(settings, series["identity"], distance) + _kl_facts(distance)
    weight = {name: np.array(values) for name, values in series["weight"].items()}
    for i, g in enumerate(settings.groups):
        want = group_std_weight(
            torch.tensor(weight["p"]),
            g,
            eps=ladder.group_std.scale.eps,  # type: ignore[attr-defined]
        ).numpy()
        text = (
            f"Sum aggregation, group std, G = {g}: E[ĝ] = w_G(p) ∇p for every prompt (largest"
            " relative difference, direction included)"
        )
        worst = float((np.abs(weight["sum"][:, i] / want - 1) + weight["rest"][:, i]).max())
        facts.append(
            Fact.exact(
                text, "Davis & Recht 2025; Mroueh 2025; derived for every G", worst, 0.0, number=12
            )
        )
    text = (
        "With 1/|o| it is not: mean angle between E[ĝ] and ∇p over the prompts, in degrees, is"
        f" above {DEGREES:g}"
    )
    facts.append(Fact.above(text, "derived", float(weight["angle"].mean()), DEGREES, number=12))
    return facts


def _bandit_facts(
    settings: Settings, same: dict[str, float], distance: dict[str, np.ndarray]
) -> list[Fact]:
    last = max(settings.updates)
    facts = [
        Fact.exact(
            "The bandit of completions and the transformer have one J (difference)",
            "derived",
            same["J"],
            0.0,
            10,
        ),
        Fact.exact(
            "At sequence level (ratio, clip, std, 1/|o|) they have the same expected coefficients,"
            " off policy (relative difference)",
            "derived",
            same["coefficient"],
            0.0,
            10,
        ),
        Fact.exact(
            "At sequence level one sampled group has the same gradient through the bandit's logits"
            " (relative difference)",
            "derived",
            same["batch"],
            0.0,
            10,
        ),
        Fact.exact(
            "With the sequence's ratio E[ĝ] = ∇J after every number of updates (largest relative"
            " bias)",
            "derived",
            float(distance["sequence"].max()),
            0.0,
            10,
            number=8,
        ),
        Fact.exact(
            "With the sequence's ratio J(π) = J(π_old) + E[ρA] (largest difference)",
            "derived",
            float(np.abs(distance["forecast_sequence"] - distance["J"]).max()),
            0.0,
            10,
            number=8,
        ),
    ]
    order = np.argsort(settings.updates)
    final = float(distance["token"][:, order[-1]].mean())
    text = (
        f"With token ratios E[ĝ] is off ∇J: mean relative bias over the prompts after {last}"
        f" updates is above {RELATIVE:g}"
    )
    facts.append(Fact.above(text, "derived", final, RELATIVE, number=8))
    wrong = np.abs(distance["forecast_token"] - distance["J"])[:, order[-1]].mean()
    text = (
        "With token ratios the surrogate's forecast of J is off: mean error over the prompts after"
        f" {last} updates is above {FORECAST:g}"
    )
    facts.append(Fact.above(text, "derived", float(wrong), FORECAST, number=8))
    return facts


def _kl_facts(distance: dict[str, np.ndarray]) -> list[Fact]:
    source = "Tang & Munos 2025; derived"
    facts = [
        Fact.exact(
            f"{name}: E[gradient] is ∇KL of whole answers (largest relative difference)",
            source,
            distance[name].max(),
            0.0,
            number=20,
        )
        for name in ("k1 in the reward", "k2 of the sequence", "k3 of the sequence")
    ]
    apart = max(float(np.abs(distance[name] - distance["k2"]).max()) for name in TOKEN_KL)
    text = (
        "Token by token k2, ρ·k1, ρ·k3 and the exact KL are equally far from it (largest difference"
        " of relative errors)"
    )
    facts.append(Fact.exact(text, source, apart, 0.0, number=20))
    for name, which in (("k2", "∇KL(π‖ref)"), ("k3", "∇KL(ref‖π)")):
        text = (
            f"{name} token by token misses {which} of whole answers: mean relative error over"
            f" prompts and updates is above {RELATIVE:g}"
        )
        facts.append(Fact.above(text, source, float(distance[name].mean()), RELATIVE, number=20))
    return facts


# ---------------------------------------------------------------- plot


CAPTION = (
    "Every completion of a nano transformer is listed, nothing is sampled. Its bandit has a logit"
    " of its own for each completion. Below: points near 1e-15 are exact up to rounding, and what"
    " is exactly 0 stands at 1e-16."
)
FLOOR = 1e-16  # what is exactly 0 is drawn here
TOKEN, SEQUENCE, FORWARD = "#b8320f", "#00875f", "#5566aa"
CASES = (("on policy", "o"), ("stale", "s"))
WHO = (("transformer", "full"), ("bandit", "none"))


def plot(result: Result) -> Figure:
    """Above a row per rung: bias, angle and spread.

    Below: token against sequence for the ratio and the KL, and w_G(p).
    """
    from matplotlib.lines import Line2D

    names = list(result.settings["rungs"])
    above = 1.2 + 0.42 * len(names)
    figure, panels = figures.new_figure(
        2, 3, width=14.5, height=above + 5.8, height_ratios=[above, 4.6]
    )
    _rungs(result, panels[:3], names)
    _ratio(result, panels[3])
    _kl(result, panels[4])
    _weight(result, panels[5])
    called = {
        "on policy": "on policy",
        "stale": f"after {result.settings['stale']} updates on its rollout",
    }
    handles = [
        Line2D(
            [],
            [],
            linestyle="none",
            color="#444444",
            markersize=8,
            marker=marker,
            fillstyle=fill,  # type: ignore[arg-type]
            label=f"{who}, {called[case]}",
        )
        for case, marker in CASES
        for who, fill in WHO
    ]
    closed = [
        line
        for ax in panels[:3]
        for line in ax.get_lines()
        if str(line.get_label()).startswith("closed form")
    ]
    figure.legend(handles=[*handles, *closed], loc="outside upper center", ncols=3, frameon=False)
    return figure


def _rungs(result: Result, panels: list[Axes], names: list[str]) -> None:
    group, p = result.settings["group"], float(result.array("p"))
    for row, name in enumerate(names):
        colour = figures.style_of(name)["color"]
        for shift, (case, marker) in enumerate(CASES):
            for small, (who, fill) in enumerate(WHO):
                place = row + 0.2 * (2 * shift + small - 1.5)
                for ax, what in zip(panels, ("bias", "angle", "spread"), strict=True):
                    x = float(result.array("rungs", name, case, who, what))
                    ax.plot(x, place, marker, color=colour, fillstyle=fill, markersize=8)
    for ax in panels:
        ax.set_yticks(range(len(names)), names if ax is panels[0] else [""] * len(names))
        ax.set_ylim(len(names) - 0.4, -0.6)
    figures.expectation(panels[0], x=1 / group, label=f"closed form 1/G = 1/{group}")
    if "reinforce" in names:
        figures.expectation(
            panels[2],
            -0.3,
            math.sqrt((1 - p) / (p * group)),
            marker="D",
            label="closed form √((1−p)/(pG))",
        )
    figures.describe(
        panels[0], f"{result.series['question']} how far off on average", "‖E[ĝ] − ∇J‖ / ‖∇J‖", ""
    )
    figures.describe(panels[1], "which way on average", "angle between E[ĝ] and ∇J, degrees", "")
    figures.describe(
        panels[2], f"how noisy one group is (G = {group})", "standard deviation of ĝ / ‖∇J‖", ""
    )


def _scatter(
    ax: Axes, x: np.ndarray, y: np.ndarray, colour: str, label: str, marker: str = "o"
) -> None:
    """A point for each prompt and number of updates."""
    ax.plot(
        x.ravel(),
        np.maximum(y, FLOOR).ravel(),
        linestyle="none",
        marker=marker,
        color=colour,
        markersize=5.5,
        label=label,
    )


def _log_log(ax: Axes, title: str, y: str, x: str) -> None:
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_ylim(FLOOR / 8, 20)
    ax.legend(frameon=False, loc="center", bbox_to_anchor=(0.5, 0.5))
    figures.describe(ax, title, x, y)


def _ratio(result: Result, ax: Axes) -> None:
    kl = result.array("distance", "kl")
    _scatter(ax, kl, result.array("distance", "token"), TOKEN, "a ratio per token")
    _scatter(
        ax,
        kl,
        result.array("distance", "sequence"),
        SEQUENCE,
        "the sequence's ratio, as on the bandit",
        "^",
    )
    _log_log(
        ax,
        "the ratio, as samples grow stale",
        "‖E[ĝ] − ∇J‖ / ‖∇J‖",
        "KL(π‖π_old) of whole answers, nats",
    )


def _kl(result: Result, ax: Axes) -> None:
    kl = result.array("distance", "kl")
    _scatter(ax, kl, result.array("distance", "k3"), FORWARD, "k3 per token, for ∇KL(ref‖π)", "s")
    _scatter(ax, kl, result.array("distance", "k2"), TOKEN, "k2, ρ·k1, ρ·k3, exact KL per token")
    _scatter(
        ax,
        kl,
        result.array("distance", "k2 of the sequence"),
        SEQUENCE,
        "k2 of the sequence, as on the bandit",
        "^",
    )
    _scatter(
        ax, kl, result.array("distance", "k1 in the reward"), "#222222", "k1 in the reward", "v"
    )
    _log_log(
        ax,
        "the KL, away from the reference",
        "‖E[gradient] − ∇KL‖ / ‖∇KL‖",
        "KL(π‖ref) of whole answers, nats",
    )


def _weight(result: Result, ax: Axes) -> None:
    groups, eps = result.settings["groups"], ladder.group_std.scale.eps  # type: ignore[attr-defined]
    p, line = result.array("weight", "p"), torch.linspace(0.0, 1.0, 201, dtype=torch.float64)
    curves = []
    for i, (group, colour) in enumerate(zip(groups, figures.shades(len(groups)), strict=True)):
        curve = figures.expectation(
            ax, group_std_weight(line, group, eps=eps).numpy(), line.numpy(), label=f"G = {group}"
        )
        curve.set_color(colour)
        curves.append(curve)
        ax.plot(p, result.array("weight", "sum")[:, i], "o", color=colour, markersize=7)
    mean, degrees, group = (
        result.array("weight", "mean"),
        result.array("weight", "angle"),
        result.settings["group"],
    )
    right = int(result.array("weight", "right")[0])
    label = f"with 1/|o|, × {right}, G = {group}; angle to ∇p"
    [crosses] = ax.plot(p, mean, "x", color=TOKEN, markersize=7, markeredgewidth=1.8, label=label)
    for x, y, turned in zip(p, mean, degrees, strict=True):
        ax.annotate(
            f"{turned:.1f}°",
            (x, y),
            xytext=(0, -21),
            textcoords="offset points",
            ha="center",
            color=TOKEN,
            fontsize=10,
        )
    figures.describe(
        ax,
        "dividing by the std: E[ĝ] = w_G(p) ∇p",
        "success probability p of the prompt",
        "E[ĝ]·∇p / ‖∇p‖²",
    )
    ax.set_ylim(top=3.0)
    ax.legend(handles=[crosses], frameon=False, loc="upper center")
    figures.label_ends(ax, curves)
