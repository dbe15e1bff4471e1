"""Arithmetic tasks: tables of questions with verifiable answers, split into training and held-out.

A question is a prompt of fixed width with its expected answer and an end token. To add a task,
write a function that yields (prompt, scratchpad, answer, difficulty) for each question, like
`addition`. The split goes by the text of the question: 12+34 and 34+12 are two questions, so one
may be trained on while the other is held out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from course.arguments import typed
from course.errors import CourseError, misnamed, require, require_flag, require_number

CHARACTERS = "0123456789+-*%=;#"  # ';' ends a step of the scratchpad, '#' precedes the answer
PAD, END = len(CHARACTERS), len(CHARACTERS) + 1
VOCABULARY = len(CHARACTERS) + 2
MARKER = CHARACTERS.index("#")
QUESTION_LIMIT = 200_000


@typed
def encode(text: str) -> list[int]:
    """Characters → tokens. Raises `CourseError` for a character outside the vocabulary."""
    for character in text:
        if character not in CHARACTERS:
            raise CourseError(
                f"text: got {character!r} in {text!r}; allowed is one of {CHARACTERS!r}"
            )
    return [CHARACTERS.index(character) for character in text]


@typed
def decode(tokens: Sequence[int]) -> str:
    """Tokens → characters, up to the end token or padding."""
    kept = itertools.takewhile(lambda token: 0 <= token < len(CHARACTERS), tokens)
    return "".join(CHARACTERS[token] for token in kept)


class Question(NamedTuple):
    """A prompt, the scratchpad before the answer (may be empty), the answer, and its difficulty."""

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
    """Which questions a task has, and their split; raises `CourseError` for a wrong value."""

    name: str = "addition"  # addition, subtraction, multiplication, modular, terms
    digits: int = 2  # digits of each number
    terms: int = 3  # numbers in a sum (task "terms")
    modulus: int = 97  # modulus of the sum (task "modular")
    scratchpad: bool = False  # write partial sums before the answer (task "terms")
    held_out: float = 0.1  # share of the questions that are never trained on
    limit: int = QUESTION_LIMIT  # most questions; more possible ones are sampled at random
    seed: int = 0  # seed of the questions and of the split

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or self.name not in TASKS:
            raise misnamed("task", "task", str(self.name), TASKS)
        for name, low, high in (("digits", 1, 6), ("terms", 2, 8)):
            value, allowed = getattr(self, name), f"{low} to {high}"
            require_number(f"task.{name}", value, allowed, at_least=low, at_most=high, whole=True)
        allowed = f"2 to {10**self.digits}"
        require_number("task.modulus", self.modulus, allowed, at_least=2, whole=True)
        fits = self.name != "modular" or self.modulus <= 10**self.digits
        require(fits, "task.modulus", self.modulus, allowed)
        allowed = "a share between 0 and 1"
        require_number("task.held_out", self.held_out, allowed, above=0, below=1)
        require_number("task.limit", self.limit, "at least 2 questions", at_least=2, whole=True)
        require_number("task.seed", self.seed, "a whole number ≥ 0", at_least=0, whole=True)
        require_flag("task.scratchpad", self.scratchpad)
        require(
            not self.scratchpad or self.name == "terms",
            "task.scratchpad",
            self.scratchpad,
            "False, except for the task 'terms'",
        )


def _numbers(
    settings: TaskSettings, count: int, generator: np.random.Generator
) -> Iterator[tuple[int, ...]]:
    """All tuples of `count` numbers below 10^digits, or `limit` random ones if there are more."""
    base = 10**settings.digits
    total = base**count
    if total <= settings.limit:
        yield from itertools.product(range(base), repeat=count)
        return
    chosen: dict[tuple[int, ...], None] = {}
    # draw each number separately, because base^count may not fit into 64 bits
    while len(chosen) < settings.limit:
        drawn = generator.integers(0, base, size=(settings.limit - len(chosen), count))
        chosen.update(dict.fromkeys(map(tuple, drawn.tolist())))
    yield from chosen


def _carries(numbers: Sequence[int]) -> int:
    """The number of columns of the sum that carry."""
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
    """a+b= with leading zeros; the answer has one more digit. Difficulty: the number of carries."""
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
    """a-b= for any a and b; a negative answer has a minus. Difficulty: the number of borrows."""
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
    """a*b= with an answer of twice the digits. Difficulty: the digits other than 0 and 1."""
    width = settings.digits
    for a, b in _numbers(settings, 2, generator):
        hard = sum(character not in "01" for character in f"{a}{b}")
        yield Question(
            f"{_padded(a, width)}*{_padded(b, width)}=", "", _padded(a * b, 2 * width), hard
        )


@task
def modular(settings: TaskSettings, generator: np.random.Generator) -> Iterator[Question]:
    """a+b%m= with a fixed modulus m. Difficulty: how many times m must be subtracted."""
    width = settings.digits
    for a, b in _numbers(settings, 2, generator):
        answer = (a + b) % settings.modulus
        prompt = f"{_padded(a, width)}+{_padded(b, width)}%{_padded(settings.modulus, width)}="
        yield Question(prompt, "", _padded(answer, width), (a + b) // settings.modulus)


@task
def terms(settings: TaskSettings, generator: np.random.Generator) -> Iterator[Question]:
    """a+b+c= with the partial sums a+b; as scratchpad if set. Difficulty: the number of carries."""
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


@typed
@dataclass(frozen=True)
class Task:
    """A task's questions as tables, on one device.

    `prompt` [N, P] are the prompts' tokens. `target` [N, T] is the whole expected completion
    (scratchpad, marker, answer, end token), padded. `answer` [N, A] is the final answer with its
    end token, padded. `difficulty` is [N]. `train` and `held_out` are row numbers. T is the
    generation limit in tokens: the longest target plus the `slack` of `make`.
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


def together(first: Task, second: Task) -> Task:
    """Both tasks in one table, the questions of `first` before those of `second`.

    Prompts and answers of both have the same widths, and the settings are those of `first`.
    """
    count = len(first.prompt)
    return replace(
        first,
        prompt=torch.cat([first.prompt, second.prompt]),
        target=torch.cat([first.target, second.target]),
        answer=torch.cat([first.answer, second.answer]),
        difficulty=torch.cat([first.difficulty, second.difficulty]),
        train=torch.cat([first.train, second.train + count]),
        held_out=torch.cat([first.held_out, second.held_out + count]),
    )


@typed
def make(settings: TaskSettings, *, slack: int = 0, context: int | None = None) -> Task:
    """Build a task's tables.

    `slack` tokens are added to the generation limit. `context`, if given, is the longest sequence
    P + T that is allowed. Raises `CourseError` if prompts differ in width, a question occurs twice,
    a split is empty, or sequences are longer than `context`.
    """
    require_number("slack", slack, "a whole number ≥ 0", at_least=0, at_most=1000, whole=True)
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
    """Texts as padded rows of tokens [N, longest + slack], each with an end token if `end`."""
    whole = "".join(texts)
    if not set(whole) <= set(CHARACTERS):
        for text in texts:
            encode(text)  # raises and names the character
    tokens = np.zeros(128, dtype=np.int64)
    tokens[[ord(character) for character in CHARACTERS]] = np.arange(len(CHARACTERS))
    flat = tokens[np.frombuffer(whole.encode("ascii"), np.uint8)]
    lengths = np.fromiter(map(len, texts), dtype=np.int64)
    rows = np.full((len(texts), int(lengths.max()) + end + slack), PAD)
    rows[np.arange(rows.shape[1]) < lengths[:, None]] = flat
    if end:
        rows[np.arange(len(texts)), lengths] = END
    return torch.from_numpy(rows)
