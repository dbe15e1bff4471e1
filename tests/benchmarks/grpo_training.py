"""How fast is GRPO training on the tiny language model, beside TRL's GRPOTrainer on the same
machine, in the same run?

Both train a transformer of about 340k parameters on two-digit sums in float32 with 64 prompts per
rollout and two updates on each, logging on; TRL's is a GPT-2 configured to the same width, depth,
vocabulary and context, with random weights built here (nothing is downloaded) and a character
tokenizer. The rewards are computed by the same functions. Three cases:

    warm     from a supervised warm start to 30 % right answers, each model its own; completions are
             alike there and share their beginnings, which ours computes once
    random   from random weights, credit per digit
    zero     from random weights, exact + ½·digits, 16 completions, Adam 1e-3, β = 0.04: the
             settings with which GRPO learns sums without a demonstration

Beside them our own trainer with the textbook model of `tinylm.model` in place of `tinylm.fast`, the
shares of our time, and the share of the machine's matrix-multiply peak that our training reaches,
counting distinct tokens, and counting every token of every completion with the prompt once for its
group. TRL comes with the extra `peers`.

    python -m tests.benchmarks.grpo_training          prints a table, writes
    benchmark_grpo_training.png and .json
    … --race    trains both in the case `zero` until 90 % of the held-out questions are right, half
    an hour, and writes benchmark_race.png and .json in their place
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from course import ladder, replace
from course.lab import figures
from course.lab.facts import Fact
from course.lab.result import Result, environment
from course.learner import Learner
from course.parts import K3, NoKL
from course.rollout import Policy, Rollout, on_last_token
from course.train.device import keep_memory
from course.train.files import check_writable
from course.train.noise import Noise
from course.train.optim import Adam
from tinylm.evaluate import accuracy
from tinylm.fast.forward import flops_per_token
from tinylm.fast.packing import pack
from tinylm.model import PRESETS, Transformer, next_token_log_dist
from tinylm.problem import LanguageModel, ask
from tinylm.rewards import DigitCredit, ExactMatch, Reward, Sum
from tinylm.sampling import draw
from tinylm.scoring import chosen_log_probs
from tinylm.tasks import CHARACTERS, END, PAD, Task, TaskSettings, make
from tinylm.training import Training, TrainSettings
from tinylm.wiring import copies

PROMPTS, UPDATES = 64, 2
TARGET = 0.3  # sampled accuracy that ends a warm start
GOAL = {"warm": 10.0, "random": 7.0}  # times as fast as TRL
RIGHT = 0.9  # greedy accuracy on held-out questions that ends the race
LOOK = 25  # rollouts between two looks at it
MOST = 2000  # rollouts after which a race ends


@dataclass(frozen=True)
class Case:
    """Where training begins, and with which settings."""

    warm: bool = False  # whether a warm start comes first
    group: int = 8  # completions per question
    lr: float = 1e-4  # Adam's learning rate, constant
    beta: float = 0.0  # coefficient of the KL to the reference; 0: no reference
    reward: str = "digits"


CASES = {
    "warm": Case(warm=True),
    "random": Case(),
    "zero": Case(group=16, lr=1e-3, beta=0.04, reward="zero"),
}
REWARD: dict[str, Reward] = {
    "digits": DigitCredit(),
    "zero": Sum(parts=(ExactMatch(), DigitCredit(weight=0.5))),
}


@dataclass(frozen=True)
class Measured:
    """Seconds of each rollout with its two updates, the standard deviation of rewards, the number
    of parameters; and for ours the seconds of its parts, and the arithmetic of a rollout and its
    updates in floating-point operations, of distinct tokens and of all.
    """

    seconds: list[float]
    spread: float
    size: int
    parts: dict[str, float] = field(default_factory=dict)
    distinct: float = 0.0
    every: float = 0.0


class Plain(LanguageModel):
    """Sampling and scoring with the textbook model: whole sequences, nothing shared or kept."""

    @torch.no_grad()
    def sample(self, noise: Noise) -> Rollout:
        """The completions that `LanguageModel` samples with the same noise."""
        question = ask(self.task, noise, self.prompts)
        uniform = noise.uniform(self.task.limit, self.prompts, self.group)  # [T, Q, G]
        prompt = self.task.prompt[question]
        whole = prompt.unsqueeze(-2).expand(-1, self.group, -1)  # [Q, G, P], and later P + t
        alive = torch.ones(whole.shape[:-1], dtype=torch.bool)
        log_probs, masks = [], []
        for now in uniform:
            log_dist = next_token_log_dist(self.model.logits(self.model.hidden(whole)[..., -1, :]))
            token = draw(log_dist, now)  # [Q, G]
            log_probs.append(log_dist.gather(-1, token.unsqueeze(-1)).squeeze(-1))
            masks.append(alive)
            whole = torch.cat([whole, torch.where(alive, token, PAD).unsqueeze(-1)], -1)
            alive = alive & (token != END)
        mask, tokens = torch.stack(masks, -1), whole[..., prompt.shape[-1] :]
        reward, _ = self.scores(tokens, question)
        return Rollout(
            reward=on_last_token(reward, mask),
            log_prob=torch.where(mask, torch.stack(log_probs, -1), 0.0),
            mask=mask,
            truncated=alive,
            limit=self.task.limit,
            data={"prompt": prompt, "tokens": tokens, "question": question},
        )

    def policy(self, rollout: Rollout) -> Policy:
        """log π of the rollout's tokens, every sequence from its first token."""
        prompt, tokens = rollout.data["prompt"], rollout.data["tokens"]
        whole = torch.cat([prompt.unsqueeze(-2).expand(-1, self.group, -1), tokens], -1)
        before = self.model.hidden(whole)[..., prompt.shape[-1] - 1 : -1, :]
        log_dist = next_token_log_dist(self.model.logits(before))
        return Policy(chosen_log_probs(log_dist, tokens, rollout.mask), log_dist)


def schooled(case: Case) -> Transformer:
    """Our model where training begins."""
    if not case.warm:
        return Transformer(PRESETS["small"], (), 0)
    training = Training(TrainSettings(rollouts=0, warm_target=TARGET, device="cpu"))
    while not training.done:
        training.step()
    return training.model


def learner_of(case: Case, task: Task, model: Transformer, kind: type[LanguageModel]) -> Learner:
    """Our trainer."""
    estimator = replace(ladder.grpo, kl=K3(case.beta) if case.beta else NoKL())
    problem = kind.of(
        estimator, model, task, prompts=PROMPTS, group=case.group, reward=REWARD[case.reward]
    )
    return Learner(
        problem, estimator, Adam(case.lr), Noise((), 0), epochs=UPDATES, max_grad_norm=1.0
    )


def ours(
    steps: int,
    case: Case,
    start: Transformer,
    *,
    compiled: bool = False,
    kind: type[LanguageModel] = LanguageModel,
) -> Measured:
    """Training through this course from the weights of `start`."""
    task, model = make(TaskSettings()), copies(start.weights, start.settings, ())
    if compiled:
        model.compile()
    learner = learner_of(case, task, model, kind)
    problem: Any = learner.problem
    first = problem.sample(Noise((), 1))
    for _ in range(3 if compiled else 1):
        learner.step(log=True)
    parts = dict.fromkeys(("sampling", "forward", "optimiser"), 0.0)
    problem.sample = clocked(parts, "sampling", problem.sample)
    problem.policy = clocked(parts, "forward", problem.policy)
    learner.optimizer.step = clocked(parts, "optimiser", learner.optimizer.step)  # type: ignore[method-assign]
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        learner.step(log=True)
        times.append(time.perf_counter() - began)
    parts["backward, clipping, logging"] = sum(times) - sum(parts.values())
    last = problem.sample(Noise((), 1))
    distinct, every = [
        statistics.mean(arithmetic(rollout, merge) for rollout in (first, last))
        for merge in (True, False)
    ]
    return Measured(times, float(last.total_reward.std()), model.size, parts, distinct, every)


def clocked(parts: dict[str, float], name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """The same function; the seconds it takes are added to `parts[name]`."""

    def timed(*args: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return call(*args, **named)
        finally:
            parts[name] += time.perf_counter() - began

    return timed


def race(case: Case) -> dict[str, Any]:
    """Our training until `RIGHT` of the held-out questions are right: seconds and rollouts."""
    task, model = make(TaskSettings()), schooled(case)
    learner = learner_of(case, task, model, LanguageModel)
    spent, curve = 0.0, []
    for rollout in range(1, MOST + 1):
        began = time.perf_counter()
        learner.step(log=True)
        spent += time.perf_counter() - began
        if rollout % LOOK == 0:
            curve.append(float(accuracy(model, task).mean()))
            if curve[-1] >= RIGHT:
                break
    return {"seconds": spent, "rollouts": rollout, "accuracy": curve}


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


def theirs(steps: int, case: Case) -> Measured:
    """The same through TRL."""
    marks: list[float] = []
    trainer, spreads = trl_trainer(case, steps + 1, lambda model: marks.append(time.perf_counter()))
    trainer.train()
    ends = marks[UPDATES - 1 :: UPDATES]  # of each rollout; the first one warms up
    return Measured(
        [b - a for a, b in pairwise(ends)],
        statistics.mean(spreads),
        sum(p.numel() for p in trainer.model.parameters()),
    )


def their_race(case: Case) -> dict[str, Any]:
    """TRL's training until `RIGHT` of the held-out questions are right, as `race`."""
    task, curve = make(TaskSettings()), []
    spent, steps, began = 0.0, 0, time.perf_counter()

    def look(model: Any) -> bool:
        nonlocal spent, steps, began
        steps += 1
        if steps % (LOOK * UPDATES):
            return False
        spent += time.perf_counter() - began
        curve.append(their_accuracy(model, task))
        began = time.perf_counter()
        return curve[-1] >= RIGHT

    trainer, _ = trl_trainer(case, MOST, look)
    began = time.perf_counter()
    trainer.train()
    return {"seconds": spent, "rollouts": steps // UPDATES, "accuracy": curve}


@torch.no_grad()
def their_accuracy(model: Any, task: Task) -> float:
    """The share of all held-out questions whose greedy answer is right."""
    whole, width = task.prompt[task.held_out], task.prompt.shape[-1]
    for _ in range(task.limit):
        whole = torch.cat([whole, model(whole).logits[:, -1:].argmax(-1)], -1)
    return float(ExactMatch()(whole[:, width:], task.held_out, task).mean())


def trl_trainer(
    case: Case, rollouts: int, after: Callable[[Any], bool | None]
) -> tuple[Any, list[float]]:
    """TRL's trainer, and the list to which it adds each rollout's standard deviation of rewards.

    After every update it calls `after` with the model, and stops if that returns True.
    """
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
    # the same numbers as ours: PAD and END follow the characters
    words = {character: i for i, character in enumerate(CHARACTERS)} | {"<pad>": PAD, "<end>": END}
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
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=PAD,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config)
    if case.warm:
        _school(model, task)
    folder = tempfile.mkdtemp()
    model.save_pretrained(folder)  # TRL loads the reference from the model's own folder
    model = GPT2LMHeadModel.from_pretrained(folder)
    rows = task.train[torch.randperm(len(task.train))].tolist()
    text = ["".join(CHARACTERS[token] for token in task.prompt[row].tolist()) for row in rows]
    spreads: list[float] = []

    def credit(completion_ids: list[list[int]], row: list[int], **_: Any) -> list[float]:
        tokens = torch.full((len(row), task.limit), PAD)
        for i, ids in enumerate(completion_ids):
            tokens[i, : len(ids)] = torch.tensor(ids)
        values = REWARD[case.reward](tokens, torch.tensor(row), task)
        spreads.append(float(values.std()))
        return values.tolist()

    class After(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> Any:
            control.should_training_stop |= bool(after(named["model"]))
            return control

    arguments = GRPOConfig(
        output_dir=folder,
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        per_device_train_batch_size=PROMPTS * case.group,
        num_generations=case.group,
        num_iterations=UPDATES,
        steps_per_generation=1,
        gradient_accumulation_steps=1,
        max_completion_length=task.limit,
        beta=case.beta,
        learning_rate=case.lr,
        lr_scheduler_type="constant",
        max_steps=UPDATES * rollouts,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        gradient_checkpointing=False,
        loss_type="grpo",
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=credit,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": text, "row": rows}),
        processing_class=tokenizer,
        callbacks=[After()],
    )
    return trainer, spreads


def _school(model: Any, task: Task) -> None:
    """The warm start of TRL's model: likelihood of the right answers, until it gives them with a
    probability of TARGET.
    """
    whole, width = torch.cat([task.prompt, task.target], -1), task.prompt.shape[-1]
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
    found = {name: compared(case, steps, compiled) for name, case in CASES.items()}
    facts = [
        Fact.above(
            "Rewards vary in all trainings (smallest standard deviation)",
            "this course",
            min(value for one in found.values() for value in one["reward_std"].values()),
            0.0,
        ),
        *(
            Fact.above(
                f"Times faster than TRL's GRPOTrainer, case {name}, medians of one run",
                "this course",
                found[name]["ratio"],
                goal,
            )
            for name, goal in GOAL.items()
        ),
        Fact.above(
            "Arithmetic of all completions' tokens per second from the warm start, as a share"
            " of the matrix-multiply peak",
            "this course",
            found["warm"]["share_of_peak"]["every"],
            0.5,
        ),
    ]
    return Result(
        name="benchmark_grpo_training",
        title="GRPO training on the tiny language model beside TRL's trainer",
        settings={
            "prompts": PROMPTS,
            "updates": UPDATES,
            "steps": steps,
            "threads": threads,
            "warm_target": TARGET,
            "cases": {name: vars(case) for name, case in CASES.items()},
        },
        series=found,
        facts=facts,
        environment=environment("cpu"),
        caption=(
            f"Completions per second, medians of one run on {threads} threads. From the warm start"
            " completions share their beginnings, which this course computes once."
        ),
    )


def measure_race(threads: int) -> Result:
    """Ours until `RIGHT` of the held-out questions are right, then theirs, on the same threads."""
    torch.set_num_threads(threads)
    keep_memory()
    found = {"ours": race(CASES["zero"]), "trl": their_race(CASES["zero"])}
    ends = [one["accuracy"][-1] for one in found.values()]
    claim = f"Both reach {RIGHT:.0%} of the held-out questions from random weights (worst)"
    times = found["trl"]["seconds"] / found["ours"]["seconds"]
    return Result(
        name="benchmark_race",
        title="From random weights to 90 %: this course beside TRL's trainer",
        settings={
            "prompts": PROMPTS,
            "updates": UPDATES,
            "threads": threads,
            "right": RIGHT,
            "look_every": LOOK,
            "case": vars(CASES["zero"]),
        },
        series=found,
        facts=[
            Fact.above(claim, "this course", min(ends), RIGHT - 1e-9),
            Fact.above("Seconds of TRL's trainer over ours", "this course", times, 7.0),
        ],
        environment=environment("cpu"),
        caption=(
            f"Held-out two-digit sums, greedy answers, over seconds of training, {threads} threads,"
            " one run. Same settings and rewards; one seed each, so rollouts differ as seeds do."
        ),
    )


def compared(case: Case, steps: int, compiled: bool) -> dict[str, Any]:
    """One case: our seconds before and after TRL's, and those of the textbook model."""
    start, top = schooled(case), peak()
    before = ours(steps, case, start)
    fast = ours(steps, case, start, compiled=True).seconds if compiled else []
    other = theirs(max(3, steps // 4), case)
    # the textbook model scores no reference
    plain = [] if case.beta else ours(max(3, steps // 4), case, start, kind=Plain).seconds
    after = ours(steps, case, start)
    top = max(top, peak())
    seconds = before.seconds + after.seconds
    own, trl = statistics.median(seconds), statistics.median(other.seconds)
    times = {"compiled": fast, "plain": plain}
    spent = {name: before.parts[name] + after.parts[name] for name in before.parts}
    completions = PROMPTS * case.group
    return {
        "ours": seconds,
        "trl": other.seconds,
        **times,
        "ratio": trl / own,
        **{f"{name}_ratio": trl / statistics.median(each) for name, each in times.items() if each},
        "completions_per_second": {"ours": completions / own, "trl": completions / trl},
        "shares": {name: each / sum(spent.values()) for name, each in spent.items()},
        "peak_flops": top,
        "operations": {"distinct": before.distinct, "every": before.every},
        "share_of_peak": {
            "distinct": before.distinct / own / top,
            "every": before.every / own / top,
        },
        "reward_std": {"ours": before.spread, "trl": other.spread},
        "parameters": {"ours": before.size, "trl": other.size},
    }


TITLES = {
    "warm": "from a warm start, 30 % right",
    "random": "from random weights",
    "zero": "from random weights, 16 completions, KL",
}


def plot(result: Result):  # type: ignore[no-untyped-def]
    """Completions per second in every case; then where our time goes."""
    figure, axes = figures.new_figure(2, 2, width=11.0, height=6.0)
    names = {"ours": "this course", "compiled": "… compiled", "plain": "… textbook", "trl": "TRL"}
    colours = {"ours": "#0072b2", "compiled": "#56b4e9", "plain": "#56b4e9", "trl": "#999999"}
    for ax, (case, title) in zip(axes, TITLES.items(), strict=False):
        completions = PROMPTS * int(result.settings["cases"][case]["group"])
        shown = [name for name in names if len(result.array(case, name))]
        rates = {
            name: completions / statistics.median(result.array(case, name).tolist())
            for name in shown
        }
        for place, name in enumerate(shown):
            ax.barh(place, rates[name], color=colours[name])
            times = f"  ({rates[name] / rates['trl']:.1f} ×)" if name != "trl" else ""
            ax.text(rates[name], place, f"  {rates[name]:,.0f}{times}", va="center")
        if case in GOAL:
            figures.expectation(ax, x=GOAL[case] * rates["trl"])
            ax.text(
                GOAL[case] * rates["trl"],
                len(shown) - 1,
                f" goal, {GOAL[case]:g} × TRL",
                va="center",
            )
        ax.set_yticks(range(len(shown)), [names[name] for name in shown])
        ax.invert_yaxis()
        ax.set_xlim(0, 1.5 * max(*rates.values(), GOAL.get(case, 0.0) * rates["trl"]))
        figures.describe(ax, title, "completions per second", "")
    _shares(axes[-1], result)
    return figure


def plot_race(result: Result):  # type: ignore[no-untyped-def]
    """Held-out accuracy over seconds of training, and the seconds at the end of each curve."""
    figure, (ax,) = figures.new_figure(1, 1, width=7.5, height=4.5)
    for name, (label, colour) in {
        "ours": ("this course", "#0072b2"),
        "trl": ("TRL", "#999999"),
    }.items():
        curve = result.array(name, "accuracy")
        whole = float(result.array(name, "seconds"))
        seconds = [whole * (i + 1) / len(curve) for i in range(len(curve))]
        rollouts = int(result.array(name, "rollouts"))
        text = f"{label}: {whole:,.0f} s, {rollouts:,} rollouts"
        figures.band(ax, seconds, curve, color=colour, linestyle="-", label=text)
    figures.log_axis(ax, "x")
    figures.expectation(ax, RIGHT)
    figures.describe(ax, "", "seconds of training", "held-out questions right, greedy")
    ax.legend(frameon=False, loc="center left")
    return figure


def _shares(ax: Any, result: Result) -> None:
    """Where our time goes: one bar of four parts for each case."""
    shown = ("sampling", "forward", "backward, clipping, logging", "optimiser")
    colours = ("#0072b2", "#56b4e9", "#e69f00", "#999999")
    left = [0.0] * len(TITLES)
    for what, colour in zip(shown, colours, strict=True):
        width = [float(result.series[case]["shares"][what]) for case in TITLES]
        ax.barh(range(len(TITLES)), width, left=left, color=colour, label=what)
        left = [start + more for start, more in zip(left, width, strict=True)]
    ax.set_yticks(range(len(TITLES)), list(TITLES))
    ax.invert_yaxis()
    ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2)
    figures.describe(ax, "Where our time goes", "share of a rollout and its two updates", "")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--race", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("figures"))
    chosen = parser.parse_args()
    check_writable(chosen.out)
    if chosen.race:
        found = measure_race(chosen.threads)
        for name, one in found.series.items():
            print(name, one["seconds"], "s", one["rollouts"], "rollouts", one["accuracy"][-1])
        picture = plot_race(found)
    else:
        found = measure(chosen.steps, chosen.compile, chosen.threads)
        for case in CASES:
            for name, value in found.series[case].items():
                if name not in ("ours", "trl", "compiled", "plain"):
                    print(case, name, value)
        picture = plot(found)
    for path in found.save(chosen.out, picture):
        print(path)


if __name__ == "__main__":
    main()
