"""The critic's ablation: exact values against enumeration and the Bellman equation, errors by hand,
the price, refusals.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from course import ladder
from course.errors import CourseError
from course.lab.statistics import interval
from course.lab.terminal import QUIET
from course.train.noise import Noise
from tests.tinylm.helpers import sums, tiny
from tinylm.ablations import critic as ablation
from tinylm.ablations.critic import Settings
from tinylm.bridge import Bridge
from tinylm.curves import train
from tinylm.evaluate import exact_values, right_to_go, value_errors
from tinylm.sampling import sample
from tinylm.scoring import log_dists, values
from tinylm.warm_start import warm_start
from tinylm.watched import critic_errors

SMALL = Settings(
    digits=1,
    preset="nano",
    prompts=4,
    group=4,
    rollouts=4,
    epochs=1,
    log_every=2,
    judged=5,
    warm_target=0.05,
    lambdas=(0.0, 1.0),
    rates=(1e-4, 1e-3),
    seeds=2,
    tuning=1,
    timed=1,
)


def test_a_prompts_value_is_what_listing_every_completion_gives() -> None:
    task = sums()
    model = tiny(context=task.context)
    rows = task.held_out[:3]
    tokens = task.target[rows].unsqueeze(-2)
    values = exact_values(model, task, rows, tokens)
    for i, row in enumerate(rows.tolist()):
        assert float(values[i, 0, 0]) == pytest.approx(Bridge(model, task, row).objective, rel=1e-9)


def test_a_value_is_the_right_tokens_probability_times_the_next_value_0_after_a_wrong_one() -> None:
    task = sums()
    model = tiny((2,), context=task.context)
    rows = task.held_out[:4]
    prompt = task.prompt[rows].expand(2, 4, -1)
    tokens = task.target[rows].unsqueeze(-2).expand(2, 4, 2, -1).clone()
    tokens[:, :, 1, 1] = (tokens[:, :, 1, 1] + 1) % 10  # the second answer errs in its second token
    values = exact_values(model, task, rows, tokens)
    log_dist = log_dists(model, prompt, tokens)
    chosen = log_dist[:, :, 0].gather(-1, tokens[:, :, 0].unsqueeze(-1)).squeeze(-1).exp()
    torch.testing.assert_close(values[:, :, 0, :-1], chosen[..., :-1] * values[:, :, 0, 1:])
    torch.testing.assert_close(values[:, :, 0, -1], chosen[..., -1])
    torch.testing.assert_close(values[:, :, 1, :2], values[:, :, 0, :2])
    assert (values[:, :, 1, 2:] == 0).all()
    assert (values[:, :, 0] > 0).all()


def test_sampled_answers_are_right_as_often_as_their_value_says() -> None:
    task = sums()
    model = tiny(context=task.context)
    with torch.no_grad():
        model.weights["head"] *= 0.2
    rows = task.held_out[:4]
    made = sample(model, task.prompt[rows], 4000, task.limit, Noise((), 4, dtype=torch.float64))
    values = exact_values(model, task, rows, made.tokens)
    right = (made.tokens == task.target[rows].unsqueeze(-2)).all(-1).double()
    p = values[..., 0]
    assert (abs(right.mean(-1) - p[:, 0]) < 4.5 * (p[:, 0] * (1 - p[:, 0]) / 4000).sqrt()).all()
    assert (right[values[..., -1] == 0] == 0).all()


def test_errors_by_hand() -> None:
    value = torch.tensor([[[1.0, 0.5, 9.0], [1.0, 0.0, 2.0]]])
    exact = torch.zeros(1, 2, 3)
    mask = torch.tensor([[[True, True, False], [True, True, True]]])
    first, later = value_errors(value, exact, mask)
    assert float(first) == 1.0
    assert float(later) == pytest.approx((0.25 + 0 + 4) / 3)


def test_a_trained_critics_errors_are_those_of_its_first_and_later_values() -> None:
    task, group = sums(), 3
    model = tiny((2,), context=task.context)
    critic = tiny((2,), seed=1, context=task.context, value=True)
    rows = task.held_out[:4]
    found = critic_errors(model, critic, task, rows, group, Noise((2,), 1, dtype=torch.float64))
    p = right_to_go(model, task, rows)[..., 0].double()
    prompt = task.prompt[rows].expand(2, 4, -1)
    first = values(critic, prompt, task.target[rows].expand(2, 4, -1).unsqueeze(-2))[..., 0, 0]
    torch.testing.assert_close(found["prompt"], (first - p).square().mean(-1).sqrt())
    torch.testing.assert_close(found["group"], ((p * (1 - p)).mean(-1) / group).sqrt())
    assert bool((found["token"] > 0).all())


@pytest.mark.slow
def test_a_small_run_counts_parameters_and_writes_every_comparison() -> None:
    result = ablation.run(SMALL, QUIET)
    # two comparisons of values and accuracy by place, of λ by place, and of the two places
    assert len(result.facts) == 1 + 2 * 3
    assert all((fact.runs, fact.relation) == (2, "above") for fact in result.facts)
    group = result.array("group", "final_seeds")
    for place in ablation.PLACES:
        over, half = interval(result.array(place, "1", "final_seeds") - group)
        found = (float(result.array(place, "1", f"over_group{end}")) for end in ("", "_half"))
        assert tuple(found) == pytest.approx((over, half), abs=1e-6)
    sizes, width = result.series["price"]["parameters"], SMALL.model(1).width
    assert sizes["own"] == 2 * sizes["group"] + width
    assert sizes["shared"] == sizes["group"] + width
    assert result.series["price"]["bytes"]["own"] == 16 * sizes["own"]
    assert result.array("own", "1", "prompt_error").shape == (2,)
    ablation.plot(dataclasses.replace(result, settings=SMALL))


@pytest.mark.parametrize("place", ablation.PLACES)
def test_a_critic_starts_from_the_warm_start_with_a_head_of_zeros(place: str) -> None:
    budget = dataclasses.replace(SMALL, warm_target=0.0, rollouts=1, critic=place)
    start = warm_start(budget, 2)
    problem = train(budget, ladder.ppo, start, (1e-9, 1e-8), range(2)).problem
    critic = problem.critic
    assert critic is not None
    assert (critic is problem.model) == (place == "shared")
    for name, weight in start.weights.items():
        torch.testing.assert_close(
            critic.weights[name], weight.expand(2, *weight.shape), rtol=0, atol=1e-7
        )
    assert float(critic.weights["value"].detach().abs().max()) < 1e-7


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lambdas", (0.5, 1.5)),
        ("lambdas", ()),
        ("rung", "ppo"),
        ("rates", ()),
        ("group", 1),
        ("timed", 0),
    ],
)
def test_refused_settings(field: str, value: object) -> None:
    with pytest.raises(CourseError, match=field):
        Settings(**{field: value})  # type: ignore[arg-type]
