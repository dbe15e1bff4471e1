"""How fast is GRPO training on the tiny language model, beside TRL's GRPOTrainer on the same machine, in the same run?

Both train a transformer of about 340k parameters on two-digit sums in float32 with 64 prompts × 8 completions per rollout and
two updates on each, logging on; TRL's is a GPT-2 configured to the same width, depth, vocabulary and context, with random
weights built here (nothing is downloaded) and a character tokenizer. Rewards vary in both: partial credit per digit, from
random weights. Also the share of the machine's matrix-multiply peak that our training reaches, counting the arithmetic
that is needed. TRL comes with the extra `peers`.

    python -m tests.benchmarks.grpo_training          prints a table, writes benchmark_grpo_training.png and .json
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from course import figures, ladder, replace
from course.device import keep_memory
from course.learner import Learner
from course.noise import Noise
from course.optim import Adam
from course.parts import NoKL
from course.results import Fact, Result, check_writable, environment
from tinylm.model import PRESETS, Transformer, flops_per_token
from tinylm.problem import LanguageModel
from tinylm.tasks import CHARACTERS, DigitCredit, Task, TaskSettings, make

PROMPTS, GROUP, UPDATES = 64, 8, 2


def ours(steps: int, compiled: bool = False) -> tuple[list[float], float, int]:
    """Seconds of each rollout with its two updates, the standard deviation of rewards, and the number of parameters."""
    task, model = make(TaskSettings()), Transformer(PRESETS["small"], (), 0)
    if compiled:
        model.compile()
    problem = LanguageModel(model, task, prompts=PROMPTS, group=GROUP, reward=DigitCredit())
    estimator = replace(ladder.grpo, kl=NoKL())
    learner = Learner(problem, estimator, Adam(1e-4), Noise((), 0), epochs=UPDATES, max_grad_norm=1.0, log_every=1)
    for _ in range(3 if compiled else 1):
        learner.step(log=True)
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        learner.step(log=True)
        times.append(time.perf_counter() - start)
    return times, float(problem.sample(Noise((), 1)).score.std()), model.size


def theirs(steps: int) -> tuple[list[float], float, int]:
    """The same through TRL."""
    from datasets import Dataset
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, TrainerCallback, logging
    from trl import GRPOConfig, GRPOTrainer

    logging.set_verbosity_error()
    task: Task = make(TaskSettings())
    shape = PRESETS["small"]
    words = {character: i for i, character in enumerate(CHARACTERS)} | {"<pad>": len(CHARACTERS), "<end>": len(CHARACTERS) + 1}
    core = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>")
    config = GPT2Config(
        vocab_size=len(words), n_positions=shape.context, n_embd=shape.width, n_layer=shape.layers, n_head=shape.heads,
        n_inner=shape.hidden, bos_token_id=words["<end>"], eos_token_id=words["<end>"], pad_token_id=words["<pad>"],
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config)
    rows = task.train[: PROMPTS * (steps + 2)].tolist()
    text = ["".join(CHARACTERS[token] for token in task.prompt[row].tolist()) for row in rows]
    answers = ["".join(CHARACTERS[token] for token in task.target[row].tolist() if token < len(CHARACTERS)) for row in rows]
    seen: list[float] = []

    def credit(completions: list[str], answer: list[str], **_: Any) -> list[float]:
        values = [sum(a == b for a, b in zip(c, right, strict=False)) / len(right) for c, right in zip(completions, answer, strict=True)]
        seen.append(statistics.pstdev(values))
        return values

    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            marks.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        arguments = GRPOConfig(
            output_dir=folder, use_cpu=not torch.cuda.is_available(), bf16=False, per_device_train_batch_size=PROMPTS * GROUP,
            num_generations=GROUP, num_iterations=UPDATES, steps_per_generation=1, gradient_accumulation_steps=1,
            max_completion_length=task.limit, beta=0.0, learning_rate=1e-4, max_steps=UPDATES * (steps + 1), logging_steps=1, report_to=[],
            save_strategy="no", disable_tqdm=True, gradient_checkpointing=False, loss_type="grpo", shuffle_dataset=False,
        )  # fmt: skip
        trainer = GRPOTrainer(
            model=model, reward_funcs=credit, args=arguments, train_dataset=Dataset.from_dict({"prompt": text, "answer": answers}),
            processing_class=tokenizer, callbacks=[Clock()],
        )  # fmt: skip
        trainer.train()
    ends = marks[UPDATES - 1 :: UPDATES]  # of each rollout; the first one warms up
    return [b - a for a, b in pairwise(ends)], statistics.mean(seen), sum(p.numel() for p in model.parameters())


def peak() -> float:
    """Floating-point operations per second of a large matrix product, the best of several."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    best = 0.0
    for _ in range(12):
        start = time.perf_counter()
        a @ b
        best = max(best, 2 * 1024**3 / (time.perf_counter() - start))
    return best


def needed() -> float:
    """Operations one rollout and its updates need at the least, with every prompt computed once for its group.

    Sampling passes over the prompt and all but the last token of each completion; an update does so forwards (1) and
    backwards (2). Attention counts what a token sees.
    """
    task, shape = make(TaskSettings()), PRESETS["small"]
    width, limit = task.prompt.shape[-1], task.limit
    prompt = sum(flops_per_token(shape, i + 1) for i in range(width))
    completion = sum(flops_per_token(shape, width + i + 1) for i in range(limit - 1))
    return PROMPTS * (prompt + GROUP * completion) * (1 + 3 * UPDATES)


def measure(steps: int, compiled: bool, threads: int) -> Result:
    """Ours and theirs in turn, on the same threads."""
    torch.set_num_threads(threads)
    keep_memory()  # as training does; it serves TRL, too
    top = peak()
    mine, my_spread, my_size = ours(steps)
    fast = ours(steps, True)[0] if compiled else []
    other, their_spread, their_size = theirs(max(3, steps // 4))
    again = ours(steps)[0]
    top = max(top, peak())
    own = statistics.median(mine + again)
    series = {
        "ours": mine + again,
        "compiled": fast,
        "trl": other,
        "ratio": statistics.median(other) / own,
        "compiled_ratio": statistics.median(other) / statistics.median(fast) if fast else float("nan"),
        "roof": PROMPTS * GROUP * top / needed(),
        "completions_per_second": {"ours": PROMPTS * GROUP / own, "trl": PROMPTS * GROUP / statistics.median(other)},
        "peak_flops": top,
        "share_of_peak": needed() / own / top,
        "reward_std": {"ours": my_spread, "trl": their_spread},
        "parameters": {"ours": my_size, "trl": their_size},
    }
    facts = [
        Fact(
            "Rewards vary in both trainings (smaller standard deviation)",
            "this course",
            min(my_spread, their_spread),
            0.0,
            0.0,
            0.0,
            "above",
        ),
        Fact("Times faster than TRL's GRPOTrainer, medians of one run", "this course", series["ratio"], 0.0, 4.0, 0.0, "above"),
        Fact("Share of the matrix-multiply peak, needed arithmetic only", "this course", series["share_of_peak"], 0.0, 0.5, 0.0, "above"),
    ]
    return Result(
        name="benchmark_grpo_training",
        title="GRPO training on the tiny language model beside TRL's trainer",
        settings={"prompts": PROMPTS, "group": GROUP, "updates": UPDATES, "steps": steps, "threads": threads},
        series=series,
        facts=facts,
        environment=environment("cpu"),
        caption=f"Completions per second, medians of one run on {threads} threads; dashed: all needed arithmetic at the speed of the "
        "machine's fastest matrix product, and nothing else.",
    )


def plot(result: Result):  # type: ignore[no-untyped-def]
    """Completions per second."""
    figure, [ax] = figures.new_figure(width=7.0, height=2.6)
    names = {"ours": "this course", "compiled": "… compiled", "trl": "TRL"}
    shown = [name for name in names if len(result.array(name))]
    for place, name in enumerate(shown):
        rate = PROMPTS * GROUP / float(sorted(result.array(name))[len(result.array(name)) // 2])
        ax.barh(place, rate, color={"ours": "#0072b2", "compiled": "#56b4e9", "trl": "#999999"}[name])
        ax.text(rate, place, f" {rate:,.0f}", va="center")
    figures.expectation(ax, x=float(result.array("roof")))
    ax.text(float(result.array("roof")), 1, "the matrix-multiply peak ", ha="right", va="center")
    ax.set_yticks(range(len(shown)), [names[name] for name in shown])
    ax.invert_yaxis()
    ax.margins(x=0.15)
    figures.describe(ax, "GRPO training, 64 prompts × 8, two updates", "completions per second", "")
    return figure


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("figures"))
    chosen = parser.parse_args()
    check_writable(chosen.out)
    found = measure(chosen.steps, chosen.compile, chosen.threads)
    for name in ("completions_per_second", "ratio", "compiled_ratio", "share_of_peak", "peak_flops", "reward_std", "parameters"):
        print(name, found.series[name])
    for path in found.save(chosen.out, plot(found)):
        print(path)


if __name__ == "__main__":
    main()
