"""The one loop: against plain loops written out by hand, and what it logs, halts, saves and
refuses.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bandits.environments import Bernoulli, Continuous
from bandits.policies import GaussianPolicy, Softmax
from bandits.problem import Bandit, GaussianBandit
from course import ladder
from course.errors import CourseError, Diverged
from course.estimator import Estimator, replace
from course.learner import History, Learner
from course.parts import K1, K2, K3, Clip, ExactKL, InReward, OldPolicy, Value
from course.parts.kl import AdaptiveBeta
from course.rollout import Policy, Rollout
from course.train import checkpoint, metrics
from course.train.critic import RunningMean
from course.train.metrics import GLOSSARY
from course.train.noise import Noise
from course.train.optim import SGD, Adam, LinearDecay
from course.train.trust_region import TRPO, NaturalGradient
from tests.helpers import bernoulli_bandit, close, f64, few_ulp, make_rollout, stream

LENGTHS = [1, 3, 2]  # tokens of the three arms
MEANS = [[0.2, 0.5, 0.8], [0.9, 0.4, 0.1], [0.5, 0.5, 0.2]]


class Recorded(Bandit):
    """A bandit that keeps every rollout, the logits it was sampled with, and which prompts each
    update asked for.
    """

    def __init__(self, **options: object) -> None:
        environment = Bernoulli(f64(MEANS), lengths=torch.tensor(LENGTHS))
        super().__init__(
            environment, Softmax(torch.zeros(2, 3, 3, dtype=torch.float64)), 4, **options
        )  # type: ignore[arg-type]
        self.seen: list[tuple[Rollout, Tensor]] = []
        self.asked: list[list[int]] = []

    def sample(self, noise: Noise) -> Rollout:
        logits = self.parameters[0].detach().clone()
        self.seen.append((super().sample(noise), logits))
        return self.seen[-1][0]

    def policy(self, rollout: Rollout) -> Policy:
        self.asked.append(rollout.data["prompt"][0].tolist())
        return super().policy(rollout)


def softmax(logits: list[float]) -> list[float]:
    total = sum(math.exp(x) for x in logits)
    return [math.exp(x) / total for x in logits]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def grpo_by_hand(
    logits: list[list[float]],
    arms: list[list[int]],
    rewards: list[list[float]],
    orders: list[list[list[int]]],
    rate: float,
    beta: float,
) -> dict[str, float]:
    """One rollout of GRPO for one run, in place, from the papers' formulas: scalars and loops.

    Returns what is to be logged.
    """
    prompts, group = len(arms), len(arms[0])
    old = [softmax(row) for row in logits]
    advantages = []
    for row in rewards:
        mean = sum(row) / group
        std = math.sqrt(sum((r - mean) ** 2 for r in row) / group)
        advantages.append([0.0 if max(row) == min(row) else (r - mean) / (std + 1e-6) for r in row])
    logged: dict[str, float] = {}
    for order in orders:  # an epoch, logged as one whatever the split
        whole = {q: [0.0] * 3 for q in range(prompts)}  # Σ of the minibatches' gradients
        ratios, flat, entropy, kl_old, kl_ref, tokens = [], 0, 0.0, 0.0, 0.0, 0
        for batch in order:  # a minibatch: numbers of prompts
            gradient = {q: [0.0] * 3 for q in batch}
            for q in batch:
                pi = softmax(logits[q])
                for arm, advantage in zip(arms[q], advantages[q], strict=True):
                    rho = pi[arm] / old[q][arm]
                    clipped = (advantage > 0 and rho > 1.2) or (advantage < 0 and rho < 0.8)
                    weight = 1 / (prompts * group * LENGTHS[arm])
                    push = weight * (
                        (0.0 if clipped else rho * advantage) + beta * ((1 / 3) / pi[arm] - 1)
                    )
                    for k in range(3):
                        gradient[q][k] += len(order) * push * ((k == arm) - pi[k])
                    flat += clipped
                    ratios += [rho] + [1.0] * (LENGTHS[arm] > 1)
                    entropy -= sum(p * math.log(p) for p in pi)
                    kl_old += kl(old[q], pi)
                    kl_ref += kl(pi, [1 / 3] * 3)
                    tokens += LENGTHS[arm]
            for q in batch:
                whole[q] = [a + b for a, b in zip(whole[q], gradient[q], strict=True)]
                logits[q] = [x + rate * g for x, g in zip(logits[q], gradient[q], strict=True)]
        logged = {
            "gradient_norm": math.sqrt(sum(g**2 for row in whole.values() for g in row))
            / len(order),
            "clip_fraction": flat / tokens,
            "entropy": entropy / tokens,
            "kl_old": kl_old / tokens,
            "kl_ref": kl_ref / tokens,
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
        }
    logged["reward"] = sum(map(sum, rewards)) / (prompts * group)
    logged["silent_groups"] = sum(max(row) == min(row) for row in rewards) / prompts
    logged["length"] = sum(LENGTHS[arm] for row in arms for arm in row) / (prompts * group)
    right = [means.index(max(means)) for means in MEANS]
    after = [softmax(row) for row in logits]
    logged["expected_reward"] = (
        sum(
            p * m
            for row, means in zip(after, MEANS, strict=True)
            for p, m in zip(row, means, strict=True)
        )
        / 3
    )
    logged["optimal_action"] = sum(row[arm] for row, arm in zip(after, right, strict=True)) / 3
    return logged


@pytest.mark.parametrize("minibatches", [1, 2, 3])
def test_grpo_equals_loops_written_by_hand(minibatches: int) -> None:
    """Five rollouts, three epochs each, ragged answers: every logit and every metric, from the
    recorded samples.
    """
    problem = Recorded(reference="start")
    estimator = replace(ladder.grpo, kl=K3(beta=0.2))
    learner = Learner(
        problem,
        estimator,
        SGD(1.5),
        stream((2,), 1),
        epochs=3,
        minibatches=minibatches,
        shuffle_seed=5,
    )
    history = learner.train(5)
    for run in range(2):
        shuffle = np.random.Generator(np.random.PCG64(5))
        logits = [[0.0] * 3 for _ in range(3)]
        for step, (rollout, before) in enumerate(problem.seen):
            close(before[run], logits)
            epochs = []
            for _ in range(3):
                order = list(range(3)) if minibatches == 1 else shuffle.permutation(3).tolist()
                cut = {1: [order], 2: [order[:2], order[2:]], 3: [[q] for q in order]}[minibatches]
                epochs.append(cut)
            arms, rewards = rollout.data["action"][run].tolist(), rollout.total_reward[run].tolist()
            want = grpo_by_hand(logits, arms, rewards, epochs, rate=1.5, beta=0.2)
            assert {*want} == {*history.names}
            for name, value in want.items():
                assert float(history[name][step, run]) == pytest.approx(
                    value, rel=1e-10, abs=1e-12
                ), name
        close(problem.parameters[0][run].detach(), logits, rtol=1e-10, atol=1e-12)
    assert float(history["clip_fraction"].max()) > 0
    assert 0 < float(history["silent_groups"].mean()) < 1


def test_a_critic_is_regressed_on_the_return_by_hand() -> None:
    """V_q ← V_q + lr·c·Σ w(R − V) over all tokens, w = 1/N; the error is logged before the second
    epoch's update.
    """
    problem = Recorded(critic=True)
    history = Learner(problem, ladder.ppo_value, SGD(0.3), stream((2,), 2), epochs=2).train(4)
    for run in range(2):
        value = [0.0] * 3
        for step, (rollout, _) in enumerate(problem.seen):
            close(rollout.value[run, :, 0, 0], value)  # type: ignore[index]
            arms, rewards = rollout.data["action"][run].tolist(), rollout.total_reward[run].tolist()
            errors = tokens = 0.0
            for epoch in range(2):
                for q in range(3):
                    lengths = [LENGTHS[arm] for arm in arms[q]]
                    pull = (
                        sum(n * (r - value[q]) for n, r in zip(lengths, rewards[q], strict=True))
                        / 12
                    )
                    if epoch == 1:
                        errors += sum(
                            n * (value[q] - r) ** 2
                            for n, r in zip(lengths, rewards[q], strict=True)
                        )
                        tokens += sum(lengths)
                    value[q] += 0.3 * 0.5 * pull
            assert float(history["value_error"][step, run]) == pytest.approx(
                errors / tokens, rel=1e-12
            )
        close(problem.parameters[1][run].detach(), value)


@pytest.mark.parametrize(
    "make", [lambda: SGD(0.3), lambda: Adam(f64(0.1)), lambda: NaturalGradient(0.1), TRPO]
)
def test_no_run_axes_at_all_is_one_run(make) -> None:  # type: ignore[no-untyped-def]
    """Shapes [Q, G, T] and metrics that are single numbers: the same bits as with one run on an
    axis.
    """
    ends = []
    for runs in ((), (1,), (1, 1)):
        problem = bernoulli_bandit(runs, reference="start", means=MEANS)
        learner = Learner(
            problem,
            ladder.grpo,
            make(),
            stream(runs, 3),
            epochs=2,
            minibatches=2,
            max_grad_norm=0.3,
        )
        history = learner.train(4)
        assert history["reward"].shape == (4, *runs)
        ends.append(
            [
                problem.parameters[0].detach().flatten(),
                *(history[name].flatten() for name in history.names),
            ]
        )
    for other in ends[1:]:
        assert all(torch.equal(a, b) for a, b in zip(ends[0], other, strict=True))


# ---------------------------------------------------------------- history


def test_the_first_every_kth_and_the_last_step_are_logged() -> None:
    learner = Learner(bernoulli_bandit((3,)), ladder.clip, SGD(0.1), stream((3,)), log_every=4)
    assert learner.train(10).steps == [1, 5, 9, 10]
    assert learner.train(3).steps == [1, 5, 9, 10, 13]
    assert learner.train(1).steps == [1, 5, 9, 10, 13, 14]
    assert learner.steps == 14
    assert learner.history["reward"].shape == (6, 3)


def test_logging_does_not_change_what_is_learned() -> None:
    def final(log_every: int) -> Tensor:
        problem = bernoulli_bandit((3,), reference="start")
        Learner(
            problem,
            ladder.grpo,
            Adam(0.1),
            stream((3,)),
            epochs=2,
            minibatches=2,
            log_every=log_every,
        ).train(7)
        return problem.parameters[0]

    assert torch.equal(final(1), final(5))


def test_a_progress_bar_wraps_the_steps() -> None:
    seen: list[int] = []

    def progress(steps: Iterable[int]) -> Iterable[int]:
        for step in steps:
            seen.append(step)
            yield step

    Learner(bernoulli_bandit(), ladder.clip, SGD(0.1), stream()).train(3, progress)
    assert seen == [0, 1, 2]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        *(
            ({name: value}, rf"{name}: got {re.escape(repr(value))}; allowed is a whole number > 0")
            for name in ("epochs", "minibatches", "log_every")
            for value in (0, 2.5, True, None, "2", math.nan)
        ),
        *(
            ({name: value}, rf"{name}: got {re.escape(repr(value))}; allowed is None or a number")
            for name in ("max_grad_norm", "kl_stop")
            for value in (0, -1.0, True, "1", math.nan, math.inf)
        ),
        ({"shuffle_seed": -1}, "shuffle_seed: got -1"),
        ({"shuffle_seed": 0.5}, "shuffle_seed: got 0.5"),
        ({"halt_diverged": "no"}, "halt_diverged: got 'no'; allowed is True or False"),
        ({"rescue": 3}, "rescue: got 3; allowed is None or a path"),
        ({"critic": RunningMean}, "critic: got <class"),
        ({"critic": 0.5}, r"critic: got 0\.5; allowed is an object with write, state, load"),
        ({"estimator": "grpo"}, "estimator: got 'grpo'; allowed is an Estimator"),
        ({"optimizer": SGD}, "optimizer: got <class .*SGD'>; allowed is an object with step"),
        ({"optimizer": None}, "optimizer: got None"),
        ({"noise": 0}, "noise: got 0; allowed is a Noise"),
        ({"problem": None}, "problem: got None; allowed is an object with parameters, runs"),
        ({"optimizer": TRPO(f64([0.1] * 4))}, r"optimizer\.max_kl: got \(4,\)"),
    ],
)
def test_a_learner_of_impossible_settings_is_refused_when_it_is_made(
    settings: dict, says: str
) -> None:
    given = {
        "problem": bernoulli_bandit((2,)),
        "estimator": ladder.clip,
        "optimizer": SGD(0.1),
        "noise": stream((2,)),
    }
    with pytest.raises(CourseError, match=says):
        Learner(**{**given, **settings})


def test_a_history_keeps_as_many_rows_as_it_is_told_to() -> None:
    learner = Learner(bernoulli_bandit(), ladder.clip, SGD(0.1), stream())
    learner.history = History(keep=3)
    assert learner.train(8).steps == [6, 7, 8]
    assert learner.history["reward"].shape == (3,)


def test_a_history_shows_what_was_logged_and_not_its_numbers() -> None:
    history = History()
    assert repr(history) == "History(0 logs of nothing)"
    history.add(1, {"reward": torch.zeros(1000), "length": torch.ones(1000)})
    history.add(3, {"reward": torch.zeros(1000), "length": torch.ones(1000)})
    assert repr(history) == "History(2 logs of reward, length)"


def test_a_metric_that_was_not_logged_is_named() -> None:
    history = Learner(bernoulli_bandit(), ladder.clip, SGD(0.1), stream()).train(1)
    with pytest.raises(
        CourseError, match="metric: got 'kl_ref'; allowed is one of reward, silent_groups, length"
    ):
        history["kl_ref"]
    with pytest.raises(CourseError, match="nothing was logged"):
        History()["reward"]


def test_what_was_logged_stays_as_it_was() -> None:
    """Rows hold numbers and no views of what later steps change."""
    beta = ExactKL(beta=AdaptiveBeta(1.0, 1e-4), anchor=OldPolicy())
    problem = bernoulli_bandit((3,), critic=True)
    learner = Learner(problem, replace(ladder.ppo_value, kl=beta), SGD(0.5), stream((3,)), epochs=2)
    learner.train(1)
    before = {name: learner.history[name][0].clone() for name in learner.history.names}
    learner.train(5)
    for name, value in before.items():
        assert torch.equal(learner.history[name][0], value), name
        assert not learner.history[name].requires_grad


# ---------------------------------------------------------------- metrics


def gaussian() -> GaussianBandit:
    policy = GaussianPolicy(torch.ones(3, 2, dtype=torch.float64), learn_std=True)
    return GaussianBandit(Continuous(lambda a: -(a**2), prompts=2), policy, 4)


def test_every_logged_name_is_in_the_glossary_and_bandits_log_all_they_can() -> None:
    adaptive = replace(replace(ladder.ppo_kl_adaptive, baseline=Value()), value_coef=0.5)
    learners = [
        Learner(
            bernoulli_bandit((3,), reference="start", critic=True),
            adaptive,
            SGD(0.1),
            stream((3,)),
            minibatches=2,
        ),
        Learner(bernoulli_bandit((3,)), ladder.rloo, TRPO(), stream((3,))),
        Learner(gaussian(), ladder.rloo, SGD(0.1), stream((3,))),
    ]
    logged = {name for learner in learners for name in learner.train(1).names}
    samples = {"reward", "silent_groups", "length", "kl_coef"}
    updates = {
        "gradient_norm",
        "clip_fraction",
        "ratio_min",
        "ratio_max",
        "kl_old",
        "kl_ref",
        "entropy",
        "value_error",
    }
    own = {
        "trust_region_kl",
        "step_fraction",
        "expected_reward",
        "optimal_action",
        "action_mean",
        "action_std",
    }
    assert logged == samples | updates | own
    assert logged <= {*GLOSSARY}
    for name, metric in GLOSSARY.items():
        assert metric.name == name
        assert metric.definition


def test_metrics_of_a_rollout_by_hand() -> None:
    """Two runs: one silent group of two in the first, and truncated samples in the second."""
    reward = [
        [[[0.0, 1.0], [1.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]]],
        [[[3.0, 0.0], [1.0, 0.0]], [[0.0, 2.0], [0.0, 4.0]]],
    ]
    mask = [[[[1, 1], [1, 0]], [[1, 0], [1, 0]]], [[[1, 1], [1, 1]], [[1, 1], [0, 1]]]]
    truncated = [[[0, 0], [0, 0]], [[1, 0], [1, 1]]]
    logged = metrics.of_rollout(
        make_rollout(reward, mask=mask, truncated=truncated, kl_coef=[0.5, 8.0])
    )
    want = {
        "reward": [0.75, 2.5],
        "silent_groups": [0.5, 0],
        "length": [1.25, 1.75],
        "truncated": [0, 0.75],
        "kl_coef": [0.5, 8],
    }
    assert logged.keys() == want.keys()
    for name, values in want.items():
        close(logged[name], values)


def test_metrics_of_an_update_without_distributions_use_the_samples() -> None:
    """KL to old and to the reference as the mean of k3 over chosen tokens; the sequence's ratio
    where the estimator has one.
    """
    half, quarter = math.log(0.5), math.log(0.25)
    rollout = make_rollout(
        [[[0.0, 1.0], [0.0, 0.0]]],
        [[[half] * 2] * 2],
        [[[1, 1], [1, 0]]],
        ref_log_prob=[[[quarter] * 2] * 2],
    )
    policy = Policy(f64([[[quarter, quarter], [0.0, 50.0]]]))  # ρ = ½, ½ and 2
    logged = metrics.of_update(ladder.clip, policy, ladder.clip.freeze(rollout))
    k3_old = [0.5 - 1 + math.log(2)] * 2 + [2 - 1 - math.log(2)]  # r = π/π_old
    k3_ref = [0.0, 0.0, 0.25 - 1 + math.log(4)]  # r = π_ref/π
    assert logged.keys() == {"clip_fraction", "ratio_min", "ratio_max", "kl_old", "kl_ref"}
    close(logged["kl_old"], sum(k3_old) / 3)
    close(logged["kl_ref"], sum(k3_ref) / 3)
    close([logged["ratio_min"], logged["ratio_max"]], [0.5, 2.0])
    assert (
        float(logged["clip_fraction"]) == 0
    )  # A > 0 with ρ = ½, A < 0 with ρ = 2: neither is flat
    gspo = replace(ladder.gspo, surrogate=Clip(0.2))
    swapped = Policy(
        f64([[[half + math.log(4), half], [quarter, 50.0]]])
    )  # geometric mean 2 and ratio ½: both flat
    logged = metrics.of_update(gspo, swapped, gspo.freeze(rollout))
    close([logged["ratio_min"], logged["ratio_max"], logged["clip_fraction"]], [0.5, 2.0, 1.0])


def still(**options: object) -> Learner:
    """A learner whose updates move nothing (the learning rate falls to 0 at once): all that a
    minibatch can change is how it is logged. Arms of 1, 3 and 2 tokens, three prompts, two runs.
    """
    problem = Recorded(reference="start", critic=True)
    with torch.no_grad():
        problem.parameters[0].add_(f64([[[0.1, -1.0, 1.5], [2.0, 0.3, -0.4], [0.0, 0.5, 1.0]]]))
        problem.parameters[1].add_(f64([0.1, 0.7, -0.3]))
    estimator = replace(ladder.ppo_value, kl=K3(beta=0.2))
    return Learner(problem, estimator, SGD(1.0, lambda n: 0.0), stream((2,), 1), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("minibatches", [2, 3])
def test_every_metric_is_the_same_whatever_the_split(minibatches: int) -> None:
    whole, split = still(epochs=2), still(epochs=2, minibatches=minibatches)
    one, many = whole.train(3), split.train(3)
    assert {"value_error", "kl_ref", "entropy", "gradient_norm", "ratio_max"} <= {*one.names}
    assert one.names == many.names
    lengths = whole.problem.seen[0][0].length.sum(-1)  # type: ignore[attr-defined]
    assert bool((lengths != lengths[..., :1]).any())  # else a plain mean would do
    for name in one.names:
        close(many[name], one[name], rtol=1e-12, atol=1e-14)


def test_a_logged_entropy_is_the_mean_over_all_tokens() -> None:
    """Prompts with 4, 2 and 2 chosen tokens of entropy .1908, log 2 and log 2: .4420."""
    certain = 0.95260
    chance = f64([[certain, 1 - certain], [0.5, 0.5], [0.5, 0.5]])
    environment = Bernoulli(f64([[0.5, 0.5]] * 3))

    class Lengths(Bandit):
        def sample(self, noise: Noise) -> Rollout:
            one = super().sample(noise)
            mask = torch.tensor([[[1, 1]] * 2, [[1, 0]] * 2, [[1, 0]] * 2]).bool()
            zero = torch.zeros(3, 2, 2, dtype=torch.float64)
            return Rollout(zero, zero, mask, data=one.data)

        def policy(self, rollout: Rollout) -> Policy:
            now = super().policy(rollout)
            return Policy(now.log_prob.expand(-1, -1, 2), now.log_dist)

    hand = -(chance * chance.log()).sum(-1)
    want = float(hand @ f64([4, 2, 2])) / 8
    assert [round(float(hand[0]), 4), round(want, 4)] == [0.1908, 0.4420]
    for minibatches in (1, 2, 3):
        problem = Lengths(environment, Softmax(chance.log()), 2)
        learner = Learner(problem, ladder.reinforce, SGD(0.1), stream(), minibatches=minibatches)
        assert float(learner.train(1)["entropy"]) == pytest.approx(want, abs=1e-12)


def test_a_minibatch_without_a_token_of_a_run_does_not_count_in_it() -> None:
    values, tokens = f64([[math.nan, 1.0], [2.0, 3.0]]), torch.tensor([[0, 3], [5, 1]])
    close(metrics.token_mean(values, tokens), [2.0, 1.5])


def test_a_gaussian_policy_logs_its_mean_and_std() -> None:
    """One step of REINFORCE by hand: μ + lr·mean(R·(a − μ)/σ²), log σ + lr·mean(R·((a − μ)²/σ² −
    1)), and their means.
    """
    problem = gaussian()
    action = gaussian().sample(stream((3,), 4)).data["action"]
    history = Learner(problem, ladder.reinforce, SGD(0.1), stream((3,), 4)).train(1)
    reward = -(action**2)
    mean = (
        1 + 0.1 * (reward * (action - 1)).mean(-1) / 2
    )  # Σ over the prompt's four of eight samples
    std = (0.1 * (reward * ((action - 1) ** 2 - 1)).mean(-1) / 2).exp()
    close(history["action_mean"][0], mean.mean(-1))
    close(history["action_std"][0], std.mean(-1))


# ---------------------------------------------------------------- updates, minibatches, β


@pytest.mark.parametrize(("epochs", "minibatches"), [(1, 1), (3, 1), (1, 2), (2, 3)])
def test_updates_are_epochs_times_minibatches_and_every_prompt_has_its_turn(
    epochs: int, minibatches: int
) -> None:
    problem, optimizer = Recorded(), SGD(0.1)
    learner = Learner(
        problem, ladder.clip, optimizer, stream((2,)), epochs=epochs, minibatches=minibatches
    )
    learner.train(4)
    assert optimizer.updates == len(problem.asked) == 4 * epochs * minibatches
    assert len(problem.seen) == 4
    for epoch in range(4 * epochs):
        batches = problem.asked[epoch * minibatches : (epoch + 1) * minibatches]
        assert sorted(q for batch in batches for q in batch) == [0, 1, 2]
        assert {len(batch) for batch in batches} <= {3 // minibatches, -(-3 // minibatches)}


def test_a_rate_means_the_same_whatever_the_split() -> None:
    """Far from the clip and at a tiny rate, one epoch in three minibatches goes as far as three
    epochs of the whole.
    """
    ends = []
    for epochs, minibatches in ((3, 1), (1, 3)):
        problem = Recorded()
        Learner(
            problem,
            ladder.group_mean,
            SGD(1e-6),
            stream((2,), 3),
            epochs=epochs,
            minibatches=minibatches,
        ).train(1)
        ends.append(problem.parameters[0].detach() / 1e-6)
    close(ends[0], ends[1], rtol=1e-4, atol=1e-6)
    assert float(ends[0].abs().max()) > 0.1


def test_more_minibatches_than_prompts_are_refused() -> None:
    with pytest.raises(CourseError, match="minibatches: got 3; allowed is at most the 2 prompts"):
        Learner(bernoulli_bandit(), ladder.clip, SGD(0.1), stream(), minibatches=3).train(1)


def test_adaptive_beta_moves_by_the_rule() -> None:
    """KL(π_old‖π) from the logits before and after each rollout's updates, by hand; target .01:
    halve below ⅔ of it, double above 1½.
    """
    estimator = replace(
        ladder.ppo_kl_adaptive, kl=K1(beta=AdaptiveBeta(4.0, 0.01), anchor=OldPolicy())
    )
    problem = Recorded()
    learner = Learner(problem, estimator, SGD(f64([0.2, 1.0])), stream((2,), 1), epochs=4)
    history = learner.train(12)
    states = [logits for _, logits in problem.seen] + [problem.parameters[0].detach()]
    moves = []
    for run in range(2):
        beta = 4.0
        for step, (rollout, before) in enumerate(problem.seen):
            assert float(history["kl_coef"][step, run]) == beta
            divergence = tokens = 0.0
            for q in range(3):
                for arm in rollout.data["action"][run, q].tolist():
                    divergence += kl(
                        softmax(before[run, q].tolist()), softmax(states[step + 1][run, q].tolist())
                    )
                    tokens += LENGTHS[arm]
            factor = (
                0.5
                if divergence / tokens < 0.01 / 1.5
                else 2.0
                if divergence / tokens > 0.015
                else 1.0
            )
            moves.append(factor)
            beta *= factor
        assert learner.kl_coef is not None
        assert float(learner.kl_coef[run]) == beta
    assert {*moves} == {0.5, 1.0, 2.0}


# ---------------------------------------------------------------- the smallest critic


@pytest.mark.parametrize(
    ("rule", "values"),
    [
        # rewards' means per rollout: 1, 4, 1 on the first prompt and 0, 2, 4 on the second
        ({}, [[0.0, 0.0], [1.0, 0.0], [2.5, 1.0]]),
        ({"first": "reward"}, [[1.0, 0.0], [1.0, 0.0], [2.5, 1.0]]),
        ({"include_current": True}, [[1.0, 0.0], [2.5, 1.0], [2.0, 2.0]]),
        ({"per_prompt": False}, [[0.0, 0.0], [0.5, 0.5], [1.75, 1.75]]),
        ({"share": 0.5}, [[0.0, 0.0], [0.5, 0.0], [1.25, 0.5]]),
    ],
)
def test_running_mean_by_hand(rule: dict, values: list[list[float]]) -> None:
    critic = RunningMean(**rule)
    for means, want in zip(([1.0, 0.0], [4.0, 2.0], [1.0, 4.0]), values, strict=True):
        reward = f64([[[m - 0.5, 0.0], [0.0, m + 0.5]] for m in means])
        value = critic.write(make_rollout(reward)).value
        assert value is not None
        close(value, f64(want)[:, None, None].expand(2, 2, 2))


def test_running_mean_has_a_share_per_run() -> None:
    critic = RunningMean(share=f64([1.0, 0.0]), include_current=True)
    value = critic.write(make_rollout(torch.full((2, 1, 2, 1), 3.0))).value
    assert value is not None
    close(value[..., 0, 0, 0], [3.0, 0.0])


def test_a_running_mean_is_the_average_reward_baseline_in_the_loop() -> None:
    """The gradient bandit by hand: θ_k ← θ_k + α(R − R̄)(1[k = a] − π_k) with R̄ the mean of the
    rewards before.
    """
    problem = Bandit(
        Bernoulli(f64([[0.3, 0.9]])), Softmax(torch.zeros(1, 2, dtype=torch.float64)), 1
    )
    estimator = replace(ladder.reinforce, baseline=Value())
    twin = Bandit(Bernoulli(f64([[0.3, 0.9]])), Softmax(torch.zeros(1, 2, dtype=torch.float64)), 1)
    learner, noise = (
        Learner(problem, estimator, SGD(0.4), stream((), 6), critic=RunningMean()),
        stream((), 6),
    )
    theta, rewards = [0.0, 0.0], []
    for _ in range(30):
        rollout = twin.sample(noise)
        arm, reward = int(rollout.data["action"]), float(rollout.total_reward)
        mean = sum(rewards) / len(rewards) if rewards else 0.0
        pi = softmax(theta)
        theta = [x + 0.4 * (reward - mean) * ((k == arm) - pi[k]) for k, x in enumerate(theta)]
        rewards.append(reward)
        learner.step()
        close(problem.parameters[0].detach(), [theta])
        with torch.no_grad():
            twin.parameters[0].copy_(problem.parameters[0])


# ---------------------------------------------------------------- the KL stop


def stopping(numbers: list[int], make=lambda: SGD(0.6), **options: object) -> Learner:  # type: ignore[no-untyped-def]
    """Runs with rollouts of their own, of which some go too far in four epochs."""
    runs = (len(numbers),)
    problem = bernoulli_bandit(runs, reference="start", group=6)
    noise = stream(runs, 5, numbers=numbers)
    given = {"epochs": 4, "kl_stop": 0.01, "max_grad_norm": 1.0, **options}
    return Learner(problem, ladder.grpo, make(), noise, **given)  # type: ignore[arg-type]


def test_the_kl_stop_ends_a_runs_epochs_where_its_kl_exceeds_the_bound() -> None:
    """Against the same learner taken one epoch at a time: after each, KL(π_old‖π) by hand decides
    whether the run is used again.
    """
    learner = stopping([0, 1, 2, 3])
    before = learner.problem.parameters[0].detach().clone()
    history = learner.train(1)
    used = history["updates"][0]
    assert used.unique().numel() > 1  # some runs stop, at different times
    ends = []
    for epochs in (1, 2, 3, 4):
        free = stopping([0, 1, 2, 3], epochs=epochs, kl_stop=None)
        free.train(1)
        ends.append(free.problem.parameters[0].detach())
    for run in range(4):
        p = [softmax(row) for row in before[run].tolist()]
        count = 1
        while count < 4:
            now = [softmax(row) for row in ends[count - 1][run].tolist()]
            if sum(kl(a, b) for a, b in zip(p, now, strict=True)) / 2 > 0.01:
                break
            count += 1
        assert int(used[run]) == count
        assert torch.equal(learner.problem.parameters[0][run], ends[count - 1][run])


@pytest.mark.parametrize(
    "make",
    [
        lambda: SGD(f64(0.6), LinearDecay(100, 3)),
        lambda: Adam(0.12, LinearDecay(100, 3), weight_decay=0.01),
        lambda: NaturalGradient(0.2),
        lambda: TRPO(0.02),
    ],
    ids=["SGD", "Adam", "NaturalGradient", "TRPO"],
)
@pytest.mark.parametrize("minibatches", [1, 2])
def test_runs_that_stop_early_are_alone_what_they_are_together(make, minibatches: int) -> None:  # type: ignore[no-untyped-def]
    """Parameters, metrics, the optimiser's memory and its place in the schedule, the shuffling."""
    together = stopping([0, 1, 2], make, minibatches=minibatches)
    history = together.train(8)
    assert len({*history["updates"].sum(0).tolist()}) > 1  # they stop at different times
    for run in range(3):
        alone = stopping([run], make, minibatches=minibatches)
        own = alone.train(8)
        assert torch.equal(own["updates"][:, 0], history["updates"][:, run])
        for name in history.names:
            few_ulp(own[name][:, 0], history[name][:, run], count=64)
        one, all_runs = alone.state(), together.state()
        for name, tensor in one.items():
            if tensor.dim() > 0 and not name.startswith("noise"):
                few_ulp(tensor[0].double(), all_runs[name][run].double(), count=64)
        assert alone.shuffle.bit_generator.state == together.shuffle.bit_generator.state


def test_a_kl_stop_that_nothing_reaches_changes_nothing_but_the_log() -> None:
    free, bound = (stopping([0, 1], lambda: Adam(0.05), kl_stop=each) for each in (None, 1e9))
    one, two = free.train(4), bound.train(4)
    close(bound.problem.parameters[0].detach(), free.problem.parameters[0].detach())
    assert [*one.names, "updates"] == sorted(two.names, key=[*one.names, "updates"].index)
    assert bool((two["updates"] == 4).all())


def test_what_a_kl_stop_left_is_saved_and_goes_on_to_the_bit(tmp_path: Path) -> None:
    def make() -> Learner:
        return stopping([0, 1, 2], lambda: Adam(0.05, LinearDecay(60)), minibatches=2)

    whole, first, second = make(), make(), make()
    whole.train(9)
    first.train(4)
    second.load(first.save(tmp_path / "state"))
    second.train(5)
    assert checkpoint.equal_states(whole.state(), second.state())


# ---------------------------------------------------------------- when it diverges


def exploding(**options: object) -> Learner:
    """Of four runs the second overflows k3 in float32 in the second epoch."""
    problem = bernoulli_bandit((4,), dtype=torch.float32, reference="start")
    rates = torch.tensor([0.1, 1e5, 0.1, 0.3])
    return Learner(
        problem, ladder.grpo, SGD(rates), stream((4,), 8, dtype=torch.float32), epochs=2, **options
    )  # type: ignore[arg-type]


def test_runs_that_diverge_halt_and_the_others_do_not_notice() -> None:
    learner, calm = exploding(halt_diverged=True), exploding(halt_diverged=True)
    calm.optimizer = SGD(torch.tensor([0.1, 0.1, 0.1, 0.3]))
    learner.train(1)
    where = learner.problem.parameters[0][1].detach().clone()
    learner.train(9)
    calm.train(10)
    assert learner.halted is not None
    assert learner.halted.tolist() == [False, True, False, False]
    assert calm.halted is None
    assert torch.equal(learner.problem.parameters[0][1], where)
    assert bool(torch.isfinite(where).all())
    for run in (0, 2, 3):
        assert torch.equal(learner.problem.parameters[0][run], calm.problem.parameters[0][run])


def test_runs_that_are_halted_from_outside_stand_still_and_the_others_do_not_notice() -> None:
    """Without `halt_diverged`: a warm start that has reached its target in some runs."""
    learners = [
        Learner(bernoulli_bandit((3,)), ladder.clip, Adam(0.1), stream((3,)), epochs=2)
        for _ in range(2)
    ]
    learners[0].train(2)
    learners[1].train(2)
    where = learners[0].problem.parameters[0][1].detach().clone()
    learners[0].halted = torch.tensor([False, True, False])
    for learner in learners:
        learner.train(3)
    (halted,), (free,) = (learner.problem.parameters for learner in learners)
    assert torch.equal(halted[1], where)
    assert torch.equal(halted[[0, 2]], free[[0, 2]])
    assert not torch.equal(free[1], where)
    assert learners[0].halted is not None
    assert learners[0].halted.tolist() == [False, True, False]


class Poisoned(Bandit):
    """A bandit of four runs whose policy is NaN in its second run at the second rollout, and in its
    third run at the third.
    """

    poison, rollouts = True, 0

    def sample(self, noise: Noise) -> Rollout:
        self.rollouts += 1
        return super().sample(noise)

    def policy(self, rollout: Rollout) -> Policy:
        policy = super().policy(rollout)
        if not self.poison or self.rollouts not in (2, 3):
            return policy
        wrong = torch.ones(4, 1, 1, 1, dtype=torch.float64)
        wrong[self.rollouts - 1] = math.nan
        return Policy(policy.log_prob * wrong, policy.log_dist)


@pytest.mark.parametrize(
    "make",
    [SGD, Adam, NaturalGradient, lambda rate: TRPO()],
    ids=["SGD", "Adam", "NaturalGradient", "TRPO"],
)
def test_a_halted_run_stays_under_every_optimizer_and_under_clipping(make) -> None:  # type: ignore[no-untyped-def]
    """One bad number halts a run for good, also when all would be well again, and another later."""
    after: list[list[Tensor]] = []  # the logits after each rollout, poisoned and not
    for poison in (True, False):
        problem = Poisoned(
            Bernoulli(f64(MEANS)), Softmax(torch.zeros(4, 3, 3, dtype=torch.float64)), 4
        )
        problem.poison = poison
        learner = Learner(
            problem, ladder.rloo, make(0.1), stream((4,), 2), max_grad_norm=0.2, halt_diverged=True
        )
        after.append([])
        for _ in range(5):
            learner.train(1)
            after[-1].append(problem.parameters[0].detach().clone())
        assert (learner.halted.tolist() if learner.halted is not None else None) == (
            [False, True, True, False] if poison else None
        )
    poisoned, healthy = after
    assert torch.equal(poisoned[0], healthy[0])
    assert torch.equal(
        poisoned[4][1], healthy[0][1]
    )  # where it stood before the rollout that spoilt it
    assert torch.equal(poisoned[4][2], healthy[1][2])
    assert torch.equal(poisoned[4][[0, 3]], healthy[4][[0, 3]])
    assert not torch.equal(healthy[4][1], healthy[0][1])


def test_divergence_stops_before_it_reaches_the_parameters_and_saves_the_last_good_state(
    tmp_path: Path,
) -> None:
    learner = exploding(rescue=tmp_path / "rescue")
    with pytest.raises(
        Diverged, match=r"step 1: loss became inf; the last good state is in .*rescue$"
    ):
        learner.train(5)
    assert bool(torch.isfinite(learner.problem.parameters[0]).all())
    tensors, about = checkpoint.read(tmp_path / "rescue")
    assert torch.equal(tensors["parameters.0"], learner.problem.parameters[0])
    assert about["steps"] == 0
    again = exploding()
    again.load(tmp_path / "rescue")
    assert torch.equal(again.problem.parameters[0], learner.problem.parameters[0])


def test_a_gradient_that_is_not_a_number_is_named() -> None:
    """A finite loss with an infinite slope: √(log π − log π_old) at 0."""

    class Rooted(type(ladder.surrogate.surrogate)):  # type: ignore[misc]
        def __call__(self, log_ratio: Tensor, log_prob: Tensor, advantage: Tensor) -> Tensor:
            return log_ratio.abs().sqrt()

    learner = Learner(
        bernoulli_bandit(), replace(ladder.clip, surrogate=Rooted()), SGD(0.1), stream()
    )
    with pytest.raises(Diverged, match=r"step 1: gradient of parameter 0 became (nan|inf|-inf)$"):
        learner.train(1)


def test_rewards_that_are_no_numbers_are_refused_before_an_update() -> None:
    problem = bernoulli_bandit((2,))
    take = problem.sample

    def broken(noise: Noise) -> Rollout:
        rollout = take(noise)
        rollout.reward[1, 0, 2, 0] = math.nan
        return rollout

    problem.sample = broken  # type: ignore[method-assign]
    with pytest.raises(CourseError, match=r"rollout\.reward: got nan at index \(1, 0, 2, 0\)"):
        Learner(problem, ladder.clip, SGD(0.1), stream((2,))).train(1)
    assert bool((problem.parameters[0] == 0).all())


def test_a_critic_that_is_no_number_ends_training_with_the_last_good_state(tmp_path: Path) -> None:
    """As rewards do: what was sampled with it is no bad input of the user's."""
    problem = bernoulli_bandit((2,), critic=True)
    path = tmp_path / "rescue"
    learner = Learner(problem, ladder.ppo_value, SGD(0.1), stream((2,)), rescue=path)
    learner.train(1)
    with torch.no_grad():
        problem.parameters[1][1, 0] = math.nan
    with pytest.raises(
        Diverged, match=r"step 2: rollout\.value: got nan at index .*; the last good state is in"
    ):
        learner.step()
    assert checkpoint.read(path)[1]["steps"] == 1


class Spoilt(Bandit):
    """A bandit of three runs whose second one samples a number that cannot be used, from the third
    rollout on.
    """

    rollouts, field, number = 0, "", math.nan

    def sample(self, noise: Noise) -> Rollout:
        self.rollouts += 1
        rollout = super().sample(noise)
        if self.rollouts < 3 or not self.field:
            return rollout
        tensor = getattr(rollout, self.field).clone()
        tensor[1, 0] = self.number
        return dataclasses.replace(rollout, **{self.field: tensor})


def spoilt(estimator: Estimator, field: str, number: float, **options: Any) -> Learner:
    """One that learns on `Spoilt`, where `field` becomes `number`; no field: nothing does."""
    problem = Spoilt(
        Bernoulli(f64(MEANS)),
        Softmax(torch.zeros(3, 3, 3, dtype=torch.float64)),
        4,
        reference="start",
        critic="rollout.value" in estimator.needs and "critic" not in options,
        greedy=True,
    )
    problem.field, problem.number = field, number
    return Learner(problem, estimator, Adam(0.1), stream((3,), 4), **options)


IN_REWARD = replace(ladder.clip, kl=K1(2.0, place=InReward()))
LOST: dict[str, tuple[Estimator, str, float, dict[str, Any]]] = {
    "reward": (ladder.clip, "reward", math.nan, {}),
    "reward, two epochs of minibatches": (
        ladder.grpo, "reward", -math.inf, {"epochs": 2, "minibatches": 3},
    ),
    "reward under a running mean": (
        replace(ladder.clip, baseline=Value()), "reward", math.inf, {"critic": RunningMean},
    ),
    "rewards whose sum overflows": (ladder.clip, "reward", 1e308, {}),
    "log_prob": (ladder.clip, "log_prob", math.nan, {}),
    "log_prob −inf": (ladder.reinforce, "log_prob", -math.inf, {}),
    "ref_log_prob": (ladder.grpo, "ref_log_prob", -math.inf, {}),
    "kl in the reward": (IN_REWARD, "ref_log_prob", -1.7e308, {}),
    "kl in the reward that overflows": (
        replace(ladder.clip, kl=K2(0.1, place=InReward(), accept_bias=True)),
        "ref_log_prob", -1e200, {},
    ),
    "kl in the loss that overflows": (ladder.grpo, "ref_log_prob", 1e4, {}),
    "value": (replace(ladder.clip, baseline=Value(), value_coef=0.5), "value", math.nan, {}),
    "greedy_reward": (ladder.get("remax").estimator, "greedy_reward", math.nan, {}),
    "old_log_dist": (ladder.clip, "old_log_dist", math.nan, {}),
    "kl stop": (ladder.clip, "reward", math.nan, {"epochs": 3, "kl_stop": 0.01}),
}  # fmt: skip


@pytest.mark.parametrize("case", LOST)
def test_a_run_whose_rollout_cannot_be_used_halts_alone(case: str, tmp_path: Path) -> None:
    """The others go on as if it were not there; its parameters stay where they were; what it
    sampled is logged as it was. Without `halt_diverged` training ends, and the state before is
    saved.
    """
    estimator, field, number, options = LOST[case]

    def learner(field: str, **more: Any) -> Learner:
        made = {name: value() if callable(value) else value for name, value in options.items()}
        return spoilt(estimator, field, number, **made, **more)

    calm, lost = learner(""), learner(field, halt_diverged=True)
    calm.train(2)
    where = [parameter[1].detach().clone() for parameter in calm.problem.parameters]
    calm.train(4)
    lost.train(6)
    assert lost.halted is not None
    assert lost.halted.tolist() == [False, True, False]
    for mine, theirs, stood in zip(
        lost.problem.parameters, calm.problem.parameters, where, strict=True
    ):
        assert torch.equal(mine[[0, 2]], theirs[[0, 2]])
        assert torch.equal(mine[1], stood)
    if field == "reward" and not math.isfinite(number):
        assert not bool(torch.isfinite(lost.history["reward"][2:, 1]).any())
    path = tmp_path / "rescue"
    ends = learner(field, rescue=path)
    with pytest.raises(Diverged, match=r"^training stopped at step 3: .*; the last good state is"):
        ends.train(6)
    assert checkpoint.read(path)[1]["steps"] == 2
    again = learner("")
    again.load(path)
    again.train(1)
    for parameter in again.problem.parameters:
        assert bool(torch.isfinite(parameter).all())
