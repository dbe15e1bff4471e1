"""How fast is GRPO training on the tiny language model, beside TRL's GRPOTrainer on the same
machine, in the same run?

Both train a transformer of about 340k parameters on two-digit sums in float32 with 64 prompts × 8
completions per rollout and two updates on each, logging on; TRL's is a GPT-2 configured to the same
width, depth, vocabulary and context, with random weights built here (nothing is downloaded) and a
character tokenizer. Twice: from random weights, and from where reinforcement learning begins, a
supervised warm start to 30 % right answers, each model its own. Completions are alike there and
share their beginnings, which ours computes once. Rewards, credit per digit, vary in both. Also the
share of the machine's matrix-multiply peak that our training reaches, counting distinct tokens, and
counting every token of every completion with the prompt once for its group. TRL comes with the
extra `peers`.

    python -m tests.benchmarks.grpo_training          prints a table, writes
    benchmark_grpo_training.png and .json
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from course import ladder, replace
from course.lab import figures
from course.lab.facts import Fact
from course.lab.result import Result, environment
from course.learner import Learner
from course.parts import NoKL
from course.rollout import Rollout
from course.train.device import keep_memory
from course.train.files import check_writable
from course.train.noise import Noise
from course.train.optim import Adam
from tinylm.fast.forward import flops_per_token
from tinylm.fast.packing import pack
from tinylm.model import PRESETS, Transformer
from tinylm.problem import LanguageModel
from tinylm.rewards import DigitCredit
from tinylm.tasks import CHARACTERS, END, Task, TaskSettings, make
from tinylm.training import Training, TrainSettings

PROMPTS, GROUP, UPDATES = 64, 8, 2
STARTS = ("warm", "random")  # a warm start to TARGET, or random weights
TARGET = 0.3  # sampled accuracy
GOAL = 8.0  # times as fast as TRL


@dataclass(frozen=True)
class Measured:
    """Seconds of each rollout with its two updates, the standard deviation of rewards, the number
    of parameters; and for ours the arithmetic of a rollout and its updates in floating-point
    operations, of distinct tokens and of all.
    """

    seconds: list[float]
    spread: float
    size: int
    distinct: float = 0.0
    every: float = 0.0


def schooled(start: str) -> tuple[Task, Transformer]:
    """Our model where training begins."""
    if start == "random":
        return make(TaskSettings()), Transformer(PRESETS["small"], (), 0)
    training = Training(TrainSettings(rollouts=0, warm_target=TARGET, device="cpu"))
    while not training.done:
        training.step()
    return training.task, training.model


def ours(steps: int, start: str, compiled: bool = False) -> Measured:
    """Training through this course."""
    task, model = schooled(start)
    if compiled:
        model.compile()
    problem = LanguageModel(model, task, prompts=PROMPTS, group=GROUP, reward=DigitCredit())
    estimator = replace(ladder.grpo, kl=NoKL())
    learner = Learner(
        problem, estimator, Adam(1e-4), Noise((), 0), epochs=UPDATES, max_grad_norm=1.0, log_every=1
    )
    first = problem.sample(Noise((), 1))
    for _ in range(3 if compiled else 1):
        learner.step(log=True)
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        learner.step(log=True)
        times.append(time.perf_counter() - began)
    last = problem.sample(Noise((), 1))
    distinct, every = [
        statistics.mean(arithmetic(rollout, merge) for rollout in (first, last))
        for merge in (True, False)
    ]
    return Measured(times, float(last.total_reward.std()), model.size, distinct, every)


def arithmetic(rollout: Rollout, merge: bool) -> float:
    """Operations that sampling a rollout and its updates need: one pass forwards, then one forwards
    and one (twice as dear) backwards for each update.

    With `merge` distinct tokens count; without it every token of every completion but the last,
    with the prompt once for its group. In the last block only tokens whose state is read count.
    Attention counts what a token sees.
    """
    packed, _ = pack(rollout.data["prompt"], rollout.data["tokens"], merge=merge)
    rows = enumerate(packed.positions.tolist())
    forwards = sum(
        flops_per_token(PRESETS["small"], position + 1, read=row >= packed.unread)
        for row, position in rows
    )
    return forwards * (1 + 3 * UPDATES)


def theirs(steps: int, start: str) -> Measured:
    """The same through TRL."""
    from datasets import Dataset
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        PreTrainedTokenizerFast,
        TrainerCallback,
        logging,
    )
    from trl import GRPOConfig, GRPOTrainer

    logging.set_verbosity_error()
    task: Task = make(TaskSettings())
    shape = PRESETS["small"]
    words = {character: i for i, character in enumerate(CHARACTERS)} | {
        "<pad>": len(CHARACTERS),
        "<end>": len(CHARACTERS) + 1,
    }
    core = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>")
    config = GPT2Config(
        vocab_size=len(words),
        n_positions=shape.context,
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_inner=shape.hidden,
        bos_token_id=words["<end>"],
        eos_token_id=words["<end>"],
        pad_token_id=words["<pad>"],
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config)
    if start == "warm":
        _school(model, task, words)
    rows = task.train[: PROMPTS * (steps + 2)].tolist()
    text = ["".join(CHARACTERS[token] for token in task.prompt[row].tolist()) for row in rows]
    answers = [
        "".join(CHARACTERS[token] for token in task.target[row].tolist() if token < len(CHARACTERS))
        for row in rows
    ]
    seen: list[float] = []

    def credit(completions: list[str], answer: list[str], **_: Any) -> list[float]:
        values = [
            sum(a == b for a, b in zip(c, right, strict=False)) / len(right)
            for c, right in zip(completions, answer, strict=True)
        ]
        seen.append(statistics.pstdev(values))
        return values

    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            marks.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        arguments = GRPOConfig(
            output_dir=folder,
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            per_device_train_batch_size=PROMPTS * GROUP,
            num_generations=GROUP,
            num_iterations=UPDATES,
            steps_per_generation=1,
            gradient_accumulation_steps=1,
            max_completion_length=task.limit,
            beta=0.0,
            learning_rate=1e-4,
            max_steps=UPDATES * (steps + 1),
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            gradient_checkpointing=False,
            loss_type="grpo",
            shuffle_dataset=False,
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=credit,
            args=arguments,
            train_dataset=Dataset.from_dict({"prompt": text, "answer": answers}),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        trainer.train()
    ends = marks[UPDATES - 1 :: UPDATES]  # of each rollout; the first one warms up
    return Measured(
        [b - a for a, b in pairwise(ends)],
        statistics.mean(seen),
        sum(p.numel() for p in model.parameters()),
    )


def _school(model: Any, task: Task, words: dict[str, int]) -> None:
    """The warm start of TRL's model: likelihood of the right answers, until it gives them with a
    probability of TARGET.
    """
    target = torch.where(task.target == END, words["<end>"], task.target)
    whole, width = torch.cat([task.prompt, target], -1), task.prompt.shape[-1]
    optimizer, generator = (
        torch.optim.Adam(model.parameters(), 1e-3),
        torch.Generator().manual_seed(0),
    )
    right = 0.0
    while right < TARGET:
        rows = whole[task.train[torch.randint(len(task.train), (256,), generator=generator)]]
        log_prob = (
            model(rows)
            .logits[:, width - 1 : -1]
            .log_softmax(-1)
            .gather(-1, rows[:, width:].unsqueeze(-1))
            .squeeze(-1)
        )
        right = 0.9 * right + 0.1 * float(log_prob.detach().sum(-1).exp().mean())
        optimizer.zero_grad()
        (-log_prob.mean()).backward()
        optimizer.step()


def peak() -> float:
    """Floating-point operations per second of a large matrix product, the best of several."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    best = 0.0
    for _ in range(12):
        start = time.perf_counter()
        a @ b
        best = max(best, 2 * 1024**3 / (time.perf_counter() - start))
    return best


def measure(steps: int, compiled: bool, threads: int) -> Result:
    """Ours and theirs in turn, on the same threads."""
    torch.set_num_threads(threads)
    keep_memory()  # as training does; it serves TRL, too
    found: dict[str, Any] = {}
    for start in STARTS:
        top = peak()
        before = ours(steps, start)
        fast = ours(steps, start, True).seconds if compiled else []
        other = theirs(max(3, steps // 4), start)
        after = ours(steps, start)
        top = max(top, peak())
        seconds = before.seconds + after.seconds
        own, trl = statistics.median(seconds), statistics.median(other.seconds)
        found[start] = {
            "ours": seconds,
            "compiled": fast,
            "trl": other.seconds,
            "ratio": trl / own,
            "compiled_ratio": trl / statistics.median(fast) if fast else float("nan"),
            "completions_per_second": {"ours": PROMPTS * GROUP / own, "trl": PROMPTS * GROUP / trl},
            "peak_flops": top,
            "operations": {"distinct": before.distinct, "every": before.every},
            "share_of_peak": {
                "distinct": before.distinct / own / top,
                "every": before.every / own / top,
            },
            "reward_std": {"ours": before.spread, "trl": other.spread},
            "parameters": {"ours": before.size, "trl": other.size},
        }
    spread = min(value for start in STARTS for value in found[start]["reward_std"].values())
    warm, cold = (found[start] for start in STARTS)
    return Result(
        name="benchmark_grpo_training",
        title="GRPO training on the tiny language model beside TRL's trainer",
        settings={
            "prompts": PROMPTS,
            "group": GROUP,
            "updates": UPDATES,
            "steps": steps,
            "threads": threads,
            "warm_target": TARGET,
        },
        series=found,
        facts=[
            Fact.above(
                "Rewards vary in all trainings (smallest standard deviation)",
                "this course",
                spread,
                0.0,
            ),
            Fact.above(
                "Times faster than TRL's GRPOTrainer from the warm start, medians of one run",
                "this course",
                warm["ratio"],
                GOAL,
            ),
            Fact.above(
                "Times faster than TRL's GRPOTrainer from random weights, medians of one run",
                "this course",
                cold["ratio"],
                4.0,
            ),
            Fact.above(
                "Arithmetic of all completions' tokens per second from the warm start, as a share"
                " of the matrix-multiply peak",
                "this course",
                warm["share_of_peak"]["every"],
                0.5,
            ),
        ],
        environment=environment("cpu"),
        caption=(
            f"Completions per second, medians of one run on {threads} threads. From the warm start"
            " completions share their beginnings, which this course computes once."
        ),
    )


def plot(result: Result):  # type: ignore[no-untyped-def]
    """Completions per second, from both starts."""
    figure, axes = figures.new_figure(1, 2, width=11.0, height=2.6)
    names = {"ours": "this course", "compiled": "… compiled", "trl": "TRL"}
    colours = {"ours": "#0072b2", "compiled": "#56b4e9", "trl": "#999999"}
    for ax, start in zip(axes, STARTS, strict=True):
        shown = [name for name in names if len(result.array(start, name))]
        rates = {
            name: PROMPTS * GROUP / statistics.median(result.array(start, name).tolist())
            for name in shown
        }
        for place, name in enumerate(shown):
            ax.barh(place, rates[name], color=colours[name])
            times = f"  ({rates[name] / rates['trl']:.1f} ×)" if name != "trl" else ""
            ax.text(rates[name], place, f"  {rates[name]:,.0f}{times}", va="center")
        if start == "warm":
            figures.expectation(ax, x=GOAL * rates["trl"])
            ax.text(GOAL * rates["trl"], len(shown) - 1, f" goal, {GOAL:g} × TRL", va="center")
        ax.set_yticks(range(len(shown)), [names[name] for name in shown])
        ax.invert_yaxis()
        ax.set_xlim(0, 1.5 * max(rates.values()))
        title = "from the warm start, 30 % right" if start == "warm" else "from random weights"
        figures.describe(ax, f"GRPO training {title}", "completions per second", "")
    return figure


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("figures"))
    chosen = parser.parse_args()
    check_writable(chosen.out)
    found = measure(chosen.steps, chosen.compile, chosen.threads)
    for start in STARTS:
        for name, value in found.series[start].items():
            if name not in ("ours", "trl", "compiled"):
                print(start, name, value)
    for path in found.save(chosen.out, plot(found)):
        print(path)


if __name__ == "__main__":
    main()
