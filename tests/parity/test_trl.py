"""Our estimators against TRL's trainers on the same tensors: the same loss and the same gradient, or a named difference.

The trainers are real: `GRPOTrainer` and `RLOOTrainer` as their constructors leave them, with a GPT-2 of a few hundred
weights and a tokenizer made here (nothing is downloaded). Two things are put into their hands: the completions, and a
`forward` that returns our log-probabilities. Rewards, advantages, masks, shuffling, micro-batches and losses are TRL's.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Iterator
from dataclasses import replace as with_fields
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # `rollout_func` is our way in
pytest.importorskip("trl")

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from course import ladder
from course.estimator import Estimator, replace
from course.parts import (
    CISPO,
    K1,
    K3,
    BatchStd,
    Clip,
    ConstantLength,
    DropTruncated,
    GroupStd,
    InLossTimesRatio,
    InReward,
    NoScale,
    SequenceMean,
    SequenceMeanRatio,
    SequenceRatio,
    SequenceSum,
    SoftGate,
    TokenMean,
)
from course.registry import get
from course.rollout import Policy
from tests.parity.samples import LIMIT, Result, Samples, agree, apart, close, draw, ours, table

END, WORD, FIRST = 1, 2, 3  # token ids; from FIRST on, a prompt of one token says which sample it is
STD = GroupStd(ddof=1, eps=1e-4)


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    """TRL's Python scalars become tensors of torch's default type: at float32 the error would look like ours."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


class Peer:
    """TRL's trainers with our completions and log-probabilities in place of a model's."""

    def __init__(self, folder: str) -> None:
        words = {"<pad>": 0, "<end>": END, "w": WORD, **{f"s{i}": FIRST + i for i in range(64)}}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        self.folder = folder
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")
        self.config = GPT2Config(vocab_size=len(words), n_positions=32, n_embd=4, n_layer=1, n_head=1, bos_token_id=END, eos_token_id=END)
        GPT2LMHeadModel(self.config).save_pretrained(folder)  # TRL loads the reference from where the model came from
        self.config._name_or_path = folder

    def trainer(self, samples: Samples, loss: str = "GRPO", parts: int = 1, **options: Any) -> Any:
        """A trainer that has these samples for one generation batch, cut into `parts` micro-batches."""
        prompts, group, _ = samples.mask.shape
        kinds = {"GRPO": (GRPOConfig, GRPOTrainer), "RLOO": (RLOOConfig, RLOOTrainer)}
        settings = {
            "per_device_train_batch_size": prompts * group // parts,
            "gradient_accumulation_steps": parts,
            "num_iterations": 2,  # so that log π_old is kept, and not taken to be the current log π
            **options,
            "num_generations": group,
            "max_completion_length": LIMIT,
        }
        args = kinds[loss][0](self.folder, use_cpu=True, bf16=False, report_to="none", **settings)
        tokens = [[WORD] * (n - 1) + [WORD if cut else END] for n, cut in zip(_rows(samples.length), _rows(samples.truncated), strict=True)]
        chosen = [row[:n] for row, n in zip(samples.mask.flatten(0, 1).int().tolist(), _rows(samples.length), strict=True)]

        def reward(prompts: list[str], **_: Any) -> list[float]:
            return [_rows(samples.score)[int(prompt[1:])] for prompt in prompts]

        def generate(prompts: list[str], _: Any) -> dict[str, Any]:
            index = [int(prompt[1:]) for prompt in prompts]
            take = {"completion_ids": tokens, "env_mask": chosen, "logprobs": [[0.0] * len(row) for row in tokens]}
            return {"prompt_ids": [[FIRST + i] for i in index], **{name: [rows[i] for i in index] for name, rows in take.items()}}

        extra = {"rollout_func": generate} if loss == "GRPO" else {}
        data = Dataset.from_dict({"prompt": self.prompts(samples)})
        trainer = kinds[loss][1](
            GPT2LMHeadModel(self.config), reward, args=args, train_dataset=data, processing_class=self.tokenizer, **extra
        )
        if loss == "RLOO":  # it has no `rollout_func`
            trainer._generate_single_turn = lambda prompt_ids, *_: [tokens[row[0] - FIRST] for row in prompt_ids]
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = args.gradient_accumulation_steps  # the training loop sets it
        if trainer.ref_model is not None:
            trainer.ref_model.forward = _forward(samples.ref)
        return trainer

    @staticmethod
    def prompts(samples: Samples) -> list[str]:
        """«s0», «s1», …: TRL groups by place, so each sample may have a prompt of its own, which says which it is."""
        return [f"s{i}" for i in range(samples.score.numel())]

    def batches(self, trainer: Any, samples: Samples) -> list[dict[str, Tensor]]:
        """What TRL makes of the samples while log π is log π_old: its advantages, masks and divisors, by micro-batch."""
        trainer.model.forward = _forward(samples.old)
        found = []
        for trainer._step in range(trainer.args.steps_per_generation):
            found.append(trainer._prepare_inputs([{"prompt": prompt} for prompt in self.prompts(samples)]))
        return found

    def losses(self, samples: Samples, loss: str = "GRPO", **options: Any) -> list[Result]:
        """TRL's loss and its gradients, for each micro-batch."""
        trainer = self.trainer(samples, loss, **options)
        batches = self.batches(trainer, samples)
        new, dist = samples.new.clone().requires_grad_(), samples.dist.clone().requires_grad_()
        trainer.model.forward = _forward(new, Policy(new, dist).entropy)
        found = []
        for batch in batches:
            value = trainer.compute_loss(trainer.model, batch)
            gradient, by_dist = torch.autograd.grad(value, (new, dist), allow_unused=True, materialize_grads=True, retain_graph=True)
            found.append(Result(value.detach(), gradient, by_dist))
        return found

    def __call__(self, samples: Samples, loss: str = "GRPO", **options: Any) -> Result:
        """TRL's loss and its gradients, summed over the micro-batches."""
        found = self.losses(samples, loss, **options)
        return Result(sum(r.loss for r in found), sum(r.gradient for r in found), sum(r.by_dist for r in found))  # type: ignore[arg-type]

    def advantage(self, samples: Samples, loss: str = "GRPO", **options: Any) -> Tensor:
        """TRL's advantages, [Q, G]."""
        (batch,) = self.batches(self.trainer(samples, loss, **options), samples)
        order = batch["prompt_ids"][:, -1] - FIRST
        return torch.empty_like(batch["advantages"]).scatter(0, order, batch["advantages"]).view(samples.score.shape)


def _rows(tensor: Tensor) -> list[Any]:
    return tensor.flatten().tolist()


def _forward(log_prob: Tensor, entropy: Tensor | None = None) -> Callable[..., Any]:
    """A model's `forward` that looks log π [Q, G, T] up by the prompt."""
    rows, other = log_prob.flatten(0, 1), (torch.zeros_like(log_prob) if entropy is None else entropy).flatten(0, 1)

    def forward(input_ids: Tensor, *, fused_lm_head: bool, **_: Any) -> SimpleNamespace:
        assert fused_lm_head
        index = input_ids[:, -rows.shape[1] - 1] - FIRST
        return SimpleNamespace(log_probs=rows[index], entropy=other[index])

    return forward


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Peer:
    """TRL."""
    return Peer(str(tmp_path_factory.mktemp("trl")))


def trl(estimator: Estimator) -> Estimator:
    """Ours with TRL's conventions for the std and for samples without a token; nothing else is touched."""
    scale = with_fields(estimator.scale, ddof=1, eps=1e-4) if isinstance(estimator.scale, GroupStd) else estimator.scale
    return replace(estimator, scale=scale, aggregation=with_fields(estimator.aggregation, count_empty=True))


GRPO = trl(replace(ladder.grpo, kl=K3(beta=0.1)))
NO_KL = trl(ladder.length_mean)
K3_RATIO = K3(beta=0.1, place=InLossTimesRatio())

# name: TRL's options, our estimator. `KL` are TRL's options of GRPO's own penalty, which are not its defaults.
KL = {"beta": 0.1, "use_bias_correction_kl": False}
SEQUENCE = {"importance_sampling_level": "sequence"}
CASES: dict[str, tuple[dict[str, Any], Estimator]] = {
    "grpo": ({"loss_type": "grpo"}, NO_KL),
    "grpo, k3": ({"loss_type": "grpo", **KL}, GRPO),
    "grpo, k3 times ratio": ({"loss_type": "grpo", "beta": 0.1}, replace(GRPO, kl=K3_RATIO)),
    "bnpo": ({"loss_type": "bnpo"}, replace(NO_KL, aggregation=TokenMean())),
    "bnpo, k3": ({"loss_type": "bnpo", **KL}, replace(GRPO, aggregation=TokenMean())),
    "dapo": ({"epsilon_high": 0.28}, replace(replace(NO_KL, aggregation=TokenMean()), surrogate=Clip(0.2, 0.28))),
    "dapo, k3 times ratio": ({"beta": 0.1}, replace(replace(GRPO, aggregation=TokenMean()), kl=K3_RATIO)),
    "dr_grpo": ({"loss_type": "dr_grpo", "scale_rewards": "none"}, trl(ladder.dr_grpo)),
    "dr_grpo, k3": ({"loss_type": "dr_grpo", "scale_rewards": "none", **KL}, replace(trl(ladder.dr_grpo), kl=K3(beta=0.1))),
    "gspo": ({"loss_type": "grpo", **SEQUENCE, "epsilon": 3e-2, "epsilon_high": 4e-2}, replace(trl(ladder.gspo), surrogate=Clip(3e-2, 4e-2))),
    "gspo, k3": ({"loss_type": "grpo", **SEQUENCE, **KL}, replace(GRPO, ratio=SequenceMeanRatio())),
    "gspo, token mean": (SEQUENCE, replace(replace(NO_KL, aggregation=TokenMean()), ratio=SequenceMeanRatio())),
    "gspo, k3 times ratio": (
        {"loss_type": "grpo", **SEQUENCE, "beta": 0.1},
        replace(replace(GRPO, kl=K3_RATIO), ratio=SequenceMeanRatio(whole=True)),
    ),
    "cispo": ({"loss_type": "cispo", "epsilon_high": 1.28}, trl(ladder.cispo)),
    "cispo, k3": ({"loss_type": "cispo", "epsilon_high": 1.28, **KL}, replace(trl(ladder.cispo), kl=K3(beta=0.1))),
    "sapo": ({"loss_type": "sapo"}, trl(ladder.sapo)),
    "sapo, other temperatures": (
        {"loss_type": "sapo", "sapo_temperature_pos": 0.7, "sapo_temperature_neg": 2.0},
        replace(trl(ladder.sapo), surrogate=SoftGate(0.7, 2.0)),
    ),
    "luspo": ({"loss_type": "luspo", **SEQUENCE, "epsilon": 0.02, "epsilon_high": 0.025}, replace(trl(ladder.luspo), surrogate=Clip(0.02, 0.025))),
    "luspo, per token, k3": ({"loss_type": "luspo", **KL}, replace(GRPO, aggregation=SequenceSum())),
    "delta": ({"loss_type": "grpo", "delta": 1.5}, replace(NO_KL, surrogate=Clip(ratio_cap=1.5))),
    "delta within the clip": ({"loss_type": "grpo", "delta": 1.1}, replace(NO_KL, surrogate=Clip(ratio_cap=1.1))),
    "dual clip": ({"loss_type": "grpo", "delta": 1.5}, replace(NO_KL, surrogate=Clip(dual_clip=1.5))),
    "scale_rewards=batch": ({"scale_rewards": "batch"}, replace(replace(NO_KL, scale=BatchStd(1, 1e-4)), aggregation=TokenMean())),
    "scale_rewards=none": ({"scale_rewards": "none"}, replace(replace(NO_KL, scale=NoScale()), aggregation=TokenMean())),
}  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient(peer: Peer, name: str, seed: int) -> None:
    """Ragged, off policy, with tokens in the middle that the policy did not choose."""
    options, estimator = CASES[name]
    samples = draw(seed, holes=seed > 0)
    agree(ours(estimator, samples), peer(samples, **options))


@pytest.mark.parametrize("name", ["grpo, k3", "grpo, k3 times ratio", "dapo", "gspo", "cispo", "sapo", "luspo"])
def test_on_policy(peer: Peer, name: str) -> None:
    """With one update per rollout TRL stores no log π_old and takes log π, detached, for it."""
    options, estimator = CASES[name]
    samples = draw(7).on_policy()
    assert "old_per_token_logps" not in peer.batches(peer.trainer(samples, num_iterations=1, **options), samples)[0]
    agree(ours(estimator, samples), peer(samples, num_iterations=1, **options))


def test_the_samples_reach_every_branch() -> None:
    """Else a parity test could pass without the clip: both sides of it, the cap, and every sign of A are in the samples."""
    surrogate = Clip(ratio_cap=1.5)
    for seed in range(3):
        samples = draw(seed, holes=seed > 0)
        frozen = NO_KL.freeze(samples.rollout)
        log_ratio = NO_KL.log_ratio(Policy(samples.new), samples.rollout)[samples.mask]
        advantage, ratio = frozen.advantage[samples.mask], log_ratio.exp()
        flat = surrogate.clipped(log_ratio, advantage)
        assert bool((flat & (advantage > 0)).any())
        assert bool((flat & (advantage < 0) & (ratio < 0.8)).any())
        assert bool((flat & (advantage < 0) & (ratio > 1.5)).any())
        assert bool((advantage == 0).any())
        assert len(samples.length.unique()) > 3


# ---------------------------------------------------------------- advantages


@pytest.mark.parametrize("name", ["grpo", "scale_rewards=batch", "scale_rewards=none"])
def test_advantages(peer: Peer, name: str) -> None:
    """The group's mean under every scale; ddof 1 and eps 1e-4; the std of the batch around the batch's own mean."""
    samples, (options, estimator) = draw(3), CASES[name]
    mine = estimator.freeze(samples.rollout).advantage
    theirs = peer.advantage(samples, **options).unsqueeze(-1)
    close(mine, torch.where(samples.mask, theirs, 0.0))
    apart(mine, 0 * mine)


@pytest.mark.parametrize(("ddof", "eps"), [(0, 1e-4), (1, 1e-6), (0, 1e-6)])
def test_std_differs_by_ddof_and_eps(peer: Peer, ddof: int, eps: float) -> None:
    """Ours, by default, is the population's std + 1e-6: A differs from TRL's by (std₁ + 1e-4) / (std + eps), and by nothing else."""
    samples = draw(3)
    mine = replace(NO_KL, scale=GroupStd(ddof, eps)).freeze(samples.rollout).advantage.amax(-1)
    theirs = peer.advantage(samples)
    std = samples.score.std(-1, correction=ddof, keepdim=True) + eps
    close(mine.clamp(min=0), (theirs * (samples.score.std(-1, keepdim=True) + 1e-4) / std).clamp(min=0))
    apart(mine, theirs.clamp(min=0))


# ---------------------------------------------------------------- samples without a token, micro-batches


@pytest.mark.parametrize("name", ["grpo, k3", "bnpo, k3", "dapo", "dr_grpo, k3", "gspo, k3", "cispo", "sapo", "luspo"])
def test_overlong_masking(peer: Peer, name: str) -> None:
    """TRL's truncated completions keep their part in mean and std, lose their tokens, and still count as samples (`count_empty`)."""
    options, estimator = CASES[name]
    estimator = trl(replace(estimator, sample_filter=DropTruncated()))
    samples = draw(5, truncated=True)
    theirs = peer(samples, mask_truncated_completions=True, **options)
    agree(ours(estimator, samples), theirs)
    without = ours(trl(replace(estimator, aggregation=with_fields(estimator.aggregation, count_empty=False))), samples)
    assert int(samples.truncated.sum()) > 1
    close(without.loss, theirs.loss)
