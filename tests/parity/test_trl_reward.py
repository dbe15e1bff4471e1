"""Our Bradley–Terry loss against that of TRL's `RewardTrainer` on the same scores."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytest.importorskip("trl")

from trl import RewardTrainer
from trl.rewards import get_soft_overlong_punishment

from tests.helpers import close
from tinylm import tasks
from tinylm.reward_model import bradley_terry_loss
from tinylm.rewards import SoftOverlong


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


@pytest.mark.parametrize(("longest", "cache"), [(6, 4), (8, 8), (5, 1)])
def test_the_soft_overlong_penalty_is_trls(longest: int, cache: int) -> None:
    task = tasks.make(tasks.TaskSettings(digits=1))
    made = torch.tensor([[1] * n + [tasks.PAD] * (9 - n) for n in range(1, 10)])
    ours = SoftOverlong(longest=longest, cache=cache)(made, task.train[:9], task)
    theirs = get_soft_overlong_punishment(longest, cache)([[1] * n for n in range(1, 10)])
    close(ours, theirs, rtol=1e-6)
