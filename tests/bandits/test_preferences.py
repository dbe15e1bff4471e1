"""Preferences on a listed prompt: fits find what was voted by, and wrong arguments are refused."""

from __future__ import annotations

import math

import pytest
import torch

from bandits.theory import preferences
from course.errors import CourseError
from course.train.noise import Noise
from tinylm.reward_model import bradley_terry_loss

WORLD = preferences.letters()


@pytest.mark.parametrize("bias", [0.0, 0.2])
def test_all_pairs_give_back_the_annotators_weights(bias: float) -> None:
    weights = preferences.annotator(bias)
    found = preferences.fit(WORLD.features, *preferences.every_pair(WORLD, weights), ridge=0.0)
    torch.testing.assert_close(found, weights, atol=1e-9, rtol=0)


def test_a_fit_is_where_the_loss_has_no_slope() -> None:
    """The ridge included; by automatic differentiation, on 200 votes."""
    voted = preferences.ask(WORLD, preferences.annotator(), 200, Noise((), 3, dtype=torch.float64))
    found = preferences.fit(WORLD.features, *voted, ridge=0.01).requires_grad_()
    reward = WORLD.features @ found
    loss = bradley_terry_loss(reward[voted[0]], reward[voted[1]])
    [slope] = torch.autograd.grad(loss + 0.01 / 2 * found.square().sum(), found)
    torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-9, rtol=0)


def test_votes_of_one_side_alone_end_at_a_finite_weight() -> None:
    """Separable votes have no maximum; the ridge gives them one."""
    features = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    won, lost = torch.ones(5, dtype=torch.long), torch.zeros(5, dtype=torch.long)
    [weight] = preferences.fit(features, won, lost, ridge=1e-3).tolist()
    assert 1 / (1 + math.exp(weight)) == pytest.approx(1e-3 * weight, abs=1e-9)


def test_votes_have_the_odds_of_the_rewards() -> None:
    """40,000 votes on two answers of quality 0 and 1: σ(4) = .982 of the mixed pairs."""
    two = preferences.Answers(
        torch.tensor([0.5, 0.5], dtype=torch.float64).log(),
        torch.tensor([0.0, 1.0], dtype=torch.float64),
        torch.ones(2, dtype=torch.float64),
    )
    noise = Noise((), 0, dtype=torch.float64)
    winner, loser = preferences.ask(two, preferences.annotator(), 40_000, noise)
    mixed = winner != loser
    assert float(mixed.double().mean()) == pytest.approx(0.5, abs=0.01)
    won = float((winner[mixed] == 1).double().mean())
    assert won == pytest.approx(1 / (1 + math.exp(-4.0)), abs=0.004)


def test_length_costs_gold_and_the_reference_is_what_it_says() -> None:
    pi = WORLD.log_ref.exp()
    assert float(pi.sum()) == pytest.approx(1, abs=1e-12)
    assert float(pi @ WORLD.length) == pytest.approx(8, abs=0.5)
    longer = (
        (WORLD.quality == 0.5) & (WORLD.length == 20),
        (WORLD.quality == 0.5) & (WORLD.length == 10),
    )
    first, second = (WORLD.gold[each].item() for each in longer)
    assert first - second == pytest.approx(-0.3, abs=1e-12)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: preferences.letters(qualities=1),
        lambda: preferences.letters(longest=1.5),  # type: ignore[arg-type]
        lambda: preferences.annotator(math.nan),
        lambda: preferences.voted(1.5),
        lambda: preferences.voted(0.5, coins=-0.1),
    ],
)
def test_a_number_out_of_range_is_refused(wrong: object) -> None:
    assert callable(wrong)
    with pytest.raises(CourseError):
        wrong()
