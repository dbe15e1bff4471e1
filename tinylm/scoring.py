"""What a model says of given completions: states, distributions, log-probabilities, by the quick
path.

prompt [*runs, Q, P], tokens [*runs, Q, G, T] (PAD after the end). `Transformer.log_probs` says the
same, sequence by sequence.
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
    """log π of the completions' tokens [*runs, Q, G, T] in nats, 0 at padding."""
    log_dist = log_dists(model, prompt, tokens, temperature=temperature)
    return chosen_log_probs(log_dist, tokens, tokens != PAD)


def log_dists(
    model: Transformer, prompt: Tensor, tokens: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """Log-probabilities of every token, before each token of the completions: [*runs, Q, G, T, V].

    Undefined after the end of a completion.
    """
    packed, before = pack(prompt, tokens, merge=not model.compiled)
    log_dist = next_token_log_dist(model.logits(hidden(model, packed)), temperature)
    return look_up(log_dist, before)


def log_dists_and_values(
    model: Transformer, prompt: Tensor, tokens: Tensor, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """`log_dists`, and the value head's value of the state before each token [*runs, Q, G, T], from
    one pass.

    Both are undefined after the end of a completion.
    """
    packed, before = pack(prompt, tokens, merge=not model.compiled)
    states = hidden(model, packed)
    log_dist = next_token_log_dist(model.logits(states), temperature)
    value = look_up(model.values(states).unsqueeze(-1), before).squeeze(-1)
    return look_up(log_dist, before), value


def states_before(model: Transformer, prompt: Tensor, tokens: Tensor) -> Tensor:
    """The model's final hidden state before each token of the completions: [*runs, Q, G, T, d].

    Undefined after the end of a completion.
    """
    packed, before = pack(prompt, tokens, merge=not model.compiled)
    return look_up(hidden(model, packed), before)


def values(model: Transformer, prompt: Tensor, tokens: Tensor) -> Tensor:
    """The value head's value of the state before each token of the completions: [*runs, Q, G, T].

    Undefined after the end of a completion.
    """
    return model.values(states_before(model, prompt, tokens))


def chosen_log_probs(log_dist: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """Of every token's log-probabilities those of the tokens that were chosen, 0 where the mask is
    False: [..., T, V], [..., T], [..., T] → [..., T].
    """
    safe = torch.where(mask, tokens, 0)
    return torch.where(mask, log_dist.gather(-1, safe.unsqueeze(-1)).squeeze(-1), 0.0)


def rounds_coarsely(model: Transformer) -> bool:
    """Whether products are rounded to less than float32 here and now: in bfloat16 under autocast,
    say.

    Two passes over the same tokens, with a cache and without, then differ by up to a hundredth of a
    nat, where GSPO clips at 3e-4. In float32 they differ by about 1e-6.
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
