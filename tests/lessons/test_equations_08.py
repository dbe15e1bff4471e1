"""The equations of lesson 08 in numbers: answers and their probabilities by listing, SFT,
temperature, weights, the token level.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from course import ladder
from course.parts import TokenMean
from course.train.noise import Noise
from tests.tinylm.helpers import schooled, sums, tokens_of
from tinylm.bridge import Bridge, completions, count
from tinylm.model import Transformer, next_token_log_dist
from tinylm.rewards import DigitCredit, ExactMatch
from tinylm.scoring import log_dists
from tinylm.tasks import CHARACTERS, END, PAD
from tinylm.token_level import ratio_row
from tinylm.warm_start import LIKELIHOOD, Demonstrations

DOUBLE = torch.float64
QUESTION, LIMIT = 12, 2  # 1+2=, and completions of at most two tokens: 1 + 17 + 289


def bridge(**options: object) -> Bridge:
    """A schooled model's question."""
    return Bridge(schooled(), sums(), QUESTION, limit=LIMIT, **options)  # type: ignore[arg-type]


def probability(model: Transformer, answer: list[int]) -> torch.Tensor:
    """π of one answer, token by token, each from a pass of its own over the prompt and what is
    written so far.
    """
    prompt, total = sums().prompt[QUESTION], torch.ones((), dtype=DOUBLE)
    for t, token in enumerate(answer):
        if token == PAD:
            break
        whole = torch.cat([prompt, torch.tensor(answer[:t], dtype=torch.long)])[None]
        logits = model.logits(model.hidden(whole)[0, -1])
        logits = torch.cat([logits[:PAD], logits[PAD + 1 :]])  # the padding is never produced
        total = total * torch.softmax(logits, -1)[token if token < PAD else token - 1]
    return total


def moved() -> Transformer:
    """The schooled model after a push that sampling knows nothing of."""
    model = schooled()
    noise = Noise((), 3, dtype=DOUBLE)
    with torch.no_grad():
        for weight in model.parameters:
            weight += 0.1 * noise.normal(*weight.shape)
    return model


def test_a_verifiable_reward_asks_for_the_answer_and_its_end() -> None:
    """eq:verifiable-reward: of all completions of three tokens one is right."""
    task = sums()
    listed = completions(3)
    reward = ExactMatch()(listed, torch.full((len(listed),), 78), task)  # 7+8=
    assert reward.sum() == 1
    assert listed[int(reward.argmax())].tolist() == tokens_of("15⏎", 3)


def test_number_of_completions() -> None:
    """eq:number-of-completions: by listing all rows of tokens, up to the end token."""
    for limit in (1, 2, 3):
        tokens = [*range(len(CHARACTERS)), END]
        rows = set()
        for row in itertools.product(tokens, repeat=limit):
            cut = row[: row.index(END) + 1] if END in row else row
            rows.add(cut)
        assert count(limit) == len(rows) == len(completions(limit))


def test_log_probability_of_an_answer_is_the_sum_over_its_tokens() -> None:
    """eq:answer-log-prob: against one pass of the model for every token; and all answers together
    are certain.
    """
    seen = bridge()
    model = seen.model
    for k in (0, 5, 17, 18, 40, 306):
        want = float(probability(model, seen.tokens[k].tolist()).detach().log())
        assert float(seen.log_prob[k]) == pytest.approx(want, abs=1e-10)
    assert float(seen.log_prob.exp().sum()) == pytest.approx(1.0, abs=1e-12)


def test_objective_and_gradient_of_a_prompt() -> None:
    """eq:prompt-objective and eq:pull-back: Σ p R over all answers, differentiated through the
    plain model; and Σ c ∇log π for any c.
    """
    seen = bridge(reward=DigitCredit(weight=3.0))
    model = seen.model
    paid = (
        torch.arange(len(seen.tokens), dtype=DOUBLE) % 7
    )  # rewards of one's own, so that more than one answer pays
    some = [0, 3, 18, 50, 200]
    coefficient = torch.zeros(1, *seen.mask.shape, dtype=DOUBLE)
    coefficient[0, some] = paid[some].unsqueeze(-1).expand(-1, LIMIT)
    logs = torch.stack([probability(model, seen.tokens[k].tolist()).log() for k in some])
    want = torch.cat(
        [g.flatten() for g in torch.autograd.grad((paid[some] * logs).sum(), model.parameters)]
    )
    torch.testing.assert_close(seen.pull_back(coefficient), want, rtol=0, atol=1e-9)
    p = torch.stack([probability(model, row).detach() for row in seen.tokens.tolist()])
    assert seen.objective == pytest.approx(float((p * seen.reward).sum()), abs=1e-12)
    assert seen.objective > 0.1


def test_sft_is_the_mean_log_likelihood_and_its_gradient_a_policy_gradient() -> None:
    """eq:sft-log-likelihood: value by torch's cross-entropy, gradient as Σ 1·∇log π over the
    demonstrations' tokens.
    """
    model = schooled()
    for weight in model.parameters:
        weight.requires_grad_()
    problem = Demonstrations(model, sums(), batch=6)
    rollout = problem.sample(Noise((), 1, dtype=DOUBLE))
    log_dist = log_dists(model, rollout.data["prompt"], rollout.data["tokens"])
    loss = torch.nn.functional.cross_entropy(
        log_dist[rollout.mask], rollout.data["tokens"][rollout.mask]
    )
    objective = LIKELIHOOD.objective(problem.policy(rollout), LIKELIHOOD.freeze(rollout))
    assert float(objective.detach()) == pytest.approx(-float(loss.detach()), abs=1e-12)
    pairs = zip(
        torch.autograd.grad(objective, model.parameters),
        torch.autograd.grad(loss, model.parameters),
        strict=True,
    )
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, -theirs, rtol=0, atol=1e-12)


def test_forecast_of_the_token_level() -> None:
    """eq:token-ratio-forecast: J_old + E_old[Σ_t (ρ_t − 1) A] by listing; with the answer's ratio
    it is J.
    """
    now, old = moved(), schooled()
    task = sums()
    seen = Bridge(now, task, QUESTION, old=old, reference=old, limit=LIMIT, reward=DigitCredit())
    row = ratio_row(seen)
    dists = [log_dists(m, task.prompt[QUESTION][None], seen.tokens[None])[0] for m in (now, old)]
    safe = torch.where(seen.mask, seen.tokens, 0).unsqueeze(-1)
    new_log, old_log = (
        torch.where(seen.mask, d.gather(-1, safe).squeeze(-1), 0.0).detach() for d in dists
    )
    p = old_log.sum(-1).exp()
    before = float((p * seen.reward).sum())
    ratio = (new_log - old_log).exp()
    token = sum(
        float((p * (ratio[:, t] - 1) * seen.mask[:, t] * (seen.reward - before)).sum())
        for t in range(LIMIT)
    )
    assert row["forecast_token"] == pytest.approx(before + token, abs=1e-10)
    assert row["forecast_sequence"] == pytest.approx(row["J"], abs=1e-10)
    assert abs(row["forecast_token"] - row["J"]) > 1e-6  # so that the two can be told apart


def test_temperature_raises_probabilities_to_a_power() -> None:
    """eq:sampling-temperature: π_τ ∝ π^{1/τ}, over all tokens but the padding."""
    logits = Noise((), 2, dtype=DOUBLE).normal(len(CHARACTERS) + 2)
    for temperature in (0.5, 1.0, 1.7):
        p = [math.exp(float(z)) for i, z in enumerate(logits) if i != PAD]
        power = [(each / sum(p)) ** (1 / temperature) for each in p]
        found = next_token_log_dist(logits, temperature).exp().tolist()
        assert found[PAD] == 0
        assert [each for i, each in enumerate(found) if i != PAD] == pytest.approx(
            [each / sum(power) for each in power]
        )


def test_weights_of_tokens() -> None:
    """eq:token-mean-weight: 1/Σ|o| for every token of the batch, against 1/(N|o|) of GRPO, on
    answers of 1, 4 and 2 tokens.
    """
    mask = torch.arange(4) < torch.tensor([[1], [4], [2]])
    dapo = TokenMean()(mask[None], 4, DOUBLE)[0]
    grpo = ladder.grpo.aggregation(mask[None], 4, DOUBLE)[0]
    for i, length in enumerate((1, 4, 2)):
        for t in range(4):
            assert float(dapo[i, t]) == pytest.approx(1 / 7 if t < length else 0.0)
            assert float(grpo[i, t]) == pytest.approx(1 / (3 * length) if t < length else 0.0)
