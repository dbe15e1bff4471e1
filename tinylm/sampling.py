"""Sampling: a group is decoded side by side, what its completions share is computed once, and what
is reported is the log-probability under the distribution really sampled from.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from course.errors import require, require_number
from course.train.noise import Noise
from tinylm.fast.cache import extend, prefill
from tinylm.fast.packing import Nodes, look_up, twins
from tinylm.model import Transformer, next_token_log_dist
from tinylm.tasks import CHARACTERS, END, PAD


@dataclass(frozen=True)
class Completions:
    """G completions of each prompt: `tokens` [*runs, Q, G, T], PAD behind the end; `log_prob`
    [*runs, Q, G, T] in nats, 0 where the mask is False; `mask` True for chosen tokens, the end
    token included; `truncated` [*runs, Q, G] no end within T; `log_dist` [*runs, Q, G, T, V]
    log-probabilities of every token, where asked for; behind the end it means nothing.
    """

    tokens: Tensor
    log_prob: Tensor
    mask: Tensor
    truncated: Tensor
    log_dist: Tensor | None = None


def check_sampling(temperature: float, top_k: int | None = None) -> None:
    """Raise `CourseError` if the temperature or top_k is out of range.

    Below and above these temperatures, logits divided by them leave the range of float32.
    """
    allowed = "a number from 0.001 to 1000 (greedy decoding is an option of its own)"
    require_number("temperature", temperature, allowed, at_least=1e-3, at_most=1e3)
    require(
        top_k is None or 1 <= top_k <= len(CHARACTERS) + 1,
        "top_k",
        top_k,
        f"None or 1 to {len(CHARACTERS) + 1}",
    )


@torch.no_grad()
def sample(
    model: Transformer,
    prompt: Tensor,
    group: int,
    limit: int,
    noise: Noise | None,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    keep_log_dist: bool = False,
) -> Completions:
    """Complete every prompt [*runs, Q, P] `group` times, at most `limit` tokens each. `noise` None:
    greedy.

    The keys and values of a prompt are computed once and shared by its group, and so is every
    beginning that completions have in common. Raises `CourseError` for tokens outside the
    vocabulary, or a sequence longer than the model's context.
    """
    check_sampling(temperature, top_k)
    for name, count in (("group", group), ("limit", limit)):
        require(count > 0, name, count, "a whole number > 0")
    width = prompt.shape[-1]
    require(
        width + limit <= model.settings.context,
        "limit",
        limit,
        f"at most {model.settings.context - width}: the context less the prompt",
    )
    for extreme in (int(prompt.min()), int(prompt.max())):
        require(
            0 <= extreme < len(CHARACTERS),
            "prompt",
            extreme,
            f"tokens from 0 to {len(CHARACTERS) - 1}",
        )
    state, cache = prefill(model, prompt)
    prompts, shape = prompt.shape[-2], (*prompt.shape[:-1], group)
    uniform = None if noise is None else noise.uniform(limit, *shape[-2:])
    alive = torch.ones(shape, dtype=torch.bool, device=prompt.device)
    row = (
        torch.arange(prompts, device=prompt.device).unsqueeze(-1).expand(shape)
    )  # the state that each completion has come to
    twin = place = torch.zeros_like(row)
    member = torch.arange(group, device=prompt.device)
    path = torch.zeros(
        *prompt.shape[:-1], 1, 0, dtype=torch.long, device=prompt.device
    )  # the rows behind each last token
    own: list[Tensor] = []
    columns = []
    for step in range(limit):
        log_dist = look_up(next_token_log_dist(model.logits(state), temperature, top_k), row)
        token = (
            log_dist.argmax(-1)
            if uniform is None
            else _draw(log_dist, uniform.select(len(model.runs), step))
        )
        chosen = log_dist.gather(-1, token.unsqueeze(-1)).squeeze(-1)
        token = torch.where(alive, token, PAD)
        columns.append(
            (token, torch.where(alive, chosen, 0.0), alive, log_dist if keep_log_dist else None)
        )
        alive = alive & (token != END)
        if step + 1 < limit and bool(alive.any()):
            twin = twins(twin, token)  # completions that are alike up to here go on from one state
            nodes = Nodes.of(alive & (twin == member))
            way = path.gather(
                -2, place.gather(-1, nodes.where).unsqueeze(-1).expand(*nodes.where.shape, step)
            )
            path = torch.cat(
                [way, nodes.number.unsqueeze(-1) + (own[0].shape[-2] if own else 0)], -1
            )
            place, row = nodes.places(twin), nodes.rows(twin)
            new = token.gather(-1, nodes.where).flatten(-2).gather(-1, nodes.first)
            state, own = extend(model, new, path, nodes.first, cache, own)
    tokens, chosen_log_prob, mask, dists = zip(*columns, strict=True)
    full = torch.stack([d for d in dists if d is not None], -2) if keep_log_dist else None
    return Completions(
        torch.stack(tokens, -1),
        torch.stack(chosen_log_prob, -1),
        torch.stack(mask, -1),
        alive,
        full,
    )


def _draw(log_dist: Tensor, uniform: Tensor) -> Tensor:
    """One token each, by inverting the distribution function: log-probabilities [..., V], uniform
    [...] → [...].
    """
    cumulative = log_dist.exp().cumsum(-1)
    threshold = (
        uniform.unsqueeze(-1) * cumulative[..., -1:]
    )  # the sum is 1 up to rounding: stay inside it
    token = (cumulative <= threshold).sum(-1).clamp(max=log_dist.shape[-1] - 1)
    possible = log_dist.gather(-1, token.unsqueeze(-1)).squeeze(-1) > -torch.inf
    return torch.where(
        possible, token, log_dist.argmax(-1)
    )  # a threshold on the edge of the last possible token


__all__ = ["Completions", "check_sampling", "sample"]
