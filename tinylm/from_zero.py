"""Reinforcement learning from random weights: the arms, their training, and what is predicted.

An arm is an estimator and the reward that it is trained with. `python -m tinylm zero` compares
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from course import ladder
from course.estimator import Estimator
from course.estimator import replace as swap
from course.exact import anchored_error
from course.lab.terminal import Progress
from course.parts import K2, K3
from tinylm.curves import AblationBudget, Curves, train
from tinylm.tasks import VOCABULARY
from tinylm.warm_start import Start

# what a curve keeps of each logged rollout
LOGGED = ("accuracy", "entropy", "truncated", "silent_groups", "length", "reward", "kl_start")


@dataclass(frozen=True)
class Arm:
    """An estimator, the reward it is trained with, and how the figure calls the two."""

    label: str
    estimator: Estimator
    style: str  # the rung whose colour it has
    reward: str = "exact+digits"


def _rung(name: str) -> Arm:
    return Arm(ladder.get(name).title, ladder.get(name).estimator, name)


# the rungs below GRPO. With one update for each rollout ratio and clip change nothing: `surrogate`
# and `clip` are `baseline` there
BELOW = ("reinforce", "baseline", "group_mean", "group_std", "length_mean")
END = "exact+digits+end"
_ANCHOR = ladder.grpo.kl
ARMS: dict[str, Arm] = {
    **{name: _rung(name) for name in (*BELOW, "grpo")},
    # the same KL under other rungs
    "reinforce_kl": Arm("REINFORCE + KL", swap(ladder.reinforce, kl=_ANCHOR), "reinforce"),
    "group_mean_kl": Arm("Group mean + KL", swap(ladder.group_mean, kl=_ANCHOR), "group_mean"),
    # something else in its place
    "entropy": Arm(
        "entropy bonus .02 for the KL", swap(ladder.length_mean, entropy_coef=0.02), "length_mean"
    ),
    "reverse_kl": Arm(
        "k2 for k3: the reverse KL", swap(ladder.length_mean, kl=K2(_ANCHOR.beta)), "length_mean"
    ),
    # another reward
    "reinforce_end": Arm("REINFORCE, end credited", ladder.reinforce, "reinforce", END),
    "group_mean_end": Arm("Group mean, end credited", ladder.group_mean, "group_mean", END),
    "length_mean_end": Arm("Length mean, end credited", ladder.length_mean, "length_mean", END),
    "grpo_end": Arm("GRPO, end credited", ladder.grpo, "grpo", END),
    "grpo_exact": Arm("GRPO, exact reward alone", ladder.grpo, "grpo", "exact"),
}
# the arm expected ahead and the one behind, fixed before the run, and what the difference says
CLAIMS: tuple[tuple[str, str, str], ...] = (
    *(("grpo", name, "the KL decides") for name in BELOW),
    ("grpo", "reinforce_kl", "the KL alone does not do it"),
    ("grpo", "group_mean_kl", "the KL without the std does not do it"),
    ("grpo", "entropy", "an entropy bonus does not replace the KL"),
    ("grpo", "reverse_kl", "the reverse KL does not replace it"),
    ("grpo", "grpo_exact", "the exact reward alone teaches less"),
    ("length_mean_end", "length_mean", "credit for the end helps where there is no KL"),
    ("length_mean_end", "group_mean_end", "with that credit, and no KL, the std decides"),
    ("length_mean_end", "reinforce_end", "with that credit, and no KL, REINFORCE stays behind"),
    ("grpo", "length_mean_end", "credit for the end does not replace the KL"),
)


def trained(
    budget: AblationBudget,
    arm: Arm,
    rate: float,
    start: Start,
    numbers: Sequence[int],
    progress: Progress,
) -> dict[str, Any]:
    """The curves of one arm at a learning rate, [logs, S] each (see `kept`), and its names.

    `numbers` are the models of `start` that are trained. The held-out accuracy is told as it
    climbs.
    """

    def say(step: int, row: dict[str, Tensor]) -> None:
        right = " ".join(f"{100 * share:5.1f} %" for share in row["accuracy"].flatten().tolist())
        progress.say(
            f"{arm.label:20} rollout {step:5,}: held out {right};"
            f" cut at the limit {100 * float(row['truncated'].mean()):.0f} %,"
            f" entropy {float(row['entropy'].mean()):.2f} nats"
        )

    budget = replace(budget, reward=arm.reward)
    how: dict[str, Any] = {"text": arm.label, "seen": say}
    curves = train(budget, arm.estimator, start, (rate,), numbers, progress, **how)
    return kept(curves, budget) | {"label": arm.label, "reward_name": arm.reward}


def kept(curves: Curves, budget: AblationBudget) -> dict[str, Any]:
    """What the JSON keeps of a training: curves [logs, S], final accuracies [S], seconds."""
    row: dict[str, Any] = {
        "rollouts": curves.steps,
        "completions": [step * budget.prompts * budget.group for step in curves.steps],
        "final": curves.final[0],
        "seconds": curves.seconds,
        "halted": curves.halted[0],
    }
    for name in LOGGED:
        values = curves.values[name][:, 0].clone()
        if name != "accuracy":
            values[0] = float("nan")
        row[name] = values
    return row


def predicted(digits: int, group: int) -> dict[str, float]:
    """What the bandit predicts of GRPO's end: its share of wrong samples and of silent groups.

    The KL towards the uniform start holds wrong tokens at a share where it equals the pull of the
    reward. The sum of two numbers of `digits` digits has one digit more, and then the end.
    """
    kl, tokens = ladder.grpo.kl, digits + 2
    assert isinstance(kl, K3)
    assert isinstance(kl.beta, float)
    reference = 1 - 1 / (VOCABULARY - 1)  # PAD is never sampled
    wrong = anchored_error(kl.beta, group, tokens, reference)
    return {"wrong": wrong, "silent_groups": (1 - wrong) ** group}


__all__ = ["ARMS", "BELOW", "CLAIMS", "LOGGED", "Arm", "kept", "predicted", "trained"]
