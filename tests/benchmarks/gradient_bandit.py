"""How fast is the gradient bandit through estimator objects, autograd and the learner?

Beside it, in the same run and on one core each: the fastest NumPy we could write by hand (all
settings as one batch of runs, arms first, buffers reused), a plain Python loop over runs with NumPy
vectors of arms, as one would first write it, and the same loop without NumPy (both timed on fewer
runs and scaled). All do the same work: 4 settings × 2,000 runs × 1,000 steps of a ten-armed
testbed, and the same five metrics every 10 steps.

    python -m tests.benchmarks.gradient_bandit          prints a table, writes
    benchmark_gradient_bandit.png and .json
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from bandits.environments import testbed
from bandits.policies import Softmax
from bandits.problem import Bandit
from course import ladder, replace
from course.lab import figures
from course.lab.facts import Fact
from course.lab.result import Result, environment
from course.lab.terminal import text_table
from course.learner import Learner
from course.parts import Value
from course.train.critic import RunningMean
from course.train.noise import Noise
from course.train.optim import SGD

RATES, SHARES = (
    (0.1, 0.1, 0.4, 0.4),
    (1.0, 0.0, 1.0, 0.0),
)  # learning rate, and how much of the running mean is subtracted
MEAN, EVERY = 4.0, 10
METRICS = ("optimal_action", "expected_reward", "reward", "entropy", "gradient_norm")


def ours(runs: int, steps: int, arms: int, dtype: torch.dtype, device: str = "cpu") -> np.ndarray:
    """[logs, 5, 4] metrics averaged over runs, through the course's own objects."""
    axes = (len(RATES), runs)
    noise = Noise(axes, 0, dtype=dtype, device=device)
    bandit = Bandit(testbed(noise, arms, mean=MEAN), Softmax.uniform(noise, 1, arms), 1)
    rates, shares = (
        torch.tensor(each, dtype=dtype, device=device).unsqueeze(-1).expand(axes)
        for each in (RATES, SHARES)
    )
    critic = RunningMean(include_current=True, share=shares)
    estimator = replace(ladder.reinforce, baseline=Value())
    history = Learner(bandit, estimator, SGD(rates), noise, critic=critic, log_every=EVERY).train(
        steps
    )
    return torch.stack([history[name].mean(-1) for name in METRICS], 1).cpu().double().numpy()


def numpy_by_hand(runs: int, steps: int, arms: int, dtype: type) -> np.ndarray:
    """[logs, 5, 4] the same, one batch of 4·runs columns, arms first."""
    generator, columns = np.random.default_rng(0), 4 * runs
    means = MEAN + generator.standard_normal((arms, columns), dtype=dtype)
    best, which = means.argmax(0), np.arange(columns)
    rate, share = (np.repeat(np.array(each, dtype), runs) for each in (RATES, SHARES))
    logits, baseline = np.zeros((arms, columns), dtype), np.zeros(columns, dtype)
    probability, cumulative, logged = np.empty_like(logits), np.empty_like(logits), []
    for step in range(steps):
        np.subtract(logits, logits.max(0), out=probability)
        np.exp(probability, out=probability)
        probability /= probability.sum(0)
        np.cumsum(probability, 0, out=cumulative)
        action = (cumulative[:-1] <= generator.random(columns, dtype=dtype)).sum(0)
        reward = means[action, which] + generator.standard_normal(columns, dtype=dtype)
        baseline += (reward - baseline) / dtype(step + 1)
        advantage = reward - share * baseline
        if step % EVERY == 0:
            gradient = -advantage * probability
            gradient[action, which] += advantage
            entropy = -(probability * np.log(np.maximum(probability, np.finfo(dtype).tiny))).sum(0)
            length = np.sqrt((gradient * gradient).sum(0))
            values = (
                probability[best, which],
                (probability * means).sum(0),
                reward,
                entropy,
                length,
            )
            logged.append([value.reshape(4, runs).mean(1) for value in values])
        advantage *= rate
        probability *= advantage
        logits -= probability
        logits[action, which] += advantage
    return np.array(logged, dtype=np.float64)


def python_loop(runs: int, steps: int, arms: int) -> np.ndarray:
    """[logs, 5, 4] the same, run by run and step by step, with vectors of arms."""
    logged = np.zeros((math.ceil(steps / EVERY), 5, 4))
    generator = np.random.default_rng(0)
    for setting, (rate, share) in enumerate(zip(RATES, SHARES, strict=True)):
        for _ in range(runs):
            means = generator.normal(MEAN, 1.0, arms)
            best, logits, baseline = means.argmax(), np.zeros(arms), 0.0
            for step in range(steps):
                weights = np.exp(logits - logits.max())
                probability = weights / weights.sum()
                action = generator.choice(arms, p=probability)
                reward = generator.normal(means[action], 1.0)
                baseline += (reward - baseline) / (step + 1)
                score = -probability
                score[action] += 1
                gradient = (reward - share * baseline) * score
                if step % EVERY == 0:
                    entropy = -(probability * np.log(np.maximum(probability, 1e-300))).sum()
                    row = (
                        probability[best],
                        probability @ means,
                        reward,
                        entropy,
                        np.sqrt(gradient @ gradient),
                    )
                    logged[step // EVERY, :, setting] += row
                logits += rate * gradient
    return logged / runs


def scalar_loop(runs: int, steps: int, arms: int) -> np.ndarray:
    """[logs, 5, 4] the same in Python numbers alone, no NumPy in the loop."""
    logged = np.zeros((math.ceil(steps / EVERY), 5, 4))
    generator = random.Random(0)
    for setting, (rate, share) in enumerate(zip(RATES, SHARES, strict=True)):
        for _ in range(runs):
            means = [generator.gauss(MEAN, 1.0) for _ in range(arms)]
            best, logits, baseline = means.index(max(means)), [0.0] * arms, 0.0
            for step in range(steps):
                top = max(logits)
                weights = [math.exp(logit - top) for logit in logits]
                total = sum(weights)
                probability = [weight / total for weight in weights]
                left, action = generator.random(), 0
                while action < arms - 1 and left >= probability[action]:
                    left -= probability[action]
                    action += 1
                reward = generator.gauss(means[action], 1.0)
                baseline += (reward - baseline) / (step + 1)
                advantage = reward - share * baseline
                if step % EVERY == 0:
                    gradient = [
                        advantage * ((arm == action) - p) for arm, p in enumerate(probability)
                    ]
                    expected = sum(p * mean for p, mean in zip(probability, means, strict=True))
                    entropy = -sum(p * math.log(p) for p in probability if p > 0)
                    row = (
                        probability[best],
                        expected,
                        reward,
                        entropy,
                        math.sqrt(sum(g * g for g in gradient)),
                    )
                    logged[step // EVERY, :, setting] += row
                for arm in range(arms):
                    logits[arm] += rate * advantage * ((arm == action) - probability[arm])
    return logged / runs


def seconds(body: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    body()
    return time.perf_counter() - start


def measure(
    runs: int = 2000, steps: int = 1000, arms: int = 10, repeats: int = 5, device: str = "cpu"
) -> Result:
    """Time all three in turn, `repeats` times; ratios pair by pair.

    Then ours against runs and against arms.
    """
    torch.set_num_threads(1)
    series: dict[str, dict[str, object]] = {}
    facts = []
    few = max(1, runs // 500)
    for name, torch_type, numpy_type in (
        ("float32", torch.float32, np.float32),
        ("float64", torch.float64, np.float64),
    ):
        ours(min(runs, 50), 50, arms, torch_type, device)  # warm-up
        numpy_by_hand(min(runs, 50), 50, arms, numpy_type)
        pairs = [
            (
                seconds(lambda t=torch_type: ours(runs, steps, arms, t, device)),
                seconds(lambda t=numpy_type: numpy_by_hand(runs, steps, arms, t)),
            )  # type: ignore[misc]
            for _ in range(repeats)
        ]
        loop, scalar = (
            seconds(lambda b=body: b(few, steps, arms)) * runs / few
            for body in (python_loop, scalar_loop)
        )  # type: ignore[misc]
        ratio, speedup = [mine / hand for mine, hand in pairs], [loop / mine for mine, _ in pairs]
        series[name] = {
            "ours": [mine for mine, _ in pairs],
            "numpy": [hand for _, hand in pairs],
            "loop": loop,
            "scalar": scalar,
            "ratio": statistics.median(ratio),
            "speedup": statistics.median(speedup),
            "scalar_speedup": statistics.median(scalar / mine for mine, _ in pairs),
        }
        facts += [
            Fact(
                f"Time as a multiple of hand-written NumPy's, {name}, median of {repeats}",
                "this course",
                series[name]["ratio"],
                0.0,
                2.0,
                0.0,
                "below",
            ),  # type: ignore[arg-type]
            Fact(
                f"Times faster than a plain Python loop over runs, {name}",
                "this course",
                series[name]["speedup"],
                0.0,
                60.0,
                0.0,
                "above",
            ),  # type: ignore[arg-type]
        ]
    scaling: dict[str, dict[str, list[float]]] = {
        "runs": {"x": [], "seconds": []},
        "arms": {"x": [], "seconds": []},
    }
    for factor in (1, 2, 4, 8):
        for axis, (many, kinds) in (
            ("runs", (runs // 4 * factor, arms)),
            ("arms", (runs // 4, arms * factor)),
        ):
            best = min(
                seconds(lambda m=many, k=kinds: ours(m, steps // 4, k, torch.float32, device))
                for _ in range(3)
            )  # type: ignore[misc]
            scaling[axis]["x"].append(4 * many if axis == "runs" else kinds)
            scaling[axis]["seconds"].append(best)
    settings = {
        "runs": runs,
        "steps": steps,
        "arms": arms,
        "settings": 4,
        "repeats": repeats,
        "loop_runs": few,
        "threads": 1,
        "device": device,
    }
    return Result(
        name="benchmark_gradient_bandit",
        title=(
            "the gradient bandit through the course's objects, beside NumPy by hand and a Python"
            " loop"
        ),
        settings=settings,
        series={**series, "scaling": scaling},
        facts=facts,
        environment=environment(device),
        caption=(
            f"One core each. The loop was timed on {few} runs per setting and scaled to {runs}."
        ),
    )


def plot(result: Result):  # type: ignore[no-untyped-def]
    """Seconds of the three, and how ours grows with runs and with arms."""
    figure, (bars, runs, arms) = figures.new_figure(1, 3, width=13.0, height=4.2)
    names = {
        "ours": "this course",
        "numpy": "NumPy by hand",
        "loop": "loop over runs",
        "scalar": "… without NumPy",
    }
    for place, name in enumerate(names):
        for shift, kind in enumerate(("float32", "float64")):
            value = float(np.median(result.array(kind, name)))
            bars.barh(
                place + 0.38 * shift - 0.19,
                value,
                0.34,
                color=("#0072b2", "#56b4e9")[shift],
                label=kind if place == 0 else None,
            )
            bars.text(value * 1.1, place + 0.38 * shift - 0.19, f"{value:.2g} s", va="center")
    bars.set_yticks(range(4), list(names.values()))
    bars.set_xscale("log")
    bars.set_xlim(right=bars.get_xlim()[1] * 4)
    bars.invert_yaxis()
    bars.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.6))
    figures.describe(bars, "The same work", "seconds (median)", "")
    for ax, axis, unit in ((runs, "runs", "runs"), (arms, "arms", "arms")):
        x, y = result.array("scaling", axis, "x"), result.array("scaling", axis, "seconds")
        ax.plot(x, y, "o-", color="#0072b2", label="measured")
        slope, start = np.polyfit(x, y, 1)
        figures.expectation(ax, start + slope * x, x, label="straight line")
        ax.set_ylim(bottom=0)
        ax.legend(frameon=False)
        figures.describe(
            ax,
            f"Cost grows in a line with {unit}",
            unit,
            f"seconds for {result.settings['steps'] // 4} steps",
        )
    return figure


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=int, default=2000, help="runs per setting")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("figures"))
    chosen = parser.parse_args()
    start = time.perf_counter()
    found = measure(chosen.runs, repeats=chosen.repeats, device=chosen.device)
    rows = [
        (
            kind,
            *(
                f"{np.median(found.array(kind, name)):.3f}"
                for name in ("ours", "numpy", "loop", "scalar")
            ),
            f"{found.series[kind]['ratio']:.2f}",
            f"{found.series[kind]['speedup']:.0f}",
        )
        for kind in ("float32", "float64")
    ]
    print(
        text_table(
            ("", "ours, s", "NumPy, s", "loop, s", "scalar loop, s", "ours / NumPy", "loop / ours"),
            rows,
        )
    )
    for axis, measured in found.series["scaling"].items():
        print(
            f"{axis}: "
            + ", ".join(
                f"{x:g} → {y:.3f} s"
                for x, y in zip(measured["x"], measured["seconds"], strict=True)
            )
        )
    for path in Result(**{**vars(found), "seconds": time.perf_counter() - start}).save(
        chosen.out, plot(found)
    ):
        print(path)


if __name__ == "__main__":
    main()
