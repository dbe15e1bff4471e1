"""A bandit as a problem for the learner: an environment, a policy and the number of samples.

A bandit is the special case T = 1 of a language model: each answer is one token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bandits.environments import Continuous, Environment, pick
from bandits.policies import GaussianPolicy, LinearSoftmax, Softmax, draw
from course.arguments import typed
from course.errors import require, require_number
from course.rollout import Policy, Rollout, on_last_token
from course.train.noise import Noise


@typed
class Bandit:
    """Samples `group` arms for every prompt in each rollout.

    `reference` is a reference policy: log-probabilities [..., Q, K], or "start" for the policy as
    it is now. `critic` adds a learned value per prompt [..., Q]. `greedy` adds the reward of the
    most probable arm (ReMax). `sampler` makes the logits of another policy μ from log π [..., Q,
    K]; μ then draws the arms, and the rollout has its log-probabilities as `sampler_log_prob`
    beside those of π. It may rule arms out by −∞, as top-p does (`bandits.theory.mismatch` has
    four). Raises `CourseError` for a wrong setting.
    """

    made_with = ("group", "greedy")  # a saved learner only continues with the same ones

    def __init__(
        self,
        environment: Environment,
        policy: Softmax | LinearSoftmax,
        group: int,
        *,
        reference: Tensor | str | None = None,
        critic: bool = False,
        greedy: bool = False,
        sampler: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        require_number("group", group, "a whole number > 0", above=0, whole=True)
        with torch.no_grad():
            start = policy.log_probs()
        require(
            start.shape[-2:] == environment.mean.shape[-2:],
            "policy",
            tuple(start.shape),
            f"[..., Q, K] with (Q, K) = {tuple(environment.mean.shape[-2:])} of the environment",
        )
        if isinstance(reference, str):
            require(
                reference == "start", "reference", reference, "'start', log-probabilities or None"
            )
        elif reference is not None:
            require(
                reference.shape == start.shape,
                "reference",
                tuple(reference.shape),
                f"the policy's own shape {tuple(start.shape)}",
            )
        self.environment, self.arm_policy, self.group, self.greedy = (
            environment,
            policy,
            group,
            greedy,
        )
        self.sampler = sampler
        self.runs = start.shape[:-2]
        self.reference = start if isinstance(reference, str) else reference
        self.value = (
            torch.zeros(
                start.shape[:-1], dtype=start.dtype, device=start.device, requires_grad=True
            )
            if critic
            else None
        )
        self.parameters: Sequence[Tensor] = [
            *policy.parameters,
            *([] if self.value is None else [self.value]),
        ]
        lengths = environment.lengths
        self.tokens = 1 if lengths is None else int(lengths.max())
        # the forward pass of sampling is reused for the first update
        self._live: tuple[list[int], Tensor, Policy] | None = None
        self._prompts = torch.arange(start.shape[-2], device=start.device).expand(start.shape[:-1])
        self._all_chosen = torch.ones(
            *start.shape[:-1], group, 1, dtype=torch.bool, device=start.device
        )

    @torch.no_grad()
    def sample(self, noise: Noise) -> Rollout:
        """Sample `group` arms for every prompt; T is 1, or the longest arm's length in tokens."""
        with torch.enable_grad():
            live = self.arm_policy.log_probs()
            log_probs = live.detach()
            drawn = self._drawn(log_probs)
            action = draw(drawn, noise, self.group)
            if self.sampler is not None:  # where rounding led to an arm of probability 0
                impossible = pick(drawn, action) == -torch.inf
                action = torch.where(impossible, drawn.argmax(-1, keepdim=True), action)
            policy = self._policy(live, self.value, action)
        self._live = (self._versions(), action, policy)
        score = self.environment.reward(action, noise)
        mask = self._mask(action)
        greedy_reward = None
        if self.greedy:
            greedy_reward = self.environment.reward(
                log_probs.argmax(-1, keepdim=True), noise
            ).squeeze(-1)
        self.environment.advance(noise)
        ref = self.reference
        return Rollout(
            reward=on_last_token(score, mask),
            log_prob=policy.log_prob.detach(),
            mask=mask,
            ref_log_prob=None if ref is None else self._on_first_token(pick(ref, action)),
            value=(
                None
                if self.value is None
                else self.value.clone()[..., None, None].expand(mask.shape)
            ),
            greedy_reward=greedy_reward,
            old_log_dist=self._dist(log_probs),
            ref_log_dist=None if ref is None else self._dist(ref),
            sampler_log_prob=(
                None if self.sampler is None else self._on_first_token(pick(drawn, action))
            ),
            data={"action": action, "prompt": self._prompts},
        )

    def _drawn(self, log_probs: Tensor) -> Tensor:
        """log μ [..., Q, K] of the policy that draws the arms."""
        if self.sampler is None:
            return log_probs
        logits = self.sampler(log_probs)
        fits = isinstance(logits, Tensor) and logits.shape == log_probs.shape
        got = tuple(logits.shape) if isinstance(logits, Tensor) else logits
        require(fits, "sampler", got, f"one that returns logits {tuple(log_probs.shape)}")
        drawn = torch.log_softmax(logits, -1)
        lost = bool(drawn.isnan().any())
        require(not lost, "sampler", "nan", "one whose logits are numbers, some above −∞")
        return drawn

    def policy(self, rollout: Rollout) -> Policy:
        """log π of the rollout's arms now, with gradients, for all prompts or a minibatch."""
        live, self._live = self._live, None
        action = rollout.data["action"]
        if (
            live is not None
            and live[0] == self._versions()
            and live[1] is action
            and torch.is_grad_enabled()
        ):
            return live[2]
        log_probs, value = self.arm_policy.log_probs(), self.value
        if action.shape[-2] != log_probs.shape[-2]:
            prompts = _first_run(rollout.data["prompt"])
            log_probs = log_probs.index_select(-2, prompts)
            value = None if value is None else value.index_select(-1, prompts)
        return self._policy(log_probs, value, action)

    def _policy(self, log_probs: Tensor, value: Tensor | None, action: Tensor) -> Policy:
        values = (
            None if value is None else value[..., None, None].expand(*action.shape, self.tokens)
        )
        return Policy(self._on_first_token(pick(log_probs, action)), self._dist(log_probs), values)

    def _versions(self) -> list[int]:
        return [parameter._version for parameter in self.parameters]

    @torch.no_grad()
    def metrics(self) -> dict[str, Tensor]:
        """The exact expected reward and the probability of the best arm, each [...]."""
        probs = self.arm_policy.log_probs().exp()
        best = pick(probs, self.environment.best.expand(*probs.shape[:-1], 1)).squeeze(-1)
        return {
            "expected_reward": (probs * self.environment.mean).sum(-1).mean(-1),
            "optimal_action": best.mean(-1),
        }

    def state(self) -> dict[str, Tensor]:
        """The state of the environment, which may change over time."""
        return self.environment.state()

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved `state`."""
        self.environment.load(state)

    # ------------------- tokens: the first one is the choice, the others have probability 1

    def _mask(self, action: Tensor) -> Tensor:
        if self.environment.lengths is None:
            return self._all_chosen
        return torch.arange(self.tokens, device=action.device) < self.environment.lengths[
            action
        ].unsqueeze(-1)

    def _on_first_token(self, log_prob: Tensor) -> Tensor:
        if self.tokens == 1:
            return log_prob.unsqueeze(-1)
        return torch.nn.functional.pad(log_prob.unsqueeze(-1), (0, self.tokens - 1))

    def _dist(self, log_probs: Tensor) -> Tensor:
        full = log_probs.unsqueeze(-2).unsqueeze(-2)  # [..., Q, 1, 1, K]
        if self.tokens == 1:
            return full
        forced = torch.full_like(full, -torch.inf)
        forced[..., 0] = 0.0
        return torch.cat([full, forced.expand(*full.shape[:-2], self.tokens - 1, -1)], -2)


@typed
class GaussianBandit:
    """Draws `group` continuous actions for each of the Q prompts from a Gaussian policy."""

    made_with = ("group",)

    def __init__(self, environment: Continuous, policy: GaussianPolicy, group: int) -> None:
        require_number("group", group, "a whole number > 0", above=0, whole=True)
        self.environment, self.action_policy, self.group = environment, policy, group
        self.runs = policy.mean.shape[:-1]
        self.parameters: Sequence[Tensor] = policy.parameters
        self._mask = torch.ones(
            *policy.mean.shape, group, 1, dtype=torch.bool, device=policy.mean.device
        )
        self._prompts = torch.arange(policy.mean.shape[-1], device=policy.mean.device).expand(
            policy.mean.shape
        )

    @torch.no_grad()
    def sample(self, noise: Noise) -> Rollout:
        """Draw `group` actions for every prompt, with their rewards."""
        action = self.action_policy.draw(noise, self.group)
        score = self.environment.reward(action, noise)
        log_prob = self.action_policy.log_prob(action)
        data = {"action": action, "prompt": self._prompts}
        return Rollout(score.unsqueeze(-1), log_prob.unsqueeze(-1), self._mask, data=data)

    def policy(self, rollout: Rollout) -> Policy:
        """The log-density of the rollout's actions now, with gradients."""
        action = rollout.data["action"]
        whole = action.shape[-2] == self.action_policy.mean.shape[-1]
        prompts = None if whole else _first_run(rollout.data["prompt"])
        return Policy(self.action_policy.log_prob(action, prompts).unsqueeze(-1))

    @torch.no_grad()
    def metrics(self) -> dict[str, Tensor]:
        """The policy's mean and standard deviation, averaged over prompts."""
        return {
            "action_mean": self.action_policy.mean.mean(-1),
            "action_std": self.action_policy.log_std.exp().mean(-1),
        }


def _first_run(prompts: Tensor) -> Tensor:
    """The prompt numbers [..., n] of a minibatch → [n]: they are the same in every run."""
    return prompts.reshape(-1, prompts.shape[-1])[0]
