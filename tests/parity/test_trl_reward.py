"""Our Bradley–Terry loss against that of TRL's `RewardTrainer` on the same scores."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytest.importorskip("trl")

from trl import RewardTrainer

from tests.helpers import close
from tinylm.reward_model import bradley_terry_loss


@pytest.mark.parametrize("seed", range(3))
def test_loss_and_gradient_are_those_of_reward_trainer(seed: int) -> None:
    """`compute_loss` is TRL's own; the model and the counters in its hands are ours."""
    generator = torch.Generator().manual_seed(seed)
    ours = torch.randn(2, 7, generator=generator, dtype=torch.float64).requires_grad_()
    theirs = ours.detach().flatten().unsqueeze(-1).requires_grad_()  # winners, then losers
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(center_rewards_coefficient=None),
        accelerator=SimpleNamespace(gather_for_metrics=lambda x: x, gather=lambda x: x),
        _total_train_tokens=0,
        _tp_size=1,
        _metrics={"train": {name: [] for name in NAMES}},
    )
    inputs = {"attention_mask": torch.ones(14, 3)}
    loss = RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=theirs), inputs)
    own = bradley_terry_loss(ours[0], ours[1])
    close(own.detach(), loss.detach(), rtol=1e-12)
    [mine], [other] = torch.autograd.grad(own, ours), torch.autograd.grad(loss, theirs)
    close(mine.flatten(), other.squeeze(-1), rtol=1e-12)


NAMES = ("num_tokens", "min_reward", "mean_reward", "max_reward", "accuracy", "margin")
