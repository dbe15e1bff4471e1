"""All outcomes of a policy (an answer with its reward), and its exact J, ∇J and KL.

Everything is in float64; log-probabilities and KL are in nats.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from course.arguments import typed
from course.errors import require, require_finite, require_floats

PER_SAMPLE = (
    "log_prob",
    "reward",
    "mask",
    "old_log_prob",
    "sampler_log_prob",
    "ref_log_prob",
    "value",
    "bootstrap",
    "truncated",
    "components",
)
PER_ARM = ("old_log_prob", "sampler_log_prob", "ref_log_prob", "value", "bootstrap", "truncated")
DISTS = ("log_dist", "old_log_dist", "ref_log_dist")


@typed
@dataclass(frozen=True)
class Outcomes:
    """The K possible outcomes of each prompt; an outcome is an answer with its reward.

    - `log_prob` [Q, K, T]: log π of each token under the CURRENT policy, in nats;
    - `score` [Q, K, T, D]: its gradient with respect to the D parameters. D = 0 leaves the
      gradients out; then use `Microscope.coefficient`;
    - `reward` [Q, K, T];
    - `mask` [Q, K, T] bool: True where the policy chose the token;
    - `chance` [Q, K]: P(reward | answer), the environment's factor of the probability: 1 if
      rewards are deterministic, 0 for a row that only pads the table;
    - `old_log_prob` [Q, K, T]: under π_old, the policy before the updates; None means on policy;
    - `sampler_log_prob` [Q, K, T]: under μ, the policy that samples; None means that π_old does.

    The other fields are those of `Rollout` with K instead of G: `ref_log_prob`, `value` [Q, K, T];
    `truncated`, `bootstrap` [Q, K]; `components` [Q, K, C]; `greedy_reward` [Q]; `log_dist`,
    `old_log_dist`, `ref_log_dist` [Q, K or 1, T or 1, V]. `log_dist_score` [Q, K or 1, T or 1, V,
    D] is the gradient of `log_dist`. `of_arms` and `of_sequences` make outcomes with the usual
    defaults.

    Raises `CourseError` if a shape is wrong or the probabilities of a prompt do not sum to 1.
    """

    log_prob: Tensor
    score: Tensor
    reward: Tensor
    mask: Tensor
    chance: Tensor
    old_log_prob: Tensor | None = None
    sampler_log_prob: Tensor | None = None
    ref_log_prob: Tensor | None = None
    value: Tensor | None = None
    bootstrap: Tensor | None = None
    greedy_reward: Tensor | None = None
    truncated: Tensor | None = None
    components: Tensor | None = None
    log_dist: Tensor | None = None
    old_log_dist: Tensor | None = None
    ref_log_dist: Tensor | None = None
    log_dist_score: Tensor | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        for f in fields(self):
            tensor = getattr(self, f.name)
            if isinstance(tensor, Tensor):
                keeps = f.name in ("mask", "truncated")
                object.__setattr__(
                    self, f.name, tensor.detach() if keeps else tensor.detach().double()
                )
        require_finite("outcomes.reward", self.reward)
        shape = self.reward.shape
        require(
            len(shape) == 3 and shape.numel() > 0,
            "outcomes.reward",
            tuple(shape),
            "the three axes [Q, K, T], none of length 0",
        )
        for name in (
            "log_prob",
            "mask",
            "old_log_prob",
            "sampler_log_prob",
            "ref_log_prob",
            "value",
        ):
            self._shape(name, shape)
        for name in ("chance", "truncated", "bootstrap"):
            self._shape(name, shape[:2])
        self._shape("greedy_reward", shape[:1])
        if self.components is not None:
            require_finite("outcomes.components", self.components)
            apart = tuple(self.components.shape)
            fits = len(apart) == 3 and apart[:2] == tuple(shape[:2]) and apart[2] > 0
            allowed = f"[Q, K, C] for [Q, K] = {tuple(shape[:2])}, C at least 1"
            require(fits, "outcomes.components", apart, allowed)
        require(
            self.score.shape[:-1] == shape,
            "outcomes.score",
            tuple(self.score.shape),
            f"[Q, K, T, D] for [Q, K, T] = {tuple(shape)}",
        )
        require(
            self.mask.dtype == torch.bool,
            "outcomes.mask",
            self.mask.dtype,
            "torch.bool, True where the policy chose the token",
        )
        if self.log_dist is not None:
            have = None if self.log_dist_score is None else tuple(self.log_dist_score.shape)
            want = (*self.log_dist.shape, self.score.shape[-1])
            require(
                have == want,
                "outcomes.log_dist_score",
                have,
                f"{want}: the gradient of outcomes.log_dist",
            )
        for name in ("log_prob", "old_log_prob", "sampler_log_prob"):
            log_prob = getattr(self, name)
            if log_prob is not None:
                total = self._probability(log_prob).sum(-1)
                require(
                    bool(((total - 1).abs() < 1e-5).all()),
                    f"outcomes.{name}",
                    total.tolist(),
                    "probabilities that sum to 1, per prompt",
                )

    def _shape(self, name: str, shape: torch.Size) -> None:
        tensor = getattr(self, name)
        if tensor is not None:
            require(
                tensor.shape == shape,
                f"outcomes.{name}",
                tuple(tensor.shape),
                f"the shape {tuple(shape)} that outcomes.reward asks for",
            )

    def _probability(self, log_prob: Tensor) -> Tensor:
        return self.chance * torch.where(self.mask, log_prob, 0.0).sum(-1).exp()

    @classmethod
    @typed
    def of_sequences(
        cls,
        log_prob: Tensor,
        reward: Tensor,
        mask: Tensor | None = None,
        score: Tensor | None = None,
        chance: Tensor | None = None,
        **optional: Any,
    ) -> Outcomes:
        """Outcomes of several tokens [Q, K, T].

        By default every token is chosen, rewards are deterministic, and there are no scores (D =
        0).
        """
        require(reward.dim() == 3, "outcomes.reward", tuple(reward.shape), "the axes [Q, K, T]")
        mask = torch.ones_like(reward, dtype=torch.bool) if mask is None else mask
        chance = reward.new_ones(reward.shape[:2]) if chance is None else chance
        if score is None:
            score = log_prob.new_zeros((*log_prob.shape, 0))
            if optional.get("log_dist") is not None:
                optional.setdefault(
                    "log_dist_score", log_prob.new_zeros((*optional["log_dist"].shape, 0))
                )
        return cls(log_prob, score, reward, mask, chance, **optional)

    @classmethod
    @typed
    def of_arms(
        cls,
        log_prob: Tensor,
        reward: Tensor,
        score: Tensor | None = None,
        chance: Tensor | None = None,
        **optional: Any,
    ) -> Outcomes:
        """Outcomes of a bandit: answers of one token.

        `log_prob` is [Q, A] or, for one prompt, [A]. `score` is [.., A, D]; the default is
        `tabular_score`.

        If `reward` has the shape of `log_prob`, K = A. It may have one more axis [.., A, R]; then
        `chance` [.., A, R] is the probability of each of the R rewards of an answer, and K = A·R.
        `old_log_prob`, `sampler_log_prob`, `ref_log_prob` and the other fields of a sample have the
        shape of `log_prob`; `greedy_reward` [Q] and the distributions are as in the class.
        """
        require(log_prob.dim() in (1, 2), "log_prob", tuple(log_prob.shape), "[Q, A] or [A]")
        require_floats("log_prob", log_prob)
        axes = reward.dim() - log_prob.dim()
        require(axes in (0, 1), "reward", tuple(reward.shape), "log_prob's shape, or one axis more")
        if score is not None:
            allowed = f"{tuple(log_prob.shape)} and one axis more"
            require(score.shape[:-1] == log_prob.shape, "score", tuple(score.shape), allowed)
        per_arm = {name: optional.pop(name) for name in PER_ARM if optional.get(name) is not None}
        per_arm |= {"log_prob": log_prob, "reward": reward}
        per_arm |= {
            name: tensor
            for name, tensor in (("score", score), ("chance", chance))
            if tensor is not None
        }
        if log_prob.dim() == 1:
            per_arm = {name: tensor.unsqueeze(0) for name, tensor in per_arm.items()}
        if score is None:
            per_arm["score"] = tabular_score(per_arm["log_prob"])
        if per_arm["reward"].dim() == 3:
            require(
                chance is not None,
                "chance",
                None,
                "a tensor of the shape of reward, since an answer may meet several rewards",
            )
            times = per_arm["reward"].shape[-1]
            spread = ("reward", "chance")
            per_arm = {
                n: t.flatten(1) if n in spread else t.repeat_interleave(times, 1)
                for n, t in per_arm.items()
            }
        whole = ("chance", "truncated", "bootstrap")
        return cls.of_sequences(
            **{n: t if n in whole else t.unsqueeze(2) for n, t in per_arm.items()}, **optional
        )

    @property
    def old(self) -> Tensor:
        """The log-probability [Q, K, T] under π_old, the policy before the updates."""
        return self.log_prob if self.old_log_prob is None else self.old_log_prob

    @property
    def sampler(self) -> Tensor:
        """The log-probability [Q, K, T] under the policy that samples."""
        return self.old if self.sampler_log_prob is None else self.sampler_log_prob

    @property
    def total_reward(self) -> Tensor:
        """The reward of each outcome [Q, K], summed over its tokens."""
        return self.reward.sum(-1)

    @property
    def total_score(self) -> Tensor:
        """The score of each outcome [Q, K, D]: ∇ log π of the whole answer.

        eq:answer-score, eq:token-scores-add
        """
        return (self.score * self.mask.unsqueeze(-1)).sum(-2)

    def prompt(self, q: int) -> Outcomes:
        """The outcomes of prompt number `q` only; Q = 1."""
        changes = {
            f.name: getattr(self, f.name)[q : q + 1]
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return replace(self, **changes)


@typed
def softmax_score(log_prob: Tensor) -> Tensor:
    """∂ log π_a / ∂ logit_b = 1[a = b] − π_b, the score of a softmax: [..., A] → [..., A, A].

    Its mean over π is 0. eq:softmax-score, eq:mean-score
    """
    return torch.eye(
        log_prob.shape[-1], dtype=log_prob.dtype, device=log_prob.device
    ) - log_prob.exp().unsqueeze(-2)


@typed
def tabular_score(log_prob: Tensor) -> Tensor:
    """The score if every prompt has its own logits, D = Q·A: [Q, A] → [Q, A, Q·A].

    It is 0 for the logits of other prompts.
    """
    prompts, arms = log_prob.shape
    own = torch.eye(prompts, dtype=log_prob.dtype, device=log_prob.device)
    return torch.einsum("qab,qr->qarb", softmax_score(log_prob), own).reshape(
        prompts, arms, prompts * arms
    )


def probability(outcomes: Outcomes) -> Tensor:
    """The probability of each outcome [Q, K] under the current policy.

    It is P(reward | answer) · π(answer).
    """
    return outcomes._probability(outcomes.log_prob)


def sampling_probability(outcomes: Outcomes) -> Tensor:
    """The probability of each outcome [Q, K] under the policy that samples."""
    return outcomes._probability(outcomes.sampler)


def objective(outcomes: Outcomes) -> float:
    """J of the current policy: the mean over prompts of Σ_k p_k R_k. eq:expected-reward"""
    return float((probability(outcomes) * outcomes.total_reward).sum(-1).mean())


def gradient_coefficient(outcomes: Outcomes) -> Tensor:
    """The coefficient of each token's score in ∇J [Q, K, T]: p_k R_k / Q on chosen tokens."""
    weight = probability(outcomes) * outcomes.total_reward / len(outcomes.reward)
    return weight.unsqueeze(-1) * outcomes.mask


def gradient(outcomes: Outcomes) -> Tensor:
    """∇J [D]: the mean over prompts of Σ_k p_k R_k Σ_t ∇log π(token t of k).

    Source: Williams 1992, theorem 1. eq:one-step-policy-gradient
    """
    return torch.einsum("qkt,qktd->d", gradient_coefficient(outcomes), outcomes.score)


def kl(outcomes: Outcomes, direction: str = "reverse") -> float:
    """Mean over prompts of the KL of whole answers, in nats.

    `direction` "reverse" is KL(π‖ref), "forward" is KL(ref‖π).
    """
    log_r, p, ref = log_reference_ratio(outcomes, direction)
    q, log_q_over_p = (p, -log_r) if direction == "reverse" else (ref, log_r)
    return float(torch.where(q > 0, q * log_q_over_p, 0.0).sum(-1).mean())


def kl_coefficient(outcomes: Outcomes, direction: str = "reverse") -> Tensor:
    """The coefficient of each token's score in the gradient of `kl`, [Q, K, T].

    It is p log(π/ref) / Q for "reverse" and −ref / Q for "forward".
    """
    log_r, p, ref = log_reference_ratio(outcomes, direction)
    weight = torch.where(p > 0, p * -log_r, 0.0) if direction == "reverse" else -ref
    return (weight / len(weight)).unsqueeze(-1) * outcomes.mask


def kl_gradient(outcomes: Outcomes, direction: str = "reverse") -> Tensor:
    """The gradient of `kl` [D], with s the score of the whole answer. `eq:kl-two-gradients`

    It is E_π[log(π/ref) s] for "reverse" and −E_ref[s] for "forward".
    """
    return torch.einsum("qkt,qktd->d", kl_coefficient(outcomes, direction), outcomes.score)


def log_reference_ratio(outcomes: Outcomes, direction: str) -> tuple[Tensor, Tensor, Tensor]:
    require(
        direction in ("reverse", "forward"),
        "direction",
        direction,
        '"reverse", KL(π‖ref), or "forward", KL(ref‖π)',
    )
    require(
        outcomes.ref_log_prob is not None,
        "outcomes.ref_log_prob",
        None,
        "the reference's log-probabilities",
    )
    assert outcomes.ref_log_prob is not None
    log_r = torch.where(outcomes.mask, outcomes.ref_log_prob - outcomes.log_prob, 0.0).sum(-1)
    return log_r, probability(outcomes), outcomes._probability(outcomes.ref_log_prob)
