"""The commands on a model: `python -m tinylm train`, `eval` and `sample`."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from course.ablation import resolve_rungs, with_settings
from course.device import pick_device
from course.errors import CourseError, require
from course.noise import Noise
from course.results import check_writable
from course.terminal import OK, Parser, duration, guarded, text_table
from tinylm.evaluate import accuracy, pass_at_k, wilson
from tinylm.sampler import check_sampling, sample
from tinylm.tasks import REWARDS, decode, encode
from tinylm.train import Training, TrainSettings, run

COMMANDS = ("train", "eval", "sample")
CHECKPOINT = "checkpoint.safetensors"


def main(argv: Sequence[str]) -> int:
    """Run one of the commands; returns the exit status."""
    return guarded(lambda: _main(list(argv)))


def _main(argv: list[str]) -> int:
    parser = _parser()
    chosen = parser.parse_args(argv)
    return {"train": _train, "eval": _eval, "sample": _sample}[chosen.command](chosen)


def _parser() -> Parser:
    parser = Parser(prog="python -m tinylm", description="Train, evaluate and sample from a tiny language model that does arithmetic.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    train = commands.add_parser("train", help="from nothing to a trained model: warm start, then any rung", description=_train.__doc__)
    train.add_argument("--out", type=Path, default=Path("runs/latest"), metavar="DIR", help="checkpoint and metrics (default runs/latest)")
    train.add_argument("--resume", action="store_true", help="go on with the checkpoint in --out, to the bit as if never stopped")
    train.add_argument("--only", choices=("warm", "train"), help="the warm start alone, or reinforcement learning alone")
    train.add_argument("--save-every", type=int, default=25, metavar="N", help="steps between checkpoints (default 25)")
    for name, default, about in _fields():
        train.add_argument(f"--{name.replace('_', '-')}", metavar=default, help=f"{about} (default {default})", dest=f"set_{name}")

    evaluate = commands.add_parser("eval", help="accuracy on held-out questions, with intervals", description=_eval.__doc__)
    evaluate.add_argument("--samples", type=int, default=16, metavar="N", help="samples per question, for pass@k (default 16)")
    evaluate.add_argument("--questions", type=int, default=1000, metavar="N", help="held-out questions at the most (default 1000)")
    show = commands.add_parser("sample", help="questions, completions, rewards, probabilities", description=_sample.__doc__)
    show.add_argument("questions", nargs="*", metavar="QUESTION", help="such as 12+34= (default: some held-out ones)")
    show.add_argument("--samples", type=int, default=3, metavar="N", help="completions per question (default 3)")
    for command in (evaluate, show):
        command.add_argument("--from", type=Path, default=Path("runs/latest"), metavar="DIR", dest="folder", help="a training's folder")
        command.add_argument("--temperature", type=float, default=1.0, help="of sampling (default 1)")
        command.add_argument("--top-k", type=int, help="sample among the k most probable tokens")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--device", help="cpu, cuda or auto")
    return parser


def _fields() -> list[tuple[str, str, str]]:
    """Name, default and comment of every training setting."""
    notes = dict(re.findall(r"^\s+(\w+)\s*:[^#\n]*#\s*(.+?)\s*$", inspect.getsource(TrainSettings), re.MULTILINE))
    return [(f.name, str(f.default), notes.get(f.name, "").replace("%", "%%")) for f in dataclasses.fields(TrainSettings)]


# ---------------------------------------------------------------- train


def _train(chosen: Namespace) -> int:
    """Warm start (supervised, to --warm-target), then reinforcement learning with --rung. Without options: two-digit sums, GRPO."""
    require(chosen.save_every > 0, "--save-every", chosen.save_every, "a whole number > 0")
    folder = check_writable(chosen.out)
    given = {name[4:]: value for name, value in vars(chosen).items() if name.startswith("set_") and value is not None}
    if chosen.resume:
        require(
            not given and not chosen.only, "--resume", ", ".join(given) or chosen.only, "no other settings: those of the checkpoint count"
        )
        training = Training.load(folder / CHECKPOINT)
    else:
        training = Training(_settings(given, chosen.only))
        (folder / CHECKPOINT).unlink(missing_ok=True)
        (folder / "metrics.jsonl").unlink(missing_ok=True)
    settings = training.settings
    print(
        f"{settings.runs} × {settings.preset} model, {training.model.size:,} parameters, {settings.rung}, on {settings.device}; → {folder}"
    )

    bars: dict[str, Any] = {}

    def tick(now: Training) -> None:
        phase = "warm" if now.phase == "warm" else "train"
        if phase not in bars:
            total = None if phase == "warm" else settings.rollouts
            bars[phase] = tqdm(total=total, desc={"warm": "warm start", "train": settings.rung}[phase], mininterval=0.5, leave=True)
            bars[phase].update(now.learner.steps - 1)
        bars[phase].update(1)

    def show(row: dict[str, Any]) -> None:
        phase = "warm" if row["phase"] == "warm" else "train"
        if phase in bars:
            bars[phase].set_postfix({name: f"{row[name]:.3g}" for name in ("reward", "entropy") if name in row and phase == "train"})

    try:
        seconds = run(training, folder, save_every=chosen.save_every, show=show, tick=tick)
    finally:
        for bar in bars.values():
            bar.close()
    right = accuracy(training.model, training.task).mean(-1)
    lines = ", ".join(f"{100 * share:.1f} %" for share in right.flatten().tolist())
    print(f"greedy accuracy on {len(training.task.held_out)} held-out questions: {lines}; {duration(seconds)} of training")
    print(f"wrote {folder / CHECKPOINT} and {folder / 'metrics.jsonl'}")
    return OK


def _settings(given: dict[str, str], only: str | None) -> TrainSettings:
    if "rung" in given:
        given["rung"] = resolve_rungs(given["rung"])[0]
    if "device" in given:
        given["device"] = str(pick_device(given["device"]))
    if only == "warm":
        given["rollouts"] = "0"
    if only == "train":
        given["warm_target"] = "0"
    hints = typing.get_type_hints(TrainSettings)
    unknown_fields = [name for name in given if name not in hints]
    require(not unknown_fields, "settings", unknown_fields, ", ".join(hints))
    return with_settings(TrainSettings(), [f"{name}={value}" for name, value in given.items()])


# ---------------------------------------------------------------- eval and sample


def _load(chosen: Namespace) -> Training:
    check_sampling(chosen.temperature, chosen.top_k)
    require(chosen.samples > 0, "--samples", chosen.samples, "a whole number > 0")
    require(chosen.seed >= 0, "--seed", chosen.seed, "a whole number ≥ 0")
    device = None if chosen.device is None else str(pick_device(chosen.device))
    return Training.load(chosen.folder / CHECKPOINT, device)


def _eval(chosen: Namespace) -> int:
    """Greedy and sampled accuracy with a 95 % interval, pass@k, and accuracy by difficulty, on held-out questions."""
    training = _load(chosen)
    require(chosen.questions > 0, "--questions", chosen.questions, "a whole number > 0")
    task, model, samples = training.task, training.model, chosen.samples
    rows = task.held_out[torch.linspace(0, len(task.held_out) - 1, min(chosen.questions, len(task.held_out))).long()]
    noise = Noise(model.runs, chosen.seed, device=training.settings.device)
    greedy = accuracy(model, task, questions=rows)
    options = {"temperature": chosen.temperature, "top_k": chosen.top_k}
    sampled = accuracy(model, task, noise, questions=rows, samples=samples, batch=max(1, 4096 // samples), **options)
    table = []
    for run_number in range(training.settings.runs):
        best, drawn = (values.reshape(-1, len(rows))[run_number] for values in (greedy, sampled))
        low, high = wilson(float(best.sum()), len(rows))
        table.append((f"model {run_number}", "greedy", f"{best.mean():.3f}", f"{low:.3f} to {high:.3f}"))
        table.append(("", "sampled", *_mean_interval(drawn)))
        for k in (k for k in (2, 4, 8, 16, 32) if k <= samples):
            chance = pass_at_k((drawn * samples).round(), samples, k)
            table.append(("", f"pass@{k}", *_mean_interval(chance)))
        hard = task.difficulty[rows]
        for level in hard.unique().tolist():
            here = best[hard == level]
            low, high = wilson(float(here.sum()), len(here))
            table.append(("", f"greedy, difficulty {level}", f"{here.mean():.3f}", f"{low:.3f} to {high:.3f}   ({len(here)} questions)"))
    print(
        f"{len(rows)} held-out questions, {samples} samples each at temperature {chosen.temperature:g}"
        + (f", top-{chosen.top_k}" if chosen.top_k else "")
    )
    print(text_table(("", "", "accuracy", "95 % interval"), table))
    return OK


def _mean_interval(values: torch.Tensor) -> tuple[str, str]:
    """The mean over questions and its 95 % interval, as text."""
    mean, half = float(values.mean()), 1.96 * float(values.std()) / len(values) ** 0.5
    return f"{mean:.3f}", f"{mean - half:.3f} to {mean + half:.3f}"


def _sample(chosen: Namespace) -> int:
    """Show questions, completions with their rewards, and the probability of each token."""
    training = _load(chosen)
    task, model = training.task, training.model
    prompts = [encode(question) for question in chosen.questions]
    width = task.prompt.shape[-1]
    for text, tokens in zip(chosen.questions, prompts, strict=True):
        if len(tokens) != width:
            raise CourseError(
                f"question: got {text!r} of {len(tokens)} characters; allowed is {width}, such as {decode(task.prompt[0].tolist())!r}"
            )
    if prompts:
        known = task.prompt.cpu()
        matches = [(known == torch.tensor(tokens)).all(-1).nonzero().flatten().tolist() for tokens in prompts]
        for text, found in zip(chosen.questions, matches, strict=True):
            require(len(found) > 0, "question", text, "one that the task knows the answer of")
        rows = torch.tensor([found[0] for found in matches], device=task.prompt.device)
    else:
        rows = task.held_out[:: max(1, len(task.held_out) // 5)][:5]
    noise = Noise(model.runs, chosen.seed, device=training.settings.device)
    prompt = task.prompt[rows].expand(*model.runs, len(rows), width)
    made = sample(model, prompt, chosen.samples, task.limit, noise, temperature=chosen.temperature, top_k=chosen.top_k)
    question = rows.unsqueeze(-1).expand(made.tokens.shape[:-1])
    reward = REWARDS[training.settings.reward](made.tokens, question, task)
    first = (0,) * len(model.runs)
    table = []
    for i, row in enumerate(rows.tolist()):
        for g in range(chosen.samples):
            tokens, chance = made.tokens[first][i, g].tolist(), made.log_prob[first][i, g].exp().tolist()
            kept = made.mask[first][i, g].tolist()
            spelled = " ".join(f"{decode([t]) or '⏎'}:{p:.2f}" for t, p, k in zip(tokens, chance, kept, strict=True) if k)
            asked = decode(task.prompt[row].tolist()) if g == 0 else ""
            table.append((asked, decode(task.target[row].tolist()) if g == 0 else "", decode(tokens), f"{reward[first][i, g]:g}", spelled))
    print(text_table(("question", "expected", "completion", "reward", "probability of each token (⏎: the end)"), table))
    return OK


__all__ = ["COMMANDS", "main"]
