"""Our estimators against TRL's trainers on the same tensors: the same loss and the same gradient,
or a named difference.

The trainers are real: `GRPOTrainer` and `RLOOTrainer` as their constructors leave them, with a
GPT-2 of a few hundred weights and a tokenizer made here (nothing is downloaded). Two things are put
into their hands: the completions, and a `forward` that returns our log-probabilities. Rewards,
advantages, masks, shuffling, micro-batches and losses are TRL's.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Callable
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
from trl.experimental.gmpo import GMPOConfig, GMPOTrainer
from trl.trainer.utils import entropy_from_logits, selective_log_softmax

from course import ladder
from course.errors import CourseError
from course.estimator import Estimator, replace
from course.lesson.conventions import table
from course.parts import (
    CISPO,
    K1,
    K3,
    AdaptiveEntropy,
    BatchStd,
    Clip,
    ConstantLength,
    DropTruncated,
    EachReward,
    GammaWeight,
    GeometricMean,
    GroupStd,
    HighEntropy,
    InLossTimesRatio,
    InReward,
    NoKL,
    NoScale,
    OffPolicySequences,
    SequenceMean,
    SequenceMeanRatio,
    SequenceMIS,
    SequenceRatio,
    SequenceSum,
    SequenceTIS,
    SoftGate,
    TokenMean,
    TokenMIS,
    TokenTIS,
)
from course.registry import get
from course.rollout import Policy
from tests.parity.samples import LIMIT, Result, Samples, agree, apart, close, draw, ours
from tinylm.model import next_token_log_dist
from tinylm.tasks import PAD

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers")

END, WORD, FIRST = (
    1,
    2,
    3,
)  # token ids; from FIRST on, a prompt of one token says which sample it is
STD = GroupStd(ddof=1, eps=1e-4)


class Peer:
    """TRL's trainers with our completions and log-probabilities in place of a model's."""

    def __init__(self, folder: str) -> None:
        words = {"<pad>": 0, "<end>": END, "w": WORD, **{f"s{i}": FIRST + i for i in range(64)}}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        self.folder = folder
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>"
        )
        self.config = GPT2Config(
            vocab_size=len(words),
            n_positions=32,
            n_embd=4,
            n_layer=1,
            n_head=1,
            bos_token_id=END,
            eos_token_id=END,
        )
        GPT2LMHeadModel(self.config).save_pretrained(
            folder
        )  # TRL loads the reference from where the model came from
        self.config._name_or_path = folder

    def trainer(self, samples: Samples, loss: str = "GRPO", parts: int = 1, **options: Any) -> Any:
        """A trainer that has these samples for one generation batch, cut into `parts`
        micro-batches.
        """
        prompts, group, _ = samples.mask.shape
        several = options.pop("components", samples.score.unsqueeze(-1))  # [Q, G, C]
        kinds = {
            "GRPO": (GRPOConfig, GRPOTrainer),
            "GMPO": (GMPOConfig, GMPOTrainer),
            "RLOO": (RLOOConfig, RLOOTrainer),
        }
        settings = {
            "per_device_train_batch_size": prompts * group // parts,
            "gradient_accumulation_steps": parts,
            "num_iterations": 2,  # so that log π_old is kept, and not taken to be the current log π
            **options,
            "num_generations": group,
            "max_completion_length": LIMIT,
        }
        args = kinds[loss][0](self.folder, use_cpu=True, bf16=False, report_to="none", **settings)
        tokens = [
            [WORD] * (n - 1) + [WORD if cut else END]
            for n, cut in zip(_rows(samples.length), _rows(samples.truncated), strict=True)
        ]
        chosen = [
            row[:n]
            for row, n in zip(
                samples.mask.flatten(0, 1).int().tolist(), _rows(samples.length), strict=True
            )
        ]

        sampled = samples.sampler.flatten(0, 1).tolist()

        def judge(score: Tensor) -> Callable[..., list[float]]:
            def reward(prompts: list[str], **_: Any) -> list[float]:
                return [_rows(score)[int(prompt[1:])] for prompt in prompts]

            return reward

        def generate(prompts: list[str], _: Any) -> dict[str, Any]:
            index = [int(prompt[1:]) for prompt in prompts]
            take = {
                "completion_ids": tokens,
                "env_mask": chosen,
                "logprobs": [row[: len(made)] for row, made in zip(sampled, tokens, strict=True)],
            }
            return {
                "prompt_ids": [[FIRST + i] for i in index],
                **{name: [rows[i] for i in index] for name, rows in take.items()},
            }

        extra = {"rollout_func": generate} if loss != "RLOO" else {}
        data = Dataset.from_dict({"prompt": self.prompts(samples)})
        trainer = kinds[loss][1](
            GPT2LMHeadModel(self.config),
            [judge(score) for score in several.unbind(-1)],
            args=args,
            train_dataset=data,
            processing_class=self.tokenizer,
            **extra,
        )
        if loss == "RLOO":  # it has no `rollout_func`
            trainer._generate_single_turn = lambda prompt_ids, *_: [
                tokens[row[0] - FIRST] for row in prompt_ids
            ]
        if any(name.startswith("vllm_importance_sampling") for name in options):
            # as with vLLM, whose log-probabilities `generate` returns; no weights need be sent
            trainer.use_vllm, trainer._last_loaded_step = True, trainer.state.global_step
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = (
            args.gradient_accumulation_steps
        )  # the training loop sets it
        if trainer.ref_model is not None:
            trainer.ref_model.forward = _forward(samples.ref)
        return trainer

    @staticmethod
    def prompts(samples: Samples) -> list[str]:
        """«s0», «s1», …: TRL groups by place, so each sample may have a prompt of its own, which
        says which it is.
        """
        return [f"s{i}" for i in range(samples.score.numel())]

    def batches(self, trainer: Any, samples: Samples) -> list[dict[str, Tensor]]:
        """What TRL makes of the samples while log π is log π_old: its advantages, masks and
        divisors, by micro-batch.
        """
        trainer.model.forward = _forward(samples.old)
        rows = [{"prompt": prompt} for prompt in self.prompts(samples)]
        found = []
        for step in range(trainer.args.steps_per_generation):
            trainer._step = step
            found.append(trainer._prepare_inputs(rows))
        return found

    def losses(self, samples: Samples, loss: str = "GRPO", **options: Any) -> list[Result]:
        """TRL's loss and its gradients, for each micro-batch."""
        trainer = self.trainer(samples, loss, **options)
        batches = self.batches(trainer, samples)
        new, log_dist = (
            samples.new.clone().requires_grad_(),
            samples.log_dist.clone().requires_grad_(),
        )
        trainer.model.forward = _forward(new, Policy(new, log_dist).entropy)
        found = []
        for batch in batches:
            value = trainer.compute_loss(trainer.model, batch)
            gradient, by_dist = torch.autograd.grad(
                value, (new, log_dist), allow_unused=True, materialize_grads=True, retain_graph=True
            )
            found.append(Result(value.detach(), gradient, by_dist))
        return found

    def __call__(self, samples: Samples, loss: str = "GRPO", **options: Any) -> Result:
        """TRL's loss and its gradients, summed over the micro-batches."""
        found = self.losses(samples, loss, **options)
        return Result(
            sum(r.loss for r in found),
            sum(r.gradient for r in found),
            sum(r.by_dist for r in found),
        )  # type: ignore[arg-type]

    def advantage(self, samples: Samples, loss: str = "GRPO", **options: Any) -> Tensor:
        """TRL's advantages, [Q, G]."""
        (batch,) = self.batches(self.trainer(samples, loss, **options), samples)
        order = batch["prompt_ids"][:, -1] - FIRST
        return (
            torch.empty_like(batch["advantages"])
            .scatter(0, order, batch["advantages"])
            .view(samples.score.shape)
        )


def _rows(tensor: Tensor) -> list[Any]:
    return tensor.flatten().tolist()


def _forward(log_prob: Tensor, entropy: Tensor | None = None) -> Callable[..., Any]:
    """A model's `forward` that looks log π [Q, G, T] up by the prompt."""
    rows, other = (
        log_prob.flatten(0, 1),
        (torch.zeros_like(log_prob) if entropy is None else entropy).flatten(0, 1),
    )

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
    """Ours with TRL's conventions for the std and for samples without a token; nothing else is
    touched.
    """
    scale = (
        with_fields(estimator.scale, ddof=1, eps=1e-4)
        if isinstance(estimator.scale, GroupStd | BatchStd | EachReward)
        else estimator.scale
    )
    return replace(
        estimator, scale=scale, aggregation=with_fields(estimator.aggregation, count_empty=True)
    )


GRPO = trl(replace(ladder.grpo, kl=K3(beta=0.1)))
NO_KL = trl(ladder.length_mean)
K3_RATIO = K3(beta=0.1, place=InLossTimesRatio())

# name: TRL's options, our estimator. `KL` are TRL's options of GRPO's own penalty, which are not
# its defaults.
KL = {"beta": 0.1, "use_bias_correction_kl": False}
SEQUENCE = {"importance_sampling_level": "sequence"}
CASES: dict[str, tuple[dict[str, Any], Estimator]] = {
    "grpo": ({"loss_type": "grpo"}, NO_KL),
    "grpo, k3": ({"loss_type": "grpo", **KL}, GRPO),
    "grpo, k3 times ratio": ({"loss_type": "grpo", "beta": 0.1}, replace(GRPO, kl=K3_RATIO)),
    "bnpo": ({"loss_type": "bnpo"}, replace(NO_KL, aggregation=TokenMean())),
    "bnpo, k3": ({"loss_type": "bnpo", **KL}, replace(GRPO, aggregation=TokenMean())),
    "dapo": (
        {"epsilon_high": 0.28},
        replace(replace(NO_KL, aggregation=TokenMean()), surrogate=Clip(0.2, 0.28)),
    ),
    "dapo, k3 times ratio": (
        {"beta": 0.1},
        replace(replace(GRPO, aggregation=TokenMean()), kl=K3_RATIO),
    ),
    "dr_grpo": ({"loss_type": "dr_grpo", "scale_rewards": "none"}, trl(ladder.dr_grpo)),
    "dr_grpo, k3": (
        {"loss_type": "dr_grpo", "scale_rewards": "none", **KL},
        replace(trl(ladder.dr_grpo), kl=K3(beta=0.1)),
    ),
    "gspo": (
        {"loss_type": "grpo", **SEQUENCE, "epsilon": 0.03, "epsilon_high": 0.04},
        replace(trl(ladder.gspo), surrogate=Clip(0.03, 0.04)),
    ),
    "gspo, k3": ({"loss_type": "grpo", **SEQUENCE, **KL}, replace(GRPO, ratio=SequenceMeanRatio())),
    "gspo, token mean": (
        SEQUENCE,
        replace(replace(NO_KL, aggregation=TokenMean()), ratio=SequenceMeanRatio()),
    ),
    "gspo, k3 times ratio": (
        {"loss_type": "grpo", **SEQUENCE, "beta": 0.1},
        replace(replace(GRPO, kl=K3_RATIO), ratio=SequenceMeanRatio(whole=True)),
    ),
    "cispo": ({"loss_type": "cispo", "epsilon_high": 1.28}, trl(ladder.cispo)),
    "cispo, k3": (
        {"loss_type": "cispo", "epsilon_high": 1.28, **KL},
        replace(trl(ladder.cispo), kl=K3(beta=0.1)),
    ),
    "sapo": ({"loss_type": "sapo"}, trl(ladder.sapo)),
    "sapo, other temperatures": (
        {"loss_type": "sapo", "sapo_temperature_pos": 0.7, "sapo_temperature_neg": 2.0},
        replace(trl(ladder.sapo), surrogate=SoftGate(0.7, 2.0)),
    ),
    "high entropy": (
        {"loss_type": "grpo", "top_entropy_quantile": 0.35},
        replace(NO_KL, sample_filter=HighEntropy(0.35)),
    ),
    "high entropy, k3": (
        {"loss_type": "bnpo", "top_entropy_quantile": 0.35, **KL},
        replace(replace(GRPO, aggregation=TokenMean()), sample_filter=HighEntropy(0.35)),
    ),
    "off-policy sequences": (
        {"loss_type": "grpo", "off_policy_mask_threshold": 0.05},
        replace(NO_KL, sample_filter=OffPolicySequences(0.05)),
    ),
    "off-policy sequences, k3": (
        {"loss_type": "dr_grpo", "scale_rewards": "none", "off_policy_mask_threshold": 0.0, **KL},
        replace(
            replace(trl(ladder.dr_grpo), kl=K3(beta=0.1)), sample_filter=OffPolicySequences(0.0)
        ),
    ),
    "vespo": (
        {"loss_type": "vespo"},
        replace(replace(trl(ladder.token_mean), ratio=SequenceRatio()), surrogate=GammaWeight()),
    ),
    "vespo, other shapes": (
        {"loss_type": "vespo", "vespo_k_pos": 1.5, "vespo_lambda_pos": 0.5, "vespo_k_neg": 2.5},
        replace(
            replace(trl(ladder.token_mean), ratio=SequenceRatio()),
            surrogate=GammaWeight(1.5, 0.5, 2.5),
        ),
    ),
    "gmpo": ({"loss": "GMPO", "epsilon": 0.1}, replace(NO_KL, surrogate=GeometricMean(0.1))),
    "gmpo, two bounds, k3": (
        {"loss": "GMPO", "epsilon": 0.05, "epsilon_high": 0.2, **KL},
        replace(GRPO, surrogate=GeometricMean(0.05, 0.2)),
    ),
    "luspo": (
        {"loss_type": "luspo", **SEQUENCE, "epsilon": 0.02, "epsilon_high": 0.025},
        replace(trl(ladder.luspo), surrogate=Clip(0.02, 0.025)),
    ),
    "luspo, per token, k3": (
        {"loss_type": "luspo", **KL},
        replace(GRPO, aggregation=SequenceSum()),
    ),
    "delta": ({"loss_type": "grpo", "delta": 1.5}, replace(NO_KL, surrogate=Clip(ratio_cap=1.5))),
    "delta within the clip": (
        {"loss_type": "grpo", "delta": 1.1},
        replace(NO_KL, surrogate=Clip(ratio_cap=1.1)),
    ),
    "dual clip": (
        {"loss_type": "grpo", "delta": 1.5},
        replace(NO_KL, surrogate=Clip(dual_clip=1.5)),
    ),
    "scale_rewards=batch": (
        {"scale_rewards": "batch"},
        replace(replace(NO_KL, scale=BatchStd(1, 1e-4)), aggregation=TokenMean()),
    ),
    "scale_rewards=none": (
        {"scale_rewards": "none"},
        replace(replace(NO_KL, scale=NoScale()), aggregation=TokenMean()),
    ),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient(peer: Peer, name: str, seed: int) -> None:
    """Ragged, off policy, with tokens in the middle that the policy did not choose."""
    options, estimator = CASES[name]
    samples = draw(seed, holes=seed > 0)
    agree(ours(estimator, samples), peer(samples, **options))


@pytest.mark.parametrize(
    "name", ["grpo, k3", "grpo, k3 times ratio", "dapo", "gspo", "cispo", "sapo", "luspo"]
)
def test_on_policy(peer: Peer, name: str) -> None:
    """With one update per rollout TRL stores no log π_old and takes log π, detached, for it."""
    options, estimator = CASES[name]
    samples = draw(7).on_policy()
    assert (
        "old_per_token_logps"
        not in peer.batches(peer.trainer(samples, num_iterations=1, **options), samples)[0]
    )
    agree(ours(estimator, samples), peer(samples, num_iterations=1, **options))


def test_the_samples_reach_every_branch() -> None:
    """Else a parity test could pass without the clip: both sides of it, the cap, and every sign of
    A are in the samples.
    """
    surrogate = Clip(ratio_cap=1.5)
    for seed in range(3):
        samples = draw(seed, holes=seed > 0)
        frozen = NO_KL.freeze(samples.rollout)
        log_ratio = NO_KL.log_ratio(Policy(samples.new), samples.rollout)[samples.mask]
        advantage, ratio = frozen.advantage[samples.mask], log_ratio.exp()
        flat = surrogate.clipped(log_ratio, samples.new[samples.mask], advantage)
        assert bool((flat & (advantage > 0)).any())
        assert bool((flat & (advantage < 0) & (ratio < 0.8)).any())
        assert bool((flat & (advantage < 0) & (ratio > 1.5)).any())
        assert bool((advantage == 0).any())
        assert len(samples.length.unique()) > 3


# ---------------------------------------------------------------- advantages


@pytest.mark.parametrize("name", ["grpo", "scale_rewards=batch", "scale_rewards=none"])
def test_advantages(peer: Peer, name: str) -> None:
    """The group's mean under every scale; ddof 1 and eps 1e-4; the std of the batch around the
    batch's own mean.
    """
    samples, (options, estimator) = draw(3), CASES[name]
    mine = estimator.freeze(samples.rollout).advantage
    theirs = peer.advantage(samples, **options).unsqueeze(-1)
    close(mine, torch.where(samples.mask, theirs, 0.0))
    apart(mine, 0 * mine)


@pytest.mark.parametrize(("ddof", "eps"), [(0, 1e-4), (1, 1e-6), (0, 1e-6)])
def test_std_differs_by_ddof_and_eps(peer: Peer, ddof: int, eps: float) -> None:
    """Ours, by default, is the population's std + 1e-6: A differs from TRL's by (std₁ + 1e-4) /
    (std + eps), and by nothing else.
    """
    samples, std = draw(3), lambda ddof: draw(3).score.std(-1, correction=ddof, keepdim=True)
    mine = replace(NO_KL, scale=GroupStd(ddof, eps)).freeze(samples.rollout).advantage[..., 0]
    theirs = peer.advantage(samples)
    close(mine, theirs * (std(1) + 1e-4) / (std(ddof) + eps))
    apart(mine, theirs)


def test_silent_groups(peer: Peer) -> None:
    """Seven rewards of .7 in float32: exactly 0 here, since max = min; in TRL what the mean's
    rounding leaves, over eps.
    """
    torch.set_default_dtype(torch.float32)
    samples = draw(0, prompts=1, group=7)
    samples = with_fields(samples, score=torch.full((1, 7), 0.7))
    theirs = peer.advantage(samples)
    assert 1e-5 < float(theirs.abs().max()) < 1e-2
    mine = NO_KL.freeze(with_fields(samples, old=samples.old.float()).rollout).advantage
    assert bool((mine == 0).all())


def test_a_group_of_one_is_refused(peer: Peer) -> None:
    """Both: a mean of one says nothing."""
    samples = draw(0, prompts=4, group=1)
    with pytest.raises(ValueError, match="at least 2 generations"):
        peer.trainer(samples)
    with pytest.raises(ValueError, match="G ≥ 2"):
        NO_KL.freeze(samples.rollout)


# --------------------------------------------------------- samples without a token, micro-batches


@pytest.mark.parametrize(
    "name", ["grpo, k3", "bnpo, k3", "dapo", "dr_grpo, k3", "gspo, k3", "cispo", "sapo", "luspo"]
)
def test_overlong_masking(peer: Peer, name: str) -> None:
    """TRL's truncated completions keep their part in mean and std, lose their tokens, and still
    count as samples (`count_empty`).
    """
    options, estimator = CASES[name]
    estimator = trl(replace(estimator, sample_filter=DropTruncated()))
    for seed in (5, 6):
        samples = draw(seed, truncated=True, holes=seed == 6)
        assert int(samples.truncated.sum()) > 1
        agree(ours(estimator, samples), peer(samples, mask_truncated_completions=True, **options))


@pytest.mark.parametrize("name", ["grpo, k3", "dr_grpo, k3", "luspo", "dapo"])
def test_samples_without_a_token_do_not_count_by_default(peer: Peer, name: str) -> None:
    """Ours averages over the samples that have a token left, TRL over all: the loss differs by that
    factor, a token mean by none.
    """
    options, estimator = CASES[name]
    estimator = replace(
        estimator,
        sample_filter=DropTruncated(),
        aggregation=with_fields(estimator.aggregation, count_empty=False),
    )
    samples = draw(5, truncated=True)
    factor = 1.0 if name == "dapo" else float((~samples.truncated).double().mean())
    mine, theirs = (
        ours(estimator, samples),
        peer(samples, mask_truncated_completions=True, **options),
    )
    close(mine.loss * factor, theirs.loss)
    close(mine.gradient * factor, theirs.gradient)


@pytest.mark.parametrize(
    "name",
    ["grpo, k3", "dapo, k3 times ratio", "dr_grpo, k3", "gspo", "cispo, k3", "sapo", "luspo"],
)
def test_micro_batches_add_up(peer: Peer, name: str) -> None:
    """TRL shuffles samples over micro-batches, after the advantages: their losses add up to that of
    the whole batch.
    """
    options, estimator = CASES[name]
    samples = draw(1)
    agree(ours(estimator, samples), peer(samples, parts=3, **options))


def test_bnpo_depends_on_micro_batches(peer: Peer) -> None:
    """TRL's "bnpo" divides by the tokens of the micro-batch: with several, a token's weight is
    1/(parts · its batch's tokens).
    """
    samples, parts = draw(1), 3
    options, estimator = CASES["bnpo"]
    mine = ours(estimator, samples)
    theirs = peer.losses(samples, parts=parts, **options)
    for batch, one in zip(
        peer.batches(peer.trainer(samples, parts=parts, **options), samples), theirs, strict=True
    ):
        index = batch["prompt_ids"][:, -1] - FIRST
        factor = samples.mask.sum() / (parts * samples.mask.flatten(0, 1)[index].sum())
        close(one.gradient.flatten(0, 1)[index], mine.gradient.flatten(0, 1)[index] * factor)
    apart(sum(one.gradient for one in theirs), mine.gradient)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["grpo, k3", "dapo", "dr_grpo", "luspo"])
def test_minibatches_are_scaled(peer: Peer, name: str) -> None:
    """A step on one of n minibatches: ours is its share of the batch's loss, TRL's is n times that,
    the size of a whole batch's.

    For "dapo" and "cispo" the divisor is the average number of tokens per step, not the minibatch's
    own.
    """
    samples, steps = draw(1), 3
    options, estimator = CASES[name]
    mine = ours(estimator, samples)
    theirs = peer(
        samples, parts=steps, gradient_accumulation_steps=1, steps_per_generation=steps, **options
    )
    close(theirs.gradient, mine.gradient * steps)
    close(theirs.loss, mine.loss * steps)


# ---------------------------------------------------------------- defaults and single differences


def test_trl_defaults() -> None:
    """What `GRPOConfig()` and `RLOOConfig()` do when nothing is said."""
    args = GRPOConfig("unused", use_cpu=True, bf16=False)
    expected = {
        "loss_type": "dapo",
        "scale_rewards": "group",
        "importance_sampling_level": "token",
        "use_bias_correction_kl": True,
        "mask_truncated_completions": False,
        "beta": 0.0,
        "epsilon": 0.2,
        "epsilon_high": None,
        "delta": None,
        "num_iterations": 1,
        "num_generations": 8,
        "temperature": 1.0,
        "disable_dropout": False,
        "sapo_temperature_pos": 1.0,
        "sapo_temperature_neg": 1.05,
    }
    assert {name: getattr(args, name) for name in expected} == expected
    rloo = RLOOConfig("unused", use_cpu=True, bf16=False)
    assert (rloo.num_generations, rloo.beta, rloo.epsilon, rloo.normalize_advantages) == (
        2,
        0.05,
        0.2,
        False,
    )


def test_dr_grpo_leaves_the_std_on(peer: Peer) -> None:
    """`loss_type="dr_grpo"` alone changes the divisor and nothing else: Dr.

    GRPO needs `scale_rewards="none"`, too.
    """
    samples = draw(2)
    theirs = peer(samples, loss_type="dr_grpo")
    agree(ours(replace(NO_KL, aggregation=ConstantLength()), samples), theirs)
    apart(ours(ladder.dr_grpo, samples).gradient, theirs.gradient)


def test_cispo_bound_is_absolute(peer: Peer) -> None:
    """TRL's weight is min(ρ, epsilon_high), ours clip(ρ, ·, 1 + ε_high): left unset TRL's bound is
    0.2, which ours refuses.
    """
    samples = draw(2)
    weight = (samples.new - samples.old).exp().clamp(max=0.2)
    advantage = NO_KL.freeze(samples.rollout).advantage
    theirs = peer(samples, loss_type="cispo")
    close(theirs.gradient, -weight * advantage / samples.mask.sum())
    with pytest.raises(ValueError, match=r"CISPO.epsilon_high: got -0\.8"):
        CISPO(epsilon_high=0.2 - 1)


def test_delta_below_the_clip_also_cuts_what_is_good(peer: Peer) -> None:
    """At δ < 1 + ε_high the cap binds where A > 0: `ratio_cap` does as TRL, `dual_clip` is refused
    there.
    """
    samples, name = draw(2), "delta within the clip"
    theirs = peer(samples, **CASES[name][0])
    apart(theirs.gradient, peer(samples, loss_type="grpo").gradient)
    with pytest.raises(ValueError, match=r"Clip\.dual_clip: got 1\.1"):
        Clip(dual_clip=1.1)


def test_kl_times_a_sequence_ratio(peer: Peer) -> None:
    """TRL multiplies k3 of each token by the sequence's ratio, which moves all tokens:
    `whole=True`. Ours moves its own.
    """
    samples = draw(2)
    options, estimator = CASES["gspo, k3 times ratio"]
    mine, theirs = (
        ours(replace(estimator, ratio=SequenceMeanRatio()), samples),
        peer(samples, **options),
    )
    close(mine.loss, theirs.loss)
    apart(mine.gradient, theirs.gradient)


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "luspo"])
def test_entropy_bonus(peer: Peer, loss_type: str) -> None:
    """TRL's bonus is the mean entropy per token whatever the loss; ours is weighed as the loss is,
    so they agree for a token mean.
    """
    samples = draw(4)
    bonus = peer(samples, loss_type=loss_type, entropy_coef=0.3)
    plain = peer(samples, loss_type=loss_type)
    mine = ours(replace(replace(NO_KL, aggregation=TokenMean()), entropy_coef=0.3), samples)
    without = ours(replace(NO_KL, aggregation=TokenMean()), samples)
    close(bonus.loss - plain.loss, mine.loss - without.loss)
    close(bonus.by_dist, mine.by_dist)
    apart(mine.by_dist, 0 * mine.by_dist)
    if loss_type in ("bnpo", "dapo"):
        agree(mine, bonus)
    if loss_type == "grpo":
        apart(ours(replace(NO_KL, entropy_coef=0.3), samples).by_dist, bonus.by_dist)


def test_adaptive_entropy_waits_for_one_step(peer: Peer) -> None:
    """TRL's first step has no bonus, however low the entropy; ours has the initial coefficient."""
    samples = draw(4)
    adaptive = {"use_adaptive_entropy": True, "entropy_coef": 0.3, "entropy_target": 1e3}
    found, plain = peer(samples, loss_type="dapo", **adaptive), peer(samples, loss_type="dapo")
    close(found.loss, plain.loss)
    base = replace(NO_KL, aggregation=TokenMean())
    mine = ours(replace(base, entropy_coef=AdaptiveEntropy(1e3, initial=0.3)), samples)
    agree(mine, peer(samples, loss_type="dapo", entropy_coef=0.3))


# ---------------------------------------------------------------- RLOO

RLOO = replace(
    replace(
        replace(replace(ladder.rloo, ratio=SequenceRatio(whole=True)), surrogate=Clip(0.2)),
        kl=K1(beta=0.05, place=InReward()),
    ),
    aggregation=SequenceMean(count_empty=True),
)


@pytest.mark.parametrize("seed", range(3))
def test_rloo(peer: Peer, seed: int) -> None:
    """TRL's RLOOTrainer by its defaults: k1 in the reward, leave one out, the clipped ratio of the
    whole sequence.
    """
    agree(ours(RLOO, draw(seed)), peer(draw(seed), "RLOO"))


def test_rloo_without_kl_and_with_another_clip(peer: Peer) -> None:
    """The options that change it."""
    estimator = replace(replace(RLOO, kl=NoKL()), surrogate=Clip(0.3))
    agree(ours(estimator, draw(1)), peer(draw(1), "RLOO", beta=0.0, epsilon=0.3))


def test_rloo_on_policy_is_the_policy_gradient(peer: Peer) -> None:
    """At ρ = 1 the gradient is that of the rung, A·∇log π; the values differ, and mean nothing:
    −mean A·log π and −mean A.
    """
    samples = draw(1).on_policy()
    mine, theirs = ours(ladder.rloo, samples), peer(samples, "RLOO", beta=0.0)
    close(mine.gradient, theirs.gradient)
    apart(mine.gradient, 0 * mine.gradient)
    close(theirs.loss, torch.zeros(()))  # leave-one-out advantages of a group add up to 0
    apart(mine.loss, theirs.loss)


def test_rloo_ratio_by_token_sum(peer: Peer) -> None:
    """Our sequence ratio under `SequenceSum` has TRL's gradient where the clip is open, and |o|
    times each sample's value.
    """
    samples = draw(1)
    estimator = replace(replace(RLOO, ratio=SequenceRatio()), aggregation=SequenceSum())
    mine, theirs = ours(estimator, samples), peer(samples, "RLOO")
    close(mine.gradient, theirs.gradient)
    apart(mine.loss, theirs.loss)


def test_rloo_truncated_samples_are_a_constant(peer: Peer) -> None:
    """TRL empties a truncated sample's mask: ρ = 1, no KL, no gradient, and −A/N left in the loss's
    value; ours leaves 0, and with a KL in the reward keeps its part in the others' baselines.
    """
    samples = draw(5, truncated=True)
    kept = replace(RLOO, sample_filter=DropTruncated())
    mine = ours(replace(kept, kl=NoKL()), samples)
    theirs = peer(samples, "RLOO", beta=0.0, mask_truncated_completions=True)
    lost = peer.advantage(samples, "RLOO", beta=0.0, mask_truncated_completions=True)
    lost = lost[samples.truncated]
    close(mine.gradient, theirs.gradient)
    close(mine.loss - lost.sum() / samples.score.numel(), theirs.loss)
    apart(lost, 0 * lost)
    without = peer(samples, "RLOO", mask_truncated_completions=True)
    apart(ours(kept, samples).gradient, without.gradient)


def test_samples_without_a_token_count_in_trls_mean_and_std(peer: Peer) -> None:
    """TRL compares a completion with every reward of its group; ours with those of samples that
    have a token.
    """
    samples = draw(3)
    score = samples.score.clone()
    score[0] = torch.arange(score.shape[-1]) ** 2.0
    samples, mask = with_fields(samples, score=score), samples.mask.clone()
    mask[0, 0] = False
    emptied = with_fields(samples, mask=mask)
    estimator = replace(NO_KL, scale=GroupStd(1, 1e-4))
    mine, theirs = estimator.freeze(emptied.rollout).advantage, peer.advantage(emptied)
    close(theirs, peer.advantage(samples))
    rest = samples.score[0, 1:]
    found = (rest - rest.mean()) / (rest.std() + 1e-4)
    close(mine[0, 1:], torch.where(mask[0, 1:], found.unsqueeze(-1), 0.0))
    close(mine[1:], torch.where(mask[1:], theirs[1:].unsqueeze(-1), 0.0))
    apart(found, theirs[0, 1:])


# ---------------------------------------------------------------- log-probabilities and entropy


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_prob_and_entropy(peer: Peer, temperature: float) -> None:
    """TRL scores the temperature's distribution, too, in float32 whatever the model's type; ours
    bars PAD from it, TRL does not.
    """
    samples = draw(0)
    trainer = peer.trainer(samples, temperature=temperature)
    model, generator = (
        trainer.model.eval(),
        torch.Generator().manual_seed(1),
    )  # while it trains, TRL leaves dropout on
    tokens = torch.randint(FIRST, PAD, (5, 8), generator=generator)
    length = 6  # of the completion
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
        found, entropy, _ = trainer._get_per_token_logps_and_entropies(
            model, tokens, torch.ones_like(tokens), length, compute_entropy=True
        )
        logits = model(tokens).logits[:, -length - 1 : -1]
    log_dist = torch.log_softmax(logits / temperature, -1)
    chosen = log_dist.gather(-1, tokens[:, -length:].unsqueeze(-1)).squeeze(-1)
    assert found.dtype == torch.float32
    assert log_dist.dtype == torch.float64
    torch.testing.assert_close(found.double(), chosen, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        entropy.double(), Policy(chosen, log_dist).entropy, rtol=1e-5, atol=1e-5
    )
    barred = (
        next_token_log_dist(logits, temperature)
        .gather(-1, tokens[:, -length:].unsqueeze(-1))
        .squeeze(-1)
    )
    close(barred, chosen - torch.log1p(-log_dist[..., PAD].exp()))
    apart(barred, chosen)


def test_log_prob_and_entropy_of_logits() -> None:
    """TRL's own functions on given logits, which keep float64."""
    logits = torch.randn(2, 3, 11, generator=torch.Generator().manual_seed(0))
    index = torch.tensor([[0, 5, 10], [3, 3, 7]])
    log_dist = torch.log_softmax(logits, -1)
    chosen = log_dist.gather(-1, index.unsqueeze(-1)).squeeze(-1)
    close(chosen, selective_log_softmax(logits, index))
    close(Policy(chosen, log_dist).entropy, entropy_from_logits(logits))


# ---------------------------------------------------------------- a sampler that is not π_old


def correcting(mode: str, low: float | None = None, high: float | None = 3.0) -> dict[str, Any]:
    """TRL's options for a correction."""
    prefix = "vllm_importance_sampling"
    return {
        f"{prefix}_mode": mode,
        f"{prefix}_clip_min": low,
        f"{prefix}_clip_max": high,
    }


CORRECTIONS = {
    "token TIS": (correcting("token_truncate", None, 1.2), TokenTIS(1.2)),
    "token TIS without a cap": (correcting("token_truncate", 0.0, None), TokenTIS(None)),
    "sequence TIS": (correcting("sequence_truncate", None, 1.3), SequenceTIS(1.3)),
    "token MIS": (correcting("token_mask", 0.6, 1.6), TokenMIS(0.6, 1.6)),
    "token MIS without an upper bound": (correcting("token_mask", 0.8, None), TokenMIS(0.8, None)),
    "sequence MIS": (correcting("sequence_mask", 0.5, 2.0), SequenceMIS(0.5, 2.0)),
    "TRL's default": (correcting("sequence_mask"), SequenceMIS()),
}


@pytest.mark.parametrize(
    "name", ["grpo, k3", "grpo, k3 times ratio", "dapo", "dr_grpo, k3", "gspo", "cispo, k3", "sapo"]
)
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_corrections(peer: Peer, correction: str, name: str) -> None:
    """Truncated and masked, by token and by sequence: TRL's weights under each of its losses; what
    is dropped stays in the divisor and keeps its KL. Weights by token meet the gradient of a whole
    sequence's ratio in TRL, hence `whole`.
    """
    (options, part), (loss, estimator) = CORRECTIONS[correction], CASES[name]
    if name == "gspo":
        estimator = replace(estimator, ratio=SequenceMeanRatio(whole=True))
    samples = draw(4, holes=True)
    mine = ours(replace(estimator, correction=part), samples)
    agree(mine, peer(samples, **loss, **options))
    apart(mine.gradient, ours(estimator, samples).gradient)


def test_vespo_has_the_sampler_inside_its_weight(peer: Peer) -> None:
    """TRL's W is Π ρκ, so ours is TRL's with μ for π_old; a correction outside φ is refused."""
    options, estimator = CASES["vespo"]
    samples = draw(4, holes=True)
    theirs = peer(samples, **options, **correcting("token_truncate", None, 1e9))
    mine = ours(estimator, with_fields(samples, old=samples.sampler))
    agree(mine, theirs)
    apart(mine.gradient, ours(estimator, samples).gradient)
    with pytest.raises(CourseError, match=r"GammaWeight.*clashes with TokenTIS.*rollout\.log_prob"):
        replace(estimator, correction=TokenTIS())


def test_the_corrections_reach_every_branch() -> None:
    """Some weights are cut and others not, or the agreement would say nothing."""
    samples = draw(4, holes=True)
    whole = torch.where(samples.mask, samples.old - samples.sampler, 0.0)
    for kappa, bounds in ((whole.exp(), (0.6, 1.2, 1.6)), (whole.sum(-1).exp(), (0.5, 1.3, 2.0))):
        for bound in bounds:
            assert 0 < int((kappa > bound).sum()) < kappa.numel()


def test_the_kl_is_not_corrected(peer: Peer) -> None:
    """With a mask that drops every sample, what is left of TRL's loss is β·k3 and nothing else."""
    samples = draw(4)
    options = correcting("sequence_mask", 1e6, None)
    only_kl = peer(samples, loss_type="grpo", **KL, **options)
    mine = ours(replace(GRPO, correction=SequenceMIS(1e6, None)), samples)
    agree(mine, only_kl)
    no_reward = with_fields(samples, score=torch.zeros_like(samples.score))
    close(mine.gradient, ours(GRPO, no_reward).gradient)


def test_a_missing_sampler_log_prob_is_no_correction_in_trl(peer: Peer) -> None:
    """NaN, where the engine could not score a token, is κ = 1 in TRL; we refuse it."""
    samples = draw(4)
    holes = samples.mask & (torch.arange(samples.mask.shape[-1]) == 0)
    lacking = with_fields(samples, sampler=samples.sampler.masked_fill(holes, torch.nan))
    filled = with_fields(samples, sampler=torch.where(holes, samples.old, samples.sampler))
    options = {"loss_type": "grpo", **correcting("token_truncate", None, 1.2)}
    estimator = replace(NO_KL, correction=TokenTIS(1.2))
    agree(ours(estimator, filled), peer(lacking, **options))
    with pytest.raises(CourseError, match="sampler_log_prob: got nan"):
        ours(estimator, lacking)


# ---------------------------------------------------------------- several rewards


def several(seed: int, count: int) -> Tensor:
    """Rewards [Q, G, C] in halves, some of which do not vary in their group."""
    generator = torch.Generator().manual_seed(seed)
    shape = (*draw(seed).score.shape, count)
    made = torch.randint(-2, 3, shape, generator=generator).to(torch.float64) / 2
    made[0, :, 0] = 0.5
    return made


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.25), (2.0, -1.0, 0.5)])
def test_several_rewards_normalised_then_added(
    peer: Peer, weights: tuple[float, ...], seed: int
) -> None:
    """TRL's `multi_objective_aggregation="normalize_then_sum"` is GDPO."""
    samples, components = draw(seed, holes=seed > 0), several(seed, len(weights))
    estimator = trl(replace(ladder.length_mean, scale=EachReward(weights)))
    options = {"loss_type": "grpo", "multi_objective_aggregation": "normalize_then_sum"}
    given = options | {"reward_weights": list(weights), "components": components}
    rollout = with_fields(samples.rollout, components=components)
    agree(ours(estimator, samples, rollout), peer(samples, **given))
    advantage = peer.advantage(samples, **given).unsqueeze(-1)
    close(estimator.freeze(rollout).advantage, torch.where(samples.mask, advantage, 0.0))


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.25)])
def test_several_rewards_added_then_normalised(peer: Peer, weights: tuple[float, ...]) -> None:
    """TRL's default, "sum_then_normalize", is a rung of ours on the weighted sum."""
    samples, components = draw(1), several(1, len(weights))
    total = (components * torch.tensor(weights, dtype=torch.float64)).sum(-1)
    given = {"reward_weights": list(weights), "components": components, "loss_type": "grpo"}
    mine = ours(NO_KL, with_fields(samples, score=total))
    agree(mine, peer(samples, **given))
    apart(mine.gradient, ours(NO_KL, samples).gradient)


# ---------------------------------------------------------------- the table of names

SELECTED = [row for row in table("The same rung in TRL and verl") if row[1].startswith("`")]


@pytest.mark.parametrize("row", SELECTED, ids=[row[0].strip("`") for row in SELECTED])
def test_the_options_of_the_table_select_the_rung(peer: Peer, row: list[str]) -> None:
    """What `course/CONVENTIONS.md` says selects a rung in TRL does: the same loss and gradient,
    given TRL's ddof, eps and count.
    """
    estimator = trl(get(row[0].strip("`")).estimator)
    call = ast.parse(row[1].split("`")[1], mode="eval").body
    assert isinstance(call, ast.Call)
    assert isinstance(call.func, ast.Name)
    options = {
        word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg is not None
    }
    remark = row[1].split("`")[2].strip(" ,")
    samples = draw(8, prompts=1, group=8) if "one prompt per batch" in remark else draw(8)
    if "on policy" in remark:  # ρ = 1: the gradient is the rung's
        samples = samples.on_policy()
        close(
            ours(estimator, samples).gradient,
            peer(samples, call.func.id.removesuffix("Config"), **options).gradient,
        )
    else:
        agree(
            ours(estimator, samples), peer(samples, call.func.id.removesuffix("Config"), **options)
        )
