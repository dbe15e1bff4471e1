"""A sampler that drifts: the four drifts by hand, the table by loops over answers, the facts."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from bandits.ablations import mismatch as ablation
from bandits.ablations.mismatch import Settings
from bandits.theory import mismatch as theory
from bandits.theory.effective_samples import Sums, answers, token_log_probs
from course.errors import CourseError
from course.exact import gradient
from course.lab.terminal import QUIET
from course.parts import RejectK3, SequenceMIS, SequenceTIS, TokenTIS
from tests.helpers import close, f64

TASK = Sums(2, 3)
PATH = theory.learner(TASK, 3, 4, 0.7)


def test_the_learner_climbs_along_the_exact_gradient() -> None:
    for before, after in itertools.pairwise(PATH):
        close(after - before, 0.7 * gradient(theory.outcomes(TASK, before, before)).view_as(before))
    again = theory.learner(TASK, 3, 2, 0.7)
    assert all(torch.equal(one, other) for one, other in zip(again, PATH, strict=False))


def test_a_hotter_policy_has_flatter_probabilities() -> None:
    found = torch.softmax(theory.heated(f64([0.6, 0.3, 0.1]).log(), 2.0), -1)
    roots = f64([math.sqrt(0.6), math.sqrt(0.3), math.sqrt(0.1)])
    close(found, roots / roots.sum())


def test_top_p_keeps_the_fewest_words_that_reach_it() -> None:
    logits = f64([[0.15, 0.5, 0.05, 0.3], [0.97, 0.01, 0.01, 0.01]]).log()
    for top_p, first in (
        (0.4, [0, 1, 0, 0]),
        (0.5, [0, 1, 0, 0]),
        (0.79, [0, 0.5 / 0.8, 0, 0.3 / 0.8]),
        (0.81, [0.15 / 0.95, 0.5 / 0.95, 0, 0.3 / 0.95]),
        (0.96, [0.15, 0.5, 0.05, 0.3]),
    ):
        found = torch.softmax(theory.nucleus(logits, top_p), -1)
        close(found[0], first)
        close(found[1], [1, 0, 0, 0])


def test_eight_bits_are_bfloat16() -> None:
    shifted = PATH[-1] - PATH[-1].amax(-1, keepdim=True) + 16
    close(theory.rounded(PATH[-1], 8), shifted.bfloat16().double())
    assert not torch.equal(theory.rounded(PATH[-1], 8), shifted)
    close(theory.rounded(f64([[16.0, 13.4]]), 3), [[16.0, 14.0]])  # 8, 10, 12, 14, 16
    close(theory.rounded(PATH[-1], 52).log_softmax(-1), PATH[-1].log_softmax(-1))


@pytest.mark.parametrize(
    ("kind", "size"), [("temperature", 1.7), ("top-p", 0.7), ("bits", 2), ("updates", 3)]
)
def test_the_table_by_loops_over_answers(kind: str, size: float) -> None:
    """E_μ of Σ_t c_t (R − J) ∇log π_t and its variance, with the weights written out."""
    case = theory.outcomes(TASK, PATH[-1], theory.sampler(kind, size, PATH))
    every, reward = answers(TASK)
    now = token_log_probs(PATH[-1], TASK)
    drawn = token_log_probs(theory.sampler(kind, size, PATH), TASK)
    value = float(now.sum(-1).exp() @ reward)
    true = gradient(case)
    cases = {
        TokenTIS(1.3): lambda a, b: (min(a, 1.3), min(b, 1.3)),
        SequenceTIS(1.3): lambda a, b: (min(a * b, 1.3),) * 2,
        SequenceTIS(None): lambda a, b: (a * b,) * 2,
        SequenceMIS(0.8, 1.4): lambda a, b: (a * b * (0.8 <= a * b <= 1.4),) * 2,
        RejectK3(0.02): lambda a, b: (float(a - math.log(a) + b - math.log(b) - 2 <= 0.04),) * 2,
    }
    for correction, weigh in cases.items():
        mean, square, kept = torch.zeros_like(true), 0.0, 0.0
        for k in range(len(every)):
            chance = math.exp(drawn[k].sum())
            if not chance:
                continue
            weight = weigh(*(math.exp(now[k, t] - drawn[k, t]) for t in range(2)))
            sample = sum(
                weight[t] * (float(reward[k]) - value) * case.score[0, k, t] for t in range(2)
            )
            mean = mean + chance * sample
            square += chance * float(sample @ sample)  # type: ignore[operator]
            kept += chance * sum(x > 0 for x in weight) / 2
        row = theory.table_row(correction, case)
        close(row["bias"], (mean - true).norm() / true.norm(), atol=1e-11)
        variance = max(square - float(mean @ mean), 0.0)
        close(row["noise"], math.sqrt(variance) / true.norm(), rtol=1e-7, atol=1e-7)
        close(row["kept"], kept)
        if kept:
            close(row["cosine"], mean @ true / (mean.norm() * true.norm()), atol=1e-10)


def test_how_far_the_sampler_is_by_hand() -> None:
    case = theory.outcomes(TASK, PATH[-1], PATH[0])
    now, drawn = (token_log_probs(x, TASK) for x in (PATH[-1], PATH[0]))
    chance = drawn.sum(-1).exp()
    close(theory.drift_kl(case), (chance * (drawn - now).sum(-1)).sum())
    move = sum(
        float(chance[k]) * abs(math.exp(float((now[k] - drawn[k]).sum()) / 2) - 1)
        for k in range(len(now))
    )
    close(theory.typical_move(case), move)
    arms = theory.as_arms(case)
    close(gradient(arms), gradient(case))
    close(theory.seen(TokenTIS(None), arms).relative_bias, 0.0, atol=1e-12)


FAILED = [
    "The whole answer's weight is noisier than none at the largest drift (temperature 2)",
    "Token TIS has less bias than no correction (top-p 0.99, relative bias)",
    "The whole answer's weight is noisier than none at the largest drift (updates 16)",
]


def test_which_facts_hold_and_which_do_not() -> None:
    """A hotter or an older sampler tries more, so the exact weights are below 1 where it matters,
    and less noisy; and what top-p cuts off, no weight brings back.
    """
    result = ablation.run(ablation.SETTINGS, QUIET)
    assert [fact.claim for fact in result.facts if not fact.holds] == FAILED
    assert {fact.number for fact in result.facts} == {28}
    assert len(result.facts) == 24
    # an infinite cap and none are one
    for name in ("sequence weight", "sequence TIS"):
        assert result.array("table", "bits", name, "bias")[0] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": 6},
        {"updates": 0},
        {"lr": 0.0},
        {"temperatures": (1.0, 2.0)},
        {"top_p": (1.0,)},
        {"bits": (0,)},
        {"stale": (17,)},
        {"caps": (2.0, 1.0)},
    ],
)
def test_settings_are_refused_at_the_door(change: dict[str, object]) -> None:
    with pytest.raises(CourseError, match=next(iter(change))):
        Settings(**change)  # type: ignore[arg-type]
