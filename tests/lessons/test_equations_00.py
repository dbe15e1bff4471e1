"""The equations of lesson 00 in numbers."""

from __future__ import annotations

import math

import torch

from bandits.environments import Bernoulli
from bandits.exact import B3_MEANS, B3_POLICY
from bandits.policies import Softmax
from bandits.problem import Bandit
from course import ladder
from course.learner import Learner
from course.lesson.map import ladder_map, lesson_of, progress_table
from course.lesson.syllabus import SYLLABUS
from course.rollout import Policy, Rollout
from course.train.noise import Noise
from course.train.optim import SGD
from tests.helpers import close, f64
from tinylm import tasks
from tinylm.model import ModelSettings, Transformer
from tinylm.warm_start import LIKELIHOOD, Demonstrations

REWARD = f64([[[0, 1, 0], [0, 0, 0]], [[1, 0, 0], [0, 0, 3]]])
MASK = torch.tensor(
    [[[True, True, False], [True, True, True]], [[True, False, False], [True, True, True]]]
)
OLD = -f64([[[1.0, 0.5, 0], [0.3, 0.7, 1.1]], [[0.9, 0, 0], [0.4, 1.3, 0.2]]])
NOW = -f64([[[0.6, 0.9, 0], [0.2, 1.4, 1.0]], [[0.8, 0, 0], [0.9, 1.2, 0.6]]])
REF = -f64([[[0.8, 0.6, 0], [0.5, 0.9, 0.7]], [[1.0, 0, 0], [0.2, 1.0, 0.9]]])
ROLLOUT = Rollout(REWARD, OLD, MASK, ref_log_prob=REF)


def test_one_objective_is_the_weighted_sum_of_surrogate_minus_kl() -> None:
    """eq:one-objective: GRPO's value on two prompts of two ragged answers, token by token in plain
    Python.
    """
    total = 0.0
    for q, rewards in enumerate(((1.0, 0.0), (1.0, 3.0))):
        mean = sum(rewards) / 2
        std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / 2)
        for g, r in enumerate(rewards):
            advantage, length = (r - mean) / (std + 1e-6), int(MASK[q, g].sum())
            for t in range(length):
                rho, log_r = (
                    math.exp(NOW[q, g, t] - OLD[q, g, t]),
                    float(REF[q, g, t] - NOW[q, g, t]),
                )
                surrogate = min(rho * advantage, min(max(rho, 0.8), 1.2) * advantage)
                total += (surrogate - 0.04 * (math.exp(log_r) - 1 - log_r)) / (4 * length)
    close(ladder.grpo.objective(Policy(NOW), ladder.grpo.freeze(ROLLOUT)), total)


def test_advantage_of_parts_is_the_scaled_difference_of_credit_and_baseline() -> None:
    """eq:advantage-of-parts: R − b and (R − b)/std by hand, the same for every token
    of an answer.
    """
    for estimator, want in (
        (ladder.reinforce, [[1, 0], [1, 3]]),
        (ladder.baseline, [[-0.25, -1.25], [-0.25, 1.75]]),
        (ladder.group_mean, [[0.5, -0.5], [-1, 1]]),
        (
            ladder.group_std,
            [[0.5 / (0.5 + 1e-6), -0.5 / (0.5 + 1e-6)], [-1 / (1 + 1e-6), 1 / (1 + 1e-6)]],
        ),
    ):
        close(estimator.freeze(ROLLOUT).advantage, f64(want).unsqueeze(-1) * MASK)


def test_answer_length_counts_the_chosen_tokens() -> None:
    """eq:answer-length: Σ_t mask."""
    assert ROLLOUT.length.tolist() == [[2, 3], [1, 3]]


def test_runs_apart_a_run_alone_gives_what_it_gives_among_others() -> None:
    """eq:runs-apart: the gradient of the sum of all runs' losses is, run by run, what one run alone
    has.
    """
    policy, mean = f64([B3_POLICY]), f64([B3_MEANS])

    def trained(numbers: list[int]) -> torch.Tensor:
        noise = Noise((len(numbers),), 5, numbers=numbers, dtype=torch.float64)
        bandit = Bandit(
            Bernoulli(mean.expand(len(numbers), 1, 3)),
            Softmax.of(policy.expand(len(numbers), 1, 3)),
            group=4,
        )
        Learner(bandit, ladder.group_std, SGD(0.3), noise).train(20)
        return bandit.arm_policy.log_probs().detach()

    together = trained([0, 1, 2, 3])
    for run in range(4):
        close(trained([run])[0], together[run])


def test_minibatches_add_up_to_the_batch() -> None:
    """eq:minibatches-add: the objectives of two halves, and their gradients, add up to
    the batch's.
    """
    now = NOW.clone().requires_grad_()
    for rung in ladder.select():
        estimator, whole = rung.estimator, rung.estimator.freeze(ROLLOUT)
        halves = [whole.prompts(torch.tensor([q])) for q in range(2)]
        pieces = sum(
            (estimator.objective(Policy(now[q : q + 1]), half) for q, half in enumerate(halves)),
            f64(0.0),
        )
        total = estimator.objective(Policy(now), whole)
        close(pieces.detach(), total.detach())
        close(torch.autograd.grad(pieces, now)[0], torch.autograd.grad(total, now)[0])


def test_likelihood_is_reward_one_has_the_gradient_of_cross_entropy() -> None:
    """eq:likelihood-is-reward-one: its loss and gradient on demonstrations are those of torch's own
    cross-entropy.
    """
    task = tasks.make(tasks.TaskSettings(name="subtraction", digits=1))
    model = Transformer(
        ModelSettings(width=16, layers=1, heads=2, hidden=32, context=task.context),
        dtype=torch.float64,
    )
    problem = Demonstrations(model, task, batch=12)
    rollout = problem.sample(Noise((), 0, dtype=torch.float64))
    policy = problem.policy(rollout)
    loss = LIKELIHOOD.loss(policy, rollout)
    tokens, mask = rollout.data["tokens"], rollout.mask
    assert policy.log_dist is not None
    want = torch.nn.functional.cross_entropy(policy.log_dist[mask], tokens[mask])
    close(loss.detach(), want.detach())
    for mine, theirs in zip(
        torch.autograd.grad(
            loss, model.parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        ),
        torch.autograd.grad(want, model.parameters, allow_unused=True, materialize_grads=True),
        strict=True,
    ):
        close(mine, theirs)


# ---------------------------------------------------------------- the map


def test_the_map_links_every_lesson_and_shows_every_rung_from_the_top_down() -> None:
    text, markup = ladder_map()
    assert [line.split()[0] for line in text.splitlines()] == [
        rung.name for rung in reversed(ladder.select())
    ]
    for lesson in list(SYLLABUS.values())[1:]:
        assert f'href="{lesson.file}.ipynb"' in markup
    for rung in ladder.RUNGS.values():
        assert rung.kind == "own" or rung.title.split(",")[0] in markup
    assert lesson_of("clip") == SYLLABUS["04"]
    assert lesson_of("grpo") == SYLLABUS["07"]  # the first of its lessons
    assert lesson_of("gspo") is None


def test_progress_counts_only_what_a_lesson_asks(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from course.lesson import index, progress

    monkeypatch.setenv(progress.FILE, str(tmp_path / "progress.json"))
    asked = index()["01"]["questions"]
    progress.record("01", "questions", asked[0])
    progress.record("01", "questions", "one that was renamed")
    line = next(line for line in progress_table()[0].splitlines() if line.startswith("01"))
    assert f"1 of {len(asked)} questions" in line
