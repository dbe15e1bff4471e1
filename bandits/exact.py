"""Lists every outcome of a bandit, so that `course.exact` can compute expectations exactly."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bandits.environments import Bernoulli, Environment
from course.arguments import typed
from course.errors import require, require_finite, require_logits
from course.exact import Outcomes, tabular_score
from course.rollout import on_last_token

B3_POLICY = (0.5, 0.3, 0.2)
B3_MEANS = (0.2, 0.5, 0.8)


@typed
def outcomes(
    environment: Environment,
    log_prob: Tensor,
    *,
    old: Tensor | None = None,
    reference: Tensor | None = None,
    value: Tensor | None = None,
    score: Tensor | None = None,
) -> Outcomes:
    """Every arm with every reward it can pay, under the current policy's log-probabilities [Q, K].

    `old` [Q, K] is the sampling policy (None: on-policy), `reference` [Q, K] the reference policy,
    `value` [Q] the critic's estimate. `score` [Q, K, D] is ∇ log π (default: each prompt has its
    own logits, D = Q·K). Arms of different lengths become sequences whose first token is the
    choice. `log_dist` is included, for exact KL and entropy. Raises `CourseError` for tensors with
    run axes and for continuous rewards.
    """
    require(log_prob.dim() == 2, "log_prob", tuple(log_prob.shape), "a shape [Q, K]: one run")
    values, chances = environment.outcomes()
    require(
        values.dim() == 3,
        "environment.mean",
        tuple(environment.mean.shape),
        "a shape [Q, K]: one run",
    )
    prompts, arms, rewards = values.shape
    shape = (prompts, arms)
    for name, logs in (("log_prob", log_prob), ("old", old), ("reference", reference)):
        if logs is not None:
            require_logits(name, logs)
            require(logs.shape == shape, name, tuple(logs.shape), f"(Q, K) = {shape}")
    if value is not None:
        require(value.shape == shape[:1], "value", tuple(value.shape), f"(Q,) = {shape[:1]}")
        require_finite("value", value)
    score = tabular_score(log_prob) if score is None else score
    best = log_prob.argmax(-1, keepdim=True)
    device = environment.mean.device
    lengths = environment.lengths
    if lengths is None:
        lengths = torch.ones(arms, dtype=torch.long, device=device)
    tokens = int(lengths.max())
    mask = (
        (torch.arange(tokens, device=device) < lengths.unsqueeze(-1))
        .repeat_interleave(rewards, 0)
        .expand(prompts, -1, -1)
    )

    def first(per_arm: Tensor | None) -> Tensor | None:
        """Put [Q, A, *rest] on the first token: [Q, K, T, *rest], K = arms × rewards."""
        if per_arm is None:
            return None
        spread = per_arm.repeat_interleave(rewards, 1).unsqueeze(2)
        zeros = torch.zeros_like(spread).expand(-1, -1, tokens - 1, *(-1,) * (spread.dim() - 3))
        return torch.cat([spread, zeros], 2)

    def distribution(per_arm: Tensor | None) -> Tensor | None:
        """[Q, A] → [Q, 1, T, A]; the tokens after the choice have probability 1."""
        if per_arm is None:
            return None
        forced = torch.full_like(per_arm, -torch.inf)
        forced[:, 0] = 0.0
        return torch.stack([per_arm, *[forced] * (tokens - 1)], 1).unsqueeze(1)

    first_log_prob, first_score = first(log_prob), first(score)
    assert first_log_prob is not None
    assert first_score is not None
    log_dist_score = score.new_zeros(prompts, 1, tokens, arms, score.shape[-1])
    log_dist_score[:, 0, 0] = score
    return Outcomes(
        log_prob=first_log_prob,
        score=first_score,
        reward=on_last_token(values.flatten(1), mask),
        mask=mask,
        chance=chances.flatten(1),
        old_log_prob=first(old),
        ref_log_prob=first(reference),
        value=None if value is None else value[:, None, None].expand(mask.shape),
        greedy_reward=environment.mean.gather(-1, best).squeeze(-1),
        log_dist=distribution(log_prob),
        old_log_dist=distribution(log_prob if old is None else old),
        ref_log_dist=distribution(reference),
        log_dist_score=log_dist_score,
    )


@typed
def b3(
    *,
    old: Tensor | None = None,
    reference: Tensor | None = None,
    value: Tensor | None = None,
    offset: float = 0.0,
) -> Outcomes:
    """B3, the course's small example: π = (.5, .3, .2), Bernoulli means (.2, .5, .8), float64.

    `offset` is added to every reward. The other arguments are those of `outcomes`.
    """
    environment = Bernoulli(torch.tensor([B3_MEANS], dtype=torch.float64, device="cpu"))
    listed = outcomes(
        environment,
        torch.tensor([B3_POLICY], dtype=torch.float64, device="cpu").log(),
        old=old,
        reference=reference,
        value=value,
    )
    if not offset:
        return listed
    last = listed.mask & (listed.mask.cumsum(-1) == listed.mask.sum(-1, keepdim=True))
    return replace(listed, reward=listed.reward + offset * last)
