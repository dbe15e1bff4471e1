"""The exercises of lesson 08, which `lesson.exercise(NAME)` makes.

A test returns None for a right attempt, else a counter-example; what it takes behind the `*` comes
from the lesson.
"""

from dataclasses import replace

import torch

from course import ladder
from course.learner import Learner
from course.lesson.exercise import Exercise
from course.train.noise import Noise
from course.train.optim import Adam
from tinylm.problem import LanguageModel
from tinylm.tasks import decode


def test_training(attempt, *, model, task):
    def problem():
        """The same model and problem each time, to be trained."""
        start = model.copy()
        for weight in start.parameters:
            weight.requires_grad_()
        return LanguageModel.of(ladder.grpo, start, task, prompts=8, group=4)

    for rollouts, epochs in ((1, 1), (1, 4), (3, 2)):
        ours, theirs = problem(), problem()
        Learner(ours, ladder.grpo, Adam(1e-3), _noise(), epochs=epochs).train(rollouts)
        attempt(theirs.model, theirs, _noise(), rollouts, epochs)
        for name in ours.model.weights:
            want, got, began = (
                each.weights[name].detach() for each in (ours.model, theirs.model, model)
            )
            off, way = (float((x - want).abs().max()) for x in (got, began))
            if not off < 1e-6:
                return (
                    f"after {rollouts} rollout(s) with {epochs} update(s) each, a weight of"
                    f" {name!r} is {off:.2g} away from Learner's, which moved it by up to {way:.2g}"
                )
    return None


def _noise():
    return Noise((), 8, dtype=torch.float64)


def solve_training(model, problem, noise, rollouts, epochs):
    optimizer = torch.optim.Adam(model.parameters, lr=1e-3)
    for _ in range(rollouts):
        rollout = problem.sample(noise)
        tokens, mask, reward = rollout.data["tokens"], rollout.mask, rollout.total_reward
        prompt = rollout.data["prompt"].unsqueeze(1).expand(*tokens.shape[:2], -1)  # [Q, G, 4]
        spread = reward.std(-1, correction=0, keepdim=True) + 1e-6
        advantage = ((reward - reward.mean(-1, keepdim=True)) / spread).unsqueeze(-1)  # [Q, G, 1]
        for _ in range(epochs):
            log_prob = model.log_probs(prompt, tokens)  # [Q, G, 3]
            ratio = (log_prob - rollout.log_prob).exp()
            clipped = ratio.clamp(0.8, 1.2)
            log_r = rollout.ref_log_prob - log_prob
            k3 = log_r.exp() - 1 - log_r
            gain = torch.minimum(ratio * advantage, clipped * advantage) - 0.04 * k3
            of_answers = torch.where(mask, gain, 0.0).sum(-1) / mask.sum(-1)  # [Q, G]
            optimizer.zero_grad()
            (-of_answers.mean()).backward()
            optimizer.step()


class _Changed:
    """A problem whose rollouts are changed before they are used: a plausible mistake."""

    def __init__(self, problem, change):
        self.problem, self.change = problem, change

    def sample(self, noise):
        return self.change(self.problem.sample(noise))


def _always_on_policy(model, problem, noise, rollouts, epochs):
    """The mistake: a new rollout for every update."""
    solve_training(model, problem, noise, rollouts * epochs, 1)


def _no_reference(rollout):
    """The mistake: the KL is to the policy that sampled."""
    return replace(rollout, ref_log_prob=rollout.log_prob)


TRAINING_LOOP = Exercise(
    "training-loop",
    "Write GRPO's training loop in plain PyTorch: sample, freeze the advantages, and take several"
    " updates on each rollout.",
    test=test_training,
    solution=solve_training,
    wrong=[
        _always_on_policy,
        lambda model, problem, noise, rollouts, epochs: solve_training(
            model, problem, noise, rollouts, 1
        ),
        lambda model, problem, noise, rollouts, epochs: solve_training(
            model, _Changed(problem, _no_reference), noise, rollouts, epochs
        ),
    ],
    hints=[
        (
            "Two loops: over rollouts outside, over updates inside. What is sampled, and the"
            " advantages, belong to the outer one; log π, ratio, KL and the step to the inner one."
        ),
        (
            "prompt.unsqueeze(1).expand(Q, G, -1) has an axis for the answers. Outside of the mask"
            " use torch.where(mask, …, 0.0); the divisor of an answer is mask.sum(-1)."
        ),
        (
            "The objective is the mean over answers of Σ_t mask · (min(ρA, clip(ρ)A) − .04·k3) /"
            " |o|, with log r = ref_log_prob − log_prob in k3. Its negative is the loss."
        ),
    ],
)


def test_ratio(attempt, *, stale, truth):
    generator = torch.Generator().manual_seed(8)
    # after the end of an answer the numbers are arbitrary
    junk = torch.randn(2, *stale.mask.shape, generator=generator, dtype=torch.float64)
    now = torch.where(stale.mask, stale.outcomes.log_prob[0], junk[0])
    then = torch.where(stale.mask, stale.outcomes.old[0], junk[1])
    got = attempt(now, then, stale.mask)
    if not isinstance(got, torch.Tensor) or got.shape != truth.shape:
        return (
            f"for log-probabilities [5220, 3] it gives {tuple(getattr(got, 'shape', ()))}; one"
            " number per answer is wanted, [5220]"
        )
    worst = int((got - truth).abs().argmax())
    if abs(float(got[worst] - truth[worst])) > 1e-9 * float(truth[worst]):
        shown = decode(stale.tokens[worst].tolist()) or "(nothing)"
        return (
            f"for the answer «{shown}» it gives {float(got[worst]):.3g}; its probability has"
            f" changed by the factor {float(truth[worst]):.3g}"
        )
    total = float((stale.outcomes.old[0].sum(-1).exp() * got).sum())
    return (
        None
        if abs(total - 1) < 1e-9
        else f"under π_old the ratios average to {total:.3g}; they must to 1"
    )


def solve_ratio(now, old, mask):
    return torch.where(mask, now - old, 0.0).sum(-1).exp()


RATIO = Exercise(
    "ratio",
    "Write the ratio of whole answers from the tokens' log-probabilities. After the end of an"
    " answer (mask False) the numbers are arbitrary.",
    test=test_ratio,
    solution=solve_ratio,
    wrong=[
        lambda now, old, mask: (now - old).sum(-1).exp(),
        lambda now, old, mask: (torch.where(mask, now - old, 0.0).sum(-1) / mask.sum(-1)).exp(),
        lambda now, old, mask: torch.where(mask, (now - old).exp(), 0.0).sum(-1) / mask.sum(-1),
    ],
    hints=[
        "A product of ratios is a sum of differences of logarithms.",
        "Set what comes after the end to 0 before you sum: torch.where(mask, …, 0.0).",
        "exp of the sum over the last axis of where(mask, now − old, 0).",
    ],
)
