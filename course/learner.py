"""The training loop, one for every rung and every problem.

One step samples a rollout, freezes its advantages, takes several epochs of minibatch updates, and
logs metrics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from course.errors import (
    CourseError,
    Diverged,
    NotFinite,
    require,
    require_fits_runs,
    require_flag,
    require_number,
)
from course.estimator import Estimator, Frozen, uses_critic
from course.parts import AdaptiveBeta, AdaptiveEntropy
from course.rollout import Policy, Rollout
from course.train import checkpoint, metrics, saved_state
from course.train.critic import RunningMean
from course.train.guard import Guard
from course.train.noise import Noise
from course.train.optim import Closures, Optimizer, clip_gradients, per_run_dot

T = TypeVar("T")


@dataclass(eq=False, repr=False)
class Learner:
    """Trains a problem with an estimator and an optimiser.

    One step samples a rollout and freezes its advantages. It then goes through the rollout `epochs`
    times, each time in `minibatches` along Q, with one update per minibatch. The learner's own
    generator shuffles the prompts. The loss of a minibatch is multiplied by the number of
    minibatches, so that a learning rate means the same for every split. Every `log_every`-th step
    is logged. Metrics of updates come from the last epoch: they are taken before each update and
    pooled over its minibatches.

    `kl_stop` ends the epochs of a rollout early, for each run separately. Before each epoch but the
    first, a run whose KL(π_old‖π), in nats per chosen token, exceeds it keeps its parameters until
    the next rollout. This costs one more forward pass per epoch, and logs the number of `updates`.

    A NaN or infinity in a rollout, loss or gradients raises `Diverged` before it reaches the
    parameters. If `rescue` is a path, the state is saved there first, and an update that overflows
    is undone as well. With `halt_diverged` (for sweeps) only the runs whose rollout, loss, gradient
    or parameters are affected stop, and the others go on; `halted` [...] says which have stopped.

    Raises `CourseError` if a setting is out of range.
    """

    problem: Problem
    estimator: Estimator
    optimizer: Optimizer
    noise: Noise
    _: KW_ONLY
    epochs: int = 1  # over each rollout
    minibatches: int = 1  # an epoch, one update each
    max_grad_norm: float | None = None  # of each run's gradient; None: no clipping
    kl_stop: float | None = None  # nats per token; None: no early stop
    critic: RunningMean | None = None  # writes values into the rollouts, if the problem does not
    log_every: int = 1  # steps
    shuffle_seed: int = 0  # for the minibatches
    rescue: str | Path | None = None
    halt_diverged: bool = False
    steps: int = field(default=0, init=False)  # finished steps
    kl_coef: Tensor | None = field(
        default=None, init=False
    )  # [...] the adaptive β, if there is one
    entropy_coef: Tensor | None = field(
        default=None, init=False
    )  # [...] the c of an adaptive entropy bonus, if there is one

    def train(
        self, steps: int, progress: Callable[[Iterable[int]], Iterable[int]] = lambda steps: steps
    ) -> History:
        """Take `steps` more steps; returns the history of all steps so far.

        `progress` wraps the range of steps, for example in a progress bar.
        """
        require_number("steps", steps, "a whole number > 0", above=0, whole=True)
        last = self.steps + steps
        for _ in progress(range(steps)):
            self.step(log=self.steps % self.log_every == 0 or self.steps + 1 == last)
        return self.history

    def step(self, log: bool = False) -> None:
        """Sample one rollout and take all its updates; `log` adds a row to the history."""
        rollout = self._sample()
        frozen = self._with_bonus(self._freeze(rollout))
        logged: dict[str, Tensor] = {}
        for active, last in self._epochs(rollout):
            seen = metrics.Epoch(active)
            for batch in self._minibatches(frozen):
                policy, loss, gradients = self._differentiate(batch)
                if log and last:
                    seen.add(self._metrics(policy, batch), batch.rollout.mask, gradients)
                own = self._update(batch, loss, gradients, active)
                if log and last:
                    seen.rows[-1] |= own
            if log and last:
                logged = seen.after(logged)
        self.steps += 1
        if log:
            row = metrics.of_rollout(rollout) | logged | self.problem.metrics()
            if frozen.entropy_coef is not None:
                row["entropy_coef"] = frozen.entropy_coef
            self.history.add(self.steps, row)
        if self.kl_coef is not None:
            self.kl_coef = self._adapted(self.kl_coef, rollout)

    # ------------------------------------------------------------------ the rollout

    def _sample(self) -> Rollout:
        """A new rollout, with the running mean as value and the adaptive β, if there are any."""
        rollout = self.problem.sample(self.noise)
        if self.critic is not None:
            # a reward that is not finite would stay in the running mean for ever
            if rollout.is_finite or math.isfinite(float(rollout.reward.sum())):
                rollout = self.critic.write(rollout)
            else:
                usable = self._usable(_checked, rollout)
                rollout = replace(self.critic.write(usable), reward=rollout.reward)
        return rollout if self.kl_coef is None else rollout.having(kl_coef=self.kl_coef)

    def _freeze(self, rollout: Rollout) -> Frozen:
        return self._usable(self.estimator.freeze, rollout)

    def _with_bonus(self, frozen: Frozen) -> Frozen:
        """`frozen` with the coefficient of an adaptive entropy bonus, whose c then moves on."""
        if self.entropy_coef is None:
            return frozen
        adaptive, c, rollout = self.estimator.entropy_coef, self.entropy_coef, frozen.rollout
        assert isinstance(adaptive, AdaptiveEntropy)
        with torch.no_grad():
            policy = self.problem.policy(rollout).widened()
            left = metrics.chosen_mean(policy.entropy_where(rollout.mask), rollout.mask)
        self.entropy_coef = adaptive.update(c, left)
        return replace(frozen, entropy_coef=adaptive.applied(c, left))

    def _usable(self, make: Callable[[Rollout], T], rollout: Rollout) -> T:
        """What `make` returns for a rollout. Runs in which it meets a NaN or an infinity are
        halted and left out, if runs are halted for it; else training ends.
        """
        while True:
            try:
                return make(rollout)
            except NotFinite as error:  # the policy or its critic is lost
                if not self.halt_diverged:
                    raise self._ended(str(error)) from None
                self.guard.halt(error.runs)
                rollout = rollout.without(error.runs)

    def _epochs(self, rollout: Rollout) -> Iterator[tuple[Tensor | None, bool]]:
        """Yield for each epoch (active, last).

        `active` [...] bool marks the runs that take part; None means all. `last` is True if it may
        be the last epoch of one of them.
        """
        if self.kl_stop is None:
            for epoch in range(self.epochs):
                yield None, epoch == self.epochs - 1
            return
        active = torch.ones(self.problem.runs, dtype=torch.bool, device=rollout.reward.device)
        for epoch in range(self.epochs):
            if epoch > 0:
                with torch.no_grad():
                    moved = metrics.kl_to_old(self.problem.policy(rollout), rollout)
                active = active & (moved <= self.kl_stop)
            if bool(active.any()):
                yield active, True
            elif self.minibatches > 1:
                # draw a permutation all the same, so that a run alone sees the same shuffling as
                # it does among others
                self.shuffle.permutation(rollout.reward.shape[-3])

    def _minibatches(self, frozen: Frozen) -> Iterator[Frozen]:
        """The frozen rollout cut into minibatches of prompts, in a new random order."""
        if self.minibatches == 1:
            yield frozen
            return
        prompts = frozen.rollout.reward.shape[-3]
        allowed = f"at most the {prompts} prompts of the rollout"
        require(self.minibatches <= prompts, "minibatches", self.minibatches, allowed)
        order = self.shuffle.permutation(prompts)
        for index in np.array_split(order, self.minibatches):
            yield frozen.prompts(torch.from_numpy(index).to(frozen.weight.device))

    # ------------------------------------------------------------------ one update

    def _differentiate(self, batch: Frozen) -> tuple[Policy, Tensor, Sequence[Tensor]]:
        """The current policy on the batch, the loss [...] and its gradients.

        The gradients are of the loss summed over runs, which do not share parameters:
        eq:runs-apart.
        """
        policy = self.problem.policy(batch.rollout)
        loss = -self.estimator.objective(policy, batch)
        if self.minibatches > 1:
            loss = loss * self.minibatches
        gradients: Sequence[Tensor] = torch.autograd.grad(
            loss.sum(), self.problem.parameters, allow_unused=True, materialize_grads=True
        )
        return policy, loss, gradients

    def _update(
        self, batch: Frozen, loss: Tensor, gradients: Sequence[Tensor], active: Tensor | None
    ) -> dict[str, Tensor]:
        """Check and clip the gradients, take the step; returns the optimiser's metrics."""
        runs = len(self.problem.runs)
        gradients = self.guard.gradients(loss, gradients)
        if self.max_grad_norm is not None:
            norm = per_run_dot(gradients, gradients, runs).sqrt()
            gradients = clip_gradients(gradients, norm, self.max_grad_norm)
        closures = self._closures(batch, active)
        return self.guard.update(
            self.problem.parameters, runs, lambda: self.optimizer.step(gradients, closures), active
        )

    def _closures(self, batch: Frozen, active: Tensor | None) -> Closures:
        rollout = batch.rollout

        def log_dist() -> Tensor:
            full = self.problem.policy(rollout).log_dist
            if full is None:
                raise CourseError(
                    "policy.log_dist: got None; allowed is the full distribution, which a trust"
                    " region measures KL with"
                )
            return full

        def loss() -> Tensor:
            return -self.estimator.objective(self.problem.policy(rollout), batch) * self.minibatches

        return Closures(
            parameters=self.problem.parameters,
            loss=loss,
            log_dist=log_dist,
            mean_kl=lambda q, p: metrics.mean_kl(q, p, rollout.mask),
            old_log_dist=rollout.old_log_dist,
            active=active,
        )

    def _metrics(self, policy: Policy, batch: Frozen) -> dict[str, Tensor]:
        """The metrics of an update: those of every rung, and those that the problem adds."""
        seen = metrics.of_update(self.estimator, policy, batch)
        own = getattr(self.problem, "metrics_of_update", None)
        return seen if own is None else seen | own(policy, batch.rollout)

    def _adapted(self, kl_coef: Tensor, rollout: Rollout) -> Tensor:
        """The adaptive β [...] for the next rollout, from KL(π_old‖π) after this one's updates."""
        beta = self.estimator.kl.beta
        assert isinstance(beta, AdaptiveBeta)
        with torch.no_grad():
            moved = metrics.kl_to_old(self.problem.policy(rollout), rollout)
            return beta.update(kl_coef, moved)

    # ------------------------------------------------------------------ divergence, saved state

    @property
    def halted(self) -> Tensor | None:
        """[...] bool: the runs that have stopped for good; None if there are none. May be set."""
        return self.guard.halted

    @halted.setter
    def halted(self, runs: Tensor | None) -> None:
        self.guard.halted = runs

    @property
    def diverged(self) -> Tensor:
        """[...] bool, on the CPU: the halted runs; all False where none is."""
        if self.halted is None:
            return torch.zeros(tuple(self.problem.runs), dtype=torch.bool)
        return self.halted.cpu()

    def _ended(self, what: str) -> Diverged:
        """The error that ends training; saves the last good state first if `rescue` is a path."""
        saved = ""
        if self.rescue is not None:
            try:
                saved = f"; the last good state is in {self.save(self.rescue)}"
            except CourseError as error:
                saved = f"; the last good state could not be saved: {error}"
        return Diverged(f"training stopped at step {self.steps + 1}: {what}{saved}")

    def state(self) -> dict[str, Tensor]:
        """All tensors that the next step depends on, by name."""
        return saved_state.state(self)

    def about(self) -> dict[str, Any]:
        """A description of the state for JSON: steps, shuffling and the learner's settings."""
        return saved_state.about(self)

    def save(self, path: str | Path) -> Path:
        """Write the state to `path`, completely or not at all; returns the path."""
        return checkpoint.write(path, self.state(), self.about())

    def load(self, path: str | Path) -> None:
        """Go on from a saved state, bit for bit.

        Raises `CourseError` if the learner that saved it had another estimator, optimiser, critic,
        setting or shape.
        """
        tensors, about = checkpoint.read(path)
        self.restore(tensors, about, str(path))

    def restore(
        self, tensors: Mapping[str, Tensor], about: Mapping[str, Any], path: str = "saved state"
    ) -> None:
        """Go on from the `state()` and `about()` of a learner with the same settings.

        Raises `CourseError`, which names `path`, if the settings differ.
        """
        saved_state.restore(self, tensors, about, path)

    # ------------------------------------------------------------------ making

    def __post_init__(self) -> None:
        _check(self)
        self.shuffle = np.random.Generator(np.random.PCG64(self.shuffle_seed))
        self.history = History()
        undoes = self.halt_diverged or self.rescue is not None
        self.guard = Guard(halts=self.halt_diverged, undoes=undoes, ended=self._ended)
        beta, first = self.estimator.kl.beta, self.problem.parameters[0]
        bonus = self.estimator.entropy_coef
        if isinstance(bonus, AdaptiveEntropy):
            self.entropy_coef = torch.full(
                self.problem.runs, bonus.initial, dtype=first.dtype, device=first.device
            )
        if isinstance(beta, AdaptiveBeta):
            self.kl_coef = torch.full(
                self.problem.runs, beta.initial, dtype=first.dtype, device=first.device
            )


class Problem(Protocol):
    """What the learner trains: a bandit with its policy, or a transformer with its task.

    `parameters` are leaf tensors whose first axes are the run axes `runs`; the learner changes them
    in place.

    Three members are optional. A problem with a state of its own has `state()` and `load(state)`,
    as optimisers do, so that a saved run can go on. `made_with` names the settings that must then
    be equal. `metrics_of_update(policy, rollout)` returns further metrics of an update, name →
    [...], as means over the chosen tokens.
    """

    parameters: Sequence[Tensor]
    runs: torch.Size

    def sample(self, noise: Noise) -> Rollout:
        """New samples of the current policy, without gradients."""
        ...

    def policy(self, rollout: Rollout) -> Policy:
        """The current policy evaluated on the rollout, with gradients."""
        ...

    def metrics(self) -> dict[str, Tensor]:
        """The problem's own metrics after a step, name → [...]; may be empty."""
        ...


@dataclass
class History:
    """The logged metrics: `history[name]` is a tensor [logs, ...] with one row per log.

    `steps` holds the number of finished steps at each log. `keep` is the number of latest rows to
    keep; None keeps all.
    """

    steps: list[int] = field(default_factory=list)
    rows: list[dict[str, Tensor]] = field(default_factory=list)
    keep: int | None = None

    def __repr__(self) -> str:
        """How much was logged, and what; not thousands of numbers."""
        names = ", ".join(self.names) or "nothing"
        return f"History({len(self.steps)} logs of {names})"

    def __getitem__(self, name: str) -> Tensor:
        """The values of a metric [logs, ...]; raises `CourseError` if it was not logged."""
        if not self.rows or name not in self.rows[0]:
            raise CourseError(
                f"metric: got {name!r}; allowed is one of"
                f" {', '.join(self.names) or 'none (nothing was logged)'}"
            )
        return torch.stack([row[name] for row in self.rows])

    @property
    def names(self) -> list[str]:
        """The metrics that were logged."""
        return list(self.rows[0]) if self.rows else []

    def add(self, step: int, row: dict[str, Tensor]) -> None:
        """Append one row; what exceeds `keep` is dropped."""
        self.steps.append(step)
        self.rows.append({name: value.detach() for name, value in row.items()})
        if self.keep is not None:
            del self.steps[: -self.keep], self.rows[: -self.keep]


def _checked(rollout: Rollout) -> Rollout:
    """The rollout itself, if its numbers can be used."""
    rollout.check_values()
    return rollout


def _check(learner: Learner) -> None:
    """Raise `CourseError` if an argument of the learner is of the wrong kind or out of range."""
    problem, estimator, optimizer = learner.problem, learner.estimator, learner.optimizer
    for name, thing, members in (
        ("problem", problem, ("parameters", "runs", "sample", "policy", "metrics")),
        ("optimizer", optimizer, ("step", "state", "load")),
        ("critic", learner.critic, ("write", "state", "load")),
    ):
        fits = not isinstance(thing, type) and all(hasattr(thing, member) for member in members)
        none = thing is None and name == "critic"
        require(fits or none, name, thing, f"an object with {', '.join(members)}")
    require(isinstance(estimator, Estimator), "estimator", estimator, "an Estimator")
    require(isinstance(learner.noise, Noise), "noise", learner.noise, "a Noise")
    for name in ("epochs", "minibatches", "log_every"):
        value = getattr(learner, name)
        require_number(name, value, "a whole number > 0", above=0, whole=True)
    for name in ("max_grad_norm", "kl_stop"):
        value = getattr(learner, name)
        require_number(name, value, "None or a number > 0", above=0, optional=True)
    seed = learner.shuffle_seed
    require_number("shuffle_seed", seed, "a whole number ≥ 0", at_least=0, whole=True)
    require_flag("halt_diverged", learner.halt_diverged)
    path = learner.rescue
    require(path is None or isinstance(path, str | Path), "rescue", path, "None or a path")
    require(
        learner.critic is None or uses_critic(estimator),
        "critic",
        learner.critic,
        "None, since this estimator's baseline is not Value()",
    )
    require(
        learner.noise.runs == problem.runs,
        "noise.runs",
        tuple(learner.noise.runs),
        f"the problem's own runs {tuple(problem.runs)}",
    )
    for name in ("lr", "max_kl"):
        require_fits_runs(f"optimizer.{name}", getattr(optimizer, name, None), problem.runs)
