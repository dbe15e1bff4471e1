"""The reward model: its loss, its scores, its annotators and its training, each against a count, a
closed form or loops.
"""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from course.errors import CourseError
from tests.helpers import close, f64, stream
from tests.tinylm.helpers import reference_states, rows_of, schooled, sums, tiny, tokens_of
from tinylm import tasks
from tinylm.problem import LanguageModel
from tinylm.reward_model import (
    Annotator,
    LearnedReward,
    Pairs,
    RewardModel,
    bradley_terry_loss,
    fit,
    preference_accuracy,
    sample_pairs,
)
from tinylm.rewards import DigitCredit, ExactMatch
from tinylm.tasks import Task, TaskSettings

# ---------------------------------------------------------------- the loss


def test_the_loss_is_minus_the_log_of_the_winners_share_of_the_strengths() -> None:
    win, lose = [1.2, -0.3, 2.0], [0.4, 0.1, -1.0]
    share = [math.exp(w) / (math.exp(w) + math.exp(v)) for w, v in zip(win, lose, strict=True)]
    close(bradley_terry_loss(f64(win), f64(lose)), -sum(map(math.log, share)) / 3)


def test_each_run_has_its_own_loss() -> None:
    win, lose = f64([[0.0, 1.0], [3.0, 3.0]]), f64([[0.0, 1.0], [3.0, 5.0]])
    both = [math.log(2), (math.log(2) + math.log1p(math.exp(2))) / 2]
    close(bradley_terry_loss(win, lose), both)


def test_a_constant_of_the_question_changes_nothing() -> None:
    win, lose, constant = f64([1.2, -0.3]), f64([0.4, 0.1]), f64([7.0, -2.0])
    close(bradley_terry_loss(win + constant, lose + constant), bradley_terry_loss(win, lose))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_scores_give_a_finite_loss_and_gradient(dtype: torch.dtype) -> None:
    win = torch.tensor([-500.0, 500.0], dtype=dtype, requires_grad=True)
    loss = bradley_terry_loss(win, -win.detach())
    close(loss.detach(), 500.0, rtol=1e-6)
    close(torch.autograd.grad(loss, win)[0], [-0.5, 0.0])


def test_a_loss_of_no_pair_or_of_pairs_that_do_not_match_is_refused() -> None:
    with pytest.raises(CourseError, match=r"win: got .*at least one pair"):
        bradley_terry_loss(torch.zeros(0), torch.zeros(0))
    with pytest.raises(CourseError, match=r"lose: got .*allowed is the shape \(3,\)"):
        bradley_terry_loss(torch.zeros(3), torch.zeros(1))


# ---------------------------------------------------------------- annotators


def texts(*answers: str) -> Tensor:
    """Answers as rows of five tokens; ⏎ is the end."""
    return torch.tensor([tokens_of(answer, 5) for answer in answers])


def question(prompt: str) -> tuple[Task, Tensor]:
    """Sums of one digit with room for five tokens, and the row of one question."""
    task = tasks.make(TaskSettings(digits=1), slack=2)
    row = (task.prompt == torch.tensor(tasks.encode(prompt))).all(-1).nonzero().item()
    return task, torch.tensor(row)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("annotator", "ahead"),
    [
        (Annotator(sharpness=3.0), 3.0),
        (Annotator(sharpness=3.0, length_bias=0.5), 3.0 - 1.0),  # two tokens fewer
        (Annotator(sharpness=3.0, first_bias=0.7), 3.7),
        (Annotator(DigitCredit(), sharpness=3.0), 1.5),  # "02" has one of two digits
        (Annotator(sharpness=0.0), 0.0),
    ],
)
def test_log_odds_of_a_vote_add_gold_length_and_place(annotator: Annotator, ahead: float) -> None:
    """5+7=12: "12" against "02;;", four tokens and an end."""
    task, row = question("5+7=")
    right, long = texts("12⏎", "02;;⏎")
    close(annotator.prefers_first(right, long, row, task), sigmoid(ahead), rtol=1e-6)


def test_noise_turns_votes_around() -> None:
    task, row = question("5+7=")
    right, wrong = texts("12⏎", "13⏎")
    chance = Annotator(sharpness=3.0, noise=0.2).prefers_first(right, wrong, row, task)
    close(chance, 0.8 * sigmoid(3.0) + 0.2 * (1 - sigmoid(3.0)), rtol=1e-6)


@pytest.mark.parametrize(("bias", "consistent"), [(0.0, True), (0.7, False)])
def test_only_the_place_makes_an_annotator_inconsistent(bias: float, consistent: bool) -> None:
    """Consistent: the chances of a pair, shown in both orders, are those of one winner."""
    task, row = question("5+7=")
    right, wrong = texts("12⏎", "13⏎")
    annotator = Annotator(sharpness=3.0, length_bias=0.4, first_bias=bias, noise=0.1)
    shown = annotator.prefers_first(right, wrong, row, task)
    turned = annotator.prefers_first(wrong, right, row, task)
    assert (abs(float(shown + turned) - 1) < 1e-6) == consistent


@pytest.mark.parametrize(
    ("setting", "value"),
    [("noise", 0.6), ("noise", -0.1), ("sharpness", math.inf), ("length_bias", math.nan)],
)
def test_wrong_annotators_are_refused(setting: str, value: float) -> None:
    with pytest.raises(CourseError, match=f"nnotator.{setting}: got"):
        Annotator(**{setting: value})


# ---------------------------------------------------------------- pairs


def test_votes_are_those_of_the_annotator() -> None:
    """The share of votes for the better of two different answers, against their mean chance."""
    policy, task = schooled(), sums()
    annotator = Annotator(sharpness=1.0, length_bias=0.3)
    pairs = sample_pairs(policy, task, annotator, stream(), 4000, questions=task.train)
    place = (pairs.prompt.unsqueeze(-2) == task.prompt).all(-1).int().argmax(-1)
    gap = annotator.score(pairs.win, place, task) - annotator.score(pairs.lose, place, task)
    unequal = gap != 0
    chance = torch.sigmoid(gap[unequal].abs())
    surprise = (gap[unequal] > 0).sum() - chance.sum()
    deviation = (chance * (1 - chance)).sum().sqrt()
    assert abs(float(surprise / deviation)) < stats.norm.isf(1e-4)
    assert int(unequal.sum()) > 1000


def test_questions_are_drawn_from_the_rows_that_are_given() -> None:
    policy, task = schooled(), sums()
    for rows in (task.train, task.held_out):
        given = None if rows is task.train else rows
        pairs = sample_pairs(policy, task, Annotator(), stream(), 500, questions=given)
        asked = {tuple(row) for row in pairs.prompt.tolist()}
        assert asked <= {tuple(row) for row in task.prompt[rows].tolist()}
        assert len(asked) > 0.9 * len(rows)


def test_the_first_pairs_and_those_with_given_numbers() -> None:
    table = torch.arange(12).view(4, 3)
    pairs = Pairs(table, table + 100, table + 200)
    assert torch.equal(pairs.first(2).win, table[:2] + 100)
    assert torch.equal(pairs.take(torch.tensor([3, 0, 3])).lose, table[[3, 0, 3]] + 200)
    with pytest.raises(CourseError, match="count: got 5; allowed is 1 to 4"):
        pairs.first(5)


# ---------------------------------------------------------------- the model


def test_a_score_is_the_value_at_the_last_token() -> None:
    """Against the transformer in loops, on answers of different length, one without an end."""
    network = tiny(value=True)
    prompt = torch.tensor(tasks.encode("5+7=")).expand(3, -1)
    answers = ("12⏎", "1;34⏎", "12345")
    scores = RewardModel(network)(prompt, texts(*answers))
    rows = rows_of(network)
    head = [row[0] for row in rows["value"]]
    for score, answer in zip(scores.tolist(), answers, strict=True):
        sequence = [*tasks.encode("5+7="), *tokens_of(answer, 0)]
        state = reference_states(rows, network.settings, sequence)[-1]
        close(score, sum(a * b for a, b in zip(state, head, strict=True)), rtol=1e-9)


def test_a_model_without_a_value_head_is_refused() -> None:
    with pytest.raises(CourseError, match=r"network.settings.value: got False"):
        RewardModel(tiny())


def test_a_new_reward_model_has_the_trunk_of_the_policy_and_scores_nothing() -> None:
    policy, task = schooled((2,)), sums()
    before = {name: weight.clone() for name, weight in policy.weights.items()}
    model = RewardModel.on(policy)
    pairs = sample_pairs(policy, task, Annotator(), stream((2,)), 8)
    close(model(pairs.prompt, pairs.win).detach(), torch.zeros(2, 8))
    states = policy.hidden(torch.cat([pairs.prompt, pairs.win], -1))
    close(model.network.hidden(torch.cat([pairs.prompt, pairs.win], -1)), states)
    close(fit(model, pairs, stream((2,)), steps=2)[0], [math.log(2)] * 2)
    for name, weight in policy.weights.items():
        assert torch.equal(weight, before[name]), name


def longer_wins(runs: tuple[int, ...], seed: int, count: int) -> Pairs:
    """Votes of an annotator who looks at the length alone and never errs."""
    policy, task = schooled(runs), tasks.make(TaskSettings(digits=1), slack=2)
    annotator = Annotator(sharpness=0.0, length_bias=40.0)
    return sample_pairs(policy, task, annotator, stream(runs, seed), count)


def test_it_learns_what_the_annotator_looks_at() -> None:
    """A length is learned to the last vote; a coin is not learned at all."""
    model = RewardModel.on(schooled())
    seen = fit(model, longer_wins((), 1, 400), stream(), steps=150, lr=0.01)
    held_out = longer_wins((), 2, 600)
    unequal = (held_out.win == tasks.PAD).sum(-1) != (held_out.lose == tasks.PAD).sum(-1)
    told = Pairs(held_out.prompt[unequal], held_out.win[unequal], held_out.lose[unequal])
    assert len(told) > 200
    assert float(preference_accuracy(model, told)) > 0.97
    assert float(seen[-20:].mean()) < 0.5 < float(seen[0])
    coin = sample_pairs(schooled(), sums(), Annotator(sharpness=0.0), stream(seed=3), 4000)
    agrees = float(preference_accuracy(model, coin))
    assert abs(agrees - 0.5) < stats.norm.isf(1e-4) * 0.5 / int(coin.differ.sum()) ** 0.5


def test_the_limit_of_the_fit_is_the_annotators_score_up_to_a_constant() -> None:
    """One question, three answers, votes in exactly the shares of a score (0, 1, 2.5)."""
    answers, score = texts("12⏎", "02⏎", "1⏎"), f64([0.0, 1.0, 2.5])
    votes = [
        (i, j, round(100 * sigmoid(float(score[i] - score[j]))))
        for i in range(3)
        for j in range(3)
        if i != j
    ]
    win = torch.tensor([i for i, _, n in votes for _ in range(n)])
    lose = torch.tensor([j for _, j, n in votes for _ in range(n)])
    prompt = torch.tensor(tasks.encode("5+7=")).expand(3, -1)
    model = RewardModel(tiny(value=True))
    pairs = Pairs(prompt[win % 3], answers[win], answers[lose])
    for lr, batch in ((5e-3, 100), (3e-4, 400)):
        fit(model, pairs, stream(seed=1), steps=100, batch=batch, lr=lr)
    learned = model(prompt, answers).detach()
    close(learned - learned[0], score, atol=0.15, rtol=0)


def test_runs_alone_give_what_they_give_together() -> None:
    pairs = longer_wins((2,), 1, 60)
    model = RewardModel.on(schooled((2,)))
    together = fit(model, pairs, stream((2,)), steps=5)
    for run in range(2):
        one = schooled()
        one.weights = {
            name: weight[run].detach().clone() for name, weight in schooled((2,)).weights.items()
        }
        own = Pairs(pairs.prompt[run], pairs.win[run], pairs.lose[run])
        alone = fit(RewardModel.on(one), own, stream((), numbers=[run]), steps=5)
        close(alone, together[:, run], rtol=1e-9)


def test_accuracy_counts_the_votes_and_leaves_out_equal_answers() -> None:
    class ByFirstDigit(RewardModel):
        def __call__(self, prompt: Tensor, tokens: Tensor) -> Tensor:
            return tokens[..., 0].float()

    model = ByFirstDigit(tiny(value=True))
    win, lose = texts("3⏎", "1⏎", "2⏎", "4⏎", "5⏎"), texts("1⏎", "3⏎", "25⏎", "4⏎", "1⏎")
    pairs = Pairs(torch.tensor(tasks.encode("5+7=")).expand(5, -1), win, lose)
    assert pairs.differ.tolist() == [True, True, True, False, True]
    for batch in (1, 2, 100):
        close(preference_accuracy(model, pairs, batch=batch), (1 + 0 + 0.5 + 1) / 4)


# ---------------------------------------------------------------- as a reward


@pytest.mark.parametrize("runs", [(), (2,)])
def test_as_a_reward_it_gives_each_completion_its_score(runs: tuple[int, ...]) -> None:
    policy, task = schooled(runs), sums()
    model = RewardModel(tiny(runs, seed=3, value=True))
    problem = LanguageModel(
        policy, task, prompts=3, group=2, reward=LearnedReward(2.0, model=model)
    )
    rollout = problem.sample(stream(runs))
    prompt = rollout.data["prompt"].unsqueeze(-2).expand(*runs, 3, 2, -1)
    close(rollout.total_reward, 2 * model(prompt, rollout.data["tokens"]).detach())
    assert float(rollout.total_reward.std()) > 0.01


def test_a_reward_model_without_run_axes_serves_policies_with_some() -> None:
    policy, task = schooled((2,)), sums()
    model = RewardModel(tiny(seed=3, value=True))
    rollout = LanguageModel(
        policy, task, prompts=3, group=2, reward=LearnedReward(model=model)
    ).sample(stream((2,)))
    for run in range(2):
        prompt = rollout.data["prompt"][run].unsqueeze(-2).expand(3, 2, -1)
        close(
            rollout.total_reward[run],
            model(prompt, rollout.data["tokens"][run]).detach(),
            rtol=1e-9,
        )


def test_the_gold_of_an_annotator_may_be_any_reward() -> None:
    assert Annotator().gold == ExactMatch()
    with pytest.raises(CourseError, match=r"fit.steps: got"):
        fit(RewardModel(tiny(value=True)), longer_wins((), 1, 5), stream(), steps=None)  # type: ignore[arg-type]
