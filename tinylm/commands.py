"""The commands `course tinylm train`, `eval` and `sample`; `python -m tinylm` is the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from course.errors import CourseError, require, unknown
from course.lab.command import HELP
from course.lab.command import command as ablation_command
from course.lab.places import names
from course.lab.settings import Checked, given, named, option, read
from course.lab.statistics import mean_share_interval, share_interval
from course.lab.terminal import OK, Progress, duration, guarded, text_table
from course.train.device import keep_memory, pick_device
from course.train.noise import Noise
from tinylm.board import Board
from tinylm.evaluate import accuracy, pass_at_k
from tinylm.folder import CHECKPOINT, METRICS, run
from tinylm.rewards import REWARDS
from tinylm.sampling import check_sampling, sample
from tinylm.tasks import decode, encode
from tinylm.training import Training, TrainSettings

ABLATIONS = "tinylm.ablations"
MAY_CHANGE = ("out", "resume", "save_every", "device", "rung", "tensorboard")  # beside --resume
OVERVIEW = """course tinylm train   train a model: warm start, then RL (--help: settings)
course tinylm eval    its accuracy on held-out questions
course tinylm sample  what it answers, and how sure it is"""
LATEST = Path("runs/latest")
MOST_SAMPLES = 10_000  # per question


def main(argv: Sequence[str]) -> int:
    """Run a command in its own process and return the exit status (see `guarded`)."""
    return guarded(lambda: command("python -m tinylm", argv))


def command(prog: str, argv: Sequence[str]) -> int:
    """Train, evaluate, sample, or run an ablation; without a name, list commands and ablations."""
    keep_memory()
    if argv and argv[0] in COMMANDS:
        return COMMANDS[argv[0]](f"{prog} {argv[0]}", argv[1:])
    if argv and argv[0] not in HELP and argv[0] not in (known := names(ABLATIONS)):
        raise unknown("command or ablation", argv[0], [*COMMANDS, *known])
    status = ablation_command(ABLATIONS, prog, argv)
    if not argv or argv[0] in HELP:
        print(f"\n{OVERVIEW}")
    return status


# ---------------------------------------------------------------- train


@dataclass(frozen=True)
class Train(TrainSettings):
    """Warm start (supervised, to --warm-target), then reinforcement learning with --rung.

    Without options: two-digit sums, GRPO.
    """

    out: Path = LATEST  # folder for the checkpoint and the metrics
    resume: bool = False  # continue the training in --out, bit for bit as if it had never stopped
    overwrite: bool = False  # replace the training in --out, if there is one
    # warm: the warm start alone; rl: reinforcement learning from random weights
    only: Literal["warm", "rl"] | None = None
    start: Path | None = None  # reinforcement learning alone, from the model in this folder
    save_every: int = 25  # steps between checkpoints
    # also log to this folder for TensorBoard (pip install tensorboard; tensorboard --logdir DIR)
    tensorboard: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        both = self.start is not None and self.only is not None
        require(not both, "--start", f"--only {self.only} as well", "one of the two")

    @property
    def settings(self) -> TrainSettings:
        """The settings of the training, after --only and --start are applied."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(TrainSettings)}
        if self.only == "warm":
            own["rollouts"] = 0
        if self.only == "rl" or self.start is not None:
            own["warm_target"] = 0.0
        return TrainSettings(**own)


def _train(prog: str, argv: Sequence[str]) -> int:
    chosen = read(Train, argv, prog)
    folder = chosen.out
    show, board = _Bars(), None
    try:
        board = Board(chosen.tensorboard) if chosen.tensorboard is not None else None
        training = _resumed(chosen, argv) if chosen.resume else _fresh(chosen)
        settings = training.settings

        def begin() -> None:
            print(
                f"{settings.runs} × {settings.preset} model, {training.model.size:,} parameters,"
                f" on {settings.device}; → {folder}",
                flush=True,
            )
            show.open(training)

        def logged(row: dict[str, Any]) -> None:
            show.row(row)
            if board is not None:
                board.row(row)

        seconds = run(
            training,
            folder,
            overwrite=chosen.overwrite,
            save_every=chosen.save_every,
            begin=begin,
            show=logged,
            tick=show.tick,
        )
    except CourseError as error:
        raise named(error, Train) from None
    finally:
        show.progress.close()
        if board is not None:
            board.close()
    right = accuracy(training.model, training.task).mean(-1)
    shares = ", ".join(f"{100 * share:.1f} %" for share in right.flatten().tolist())
    print(
        f"greedy answers to {len(training.task.held_out)} held-out questions: {shares} right;"
        f" {duration(seconds)} of training"
    )
    print(f"wrote {folder / CHECKPOINT} and {folder / METRICS}")
    return OK


def _fresh(chosen: Train) -> Training:
    """A new training, from random weights or from the model of another training."""
    training = Training(chosen.settings)
    if chosen.start is not None:
        training.adopt(chosen.start / CHECKPOINT)
    return training


def _resumed(chosen: Train, argv: Sequence[str]) -> Training:
    """The training in --out.

    Only its device may change, and a rung of your own must be named again. Raises `CourseError` if
    other settings are given.
    """
    told = given(argv)
    others = [name for name in told if name not in MAY_CHANGE]
    require(
        not others,
        "--resume",
        " ".join(map(option, others)),
        "no other settings: those of the checkpoint count (--device may change)",
    )
    training = Training.load(chosen.out / CHECKPOINT, chosen.device if "device" in told else None)
    require(
        "rung" not in told or chosen.rung == training.settings.rung,
        "--rung",
        chosen.rung,
        f"{training.settings.rung}, which was trained with",
    )
    return training


class _Bars:
    """Progress bars with the time left.

    The bar of the warm start shows the accuracy, that of reinforcement learning the rollouts.
    """

    def __init__(self) -> None:
        self.progress = Progress()
        self.bars: dict[str, Any] = {}
        self.phase = ""

    def open(self, now: Training) -> None:
        """Open the bar of the phase that begins."""
        self.phase = now.phase
        if now.phase == "warm":
            bar = self.progress.bar(
                round(100 * now.settings.warm_target), "warm start, % of samples right"
            )
            bar.unit = " %"
        elif now.phase == "train":
            bar = self.progress.bar(now.settings.rollouts, now.settings.rung)
            bar.unit = " rollouts"
            # the steps before a resumed training took no time in this process
            bar.initial = bar.n = now.learner.steps
        else:
            return
        bar.refresh()
        self.bars[now.phase] = bar

    def row(self, row: dict[str, Any]) -> None:
        """Show the numbers of a row of the log next to the bar."""
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
        """Advance the bar by one step."""
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


@dataclass(frozen=True)
class Trained(Checked):
    """Which model, and how to sample from it."""

    # a training's folder
    folder: Annotated[Path, tyro.conf.arg(name="from")] = LATEST
    samples: int = 16  # samples per question
    temperature: float = 1.0  # sampling temperature
    top_k: int | None = None  # sample from the K most probable tokens (none: from all)
    seed: int = 0  # seed of the samples
    device: str | None = None  # cpu, cuda, cuda:1 … (none: the GPU if there is one)
    # FILE.py:NAME of your own rung, if the model was trained with it
    rung: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        most = f"at most {MOST_SAMPLES}, what memory has room for"
        require(self.samples <= MOST_SAMPLES, "samples", self.samples, most)
        check_sampling(self.temperature, self.top_k)
        object.__setattr__(self, "device", str(pick_device(self.device)))

    def load(self) -> Training:
        """Load the training; raises `CourseError` if a weight is NaN or infinite."""
        path = self.folder / CHECKPOINT
        training = Training.load(path, self.device)
        for name, weight in training.model.weights.items():
            if not bool(torch.isfinite(weight).all()):
                raise CourseError(
                    f"{path}: got NaN or an infinity in {name}; allowed is a model with finite"
                    " weights"
                )
        return training


@dataclass(frozen=True)
class Eval(Trained):
    """Greedy and sampled accuracy with 95 % intervals, pass@k, and accuracy by difficulty.

    All are measured on held-out questions.
    """

    questions: int = 1000  # most held-out questions to ask


@dataclass(frozen=True)
class Sample(Trained):
    """Show questions, completions with their rewards, and the probability of each token.

    If several models were trained, the first one is shown.
    """

    # such as 12+34= (none: some held-out ones)
    questions: tyro.conf.Positional[tuple[str, ...] | None] = None
    samples: int = 3  # completions per question


def _eval(prog: str, argv: Sequence[str]) -> int:
    chosen = read(Eval, argv, prog)
    training = chosen.load()
    task, model, samples = training.task, training.model, chosen.samples
    rows = task.held_out[
        torch.linspace(
            0, len(task.held_out) - 1, min(chosen.questions, len(task.held_out)), device="cpu"
        ).long()
    ]
    noise = Noise(model.runs, chosen.seed, device=training.settings.device)
    greedy = accuracy(model, task, questions=rows)
    sampled = accuracy(
        model,
        task,
        noise,
        questions=rows,
        samples=samples,
        batch=max(1, 4096 // samples),
        temperature=chosen.temperature,
        top_k=chosen.top_k,
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


def _sample(prog: str, argv: Sequence[str]) -> int:
    chosen = read(Sample, argv, prog)
    asked = chosen.questions or ()
    training = chosen.load()
    task, model = training.task, training.model
    prompts = [encode(question) for question in asked]
    width = task.prompt.shape[-1]
    for text, tokens in zip(asked, prompts, strict=True):
        if len(tokens) != width:
            raise CourseError(
                f"question: got {text!r} of {len(tokens)} characters; allowed is {width}, such as"
                f" {decode(task.prompt[0].tolist())!r}"
            )
    if prompts:
        known = task.prompt.cpu()
        matches = [
            (known == torch.tensor(tokens, device="cpu")).all(-1).nonzero().flatten().tolist()
            for tokens in prompts
        ]
        for text, found in zip(asked, matches, strict=True):
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
    numbers = rows.unsqueeze(-1).expand(made.tokens.shape[:-1])
    reward = REWARDS[training.settings.reward](made.tokens, numbers, task)
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
            question = decode(task.prompt[row].tolist()) if g == 0 else ""
            table.append(
                (
                    question,
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


COMMANDS = {"train": _train, "eval": _eval, "sample": _sample}
OPTIONS = {"train": Train, "eval": Eval, "sample": Sample}

__all__ = ["COMMANDS", "OPTIONS", "OVERVIEW", "command", "main"]
