"""The language model as a problem: what a rollout holds, each entry computed a second time, and the
warm start's objective.
"""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace as replace_settings

import pytest
import torch
from torch import Tensor

from course import ladder
from course.errors import CourseError
from course.estimator import Estimator, replace
from course.learner import Learner
from course.parts import GAE, Clip, GroupMean, ImportanceSampling, TokenTIS, Value
from course.train.noise import Noise
from course.train.optim import SGD
from course.train.trust_region import TRPO
from tests.helpers import close, few_ulp, stream
from tests.tinylm.helpers import chosen, schooled, separate, sums, tiny
from tinylm.model import PRESETS, Transformer, next_token_log_dist
from tinylm.problem import LanguageModel, ask
from tinylm.rewards import DigitCredit, ExactMatch, Format, Reward, Sum
from tinylm.sampling import sample
from tinylm.scoring import log_dists
from tinylm.tasks import END, PAD, Task, TaskSettings, decode, make
from tinylm.warm_start import LIKELIHOOD, Demonstrations

RUNS = pytest.mark.parametrize("runs", [(), (2,)], ids=["alone", "two"])


def text(tokens: Tensor) -> str:
    return "".join(
        "⏎" if token == END else "_" if token == PAD else decode([token])
        for token in tokens.tolist()
    )


# ---------------------------------------------------------------- a rollout


@RUNS
def test_a_rollout_holds_what_was_sampled(runs: tuple[int, ...]) -> None:
    """Every sum is worked out again from its text."""
    problem = LanguageModel(schooled(runs), sums(), prompts=60, group=6)
    rollout = problem.sample(stream(runs))
    train = set(sums().train.tolist())
    assert rollout.reward.shape == (*runs, 60, 6, 3)
    assert rollout.limit == 3
    seen = set()
    for place in torch.cartesian_prod(*(torch.arange(n) for n in (*runs, 60))).tolist():
        index = tuple(place) if isinstance(place, list) else (place,)
        question = int(rollout.data["question"][index])
        prompt = decode(rollout.data["prompt"][index].tolist())
        assert question in train
        assert prompt == decode(sums().prompt[question].tolist())
        a, b = map(int, prompt[:-1].split("+"))
        for g in range(6):
            made = text(rollout.data["tokens"][(*index, g)])
            length = made.index("⏎") + 1 if "⏎" in made else 3
            right = made == f"{a + b:02d}⏎"
            want = [0.0, 0.0, 0.0]
            want[length - 1] = float(right)  # on the last token
            assert rollout.reward[(*index, g)].tolist() == want
            assert rollout.mask[(*index, g)].tolist() == [True] * length + [False] * (3 - length)
            assert bool(rollout.truncated[(*index, g)]) == ("⏎" not in made)  # type: ignore[index]
            seen.add((right, length, "⏎" in made))
    assert {
        (True, 3, True),
        (False, 3, True),
        (False, 3, False),
        (False, 1, True),
        (False, 2, True),
    } <= seen  # all kinds occurred
    for name in (
        "ref_log_prob",
        "value",
        "bootstrap",
        "greedy_reward",
        "old_log_dist",
        "ref_log_dist",
        "kl_coef",
    ):
        assert getattr(rollout, name) is None


@RUNS
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_optional_entries_of_a_rollout_are_those_of_the_other_networks(
    runs: tuple[int, ...], temperature: float
) -> None:
    model, reference, critic = (
        schooled(runs),
        schooled(runs, seed=1),
        schooled(runs, seed=2, value=True),
    )
    options = {
        "reference": reference,
        "critic": critic,
        "distributions": True,
        "greedy": True,
        "temperature": temperature,
    }
    problem = LanguageModel(model, sums(), prompts=8, group=4, **options)
    assert len(problem.parameters) == len(model.parameters) + len(critic.parameters)
    rollout = problem.sample(stream(runs))
    prompt, tokens, mask = rollout.data["prompt"], rollout.data["tokens"], rollout.mask

    def distribution(of) -> Tensor:  # type: ignore[no-untyped-def]
        return next_token_log_dist(of.logits(separate(of, prompt, tokens)), temperature)

    close(rollout.log_prob, chosen(distribution(model), tokens, mask), atol=1e-12)
    assert rollout.ref_log_prob is not None
    close(rollout.ref_log_prob, chosen(distribution(reference), tokens, mask), atol=1e-12)
    assert rollout.old_log_dist is not None
    assert rollout.ref_log_dist is not None
    for got, of in (
        (rollout.old_log_dist, model),
        (rollout.ref_log_dist, reference),
    ):  # behind the end they mean nothing
        close(got.exp()[mask], distribution(of).exp()[mask], atol=1e-12)
    assert rollout.value is not None
    close(
        rollout.value,
        torch.where(mask, critic.values(separate(critic, prompt, tokens)), 0.0),
        atol=1e-12,
    )
    assert torch.equal(rollout.bootstrap, torch.zeros(*runs, 8, 4))  # type: ignore[arg-type]  # a cut answer is over, and wrong
    best = sample(model, prompt, 1, 3, None).tokens[..., 0, :]
    right = (best == sums().target[rollout.data["question"]]).all(-1)
    assert torch.equal(rollout.greedy_reward, right.to(rollout.reward.dtype))  # type: ignore[arg-type]

    policy = problem.policy(rollout)
    assert policy.value is not None
    close(torch.where(mask, policy.value, 0.0), rollout.value, atol=1e-12)
    for mine, of in ((policy.value.sum(), critic), (policy.log_prob.sum(), model)):
        slopes = torch.autograd.grad(mine, problem.parameters, allow_unused=True, retain_graph=True)
        moved = {
            id(parameter)
            for parameter, slope in zip(problem.parameters, slopes, strict=True)
            if slope is not None
        }
        assert moved <= {
            id(parameter) for parameter in of.parameters
        }  # two networks, and no gradient from one into the other


def test_a_critic_on_the_policys_trunk_moves_the_trunk() -> None:
    model = schooled(value=True)
    problem = LanguageModel(model, sums(), prompts=8, group=4, critic=model)
    assert len(problem.parameters) == len(model.parameters)
    rollout = problem.sample(stream())
    policy = problem.policy(rollout)
    want = model.values(separate(model, rollout.data["prompt"], rollout.data["tokens"]))
    assert policy.value is not None
    assert rollout.value is not None
    close(policy.value[rollout.mask], want[rollout.mask], atol=1e-12)
    close(rollout.value, torch.where(rollout.mask, want, 0.0), atol=1e-12)
    slope = torch.autograd.grad(policy.value.sum(), model.weights["embedding"])[0]
    assert bool((slope != 0).any())


@pytest.mark.parametrize(("scratchpad", "reward"), [(False, None), (True, Sum())])
def test_rewards_are_the_ones_asked_for(scratchpad: bool, reward: Sum | None) -> None:
    task = make(TaskSettings("terms", digits=1, scratchpad=scratchpad))
    problem = LanguageModel(schooled(context=20), task, prompts=4, group=3, reward=reward)
    rollout = problem.sample(stream())
    question = rollout.data["question"].unsqueeze(-1).expand(4, 3)
    close(rollout.total_reward, problem.reward(rollout.data["tokens"], question, task))
    assert rollout.reward.dtype == torch.float64


def test_the_reward_of_a_short_answer_sits_on_its_own_last_token() -> None:
    rollout = LanguageModel(schooled(), sums(), prompts=60, group=6, reward=DigitCredit()).sample(
        stream()
    )
    last = torch.arange(3) == rollout.length.unsqueeze(-1) - 1
    assert bool((rollout.reward[~last] == 0).all())
    assert bool((rollout.reward[..., 1] > 0).any())  # a right first digit and the end


# ---------------------------------------------------------------- the ratio


@RUNS
@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_first_updates_ratio_is_one_up_to_rounding(
    runs: tuple[int, ...], temperature: float, dtype: torch.dtype
) -> None:
    problem = LanguageModel(
        schooled(runs, dtype=dtype), sums(), prompts=8, group=8, temperature=temperature
    )
    rollout = problem.sample(Noise(runs, dtype=dtype))
    ratio = ladder.grpo.log_ratio(problem.policy(rollout), rollout).detach().exp()
    assert ratio.dtype == dtype
    assert (
        float((ratio - 1).abs().max()) < 50 * torch.finfo(dtype).eps
    )  # three tokens, each summed in another order


def test_scoring_at_another_temperature_than_was_sampled_with_makes_ratios_other_than_one() -> None:
    """The sabotage: ρ = π_1(a)/π_0.5(a), so the surrogate weighs and clips although nothing was
    updated.
    """
    model = schooled()
    problem = LanguageModel(
        model, sums(), prompts=8, group=8, temperature=0.5, scored_temperature=1.0
    )
    rollout = problem.sample(stream())
    logits = model.logits(separate(model, rollout.data["prompt"], rollout.data["tokens"]))
    tokens, mask = rollout.data["tokens"], rollout.mask
    honest, scored = (
        chosen(next_token_log_dist(logits, temperature), tokens, mask) for temperature in (0.5, 1.0)
    )
    close(rollout.log_prob, honest, atol=1e-12)
    log_ratio = ladder.clip.log_ratio(problem.policy(rollout), rollout)
    close(log_ratio, torch.where(mask, scored - honest, 0.0), atol=1e-12)
    off = (log_ratio.exp() - 1).abs()[mask]
    assert float((off > 0.2).double().mean()) > 0.3  # beyond the clip from the start
    assert not bool((off < 1e-6).any())


def test_at_the_first_update_every_ratio_rung_has_the_gradient_of_the_policy_gradient() -> None:
    model = schooled()
    problem = LanguageModel(model, sums(), prompts=12, group=6)
    rollout = problem.sample(stream())
    base = Estimator(baseline=GroupMean())
    policy = problem.policy(rollout)

    def gradient(estimator: Estimator) -> Tensor:
        loss = estimator.loss(policy, rollout)
        parts = torch.autograd.grad(loss, model.parameters, retain_graph=True)
        return torch.cat([part.flatten() for part in parts])

    want = gradient(base)
    assert float(want.norm()) > 0.01
    for surrogate in (ImportanceSampling(), Clip(0.2)):
        got = gradient(replace(base, surrogate=surrogate))
        assert float((got - want).norm()) < 1e-11 * float(want.norm())


# ---------------------------------------------------------------- minibatches


@RUNS
@pytest.mark.parametrize("name", ["grpo", "dapo", "ppo", "reinforce_pp", "gspo"])
def test_minibatches_along_the_questions_add_up(runs: tuple[int, ...], name: str) -> None:
    estimator = ladder.get(name).estimator
    model = schooled(runs)
    critic = schooled(runs, seed=2, value=True) if name == "ppo" else None
    problem = LanguageModel(
        model, sums(), prompts=9, group=4, reference=schooled(runs, seed=1), critic=critic
    )
    rollout = problem.sample(stream(runs))
    step = (
        2e-5 if name == "gspo" else 0.02
    )  # off policy; GSPO's narrow clip would leave no gradient farther out
    with torch.no_grad():
        for weight in model.parameters:
            weight += step * torch.randn(
                weight.shape, generator=torch.Generator().manual_seed(4), dtype=weight.dtype
            )
    frozen = estimator.freeze(rollout)

    def gradient(parts: list) -> list[Tensor]:  # type: ignore[type-arg]
        total = sum(estimator.objective(problem.policy(part.rollout), part) for part in parts)
        values.append(total.detach())  # type: ignore[union-attr]
        return list(
            torch.autograd.grad(
                total.sum(), problem.parameters, allow_unused=True, materialize_grads=True
            )
        )  # type: ignore[union-attr]

    values: list[Tensor] = []
    whole = gradient([frozen])
    parts = gradient(
        [
            frozen.prompts(index)
            for index in (torch.tensor([4, 0, 7]), torch.tensor([1]), torch.tensor([8, 2, 3, 5, 6]))
        ]
    )
    close(values[1], values[0], rtol=1e-11, atol=1e-12)
    scale = max(float(part.abs().max()) for part in whole)
    assert scale > 0
    for got, want in zip(parts, whole, strict=True):
        close(got / scale, want / scale, rtol=0, atol=1e-11)


# ---------------------------------------------------------------- the warm start


@RUNS
def test_the_warm_starts_objective_is_minus_the_cross_entropy(runs: tuple[int, ...]) -> None:
    """By torch's own cross-entropy of separate sequences under a causal mask; value
    and gradient.
    """
    task = make(TaskSettings("subtraction", digits=1))  # answers of different length
    model = tiny(runs)
    problem = Demonstrations(model, task, batch=20)
    rollout = problem.sample(stream(runs))
    policy = problem.policy(rollout)
    objective = LIKELIHOOD.objective(policy, LIKELIHOOD.freeze(rollout))
    gradients = torch.autograd.grad(objective.sum(), model.parameters)
    assert objective.shape == torch.Size(runs)

    question = rollout.data["question"]
    assert set(question.flatten().tolist()) <= set(task.train.tolist())
    targets = task.target[question]
    assert int((targets == PAD).sum()) > 0
    logits = model.logits(separate(model, task.prompt[question], targets.unsqueeze(-2))).squeeze(-3)
    logits = logits.index_fill(-1, torch.tensor(PAD), -1e30)
    want = []
    for run in torch.cartesian_prod(*(torch.arange(n) for n in runs)).tolist() if runs else [()]:
        index = (run,) if isinstance(run, int) else tuple(run)
        want.append(
            torch.nn.functional.cross_entropy(
                logits[index].flatten(0, -2), targets[index].flatten(), ignore_index=PAD
            )
        )
    close(-objective.flatten(), torch.stack(want), rtol=1e-11)
    logged = problem.metrics_of_update(policy, rollout)["cross_entropy"]
    close(logged.flatten(), torch.stack(want), rtol=1e-11)
    for got, theirs in zip(
        gradients, torch.autograd.grad(sum(want), model.parameters), strict=True
    ):  # type: ignore[arg-type]
        close(-got, theirs, rtol=0, atol=1e-12)


# ---------------------------------------------------------------- questions


def test_questions_are_drawn_uniformly_from_the_training_split() -> None:
    """90 questions, 90,000 draws: Pearson's χ² has 89 degrees of freedom, mean 89 and standard
    deviation 13.3.
    """
    counts = ask(sums(), stream(seed=3), 90_000).bincount(minlength=100)
    assert set(counts.nonzero().flatten().tolist()) == set(sums().train.tolist())
    assert abs(float((counts[sums().train] - 1000).double().square().sum() / 1000) - 89) < 4 * 13.3


class Edge(Noise):
    """Uniform numbers at both ends of the interval; float32 may round up to 1."""

    def uniform(self, *shape: int) -> Tensor:
        return torch.tensor([0.0, 1.0])


def test_the_edges_of_the_interval_are_questions_too() -> None:
    assert ask(sums(), Edge(), 2).tolist() == [int(sums().train[0]), int(sums().train[-1])]


def test_runs_ask_their_own_questions_alone_and_together() -> None:
    together = ask(sums(), stream((3,)), 20)
    assert not torch.equal(together[0], together[1])
    for run in range(3):
        assert torch.equal(ask(sums(), stream(numbers=[run]), 20), together[run])


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("name", ["grpo", "ppo", "rloo"])
def test_a_model_trains_alone_as_among_others(name: str) -> None:
    """Three steps of two updates in minibatches.

    Float64, so that no rounding tips a sample over.
    """
    estimator = ladder.get(name).estimator

    def learner(runs: tuple[int, ...], number: int | None) -> Learner:
        networks = [schooled((3,), seed=seed, value=seed == 2) for seed in (0, 1, 2)]
        if number is not None:
            for network in networks:
                network.runs = torch.Size(())
                network.weights = {
                    k: weight[number].detach().clone().requires_grad_()
                    for k, weight in network.weights.items()
                }
        model, reference, critic = networks
        problem = LanguageModel(
            model,
            sums(),
            prompts=6,
            group=4,
            reference=reference,
            critic=critic if name == "ppo" else None,
        )
        noise = stream(runs, 5, numbers=None if number is None else [number])
        return Learner(
            problem, estimator, SGD(0.5), noise, epochs=2, minibatches=2, max_grad_norm=1.0
        )

    together = learner((3,), None)
    history = together.train(3)
    for number in range(3):
        alone = learner((), number)
        own = alone.train(3)
        for metric in own.names:
            few_ulp(own[metric], history[metric][:, number], 2000)
        for got, want in zip(alone.problem.parameters, together.problem.parameters, strict=True):
            few_ulp(got, want[number], 2000)


def test_a_trust_region_step_finds_its_way_through_the_attention() -> None:
    """TRPO differentiates the gradient once more; its KL must stay within the bound and not far
    below.
    """
    model = schooled()
    problem = LanguageModel(model, sums(), prompts=20, group=8, distributions=True)
    estimator = replace(ladder.surrogate, baseline=GroupMean())
    learner = Learner(problem, estimator, TRPO(0.01), stream())
    row = learner.train(1)
    assert 0.001 < float(row["trust_region_kl"]) <= 0.01
    assert float(row["step_fraction"]) > 0


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"prompts": 0}, "prompts: got 0"),
        ({"group": -1}, "group: got -1"),
        ({"temperature": 0.0}, "temperature: got 0"),
        ({"scored_temperature": 0.0}, "temperature: got 0"),
        (
            {"critic": tiny()},
            r"critic\.settings\.value: got False; allowed is a model with a value head",
        ),
    ],
)
def test_impossible_settings_are_refused(options: dict, says: str) -> None:
    with pytest.raises(CourseError, match=says):
        LanguageModel(tiny(), sums(), **options)


def test_a_task_that_does_not_fit_the_model_is_refused() -> None:
    small = tiny(context=6)
    for make_problem in (LanguageModel, Demonstrations):
        with pytest.raises(
            CourseError,
            match=r"model\.context: got 6; allowed is at least 7: prompt and answer, in tokens",
        ):
            make_problem(small, sums())
    with pytest.raises(CourseError, match="batch: got 0"):
        Demonstrations(tiny(), sums(), batch=0)


def test_a_rung_with_a_critic_asks_for_one() -> None:
    problem = LanguageModel(tiny(), sums(), prompts=2, group=2)
    with pytest.raises(CourseError, match=r"rollout\.value: got None"):
        Learner(
            problem, replace(ladder.clip, baseline=Value(), credit=GAE()), SGD(0.1), stream()
        ).train(1)


# ---------------------------------------------------------------- on policy, in low precision


@dataclass(frozen=True)
class Random(Reward):
    """0 or 1 by the answer's digits, so that no group is silent."""

    def __call__(self, completion: Tensor, question: Tensor, task: Task) -> Tensor:
        return (completion.sum(-1) % 2).float()


@pytest.mark.parametrize("shared", [False, True], ids=["no critic", "shared trunk"])
@pytest.mark.parametrize("compare", ["autocast", "weights", "matmul precision"])
def test_on_policy_the_log_ratio_is_exactly_0_where_products_are_rounded(
    compare: str, shared: bool
) -> None:
    """Of every minibatch, too; and the distributions of exact KL and trust regions are the same."""
    dtype = torch.bfloat16 if compare == "weights" else torch.float32
    settings = replace_settings(PRESETS["nano"], value=shared)
    model = Transformer(settings, dtype=dtype)
    task = sums(2)
    precision = torch.get_float32_matmul_precision()
    try:
        if compare == "matmul precision":
            torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16, enabled=compare == "autocast"):
            problem = LanguageModel(
                model,
                task,
                prompts=32,
                group=8,
                reward=Random(),
                critic=model if shared else None,
                distributions=True,
                temperature=0.8,
            )
            rollout = problem.sample(Noise())
            policy = problem.policy(rollout)
            assert torch.equal(policy.log_prob, rollout.log_prob)
            assert rollout.old_log_dist is not None
            assert policy.log_dist is not None
            assert torch.equal(policy.log_dist[rollout.mask], rollout.old_log_dist[rollout.mask])
            for part in torch.arange(32).split(8):
                some = rollout.prompts(part)
                same = torch.equal(problem.policy(some).log_prob, some.log_prob)
                assert same or compare == "weights"  # in which norms are rounded, too
            # the sampler's own pass, with a cache, rounds otherwise
            noise = Noise()
            ask(task, noise, 32)  # so that it draws the same tokens
            made = sample(model, rollout.data["prompt"], 8, task.limit, noise, temperature=0.8)
    finally:
        torch.set_float32_matmul_precision(precision)
    if compare != "matmul precision":  # which not every processor makes use of
        assert torch.equal(made.tokens, rollout.data["tokens"])
        assert 1e-4 < float((made.log_prob - rollout.log_prob).abs().max()) < 0.1


def test_gspo_clips_nothing_on_policy_in_bfloat16() -> None:
    """One update for each rollout, from random weights and on random rewards: every ratio is 1."""
    model = Transformer(PRESETS["nano"])
    problem = LanguageModel(model, sums(2), prompts=32, group=8, reward=Random())
    learner = Learner(problem, ladder.get("gspo").estimator, SGD(0.1), Noise(), log_every=1)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        history = learner.train(3)
    assert [float(row["clip_fraction"]) for row in history.rows] == [0.0, 0.0, 0.0]
    assert [float(row["kl_old"]) for row in history.rows] == [0.0, 0.0, 0.0]
    assert all(float(row["gradient_norm"]) > 0 for row in history.rows)


@RUNS
def test_another_sampler_draws_and_both_log_probabilities_are_kept(runs: tuple[int, ...]) -> None:
    """A hotter sampler, or another model's weights: log π_old is the learner's, so ρ = 1; log μ is
    the one that drew.
    """
    model, other = schooled(runs), tiny(runs)
    for options, drew, heat in (
        ({"sampler_temperature": 1.5}, model, 1.5),
        ({"sampler": other}, other, 0.9),
        ({"sampler": other, "sampler_temperature": 1.5}, other, 1.5),
    ):
        problem = LanguageModel(
            model, sums(), prompts=20, group=4, temperature=0.9, distributions=True, **options
        )
        rollout = problem.sample(stream(runs))
        prompt, tokens = rollout.data["prompt"], rollout.data["tokens"]
        own, others = (
            chosen(log_dists(made, prompt, tokens, temperature=at), tokens, rollout.mask)
            for made, at in ((model, 0.9), (drew, heat))
        )
        close(rollout.log_prob, own, rtol=1e-6, atol=1e-6)
        assert rollout.sampler_log_prob is not None
        close(rollout.sampler_log_prob, others, rtol=1e-6, atol=1e-6)
        close(problem.policy(rollout).log_prob.detach(), rollout.log_prob, rtol=1e-6, atol=1e-6)
        assert float((own - others).detach().abs().max()) > 0.1
    usual = LanguageModel(model, sums(), prompts=4, group=2).sample(stream(runs))
    assert usual.sampler_log_prob is None


def test_a_correction_trains_on_another_samplers_answers() -> None:
    """The weights are those of κ: their mean is E_μ[κ] = 1 but for noise and the cap."""
    problem = LanguageModel(schooled(), sums(), prompts=64, group=8, sampler_temperature=1.3)
    learner = Learner(problem, ladder.length_mean, SGD(0.1), stream(), log_every=1)
    corrected = Learner(
        problem, replace(ladder.length_mean, correction=TokenTIS()), SGD(0.1), stream(), log_every=1
    )
    assert "correction_mean" not in learner.train(1).rows[0]
    row = corrected.train(1).rows[0]
    assert float(row["correction_mean"]) == pytest.approx(1.0, abs=0.1)
    assert float(row["sampler_kl"]) > 0.001
    assert float(row["ratio_max"]) == pytest.approx(1.0, abs=1e-5)


def test_a_sampler_that_does_not_fit_is_refused() -> None:
    with pytest.raises(CourseError, match=r"sampler: got \(2,\); allowed is a transformer"):
        LanguageModel(tiny(), sums(), sampler=tiny((2,)))
    with pytest.raises(CourseError, match="temperature"):
        LanguageModel(tiny(), sums(), sampler_temperature=-1.0)


def test_a_sum_of_rewards_keeps_its_parts() -> None:
    """So that a scale can normalise each: a right answer has 1 and ¼ of a well-formed one's."""
    model, task = schooled(), sums()
    both = Sum(2.0, (ExactMatch(), Format(0.25)))
    rollout = LanguageModel(model, task, prompts=6, group=3, reward=both).sample(stream())
    assert rollout.components is not None
    close(rollout.components.sum(-1), rollout.total_reward)
    tokens, rows = rollout.data["tokens"], rollout.data["question"].unsqueeze(-1).expand(6, 3)
    close(rollout.components[..., 0], 2 * ExactMatch()(tokens, rows, task).double())
    close(rollout.components[..., 1], 0.5 * Format()(tokens, rows, task).double())
    single = LanguageModel(model, task, prompts=6, group=3).sample(stream())
    assert single.components is None
    gdpo = ladder.gdpo.freeze(rollout).advantage
    assert not torch.equal(gdpo, ladder.gdpo.freeze(single).advantage)
