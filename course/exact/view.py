"""An estimator applied to outcomes: its coefficients on groups, and which outcomes it merges."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from course.errors import CourseError, require
from course.estimator import Estimator, first_chosen
from course.exact.outcomes import DISTS, PER_SAMPLE, Outcomes, sampling_probability
from course.parts import TokenFilter
from course.rollout import Policy, Rollout

LARGEST = 40_000_000  # the most cells of a request, which take several seconds


def refuse_above_largest(cells: int, what: str) -> None:
    """Raise `CourseError` if there are too many cells; `what` describes them, with numbers."""
    if cells > LARGEST:
        raise CourseError(
            f"microscope: got {what}, {cells:,} cells to compute; allowed is {LARGEST:,}: fewer"
            " outcomes, samples or prompts"
        )


class Seen(NamedTuple):
    """An estimator's results on M batches."""

    coefficient: Tensor  # [M, Q, G, P] derivative of the objective with respect to each column
    gain: Tensor  # [M, Q, G] what each sample adds to the objective
    value: Tensor  # [M] the objective


class Moments(NamedTuple):
    """The result of every method of enumeration."""

    coefficient: Tensor  # [Q, K, P] expected coefficient of each column
    covariance: Tensor | None  # [D, D] of the gradient of a batch
    value: float  # the objective's expected value


class View:
    """An estimator with the outcomes it is applied to, stored as tables of rows [Q·K, ...].

    ĝ is linear in P columns per sample: the T scores and, if the estimator uses `log_dist`, its T·V
    scores.

    `prompt` None looks at all prompts. A number looks at that prompt only, and all shapes here have
    Q = 1. The other prompts still belong to the batch, so that a mean over Q prompts stays one, but
    each has one fixed outcome. This is correct only if no part looks across prompts.
    """

    def __init__(self, estimator: Estimator, outcomes: Outcomes, prompt: int | None = None) -> None:
        self.estimator, self.outcomes, self.prompt = estimator, outcomes, prompt
        everything, self.kinds, self.tokens = outcomes.reward.shape
        self.width = everything  # the number of prompts in the batch, looked at or not
        self.shown = slice(None) if prompt is None else slice(prompt, prompt + 1)
        probability = sampling_probability(outcomes)
        self.probability = probability[self.shown]
        self.prompts = len(self.probability)
        # outcomes of probability 0 are never listed
        self.alive = [row.nonzero().squeeze(-1) for row in self.probability > 0]
        self._idle = probability.argmax(-1)  # [all prompts] the outcome of those not looked at
        device = outcomes.reward.device
        self._first_row = torch.arange(everything, device=device).unsqueeze(-1) * self.kinds
        self.rows = {
            name: tensor.flatten(0, 1)
            for name in PER_SAMPLE
            if (tensor := getattr(outcomes, name)) is not None
        }
        for name in DISTS:
            if (tensor := getattr(outcomes, name)) is not None:
                self.rows[name] = tensor.expand(-1, self.kinds, self.tokens, -1).flatten(0, 1)
        self.uses_dist = False

    @cached_property
    def columns(self) -> int:
        """P, the number of columns, measured on one group."""
        happens = sampling_probability(self.outcomes) > 0
        longest = (self.outcomes.mask.sum(-1) * happens).argmax(-1)[self.shown]
        size = max(2, *(part.least_group for part in self.estimator.parts.values()))
        example = longest[None, :, None].expand(1, self.prompts, size)
        return self.ask(example).coefficient.shape[-1]

    @property
    def listed_only(self) -> bool:
        """Whether all batches must be listed: a subclass of `Estimator` may compute anything."""
        return type(self.estimator) is not Estimator

    @property
    def may_lump(self) -> bool:
        """Whether lumping is possible: one prompt, and parts that declare what they look at."""
        return self.prompts == 1 and not self.listed_only

    def place(self, index: Tensor) -> Tensor:
        """Outcome numbers [M, Q, G] within their prompt → numbers among all prompts looked at."""
        return index + self._first_row[: self.prompts]

    def rollout(self, index: Tensor) -> Rollout:
        """The groups `index` [M, Q, G] of outcome numbers, as a rollout of M runs."""
        return self._rollout(self._take(index))

    def _take(self, index: Tensor) -> Tensor:
        """Outcome numbers [M, Q, G] → rows of the tables [M, all prompts, G]."""
        if self.prompt is not None:
            idle = self._idle[:, None].expand(len(index), -1, index.shape[-1]).clone()
            idle[:, self.shown] = index
            index = idle
        return index + self._first_row

    def _rollout(self, take: Tensor) -> Rollout:
        greedy = self.outcomes.greedy_reward
        chosen = {
            name: rows[take]
            for name, rows in self.rows.items()
            if name not in ("log_prob", "old_log_prob", "log_dist")
        }
        return Rollout(
            log_prob=self.rows["old_log_prob" if "old_log_prob" in self.rows else "log_prob"][take],
            greedy_reward=None if greedy is None else greedy.expand(len(take), -1),
            limit=self.outcomes.limit,
            **chosen,
        )

    def ask(self, index: Tensor) -> Seen:
        """The estimator's results on the groups `index` [M, Q, G].

        Each group is a run that passes through the `freeze` and `objective` of training.
        """
        take = self._take(index)
        frozen = self.estimator.freeze(self._rollout(take))
        by = {"log_prob": self.rows["log_prob"][take]}
        if "log_dist" in self.rows:
            by["log_dist"] = self.rows["log_dist"][take]
        if not self.listed_only:  # objective = Σ weight · gain, so gain = ∂objective/∂weight
            by["weight"] = frozen.weight.clone()
        leaves = {name: tensor.requires_grad_() for name, tensor in by.items()}
        with torch.enable_grad():
            policy = Policy(leaves["log_prob"], leaves.get("log_dist"), frozen.rollout.value)
            if "weight" in leaves:
                frozen = replace(frozen, weight=leaves["weight"])
            objective = self.estimator.objective(policy, frozen)
            found = dict(
                zip(
                    leaves,
                    torch.autograd.grad(objective.sum(), [*leaves.values()], allow_unused=True),
                    strict=True,
                )
            )
        coefficient = found["log_prob"]  # ∂objective/∂log π of each token, [M, Q, G, T]
        if coefficient is None:
            coefficient = torch.zeros_like(leaves["log_prob"])
        if (by_dist := found.get("log_dist")) is not None:
            self.uses_dist = True
            coefficient = torch.cat([coefficient, by_dist.flatten(3)], -1)  # [M, Q, G, T + T·V]
        gain = torch.zeros_like(coefficient[..., 0])
        if (by_weight := found.get("weight")) is not None:
            weight = leaves["weight"].detach()
            gain = torch.where(weight != 0, weight * by_weight, 0.0).sum(-1)
        return Seen(coefficient[:, self.shown], gain[:, self.shown], objective.detach())

    def scores(self) -> Tensor:
        """The gradient of each column with respect to the parameters, [Q, K, P, D]."""
        score = self.outcomes.score[self.shown]
        if not self.uses_dist:
            return score
        assert self.outcomes.log_dist_score is not None
        by_dist = self.outcomes.log_dist_score[self.shown]
        by_dist = by_dist.expand(-1, self.kinds, self.tokens, -1, -1)
        return torch.cat([score, by_dist.flatten(2, 3)], 2)

    # ------------------------------------------------------------------ scope and classes

    def looks_across_prompts(self) -> bool:
        """Whether the outcome at one prompt may change the coefficients at another prompt.

        It cannot if every quantity that parts of scope "batch" read is the same in all outcomes.
        """
        keys = None if self.listed_only else self._keys("batch")
        return keys is None or bool((keys != keys[:1]).any())

    def classes(self) -> Tensor:
        """The class [n] of each possible outcome of the one prompt.

        Two outcomes have the same class if no part can tell them apart as other samples of a group.
        """
        alive = self.alive[0]
        if self.listed_only:
            return torch.arange(len(alive), device=alive.device)
        keys = self._keys("group", "batch")
        if keys is None:
            whole = torch.cat(
                [rows.double().reshape(len(rows), -1) for rows in self.rows.values()], 1
            )
            keys = whole[self.place(alive[None, None]).flatten()]
        label: Tensor = torch.unique(keys, dim=0, return_inverse=True)[1]
        return label

    def _keys(self, *scopes: str) -> Tensor | None:
        """What parts of these scopes read of each possible outcome, [n, ...].

        None if one of the parts may read anything.
        """
        every = torch.arange(self.kinds, device=self._idle.device) + self._first_row
        found = Keys(self.estimator, self._rollout(every.unsqueeze(0))).of(*scopes)
        if found is None:
            return None
        shape = (*every.shape, -1)
        table = [key.double().reshape(shape) for key in (torch.zeros_like(every), *found)]
        return torch.cat(table, -1)[self.shown][self.probability > 0]


class Keys:
    """The quantities that an estimator's parts read of other samples, as they declare them.

    Samples with equal quantities are interchangeable as others of a group. `rollout` holds every
    outcome once, [1, Q, K, T]; so do the tensors found here, [1, Q, K, ...].
    """

    def __init__(self, estimator: Estimator, rollout: Rollout) -> None:
        self.estimator, self.rollout = estimator, rollout

    def of(self, *scopes: str) -> list[Tensor] | None:
        """All that parts of these scopes read; None if that may be anything."""
        found: list[Tensor] = []
        for name, part in self.estimator.parts.items():
            for piece in part.pieces:
                # a method put into the instance is none of its class's, which declares
                altered = bool(vars(piece).keys() - getattr(piece, "__dataclass_fields__", {}))
                if altered or piece.scope in scopes:
                    keys = self._read(name) if piece is part and not altered else None
                    if keys is None:
                        return None
                    found += keys
        return found

    def _read(self, name: str) -> list[Tensor] | None:
        """What the part at this place reads; None if that may be anything."""
        part = self.estimator.parts[name]
        if name not in ("baseline", "scale", "aggregation", "sample_filter") or part.reads is None:
            return None  # a ratio, surrogate or KL that uses other samples is not analysed
        if isinstance(part, TokenFilter):
            return None  # it looks at the policy, which is not a field of the rollout
        found: list[Tensor] = []
        for word in part.reads:
            keys = self._word(name, word)
            if keys is None:
                return None
            found += keys
        return found

    def _word(self, name: str, word: str) -> list[Tensor] | None:
        if word in ("returns", "advantage"):
            return self._credited(word)
        if word in ("mask", "length", "empty"):
            return self._mask(word, left=name == "aggregation")
        part = self.estimator.parts[name]
        require(
            hasattr(self.rollout, word),
            f"{part.short}.reads",
            word,
            "returns, advantage, mask, length, empty or a field of the rollout",
        )
        tensor = getattr(self.rollout, word)
        by_sample = isinstance(tensor, Tensor) and tensor.shape[:3] == self.rollout.reward.shape[:3]
        return [tensor] if by_sample else []  # other fields are the same for all outcomes

    def _near(self, *names: str) -> bool:
        """Whether these parts use no other sample."""
        parts = [self.estimator.parts[name] for name in names]
        return all(piece.scope in ("token", "sample") for part in parts for piece in part.pieces)

    def _credited(self, word: str) -> list[Tensor] | None:
        """The returns, or the advantages of chosen tokens before scaling."""
        if not self._near("kl", "credit"):
            return None
        rollout, mask = self.rollout, self.rollout.mask
        credit = self.estimator.credit(self.estimator.kl.shape_reward(rollout), rollout)
        returns = first_chosen(credit, mask)
        if word == "returns":
            return [returns]
        base: list[Tensor] | None = []
        if self._near("baseline"):
            credit = credit - self.estimator.baseline(returns, rollout)
        else:  # then the baseline is a function of what it reads
            base = self._read("baseline")
        return None if base is None else [torch.where(mask, credit, 0.0), mask, *base]

    def _mask(self, word: str, left: bool) -> list[Tensor] | None:
        """The mask, or its "length" or "empty"; with `left`, after the filter."""
        mask = self.rollout.mask
        beside: list[Tensor] | None = []
        if left and self._near("sample_filter"):
            keep = self.estimator.sample_filter(self.rollout)
            mask = mask if keep is None else mask & keep.unsqueeze(-1)
        elif left:  # then which samples it drops is a function of what the filter reads
            beside = self._read("sample_filter")
        shown = {"mask": mask, "length": mask.sum(-1), "empty": mask.any(-1)}[word]
        return None if beside is None else [shown, *beside]
