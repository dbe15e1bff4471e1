"""Random numbers: every run has its own stream, whatever runs beside it, whatever is drawn in
between, and across saving.
"""

from __future__ import annotations

import math

import pytest
import torch

from course.errors import CourseError
from course.train.noise import BLOCK, Noise
from tests.helpers import stream


def test_a_run_draws_the_same_alone_as_among_others() -> None:
    """Any mix of kinds and sizes, larger than the block that is drawn ahead too."""
    together = stream((4,), 3)
    alone = {number: stream((1,), 3, numbers=[number]) for number in (0, 3)}
    pair = stream((2,), 3, numbers=[3, 1])
    for kind, shape in (
        ("uniform", (2, 5)),
        ("normal", (3,)),
        ("uniform", (BLOCK + 7,)),
        ("normal", (2, 2, 2)),
        ("uniform", (1,)),
    ):
        whole = getattr(together, kind)(*shape)
        assert whole.shape == (4, *shape)
        for number, noise in alone.items():
            assert torch.equal(getattr(noise, kind)(*shape)[0], whole[number])
        assert torch.equal(getattr(pair, kind)(*shape), whole[[3, 1]])


def test_shapes_only_fold_the_stream() -> None:
    """Six numbers are the same six as [2, 3] or one at a time; the last axis runs fastest."""
    six, folded, single = stream((2,), 1), stream((2,), 1), stream((2,), 1)
    flat = six.uniform(6)
    assert torch.equal(folded.uniform(2, 3), flat.reshape(2, 2, 3))
    assert torch.equal(torch.cat([single.uniform(1) for _ in range(6)], -1), flat)


def test_run_axes_are_numbered_in_order() -> None:
    grid, line = stream((2, 3), 5), stream((6,), 5)
    assert torch.equal(grid.normal(4), line.normal(4).reshape(2, 3, 4))
    assert stream((), 5).normal(4).shape == (4,)
    assert torch.equal(stream((), 5).normal(4), line_first := stream((6,), 5).normal(4)[0])
    assert line_first.dtype == torch.float64


def test_numbers_are_uniform_and_normal() -> None:
    """100,000 numbers: mean and variance within four standard errors; Kolmogorov–Smirnov at 1.95/√n
    (p ≈ .001).
    """
    count = 100_000
    noise = stream((100,), 0)
    uniform, normal = noise.uniform(count // 100).flatten(), noise.normal(count // 100).flatten()
    assert 0 <= uniform.min() < uniform.max() < 1
    assert abs(float(uniform.mean()) - 0.5) < 4 * math.sqrt(1 / 12 / count)
    assert abs(float(uniform.var()) - 1 / 12) < 4 * math.sqrt(
        1 / 180 / count
    )  # Var (u − ½)² = 1/80 − 1/144
    assert abs(float(normal.mean())) < 4 / math.sqrt(count)
    assert abs(float(normal.var()) - 1) < 4 * math.sqrt(2 / count)
    for sample, distribution in ((uniform, lambda x: x), (normal, torch.special.ndtr)):
        ordered = distribution(sample.sort().values)
        steps = torch.arange(count, dtype=torch.float64) / count
        assert float((ordered - steps).abs().max()) < 1.95 / math.sqrt(count) + 1 / count


def test_runs_seeds_and_kinds_are_uncorrelated() -> None:
    """Correlations of 20,000 numbers between neighbouring runs, seeds and the two kinds: each
    within four standard errors.
    """
    count = 20_000
    noise, other = stream((3,), 0), stream((3,), 1)
    rows = [
        *noise.normal(count),
        *other.normal(count),
        *((noise.uniform(count) - 0.5) * math.sqrt(12)),
    ]
    correlation = torch.stack(rows) @ torch.stack(rows).T / count
    off = correlation - torch.diag(correlation.diagonal())
    assert float(off.abs().max()) < 4 / math.sqrt(count)


def test_both_number_types_see_one_stream() -> None:
    single, double = stream((3,), 2, dtype=torch.float32), stream((3,), 2)
    assert torch.equal(single.normal(50), double.normal(50).float())
    assert single.uniform(50).dtype == torch.float32


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    assert torch.equal(stream((3,), 9).uniform(70), stream((3,), 9).uniform(70))
    assert not torch.equal(stream((3,), 9).uniform(70), stream((3,), 10).uniform(70))


def test_a_saved_state_goes_on_to_the_bit() -> None:
    """Saved in the middle of what was drawn ahead, of both kinds, and loaded by noise of another
    seed.
    """
    noise, later = stream((2, 2), 4), stream((2, 2), 99)
    noise.uniform(100)
    noise.normal(BLOCK + 3)
    saved = noise.state()
    copies = {name: tensor.clone() for name, tensor in saved.items()}
    want = [noise.normal(5), noise.uniform(2 * BLOCK), noise.normal(BLOCK)]
    assert all(torch.equal(saved[name], copies[name]) for name in saved)
    later.load(saved)
    for got, expected in zip(
        [later.normal(5), later.uniform(2 * BLOCK), later.normal(BLOCK)], want, strict=True
    ):
        assert torch.equal(got, expected)


def test_a_state_of_other_runs_is_refused() -> None:
    with pytest.raises(CourseError, match="got 2 runs; allowed is 3"):
        stream((3,)).load(stream((2,)).state())


def test_nothing_global_is_drawn_from() -> None:
    torch.manual_seed(0)
    first = torch.rand(1)
    torch.manual_seed(0)
    Noise((3,)).uniform(5)
    assert torch.equal(torch.rand(1), first)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Noise((2,), -1), "seed: got -1"),
        (lambda: Noise((2,), 0.5), "seed: got 0.5"),
        (lambda: Noise((3,), numbers=[1, 2]), "one number for each of the 3 runs"),
    ],
)
def test_refusals(make, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CourseError, match=says):
        make()
