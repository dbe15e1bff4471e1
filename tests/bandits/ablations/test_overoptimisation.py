"""Over-optimisation: policies and fits against enumeration and other solvers, and the facts."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from scipy import optimize

from bandits.ablations import overoptimisation as ablation
from bandits.ablations.overoptimisation import Settings
from bandits.theory import overoptimisation as theory
from bandits.theory.effective_samples import tilted
from course.errors import CourseError
from course.lab.result import Result
from course.lab.terminal import QUIET
from tests.helpers import close, f64, stream

LOG_REF = f64([0.4, 0.3, 0.2, 0.1]).log()
SCORE = f64([[0.0, 2.0, 2.0, -1.0], [3.0, 1.0, 0.5, 0.2]])


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_best_of_n_by_enumeration_of_all_samples(count: int) -> None:
    """All 4^n draws; among equal scores the first drawn wins, which shares by the reference."""
    found = theory.best_of(LOG_REF, SCORE, count)
    for run, score in enumerate(SCORE.tolist()):
        want = [0.0] * 4
        for drawn in itertools.product(range(4), repeat=count):
            chance = math.prod(float(LOG_REF[k].exp()) for k in drawn)
            want[max(drawn, key=lambda k: score[k])] += chance
        close(found[run].exp(), want)


def test_kl_of_best_of_n_is_the_formula_without_ties_and_below_it_with() -> None:
    assert float(theory.best_of_kl(1)) == 0.0
    distinct = torch.arange(20_000, dtype=torch.float64).unsqueeze(0)
    log_ref = torch.zeros(20_000, dtype=torch.float64).log_softmax(-1)
    for count in (2, 8, 64):
        formula = theory.best_of_kl(count)
        close(theory.kl(theory.best_of(log_ref, distinct, count), log_ref), [formula], rtol=1e-4)
        assert bool((theory.kl(theory.best_of(LOG_REF, SCORE, count), LOG_REF) < formula).all())
    with pytest.raises(CourseError, match=r"count: got 0"):
        theory.best_of_kl(0)


def test_kl_by_hand() -> None:
    policy = f64([[0.0, 0.5, 0.5, 0.0]]).log()
    close(theory.kl(policy, LOG_REF), [0.5 * math.log(0.5 / 0.3) + 0.5 * math.log(0.5 / 0.2)])


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_the_tilted_policy_is_where_the_penalised_gradient_vanishes(beta: float) -> None:
    """∇_θ of E[score] − β KL by autograd is 0 there, and the objective is smaller around it."""
    score = SCORE[0]

    def objective(logits: torch.Tensor) -> torch.Tensor:
        log_prob = logits.log_softmax(-1)
        return theory.expected(log_prob, score) - beta * theory.kl(log_prob, LOG_REF)

    best = tilted(LOG_REF, score, 1 / beta).requires_grad_()
    value = objective(best)
    close(torch.autograd.grad(value, best)[0], torch.zeros(4), atol=1e-12)
    for k in range(4):
        assert float(objective(best.detach() + 0.1 * torch.eye(4)[k].double())) < float(
            value.detach()
        )


def test_policy_gradient_follows_the_gradient_of_the_mean_score() -> None:
    path = list(theory.gradient_path(LOG_REF, SCORE, 3, 0.05))
    assert len(path) == 4
    for before, after in itertools.pairwise(path):
        leaf = before.clone().requires_grad_()
        mean = theory.expected(leaf.log_softmax(-1), SCORE).sum()
        [slope] = torch.autograd.grad(mean, leaf)
        step = 0.05 * slope / slope.abs().amax(-1, keepdim=True)
        close(after, (before + step).log_softmax(-1))


def test_the_reward_fitted_to_votes_is_the_one_of_a_general_optimiser() -> None:
    place = theory.world(stream((2,)), 30, 3, 2.0)
    votes = theory.vote(place.gold, stream((2,), 1), 80)
    seen = theory.with_squares(place.features)
    found = theory.bradley_terry(seen, votes, prior=0.3)
    for run in range(2):
        ahead = (seen[run, votes.winner[run]] - seen[run, votes.loser[run]]).numpy()

        def loss(w, ahead=ahead):  # type: ignore[no-untyped-def]
            return sum(math.log1p(math.exp(-x)) for x in ahead @ w) + 0.15 * float(w @ w)

        other = optimize.minimize(loss, [0.0] * 6, tol=1e-10).x
        close(found[run], seen[run] @ f64(other), atol=1e-4, rtol=1e-4)


def test_with_many_votes_a_right_model_finds_gold() -> None:
    place = theory.world(stream((3,)), 200, 3, 0.0)
    votes = theory.vote(place.gold, stream((3,), 1), 40_000)
    learned = theory.bradley_terry(place.features, votes)
    weights = torch.linalg.lstsq(place.features, learned.unsqueeze(-1)).solution.squeeze(-1)
    close(weights, f64([[1.0, 1.0, 0.0]] * 3), atol=0.06, rtol=0)


def test_votes_and_their_bootstrap() -> None:
    score = f64([[0.0, 1.0], [0.0, -2.0]])
    votes = theory.vote(score, stream((2,)), 20_000)
    unequal = votes.winner != votes.loser
    for run, chance in enumerate((1 / (1 + math.exp(-1)), 1 / (1 + math.exp(2)))):
        second = (votes.winner[run] == 1)[unequal[run]].double()
        assert abs(float(second.mean()) - chance) < 4 * math.sqrt(0.25 / len(second))
    few = votes.first(50)
    pairs = set(zip(few.winner[0].tolist(), few.loser[0].tolist(), strict=True))
    again = few.again(stream((2,), 3))
    assert set(zip(again.winner[0].tolist(), again.loser[0].tolist(), strict=True)) <= pairs
    assert again.winner.shape == (2, 50)
    assert not torch.equal(again.winner, few.winner)


def test_gold_turns_where_length_stops_paying() -> None:
    place = theory.world(stream((2,)), 50, 4, 2.0)
    x = place.features
    want = x[..., 0] + x[..., 1] - x[..., 0] ** 2
    close(place.gold, want - want.mean(-1, keepdim=True))
    assert torch.equal(place.length, x[..., 0])
    with pytest.raises(CourseError, match=r"features: got 1"):
        theory.world(stream((2,)), 50, 1, 2.0)


def test_the_share_of_fresh_votes_by_loops() -> None:
    policies = torch.stack([theory.best_of(LOG_REF, SCORE, n) for n in (1, 4)])
    found = theory.win_rate(policies, SCORE)
    for m, run in itertools.product(range(2), range(2)):
        want = sum(
            float(policies[m, run, a].exp()) / 4 / (1 + math.exp(SCORE[run, b] - SCORE[run, a]))
            for a in range(4)
            for b in range(4)
        )
        close(found[m, run], want)


def test_curves_over_distance_are_interpolated_and_end_with_the_path() -> None:
    path = [tilted(LOG_REF, SCORE, x) for x in (0.0, 0.5, 1.0)]
    d = [theory.kl(policy, LOG_REF).sqrt() for policy in path]
    measures = {"score": lambda policy: theory.expected(policy, SCORE)}
    grid = d[1].amin().reshape(1)
    found = theory.along(path, LOG_REF, measures, grid)["score"]
    at = [measures["score"](policy) for policy in path]
    for run in range(2):
        share = float((grid - d[0][run]) / (d[1][run] - d[0][run]))
        close(found[run], [at[0][run] + share * (at[1][run] - at[0][run])])
    with pytest.raises(CourseError, match=r"d: got .*the path's end"):
        theory.along(path, LOG_REF, measures, f64([50.0]))


@pytest.mark.parametrize("form", ["best-of-n", "rl"])
def test_gaos_forms_are_found_again(form: str) -> None:
    d = f64([0.0, 0.2, 0.5, 1.0, 1.5, 2.0])
    shape = d * (2.0 - 0.7 * d) if form == "best-of-n" else d * (2.0 - 0.7 * torch.log(d))
    fit = theory.gao_fit(form, d, torch.nan_to_num(shape))
    close([fit.alpha, fit.beta, fit.residual], [2.0, 0.7, 0.0], atol=1e-12)
    shifted = theory.gao_fit(form, d, torch.nan_to_num(shape) + f64([0, 1, -1, 1, -1, 1]) * 0.1)
    errors = f64(shifted.fitted) - (torch.nan_to_num(shape) + f64([0, 1, -1, 1, -1, 1]) * 0.1)
    largest = float((torch.nan_to_num(shape) + f64([0, 1, -1, 1, -1, 1]) * 0.1).abs().max())
    close(shifted.residual, errors.square().mean().sqrt() / largest)
    with pytest.raises(CourseError, match=r"form: got 'x'"):
        theory.gao_fit("x", d, d)


@pytest.mark.parametrize(
    "change",
    [
        {"runs": 1},
        {"arms": 5},
        {"features": 1},
        {"cost": 0.0},
        {"members": 1},
        {"largest": 0.0},
        {"distances": 2},
        {"sweep": (5, 4)},
        {"best_of": (2, 4)},
    ],
)
def test_settings_are_refused_at_the_door(change: dict[str, object]) -> None:
    with pytest.raises(CourseError, match=next(iter(change))):
        Settings(**change)  # type: ignore[arg-type]


def test_which_facts_hold_and_which_do_not() -> None:
    """On a table the KL-optimal policy is far better than policy gradient's at the same KL; more
    votes make a wrong model surer of its error; an ensemble of wrong models is wrong.
    """
    kept = Result.load(Path(__file__).parents[3] / "figures" / "overoptimisation.json")
    assert [fact.claim for fact in kept.facts if not fact.holds] == [
        "The best KL penalty gains less than 10 % of the peak over stopping without one in time",
        "More votes raise gold at the end (linear model, 60 to 4,000)",
        "With 60 votes an ensemble's mean has a higher peak than one model",
    ]
    assert len(kept.facts) == 26


def test_a_small_run_draws_and_its_curves_belong_together() -> None:
    small = Settings(
        runs=3, arms=300, votes=200, sweep=(60, 200), best_of=(1, 4, 64), distances=12, members=2
    )
    result = ablation.run(small, QUIET)
    assert {fact.number for fact in result.facts} == {34}
    best = result.series["curves"]["linear"]["best-of-n"]
    close(best["d"]["mean"][0], 0.0, atol=1e-7)
    close(best["gold"]["mean"][0], 0.0, atol=1e-9)
    close(best["fresh"]["mean"][0], 0.5)
    assert list(best["proxy"]["mean"]) == sorted(best["proxy"]["mean"])
    figure = ablation.plot(result_of(result, small))
    assert len(figure.axes) == 6


def result_of(result, settings):  # type: ignore[no-untyped-def]
    """The result as `run_ablation` completes it."""
    import dataclasses

    return dataclasses.replace(result, name="x", title="x", settings=settings)
