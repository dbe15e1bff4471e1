"""A reward model learned from preferences: Bradley–Terry on pairs of completions.

Where no program can check an answer, annotators say which of two completions they prefer. A
transformer with a scalar head is fitted to what they say, and its score is then the reward that a
policy maximises. Here the annotators are programs too: they know the true ("gold") reward, and they
may be noisy, biased towards long answers, or inconsistent. So the learned reward can be compared
with the gold one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from course.arguments import typed
from course.errors import require, require_number
from course.train.noise import Noise
from course.train.optim import Adam, Closures
from tinylm.evaluate import require_rows
from tinylm.model import Transformer
from tinylm.problem import ask
from tinylm.rewards import ExactMatch, Reward, length
from tinylm.sampling import sample
from tinylm.tasks import Task


@typed
def bradley_terry_loss(win: Tensor, lose: Tensor) -> Tensor:
    """−log σ(r_w − r_l), averaged over the pairs: scores [..., N] and [..., N] → [...], in nats.

    It is the cross-entropy of the model P(w ≻ l) = e^{r_w} / (e^{r_w} + e^{r_l}), and finite for
    any finite scores. Raises `CourseError` if the shapes differ or there is no pair. Source:
    Bradley & Terry 1952; Ouyang et al. 2022 (InstructGPT), eq. 1. eq:preference-loss
    """
    require(win.dim() > 0 and win.shape[-1] > 0, "win", tuple(win.shape), "at least one pair")
    require(win.shape == lose.shape, "lose", tuple(lose.shape), f"the shape {tuple(win.shape)}")
    return -logsigmoid(win - lose).mean(-1)


@typed
@dataclass(frozen=True)
class Annotator:
    """Says which of two completions it prefers; raises `CourseError` for a wrong setting.

    The log-odds that the first one wins are

        sharpness·(gold₁ − gold₂) + length_bias·(|o₁| − |o₂|) + first_bias,

    and then a share `noise` of all votes is turned around. With `noise` = `first_bias` = 0 this is
    a Bradley–Terry model of the score sharpness·gold + length_bias·|o|, so a reward model can learn
    it without error; it learns the length as well. `first_bias` makes an annotator inconsistent:
    shown the same two answers in the other order, it may vote for the other answer. No score per
    answer can say that.
    """

    gold: Reward = ExactMatch()  # the reward that is really wanted
    sharpness: float = 4.0  # log-odds per unit of gold; 0: votes by a coin
    length_bias: float = 0.0  # log-odds per token by which an answer is longer
    first_bias: float = 0.0  # log-odds for the answer that is shown first
    noise: float = 0.0  # share of the votes that are turned around

    def __post_init__(self) -> None:
        for name in ("sharpness", "length_bias", "first_bias"):
            require_number(f"annotator.{name}", getattr(self, name), "a finite number")
        allowed = "a share from 0 to ½"
        require_number("annotator.noise", self.noise, allowed, at_least=0, at_most=0.5)

    def score(self, tokens: Tensor, question: Tensor, task: Task) -> Tensor:
        """What the votes depend on, but for `first_bias`: completions [..., T] and their questions'
        row numbers [...] → sharpness·gold + length_bias·|o|, [...].
        """
        gold = self.gold(tokens, question, task)
        return self.sharpness * gold + self.length_bias * length(tokens)

    def prefers_first(self, first: Tensor, second: Tensor, question: Tensor, task: Task) -> Tensor:
        """The probability that it votes for `first`: two completions [..., T] → [...]."""
        ahead = self.score(first, question, task) - self.score(second, question, task)
        return self.noise + (1 - 2 * self.noise) * torch.sigmoid(ahead + self.first_bias)


@dataclass(frozen=True)
class Pairs:
    """N votes: `win` was preferred to `lose`. `prompt` [*runs, N, P]; the others [*runs, N, T]."""

    prompt: Tensor
    win: Tensor
    lose: Tensor

    def __len__(self) -> int:
        return self.prompt.shape[-2]

    @property
    def differ(self) -> Tensor:
        """[*runs, N] bool: False where both completions are the same, so that a vote says nothing.

        Such a pair adds log 2 to the loss whatever the model, and no gradient.
        """
        return (self.win != self.lose).any(-1)

    def take(self, index: Tensor) -> Pairs:
        """The pairs with the numbers `index` [*runs, B]."""

        def rows(table: Tensor) -> Tensor:
            where = index.unsqueeze(-1).expand(*index.shape, table.shape[-1])
            return table.gather(-2, where)

        return Pairs(rows(self.prompt), rows(self.win), rows(self.lose))

    def first(self, count: int) -> Pairs:
        """The first `count` of them. Raises `CourseError` if there are fewer."""
        allowed = f"1 to {len(self)}, the pairs there are"
        require_number("count", count, allowed, at_least=1, at_most=len(self), whole=True)
        prompt, win, lose = (t[..., :count, :] for t in (self.prompt, self.win, self.lose))
        return Pairs(prompt, win, lose)


@typed
@torch.no_grad()
def sample_pairs(
    policy: Transformer,
    task: Task,
    annotator: Annotator,
    noise: Noise,
    count: int,
    *,
    questions: Tensor | None = None,
    temperature: float = 1.0,
) -> Pairs:
    """Two completions of each of `count` questions by the policy, with the annotator's vote.

    The questions are drawn from the rows `questions` [N] of the task (None: those for training).
    Raises `CourseError` if `count` is not a whole number > 0, or `questions` are no rows.
    """
    require_number("count", count, "a whole number > 0", above=0, whole=True)
    rows = task.train if questions is None else questions
    require_rows(rows, task, 1)
    question = ask(task, noise, count, rows)  # [*runs, N]
    prompt = task.prompt[question]
    first, second = sample(
        policy, prompt, 2, task.limit, noise, temperature=temperature
    ).tokens.unbind(-2)
    chance = annotator.prefers_first(first, second, question, task)
    prefers = (noise.uniform(count) < chance).unsqueeze(-1)
    return Pairs(prompt, torch.where(prefers, first, second), torch.where(prefers, second, first))


@typed
class RewardModel:
    """A transformer with a scalar head: r_φ(q, o) is its value at the last token of o.

    It judges whole answers, where a critic has a value before each token and predicts what a policy
    will get. `network` is a transformer with a value head. Its scores are known only up to a
    constant for each question: the loss compares answers to the same question. Raises `CourseError`
    for a network without a value head.
    """

    def __init__(self, network: Transformer) -> None:
        require(
            network.settings.value, "network.settings.value", False, "a model with a value head"
        )
        self.network, self.runs = network, network.runs

    @classmethod
    def on(cls, policy: Transformer) -> RewardModel:
        """A new reward model on a copy of a policy's trunk; every score is 0 before it is fitted.

        So InstructGPT starts its reward model: from the supervised model, with a new head.
        """
        network = policy.copy()
        network.settings = replace(policy.settings, value=True)
        head = network.weights["head"]  # [*runs, d, V]
        network.weights["value"] = torch.zeros_like(head[..., :1])
        network.weights = {name: w.requires_grad_() for name, w in network.weights.items()}
        return cls(network)

    @property
    def parameters(self) -> Sequence[Tensor]:
        """The weights that the scores depend on: all but the head over the vocabulary."""
        return [w for name, w in self.network.weights.items() if name != "head"]

    def __call__(self, prompt: Tensor, tokens: Tensor) -> Tensor:
        """The scores: prompts [*runs, ..., P] and completions [*runs, ..., T] → [*runs, ...].

        The model reads the completion's end token, or the last token of a truncated one. A model
        without run axes scores completions with any axes.
        """
        states = self.network.hidden(torch.cat([prompt, tokens], -1))  # [*runs, ..., P + T, d]
        last = prompt.shape[-1] + length(tokens) - 1  # [*runs, ...]
        where = last[..., None, None].expand(*last.shape, 1, states.shape[-1])
        return self.network.values(states.gather(-2, where)).squeeze(-1)

    def margin(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """The scores of the winners and of the losers, each [*runs, N]."""
        both = torch.cat([pairs.win, pairs.lose], -2)  # [*runs, 2N, T]
        win, lose = self(torch.cat([pairs.prompt, pairs.prompt], -2), both).chunk(2, -1)
        return win, lose


@typed
def fit(
    model: RewardModel,
    pairs: Pairs,
    noise: Noise,
    *,
    steps: int = 600,
    batch: int = 64,
    lr: float = 3e-3,
) -> Tensor:
    """Fit a reward model to votes, in place → the loss before each step [steps, *runs], in nats.

    Adam on batches of pairs that are drawn with replacement. The loss starts at log 2 = .693 on a
    new model. Runs do not influence each other. Raises `CourseError` for a wrong setting.
    """
    for name, number in (("steps", steps), ("batch", batch)):
        require_number(name, number, "a whole number > 0", above=0, whole=True)
    optimizer, losses = Adam(lr), []
    count = len(pairs)
    for _ in range(steps):
        index = (noise.uniform(batch) * count).long().clamp(max=count - 1)  # [*runs, B]
        loss = bradley_terry_loss(*model.margin(pairs.take(index)))
        gradients = torch.autograd.grad(loss.sum(), model.parameters)
        optimizer.step(gradients, _closures(model.parameters))
        losses.append(loss.detach())
    return torch.stack(losses)


def _closures(parameters: Sequence[Tensor]) -> Closures:
    """What Adam needs besides the gradients: the parameters alone."""

    def none(*_: Tensor) -> Tensor:
        raise NotImplementedError

    return Closures(parameters, loss=none, log_dist=none, mean_kl=none, old_log_dist=None)


@typed
@torch.no_grad()
def preference_accuracy(model: RewardModel, pairs: Pairs, *, batch: int = 1024) -> Tensor:
    """The share of votes on which the model agrees, [*runs]; equal scores count one half.

    Pairs of two equal completions are left out; NaN for a run that has no others.
    """
    require_number("batch", batch, "a whole number > 0", above=0, whole=True)
    agrees = []
    whole = pairs.prompt, pairs.win, pairs.lose
    for part in zip(*(each.split(batch, -2) for each in whole), strict=True):
        win, lose = model.margin(Pairs(*part))
        agrees.append((win > lose).float() + 0.5 * (win == lose).float())
    counts = pairs.differ.float()
    return (torch.cat(agrees, -1) * counts).sum(-1) / counts.sum(-1)


@typed
@dataclass(frozen=True, kw_only=True)
class LearnedReward(Reward):
    """`weight` times the score of a reward model: a proxy for the reward that is wanted."""

    model: RewardModel

    @torch.no_grad()
    def __call__(self, completion: Tensor, question: Tensor, task: Task) -> Tensor:
        return self.weight * self.model(task.prompt[question], completion)


__all__ = [
    "Annotator",
    "LearnedReward",
    "Pairs",
    "RewardModel",
    "bradley_terry_loss",
    "fit",
    "preference_accuracy",
    "sample_pairs",
]
