"""A sampler μ that drifts away from the learner π: exact bias and noise of every correction.

Answers of `Sums` are listed, so nothing is sampled. The learner has a table of logits, a row for
each prefix; four kinds of drift make μ from it, as they happen in practice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace as change

import torch
from torch import Tensor

from bandits.theory.effective_samples import Sums, answers, prefix_rows, token_log_probs
from course.errors import require
from course.estimator import Estimator
from course.exact import Microscope, Outcomes, microscope, objective
from course.parts import (
    Constant,
    Correction,
    NoCorrection,
    RejectK3,
    SequenceMaskTIS,
    SequenceMIS,
    SequenceTIS,
    TokenMIS,
    TokenTIS,
)
from course.rollout import Rollout

# name → correction, each with the bounds that its authors or their library use
CORRECTIONS: Mapping[str, Correction] = {
    "none": NoCorrection(),
    "token TIS": TokenTIS(),
    "sequence TIS": SequenceTIS(),
    "token MIS": TokenMIS(),
    "sequence MIS": SequenceMIS(),
    "sequence-mask TIS": SequenceMaskTIS(),
    "k3 rejection": RejectK3(),
    "sequence weight": SequenceTIS(cap=None),
}
OFFSET = 16.0  # a model's logits are not centred; their size decides how coarsely they are rounded


# ---------------------------------------------------------------- the learner, and the four drifts


def learner(task: Sums, seed: int, updates: int, rate: float) -> list[Tensor]:
    """The logits [prefixes, words] after 0, 1, … `updates` steps of exact gradient ascent on J.

    The start is drawn from a normal distribution of standard deviation 1.5 with this seed.
    """
    rows, reward = int(prefix_rows(task).max()) + 1, answers(task)[1]
    noise = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(rows, task.words, generator=noise, dtype=torch.float64)
    path = [logits]
    for _ in range(updates):
        leaf = path[-1].clone().requires_grad_()
        expected = (token_log_probs(leaf, task).sum(-1).exp() * reward).sum()
        [slope] = torch.autograd.grad(expected, leaf)
        path.append(path[-1] + rate * slope)
    return path


def heated(logits: Tensor, temperature: float) -> Tensor:
    """The logits of the same policy at another temperature."""
    return logits / temperature


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Top-p: each row's fewest words with a total probability of at least `top_p`; others at −∞."""
    ordered, place = torch.softmax(logits, -1).sort(-1, descending=True)
    before = ordered.cumsum(-1).roll(1, -1)  # the mass of all words that are more probable
    before[..., 0] = 0.0
    keep = torch.zeros_like(ordered, dtype=torch.bool).scatter(-1, place, before < top_p)
    return logits.masked_fill(~keep, -torch.inf)


def rounded(logits: Tensor, bits: int) -> Tensor:
    """The logits, shifted to a largest value of 16 in each row, with `bits` significant bits.

    bfloat16 has 8. The shift changes no probability before rounding.
    """
    require(bits >= 1, "bits", bits, "a whole number ≥ 1")
    shifted = logits - logits.amax(-1, keepdim=True) + OFFSET
    mantissa, exponent = torch.frexp(shifted)  # |mantissa| in [½, 1)
    return torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent)


def sampler(kind: str, size: float, path: list[Tensor]) -> Tensor:
    """The logits of μ for the learner path[-1]: "temperature", "top-p", "bits" or "updates" old."""
    now = path[-1]
    makers: dict[str, Callable[[], Tensor]] = {
        "temperature": lambda: heated(now, size),
        "top-p": lambda: nucleus(now, size),
        "bits": lambda: rounded(now, int(size)),
        "updates": lambda: path[-1 - int(size)],
    }
    require(kind in makers, "kind", kind, ", ".join(makers))
    return makers[kind]()


# ---------------------------------------------------------------- what is measured


def outcomes(task: Sums, now: Tensor, drifted: Tensor) -> Outcomes:
    """All answers, scored by the logits `now` and sampled by the logits `drifted`."""
    every, reward = answers(task)
    last = torch.arange(task.tokens) == task.tokens - 1
    score = torch.autograd.functional.jacobian(lambda table: token_log_probs(table, task), now)
    drawn = token_log_probs(drifted, task)
    # an answer that μ never gives has a token of probability 0, and is never listed
    return Outcomes.of_sequences(
        token_log_probs(now, task).unsqueeze(0),
        (reward.unsqueeze(-1) * last).unsqueeze(0),
        score=score.reshape(1, *every.shape, -1),
        sampler_log_prob=drawn.unsqueeze(0),
    )


def seen(correction: Correction, case: Outcomes) -> Microscope:
    """One sample's gradient with this correction: the policy gradient with the baseline J."""
    estimator = Estimator(baseline=Constant(objective(case)), correction=correction)
    return microscope(estimator, case, 1)


def table_row(correction: Correction, case: Outcomes) -> dict[str, float]:
    """Bias, noise and cosine of one sample's gradient, and the mean weight c that it gives.

    Bias and noise (the standard deviation) are shares of ‖∇J‖. The cosine is NaN where everything
    is dropped.
    """
    found = seen(correction, case)
    return {
        "bias": found.relative_bias,
        "noise": float(found.std / found.gradient.norm()),
        "cosine": found.cosine,
        "kept": kept(correction, case),
    }


def kept(correction: Correction, case: Outcomes) -> float:
    """The probability under μ that a token has a weight c above 0, mean over the tokens."""
    happens = case.sampler[0].sum(-1).exp()
    index = happens.nonzero().squeeze(-1)
    weight = weights(correction, case, index)
    share: Tensor = happens[index] @ (weight > 0).double().mean(-1)
    return float(share)


def weights(correction: Correction, case: Outcomes, index: Tensor) -> Tensor:
    """The weights c [n, T] of the answers `index` [n]."""
    made = Rollout(
        case.reward[0, index].unsqueeze(1),
        case.log_prob[0, index].unsqueeze(1),
        case.mask[0, index].unsqueeze(1),
        sampler_log_prob=case.sampler[0, index].unsqueeze(1),
    )
    found = correction(made)
    return (torch.ones_like(made.log_prob) if found is None else found).squeeze(1)


def by_cap(case: Outcomes, make: Callable[[float], Correction], caps: tuple[float, ...]) -> Tensor:
    """The relative bias [n] of a truncated weight at each cap."""
    return torch.tensor([seen(make(cap), case).relative_bias for cap in caps])


def sequence_ratio(case: Outcomes) -> Tensor:
    """(π/μ)^{1/|o|} of every answer [K]: GSPO's ratio before any update, were μ taken for π_old."""
    return (case.log_prob - case.sampler)[0].mean(-1).exp()


def typical_move(case: Outcomes) -> float:
    """E_μ|s − 1| of that ratio."""
    chance = case.sampler[0].sum(-1).exp()
    ratio = torch.where(chance > 0, sequence_ratio(case), 1.0)
    return float(chance @ (ratio - 1).abs())


def drift_kl(case: Outcomes) -> float:
    """KL(μ‖π) of whole answers, in nats."""
    drawn, now = case.sampler[0].sum(-1), case.log_prob[0].sum(-1)
    return float(torch.where(drawn > -torch.inf, drawn.exp() * (drawn - now), 0.0).sum())


def as_arms(case: Outcomes) -> Outcomes:
    """The same answers as arms: one token each, with the probability of the whole answer."""
    whole = case.log_prob.sum(-1, keepdim=True)
    return change(
        case,
        log_prob=whole,
        sampler_log_prob=case.sampler.sum(-1, keepdim=True),
        reward=case.total_reward.unsqueeze(-1),
        score=case.score.sum(-2, keepdim=True),
        mask=torch.ones_like(whole, dtype=torch.bool),
    )
