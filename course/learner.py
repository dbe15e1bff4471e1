"""The one loop: sample → freeze → several epochs of minibatches → log every k steps.

It trains every rung on every problem.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from course.errors import CourseError, Diverged, require, require_flag, require_number
from course.estimator import Estimator, Frozen, uses_critic
from course.parts import AdaptiveBeta
from course.rollout import Policy, Rollout
from course.train import checkpoint, metrics, saved_state
from course.train.critic import RunningMean
from course.train.guard import Guard
from course.train.noise import Noise
from course.train.optim import Closures, Optimizer, clip_gradients, per_run_dot


@dataclass(eq=False, repr=False)
class Learner:
    """Trains a problem with an estimator and an optimiser.

    One step: sample a rollout, freeze its advantages, then `epochs` times over it in `minibatches`
    along Q (shuffled by a generator of the learner's own), one update each. A minibatch's loss is
    multiplied by their number, so that a learning rate means the same whatever the split. Every
    `log_every`-th step is logged; metrics of updates are those of the last epoch, seen before each
    update, and pooled over its minibatches.

    `kl_stop` ends a rollout's epochs early, run by run: before each epoch but the first, runs whose
    KL(π_old‖π), in nats per chosen token, exceeds it keep their parameters until the next rollout.
    It takes one more forward pass an epoch, and logs how many `updates` a rollout was used for.

    A NaN or infinity in rewards, loss or gradients raises `Diverged` before it reaches the
    parameters, and the state is saved to `rescue` (a path) if one is given; then an update that
    overflows is undone, too. With `halt_diverged` only the runs whose loss, gradient or parameters
    met it stop, where they are, and the others go on (for sweeps): `halted` [...] says which.
    """

    problem: Problem
    estimator: Estimator
    optimizer: Optimizer
    noise: Noise
    _: KW_ONLY
    epochs: int = 1  # over each rollout
    minibatches: int = 1  # an epoch, one update each
    max_grad_norm: float | None = None  # of each run's gradient; None: it is not clipped
    kl_stop: float | None = None  # nats per token; None: all epochs are used
    critic: RunningMean | None = None  # writes the value into rollouts of a problem without one
    log_every: int = 1  # steps
    shuffle_seed: int = 0  # of the minibatches
    rescue: str | Path | None = None
    halt_diverged: bool = False
    steps: int = field(default=0, init=False)  # finished ones
    kl_coef: Tensor | None = field(
        default=None, init=False
    )  # [...] the adaptive β, if there is one

    def train(
        self, steps: int, progress: Callable[[Iterable[int]], Iterable[int]] = lambda steps: steps
    ) -> History:
        """Take `steps` more steps; returns the whole history.

        `progress` wraps the range of steps (a bar, say).
        """
        require_number("steps", steps, "a whole number > 0", above=0, whole=True)
        last = self.steps + steps
        for _ in progress(range(steps)):
            self.step(log=self.steps % self.log_every == 0 or self.steps + 1 == last)
        return self.history

    def step(self, log: bool = False) -> None:
        """One rollout and all its updates."""
        rollout = self._sample()
        frozen = self._freeze(rollout)
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
            self.history.add(self.steps, row)
        if self.kl_coef is not None:
            self.kl_coef = self._adapted(self.kl_coef, rollout)

    # ------------------------------------------------------------------ the rollout

    def _sample(self) -> Rollout:
        """New samples, with what the learner knows of them: a running mean's value, the adaptive
        β.
        """
        rollout = self.problem.sample(self.noise)
        # a reward that is not finite would spoil the mean for good
        if self.critic is not None and bool(torch.isfinite(rollout.reward.sum())):
            rollout = self.critic.write(rollout)
        return rollout if self.kl_coef is None else replace(rollout, kl_coef=self.kl_coef)

    def _freeze(self, rollout: Rollout) -> Frozen:
        try:
            return self.estimator.freeze(rollout)
        except CourseError as error:
            if rollout.is_finite:
                raise
            raise self._ended(str(error)) from None  # the policy or its critic is lost

    def _epochs(self, rollout: Rollout) -> Iterator[tuple[Tensor | None, bool]]:
        """For each epoch: the runs that take part, [...] bool (None: all of them), and whether it
        may be the last of one of them.
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
                # the shuffling goes on, so that a run alone is shuffled as it is among others
                self.shuffle.permutation(rollout.reward.shape[-3])

    def _minibatches(self, frozen: Frozen) -> Iterator[Frozen]:
        """The frozen rollout cut along its prompts, in a new order."""
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
        """What the policy says now, the loss [...] and its gradients; the loss is summed over
        runs, eq:runs-apart.
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
        """Check, clip, and step; returns the optimiser's own metrics."""
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
        """What an update sees: the metrics of every rung, and those of the problem's own."""
        seen = metrics.of_update(self.estimator, policy, batch)
        own = getattr(self.problem, "metrics_of_update", None)
        return seen if own is None else seen | own(policy, batch.rollout)

    def _adapted(self, kl_coef: Tensor, rollout: Rollout) -> Tensor:
        """The adaptive β for the next rollout, from how far this one's updates went."""
        beta = self.estimator.kl.beta
        assert isinstance(beta, AdaptiveBeta)
        with torch.no_grad():
            moved = metrics.kl_to_old(self.problem.policy(rollout), rollout)
            return beta.update(kl_coef, moved)

    # ------------------------------------------------------------------ divergence, saved state

    @property
    def halted(self) -> Tensor | None:
        """[...] bool: the runs that stand still for good; None where none does. May be set."""
        return self.guard.halted

    @halted.setter
    def halted(self, runs: Tensor | None) -> None:
        self.guard.halted = runs

    def _ended(self, what: str) -> Diverged:
        """The error that ends training; the state, still a good one, is saved first where a path
        was given.
        """
        saved = ""
        if self.rescue is not None:
            try:
                saved = f"; the last good state is in {self.save(self.rescue)}"
            except CourseError as error:
                saved = f"; the last good state could not be saved: {error}"
        return Diverged(f"training stopped at step {self.steps + 1}: {what}{saved}")

    def state(self) -> dict[str, Tensor]:
        """Everything the next step depends on, by name."""
        return saved_state.state(self)

    def about(self) -> dict[str, Any]:
        """What a saved state is of, JSON-able."""
        return saved_state.about(self)

    def save(self, path: str | Path) -> Path:
        """Write the state to a file, whole or not at all."""
        return checkpoint.write(path, self.state(), self.about())

    def load(self, path: str | Path) -> None:
        """Go on from a saved state, to the bit; refuses one of a learner that was made of something
        else: another estimator, optimiser, critic, setting or shape.
        """
        tensors, about = checkpoint.read(path)
        self.restore(tensors, about, str(path))

    def restore(
        self, tensors: Mapping[str, Tensor], about: Mapping[str, Any], path: str = "saved state"
    ) -> None:
        """Go on from `state()` and `about()` of a learner like this one; `path` is named in a
        refusal.
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
        if isinstance(beta, AdaptiveBeta):
            self.kl_coef = torch.full(
                self.problem.runs, beta.initial, dtype=first.dtype, device=first.device
            )


class Problem(Protocol):
    """What the learner trains: a bandit with its policy, or a transformer with its task.

    `parameters` are leaf tensors that lead with the run axes `runs`; the learner changes them in
    place. A problem that moves by itself also has `state()` and `load(state)`, as optimisers have,
    so that a saved run can go on; settings that must be the same then may be named in `made_with`.
    One that measures more of an update has
    `metrics_of_update(policy, rollout)`, name → [...], means over the chosen tokens.
    """

    parameters: Sequence[Tensor]
    runs: torch.Size

    def sample(self, noise: Noise) -> Rollout:
        """New samples of the current policy, without gradients."""
        ...

    def policy(self, rollout: Rollout) -> Policy:
        """What the current policy says of them, with gradients."""
        ...

    def metrics(self) -> dict[str, Tensor]:
        """Metrics of the problem's own after a step, name → [...]; may be empty."""
        ...


@dataclass
class History:
    """What was logged: `steps` counts finished rollouts, `values[name]` are tensors [logs, ...],
    one row per log. `keep` bounds the memory: only so many rows, the latest (None: all).
    """

    steps: list[int] = field(default_factory=list)
    rows: list[dict[str, Tensor]] = field(default_factory=list)
    keep: int | None = None

    def __getitem__(self, name: str) -> Tensor:
        """[logs, ...] the metric's values; raises `CourseError` for a metric that was
        not logged.
        """
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
        """One more row."""
        self.steps.append(step)
        self.rows.append({name: value.detach() for name, value in row.items()})
        if self.keep is not None:
            del self.steps[: -self.keep], self.rows[: -self.keep]


def _check(learner: Learner) -> None:
    """Refuse what a learner cannot be made of, by name."""
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
        _check_per_run(f"optimizer.{name}", getattr(optimizer, name, None), problem.runs)


def _check_per_run(name: str, value: object, runs: torch.Size) -> None:
    """Refuse numbers per run that would be lined up with other axes than the runs."""
    if isinstance(value, Tensor) and value.dim() > 0:
        shape = tuple(value.shape)
        fits = len(shape) == len(runs) and all(
            have in (1, want) for have, want in zip(shape, runs, strict=True)
        )
        require(fits, name, shape, f"a number or one for each of the runs {tuple(runs)}")
