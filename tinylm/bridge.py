"""The bridge: a prompt of the language model IS a bandit whose arms are all its completions.

Every completion up to the generation limit is listed and scored in float64, so nothing is sampled:
J, ∇J, and the mean and spread of any estimator's gradient are exact on a real transformer. This is
the only module of `tinylm` that imports `bandits`.

Two things limit what can be listed. The first is the number of completions. With 17 characters and
the end token there are 5,220 completions of at most 3 tokens and 88,741 of at most 4; more than
`LARGEST` raise an error. The second is the number of groups. The other members of a group are
counted in classes of completions that no part of the estimator can tell apart; each part declares
what it looks at. With C classes and K completions, K · C(C + G − 2, G − 1) groups are computed, and
`course.exact` stops at 40 million cells. A group baseline on rewards of 0 or 1 has two classes,
which allows G ≤ 50 at 3 tokens and G ≤ 10 at 4. With a KL term in the reward, every completion has
a different return, so a baseline that compares returns allows only G = 1. The same holds for a part
of your own that does not declare what it looks at, and for a subclass of `Estimator`. A critic's
values are not listed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bandits.environments import Deterministic
from bandits.policies import Softmax
from bandits.problem import Bandit
from course import exact
from course.arguments import typed
from course.errors import require
from course.estimator import Estimator
from course.exact import Microscope, Outcomes
from course.rollout import Policy, Rollout
from tinylm.model import Transformer
from tinylm.rewards import ExactMatch, Reward
from tinylm.sampling import check_sampling, sample
from tinylm.scoring import log_dists
from tinylm.tasks import CHARACTERS, END, PAD, VOCABULARY, Task

LARGEST = 100_000  # most completions that may be listed
ROW = 17  # completions that share one packed sequence when they are scored
CHUNK = 4_000_000  # most weights to copy at a time when every token gets its own gradient
CONTINUE = len(CHARACTERS)  # number of tokens after which a completion continues


@typed
def count(limit: int) -> int:
    """The number of completions of at most `limit` tokens.

    Σ_{t<limit} 17^t of them end with the end token, and 17^limit are truncated.
    eq:number-of-completions
    """
    return sum(CONTINUE**t for t in range(limit + 1))


@typed
def completions(limit: int, device: torch.device | str = "cpu") -> Tensor:
    """Every completion of at most `limit` tokens, [K, limit], with PAD after the end token.

    Shorter completions come first, truncated ones last. Raises `CourseError` if there are more than
    `LARGEST`.
    """
    require(limit >= 1, "limit", limit, "a whole number of tokens ≥ 1")
    require(
        count(limit) <= LARGEST,
        "limit",
        f"{limit} tokens, {count(limit):,} completions",
        f"at most {LARGEST:,} completions",
    )
    tables = []
    for length in range(limit + 1):
        table = torch.full((CONTINUE**length, limit), PAD, device="cpu")
        table[:, :length] = _digits(length)
        if length < limit:
            table[:, length] = END
        tables.append(table)
    return torch.cat(tables).to(device)


def _digits(length: int) -> Tensor:
    """All prefixes of `length` tokens, [17^length, length]: prefix n is n written in base 17."""
    number = torch.arange(CONTINUE**length, device="cpu").unsqueeze(-1)
    return number // CONTINUE ** torch.arange(length - 1, -1, -1, device="cpu") % CONTINUE


@typed
class Bridge:
    """One prompt of a model as a bandit: K completions, their probabilities, rewards and scores.

    `question` is the prompt's row in `task`. `model` is the current policy, `old` the sampling
    policy (None: the model itself), and `reference` the reference policy of a KL penalty. All three
    are copied to float64 as they are now. The completions are in `tokens` [K, T], `mask` [K, T],
    `truncated` [K] and `reward` [K]. D is the number of the model's weights; a gradient is one
    vector [D] in the order of `model.parameters`. `limit` is T (default: the task's). Raises
    `CourseError` for a model with run axes, for weights that are not finite, or if there are too
    many completions to list.
    """

    def __init__(
        self,
        model: Transformer,
        task: Task,
        question: int,
        *,
        old: Transformer | None = None,
        reference: Transformer | None = None,
        reward: Reward | None = None,
        temperature: float = 1.0,
        limit: int | None = None,
    ) -> None:
        for name, each in (("model", model), ("old", old), ("reference", reference)):
            require(
                each is None or not each.runs,
                f"{name}.runs",
                None if each is None else tuple(each.runs),
                "(): one model",
            )
            if each is not None:
                each.check_finite(name)
        require(
            0 <= question < len(task.prompt),
            "question",
            question,
            f"a row of the task, 0 to {len(task.prompt) - 1}",
        )
        check_sampling(temperature)
        device = task.prompt.device
        self.limit = task.limit if limit is None else limit
        self.tokens = completions(self.limit, device)
        room = model.settings.context - task.prompt.shape[-1]
        require(
            self.limit <= room, "limit", self.limit, f"at most {room}: the context less the prompt"
        )
        self.model = _double(model, True)
        self.old = None if old is None else _double(old)
        self.reference = None if reference is None else _double(reference)
        self.temperature, self.question = temperature, question
        self.prompt = task.prompt[question]
        self.mask = self.tokens != PAD
        self.truncated = (self.tokens[:, -1] != PAD) & (self.tokens[:, -1] != END)
        self._task, self._reward = task, ExactMatch() if reward is None else reward
        self.reward = self._rewards(self.tokens)
        # node [K, T]: the number of each completion's prefix of t tokens among all prefixes of t
        place = [torch.zeros(len(self.tokens), dtype=torch.long, device=device)]
        for t in range(self.limit - 1):
            place.append(place[-1] * CONTINUE + self.tokens[:, t].clamp(max=CONTINUE - 1))
        self.node = torch.where(self.mask, torch.stack(place, -1), 0)
        self._choice = torch.where(self.mask, self.tokens, 0)

    # ------------------------------------------------------------------ what can happen

    @cached_property
    def outcomes(self) -> Outcomes:
        """Every completion as an outcome (Q = 1), with the log-probability of each of its tokens.

        The outcomes hold no scores (D = 0); `pull_back` computes gradients instead.
        """
        return self._outcomes(False)

    @cached_property
    def arms(self) -> Outcomes:
        """The same completions as arms of a bandit.

        The first token stands for the choice and carries the log-probability of the whole answer.
        The later tokens have probability 1, so that answers keep their lengths. What the bandit
        computes on these arms is exact for the language model.
        """
        first = torch.zeros_like(self.mask)
        first[:, 0] = True

        def whole(log_prob: Tensor) -> Tensor:
            return torch.where(first, log_prob.sum(-1, keepdim=True), 0.0)

        listed = self.outcomes
        optional = {
            name: tensor
            for name in ("old_log_prob", "ref_log_prob")
            if (tensor := getattr(listed, name)) is not None
        }
        changes: dict[str, Any] = {name: whole(tensor) for name, tensor in optional.items()}
        return replace(listed, log_prob=whole(listed.log_prob), **changes)

    @cached_property
    def log_prob(self) -> Tensor:
        """The log-probability [K] of each whole completion under the current policy, in nats.

        eq:answer-log-prob
        """
        return self.outcomes.log_prob[0].sum(-1)

    @property
    def objective(self) -> float:
        """J = Σ_k p_k R_k. For a reward of 0 or 1 it is the success probability on this prompt.

        eq:prompt-objective
        """
        return exact.objective(self.outcomes)

    @cached_property
    def gradient(self) -> Tensor:
        """The true gradient ∇J [D], from one backward pass."""
        return self.pull_back(exact.gradient_coefficient(self.outcomes))

    def _outcomes(self, log_dist: bool) -> Outcomes:
        now, old, ref = self._current, self._frozen(self.old), self._frozen(self.reference)
        last = self.mask & (self.mask.cumsum(-1) == self.mask.sum(-1, keepdim=True))
        best = sample(self.old or self.model, self.prompt[None], 1, self.limit, None).tokens[0]
        named = {"old": old, "ref": ref}
        optional = {
            f"{name}_log_prob": self._chosen(tables)
            for name, tables in named.items()
            if tables is not None
        }
        if log_dist:
            named = {"log_dist": now, "old_log_dist": old or now, "ref_log_dist": ref}
            optional |= {
                name: self._spread_out(tables)
                for name, tables in named.items()
                if tables is not None
            }
        return Outcomes.of_sequences(
            self._chosen(now),
            (self.reward.unsqueeze(-1) * last)[None],
            self.mask[None],
            truncated=self.truncated[None],
            greedy_reward=self._rewards(best),
            limit=self.limit,
            **optional,
        )

    def rollout(self, choice: Tensor) -> Rollout:
        """The completions with numbers `choice` [G], as if they had been sampled as one group."""
        listed = self.outcomes
        ref, cut = listed.ref_log_prob, listed.truncated
        return Rollout(
            reward=listed.reward[:, choice],
            log_prob=listed.old[:, choice],
            mask=listed.mask[:, choice],
            ref_log_prob=None if ref is None else ref[:, choice],
            truncated=None if cut is None else cut[:, choice],
            greedy_reward=listed.greedy_reward,
            limit=self.limit,
            data={"choice": choice[None]},
        )

    def policy(self, rollout: Rollout) -> Policy:
        """log π of a group made by `rollout`, with gradients with respect to `model.parameters`."""
        return Policy(self._chosen(self._tables(self.model))[:, rollout.data["choice"][0]])

    # ------------------------------------------------------------------ the microscope

    def pull_back(self, coefficient: Tensor, dist_coefficient: Tensor | None = None) -> Tensor:
        """Σ coefficient · ∇log π (+ Σ dist_coefficient · ∇log_dist) as a vector [D].

        `coefficient` is [1, K, T], `dist_coefficient` [1, K, T, V]. It takes one backward pass.
        eq:pull-back
        """
        tables = self._current
        weights = []
        for t, table in enumerate(tables):
            flat = torch.zeros(table.numel(), dtype=torch.float64, device=table.device)
            flat.index_add_(
                0,
                self.node[:, t] * VOCABULARY + self._choice[:, t],
                torch.where(self.mask[:, t], coefficient[0, :, t], 0.0),
            )
            weight = flat.view_as(table)
            if dist_coefficient is not None:
                own = torch.where(self.mask[:, t, None], dist_coefficient[0, :, t], 0.0)
                weight = weight.index_add(0, self.node[:, t], own)
            weights.append(weight)
        return _flat(torch.autograd.grad(tables, self.model.parameters, weights, retain_graph=True))

    def microscope(self, estimator: Estimator, group: float, *, spread: bool = True) -> Microscope:
        """Exact E[ĝ], bias, cosine and spread of the gradient from one group of completions.

        The spread is a standard deviation, computed only with `spread`. `group` = math.inf is the
        limit of large groups and has no spread. The spread is NaN if the estimator uses the full
        distribution of every token (`ExactKL`, an entropy bonus).
        """
        log_dist = "policy.log_dist" in estimator.needs
        outcomes = self._outcomes(True) if log_dist else self.outcomes
        seen = exact.microscope(estimator, outcomes, group, covariance=False)
        expected = self.pull_back(seen.coefficient, seen.dist_coefficient)
        seen = replace(seen, gradient=self.gradient, expected=expected)
        if log_dist or not spread or group == math.inf:
            return seen
        among = exact.among_others(estimator, outcomes, int(group))
        return replace(seen, trace=exact.total_variance(among, self._inner, self.token_products))

    def bandit_microscope(
        self, estimator: Estimator, group: float, *, spread: bool = True
    ) -> Microscope:
        """The microscope on a bandit with the language model's probabilities, rewards and lengths.

        It has K arms with one logit each, so D = K.
        """
        p = self.log_prob.exp()

        def scores(rows: Tensor) -> Tensor:  # Σ_k row_k (e_k − p)
            return rows[..., 0] - rows[..., 0].sum(-1, keepdim=True) * p

        own = torch.zeros(*self.mask.shape, self.limit, dtype=p.dtype, device=p.device)
        own[:, 0, 0] = 1 - 2 * p + p.square().sum()
        seen = exact.microscope(estimator, self.arms, group, covariance=False)
        truth = scores(exact.gradient_coefficient(self.arms)[0])
        seen = replace(seen, gradient=truth, expected=scores(seen.coefficient[0]))
        if not spread or group == math.inf:
            return seen
        among = exact.among_others(estimator, self.arms, int(group))
        return replace(
            seen, trace=exact.total_variance(among, lambda rows: scores(rows) @ scores(rows).T, own)
        )

    def bandit(self, group: int) -> Bandit:
        """The prompt as a bandit that can be sampled and trained.

        Its policy is a softmax over K logits that start at the language model's log-probabilities.
        """
        environment = Deterministic(self.reward[None], lengths=self.mask.sum(-1))
        sampling = self.outcomes.old[0].sum(-1)
        reference = self.outcomes.ref_log_prob
        return Bandit(
            environment,
            Softmax(sampling[None]),
            group,
            reference=None if reference is None else reference.sum(-1),
        )

    @cached_property
    def token_products(self) -> Tensor:
        """Inner products [K, T, T] of the scores of each completion's tokens, 0 at padding.

        Every token in the tree of prefixes gets its own gradient: the model is copied along a run
        axis, one copy per prefix. The gradients of all but the last depth are kept in memory, which
        takes (1 + 17 + … + 17^(T−2))·17·D numbers.
        """
        found = torch.zeros(
            len(self.tokens), self.limit, self.limit, dtype=torch.float64, device=self.tokens.device
        )
        kept: list[Tensor] = []  # per depth: [17^t, 17, D]
        for t in range(self.limit):
            nodes, inner = CONTINUE**t, t < self.limit - 1
            kept.append(
                torch.empty(
                    nodes, CONTINUE, self.model.size, dtype=torch.float64, device=found.device
                )
                if inner
                else found[:0]
            )
            step = max(1, CHUNK // self.model.size)
            for some in torch.arange(nodes, device=found.device).split(step):
                before = [
                    kept[a][some // CONTINUE ** (t - a), some // CONTINUE ** (t - a - 1) % CONTINUE]
                    for a in range(t)
                ]
                for token, each in self._token_scores(t, some):
                    here = self.mask[:, t] & (self.tokens[:, t] == token)
                    rows = (
                        (here & (self.node[:, t] >= some[0]) & (self.node[:, t] <= some[-1]))
                        .nonzero()
                        .squeeze(-1)
                    )
                    for a, other in enumerate([*before, each]):
                        product = (other * each).sum(-1)[self.node[rows, t] - some[0]]
                        found[rows, a, t] = product
                        found[rows, t, a] = product
                    if inner and token < CONTINUE:
                        kept[t][some, token] = each
        return found

    def _token_scores(self, depth: int, nodes: Tensor) -> list[tuple[int, Tensor]]:
        """(token, ∇log π(token | prefix) [n, D]) for every token that can follow a prefix.

        `nodes` [n] are the numbers of the prefixes of `depth` tokens.
        """
        copies = self.model.copy()
        copies.runs = torch.Size((len(nodes),))
        weights = {
            name: weight.expand(len(nodes), *weight.shape).clone()
            for name, weight in copies.weights.items()
        }
        copies.weights = {name: weight.requires_grad_() for name, weight in weights.items()}
        prefix = torch.nn.functional.pad(_digits(depth).to(nodes.device)[nodes], (0, 1), value=END)
        log_dist = log_dists(
            copies,
            self.prompt.expand(len(nodes), 1, -1),
            prefix[:, None, None],
            temperature=self.temperature,
        )
        last = log_dist[:, 0, 0, depth].unbind(-1)
        found = []
        for token in (*range(CONTINUE), END):
            gradients = torch.autograd.grad(last[token].sum(), copies.parameters, retain_graph=True)
            found.append((token, torch.cat([gradient.flatten(1) for gradient in gradients], -1)))
        return found

    def _inner(self, rows: Tensor) -> Tensor:
        """Inner products [r, r] of the gradients Σ row · score, for rows [r, K, T]; r may be 0."""
        vectors = rows.new_zeros(len(rows), self.model.size)
        for vector, row in zip(vectors, rows, strict=True):
            vector.copy_(self.pull_back(row[None]))
        return vectors @ vectors.T

    # ------------------------------------------------------------------ scoring

    @cached_property
    def _current(self) -> list[Tensor]:
        return self._tables(self.model)

    def _tables(self, model: Transformer) -> list[Tensor]:
        """The next-token log-probabilities after every prefix: for each depth t < T, [17^t, V]."""
        prefixes = torch.nn.functional.pad(_digits(self.limit - 1), (0, 1), value=END).to(
            self.prompt.device
        )
        packs = prefixes.split(ROW * max(1, 65536 // (ROW * self.limit)))
        whole = []
        for pack in packs:
            rows = pack.unflatten(0, (-1, min(ROW, len(pack))))
            log_dist = log_dists(
                model, self.prompt.expand(len(rows), -1), rows, temperature=self.temperature
            )
            whole.append(log_dist.flatten(0, 1))
        log_dist = torch.cat(whole)  # [17^(T−1), T, V]
        return [log_dist[:: CONTINUE ** (self.limit - 1 - t), t] for t in range(self.limit)]

    @torch.no_grad()
    def _frozen(self, model: Transformer | None) -> list[Tensor] | None:
        return None if model is None else self._tables(model)

    def _chosen(self, tables: Sequence[Tensor]) -> Tensor:
        """The log-probability [1, K, T] of each token of each completion, 0 after the end token."""
        columns = [table[self.node[:, t], self._choice[:, t]] for t, table in enumerate(tables)]
        return torch.where(self.mask, torch.stack(columns, -1), 0.0)[None]

    def _spread_out(self, tables: Sequence[Tensor]) -> Tensor:
        """The next-token distribution [1, K, T, V] at each position of each completion."""
        return torch.stack([table[self.node[:, t]] for t, table in enumerate(tables)], -2)[None]

    def _rewards(self, tokens: Tensor) -> Tensor:
        rows = torch.full(tokens.shape[:-1], self.question, device=tokens.device)
        return self._reward(tokens, rows, self._task).double()


def _double(model: Transformer, gradients: bool = False) -> Transformer:
    """A copy of the model in float64."""
    twin = model.copy()
    twin.weights = {
        name: weight.double().requires_grad_(gradients) for name, weight in twin.weights.items()
    }
    return twin


def _flat(gradients: Sequence[Tensor]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients])


__all__ = ["LARGEST", "Bridge", "completions", "count"]
