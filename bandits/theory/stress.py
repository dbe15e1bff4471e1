"""Questions that share weights: the bandit on which each part of the ladder is tried.

Every question has one right answer among K, and starts at a success probability of its own. The
policy is linear: each answer of each question has a weight of its own, and random features that all
questions share. So what is learned on one question disturbs the others, as in a network.

`follow` takes expected updates instead of sampled ones, and predicts what dividing by the group's
std does to hard and easy questions. `diffuse` takes normal updates with the expectation and the
covariance of a sampled one, and predicts what a baseline's smaller variance is worth.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bandits.environments import Discrete
from bandits.policies import LinearSoftmax
from bandits.theory.rare_prize import RARE
from course.estimator import Estimator
from course.exact import group_mean_factor, group_std_weight
from course.parts import BatchMean, GroupMean, GroupStd
from course.train.noise import Noise


def start(success: Tensor, arms: int) -> Tensor:
    """log π [Q, K] of policies whose first answer, the right one, has probability `success` [Q]."""
    wrong = (1 - success) / (arms - 1)
    return torch.cat([success.unsqueeze(-1), wrong.unsqueeze(-1).expand(-1, arms - 1)], -1).log()


def shared_policy(
    log_prob: Tensor, runs: tuple[int, ...], width: int, strength: float
) -> LinearSoftmax:
    """A linear policy that starts at `log_prob` [Q, K], with weights [*runs, Q·K + width].

    The last `width` features are random, with standard deviation `strength`/√width, and their
    weights start at 0. They are the same for all runs.
    """
    prompts, arms = log_prob.shape
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(prompts, arms, width, generator=generator, dtype=torch.float64)
    random = random.to(log_prob) * strength / width**0.5
    own = torch.eye(prompts * arms).to(log_prob).view(prompts, arms, -1)
    weights = torch.cat([log_prob.flatten(), torch.zeros(width).to(log_prob)])
    return LinearSoftmax(torch.cat([own, random], -1), weights.expand(*runs, -1))


def ragged(
    lengths: tuple[int, int], pays: tuple[float, float], device: torch.device | str
) -> Discrete:
    """Four answers: right and short, right and long, wrong and short, wrong and long.

    A right answer pays 1 with probability `pays[0]`, a wrong one with `pays[1]`, else 0.
    """
    right, wrong = pays
    chance = torch.tensor([[right, right, wrong, wrong]], device=device)
    values = torch.tensor([1.0, 0.0], device=device).expand(1, 4, 2)
    tokens = torch.tensor([*lengths, *lengths], device=device)
    return Discrete(values, torch.stack([chance, 1 - chance], -1), lengths=tokens)


def outcomes(log_prob: Tensor, training: str, lengths: tuple[int, int]) -> dict[str, Tensor]:
    """What is looked at, of policies [..., Q, K]: each [...]."""
    if training in ("lengths", "one length"):
        log_prob = log_prob[..., 0, :]
        short, long = lengths
        share = torch.sigmoid(log_prob[..., 3] - log_prob[..., 2])  # of long among wrong answers
        length = (short + share * (long - short)) / long
        return {"success": log_prob[..., :2].exp().sum(-1), "length": length}
    if training == "random":
        return {"success": log_prob[..., 0, RARE].exp()}
    success = log_prob[..., 0].exp()  # [..., Q], from hard to easy
    third = success.shape[-1] // 3
    paid = success[..., ::2] if training == "unrewarded" else success
    return {
        "success": paid.mean(-1),
        "hard": success[..., :third].mean(-1),
        "easy": success[..., -third:].mean(-1),
        "skill": success[..., 1::2].mean(-1),
    }


def follow(
    estimator: Estimator, policy: LinearSoftmax, group: int, rate: float, steps: int
) -> Tensor:
    """Success probabilities [steps + 1, Q] along expected on-policy updates, one per rollout.

    With a group baseline E[ĝ] = Σ_q w(p_q) ∇p_q / Q, where w = w_G(p) if the group's std divides
    and (G−1)/G if it does not. `policy` has no runs, and is changed.
    """
    scale, path = estimator.scale, []
    for _ in range(steps + 1):
        success = policy.log_probs()[:, 0].exp()
        path.append(p := success.detach())
        if isinstance(scale, GroupStd):
            weight = group_std_weight(p, group, scale.ddof, scale.eps).to(p)
        else:
            weight = torch.full_like(p, group_mean_factor(group))
        [gradient] = torch.autograd.grad((weight * success).mean(), policy.parameters)
        with torch.no_grad():
            policy.parameters[0].add_(rate * gradient)
    return torch.stack(path)


def sampled_part(
    estimator: Estimator, probs: Tensor, reward: Tensor, group: int, noise: Noise
) -> Tensor:
    """ĝ − E[ĝ] on the logits [..., Q, K], as a normal draw with the covariance of ĝ on policy.

    `probs` and `reward` are [..., Q, K]. A draw with the covariance of a value v_n that has
    probability p_n is Σ_n √p_n (v_n − E v) z_n, with standard normal z_n. Without a baseline, and
    with that of the batch (at its expectation), ĝ is the mean of A (e_a − π) over `group` samples.
    With the group's mean it is (G−1)/G times the mean over pairs of ½ (r_a − r_b)(e_a − e_b), a
    U-statistic, whose covariance has a part of single samples and one of pairs: Hoeffding 1948,
    eq. 5.13.
    """
    shape = probs.shape[-2:]
    centred = reward - (probs * reward).sum(-1, keepdim=True)  # r − E r, per question
    pull = probs * centred  # E[ĝ] of one sample
    single = probs.sqrt() * noise.normal(*shape)  # √p z of each arm
    if not isinstance(estimator.baseline, GroupMean):
        batch = isinstance(estimator.baseline, BatchMean)
        mean = (probs * reward).sum(-1, keepdim=True).mean(-2, keepdim=True) if batch else 0.0
        along = single * (reward - mean)  # Σ_a √p z A (e_a − π)
        draw = along - probs * along.sum(-1, keepdim=True) - pull * single.sum(-1, keepdim=True)
        return draw / math.sqrt(group)
    # of one sample: E[½ (r_a − r_b)(e_a − e_b) | a] = ½ ((r_a − E r) e_a − π (r_a − r))
    apart = single.sum(-1, keepdim=True)
    along = (single * reward).sum(-1, keepdim=True)
    first = 0.5 * (single * centred - probs * (along - reward * apart)) - pull * apart
    # of pairs [..., Q, K, K]
    root = (probs.unsqueeze(-1) * probs.unsqueeze(-2)).sqrt() * noise.normal(*shape, shape[-1])
    weighed = 0.5 * root * (reward.unsqueeze(-1) - reward.unsqueeze(-2))
    second = weighed.sum(-1) - weighed.sum(-2) - pull * root.sum((-2, -1)).unsqueeze(-1)
    ones, twos = 4 * (group - 2) / (group * (group - 1)), 2 / (group * (group - 1))
    return group_mean_factor(group) * (math.sqrt(ones) * first + math.sqrt(twos) * second)


def diffuse(
    estimator: Estimator,
    policy: LinearSoftmax,
    reward: Tensor,
    group: int,
    rate: float,
    steps: int,
    noise: Noise,
) -> Tensor:
    """Success probabilities [steps + 1, *runs, Q] along normal updates, one per rollout.

    Each has the expectation and the covariance of a sampled on-policy update. `reward` is
    [*runs, Q, K], the right answer first; `policy` has the runs of `noise`, and is changed.
    """
    path, features = [], policy.features
    grouped = isinstance(estimator.baseline, GroupMean)
    for _ in range(steps + 1):
        probs = policy.log_probs().detach().exp()
        path.append(probs[..., 0])
        expected = probs * (reward - (probs * reward).sum(-1, keepdim=True))
        pull = expected * (group_mean_factor(group) if grouped else 1.0)
        pull = pull + sampled_part(estimator, probs, reward, group, noise)
        with torch.no_grad():
            update = torch.einsum("...qk,qkd->...d", pull, features) / len(features)
            policy.parameters[0].add_(rate * update)
    return torch.stack(path)


__all__ = [
    "diffuse",
    "follow",
    "outcomes",
    "ragged",
    "sampled_part",
    "shared_policy",
    "start",
]
