"""An estimator looking at outcomes: its coefficients on any groups of them, and which outcomes it
cannot tell apart.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from course.errors import CourseError, require
from course.estimator import Estimator, first_chosen
from course.exact.outcomes import DISTS, PER_SAMPLE, Outcomes, sampling_probability
from course.rollout import Policy, Rollout

LARGEST = 40_000_000  # cells above which a request is refused: several seconds


def refuse_above_largest(cells: int, what: str) -> None:
    """Raise `CourseError` where there is too much to list; `what` names it with numbers."""
    if cells > LARGEST:
        raise CourseError(
            f"microscope: got {what}, {cells:,} cells to compute; allowed is {LARGEST:,}: fewer"
            " outcomes, samples or prompts"
        )


class Seen(NamedTuple):
    """What an estimator makes of M batches."""

    coefficient: Tensor  # [M, Q, G, P] the derivative of its objective by each column of a sample
    gain: Tensor  # [M, Q, G] what each sample adds to its objective
    value: Tensor  # [M] its objective


class Moments(NamedTuple):
    """What every way of listing finds."""

    coefficient: Tensor  # [Q, K, P] expected coefficient of each column
    covariance: Tensor | None  # [D, D] of the gradient of a batch
    value: float  # the objective's expected value


class View:
    """Outcomes as tables of rows [Q·K, ...], and an estimator that is asked for its coefficients on
    any groups of them.

    A column is whatever ĝ is linear in, P per sample: T scores and, where the estimator uses
    `log_dist`, T·V scores of it.

    `prompt` None looks at all prompts. A number looks at that prompt's samples alone, and all
    shapes here have Q = 1; the other prompts are there (a mean over Q prompts stays one), each with
    one and the same outcome. That is right where no part looks across them.
    """

    def __init__(self, estimator: Estimator, outcomes: Outcomes, prompt: int | None = None) -> None:
        self.estimator, self.outcomes, self.prompt = estimator, outcomes, prompt
        everything, self.kinds, self.tokens = outcomes.reward.shape
        self.width = everything  # prompts that are computed, looked at or not
        self.shown = slice(None) if prompt is None else slice(prompt, prompt + 1)
        probability = sampling_probability(outcomes)
        self.probability = probability[self.shown]
        self.prompts = len(self.probability)
        # what never happens is never listed
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
        """P, found by asking for one group."""
        happens = sampling_probability(self.outcomes) > 0
        longest = (self.outcomes.mask.sum(-1) * happens).argmax(-1)[self.shown]
        example = longest[None, :, None].expand(1, self.prompts, 2)
        return self.ask(example).coefficient.shape[-1]

    @property
    def listed_only(self) -> bool:
        """Whether nothing is known of what it looks at: a class derived from `Estimator` may
        compute anything, so that all its batches are listed.
        """
        return type(self.estimator) is not Estimator

    @property
    def may_lump(self) -> bool:
        """Whether samples of one prompt are looked at, by an estimator whose parts say how."""
        return self.prompts == 1 and not self.listed_only

    def place(self, index: Tensor) -> Tensor:
        """[M, Q, G] numbers of outcomes within their prompt → within all that are looked at."""
        return index + self._first_row[: self.prompts]

    def rollout(self, index: Tensor) -> Rollout:
        """The groups `index` [M, Q, G], numbers of outcomes within their prompt, as M runs of one
        rollout of all prompts.
        """
        return self._rollout(self._take(index))

    def _take(self, index: Tensor) -> Tensor:
        """[M, Q, G] → rows of the tables [M, all prompts, G]."""
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
        """What the estimator makes of the groups `index` [M, Q, G]: each a run that goes through
        the very same `freeze` and `objective` as in training.
        """
        take = self._take(index)
        frozen = self.estimator.freeze(self._rollout(take))
        by = {"log_prob": self.rows["log_prob"][take]}
        if "log_dist" in self.rows:
            by["log_dist"] = self.rows["log_dist"][take]
        if not self.listed_only:  # objective = Σ weight · gain, and so gain is a derivative, too
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
        coefficient = found["log_prob"]
        if coefficient is None:
            coefficient = torch.zeros_like(leaves["log_prob"])
        if (by_dist := found.get("log_dist")) is not None:
            self.uses_dist = True
            coefficient = torch.cat([coefficient, by_dist.flatten(3)], -1)
        gain = torch.zeros_like(coefficient[..., 0])
        if (by_weight := found.get("weight")) is not None:
            weight = leaves["weight"].detach()
            gain = torch.where(weight != 0, weight * by_weight, 0.0).sum(-1)
        return Seen(coefficient[:, self.shown], gain[:, self.shown], objective.detach())

    def scores(self) -> Tensor:
        """[Q, K, P, D] the gradient of each column with respect to the parameters."""
        score = self.outcomes.score[self.shown]
        if not self.uses_dist:
            return score
        assert self.outcomes.log_dist_score is not None
        by_dist = self.outcomes.log_dist_score[self.shown]
        by_dist = by_dist.expand(-1, self.kinds, self.tokens, -1, -1)
        return torch.cat([score, by_dist.flatten(2, 3)], 2)

    # ------------------------------------------------------------------ what is looked at

    def looks_across_prompts(self) -> bool:
        """Whether what happens at one prompt may change what is made of another's samples.

        A part of scope "batch" sees nothing where all that it reads is the same in every outcome.
        """
        keys = None if self.listed_only else self._keys("batch")
        return keys is None or bool((keys != keys[:1]).any())

    def classes(self) -> Tensor:
        """[n] class of each outcome that can happen at the one prompt: alike where no part can tell
        them apart as others of a group.
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
        return torch.unique(keys, dim=0, return_inverse=True)[1]

    def _keys(self, *scopes: str) -> Tensor | None:
        """[n, ...] what parts of these scopes read of each outcome that can happen; None where one
        of them may read anything.
        """
        every = torch.arange(self.kinds, device=self._idle.device) + self._first_row
        found = Keys(self.estimator, self._rollout(every.unsqueeze(0))).of(*scopes)
        if found is None:
            return None
        shape = (*every.shape, -1)
        table = [key.double().reshape(shape) for key in (torch.zeros_like(every), *found)]
        return torch.cat(table, -1)[self.shown][self.probability > 0]


class Keys:
    """What the parts of an estimator read of other samples, as `scope` and `reads` declare it, in
    numbers: samples with equal numbers are alike to them.

    `rollout` holds every outcome once, [1, Q, K, T]; so do the tensors found here, [1, Q, K, ...].
    """

    def __init__(self, estimator: Estimator, rollout: Rollout) -> None:
        self.estimator, self.rollout = estimator, rollout

    def of(self, *scopes: str) -> list[Tensor] | None:
        """All that parts of these scopes read; None where that may be anything."""
        found: list[Tensor] = []
        for name, part in self.estimator.parts.items():
            for piece in part.pieces:
                if piece.scope in scopes:
                    keys = self._read(name) if piece is part else None
                    if keys is None:
                        return None
                    found += keys
        return found

    def _read(self, name: str) -> list[Tensor] | None:
        """What the part at this place reads."""
        part = self.estimator.parts[name]
        if name not in ("baseline", "scale", "aggregation", "sample_filter") or part.reads is None:
            return None  # what a far-sighted ratio or surrogate makes of others is not followed up
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
        return [tensor] if by_sample else []  # the rest is the same whatever happens

    def _near(self, *names: str) -> bool:
        """Whether these parts look no further than the sample itself."""
        parts = [self.estimator.parts[name] for name in names]
        return all(piece.scope in ("token", "sample") for part in parts for piece in part.pieces)

    def _credited(self, word: str) -> list[Tensor] | None:
        """The returns, or the advantages of chosen tokens before they are scaled."""
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
        else:  # it follows from what the baseline reads
            base = self._read("baseline")
        return None if base is None else [torch.where(mask, credit, 0.0), mask, *base]

    def _mask(self, word: str, left: bool) -> list[Tensor] | None:
        """The mask, or how much of it is asked for; `left` by the filter or as it was sampled."""
        mask = self.rollout.mask
        beside: list[Tensor] | None = []
        if left and self._near("sample_filter"):
            keep = self.estimator.sample_filter(self.rollout)
            mask = mask if keep is None else mask & keep.unsqueeze(-1)
        elif left:  # whom it drops follows from what the filter reads
            beside = self._read("sample_filter")
        shown = {"mask": mask, "length": mask.sum(-1), "empty": mask.any(-1)}[word]
        return None if beside is None else [shown, *beside]
