"""The language model as a problem for the learner: prompts in, completions and rewards out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from course.arguments import typed
from course.errors import require, require_number
from course.estimator import Estimator, uses_reference
from course.rollout import Policy, Rollout, on_last_token
from course.train.noise import Noise
from tinylm.model import Transformer
from tinylm.rewards import ExactMatch, Reward
from tinylm.sampling import check_sampling, sample
from tinylm.scoring import (
    chosen_log_probs,
    log_dists,
    log_dists_and_values,
    rounds_coarsely,
    values,
)
from tinylm.tasks import Task


def require_room(model: Transformer, task: Task) -> None:
    """Raise `CourseError` if the model's context is too short for a prompt and its answer."""
    room = model.settings.context
    require(
        task.context <= room,
        "model.context",
        room,
        f"at least {task.context}: prompt and answer, in tokens",
    )


def ask(task: Task, noise: Noise, prompts: int, rows: Tensor | None = None) -> Tensor:
    """Draw questions: their row numbers [*runs, Q], drawn separately for each run.

    They are drawn from `rows` [N] of the task (None: those for training).
    """
    rows = task.train if rows is None else rows
    place = (noise.uniform(prompts) * len(rows)).long().clamp(max=len(rows) - 1)
    return rows[place]


@typed
class LanguageModel:
    """Samples `group` completions of each of `prompts` questions; the last token gets the reward.

    `reference` is the reference policy whose log-probabilities the rollout holds (None: no
    reference). `critic` is a transformer with a value head: a separate network, or the policy
    itself (shared trunk). `distributions` keeps the full next-token distributions, for the exact
    KL. `greedy` adds the reward of the greedy answer (ReMax). `scored_temperature` breaks the
    problem on purpose: log π is computed at this temperature instead of the sampling temperature,
    so the ratios differ from 1 even before the first update.

    `sampler_temperature` and `sampler` let another policy μ draw the completions than π, which
    scores them: another temperature, and a transformer with other weights (a copy some updates old,
    or rounded; who passes it keeps it up to date). The rollout then has `sampler_log_prob`, log μ,
    beside log π_old. So it does under bfloat16 autocast, where decoding and scoring differ. Raises
    `CourseError` for a wrong setting.
    """

    def __init__(
        self,
        model: Transformer,
        task: Task,
        *,
        prompts: int = 64,
        group: int = 8,
        reward: Reward | None = None,
        temperature: float = 1.0,
        reference: Transformer | None = None,
        critic: Transformer | None = None,
        distributions: bool = False,
        greedy: bool = False,
        scored_temperature: float | None = None,
        sampler_temperature: float | None = None,
        sampler: Transformer | None = None,
    ) -> None:
        require_number("prompts", prompts, "a whole number > 0", above=0, whole=True)
        require_number("group", group, "a whole number > 0", above=0, whole=True)
        check_sampling(temperature)
        require_room(model, task)
        if critic is not None:
            require(
                critic.settings.value, "critic.settings.value", False, "a model with a value head"
            )
        self.model, self.task, self.prompts, self.group = model, task, prompts, group
        self.reward = ExactMatch() if reward is None else reward
        if scored_temperature is not None:
            check_sampling(scored_temperature)
        self.temperature, self.reference, self.critic = temperature, reference, critic
        self.distributions, self.greedy, self.scored_temperature = (
            distributions,
            greedy,
            scored_temperature,
        )
        if sampler_temperature is not None:
            check_sampling(sampler_temperature)
        if sampler is not None:
            require_room(sampler, task)
            allowed = f"a transformer with the model's runs {tuple(model.runs)}"
            require(sampler.runs == model.runs, "sampler", tuple(sampler.runs), allowed)
        self.sampler, self.sampler_temperature = sampler, sampler_temperature
        self.runs = model.runs
        own = [] if critic is None or critic is model else critic.parameters
        self.parameters: Sequence[Tensor] = [*model.parameters, *own]

    @classmethod
    def of(
        cls,
        estimator: Estimator,
        model: Transformer,
        task: Task,
        *,
        distributions: bool = False,
        **settings: Any,
    ) -> Self:
        """A problem whose rollouts hold whatever this estimator needs.

        That may be a reference policy (a frozen copy of the model), full distributions, or greedy
        answers. `settings` are the other arguments of the class, the critic among them.
        """
        reference = model.copy() if uses_reference(estimator) else None
        full = distributions or any(name.endswith("_log_dist") for name in estimator.needs)
        return cls(
            model,
            task,
            reference=reference,
            distributions=full,
            greedy="rollout.greedy_reward" in estimator.needs,
            **settings,
        )

    @torch.no_grad()
    def sample(self, noise: Noise) -> Rollout:
        """Sample new questions and G completions of each, with their rewards."""
        question = ask(self.task, noise, self.prompts)
        prompt = self.task.prompt[question]
        limit = self.task.limit
        keep = self.distributions
        heat, model = self.sampler_temperature, self.sampler
        made = sample(
            self.model if model is None else model,
            prompt,
            self.group,
            limit,
            noise,
            temperature=self.temperature if heat is None else heat,
            keep_log_dist=keep,
        )
        log_prob, old_log_dist = made.log_prob, made.log_dist
        sampler_log_prob = None
        if rounds_coarsely(self.model) or heat is not None or model is not None:
            sampler_log_prob = made.log_prob
            # use the same forward pass as the updates, so that ρ = 1 before the first update
            full = log_dists(self.model, prompt, made.tokens, temperature=self.temperature)
            log_prob = chosen_log_probs(full, made.tokens, made.mask)
            old_log_dist = full if keep else None
        reward, components = self.scores(made.tokens, question)
        ref_log_prob = ref_log_dist = value = greedy_reward = None
        if self.reference is not None:
            full = log_dists(self.reference, prompt, made.tokens, temperature=self.temperature)
            ref_log_prob, ref_log_dist = (
                chosen_log_probs(full, made.tokens, made.mask),
                full if keep else None,
            )
        if self.critic is not None:
            value = torch.where(made.mask, values(self.critic, prompt, made.tokens), 0.0)
        if self.greedy:
            best = sample(self.model, prompt, 1, limit, None)
            greedy_reward = self.scores(best.tokens, question)[0].squeeze(-1)
        return Rollout(
            reward=on_last_token(reward, made.mask),
            log_prob=log_prob,
            mask=made.mask,
            sampler_log_prob=sampler_log_prob,
            ref_log_prob=ref_log_prob,
            value=value,
            bootstrap=None if value is None else torch.zeros_like(value[..., 0]),
            greedy_reward=greedy_reward,
            truncated=made.truncated,
            old_log_dist=old_log_dist,
            ref_log_dist=ref_log_dist,
            components=components,
            limit=limit,
            data={"prompt": prompt, "tokens": made.tokens, "question": question},
        )

    def policy(self, rollout: Rollout) -> Policy:
        """log π of the rollout's tokens under the current weights, with gradients attached."""
        prompt, tokens = rollout.data["prompt"], rollout.data["tokens"]
        temperature = (
            self.temperature if self.scored_temperature is None else self.scored_temperature
        )
        value = None
        if self.critic is self.model:  # shared trunk: one forward pass gives both
            log_dist, value = log_dists_and_values(
                self.model, prompt, tokens, temperature=temperature
            )
        else:
            log_dist = log_dists(self.model, prompt, tokens, temperature=temperature)
            if self.critic is not None:
                value = values(self.critic, prompt, tokens)
        return Policy(chosen_log_probs(log_dist, tokens, rollout.mask), log_dist, value)

    def metrics(self) -> dict[str, Tensor]:
        """No metrics here: `tinylm.evaluate` measures the accuracy on held-out questions."""
        return {}

    def judged_against(self, tokens: Tensor, question: Tensor) -> Tensor:
        """The question [..., Q, G] whose solution each completion [..., Q, G, T] is judged by."""
        return question.unsqueeze(-1).expand(tokens.shape[:-1])

    def scores(self, tokens: Tensor, question: Tensor) -> tuple[Tensor, Tensor | None]:
        """The reward of each completion, and those that it is the sum of, if there are several."""
        rows = self.judged_against(tokens, question)
        apart = self.reward.components(tokens, rows, self.task)
        dtype = self.model.parameters[0].dtype
        total = self.reward(tokens, rows, self.task).to(dtype)
        return total, None if apart is None else apart.to(dtype)
