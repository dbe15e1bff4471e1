"""Wrong arguments, for every public constructor and the calls that users make.

Each argument in turn is replaced by each wrong thing while the others stay valid. The call raises a
`CourseError` of one line, or it takes the thing and what it makes holds no NaN.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import course.parts
from bandits import (
    agents,
    environments,
    exact,
    flow,
    gaussian,
    linear,
    policies,
    population,
    problem,
)
from course import ladder
from course.errors import CourseError
from course.estimator import Estimator
from course.exact import Outcomes, closed_forms, microscope
from course.lab import statistics
from course.learner import Learner
from course.train import optim, trust_region
from course.train.critic import RunningMean
from course.train.noise import Noise
from tests.helpers import bernoulli_bandit, stream
from tests.tinylm.helpers import sums, tiny
from tinylm import evaluate, reward_model, rewards, sampling, tasks, wiring
from tinylm.bridge import Bridge
from tinylm.model import ModelSettings, Transformer
from tinylm.problem import LanguageModel

MEAN = torch.tensor([[0.2, 0.5, 0.8]])
NOISE = Noise((2,))
POLICY = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
B3 = exact.b3()
WRONG: dict[str, Any] = {
    "None": None,
    "a text": "x",
    "an object": object(),
    "5": 5,
    "0": 0,
    "-1": -1,
    "2.5": 2.5,
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "10**400": 10**400,
    "a complex": 1j,
    "True": True,
    "a fraction": Fraction(1, 5),
    "[]": [],
    "[1.0]": [1.0],
    "[[1.0]]": [[1.0]],
    "a dict": {"a": 1},
    "an array": np.array([[0.5, 0.5]]),
    "nan of numpy": np.float64("nan"),
    "a number as tensor": torch.tensor(0.5),
    "an empty tensor": torch.zeros(0),
    "a tensor of one axis": torch.full((7,), 0.5),
    "a tensor of five axes": torch.full((1, 2, 1, 2, 1), 0.5),
    "a tensor of -1": torch.full((1, 3), -1.0),
    "a tensor of nan": torch.full((1, 3), math.nan),
    "a tensor of inf": torch.full((1, 3), math.inf),
    "a tensor of ints": torch.ones(1, 3, dtype=torch.long),
    "a tensor of bools": torch.ones(1, 3, dtype=torch.bool),
    "a tensor of complex": torch.ones(1, 3, dtype=torch.complex64),
    "a sparse tensor": torch.eye(3).to_sparse(),
}


def train(made: Any) -> Any:
    """Two steps with a bandit or a language model."""
    noise = Noise(made.runs, dtype=made.parameters[0].dtype)
    learner = Learner(made, ladder.clip, optim.SGD(0.1), noise)
    learner.train(2)
    return [row["reward"] for row in learner.history.rows], made.parameters


def pull(environment: Any) -> Any:
    action = torch.zeros(*environment.mean.shape[:-1], 2, dtype=torch.long)
    noise = Noise(action.shape[:-2], dtype=environment.mean.dtype)
    made = environment.reward(action, noise)
    environment.advance(noise)
    return environment.mean, environment.best, made


def act(agent: Any) -> Any:
    for _ in range(5):
        agent.learn(agent.act(NOISE), torch.ones(2, 1, 1))
    return vars(agent)


def of_critic(critic: Any) -> Any:
    estimator = dataclasses.replace(ladder.clip, baseline=course.parts.Value(), below=None)
    learner = Learner(
        bernoulli_bandit((2,)), estimator, optim.SGD(0.1), stream((2,)), critic=critic
    )
    learner.train(2)
    return learner.problem.parameters


def of_optimizer(optimizer: Any) -> Any:
    learner = Learner(bernoulli_bandit((2,)), ladder.reinforce, optimizer, stream((2,)))
    learner.train(2)
    return learner.problem.parameters


def keep(made: Any) -> Any:
    return made


def score(action: Tensor) -> Tensor:
    return -(action**2)


# what documents its NaN: one run has no interval; masked entries may be anything; 0/0 at μ = 0
SAYS_NAN = ("interval", "Outcomes", "gaussian_kl_moments")
Case = tuple[Callable[..., Any], dict[str, Any], Callable[[Any], Any]]


def cases() -> dict[str, Case]:
    """Name → (what is called, its valid arguments, what uses the thing made)."""
    env = environments.Bernoulli(MEAN)
    softmax = policies.Softmax(torch.zeros(1, 3))
    model, task = tiny(), sums()
    pairs = reward_model.sample_pairs(model, task, reward_model.Annotator(), stream(), 3)
    estimator = ladder.group_mean
    agent = {"noise": NOISE, "prompts": 1, "arms": 3}
    listed: list[Case] = [
        (environments.Environment, {"mean": MEAN, "lengths": None}, pull),
        (environments.Bernoulli, {"mean": MEAN, "lengths": torch.tensor([1, 2, 3])}, pull),
        (environments.Gaussian, {"mean": MEAN, "std": 1.0}, pull),
        (environments.HeavyTailed, {"mean": MEAN, "freedom": 2}, pull),
        (environments.RandomWalk, {"mean": MEAN, "std": 1.0, "drift": 0.1}, pull),
        (
            environments.Discrete,
            {"values": MEAN.unsqueeze(-1), "chances": torch.ones(1, 3, 1), "lengths": None},
            pull,
        ),
        (environments.SharedForecast, {"grid": MEAN[0], "p": 0.5, "prompts": 1}, pull),
        (environments.Continuous, {"score": score, "prompts": 1}, keep),
        (
            environments.testbed,
            {"noise": NOISE, "arms": 3, "mean": 0.0, "spread": 1.0, "std": 1.0},
            pull,
        ),
        (
            environments.contextual,
            {"noise": NOISE, "difficulty": (0.5,), "arms": 3, "offset": 0.0, "scale": 1.0},
            pull,
        ),
        (policies.Softmax, {"logits": torch.zeros(1, 3)}, lambda made: made.log_probs()),
        (policies.Softmax.of, {"probability": POLICY}, lambda made: made.log_probs()),
        (
            policies.Softmax.uniform,
            {"noise": NOISE, "prompts": 1, "arms": 3},
            lambda made: made.log_probs(),
        ),
        (
            policies.LinearSoftmax,
            {"features": torch.ones(1, 3, 2), "weights": torch.zeros(2)},
            lambda made: made.log_probs(),
        ),
        (
            policies.GaussianPolicy,
            {"mean": torch.zeros(1), "std": 1.0, "learn_std": True},
            lambda made: made.draw(Noise(), 2),
        ),
        (
            problem.Bandit,
            {
                "environment": env,
                "policy": softmax,
                "group": 4,
                "reference": torch.zeros(1, 3),
                "critic": False,
                "greedy": False,
            },
            train,
        ),
        (
            problem.GaussianBandit,
            {
                "environment": environments.Continuous(score),
                "policy": policies.GaussianPolicy(torch.zeros(1)),
                "group": 4,
            },
            train,
        ),
        (
            population.Population,
            {
                "environment": env,
                "policy": softmax,
                "counts": torch.tensor([[1, 1, 2]]),
                "reference": None,
            },
            train,
        ),
        (population.every_arm, {"environment": env, "policy": softmax}, train),
        (agents.Metered, {"inner": env, "every": 1}, pull),
        (
            agents.play,
            {
                "agent": agents.UCB(NOISE, 1, 3),
                "environment": env,
                "pulls": 3,
                "noise": NOISE,
            },
            keep,
        ),
        (agents.ActionValues, {**agent, "initial": 0.0, "step_size": None}, keep),
        (agents.EpsilonGreedy, {**agent, "epsilon": 0.1, "initial": 0.0, "step_size": None}, act),
        (agents.UCB, {**agent, "c": 1.0}, act),
        (agents.BetaThompson, agent, act),
        (agents.GaussianThompson, {**agent, "prior_mean": 0.0, "prior_std": 1.0, "std": 1.0}, act),
        (exact.outcomes, {"environment": env, "log_prob": POLICY.log(), "old": None}, keep),
        (exact.b3, {"old": None, "reference": None, "value": None, "offset": 0.0}, keep),
        (
            flow.expected_gradient,
            {
                "estimator": estimator,
                "environment": env,
                "log_prob": POLICY[0].log(),
                "group": 2,
                "old": None,
                "reference": None,
            },
            keep,
        ),
        (
            gaussian.group_gradients,
            {
                "estimator": estimator,
                "mean": torch.zeros(1),
                "std": 1.0,
                "action": torch.tensor([[0.0, 1.0]]),
                "score": score,
                "value": None,
            },
            keep,
        ),
        (
            linear.linear_bandit,
            {
                "sizes": (1, 3, 2),
                "offset": torch.zeros(1),
                "numbers": range(2),
                "group": 2,
                "seed": 0,
            },
            lambda made: train(made[0]),
        ),
        (
            Noise,
            {"runs": (2,), "seed": 0, "numbers": [0, 1], "device": "cpu"},
            lambda n: n.normal(2),
        ),
        (
            RunningMean,
            {"include_current": False, "first": "zero", "per_prompt": True, "share": 1.0},
            of_critic,
        ),
        (optim.SGD, {"lr": 0.1, "schedule": None}, of_optimizer),
        (
            optim.Adam,
            {"lr": 0.1, "schedule": None, "betas": (0.9, 0.9), "eps": 1e-8, "weight_decay": 0.0},
            of_optimizer,
        ),
        (optim.LinearDecay, {"steps": 5, "warmup": 1, "final": 0.0}, keep),
        (
            trust_region.NaturalGradient,
            {"lr": 0.1, "schedule": None, "iterations": 2, "damping": 1e-3},
            of_optimizer,
        ),
        (
            trust_region.TRPO,
            {"max_kl": 0.1, "iterations": 2, "damping": 1e-3, "backtracks": 2, "shrink": 0.5},
            keep,
        ),
        (
            Learner,
            {
                "problem": bernoulli_bandit((2,)),
                "estimator": ladder.clip,
                "optimizer": optim.SGD(0.1),
                "noise": stream((2,)),
                "epochs": 1,
                "minibatches": 1,
                "max_grad_norm": None,
                "kl_stop": None,
                "critic": None,
                "log_every": 1,
                "shuffle_seed": 0,
                "rescue": None,
                "halt_diverged": False,
            },
            lambda made: made.train(1) and None,
        ),
        (
            Outcomes.of_arms,
            {"log_prob": POLICY.log(), "reward": MEAN, "score": None, "chance": None},
            keep,
        ),
        (Outcomes, {f.name: getattr(B3, f.name) for f in dataclasses.fields(B3)}, keep),
        (
            microscope,
            {"estimator": estimator, "outcomes": B3, "group_size": 2},
            lambda made: made.expected,
        ),
        (closed_forms.group_std_weight, {"p": 0.5, "group_size": 2, "ddof": 0, "eps": 0.0}, keep),
        (closed_forms.group_mean_factor, {"group_size": 2}, keep),
        (closed_forms.silent_probability, {"p": 0.5, "group_size": 2}, keep),
        (closed_forms.optimal_baseline, {"outcomes": B3}, keep),
        (closed_forms.covariance_at_baseline, {"outcomes": B3, "baseline": 0.0}, keep),
        (closed_forms.rloo_covariance, {"outcomes": B3, "group_size": 2}, keep),
        (closed_forms.gaussian_kl_moments, {"mu": 1.0}, keep),
        (closed_forms.control_variate_minimum, {"coefficient": 1.0}, keep),
        (closed_forms.relative_distance, {"a": POLICY, "b": POLICY}, keep),
        (statistics.interval, {"values": [1.0, 2.0], "level": 0.95}, keep),
        (statistics.mean_error, {"samples": [1.0, 2.0]}, keep),
        (statistics.paired_interval, {"first": [1.0, 2.0], "second": [1.0, 1.5]}, keep),
        (statistics.share_error, {"hits": 1, "total": 3}, keep),
        (statistics.share_interval, {"hits": 1, "total": 3, "level": 0.95}, keep),
        (statistics.mean_share_interval, {"shares": [0.5, 1.0], "samples": 4}, keep),
        (statistics.student, {"chance": 0.05, "runs": 3}, keep),
        (
            Transformer,
            {
                "settings": ModelSettings(8, 1, 2, 8, 8),
                "runs": (),
                "seed": 0,
                "numbers": None,
                "device": "cpu",
                "dtype": torch.float32,
            },
            lambda made: made.weights,
        ),
        (
            LanguageModel,
            {
                "model": model,
                "task": task,
                "prompts": 2,
                "group": 2,
                "reward": None,
                "temperature": 1.0,
                "reference": None,
                "critic": None,
                "distributions": False,
                "greedy": False,
                "scored_temperature": None,
            },
            train,
        ),
        (
            Bridge,
            {"model": model, "task": task, "question": 0, "temperature": 1.0, "limit": 2},
            keep,
        ),
        (rewards.ExactMatch, {"weight": 1.0}, keep),
        (rewards.Sum, {"weight": 1.0, "parts": (rewards.ExactMatch(),)}, keep),
        (tasks.make, {"settings": tasks.TaskSettings(digits=1), "slack": 0, "context": None}, keep),
        (tasks.encode, {"text": "1+1="}, keep),
        (tasks.decode, {"tokens": [1, 2]}, keep),
        (
            sampling.sample,
            {
                "model": model,
                "prompt": task.prompt[:2],
                "group": 2,
                "limit": 2,
                "noise": stream(),
                "temperature": 1.0,
                "top_k": None,
                "keep_log_dist": False,
            },
            keep,
        ),
        (
            evaluate.accuracy,
            {
                "model": model,
                "task": task,
                "noise": stream(),
                "questions": task.held_out[:2],
                "samples": 2,
                "batch": 2,
                "temperature": 1.0,
                "top_k": None,
            },
            keep,
        ),
        (evaluate.pass_at_k, {"right": torch.tensor([1, 2]), "samples": 4, "k": 2}, keep),
        (
            evaluate.right_to_go,
            {"model": model, "task": task, "questions": task.held_out[:2]},
            keep,
        ),
        (
            reward_model.Annotator,
            {
                "gold": rewards.ExactMatch(),
                "sharpness": 1.0,
                "length_bias": 0.0,
                "first_bias": 0.0,
                "noise": 0.1,
            },
            keep,
        ),
        (
            reward_model.sample_pairs,
            {
                "policy": model,
                "task": task,
                "annotator": reward_model.Annotator(),
                "noise": stream(),
                "count": 3,
                "questions": None,
                "temperature": 1.0,
            },
            keep,
        ),
        (
            reward_model.fit,
            {
                "model": reward_model.RewardModel.on(model),
                "pairs": pairs,
                "noise": stream(),
                "steps": 1,
                "batch": 2,
                "lr": 0.01,
            },
            keep,
        ),
        (
            reward_model.preference_accuracy,
            {"model": reward_model.RewardModel.on(model), "pairs": pairs, "batch": 2},
            keep,
        ),
        (
            reward_model.bradley_terry_loss,
            {"win": torch.ones(2), "lose": torch.zeros(2)},
            keep,
        ),
        (
            reward_model.LearnedReward,
            {"weight": 1.0, "model": reward_model.RewardModel.on(model)},
            keep,
        ),
        (wiring.Streams, {"seed": 0, "runs": (), "numbers": range(1), "device": "cpu"}, keep),
        (
            wiring.copies,
            {"weights": model.weights, "settings": model.settings, "runs": (), "value": False},
            lambda made: made.weights,
        ),
        (
            Estimator,
            {f.name: getattr(ladder.clip, f.name) for f in dataclasses.fields(Estimator)},
            keep,
        ),
        (
            tasks.TaskSettings,
            {
                f.name: f.default
                for f in dataclasses.fields(tasks.TaskSettings)
                if f.name != "limit"
            },
            keep,
        ),
        (ModelSettings, {f.name: f.default for f in dataclasses.fields(ModelSettings)}, keep),
        (wiring.Budget, {f.name: f.default for f in dataclasses.fields(wiring.Budget)}, keep),
    ]
    for kind in vars(course.parts).values():
        settable = dataclasses.is_dataclass(kind) and [
            f for f in dataclasses.fields(kind) if f.init
        ]
        if settable and isinstance(kind, type) and not inspect.isabstract(kind):
            listed.append((kind, {f.name: getattr(kind(), f.name) for f in settable}, keep))
    return {made.__qualname__: (made, valid, use) for made, valid, use in listed}


CASES = cases()


def numbers_of(made: Any, depth: int = 0) -> Iterator[float]:
    """Every number in what a call has made."""
    if isinstance(made, Tensor):
        if made.is_floating_point() and bool(made.isnan().any()):
            yield math.nan
    elif isinstance(made, float | np.floating):
        yield float(made)
    elif isinstance(made, np.ndarray) and made.dtype.kind == "f":
        yield from made.flatten().tolist()
    elif isinstance(made, Mapping):
        for one in made.values():
            yield from numbers_of(one, depth + 1)
    elif isinstance(made, Sequence) and not isinstance(made, str | range):
        for one in made:
            yield from numbers_of(one, depth + 1)
    elif depth < 2 and hasattr(made, "__dict__") and not isinstance(made, type):
        yield from numbers_of(vars(made), depth + 1)


def faults(name: str) -> list[str]:
    """What goes wrong with each wrong thing in place of each argument."""
    make, valid, use = CASES[name]
    found = []
    for argument in valid:
        for called, thing in WRONG.items():
            told = f"{name}({argument}={called})"
            try:
                made = use(make(**(valid | {argument: thing})))
            except CourseError as error:
                text = str(error)
                if "\n" in text or (
                    "allowed" not in text and "clashes" not in text and "unknown" not in text
                ):
                    found.append(f"{told} says {text}")
            except Exception as error:
                found.append(f"{told} raises {type(error).__name__}: {str(error)[:90]!r}")
            else:
                if name not in SAYS_NAN and any(map(math.isnan, numbers_of(made))):
                    found.append(f"{told} makes NaN")
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_argument_is_refused_or_harmless(name: str) -> None:
    make, valid, use = CASES[name]
    use(make(**valid))
    assert faults(name) == []
