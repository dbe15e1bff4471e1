"""Optimisers over runs: against torch's own on the same numbers, against pseudo-inverses, and
against what TRPO promises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from course import ladder
from course.errors import CourseError
from course.learner import Learner
from course.train.checkpoint import equal_states
from course.train.critic import RunningMean
from course.train.noise import Noise
from course.train.optim import (
    SGD,
    Adam,
    Closures,
    Constant,
    LinearDecay,
    Optimizer,
    clip_gradients,
    over_runs,
    per_run_dot,
)
from course.train.trust_region import TRPO, NaturalGradient, conjugate_gradient, fisher_product
from tests.helpers import bernoulli_bandit, close, f64, stream


def closures(parameters: Sequence[Tensor]) -> Closures:
    """What a first-order optimiser needs: the parameters."""

    def unused(*_: Tensor) -> Tensor:
        raise AssertionError("a first-order optimiser asks for nothing but its parameters")

    return Closures(parameters, unused, unused, unused, None)


def leaves(seed: int) -> list[Tensor]:
    """Parameters of three runs: a matrix each, and one number each."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(3, *shape, generator=generator, dtype=torch.float64) for shape in ((2, 4), ())
    ]


# ---------------------------------------------------------------- first order


@pytest.mark.parametrize(
    ("make", "reference"),
    [
        (lambda lr, schedule: SGD(lr, schedule), lambda p, lr: torch.optim.SGD(p, lr)),
        (lambda lr, schedule: Adam(lr, schedule), lambda p, lr: torch.optim.Adam(p, lr)),
        (
            lambda lr, schedule: Adam(lr, schedule, betas=(0.5, 0.9), eps=1e-3),
            lambda p, lr: torch.optim.Adam(p, lr, betas=(0.5, 0.9), eps=1e-3),
        ),
        (
            lambda lr, schedule: Adam(lr, schedule, weight_decay=0.1),
            lambda p, lr: torch.optim.AdamW(p, lr, weight_decay=0.1),
        ),
    ],
    ids=["SGD", "Adam", "Adam with other settings", "AdamW"],
)
@pytest.mark.parametrize("decays", [False, True])
def test_first_order_optimisers_agree_with_torch(
    make: Callable, reference: Callable, decays: bool
) -> None:
    """Each run has a rate of its own here, and an optimiser of its own there."""
    rates = [0.5, 0.1, 0.02]
    ours = leaves(0)
    theirs = [[part[run].clone().requires_grad_() for part in ours] for run in range(3)]
    schedule = LinearDecay(12, warmup=3, final=0.2) if decays else None
    optimizer = make(f64(rates), schedule)
    others = [reference(p, rate) for p, rate in zip(theirs, rates, strict=True)]
    shares = [
        torch.optim.lr_scheduler.LambdaLR(other, schedule or (lambda step: 1.0)) for other in others
    ]
    for step in range(15):
        gradients = leaves(100 + step)
        assert optimizer.step(gradients, closures(ours)) == {}
        for run, (other, share) in enumerate(zip(others, shares, strict=True)):
            for part, gradient in zip(theirs[run], gradients, strict=True):
                part.grad = gradient[run].clone()
            other.step()
            share.step()
    for run in range(3):
        for mine, part in zip(ours, theirs[run], strict=True):
            close(mine[run], part.detach())


def test_one_rate_for_all_runs_is_that_rate_for_each() -> None:
    for make in (SGD, Adam):
        one, each = leaves(1), leaves(1)
        single, several = make(0.3), make(f64([0.3, 0.3, 0.3]))
        for step in range(3):
            single.step(leaves(step), closures(one))
            several.step(leaves(step), closures(each))
        for a, b in zip(one, each, strict=True):
            close(a, b, atol=1e-15)


def test_linear_decay_by_hand() -> None:
    """Two updates of warm-up, then from 1 to a tenth over the other eight."""
    decay = LinearDecay(10, warmup=2, final=0.1)
    close(
        [decay(step) for step in (0, 1, 2, 6, 9, 10, 50)],
        [0.5, 1.0, 1.0, 0.55, 0.1 + 0.9 / 8, 0.1, 0.1],
    )
    close([LinearDecay(4)(step) for step in range(6)], [1.0, 0.75, 0.5, 0.25, 0.0, 0.0])
    assert [Constant()(step) for step in (0, 7)] == [1.0, 1.0]


def test_sgd_walks_by_its_decaying_rate() -> None:
    """Four updates of gradient 1 at rate ½: ½·(1 + ¾ + ½ + ¼)."""
    parameter, optimizer = torch.zeros(2, dtype=torch.float64), SGD(0.5, LinearDecay(4))
    for _ in range(4):
        optimizer.step([torch.ones(2, dtype=torch.float64)], closures([parameter]))
    close(parameter, [-1.25, -1.25])


@pytest.mark.parametrize(
    "make",
    [lambda: SGD(0.1, LinearDecay(9)), lambda: Adam(0.1, LinearDecay(9))],
    ids=["SGD", "Adam"],
)
def test_a_loaded_state_goes_on_where_it_was_saved(make: Callable[[], Optimizer]) -> None:
    first, second = make(), make()
    parameters = [torch.zeros(3, 2, 4, dtype=torch.float64)]
    for step in range(3):
        first.step(leaves(step)[:1], closures(parameters))
    saved, copies = first.state(), [parameter.clone() for parameter in parameters]
    as_saved = {name: tensor.clone() for name, tensor in saved.items()}
    second.load(saved)
    for step in range(3, 6):
        first.step(leaves(step)[:1], closures(parameters))
        second.step(leaves(step)[:1], closures(copies))
    assert torch.equal(parameters[0], copies[0])
    assert int(saved["updates"]) == 3
    assert equal_states(saved, as_saved)  # the saved state is a copy: later steps leave it alone


# ---------------------------------------------------------------- per run


def test_each_runs_gradient_is_clipped_by_its_own_length() -> None:
    """Lengths 5 (3, 4 in two parameters), ½ and 0, clipped at 1."""
    gradients = [f64([[3.0, 0.0], [0.3, 0.0], [0.0, 0.0]]), f64([4.0, 0.4, 0.0])]
    norm = per_run_dot(gradients, gradients, 1).sqrt()
    close(norm, [5.0, 0.5, 0.0])
    matrix, number = clip_gradients(gradients, norm, 1.0)
    close(matrix, [[0.6, 0.0], [0.3, 0.0], [0.0, 0.0]])
    close(number, [0.8, 0.4, 0.0])
    assert torch.equal(
        matrix[1:], gradients[0][1:]
    )  # what is short enough stays as it is, to the bit


def test_the_learner_clips_each_run_before_it_steps() -> None:
    """SGD at rate 1 moves a run by exactly its clipped length."""
    for bound in (0.05, 0.2):
        problem = bernoulli_bandit((40,))
        learner = Learner(problem, ladder.reinforce, SGD(1.0), stream((40,)), max_grad_norm=bound)
        history = learner.train(1)
        before = history["gradient_norm"][0]
        moved = problem.parameters[0].detach().flatten(1).norm(dim=1)
        close(moved, torch.minimum(before, f64(bound)))
        assert bool((before > bound).any())
        assert bool((before < bound).any()) == (bound == 0.2)


def test_sums_and_factors_per_run() -> None:
    a, b = f64([[[1.0, 2.0]], [[3.0, 4.0]]]), f64([2.0, -1.0])
    close(per_run_dot([a, b], [a, b], 1), [1 + 4 + 4, 9 + 16 + 1])
    close(per_run_dot([a], [a], 0), 30.0)
    assert over_runs(f64([5.0, 6.0]), a).shape == (2, 1, 1)
    assert over_runs(0.3, a) == 0.3


# ---------------------------------------------------------------- natural gradient


def exact_closures(logits: Tensor, reward: Tensor) -> tuple[Closures, Tensor]:
    """The objective J = Σ π r itself, for runs [R] of one prompt, and its gradient of −J."""

    def log_dist() -> Tensor:
        return logits.log_softmax(-1)[:, None, None, None]  # [R, Q, G, T, K]

    def mean_kl(q: Tensor, p: Tensor) -> Tensor:
        return (q.exp() * (q - p)).sum(-1).mean((-3, -2, -1))

    def loss() -> Tensor:
        return -(log_dist().exp() * reward[:, None, None, None]).sum((-4, -3, -2, -1))

    gradient = torch.autograd.grad(loss().sum(), logits)[0]
    return Closures([logits], loss, log_dist, mean_kl, log_dist().detach()), gradient


LOGITS = f64([[0.0, 3.0, 5.0], [0.1, -0.2, 0.4]])
REWARD = f64([[1.0, 0.7, 0.0], [0.0, -1.0, 2.0]])


def fisher(p: Tensor) -> Tensor:
    """diag π − π πᵀ, by loops."""
    return f64(
        [[float(p[i]) * ((i == j) - float(p[j])) for j in range(len(p))] for i in range(len(p))]
    )


def test_fisher_products_are_those_of_the_fisher_matrix() -> None:
    logits = LOGITS.clone().requires_grad_()
    vector = f64([[0.3, -1.0, 2.0], [1.0, 0.0, 0.5]])
    found = fisher_product(exact_closures(logits, REWARD)[0], damping=0.25)([vector])[0]
    for run in range(2):
        matrix = fisher(LOGITS[run].softmax(0)) + 0.25 * torch.eye(3)
        close(found[run], matrix @ vector[run])


def test_conjugate_gradient_solves_every_run_for_itself() -> None:
    """Five runs of well and badly conditioned systems, one of them already solved by x = 0."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(5, 6, 6, generator=generator, dtype=torch.float64)
    matrix = root @ root.mT + torch.logspace(-1, 2, 5, dtype=torch.float64)[
        :, None, None
    ] * torch.eye(6)
    b = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    b[3] = 0.0

    def product(vector: Sequence[Tensor]) -> list[Tensor]:
        whole = torch.einsum(
            "rij,rj->ri", matrix, torch.cat([vector[0], vector[1].unsqueeze(-1)], -1)
        )
        return [whole[:, :5], whole[:, 5]]

    first, last = conjugate_gradient(product, [b[:, :5], b[:, 5]], 1, 40)
    want = torch.linalg.solve(matrix, b.unsqueeze(-1)).squeeze(-1)
    close(torch.cat([first, last.unsqueeze(-1)], -1), want, rtol=1e-9, atol=1e-10)
    assert bool((first[3] == 0).all())


def test_the_natural_gradient_is_the_pseudo_inverse_of_fisher_times_the_gradient() -> None:
    """θ moves by lr·F⁺∇J; for a softmax that is lr·(A − the unweighted mean of A), A = r − J,
    whatever π is.
    """
    logits = LOGITS.clone().requires_grad_()
    given, gradient = exact_closures(logits, REWARD)
    rates = f64([0.025, 0.4])
    NaturalGradient(rates, damping=0.0).step([gradient], given)
    for run in range(2):
        p = LOGITS[run].softmax(0)
        step = (logits[run].detach() - LOGITS[run]) / rates[run]
        ascent = torch.linalg.pinv(fisher(p), hermitian=True) @ -gradient[run]
        close(step, ascent, rtol=1e-9, atol=1e-11)
        advantage = REWARD[run] - float((p * REWARD[run]).sum())
        close(step, advantage - advantage.mean(), rtol=1e-9, atol=1e-11)


def test_damping_is_added_to_fisher() -> None:
    logits = LOGITS.clone().requires_grad_()
    given, gradient = exact_closures(logits, REWARD)
    NaturalGradient(1.0, damping=0.5).step([gradient], given)
    for run in range(2):
        matrix = fisher(LOGITS[run].softmax(0)) + 0.5 * torch.eye(3)
        close(logits[run].detach() - LOGITS[run], torch.linalg.solve(matrix, -gradient[run]))


def test_the_natural_gradient_of_samples_through_the_learner() -> None:
    """Two prompts: the KL is a mean over them, so each block of F has weight ½; ĝ by hand from the
    samples.
    """
    problem = bernoulli_bandit((3,), logits=[[0.0, 0.5, -0.5], [0.2, 0.0, 0.1]])
    start = problem.parameters[0].detach().clone()
    learner = Learner(problem, ladder.reinforce, NaturalGradient(0.1, damping=0.0), stream((3,), 2))
    rollout = problem.sample(stream((3,), 2))
    learner.train(1)
    action, reward = rollout.data["action"], rollout.reward[..., 0]
    for run in range(3):
        for q in range(2):
            p = start[run, q].softmax(0)
            g = (
                sum(
                    float(reward[run, q, i]) * (f64([float(a == k) for k in range(3)]) - p)
                    for i, a in enumerate(action[run, q])
                )
                / 8
            )
            want = 0.1 * torch.linalg.pinv(fisher(p) / 2, hermitian=True) @ g
            close(
                problem.parameters[0][run, q].detach() - start[run, q], want, rtol=1e-8, atol=1e-10
            )


@pytest.mark.parametrize(
    "optimizer", [NaturalGradient(0.1), TRPO()], ids=["NaturalGradient", "TRPO"]
)
def test_a_critic_has_no_place_in_the_policys_geometry(optimizer: Optimizer) -> None:
    """F is 0 on a critic's parameters, so F⁻¹ would throw them 1/damping far.

    Values that nothing trains are left alone.
    """
    with pytest.raises(CourseError, match="does not move the policy"):
        Learner(
            bernoulli_bandit((2,), critic=True), ladder.ppo_value, optimizer, stream((2,))
        ).train(1)
    problem = bernoulli_bandit((2,), critic=True)
    Learner(problem, ladder.rloo, optimizer, stream((2,))).train(1)
    assert bool((problem.parameters[1] == 0).all())
    assert float(problem.parameters[0].detach().abs().max()) > 0


# ---------------------------------------------------------------- TRPO


def kl_by_hand(old: Tensor, new: Tensor) -> Tensor:
    """[R] mean over prompts of Σ π_old log(π_old/π), from logits [R, Q, K]."""
    p, q = old.log_softmax(-1), new.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean(-1)


@pytest.mark.parametrize("max_kl", [0.3, 0.01, 1e-4])
def test_trpo_stays_within_its_bound_and_improves_in_every_run(max_kl: float) -> None:
    """300 runs, some of them without anything to learn from: those stay where they are."""
    start = [[2.0, 0.0, -1.0], [0.0, 0.3, 0.1]]
    problem = bernoulli_bandit((300,), logits=start, group=3)
    before = problem.parameters[0].detach().clone()
    twin = bernoulli_bandit((300,), logits=start, group=3)
    rollout = twin.sample(stream((300,), 1))
    history = Learner(problem, ladder.rloo, TRPO(max_kl), stream((300,), 1)).train(1)
    after = problem.parameters[0].detach()
    kl, fraction = history["trust_region_kl"][0], history["step_fraction"][0]
    assert bool((kl <= max_kl).all())
    close(kl, kl_by_hand(before, after), rtol=1e-9, atol=1e-15)
    # what is maximised, by hand: mean of A·log π over the samples, A the reward minus the mean of
    # the others
    action, reward = rollout.data["action"], rollout.reward[..., 0]
    advantage = reward - (reward.sum(-1, keepdim=True) - reward) / 2
    log_ratio = (after.log_softmax(-1) - before.log_softmax(-1)).gather(-1, action)
    gain = (advantage * log_ratio).mean((-2, -1))
    stuck = history["gradient_norm"][0] == 0
    assert stuck.any()
    assert (~stuck).sum() > 100
    assert bool((gain[~stuck & (fraction > 0)] > 0).all())
    assert bool((fraction[~stuck] > 0).all())
    assert torch.equal(after[stuck], before[stuck])
    assert bool((fraction[stuck] == 0).all())
    assert bool((kl[stuck] == 0).all())


def test_trpo_takes_the_natural_direction_at_the_length_where_kl_is_its_bound() -> None:
    """KL = ½ δᵀFδ + O(δ³): for a small bound the full step meets it, and after h halvings a 4^h-th
    of it.
    """
    logits = LOGITS.clone().requires_grad_()
    given, gradient = exact_closures(logits, REWARD)
    logged = TRPO(max_kl=1e-8, damping=0.0).step([gradient], given)
    step = logits.detach() - LOGITS
    for run in range(2):
        p = LOGITS[run].softmax(0)
        direction = torch.linalg.pinv(fisher(p), hermitian=True) @ -gradient[run]
        length = float(logged["step_fraction"][run]) * math.sqrt(
            2e-8 / float(direction @ fisher(p) @ direction)
        )
        close(step[run], length * direction, rtol=1e-6, atol=1e-12)
        assert float(logged["trust_region_kl"][run]) == pytest.approx(
            1e-8 * float(logged["step_fraction"][run]) ** 2, rel=1e-3
        )
    assert bool((logged["step_fraction"] >= 0.5).all())


def test_trpo_gives_up_after_its_backtracks_and_stays() -> None:
    """One try at a long step: the third order overshoots in some runs, which then do not move at
    all.
    """
    logits = torch.linspace(-4, 4, 41, dtype=torch.float64).unsqueeze(-1) * f64([1.0, 0.0, -0.5])
    start = logits.clone()
    logits.requires_grad_()
    given, gradient = exact_closures(logits, f64([1.0, 0.7, 0.0]).expand(41, 3))
    logged = TRPO(max_kl=0.3, backtracks=1).step([gradient], given)
    stayed = logged["step_fraction"] == 0
    assert 0 < stayed.sum() < 41
    assert torch.equal(logits.detach()[stayed], start[stayed])
    assert bool((logged["trust_region_kl"][stayed] == 0).all())
    assert bool((kl_by_hand(start.unsqueeze(1), logits.detach().unsqueeze(1)) <= 0.3).all())
    several = start.clone().requires_grad_()
    given, gradient = exact_closures(several, f64([1.0, 0.7, 0.0]).expand(41, 3))
    logged = TRPO(max_kl=0.3, backtracks=10).step([gradient], given)
    assert bool((logged["step_fraction"] > 0).all())
    assert {float(fraction) for fraction in logged["step_fraction"]} <= {
        0.5**power for power in range(10)
    }


def test_trpo_measures_kl_from_the_policy_that_sampled() -> None:
    """Over several epochs of one rollout the bound holds for all of them together."""
    problem = bernoulli_bandit((50,))
    before = problem.parameters[0].detach().clone()
    learner = Learner(problem, ladder.surrogate, TRPO(0.02), stream((50,), 3), epochs=5)
    learner.train(1)
    kl = kl_by_hand(before, problem.parameters[0].detach())
    assert bool((kl <= 0.02).all())
    assert float(kl.max()) > 0.019


NONE_OF_THEM = ("1", None, True, math.nan, math.inf, [0.1])  # what is no finite number


@pytest.mark.parametrize("value", NONE_OF_THEM, ids=repr)
@pytest.mark.parametrize(
    ("make", "field"),
    [
        (SGD, "lr"),
        (Adam, "lr"),
        (NaturalGradient, "lr"),
        (TRPO, "TRPO.max_kl"),
        (lambda value: Adam(0.1, betas=(0.9, value)), "Adam.betas"),
        (lambda value: Adam(0.1, eps=value), "Adam.eps"),
        (lambda value: Adam(0.1, weight_decay=value), "Adam.weight_decay"),
        (lambda value: NaturalGradient(0.1, damping=value), "NaturalGradient.damping"),
        (lambda value: NaturalGradient(0.1, iterations=value), "NaturalGradient.iterations"),
        (lambda value: TRPO(iterations=value), "TRPO.iterations"),
        (lambda value: TRPO(backtracks=value), "TRPO.backtracks"),
        (lambda value: TRPO(shrink=value), "TRPO.shrink"),
        (LinearDecay, "LinearDecay.steps"),
        (lambda value: LinearDecay(10, warmup=value), "LinearDecay.warmup"),
        (lambda value: LinearDecay(10, final=value), "LinearDecay.final"),
        (lambda value: RunningMean(share=value), "RunningMean.share"),
        (lambda value: Noise((), value), "seed"),
        (lambda value: Noise((value,)), "noise.runs"),
        (lambda value: Noise((1,), numbers=[value]), "noise.numbers"),
    ],
)
def test_what_is_no_number_is_refused_where_it_is_given(make, field: str, value: object) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CourseError) as refused:
        make(value)
    assert str(refused.value).startswith(f"{field}: got ")
    assert "; allowed is " in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("value", [2.5, 0, -3])
@pytest.mark.parametrize(
    "make",
    [
        lambda value: NaturalGradient(0.1, iterations=value),
        lambda value: TRPO(iterations=value),
        lambda value: TRPO(backtracks=value),
        LinearDecay,
    ],
)
def test_a_count_is_a_whole_number(make, value: object) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CourseError, match=f"got {value}; allowed is a whole number"):
        make(value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: SGD(f64([0.1, math.nan])), r"lr: got nan; allowed is a finite number > 0 \(or"),
        (lambda: SGD(torch.tensor([True])), r"lr: got torch\.bool"),
        (lambda: SGD(0.1, LinearDecay), "schedule: got <class"),  # type: ignore[arg-type]
        (lambda: SGD(0.1, 0.5), r"schedule: got 0\.5; allowed is None or a function"),  # type: ignore[arg-type]
        (lambda: Adam(0.1, betas=0.9), r"Adam\.betas: got 0\.9"),  # type: ignore[arg-type]
        (lambda: Adam(0.1, betas="ab"), r"Adam\.betas: got 'ab'"),  # type: ignore[arg-type]
        (lambda: RunningMean(per_prompt="no"), r"RunningMean\.per_prompt: got 'no'"),  # type: ignore[arg-type]
        (lambda: Noise((2,), dtype=torch.int64), r"noise\.dtype: got torch\.int64"),
    ],
)
def test_settings_of_another_kind_are_refused(make, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CourseError, match=says):
        make()


@pytest.mark.parametrize("share", [math.nan, -1.0, None])
def test_a_schedule_that_gives_no_rate_is_refused_before_it_reaches_the_parameters(
    share: object,
) -> None:
    parameter = f64([1.0])
    with pytest.raises(CourseError, match=r"schedule\(0\): got .*; allowed is a finite number ≥ 0"):
        SGD(0.1, lambda update: share).step([f64([1.0])], closures([parameter]))  # type: ignore[arg-type,return-value]
    assert parameter.tolist() == [1.0]
