"""Sampling a group of completions per prompt, with the log-probabilities they were drawn with.

The completions of a group are decoded in parallel, and their common prefixes are computed once. The
log-probabilities are those of the sampling distribution itself, temperature and top-k included.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from course.arguments import typed
from course.errors import CourseError, require, require_number
from course.train.noise import Noise
from tinylm.fast.cache import extend, prefill
from tinylm.fast.packing import Nodes, look_up, twins
from tinylm.model import Transformer, next_token_log_dist
from tinylm.tasks import CHARACTERS, END, PAD


@dataclass(frozen=True)
class Completions:
    """G completions of each prompt.

    `tokens` [*runs, Q, G, T]: PAD after the end token. `log_prob` [*runs, Q, G, T]: in nats, 0
    where the mask is False. `mask` [*runs, Q, G, T]: True for sampled tokens, including the end
    token. `truncated` [*runs, Q, G]: True if no end token came within T tokens. `log_dist`
    [*runs, Q, G, T, V]: log-probabilities of all tokens, if requested; undefined after the end
    token.
    """

    tokens: Tensor
    log_prob: Tensor
    mask: Tensor
    truncated: Tensor
    log_dist: Tensor | None = None


def check_sampling(temperature: float, top_k: int | None = None) -> None:
    """Raise `CourseError` if temperature or top_k is out of range."""
    allowed = "a number from 0.001 to 1000 (greedy decoding is an option of its own)"
    require_number("temperature", temperature, allowed, at_least=1e-3, at_most=1e3)
    most = len(CHARACTERS) + 1  # every token but padding
    allowed = f"None or 1 to {most}"
    require_number("top_k", top_k, allowed, at_least=1, at_most=most, whole=True, optional=True)


@typed
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
    """Sample `group` completions of at most `limit` tokens for every prompt [*runs, Q, P].

    With `noise` None the decoding is greedy. The keys and values of a prompt are computed once for
    its whole group, and those of a common prefix once for all completions that share it. Raises
    `CourseError` for tokens outside the vocabulary, for a sequence longer than the model's context,
    and for weights that are not finite.
    """
    check_sampling(temperature, top_k)
    _check_prompt(model, prompt, group, limit)
    model.check_finite()
    runs, prompts = len(model.runs), prompt.shape[-2]
    shape = (*prompt.shape[:-1], group)  # [*runs, Q, G]
    device = prompt.device
    uniform = None if noise is None else noise.uniform(limit, *shape[-2:])  # [*runs, T, Q, G]

    state, cache = prefill(model, prompt)  # one row for each prompt
    alive = torch.ones(shape, dtype=torch.bool, device=device)
    # each completion's row of `state`, and its twin: the first member with the same tokens so far
    row = torch.arange(prompts, device=device).unsqueeze(-1).expand(shape)
    twin = place = torch.zeros_like(row)
    member = torch.arange(group, device=device)
    # for each of a prompt's M distinct prefixes, the rows of its t tokens: [*runs, Q, M, t]
    path = torch.zeros(*prompt.shape[:-1], 1, 0, dtype=torch.long, device=device)
    own: list[Tensor] = []  # for each layer, the keys and values of all rows so far
    columns = []
    for step in range(limit):
        of_rows = next_token_log_dist(model.logits(state), temperature, top_k)
        log_dist = look_up(of_rows, row)  # [*runs, Q, G, V]
        if uniform is None:
            token = log_dist.argmax(-1)
        else:
            token = draw(log_dist, uniform.select(runs, step))
        log_prob = log_dist.gather(-1, token.unsqueeze(-1)).squeeze(-1)
        token = torch.where(alive, token, PAD)
        log_prob = torch.where(alive, log_prob, 0.0)
        columns.append((token, log_prob, alive, log_dist if keep_log_dist else None))
        alive = alive & (token != END)
        if step + 1 == limit or not bool(alive.any()):
            continue
        # completions with the same tokens so far continue from one state: M nodes for each prompt
        twin = twins(twin, token)
        nodes = Nodes.of(alive & (twin == member))
        came_from = place.gather(-1, nodes.where)  # [*runs, Q, M]
        way = path.gather(-2, came_from.unsqueeze(-1).expand(*came_from.shape, step))
        before = own[0].shape[-2] if own else 0
        path = torch.cat([way, nodes.number.unsqueeze(-1) + before], -1)
        place, row = nodes.places(twin), nodes.rows(twin)
        # nodes [*runs, Q, M] → rows [*runs, N]
        new = token.gather(-1, nodes.where).flatten(-2).gather(-1, nodes.first)
        state, own = extend(model, new, path, nodes.first, cache, own)
    tokens, log_probs, masks, log_dists = zip(*columns, strict=True)
    made = Completions(
        tokens=torch.stack(tokens, -1),
        log_prob=torch.stack(log_probs, -1),
        mask=torch.stack(masks, -1),
        truncated=alive,
        log_dist=torch.stack(log_dists, -2) if keep_log_dist else None,
    )
    if not bool(torch.isfinite(made.log_prob.sum())):
        raise CourseError("model: got logits that are not finite; allowed are smaller weights")
    return made


def _check_prompt(model: Transformer, prompt: Tensor, group: int, limit: int) -> None:
    for name, count in (("group", group), ("limit", limit)):
        require_number(name, count, "a whole number > 0", at_least=1, whole=True)
    axes = len(model.runs) + 2
    fits = prompt.dim() >= axes and prompt.dtype == torch.long and prompt.numel() > 0
    allowed = f"whole numbers (torch.int64) of at least {axes} axes [*runs, Q, P]"
    require(fits, "prompt", (tuple(prompt.shape), prompt.dtype), allowed)
    room = model.settings.context - prompt.shape[-1]
    require(limit <= room, "limit", limit, f"at most {room}: the context less the prompt")
    for extreme in torch.stack(prompt.aminmax()).tolist():  # one transfer for both
        allowed = f"tokens from 0 to {len(CHARACTERS) - 1}"
        require(0 <= extreme < len(CHARACTERS), "prompt", extreme, allowed)


def draw(log_dist: Tensor, uniform: Tensor) -> Tensor:
    """Draw one token from each distribution by inverting its cumulative distribution function.

    Log-probabilities [..., V] and uniform numbers [...] on [0, 1] → tokens [...]. A token of
    probability 0 is never drawn, even if the uniform number is 0 or 1.
    """
    probability = log_dist.exp()
    up_to = torch.where(probability > 0, probability.cumsum(-1), 0.0)
    total = up_to.amax(-1, keepdim=True)  # 1 up to rounding
    below_total = torch.nextafter(total, torch.zeros_like(total))
    threshold = torch.minimum(uniform.unsqueeze(-1) * total, below_total)
    return (up_to > threshold).int().argmax(-1)  # the first token whose cumulative sum exceeds it


__all__ = ["Completions", "check_sampling", "draw", "sample"]
