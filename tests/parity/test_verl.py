"""Our estimators against verl's own functions (`core_algos`) on the same tensors.

Runs where they can be imported.

verl's trainers need a cluster runtime, so here its functions are called in the order of its actor:
KL in the reward, advantages, policy loss, KL loss, aggregation. verl pins older versions of what
TRL needs and is not in the extra `peers`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import fields
from dataclasses import replace as with_fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("verl.trainer.ppo.core_algos")

from verl.trainer.config import AlgoConfig
from verl.trainer.ppo import core_algos as core
from verl.workers.config import ActorConfig

from course import ladder
from course.estimator import Estimator, Frozen, replace
from course.lesson.conventions import table
from course.parts import (
    CISPO,
    GAE,
    K2,
    K3,
    AdaptiveBeta,
    Clip,
    ConstantLength,
    DropTruncated,
    GroupStd,
    ImportanceSampling,
    SequenceMean,
    SequenceMeanRatio,
    SequenceSum,
    TokenMean,
    TokenWhitening,
    Value,
)
from course.registry import get
from course.rollout import Policy
from tests.parity.samples import LIMIT, Result, Samples, agree, apart, close, draw, ours

ALGORITHM = (
    "adv_estimator",
    "norm_adv_by_std_in_grpo",
    "gamma",
    "lam",
    "use_kl_in_reward",
    "kl_penalty",
    "kl_coef",
)


def verl(estimator: Estimator) -> Estimator:
    """Ours with verl's conventions for the std, and nothing else touched."""
    scale = estimator.scale
    if isinstance(scale, GroupStd | TokenWhitening):
        scale = with_fields(scale, ddof=1)
    return replace(estimator, scale=scale)


def rewards(
    samples: Samples,
    *,
    use_kl_in_reward: bool = False,
    kl_penalty: str = "kl",
    kl_coef: float = 0.001,
    **_: Any,
) -> Tensor:
    """[B, T] the reward on each sample's last token, less verl's KL penalty of π_old."""
    reward = samples.rollout.reward
    if use_kl_in_reward:
        reward = (
            reward - kl_coef * core.kl_penalty(samples.old, samples.ref, kl_penalty) * samples.mask
        )
    return reward.flatten(0, 1)


def advantages(samples: Samples, *, adv_estimator: str, **options: Any) -> Tensor:
    """[Q, G, T] verl's advantages."""
    group = samples.score.shape[1]
    given = {
        name: options.pop(name)
        for name in ("values", "reward_baselines", "norm_adv_by_std_in_grpo")
        if name in options
    }
    config = AlgoConfig(gamma=options.get("gamma", 1.0), lam=options.get("lam", 1.0))
    if adv_estimator == "gae":
        given |= {"gamma": config.gamma, "lam": config.lam}
    else:
        given |= {"index": np.arange(samples.score.numel()) // group, "config": config}
    found, _ = core.get_adv_estimator_fn(adv_estimator)(
        token_level_rewards=rewards(samples, **options),
        response_mask=samples.mask.flatten(0, 1).to(samples.old.dtype),
        **given,
    )
    return found.view(samples.mask.shape)


def peer(
    samples: Samples,
    *,
    tokens: int | None = None,
    rows: int | None = None,
    loss_mode: str = "vanilla",
    **options: Any,
) -> Result:
    """verl's actor loss and its gradients.

    `tokens` and `rows` of the global batch, by default those that have a mask.
    """
    chosen = {
        name: options.pop(name) for name in (*ALGORITHM, "reward_baselines") if name in options
    }
    advantage = advantages(samples, **chosen).flatten(0, 1)
    info = {
        "dp_size": 1,
        "batch_num_tokens": tokens,
        "global_batch_size": rows,
        "loss_scale_factor": options.get("loss_scale_factor"),
    }
    actor = ActorConfig(
        strategy="fsdp",
        rollout_n=4,
        ppo_micro_batch_size_per_gpu=1,
        global_batch_info=info,
        **options,
    )
    new, log_dist = samples.new.clone().requires_grad_(), samples.log_dist.clone().requires_grad_()
    mask, flat = samples.mask.flatten(0, 1), new.flatten(0, 1)
    loss, _ = core.get_policy_loss_fn(loss_mode)(
        old_log_prob=samples.old.flatten(0, 1),
        log_prob=flat,
        advantages=advantage,
        response_mask=mask,
        loss_agg_mode=actor.loss_agg_mode,
        config=actor,
    )
    if actor.entropy_coeff:
        entropy = Policy(new, log_dist).entropy.flatten(0, 1)
        loss = loss - actor.entropy_coeff * core.agg_loss(
            entropy, mask, actor.loss_agg_mode, **info
        )
    if actor.use_kl_loss:
        kl = core.kl_penalty(flat, samples.ref.flatten(0, 1), actor.kl_loss_type)
        loss = loss + actor.kl_loss_coef * core.agg_loss(kl, mask, actor.loss_agg_mode, **info)
    gradient, by_dist = torch.autograd.grad(
        loss, (new, log_dist), allow_unused=True, materialize_grads=True
    )
    return Result(loss.detach(), gradient, by_dist)


GRPO = {"adv_estimator": "grpo", "loss_agg_mode": "seq-mean-token-mean", "clip_ratio_c": 1e9}
NO_KL = verl(ladder.length_mean)
NEAR = 1e-8  # verl adds 1e-8 to |o| and to counts of tokens; everything else is held to 1e-9

# ---------------------------------------------------------------- the table of names

SELECTED = [row for row in table("The same rung in TRL and verl") if row[2].startswith("`")]


@pytest.mark.parametrize("row", SELECTED, ids=[row[0].strip("`") for row in SELECTED])
@pytest.mark.parametrize("seed", range(2))
def test_the_options_of_the_table_select_the_rung(row: list[str], seed: int) -> None:
    """What `course/CONVENTIONS.md` says selects a rung in verl does: the same loss and gradient,
    given verl's ddof.
    """
    samples = draw(seed, holes=seed > 0)
    words = [word.split("=") for word in row[2].split("`")[1].split()]
    options: dict[str, Any] = {name: _value(text) for name, text in words}
    estimator = verl(get(row[0].strip("`")).estimator)
    remark = row[2].split("`")[2]
    if "one prompt per batch" in remark:
        samples = draw(seed, prompts=1, group=8, holes=seed > 0)
    if "singletons" in remark:
        samples = draw(seed, prompts=12, group=1, holes=seed > 0)
    if options.get("loss_scale_factor"):
        options["loss_scale_factor"] = LIMIT
    if options.get("adv_estimator") == "remax":
        greedy = torch.arange(len(samples.score)) / 4
        options["reward_baselines"] = greedy.repeat_interleave(samples.score.shape[1]).to(
            samples.old.dtype
        )
        rollout = with_fields(samples.rollout, greedy_reward=greedy.to(samples.old.dtype))
    else:
        rollout = samples.rollout
    if "on policy" in remark:
        samples = samples.on_policy()
    mine, theirs = ours(estimator, samples, rollout), peer(samples, **options)
    if "on policy" in remark:
        near(mine.gradient, theirs.gradient)
        apart(mine.gradient, 0 * mine.gradient)
    else:
        near(mine.loss, theirs.loss)
        near(mine.gradient, theirs.gradient)
        apart(mine.gradient, 0 * mine.gradient)


def _value(text: str) -> Any:
    if text in ("True", "False"):
        return text == "True"
    try:
        return float(text)
    except ValueError:
        return text


def near(mine: Tensor, theirs: Tensor) -> None:
    """Equal up to verl's 1e-8 in divisors."""
    torch.testing.assert_close(mine, theirs, rtol=NEAR, atol=NEAR)


# ---------------------------------------------------------------- single conventions


def test_std() -> None:
    """verl's std is the sample's, with 1e-6 added; a group of one keeps its reward."""
    samples = draw(3)
    close(verl(NO_KL).freeze(samples.rollout).advantage, advantages(samples, adv_estimator="grpo"))
    apart(
        ladder.length_mean.freeze(samples.rollout).advantage,
        advantages(samples, adv_estimator="grpo"),
    )
    alone = draw(3, prompts=4, group=1)
    found = advantages(alone, adv_estimator="grpo")
    torch.testing.assert_close(
        found, alone.score.unsqueeze(-1) * alone.mask / (1 + 1e-6), rtol=1e-6, atol=0
    )


def test_silent_groups() -> None:
    """Seven rewards of .7 in float32: exactly 0 here; in verl the mean's rounding over 1e-6."""
    samples = with_fields(
        draw(0, prompts=1, group=7), score=torch.full((1, 7), 0.7, dtype=torch.float32)
    )
    samples = with_fields(samples, old=samples.old.float())
    assert 1e-3 < float(advantages(samples, adv_estimator="grpo").abs().max()) < 1
    assert bool((NO_KL.freeze(samples.rollout).advantage == 0).all())


def test_token_whitening() -> None:
    """verl whitens with the sample variance over tokens: `TokenWhitening(ddof=1)`."""
    samples = draw(2)
    theirs = advantages(samples, adv_estimator="reinforce_plus_plus_baseline")
    near(verl(ladder.group_whitened).freeze(samples.rollout).advantage, theirs)
    apart(ladder.group_whitened.freeze(samples.rollout).advantage, theirs)


def test_gae_is_always_whitened() -> None:
    """verl's `gae` is ours with `TokenWhitening(ddof=1)`: the rung `ppo` leaves it out."""
    samples = draw(2)
    value = samples.ref  # any numbers
    rollout = with_fields(samples.rollout, value=value, truncated=None)
    theirs = advantages(
        samples, adv_estimator="gae", values=value.flatten(0, 1), gamma=0.9, lam=0.8
    )
    estimator = Estimator(credit=GAE(0.9, 0.8), baseline=Value(), scale=TokenWhitening(ddof=1))
    near(estimator.freeze(rollout).advantage, theirs * samples.mask)
    apart(
        replace(estimator, scale=ladder.ppo.scale).freeze(rollout).advantage, theirs * samples.mask
    )


def test_clip_ratio_alone_does_nothing() -> None:
    """`clip_ratio_low` and `clip_ratio_high` have a default of their own, 0.2."""
    samples = draw(1)
    agree_near(ours(NO_KL, samples), peer(samples, **GRPO, clip_ratio=0.5))


def test_dual_clip_is_always_on() -> None:
    """c = 3 by default; with far samples it binds, and is our `dual_clip` or `ratio_cap`."""
    samples = draw(1)
    samples = with_fields(samples, new=samples.old + 3 * (samples.new - samples.old))
    options = {name: value for name, value in GRPO.items() if name != "clip_ratio_c"}
    theirs = peer(samples, **options)
    for surrogate in (Clip(dual_clip=3.0), Clip(ratio_cap=3.0)):
        agree_near(ours(replace(NO_KL, surrogate=surrogate), samples), theirs)
    apart(ours(NO_KL, samples).gradient, theirs.gradient)


def test_dual_clip_below_the_clip() -> None:
    """verl takes any c > 1: under 1 + ε_high it flattens A < 0 between c and 1 + ε_high.

    Ours refuses it; `ratio_cap` cuts A > 0.
    """
    samples = draw(1)
    options = {**GRPO, "clip_ratio_c": 1.1}
    theirs, clip = peer(samples, **options), ours(NO_KL, samples)
    advantage = NO_KL.freeze(samples.rollout).advantage
    flat = (advantage < 0) & ((samples.new - samples.old).exp() > 1.1)
    near(theirs.gradient, clip.gradient.masked_fill(flat, 0.0))
    apart(theirs.gradient, clip.gradient)
    apart(theirs.gradient, ours(replace(NO_KL, surrogate=Clip(ratio_cap=1.1)), samples).gradient)
    with pytest.raises(ValueError, match=r"Clip\.dual_clip: got 1\.1"):
        Clip(dual_clip=1.1)


def test_cispo_has_two_bounds() -> None:
    """verl's bounds are offsets from 1, as ours, and the lower one is 0.2 unless said otherwise."""
    samples = draw(1)
    estimator = replace(replace(NO_KL, surrogate=CISPO(0.2, 0.2)), aggregation=TokenMean())
    theirs = peer(samples, adv_estimator="grpo", loss_mode="cispo")
    agree(ours(estimator, samples), theirs)
    apart(ours(replace(estimator, surrogate=CISPO(0.2)), samples).gradient, theirs.gradient)


def test_gspo_default_aggregation_is_the_token_mean() -> None:
    """`loss_mode=gspo` keeps `loss_agg_mode=token-mean`, which is not GSPO's; its ratio is token by
    token, as ours.
    """
    samples = draw(1)
    estimator = replace(NO_KL, ratio=SequenceMeanRatio())
    theirs = peer(samples, adv_estimator="grpo", loss_mode="gspo")
    agree(ours(replace(estimator, aggregation=TokenMean()), samples), theirs)
    apart(ours(estimator, samples).gradient, theirs.gradient)


def test_log_ratios_are_clamped() -> None:
    """Beyond ±20 nats verl's ρ stands still; ours does not (a token of such a ratio has left every
    trust region).
    """
    samples = draw(1)
    far = with_fields(samples, new=torch.where(samples.mask, samples.old + 25.0, samples.old))
    theirs = peer(
        far, adv_estimator="rloo", clip_ratio_low=1.0, clip_ratio_high=1e12, clip_ratio_c=1e12
    )
    assert bool((theirs.gradient == 0).all())
    mine = ours(
        replace(replace(ladder.rloo, surrogate=ImportanceSampling()), aggregation=TokenMean()), far
    )
    torch.testing.assert_close(
        mine.loss, theirs.loss * torch.tensor(5.0).exp().to(theirs.loss), rtol=1e-6, atol=0
    )
    assert float(mine.gradient.abs().max()) > 1e6
    theirs = peer(
        far, adv_estimator="rloo", loss_mode="gspo", clip_ratio_low=1.0, clip_ratio_high=1e12
    )
    assert bool((theirs.gradient == 0).all())
    torch.testing.assert_close(mine.loss, theirs.loss * torch.tensor(15.0).exp(), rtol=1e-6, atol=0)


def test_k3_is_clamped() -> None:
    """|log r| ≤ 20 is our `max_log_r`; that the value is cut at 10, with no gradient beyond, ours
    has not.
    """
    samples = draw(1)
    for gap, same in ((2.0, True), (3.0, False)):
        far = with_fields(samples, ref=samples.new + gap)
        theirs = peer(far, **GRPO, use_kl_loss=True, kl_loss_coef=0.1)
        mine = ours(replace(NO_KL, kl=K3(beta=0.1, max_log_r=20.0)), far)
        if same:
            agree_near(mine, theirs)
        else:
            near(theirs.loss - ours(NO_KL, far).loss, torch.full_like(theirs.loss, 0.1 * 10))
            near(theirs.gradient, ours(NO_KL, far).gradient)
            apart(mine.gradient, theirs.gradient)
    huge = with_fields(samples, ref=samples.new - 30.0)
    close(core.kl_penalty(huge.new, huge.ref, "k3"), torch.full_like(huge.new, 10.0))
    close(
        K3(beta=1.0, max_log_r=20.0).estimate(huge.ref - huge.new),
        torch.full_like(huge.new, 19.0) + torch.tensor(-20.0).exp(),
    )


def test_k3_plus_has_the_gradient_of_k2() -> None:
    """verl's "+" is a third way to the gradient of KL(π‖ref), beside k2 itself and ρ·k3: the value
    of k3, the gradient of k2.
    """
    samples = draw(1)
    theirs = peer(samples, **GRPO, use_kl_loss=True, kl_loss_coef=0.1, kl_loss_type="k3+")
    near(ours(replace(NO_KL, kl=K3(beta=0.1)), samples).loss, theirs.loss)
    near(ours(replace(NO_KL, kl=K2(beta=0.1)), samples).gradient, theirs.gradient)


def test_dr_grpo_divisor_left_unset() -> None:
    """Without `loss_scale_factor` verl divides by the width of the micro-batch's tensor, which is
    not the generation limit.
    """
    samples = draw(1)
    theirs = peer(
        samples, adv_estimator="rloo", clip_ratio_c=1e9, loss_agg_mode="seq-mean-token-sum-norm"
    )
    estimator = replace(ladder.rloo, surrogate=Clip(0.2))
    agree(
        ours(replace(estimator, aggregation=ConstantLength(samples.mask.shape[-1])), samples),
        theirs,
    )
    apart(ours(replace(estimator, aggregation=ConstantLength()), samples).gradient, theirs.gradient)


def test_one_e_minus_eight_in_the_divisor() -> None:
    """`seq-mean-token-mean` divides by |o| + 1e-8: that is all that is left between the two."""
    samples = draw(1)
    theirs = peer(samples, **GRPO)
    length = samples.mask.sum(-1, keepdim=True).double()
    factor = length / (length + 1e-8)
    torch.testing.assert_close(
        ours(NO_KL, samples).gradient * factor, theirs.gradient, rtol=0, atol=1e-15
    )


@pytest.mark.parametrize("mode", ["seq-mean-token-mean", "seq-mean-token-sum"])
def test_samples_without_a_token(mode: str) -> None:
    """verl leaves them out of its own divisor, as ours; its trainer passes the global batch's size,
    which counts them.
    """
    samples = draw(5, truncated=True)
    emptied = with_fields(samples, mask=samples.mask & ~samples.truncated.unsqueeze(-1))
    aggregation = SequenceMean() if mode == "seq-mean-token-mean" else SequenceSum()
    estimator = replace(replace(NO_KL, aggregation=aggregation), sample_filter=DropTruncated())
    options = {**GRPO, "loss_agg_mode": mode}
    agree_near(ours(estimator, samples), peer(emptied, **options))
    counted = replace(estimator, aggregation=with_fields(aggregation, count_empty=True))
    agree_near(ours(counted, samples), peer(emptied, rows=samples.score.numel(), **options))


PARTS = {
    "token-mean": TokenMean(),
    "seq-mean-token-mean": SequenceMean(),
    "seq-mean-token-sum": SequenceSum(),
}


@pytest.mark.parametrize("mode", PARTS)
def test_micro_batches_add_up(mode: str) -> None:
    """With the global batch's tokens and rows, as verl's trainer passes them, micro-batches add up
    to the batch.
    """
    samples = draw(1)
    estimator, options = replace(NO_KL, aggregation=PARTS[mode]), {**GRPO, "loss_agg_mode": mode}
    parts = [
        peer(one, tokens=int(samples.mask.sum()), rows=samples.score.numel(), **options)
        for one in by_prompt(samples)
    ]
    near(ours(estimator, samples).loss, sum(part.loss for part in parts))  # type: ignore[arg-type]
    near(ours(estimator, samples).gradient, torch.cat([part.gradient for part in parts]))


@pytest.mark.parametrize("mode", PARTS)
def test_minibatches_are_scaled(mode: str) -> None:
    """A step on one of n minibatches: verl divides by the minibatch's own samples or tokens, ours
    by the batch's.
    """
    samples = draw(1)
    mine = ours(replace(NO_KL, aggregation=PARTS[mode]), samples)
    for index, one in enumerate(by_prompt(samples)):
        theirs = peer(one, **{**GRPO, "loss_agg_mode": mode})
        factor = samples.mask.sum() / one.mask.sum() if mode == "token-mean" else len(samples.score)
        near(mine.gradient[index : index + 1] * factor, theirs.gradient)


def by_prompt(samples: Samples) -> list[Samples]:
    """Each prompt's samples alone."""
    every = {field.name: getattr(samples, field.name) for field in fields(samples)}
    return [
        Samples(**{name: tensor[q : q + 1] for name, tensor in every.items()})
        for q in range(len(samples.score))
    ]


def test_verl_defaults() -> None:
    """What its settings do when nothing is said."""
    actor, algorithm = (
        ActorConfig(strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1),
        AlgoConfig(),
    )
    assert (
        algorithm.adv_estimator,
        algorithm.norm_adv_by_std_in_grpo,
        algorithm.use_kl_in_reward,
    ) == ("gae", True, False)
    assert (actor.policy_loss.loss_mode, actor.loss_agg_mode, actor.use_kl_loss) == (
        "vanilla",
        "token-mean",
        False,
    )
    assert (
        actor.clip_ratio_low,
        actor.clip_ratio_high,
        actor.clip_ratio_c,
        actor.kl_loss_type,
    ) == (0.2, 0.2, 3.0, "low_var_kl")


def test_entropy_bonus_is_weighed_as_the_loss() -> None:
    """As ours, and unlike TRL's."""
    samples = draw(1)
    agree_near(
        ours(replace(NO_KL, entropy_coef=0.3), samples), peer(samples, **GRPO, entropy_coeff=0.3)
    )


def test_adaptive_kl() -> None:
    """verl's controller is Ziegler et al. 2019's proportional one; ours is PPO's, which halves and
    doubles.
    """
    control = core.AdaptiveKLController(init_kl_coef=1.0, target_kl=0.1, horizon=10)
    control.update(current_kl=0.2, n_steps=1)
    assert control.value == pytest.approx(1.02)
    assert float(AdaptiveBeta(1.0, 0.1).update(torch.ones(()), torch.tensor(0.2))) == 2.0


def test_value_loss_is_clipped() -> None:
    """verl's critic loss is the larger of ½(V − R)² and that of V clipped around V_old; with a wide
    clip it is ours, and with any it is ours with that `value_clip`.
    """
    samples = draw(1)
    value, target = samples.new, samples.ref
    mask = samples.mask.flatten(0, 1)

    def loss(cliprange: float) -> Tensor:
        return core.compute_value_loss(
            value.flatten(0, 1), target.flatten(0, 1), samples.old.flatten(0, 1), mask, cliprange
        )[0]

    mine = 0.5 * ((value - target)[samples.mask] ** 2).mean()
    close(mine, loss(1e9))
    apart(mine, loss(0.1))
    rollout = dataclasses.replace(samples.rollout, value=samples.old)
    weight = samples.mask.double() / samples.mask.sum()
    frozen = Frozen(rollout, torch.zeros_like(value), weight, target)
    estimator = Estimator(value_coef=1.0, value_clip=0.1)
    close(-estimator.objective(Policy(samples.old, None, value), frozen), loss(0.1))


def agree_near(mine: Result, theirs: Result) -> None:
    """The same loss and gradients, up to verl's 1e-8 in divisors."""
    assert float(mine.gradient.abs().max()) > 1e-3
    near(mine.loss, theirs.loss)
    near(mine.gradient, theirs.gradient)
    near(mine.by_dist, theirs.by_dist)
