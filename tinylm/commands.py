"""The commands on a model: `python -m tinylm train`, `eval` and `sample`."""

from __future__ import annotations

import dataclasses
import inspect
import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from course.errors import CourseError, require
from course.lab.ablation import resolve_rungs, with_settings
from course.lab.statistics import mean_share_interval, share_interval
from course.lab.terminal import OK, Parser, Progress, duration, guarded, text_table
from course.train.device import pick_device
from course.train.files import check_writable
from course.train.noise import Noise
from tinylm.evaluate import accuracy, pass_at_k
from tinylm.rewards import REWARDS
from tinylm.sampling import check_sampling, sample
from tinylm.tasks import decode, encode
from tinylm.training import CHECKPOINT, METRICS, Training, TrainSettings, run

COMMANDS = ("train", "eval", "sample")
OVERVIEW = """python -m tinylm train   train a model: warm start, then RL (--help: settings)
python -m tinylm eval    its accuracy on held-out questions
python -m tinylm sample  what it answers, and how sure it is"""
LATEST = Path("runs/latest")
OWN_RUNG = "FILE.py:NAME of a rung of your own, where the training is one of it"


def main(argv: Sequence[str]) -> int:
    """Run one of the commands; returns the exit status."""
    return guarded(lambda: _main(list(argv)))


def _main(argv: list[str]) -> int:
    parser = _parser()
    chosen = parser.parse_args(argv)
    return {"train": _train, "eval": _eval, "sample": _sample}[chosen.command](chosen)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m tinylm",
        description="Train, evaluate and sample from a tiny language model that does arithmetic.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    train = commands.add_parser(
        "train",
        help="from nothing to a trained model: warm start, then any rung",
        description=_train.__doc__,
    )
    train.add_argument(
        "--out",
        type=Path,
        default=LATEST,
        metavar="DIR",
        help=f"checkpoint and metrics (default {LATEST})",
    )
    train.add_argument(
        "--resume",
        action="store_true",
        help="go on with the training in --out, to the bit as if never stopped",
    )
    train.add_argument(
        "--only",
        choices=("warm", "rl"),
        help="the warm start alone, or reinforcement learning from random weights",
    )
    train.add_argument(
        "--start",
        type=Path,
        metavar="DIR",
        help="reinforcement learning alone, from the model of that training",
    )
    train.add_argument(
        "--save-every",
        type=int,
        default=25,
        metavar="N",
        help="steps between checkpoints (default 25)",
    )
    for f in dataclasses.fields(TrainSettings):
        switch = (
            {"nargs": "?", "const": "true"}
            if isinstance(f.default, bool) or "bool" in str(f.type)
            else {}
        )
        about = f"{_notes().get(f.name, '')} (default {f.default})".replace("%", "%%")
        train.add_argument(
            f"--{f.name.replace('_', '-')}",
            metavar=str(f.default),
            help=about,
            dest=f"set_{f.name}",
            **switch,  # type: ignore[arg-type]
        )

    evaluate = commands.add_parser(
        "eval", help="accuracy on held-out questions, with intervals", description=_eval.__doc__
    )
    evaluate.add_argument(
        "--samples",
        type=int,
        default=16,
        metavar="N",
        help="samples per question, for pass@k (default 16)",
    )
    evaluate.add_argument(
        "--questions",
        type=int,
        default=1000,
        metavar="N",
        help="held-out questions at the most (default 1000)",
    )
    show = commands.add_parser(
        "sample", help="questions, completions, rewards, probabilities", description=_sample.__doc__
    )
    show.add_argument(
        "questions",
        nargs="*",
        metavar="QUESTION",
        help="such as 12+34= (default: some held-out ones)",
    )
    show.add_argument(
        "--samples", type=int, default=3, metavar="N", help="completions per question (default 3)"
    )
    for command in (evaluate, show):
        command.add_argument(
            "--from",
            type=Path,
            default=LATEST,
            metavar="DIR",
            dest="folder",
            help=f"a training's folder (default {LATEST})",
        )
        command.add_argument(
            "--temperature", type=float, default=1.0, metavar="X", help="of sampling (default 1)"
        )
        command.add_argument(
            "--top-k", type=int, metavar="K", help="sample among the K most probable tokens"
        )
        command.add_argument(
            "--seed", type=int, default=0, metavar="N", help="of the samples (default 0)"
        )
        command.add_argument(
            "--device",
            metavar="NAME",
            help="cpu, cuda, cuda:1 … (default: the GPU where there is one)",
        )
        command.add_argument("--rung", metavar="FILE.py:NAME", help=OWN_RUNG)
    return parser


def _notes() -> dict[str, str]:
    """What stands behind # on the line of a training setting."""
    return dict(
        re.findall(
            r"^\s+(\w+)\s*:[^#\n]*#\s*(.+?)\s*$", inspect.getsource(TrainSettings), re.MULTILINE
        )
    )


# ---------------------------------------------------------------- train


def _train(chosen: Namespace) -> int:
    """Warm start (supervised, to --warm-target), then reinforcement learning with --rung.

    Without options: two-digit sums, GRPO.
    """
    require(chosen.save_every > 0, "--save-every", chosen.save_every, "a whole number > 0")
    given = {
        name[4:]: value
        for name, value in vars(chosen).items()
        if name.startswith("set_") and value is not None
    }
    training = _resumed(chosen, given) if chosen.resume else _fresh(chosen, given)
    folder = check_writable(chosen.out)
    if not chosen.resume and (folder / CHECKPOINT).exists():
        print(f"this replaces the training in {folder}")
    settings = training.settings
    print(
        f"{settings.runs} × {settings.preset} model, {training.model.size:,} parameters, on"
        f" {settings.device}; → {folder}",
        flush=True,
    )
    show = _Bars(training)
    try:
        seconds = run(training, folder, save_every=chosen.save_every, show=show.row, tick=show.tick)
    finally:
        show.progress.close()
    right = accuracy(training.model, training.task).mean(-1)
    shares = ", ".join(f"{100 * share:.1f} %" for share in right.flatten().tolist())
    print(
        f"greedy answers to {len(training.task.held_out)} held-out questions: {shares} right;"
        f" {duration(seconds)} of training"
    )
    print(f"wrote {folder / CHECKPOINT} and {folder / METRICS}")
    return OK


def _fresh(chosen: Namespace, given: dict[str, str]) -> Training:
    """A training from its beginning, or from the model of another one."""
    both = chosen.start is not None and chosen.only is not None
    require(not both, "--start", f"--only {chosen.only} as well", "one of the two")
    if "rung" in given:
        names = resolve_rungs(given["rung"])
        require(len(names) == 1, "--rung", given["rung"], "one name")
        given["rung"] = names[0]
    if chosen.only == "warm":
        given["rollouts"] = "0"
    if chosen.only == "rl" or chosen.start is not None:
        given["warm_target"] = "0"
    try:
        settings = with_settings(
            TrainSettings(), [f"{name}={value}" for name, value in given.items()]
        )
    except CourseError as error:
        raise CourseError(str(error).replace("--set ", "--")) from None
    training = Training(settings)
    if chosen.start is not None:
        training.adopt(chosen.start / CHECKPOINT)
    return training


def _resumed(chosen: Namespace, given: dict[str, str]) -> Training:
    """The training in --out; only its device may be another one, and a rung of one's own has to be
    made known again.
    """
    others = [f"--{name}" for name in given if name not in ("device", "rung")]
    others += [f"--{name}" for name in ("only", "start") if getattr(chosen, name) is not None]
    require(
        not others,
        "--resume",
        " ".join(others),
        "no other settings: those of the checkpoint count (--device may change)",
    )
    names = resolve_rungs(given["rung"]) if "rung" in given else ()
    training = Training.load(
        chosen.out / CHECKPOINT, str(pick_device(given["device"])) if "device" in given else None
    )
    require(
        names in ((), (training.settings.rung,)),
        "--rung",
        given.get("rung"),
        f"{training.settings.rung}, which was trained with",
    )
    return training


class _Bars:
    """Progress with the time left: the warm start's bar is filled by its accuracy, that of
    reinforcement learning by rollouts.
    """

    def __init__(self, training: Training) -> None:
        self.progress = Progress()
        self.bars: dict[str, Any] = {}
        self.phase = training.phase
        self.open(training)

    def open(self, now: Training) -> None:
        """The bar of the phase that begins."""
        self.phase = now.phase
        if now.phase == "warm":
            bar = self.progress.bar(
                round(100 * now.settings.warm_target), "warm start, % of samples right"
            )
            bar.unit = " %"
        elif now.phase == "train":
            bar = self.progress.bar(now.settings.rollouts, now.settings.rung)
            bar.unit = " rollouts"
            bar.initial = bar.n = (
                now.learner.steps
            )  # what a resumed training has behind it took no time now
        else:
            return
        bar.refresh()
        self.bars[now.phase] = bar

    def row(self, row: dict[str, Any]) -> None:
        """A row of the log: its numbers beside the bar."""
        bar = self.bars[row["phase"]]
        bar.set_postfix(
            {
                name: _short(row[name])
                for name in ("cross_entropy", "reward", "entropy", "accuracy")
                if name in row
            },
            refresh=False,
        )
        if "warm_accuracy" in row:
            least = (
                row["warm_accuracy"]
                if isinstance(row["warm_accuracy"], float)
                else min(row["warm_accuracy"])
            )
            bar.update(max(0.0, min(bar.total, round(100 * least, 1)) - bar.n))
            self.reached, self.after = _short(row["warm_accuracy"]), row["step"]

    def tick(self, now: Training) -> None:
        """One step was taken."""
        if self.phase == "train":
            self.bars["train"].update(1)
        if now.phase != self.phase:
            self.bars[self.phase].close()
            if self.phase == "warm":
                print(
                    f"warm start: {self.reached} of samples right after {self.after} steps",
                    flush=True,
                )
            self.open(now)


def _short(value: float | list[float]) -> str:
    values = value if isinstance(value, list) else [value]
    return " ".join(f"{number:.3f}" for number in values[:4]) + (" …" if len(values) > 4 else "")


# ---------------------------------------------------------------- eval and sample


def _load(chosen: Namespace) -> Training:
    check_sampling(chosen.temperature, chosen.top_k)
    require(chosen.samples > 0, "--samples", chosen.samples, "a whole number > 0")
    require(chosen.seed >= 0, "--seed", chosen.seed, "a whole number ≥ 0")
    if chosen.rung is not None:
        resolve_rungs(chosen.rung)
    return Training.load(chosen.folder / CHECKPOINT, str(pick_device(chosen.device)))


def _eval(chosen: Namespace) -> int:
    """Greedy and sampled accuracy with a 95 % interval, pass@k, and accuracy by difficulty, on
    held-out questions.
    """
    training = _load(chosen)
    require(chosen.questions > 0, "--questions", chosen.questions, "a whole number > 0")
    task, model, samples = training.task, training.model, chosen.samples
    rows = task.held_out[
        torch.linspace(0, len(task.held_out) - 1, min(chosen.questions, len(task.held_out))).long()
    ]
    noise = Noise(model.runs, chosen.seed, device=training.settings.device)
    greedy = accuracy(model, task, questions=rows)
    options = {"temperature": chosen.temperature, "top_k": chosen.top_k}
    sampled = accuracy(
        model,
        task,
        noise,
        questions=rows,
        samples=samples,
        batch=max(1, 4096 // samples),
        **options,
    )
    table: list[tuple[str, ...]] = []
    for number in range(training.settings.runs):
        best, drawn = (values.reshape(-1, len(rows))[number].cpu() for values in (greedy, sampled))
        table.append(
            (
                f"model {number}",
                "greedy",
                *_written(float(best.mean()), share_interval(int(best.sum()), len(best))),
            )
        )
        table.append(
            ("", "sampled", *_written(float(drawn.mean()), mean_share_interval(drawn, samples)))
        )
        for k in (k for k in (2, 4, 8, 16, 32, 64) if k <= samples):
            chance = pass_at_k((drawn * samples).round(), samples, k)
            table.append(
                (
                    "",
                    f"pass@{k}",
                    *_written(float(chance.mean()), mean_share_interval(chance, samples // k)),
                )
            )
        hard = task.difficulty[rows].cpu()
        for level in hard.unique().tolist():
            here = best[hard == level]
            share = _written(float(here.mean()), share_interval(int(here.sum()), len(here)))
            table.append(("", f"greedy, difficulty {level}", *share, f"{len(here)} questions"))
    top = f", top-{chosen.top_k}" if chosen.top_k else ""
    print(
        f"{len(rows)} held-out questions, {samples} samples each at temperature"
        f" {chosen.temperature:g}{top}"
    )
    print(text_table(("", "", "accuracy", "95 % interval", ""), [(*row, "")[:5] for row in table]))
    return OK


def _written(share: float, between: tuple[float, float]) -> tuple[str, str]:
    return f"{share:.3f}", f"{between[0]:.3f} to {between[1]:.3f}"


def _sample(chosen: Namespace) -> int:
    """Show questions, completions with their rewards, and the probability of each token (of the
    first model, if there are several).
    """
    training = _load(chosen)
    task, model = training.task, training.model
    prompts = [encode(question) for question in chosen.questions]
    width = task.prompt.shape[-1]
    for text, tokens in zip(chosen.questions, prompts, strict=True):
        if len(tokens) != width:
            raise CourseError(
                f"question: got {text!r} of {len(tokens)} characters; allowed is {width}, such as"
                f" {decode(task.prompt[0].tolist())!r}"
            )
    if prompts:
        known = task.prompt.cpu()
        matches = [
            (known == torch.tensor(tokens)).all(-1).nonzero().flatten().tolist()
            for tokens in prompts
        ]
        for text, found in zip(chosen.questions, matches, strict=True):
            require(len(found) > 0, "question", text, "one that the task knows the answer of")
        rows = torch.tensor([found[0] for found in matches], device=task.prompt.device)
    else:
        rows = task.held_out[:: max(1, len(task.held_out) // 5)][:5]
    noise = Noise(model.runs, chosen.seed, device=training.settings.device)
    prompt = task.prompt[rows].expand(*model.runs, len(rows), width)
    made = sample(
        model,
        prompt,
        chosen.samples,
        task.limit,
        noise,
        temperature=chosen.temperature,
        top_k=chosen.top_k,
    )
    question = rows.unsqueeze(-1).expand(made.tokens.shape[:-1])
    reward = REWARDS[training.settings.reward](made.tokens, question, task)
    first = (0,) * len(model.runs)
    table = []
    for i, row in enumerate(rows.tolist()):
        for g in range(chosen.samples):
            tokens, chance = (
                made.tokens[first][i, g].tolist(),
                made.log_prob[first][i, g].exp().tolist(),
            )
            kept = made.mask[first][i, g].tolist()
            spelled = " ".join(
                f"{decode([t]) or '⏎'}:{p:.2f}"
                for t, p, k in zip(tokens, chance, kept, strict=True)
                if k
            )
            asked = decode(task.prompt[row].tolist()) if g == 0 else ""
            table.append(
                (
                    asked,
                    decode(task.target[row].tolist()) if g == 0 else "",
                    decode(tokens),
                    f"{reward[first][i, g]:g}",
                    spelled,
                )
            )
    print(
        text_table(
            (
                "question",
                "expected",
                "completion",
                "reward",
                "probability of each token (⏎: the end)",
            ),
            table,
        )
    )
    return OK


__all__ = ["COMMANDS", "OVERVIEW", "main"]
