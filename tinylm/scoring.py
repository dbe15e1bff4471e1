"""Scoring given completions with the fast forward pass: log-probabilities, distributions, values.

Everywhere `prompt` is [*runs, Q, P] and `tokens` [*runs, Q, G, T], PAD after the end token.
`Transformer.log_probs` computes the same numbers one sequence at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tinylm.fast.forward import hidden
from tinylm.fast.packing import look_up, pack
from tinylm.model import Transformer, next_token_log_dist
from tinylm.tasks import PAD


def log_probs(
    model: Transformer, prompt: Tensor, tokens: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """log π of each token of the completions, [*runs, Q, G, T], in nats; 0 at padding."""
    log_dist = log_dists(model, prompt, tokens, temperature=temperature)
    return chosen_log_probs(log_dist, tokens, tokens != PAD)


def log_dists(
    model: Transformer, prompt: Tensor, tokens: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """The next-token distribution at each position of the completions, [*runs, Q, G, T, V].

    Log-probabilities in nats; undefined after the end token.
    """
    packed, before = pack(prompt, tokens, merge=not model.compiled)
    log_dist = next_token_log_dist(model.logits(hidden(model, packed)), temperature)
    return look_up(log_dist, before)


def log_dists_and_values(
    model: Transformer, prompt: Tensor, tokens: Tensor, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """`log_dists` and `values` [*runs, Q, G, T] from one forward pass, for a shared trunk.

    Both are undefined after the end token.
    """
    packed, before = pack(prompt, tokens, merge=not model.compiled)
    states = hidden(model, packed)
    log_dist = next_token_log_dist(model.logits(states), temperature)
    value = look_up(model.values(states).unsqueeze(-1), before).squeeze(-1)
    return look_up(log_dist, before), value


def states_before(model: Transformer, prompt: Tensor, tokens: Tensor) -> Tensor:
    """The final hidden state before each token of the completions, [*runs, Q, G, T, d].

    Undefined after the end token.
    """
    packed, before = pack(prompt, tokens, merge=not model.compiled)
    return look_up(hidden(model, packed), before)


def values(model: Transformer, prompt: Tensor, tokens: Tensor) -> Tensor:
    """The value head's estimate of the state before each token, [*runs, Q, G, T].

    Undefined after the end token.
    """
    return model.values(states_before(model, prompt, tokens))


def chosen_log_probs(log_dist: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """The log-probabilities of the sampled tokens, 0 where the mask is False.

    `log_dist` [..., T, V], `tokens` [..., T] and `mask` [..., T] → [..., T].
    """
    safe = torch.where(mask, tokens, 0)
    return torch.where(mask, log_dist.gather(-1, safe.unsqueeze(-1)).squeeze(-1), 0.0)


def rounds_coarsely(model: Transformer) -> bool:
    """Whether matrix products are currently less precise than float32, as under bfloat16 autocast.

    Decoding with a cache and scoring without one then give log-probabilities that differ by up to
    0.01 nats, while GSPO clips at 3e-4. In float32 they differ by about 1e-6.
    """
    dtype, kind = model.weights["head"].dtype, model.weights["head"].device.type
    autocast = torch.is_autocast_enabled(kind)
    exact = dtype == torch.float64
    exact |= dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    return autocast or not exact


__all__ = [
    "chosen_log_probs",
    "log_dists",
    "log_dists_and_values",
    "log_probs",
    "rounds_coarsely",
    "states_before",
    "values",
]
