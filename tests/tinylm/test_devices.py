"""Every tensor names its device, and a training step waits for the device as seldom as it must.

With a default device that holds no numbers ("meta"), a tensor made without a named device would end
a step with an error, or vanish from it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from bandits.environments import (
    Bernoulli,
    Continuous,
    Deterministic,
    Gaussian,
    HeavyTailed,
    RandomWalk,
    contextual,
)
from bandits.policies import GaussianPolicy, Softmax
from bandits.problem import Bandit, GaussianBandit
from course import ladder
from course.estimator import uses_critic
from course.learner import Learner
from course.registry import RUNGS
from course.train.noise import Noise
from course.train.optim import SGD, Adam, LinearDecay
from course.train.trust_region import TRPO
from tinylm import tasks
from tinylm.bridge import Bridge
from tinylm.evaluate import accuracy, pass_at_k, right_to_go
from tinylm.model import ModelSettings, Transformer
from tinylm.problem import LanguageModel
from tinylm.rewards import REWARDS
from tinylm.sampling import sample
from tinylm.scoring import log_probs
from tinylm.tasks import Task, TaskSettings
from tinylm.training import Training, TrainSettings
from tinylm.warm_start import LIKELIHOOD, Demonstrations

SETTINGS = ModelSettings(8, 1, 2, 12, context=8)


@pytest.fixture
def nowhere() -> Iterator[None]:
    """The default device holds no numbers."""
    with torch.device("meta"):
        yield


def task() -> Task:
    """One-digit sums."""
    return tasks.make(TaskSettings(digits=1)).to("cpu")


def model(**options: Any) -> Transformer:
    """A very small model on the CPU."""
    settings = ModelSettings(8, 1, 2, 12, context=8, **options)
    return Transformer(settings, (2,), device="cpu")


def problem_for(name: str) -> LanguageModel:
    """A problem with all that the rung asks for."""
    estimator = ladder.get(name).estimator
    critic = model(value=True) if uses_critic(estimator) else None
    return LanguageModel.of(
        estimator, model(), task(), prompts=4, group=3, critic=critic, reward=REWARDS["digits"]
    )


# ---------------------------------------------------------------- no tensor on a default device


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize("name", list(RUNGS))
def test_a_training_step_of_every_rung_names_its_device(name: str) -> None:
    problem = problem_for(name)
    before = [parameter.detach().clone() for parameter in problem.parameters]
    learner = Learner(
        problem,
        ladder.get(name).estimator,
        Adam(0.01, LinearDecay(4, warmup=1)),
        Noise((2,)),
        epochs=2,
        minibatches=2,
        max_grad_norm=1.0,
        log_every=1,
    )
    learner.train(2)
    assert all(value.device.type == "cpu" for value in learner.history.rows[-1].values())
    assert all(parameter.device.type == "cpu" for parameter in problem.parameters)
    moved = zip(before, problem.parameters, strict=True)
    assert any(not torch.equal(old, new) for old, new in moved)


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize("optimizer", [SGD(0.1), TRPO(0.01)], ids=["SGD", "TRPO"])
def test_other_optimisers_name_their_device(optimizer: Any) -> None:
    problem = LanguageModel(model(), task(), prompts=4, group=3, distributions=True)
    Learner(problem, ladder.get("surrogate").estimator, optimizer, Noise((2,))).train(2)


@pytest.mark.usefixtures("nowhere")
def test_the_warm_start_sampling_scoring_and_evaluation_name_their_device() -> None:
    mine, sums = model(), task()
    Learner(Demonstrations(mine, sums, batch=8), LIKELIHOOD, Adam(0.01), Noise((2,))).train(2)
    prompt = sums.prompt[:3].expand(2, -1, -1)
    made = sample(mine, prompt, 4, 3, Noise((2,)), temperature=0.7, top_k=5, keep_log_dist=True)
    assert log_probs(mine, prompt, made.tokens).device.type == "cpu"
    again = prompt.unsqueeze(-2).expand(*made.tokens.shape[:-1], -1)
    plain = mine.log_probs(again, made.tokens)
    torch.testing.assert_close(plain, log_probs(mine, prompt, made.tokens), rtol=1e-4, atol=1e-5)
    for rotary in (Transformer(ModelSettings(8, 1, 2, 12, 8, rotary=True), device="cpu"),):
        sample(rotary, prompt[0], 4, 3, None)
        rotary.log_probs(prompt[0], prompt[0])
    shares = accuracy(mine, sums, Noise((2,)), samples=4)
    assert pass_at_k((4 * shares).round(), 4, 2).device.type == "cpu"
    assert right_to_go(mine, sums, sums.held_out).device.type == "cpu"


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize("rung", ["grpo", "ppo"])
def test_a_whole_training_names_its_device(rung: str, tmp_path: Any) -> None:
    settings = TrainSettings(
        digits=1,
        preset="nano",
        rung=rung,
        warm_target=0.01,
        warm_batch=8,
        rollouts=3,
        prompts=4,
        group=3,
        device="cpu",
        eval_every=2,
        sync_reference=2,
    )
    training = Training(settings)
    while not training.done:
        training.step()
    path = training.save(tmp_path / "c.safetensors")
    again = Training.load(path)
    for mine, theirs in zip(training.model.parameters, again.model.parameters, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.usefixtures("nowhere")
def test_the_bridge_names_its_device() -> None:
    old = Transformer(SETTINGS, seed=1, device="cpu", dtype=torch.float64)
    now = Transformer(SETTINGS, seed=2, device="cpu", dtype=torch.float64)
    reward = REWARDS["digits"]
    bridge = Bridge(now, task(), 5, old=old, reference=old, reward=reward, limit=2)
    assert bridge.gradient.device.type == "cpu"
    assert bridge.microscope(ladder.get("rloo").estimator, 2).expected.device.type == "cpu"
    assert bridge.microscope(ladder.grpo, 2, spread=False).expected.device.type == "cpu"


ENVIRONMENTS = {
    "Deterministic": lambda mean, noise: Deterministic(mean),
    "Bernoulli": lambda mean, noise: Bernoulli(mean),
    "Bernoulli with lengths": lambda mean, noise: Bernoulli(
        mean, lengths=torch.tensor([1, 3, 2], device="cpu")
    ),
    "Gaussian": lambda mean, noise: Gaussian(mean),
    "HeavyTailed": lambda mean, noise: HeavyTailed(mean),
    "RandomWalk": lambda mean, noise: RandomWalk(mean),
    "contextual": lambda mean, noise: contextual(noise, [0.2, 0.8], 3),
}


def bandit_for(name: str, environment: str, noise: Noise) -> Bandit:
    """A bandit with all that the rung asks for."""
    estimator = ladder.get(name).estimator
    mean = torch.tensor([[0.2, 0.5, 0.8], [0.9, 0.5, 0.1]], device="cpu").expand(2, 2, 3)
    return Bandit(
        ENVIRONMENTS[environment](mean, noise),
        Softmax.uniform(noise, 2, 3),
        4,
        reference="start",
        critic=uses_critic(estimator),
        greedy="rollout.greedy_reward" in estimator.needs,
    )


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize("name", list(RUNGS))
def test_a_step_of_every_rung_on_a_bandit_names_its_device(name: str) -> None:
    noise = Noise((2,))
    bandit = bandit_for(name, "Bernoulli with lengths", noise)
    learner = Learner(bandit, ladder.get(name).estimator, SGD(0.1), noise, epochs=2, log_every=1)
    learner.train(2)
    assert all(value.device.type == "cpu" for value in learner.history.rows[-1].values())


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize("environment", list(ENVIRONMENTS))
def test_every_environment_names_its_device(environment: str) -> None:
    noise = Noise((2,))
    bandit = bandit_for("grpo", environment, noise)
    Learner(bandit, ladder.grpo, Adam(0.1), noise, minibatches=2, log_every=1).train(2)
    if "Gaussian" not in environment and environment not in ("HeavyTailed", "RandomWalk"):
        values, chances = bandit.environment.outcomes()
        assert values.device.type == chances.device.type == "cpu"


@pytest.mark.usefixtures("nowhere")
def test_continuous_actions_name_their_device() -> None:
    policy = GaussianPolicy(torch.zeros(2, 3, device="cpu"), learn_std=True)
    bandit = GaussianBandit(Continuous(lambda a: -((a - 1) ** 2), prompts=3), policy, 4)
    Learner(bandit, ladder.baseline, SGD(0.1), Noise((2,)), minibatches=2).train(2)


# ---------------------------------------------------------------- waiting for the device


class Waits(TorchDispatchMode):
    """Counts, by operator, what would wait for a GPU: numbers read by the program, and results
    whose shape depends on numbers.
    """

    NAMES = (
        "_local_scalar_dense",
        "equal",
        "is_nonzero",
        "masked_select",
        "nonzero",
        "repeat_interleave.Tensor",
        "unique_dim",
        "_unique2",
        "unique_consecutive",
        "bincount",
    )

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).removeprefix("aten.")
        indexed = [arg for arg in args if isinstance(arg, (list, tuple))]
        if any(name == known or name.startswith(f"{known}.") for known in self.NAMES):
            self.count[name] += 1
        elif name.startswith(("index.", "index_put")) and any(
            isinstance(each, Tensor) and each.dtype in (torch.bool, torch.uint8)
            for listed in indexed
            for each in listed
        ):  # a boolean index is a nonzero in disguise
            self.count[f"{name} by a boolean"] += 1
        return func(*args, **(kwargs or {}))


class Reads(TorchFunctionMode):
    """Counts, by method, whole tensors that are copied to the program."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("tolist", "cpu", "numpy", "__array__"):
            self.count[name] += 1
        return func(*args, **(kwargs or {}))


def waits(**settings: Any) -> dict[str, int]:
    """Of one step of a training, with no logging."""
    chosen = {"digits": 1, "preset": "nano", "warm_target": 0, "device": "cpu"} | settings
    training = Training(TrainSettings(**chosen))
    training.step()
    with Waits() as numbers, Reads() as tensors:
        training.step()
    return dict(numbers.count + tensors.count)


def test_the_waits_are_counted() -> None:
    with Waits() as numbers, Reads() as tensors:
        x = torch.arange(4.0)
        bool((x > 2).any())
        float(x.sum())
        x[x > 2]
        x[torch.tensor([0, 1])]
        x.nonzero()
        x[x > 1] = 0.0
        torch.equal(x, x)
        x.cpu().tolist()
    found = Counter[str]()
    for name, count in numbers.count.items():
        found[name.split(".")[0]] += count
    assert numbers.count["index.Tensor by a boolean"] == 1
    assert numbers.count["index_put_.default by a boolean"] == 1
    assert found["_local_scalar_dense"] == 2
    assert found["nonzero"] >= 1
    assert found["equal"] == 1
    assert tensors.count == {"cpu": 1, "tolist": 1}


@pytest.mark.parametrize(
    ("settings", "tokens", "updates", "reference"),
    [
        ({}, 3, 2, True),
        ({"epochs": 5}, 3, 5, True),
        ({"minibatches": 4}, 3, 8, True),
        ({"prompts": 8, "group": 4}, 3, 2, True),
        ({"digits": 2}, 4, 2, True),
        ({"rung": "dapo"}, 3, 2, False),
        ({"runs": 3}, 3, 2, True),
    ],
)
def test_a_training_step_waits_for_the_device_no_more_than_it_must(
    settings: dict[str, Any], tokens: int, updates: int, reference: bool
) -> None:
    """However many prompts, samples and runs there are. Where beginnings are merged, their number
    decides shapes: two numbers for each pass.
    """
    sampled = 2 + 3 * (tokens - 1)  # weights, log-probabilities; of a token: who is alive, nodes
    checked = 2  # the rollout: finite and whole; who has a token, or else whose weight is not 0
    update = 3  # nodes, and whether loss and gradients are finite
    assert waits(**settings) == {
        "_local_scalar_dense.default": sampled + checked + 2 * reference + update * updates,
        "tolist": 1,  # the prompt's smallest and largest token
    }
