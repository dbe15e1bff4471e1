"""The one loop: sample → freeze → several epochs of minibatches → log every k steps.

It trains every rung on every problem.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from course.errors import CourseError, Diverged, require
from course.estimator import Estimator, Frozen, uses_critic
from course.parts import AdaptiveBeta
from course.rollout import Policy, Rollout
from course.train import checkpoint, metrics
from course.train.critic import RunningMean
from course.train.noise import Noise
from course.train.optim import Closures, Optimizer, clip_gradients, over_runs, per_run_dot


class Problem(Protocol):
    """What the learner trains: a bandit with its policy, or a transformer with its task.

    `parameters` are leaf tensors that lead with the run axes `runs`; the learner changes them in
    place. A problem that moves by itself also has `state()` and `load(state)`, as optimisers have,
    so that a saved run can go on.
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
        """Metrics of the problem's own, name → [...]; may be empty."""
        ...


@dataclass
class History:
    """What was logged: `steps` counts finished rollouts, `values[name]` are tensors [logs, ...],
    one row per log.
    """

    steps: list[int] = field(default_factory=list)
    rows: list[dict[str, Tensor]] = field(default_factory=list)

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


class Learner:
    """Trains a problem with an estimator and an optimiser.

    One step: sample a rollout, freeze its advantages, then `epochs` times over it in `minibatches`
    along Q (shuffled by a generator of the learner's own), one update each. A minibatch's loss is
    multiplied by their number, so that a learning rate means the same whatever the split.
    `max_grad_norm` clips each run's gradient. Every `log_every`-th step is logged; metrics of
    updates are those of the last epoch, seen before each update.

    A NaN or infinity in rewards, loss or gradients raises `Diverged` before it reaches the
    parameters, and the state is saved to `rescue` (a path) if one is given; then an update that
    overflows is undone, too. With `halt_diverged` only the runs whose loss, gradient or parameters
    met it stop, where they are, and the others go on (for sweeps): `halted` [...] says which.
    """

    def __init__(
        self,
        problem: Problem,
        estimator: Estimator,
        optimizer: Optimizer,
        noise: Noise,
        *,
        epochs: int = 1,
        minibatches: int = 1,
        max_grad_norm: float | None = None,
        critic: RunningMean | None = None,
        log_every: int = 1,
        shuffle_seed: int = 0,
        rescue: str | Path | None = None,
        halt_diverged: bool = False,
    ) -> None:
        for name, value in (
            ("epochs", epochs),
            ("minibatches", minibatches),
            ("log_every", log_every),
        ):
            require(isinstance(value, int) and value > 0, name, value, "a whole number > 0")
        require(
            max_grad_norm is None or max_grad_norm > 0,
            "max_grad_norm",
            max_grad_norm,
            "None or a number > 0",
        )
        require(
            critic is None or uses_critic(estimator),
            "critic",
            critic,
            "None, since this estimator's baseline is not Value()",
        )
        require(
            noise.runs == problem.runs,
            "noise.runs",
            tuple(noise.runs),
            f"the problem's own runs {tuple(problem.runs)}",
        )
        self._check_rate(getattr(optimizer, "lr", None), problem.runs)
        self.problem, self.estimator, self.optimizer, self.noise = (
            problem,
            estimator,
            optimizer,
            noise,
        )
        self.epochs, self.minibatches, self.max_grad_norm = epochs, minibatches, max_grad_norm
        self.critic, self.log_every, self.rescue = critic, log_every, rescue
        self.shuffle = np.random.Generator(np.random.PCG64(shuffle_seed))
        self.steps = 0
        self.history = History()
        self.halt_diverged = halt_diverged
        self.halted: Tensor | None = None
        beta = estimator.kl.beta
        self.kl_coef = None
        if isinstance(beta, AdaptiveBeta):
            first = problem.parameters[0]
            self.kl_coef = torch.full(
                problem.runs, beta.initial, dtype=first.dtype, device=first.device
            )

    def train(
        self, steps: int, progress: Callable[[Iterable[int]], Iterable[int]] = lambda steps: steps
    ) -> History:
        """Take `steps` more steps; returns the whole history.

        `progress` wraps the range of steps (a bar, say).
        """
        require(isinstance(steps, int) and steps > 0, "steps", steps, "a whole number > 0")
        last = self.steps + steps
        for _ in progress(range(steps)):
            self.step(log=self.steps % self.log_every == 0 or self.steps + 1 == last)
        return self.history

    def step(self, log: bool = False) -> None:
        """One rollout and all its updates."""
        rollout = self.problem.sample(self.noise)
        if self.critic is not None and bool(
            torch.isfinite(rollout.reward.sum())
        ):  # else it would be lost, too
            rollout = self.critic.write(rollout)
        if self.kl_coef is not None:
            rollout = replace(rollout, kl_coef=self.kl_coef)
        frozen = self._freeze(rollout)
        seen: list[dict[str, Tensor]] = []
        for epoch in range(self.epochs):
            logging = log and epoch == self.epochs - 1
            for batch in self._minibatches(frozen):
                logged = self._update(batch, logging)
                if logging:
                    seen.append(logged)
        self.steps += 1
        if log:
            self.history.add(
                self.steps,
                {**metrics.of_rollout(rollout), **metrics.combine(seen), **self.problem.metrics()},
            )
        if self.kl_coef is not None:
            self._adapt(rollout)

    def _freeze(self, rollout: Rollout) -> Frozen:
        try:
            return self.estimator.freeze(rollout)
        except CourseError as error:
            if bool(torch.isfinite(rollout.reward).all()):
                raise
            raise self._diverged(str(error)) from None

    def _minibatches(self, frozen: Frozen) -> Iterator[Frozen]:
        if self.minibatches == 1:
            yield frozen
            return
        prompts = frozen.rollout.reward.shape[-3]
        require(
            self.minibatches <= prompts,
            "minibatches",
            self.minibatches,
            f"at most the {prompts} prompts of the rollout",
        )
        order = self.shuffle.permutation(prompts)
        for index in np.array_split(order, self.minibatches):
            yield frozen.prompts(torch.from_numpy(index).to(frozen.weight.device))

    def _update(self, frozen: Frozen, log: bool) -> dict[str, Tensor]:
        """One step on one (mini)batch; the loss is summed over runs, eq:runs-apart.

        Returns what was logged.
        """
        parameters = self.problem.parameters
        policy = self.problem.policy(frozen.rollout)
        loss = -self.estimator.objective(policy, frozen)
        if self.minibatches > 1:
            loss = loss * self.minibatches
        gradients: Sequence[Tensor] = torch.autograd.grad(
            loss.sum(), parameters, allow_unused=True, materialize_grads=True
        )
        norm: Tensor | None = None
        if log or self.max_grad_norm is not None:
            norm = per_run_dot(gradients, gradients, len(self.problem.runs)).sqrt()
        gradients = self._check(loss, gradients)
        if self.max_grad_norm is not None:
            assert norm is not None
            gradients = clip_gradients(gradients, norm, self.max_grad_norm)
        logged = (
            metrics.of_update(self.estimator, policy, frozen, norm)
            if log and norm is not None
            else {}
        )
        if self.rescue is None and not self.halt_diverged and self.halted is None:
            return logged | self.optimizer.step(gradients, self._closures(frozen))
        kept = [parameter.detach().clone() for parameter in parameters]
        logged |= self.optimizer.step(gradients, self._closures(frozen))
        with torch.no_grad():
            self._undo(kept)
        return logged

    def _undo(self, kept: Sequence[Tensor]) -> None:
        """Put back the parameters of runs that are halted or whose update overflowed; that ends
        training, or halts them.
        """
        parameters, undone = self.problem.parameters, self.halted
        lost = None
        if not bool(
            torch.isfinite(torch.stack([parameter.sum() for parameter in parameters]).sum())
        ):
            lost = self._lost(parameters)
            undone = lost if undone is None else undone | lost
        if undone is None or not bool(undone.any()):
            return
        for parameter, before in zip(parameters, kept, strict=True):
            parameter.copy_(torch.where(over_runs(undone, parameter), before, parameter))
        if self.halt_diverged:
            self.halted = undone
        elif lost is not None and bool(lost.any()):
            raise self._diverged("a parameter became infinite or NaN in the update")

    def _lost(self, tensors: Sequence[Tensor]) -> Tensor:
        """[...] bool: the runs in which one of the tensors [..., *rest] holds a number that is not
        finite.
        """
        runs = len(self.problem.runs)
        whole = [torch.isfinite(tensor) for tensor in tensors]
        return ~torch.stack(
            [each.flatten(runs).all(-1) if each.dim() > runs else each for each in whole]
        ).all(0)

    def _closures(self, frozen: Frozen) -> Closures:
        def log_dist() -> Tensor:
            full = self.problem.policy(frozen.rollout).log_dist
            require(
                full is not None,
                "policy.log_dist",
                None,
                "the full distribution, which a trust region measures KL with",
            )
            assert full is not None
            return full

        return Closures(
            parameters=self.problem.parameters,
            loss=lambda: (
                -self.estimator.objective(self.problem.policy(frozen.rollout), frozen)
                * self.minibatches
            ),
            log_dist=log_dist,
            mean_kl=lambda q, p: metrics.mean_kl(q, p, frozen.rollout.mask),
            old_log_dist=frozen.rollout.old_log_dist,
        )

    def _adapt(self, rollout: Rollout) -> None:
        assert self.kl_coef is not None
        beta = self.estimator.kl.beta
        assert isinstance(beta, AdaptiveBeta)
        with torch.no_grad():
            self.kl_coef = beta.update(
                self.kl_coef, metrics.kl_to_old(self.problem.policy(rollout), rollout)
            )

    def _check(self, loss: Tensor, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """The gradients, if all is finite.

        Else raise `Diverged`, or halt the runs concerned and give them zeros.
        """
        total = loss.detach().sum() + sum(gradient.sum() for gradient in gradients)
        if torch.isfinite(total):
            return gradients
        named = [
            ("loss", loss.detach()),
            *((f"gradient of parameter {i}", g) for i, g in enumerate(gradients)),
        ]
        bad = next(
            ((name, tensor) for name, tensor in named if not bool(torch.isfinite(tensor).all())),
            None,
        )
        if bad is None:  # finite numbers whose sum overflowed
            return gradients
        if self.halt_diverged:
            now = self._lost([loss.detach(), *gradients])
            self.halted = now if self.halted is None else self.halted | now
            return [
                torch.where(over_runs(self.halted, g), torch.zeros_like(g), g) for g in gradients
            ]
        value = bad[1][~torch.isfinite(bad[1])][0].item()
        raise self._diverged(f"{bad[0]} became {value}")

    def _diverged(self, what: str) -> Diverged:
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

    @staticmethod
    def _check_rate(rate: object, runs: torch.Size) -> None:
        """Refuse learning rates per run that would be lined up with other axes than the runs."""
        if isinstance(rate, Tensor) and rate.dim() > 0:
            fits = rate.dim() == len(runs) and all(
                have in (1, want) for have, want in zip(rate.shape, runs, strict=True)
            )
            require(
                fits,
                "optimizer.lr",
                tuple(rate.shape),
                f"a number or one for each of the runs {tuple(runs)}",
            )

    # ------------------------------------------------------------------ state

    def state(self) -> dict[str, Tensor]:
        """Everything the next step depends on, by name."""
        tensors = {f"parameters.{i}": p.detach() for i, p in enumerate(self.problem.parameters)}
        tensors |= checkpoint.prefixed("optimizer", self.optimizer.state()) | checkpoint.prefixed(
            "noise", self.noise.state()
        )
        if self.critic is not None:
            tensors |= checkpoint.prefixed("critic", self.critic.state())
        for name in ("kl_coef", "halted"):
            if getattr(self, name) is not None:
                tensors[name] = getattr(self, name)
        if hasattr(self.problem, "state"):
            tensors |= checkpoint.prefixed("problem", self.problem.state())
        return tensors

    def about(self) -> dict[str, Any]:
        """What a saved state is of, JSON-able: steps, the shuffling generator, and what the learner
        is made of.
        """
        return {"steps": self.steps, "shuffle": self.shuffle.bit_generator.state, **self._made_of()}

    def save(self, path: str | Path) -> Path:
        """Write the state to a file, whole or not at all."""
        return checkpoint.write(path, self.state(), self.about())

    def _made_of(self) -> dict[str, str]:
        """What a saved state must come from for this learner to go on with it, name →
        description.
        """
        estimator = self.estimator
        described = {f"estimator.{name}": part.short for name, part in estimator.parts.items()}
        described |= {
            f"estimator.{name}": str(getattr(estimator, name))
            for name in ("entropy_coef", "value_coef")
        }
        described |= {
            "optimizer": type(self.optimizer).__name__,
            "critic": "none" if self.critic is None else type(self.critic).__name__,
        }
        described |= {
            f"parameter {i}": f"{tuple(p.shape)} {p.dtype}"
            for i, p in enumerate(self.problem.parameters)
        }
        return described | {
            "parameters": str(len(self.problem.parameters)),
            "runs": str(tuple(self.noise.runs)),
        }

    def load(self, path: str | Path) -> None:
        """Go on from a saved state, to the bit; refuses one of another estimator, optimiser, critic
        or shape.
        """
        tensors, about = checkpoint.read(path)
        self.restore(tensors, about, str(path))

    def restore(
        self, tensors: Mapping[str, Tensor], about: Mapping[str, Any], path: str = "saved state"
    ) -> None:
        """Go on from `state()` and `about()` of a learner like this one; `path` is named in a
        refusal.
        """
        for name, mine in self._made_of().items():
            require(about.get(name) == mine, f"{path}: {name}", about.get(name), mine)
        with torch.no_grad():
            for i, parameter in enumerate(self.problem.parameters):
                parameter.copy_(tensors[f"parameters.{i}"])
        device = self.problem.parameters[0].device
        self.optimizer.load(
            {
                name: tensor.to(device)
                for name, tensor in checkpoint.under("optimizer", tensors).items()
            }
        )
        self.noise.load(checkpoint.under("noise", tensors))
        if self.critic is not None:
            self.critic.load(checkpoint.under("critic", tensors))
        if self.kl_coef is not None:
            self.kl_coef = tensors["kl_coef"].to(self.kl_coef)
        self.halted = tensors["halted"].to(device) if "halted" in tensors else None
        if hasattr(self.problem, "load"):
            self.problem.load(checkpoint.under("problem", tensors))
        self.steps = int(about["steps"])
        self.shuffle.bit_generator.state = about["shuffle"]
