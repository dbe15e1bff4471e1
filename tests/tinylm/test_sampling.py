"""What is sampled: from the distribution that is reported, against exact probabilities."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch
from scipy import stats
from torch import Tensor

from course.errors import CourseError
from course.train.noise import Noise
from tests.helpers import close, few_ulp, stream
from tests.tinylm.helpers import chosen, separate, sums, tiny
from tinylm import sampling
from tinylm.evaluate import accuracy, right_to_go
from tinylm.model import Transformer, next_token_log_dist
from tinylm.sampling import Completions, check_sampling, draw, sample
from tinylm.scoring import log_dists
from tinylm.tasks import CHARACTERS, END, PAD, VOCABULARY, encode

PROMPT = torch.tensor([encode("3+4=")])
SETTINGS = [(1.0, None), (0.7, None), (1.6, 5), (1.0, 1), (0.4, 18)]


def exact(logits: Tensor, temperature: float, top_k: int | None) -> Tensor:
    """Probabilities of the next token, token by token: softmax of logits / T over the k best that
    are not PAD.
    """
    probabilities = torch.zeros_like(logits)
    for index in itertools.product(*map(range, logits.shape[:-1])):
        row = {
            token: float(logits[(*index, token)]) / temperature
            for token in range(VOCABULARY)
            if token != PAD
        }
        kept = sorted(row, key=row.__getitem__, reverse=True)[:top_k]
        top = max(row.values())
        total = sum(pow(2.718281828459045, row[token] - top) for token in kept)
        for token in kept:
            probabilities[(*index, token)] = pow(2.718281828459045, row[token] - top) / total
    return probabilities


# ---------------------------------------------------------------- the distribution


@pytest.mark.parametrize(("temperature", "top_k"), SETTINGS)
def test_the_distribution_is_the_softmax_of_the_k_best_that_are_not_padding(
    temperature: float, top_k: int | None
) -> None:
    logits = (
        torch.randn(
            3, 2, VOCABULARY, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        * 3
    )
    logits[..., PAD] = 50.0  # would be chosen always
    got = next_token_log_dist(logits, temperature, top_k).exp()
    close(got, exact(logits, temperature, top_k), rtol=1e-11)
    assert (got[..., PAD] == 0).all()


def test_ties_at_the_kth_place_stay_in() -> None:
    logits = torch.full((VOCABULARY,), -1.0)
    logits[:4] = torch.tensor([2.0, 1.0, 1.0, 0.0])
    assert (next_token_log_dist(logits, top_k=2) > -torch.inf).tolist() == [
        True,
        True,
        True,
        *[False] * (VOCABULARY - 3),
    ]


def test_a_tiny_temperature_is_greedy_and_finite() -> None:
    logits = torch.randn(5, VOCABULARY, generator=torch.Generator().manual_seed(0))
    got = next_token_log_dist(logits, temperature=1e-38)
    best = logits[:, [*range(PAD), END]].argmax(-1)
    assert torch.equal(got.argmax(-1), torch.where(best == PAD, END, best))
    assert torch.equal(got.amax(-1), torch.zeros(5))


@pytest.mark.parametrize("limit", [1, 4])
@pytest.mark.parametrize("runs", [(), (2,)])
@pytest.mark.parametrize(("temperature", "top_k"), SETTINGS)
def test_reported_log_probabilities_are_those_of_the_distribution_sampled(
    temperature: float, top_k: int | None, runs: tuple[int, ...], limit: int
) -> None:
    model = tiny(runs)
    prompt = torch.randint(
        len(CHARACTERS), (*runs, 3, 4), generator=torch.Generator().manual_seed(3)
    )
    made = sample(
        model,
        prompt,
        6,
        limit,
        stream(runs),
        temperature=temperature,
        top_k=top_k,
        keep_log_dist=True,
    )
    uncached = exact(
        model.logits(separate(model, prompt, made.tokens)).detach(), temperature, top_k
    )
    assert made.log_dist is not None
    close(made.log_dist.exp()[made.mask], uncached[made.mask], rtol=1e-10, atol=1e-12)
    close(made.log_prob, chosen(uncached.log(), made.tokens, made.mask), rtol=1e-10, atol=1e-12)
    if top_k is None:  # the scorer shares the temperature
        close(
            made.log_prob,
            chosen(
                log_dists(model, prompt, made.tokens, temperature=temperature),
                made.tokens,
                made.mask,
            ),
            atol=1e-12,
        )


def chi_square(counts: dict[tuple[int, ...], int], expected: dict[tuple[int, ...], float]) -> float:
    """p-value of Pearson's test; completions with an expectation below 5 together in one bin."""
    total = sum(counts.values())
    assert counts.keys() <= expected.keys()  # nothing impossible was sampled
    often = [key for key, share in expected.items() if share * total >= 5]
    rest = 1 - sum(expected[key] for key in often)
    seen = [counts.get(key, 0) for key in often] + [
        total - sum(counts.get(key, 0) for key in often)
    ]
    wanted = [expected[key] * total for key in often] + [rest * total]
    if wanted[-1] < 1e-9:
        assert seen[-1] == 0
        seen, wanted = seen[:-1], wanted[:-1]
    return float(
        stats.chisquare(seen, [value * sum(seen) / sum(wanted) for value in wanted]).pvalue
    )


def completions(
    model: Transformer, temperature: float, top_k: int | None
) -> dict[tuple[int, ...], float]:
    """Every completion of up to two tokens of `PROMPT` with its probability, by the
    uncached model.
    """
    firsts = torch.arange(VOCABULARY).reshape(1, -1, 1)
    tokens = torch.cat(
        [firsts, firsts], -1
    )  # [1, V, 2]: the second token's distribution behind every first one
    probability = exact(model.logits(separate(model, PROMPT, tokens)).detach(), temperature, top_k)[
        0
    ]
    listed = {(END, PAD): float(probability[0, 0, END])}
    for first, second in itertools.product(range(VOCABULARY), repeat=2):
        if first not in (PAD, END) and second != PAD:
            listed[first, second] = float(probability[0, 0, first] * probability[first, 1, second])
    listed = {key: share for key, share in listed.items() if share > 0}
    assert abs(sum(listed.values()) - 1) < 1e-9
    return listed


def counted(made: Completions) -> dict[tuple[int, ...], int]:
    rows, counts = made.tokens.flatten(0, -2).unique(dim=0, return_counts=True)
    return {tuple(row): count for row, count in zip(rows.tolist(), counts.tolist(), strict=True)}


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.7, None), (1.6, 5)])
def test_frequencies_of_whole_completions_are_their_exact_probabilities(
    temperature: float, top_k: int | None
) -> None:
    """20,000 completions of two tokens.

    Chance alone gives a p-value below .001 once in a thousand seeds.
    """
    model = tiny(seed=1)
    made = sample(model, PROMPT, 20_000, 2, stream(seed=2), temperature=temperature, top_k=top_k)
    assert chi_square(counted(made), completions(model, temperature, top_k)) > 1e-3
    if top_k is None:  # the test can tell: a temperature that is off by a tenth is seen
        assert chi_square(counted(made), completions(model, temperature * 1.1, top_k)) < 1e-9


def test_frequencies_in_float32_with_several_models() -> None:
    model = tiny((2,), dtype=torch.float32)
    made = sample(model, PROMPT.expand(2, 1, 4), 5_000, 2, Noise((2,), 1))
    for run in range(2):
        alone = tiny(dtype=torch.float64)
        for name, weight in alone.weights.items():
            weight.data = model.weights[name][run].detach().double()
        assert chi_square(counted(_of_run(made, run)), completions(alone, 1.0, None)) > 1e-3


def _of_run(made: Completions, run: int) -> Completions:
    return Completions(made.tokens[run], made.log_prob[run], made.mask[run], made.truncated[run])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_at_the_edges_draw_possible_tokens(dtype: torch.dtype) -> None:
    """Uniform numbers of exactly 0 and 1 (float32 rounds up to it), where the first and the last
    tokens are impossible.
    """
    for possible in ([3], [0, 3], [3, 9], [END], [5, END], [PAD - 1]):
        logits = torch.full((VOCABULARY,), -torch.inf, dtype=dtype)
        logits[possible] = torch.randn(
            len(possible), generator=torch.Generator().manual_seed(0), dtype=dtype
        )
        log_dist = torch.log_softmax(logits, -1).expand(4, -1)
        got = draw(log_dist, torch.tensor([0.0, 0.5, 1 - 1e-7, 1.0], dtype=dtype))
        assert set(got.tolist()) <= set(possible)
        assert got[0] == min(possible)
        assert got[2] == max(possible)


# ------------------------------------------------------------ greedy, the end, what never happens


@pytest.mark.parametrize("runs", [(), (2,)])
def test_greedy_takes_the_best_token_each_time(runs: tuple[int, ...]) -> None:
    model = tiny(runs)
    prompt = torch.randint(
        len(CHARACTERS), (*runs, 4, 4), generator=torch.Generator().manual_seed(1)
    )
    made = sample(model, prompt, 2, 5, None)
    probability = exact(model.logits(separate(model, prompt, made.tokens)).detach(), 1.0, None)
    assert torch.equal(made.tokens, torch.where(made.mask, probability.argmax(-1), PAD))
    assert torch.equal(made.tokens[..., 0, :], made.tokens[..., 1, :])


def test_behind_the_end_is_nothing_and_what_has_none_is_truncated() -> None:
    model = tiny(lively=1.0)
    with torch.no_grad():
        model.weights["head"][:, PAD] = (
            10 * model.weights["head"][:, END]
        )  # a model that would love to pad
    prompt = torch.randint(len(CHARACTERS), (8, 4), generator=torch.Generator().manual_seed(1))
    made = sample(model, prompt, 50, 4, stream(), keep_log_dist=True)
    ended = 0
    for tokens, mask, log_prob, truncated in zip(
        made.tokens.flatten(0, 1).tolist(),
        made.mask.flatten(0, 1).tolist(),
        made.log_prob.flatten(0, 1).tolist(),
        made.truncated.flatten().tolist(),
        strict=True,
    ):
        end = tokens.index(END) if END in tokens else None
        length = len(tokens) if end is None else end + 1
        assert PAD not in tokens[:length]
        assert tokens[length:] == [PAD] * (len(tokens) - length)
        assert mask == [True] * length + [False] * (
            len(tokens) - length
        )  # the end is a choice, too
        assert all(value < 0 for value in log_prob[:length])
        assert log_prob[length:] == [0.0] * (len(tokens) - length)
        assert truncated == (end is None)
        ended += end is not None
    assert 20 < ended < 380  # both kinds occur


def test_an_end_at_the_last_token_is_no_truncation_and_an_empty_completion_is_one_token() -> None:
    model = tiny()
    with torch.no_grad():
        model.weights["head"].zero_()  # all tokens equally likely
    made = sample(model, PROMPT, 4000, 1, stream())
    assert torch.equal(made.truncated, made.tokens[..., 0] != END)
    assert 100 < int((~made.truncated).sum()) < 400  # 4000/18 = 222, four standard errors are 58
    assert made.mask.all()  # empty: the end alone


def test_the_prompt_and_every_common_beginning_is_computed_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[str, int]] = []
    prefill, extend = sampling.prefill, sampling.extend
    monkeypatch.setattr(
        sampling,
        "prefill",
        lambda model, prompt: (calls.append(("prompt", prompt.numel())), prefill(model, prompt))[1],
    )
    monkeypatch.setattr(
        sampling,
        "extend",
        lambda model, token, *rest: (
            calls.append(("token", token.numel())),
            extend(model, token, *rest),
        )[1],
    )
    made = sample(tiny(), PROMPT.repeat(2, 1), 7, 4, stream())
    different = []
    for t in (1, 2, 3):  # beginnings of t tokens behind which another one is drawn
        rows = [
            (q, *tokens[:t])
            for q, group in enumerate(made.tokens.tolist())
            for tokens in group
            if tokens[t] != PAD
        ]
        different.append(len(set(rows)))
        assert different[-1] < len(rows) or t == 3  # there was something to share
    assert calls == [("prompt", 2 * 4), *[("token", count) for count in different]]


# ---------------------------------------------------------------- several models


def test_models_sample_alone_what_they_sample_together() -> None:
    together = tiny((3,))
    prompt = torch.randint(len(CHARACTERS), (3, 4, 4), generator=torch.Generator().manual_seed(1))
    made = sample(together, prompt, 10, 4, stream((3,), 9))
    assert not torch.equal(made.tokens[0], made.tokens[1])
    for run in range(3):
        alone = tiny()
        for name, weight in alone.weights.items():
            weight.data = together.weights[name][run].detach().clone()
        own = sample(alone, prompt[run], 10, 4, stream(seed=9, numbers=[run]))
        assert torch.equal(own.tokens, made.tokens[run])
        few_ulp(own.log_prob, made.log_prob[run])


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("token", [-1, PAD, END, VOCABULARY, 10**6])
def test_a_prompt_with_a_token_outside_the_vocabulary_is_refused(token: int) -> None:
    prompt = PROMPT.clone()
    prompt[0, 2] = token
    with pytest.raises(
        CourseError, match=f"prompt: got {token}; allowed is tokens from 0 to {len(CHARACTERS) - 1}"
    ):
        sample(tiny(), prompt, 2, 2, stream())


def test_a_sequence_longer_than_the_context_is_refused() -> None:
    model = tiny(context=7)
    assert sample(model, PROMPT, 1, 3, stream()).tokens.shape == (1, 1, 3)
    with pytest.raises(CourseError, match="limit: got 4; allowed is at most 3"):
        sample(model, PROMPT, 1, 4, stream())


def test_an_empty_group_and_empty_completions_are_refused() -> None:
    with pytest.raises(CourseError, match="group: got 0"):
        sample(tiny(), PROMPT, 0, 2, stream())
    with pytest.raises(CourseError, match="limit: got 0"):
        sample(tiny(), PROMPT, 2, 0, stream())


@pytest.mark.parametrize(
    ("temperature", "top_k", "says"),
    [
        (
            0.0,
            None,
            r"temperature: got 0\.0; allowed is a number from 0\.001 to 1000 \(greedy decoding is"
            r" an option of its own\)",
        ),
        (-1.0, None, "temperature: got -1.0"),
        (1e-300, None, "temperature: got 1e-300"),  # 0 in float32: logits/0 is NaN
        (9e-4, None, "temperature: got 0.0009"),
        (1e39, None, "temperature: got 1e\\+39"),  # inf in float32
        (1001, None, "temperature: got 1001"),
        (float("inf"), None, "temperature: got inf"),
        (float("nan"), None, "temperature: got nan"),
        ("1", None, "temperature: got '1'"),
        (None, None, "temperature: got None"),
        (True, None, "temperature: got True"),
        (1.0, 0, "top_k: got 0; allowed is None or 1 to 18"),
        (1.0, 19, "top_k: got 19"),
        (1.0, 2.5, "top_k: got 2.5"),
        (1.0, True, "top_k: got True"),
    ],
)
def test_sampling_that_is_none_is_refused(temperature: float, top_k: int | None, says: str) -> None:
    with pytest.raises(CourseError, match=says):
        check_sampling(temperature, top_k)
    with pytest.raises(CourseError, match=says):
        sample(tiny(), PROMPT, 2, 2, stream(), temperature=temperature, top_k=top_k)


def test_the_coldest_and_hottest_temperatures_allowed_are_greedy_and_even() -> None:
    model = tiny(dtype=torch.float32, lively=30.0)
    best = sample(model, PROMPT, 50, 3, None)
    cold = sample(model, PROMPT, 50, 3, stream(dtype=torch.float32), temperature=1e-3)
    assert torch.equal(cold.tokens, best.tokens)
    assert bool((cold.log_prob == 0).all())
    model = tiny(dtype=torch.float32)
    hot = sample(model, PROMPT, 50, 3, stream(dtype=torch.float32), temperature=1e3)
    close(hot.log_prob[hot.mask], torch.full((int(hot.mask.sum()),), -math.log(18)), rtol=0.01)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("greedy", [False, True])
def test_weights_that_are_not_finite_are_refused_by_name(bad: float, greedy: bool) -> None:
    for name, where in (("embedding", (3, 1)), ("0.up", (0, 2)), ("head", (7, 5))):
        model = tiny()
        with torch.no_grad():
            model.weights[name][where] = bad
        says = re.escape(f"model.{name}: got {bad} at index {where}; allowed are finite numbers")
        with pytest.raises(CourseError, match=says):
            sample(model, PROMPT, 4, 3, None if greedy else stream())
        with pytest.raises(CourseError, match=says):
            accuracy(model, sums(), None if greedy else stream())
        with pytest.raises(CourseError, match=says):
            right_to_go(model, sums(), torch.tensor([0]))


def test_weights_whose_logits_overflow_are_refused() -> None:
    model = tiny()
    with torch.no_grad():
        model.weights["head"].copy_(1e308 * model.weights["head"].sign())
    with pytest.raises(CourseError, match="model: got logits that are not finite"):
        sample(model, PROMPT, 4, 3, None)
