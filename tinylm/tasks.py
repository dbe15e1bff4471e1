"""Arithmetic tasks: questions as rows of a table, split once into training and held-out, with
answers that can be verified.

A question is a prompt of fixed width and the answer expected of it, followed by an end token. A new
task is a function that yields (prompt, scratchpad, answer, difficulty) for its questions: see
`addition`. The split is by question as it is written: 12+34 and 34+12 are two, and one may be
trained on where the other is held out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from course.errors import CourseError, require, unknown

CHARACTERS = (  # ';' ends a step of the scratchpad, '#' says that the answer follows
    "0123456789+-*%=;#"
)
PAD, END = len(CHARACTERS), len(CHARACTERS) + 1
VOCABULARY = len(CHARACTERS) + 2
MARKER = CHARACTERS.index("#")
QUESTION_LIMIT = 200_000


def encode(text: str) -> list[int]:
    """Characters → tokens.

    Raises `CourseError` naming a character that is not in the vocabulary.
    """
    for character in text:
        if character not in CHARACTERS:
            raise CourseError(
                f"text: got {character!r} in {text!r}; allowed is one of {CHARACTERS!r}"
            )
    return [CHARACTERS.index(character) for character in text]


def decode(tokens: Sequence[int]) -> str:
    """Tokens → characters, up to the end token or padding."""
    kept = itertools.takewhile(lambda token: 0 <= token < len(CHARACTERS), tokens)
    return "".join(CHARACTERS[token] for token in kept)


class Question(NamedTuple):
    """A prompt, the scratchpad that leads to the answer (may be empty), the answer, and how hard it
    is (carries, terms …).
    """

    prompt: str
    scratchpad: str
    answer: str
    difficulty: int


Maker = Callable[["TaskSettings", np.random.Generator], Iterator[Question]]
TASKS: dict[str, Maker] = {}


def task(maker: Maker) -> Maker:
    """Register a task under its function's name."""
    TASKS[maker.__name__] = maker
    return maker


@dataclass(frozen=True)
class TaskSettings:
    """Which questions: the task's name, digits per number, terms of a sum, whether answers show
    their steps, and the split.
    """

    name: str = "addition"  # addition, subtraction, multiplication, modular, terms
    digits: int = 2  # per number
    terms: int = 3  # numbers in a sum (task "terms")
    modulus: int = 97  # of the modular sum
    scratchpad: bool = False  # partial sums before the answer
    held_out: float = 0.1  # share of the questions never trained on
    limit: int = QUESTION_LIMIT  # at most so many questions, drawn at random
    seed: int = 0  # of the split

    def __post_init__(self) -> None:
        if self.name not in TASKS:
            raise unknown("task", self.name, TASKS)
        require(1 <= self.digits <= 6, "task.digits", self.digits, "1 to 6")
        require(2 <= self.terms <= 8, "task.terms", self.terms, "2 to 8")
        fits = self.name != "modular" or 2 <= self.modulus <= 10**self.digits
        require(fits, "task.modulus", self.modulus, f"2 to {10**self.digits}")
        require(0 < self.held_out < 1, "task.held_out", self.held_out, "a share between 0 and 1")
        require(self.limit >= 2, "task.limit", self.limit, "at least 2 questions")
        require(
            not self.scratchpad or self.name == "terms",
            "task.scratchpad",
            self.scratchpad,
            "False, except for the task 'terms'",
        )


def _numbers(
    settings: TaskSettings, count: int, generator: np.random.Generator
) -> Iterator[tuple[int, ...]]:
    """All tuples of `count` numbers below 10^digits if there are few, else `limit` different ones
    at random.
    """
    base = 10**settings.digits
    total = base**count
    if total <= settings.limit:
        yield from itertools.product(range(base), repeat=count)
        return
    chosen: dict[tuple[int, ...], None] = {}
    # number by number, since base^count may be more than an integer of 64 bits holds
    while len(chosen) < settings.limit:
        drawn = generator.integers(0, base, size=(settings.limit - len(chosen), count))
        chosen.update(dict.fromkeys(map(tuple, drawn.tolist())))
    yield from chosen


def _carries(numbers: Sequence[int]) -> int:
    """How many columns of the sum carry."""
    carried = carry = 0
    rest = list(numbers)
    while any(rest):
        carry = (sum(number % 10 for number in rest) + carry) // 10
        carried += carry > 0
        rest = [number // 10 for number in rest]
    return carried


def _padded(number: int, width: int) -> str:
    return str(number).zfill(width)


@task
def addition(settings: TaskSettings, generator: np.random.Generator) -> Iterator[Question]:
    """a+b= with zeros in front: the answer has one digit more.

    Difficulty: the number of carries.
    """
    width = settings.digits
    for a, b in _numbers(settings, 2, generator):
        yield Question(
            f"{_padded(a, width)}+{_padded(b, width)}=",
            "",
            _padded(a + b, width + 1),
            _carries((a, b)),
        )


@task
def subtraction(settings: TaskSettings, generator: np.random.Generator) -> Iterator[Question]:
    """a-b= for any order; a negative answer starts with a minus.

    Difficulty: the number of borrows.
    """
    width = settings.digits
    for a, b in _numbers(settings, 2, generator):
        difference = a - b
        text = ("-" if difference < 0 else "") + _padded(abs(difference), width)
        yield Question(
            f"{_padded(a, width)}-{_padded(b, width)}=",
            "",
            text,
            _carries((min(a, b), abs(difference))),
        )


@task
def multiplication(settings: TaskSettings, generator: np.random.Generator) -> Iterator[Question]:
    """a*b= with an answer of twice the digits.

    Difficulty: the number of digits that are not 0 or 1.
    """
    width = settings.digits
    for a, b in _numbers(settings, 2, generator):
        hard = sum(character not in "01" for character in f"{a}{b}")
        yield Question(
            f"{_padded(a, width)}*{_padded(b, width)}=", "", _padded(a * b, 2 * width), hard
        )


@task
def modular(settings: TaskSettings, generator: np.random.Generator) -> Iterator[Question]:
    """a+b%m= with a fixed modulus m. Difficulty: how often m has to be taken away."""
    width = settings.digits
    for a, b in _numbers(settings, 2, generator):
        answer = (a + b) % settings.modulus
        prompt = f"{_padded(a, width)}+{_padded(b, width)}%{_padded(settings.modulus, width)}="
        yield Question(prompt, "", _padded(answer, width), (a + b) // settings.modulus)


@task
def terms(settings: TaskSettings, generator: np.random.Generator) -> Iterator[Question]:
    """a+b+c= with the partial sums a+b; a+b+c; as scratchpad, if asked for.

    Difficulty: the number of carries on the way.
    """
    width = settings.digits
    wide = len(str(settings.terms * (10**width - 1)))
    for numbers in _numbers(settings, settings.terms, generator):
        partial = list(itertools.accumulate(numbers))[1:]
        steps = (
            "".join(f"{_padded(value, wide)};" for value in partial[:-1])
            if settings.scratchpad
            else ""
        )
        hard = sum(
            _carries(pair) for pair in zip([numbers[0], *partial], numbers[1:], strict=False)
        )
        yield Question(
            "+".join(_padded(number, width) for number in numbers) + "=",
            steps,
            _padded(partial[-1], wide),
            hard,
        )


@dataclass(frozen=True)
class Task:
    """A task's questions as tables, on one device.

    `prompt` [N, P] tokens; `target` [N, T] the whole expected completion (scratchpad, marker,
    answer, end), padded; `answer` [N, A] the final answer and the end token, padded; `difficulty`
    [N]; `train`, `held_out` row numbers. T is the generation limit in tokens: the longest target,
    plus `slack`.
    """

    settings: TaskSettings
    prompt: Tensor
    target: Tensor
    answer: Tensor
    difficulty: Tensor
    train: Tensor
    held_out: Tensor
    marked: bool = field(default=False)  # whether the answer follows the marker

    @property
    def limit(self) -> int:
        """T: the generation limit, in tokens."""
        return self.target.shape[-1]

    @property
    def context(self) -> int:
        """P + T: the longest sequence, in tokens."""
        return self.prompt.shape[-1] + self.limit

    def to(self, device: torch.device | str) -> Task:
        """The same task on another device."""
        tables = {
            name: getattr(self, name).to(device)
            for name in ("prompt", "target", "answer", "difficulty", "train", "held_out")
        }
        return Task(self.settings, **tables, marked=self.marked)


def make(settings: TaskSettings, *, slack: int = 0, context: int | None = None) -> Task:
    """Build the tables.

    `slack` tokens are added to the generation limit; `context` (P + T) is checked if given.

    Raises `CourseError` where prompts differ in width, a split is empty, or sequences are longer
    than `context`.
    """
    generator = np.random.default_rng(settings.seed)
    questions = list(TASKS[settings.name](settings, generator))
    prompts, answers = (
        [question.prompt for question in questions],
        [question.answer for question in questions],
    )
    require(
        len({len(prompt) for prompt in prompts}) == 1,
        "task",
        settings.name,
        "one that asks, with prompts of one width",
    )
    require(
        len(set(prompts)) == len(prompts), "task", settings.name, "one that asks each question once"
    )
    order = generator.permutation(len(questions))
    held = int(settings.held_out * len(questions))
    require(
        0 < held < len(questions),
        "task.held_out",
        settings.held_out,
        f"a share that leaves both parts of {len(questions)} questions",
    )
    marker = CHARACTERS[MARKER] if settings.scratchpad else ""
    built = Task(
        settings,
        prompt=_table(prompts, end=False),
        target=_table(
            [question.scratchpad + marker + question.answer for question in questions], slack
        ),
        answer=_table(answers),
        difficulty=torch.tensor([question.difficulty for question in questions], device="cpu"),
        train=torch.from_numpy(np.sort(order[held:])),
        held_out=torch.from_numpy(np.sort(order[:held])),
        marked=settings.scratchpad,
    )
    require(
        context is None or built.context <= context,
        "context",
        context,
        f"at least {built.context}: prompt and answer in tokens",
    )
    return built


def _table(texts: Sequence[str], slack: int = 0, *, end: bool = True) -> Tensor:
    """Texts as rows of tokens, the end token after each if `end`, then padding: [N, longest +
    slack].
    """
    whole = "".join(texts)
    if not set(whole) <= set(CHARACTERS):
        for text in texts:
            encode(text)  # names the character
    tokens = np.zeros(128, dtype=np.int64)
    tokens[[ord(character) for character in CHARACTERS]] = np.arange(len(CHARACTERS))
    flat = tokens[np.frombuffer(whole.encode("ascii"), np.uint8)]
    lengths = np.fromiter(map(len, texts), dtype=np.int64)
    rows = np.full((len(texts), int(lengths.max()) + end + slack), PAD)
    rows[np.arange(rows.shape[1]) < lengths[:, None]] = flat
    if end:
        rows[np.arange(len(texts)), lengths] = END
    return torch.from_numpy(rows)
