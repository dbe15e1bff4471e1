"""Questions against Python's own arithmetic, the split, and every reward by hand."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from course.errors import CourseError
from tests.tinylm.helpers import tokens_of
from tinylm import tasks
from tinylm.rewards import (
    REWARDS,
    CosineLength,
    DigitCredit,
    ExactMatch,
    Format,
    Reward,
    SoftOverlong,
    Sum,
)
from tinylm.tasks import (
    CHARACTERS,
    END,
    PAD,
    VOCABULARY,
    Question,
    Task,
    TaskSettings,
    decode,
    encode,
    make,
)


def written(task: Task, row: int) -> tuple[str, str, str]:
    """Prompt, target and answer of a row as text; the end token as ⏎, padding left out."""
    names = [*CHARACTERS, "", "⏎"]
    tables = (task.prompt, task.target, task.answer)
    return tuple("".join(names[token] for token in table[row].tolist()) for table in tables)  # type: ignore[return-value]


# ---------------------------------------------------------------- characters


@given(st.text(alphabet=CHARACTERS))
def test_text_to_tokens_and_back(text: str) -> None:
    assert decode(encode(text)) == text
    assert decode([*encode(text), END, PAD, *encode("7")]) == text  # nothing behind the end
    assert decode([*encode(text), PAD]) == text


def test_tokens_are_numbered_without_gaps() -> None:
    assert encode(CHARACTERS) == list(range(len(CHARACTERS)))
    assert sorted([*encode(CHARACTERS), PAD, END]) == list(range(VOCABULARY))


@pytest.mark.parametrize("text", ["12a+3=", "1 +2=", "１+2=", "1−2="])
def test_a_character_outside_the_vocabulary_is_refused_by_name(text: str) -> None:
    outside = next(character for character in text if character not in CHARACTERS)
    with pytest.raises(CourseError, match=re.escape(f"got {outside!r} in {text!r}")):
        encode(text)


# ---------------------------------------------------------------- questions and answers


def columns_that_carry(a: int, b: int) -> int:
    """By hand, from the right."""
    count = carry = 0
    for x, y in zip(reversed(f"{a:09d}"), reversed(f"{b:09d}"), strict=True):
        carry = int(int(x) + int(y) + carry >= 10)
        count += carry
    return count


def columns_that_borrow(a: int, b: int) -> int:
    """Of the larger minus the smaller, by hand, from the right."""
    count = borrow = 0
    for x, y in zip(reversed(f"{max(a, b):09d}"), reversed(f"{min(a, b):09d}"), strict=True):
        borrow = int(int(x) - borrow < int(y))
        count += borrow
    return count


@pytest.mark.parametrize("digits", [1, 2])
def test_sums(digits: int) -> None:
    task = make(TaskSettings(digits=digits))
    base = 10**digits
    assert len(task.prompt) == base**2
    asked = set()
    for row in range(len(task.prompt)):
        prompt, target, answer = written(task, row)
        a, b = map(int, re.fullmatch(rf"(\d{{{digits}}})\+(\d{{{digits}}})=", prompt).groups())  # type: ignore[union-attr]
        assert target == answer == f"{a + b:0{digits + 1}d}⏎"
        assert int(task.difficulty[row]) == columns_that_carry(a, b)
        asked.add((a, b))
    assert asked == {(a, b) for a in range(base) for b in range(base)}
    assert (task.limit, task.context) == (digits + 2, 3 * digits + 4)


def test_differences_of_either_sign() -> None:
    task = make(TaskSettings("subtraction", digits=2))
    for row in range(len(task.prompt)):
        prompt, target, answer = written(task, row)
        a, b = map(int, re.fullmatch(r"(\d\d)-(\d\d)=", prompt).groups())  # type: ignore[union-attr]
        assert target == answer == f"{'-' * (a < b)}{abs(a - b):02d}⏎"
        assert int(task.difficulty[row]) == columns_that_borrow(a, b)
    assert task.limit == 4  # a minus, two digits, the end


def test_products() -> None:
    task = make(TaskSettings("multiplication", digits=2))
    for row in range(len(task.prompt)):
        prompt, target, answer = written(task, row)
        a, b = map(int, re.fullmatch(r"(\d\d)\*(\d\d)=", prompt).groups())  # type: ignore[union-attr]
        assert target == answer == f"{a * b:04d}⏎"
        assert int(task.difficulty[row]) == len(re.sub("[01]", "", f"{a}{b}"))


@pytest.mark.parametrize(("digits", "modulus"), [(2, 97), (1, 7), (1, 10)])
def test_sums_modulo(digits: int, modulus: int) -> None:
    task = make(TaskSettings("modular", digits=digits, modulus=modulus))
    for row in range(len(task.prompt)):
        prompt, target, answer = written(task, row)
        a, b, m = map(int, re.fullmatch(r"(\d+)\+(\d+)%(\d+)=", prompt).groups())  # type: ignore[union-attr]
        assert m == modulus
        assert target == answer == f"{(a + b) % modulus:0{digits}d}⏎"
        assert int(task.difficulty[row]) == (a + b) // modulus


@pytest.mark.parametrize("scratchpad", [False, True])
@pytest.mark.parametrize(("terms", "digits"), [(2, 1), (3, 1), (4, 2)])
def test_sums_of_several_terms(terms: int, digits: int, scratchpad: bool) -> None:
    task = make(
        TaskSettings("terms", terms=terms, digits=digits, scratchpad=scratchpad, limit=1500)
    )
    width = len(str(terms * (10**digits - 1)))
    assert task.marked == scratchpad
    for row in range(len(task.prompt)):
        prompt, target, answer = written(task, row)
        numbers = [int(text) for text in prompt[:-1].split("+")]
        assert prompt == "+".join(f"{number:0{digits}d}" for number in numbers) + "="
        assert len(numbers) == terms
        partial = [sum(numbers[: i + 1]) for i in range(1, terms)]
        assert answer == f"{partial[-1]:0{width}d}⏎"
        steps = "".join(f"{value:0{width}d};" for value in partial[:-1]) + "#" if scratchpad else ""
        assert target == steps + answer  # the answer stands behind the marker
        hard = sum(
            columns_that_carry(before, number)
            for before, number in zip([numbers[0], *partial], numbers[1:], strict=False)
        )
        assert int(task.difficulty[row]) == hard


def test_few_of_very_many_questions_are_drawn_at_random_and_none_twice() -> None:
    task = make(TaskSettings("terms", terms=8, digits=6, limit=500))  # 10^48 of them
    prompts = {decode(row) for row in task.prompt.tolist()}
    assert len(prompts) == 500
    numbers = [int(number) for prompt in prompts for number in prompt[:-1].split("+")]
    assert (
        abs(sum(numbers) / len(numbers) - 5e5) < 4 * 1e6 / 12**0.5 / len(numbers) ** 0.5
    )  # four standard errors of uniform numbers
    again, other = (
        make(TaskSettings("terms", terms=8, digits=6, limit=500)),
        make(TaskSettings("terms", terms=8, digits=6, limit=500, seed=1)),
    )
    assert torch.equal(task.prompt, again.prompt)
    assert not torch.equal(task.prompt, other.prompt)


# ---------------------------------------------------------------- the split


@pytest.mark.parametrize(
    "settings",
    [
        TaskSettings(digits=1),
        TaskSettings(digits=2, held_out=0.25, seed=3),
        TaskSettings("subtraction", digits=1),
        TaskSettings("multiplication", digits=1, held_out=0.5),
        TaskSettings("modular", digits=1, modulus=7),
        TaskSettings("terms", digits=1, scratchpad=True),
        TaskSettings("terms", digits=2, limit=777),
    ],
)
def test_the_split_is_disjoint_and_complete(settings: TaskSettings) -> None:
    task = make(settings)
    train, held_out = task.train.tolist(), task.held_out.tolist()
    assert sorted(train + held_out) == list(range(len(task.prompt)))
    asked = [{tuple(task.prompt[row].tolist()) for row in rows} for rows in (train, held_out)]
    assert not asked[0] & asked[1]  # as questions, too, and not only as rows
    assert len(asked[0]) + len(asked[1]) == len(task.prompt)
    assert len(held_out) == int(settings.held_out * len(task.prompt))


def test_the_split_is_drawn_by_its_seed_alone() -> None:
    first, again, other = (make(TaskSettings(digits=1, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(first.held_out, again.held_out)
    assert not torch.equal(first.held_out, other.held_out)
    assert torch.equal(first.prompt, other.prompt)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"name": "additoin"}, "unknown task 'additoin': did you mean 'addition'"),
        ({"digits": 0}, r"task\.digits: got 0; allowed is 1 to 6"),
        ({"digits": 2.5}, r"task\.digits: got 2\.5; allowed is 1 to 6"),
        ({"digits": "2"}, r"task\.digits: got '2'"),
        ({"terms": True}, r"task\.terms: got True"),
        ({"modulus": None}, r"task\.modulus: got None"),
        ({"held_out": [0.1]}, r"task\.held_out: got \[0\.1\]"),
        ({"limit": float("inf")}, r"task\.limit: got inf"),
        ({"seed": -1}, r"task\.seed: got -1; allowed is a whole number ≥ 0"),
        ({"scratchpad": 1}, r"task\.scratchpad: got 1; allowed is True or False"),
        ({"name": None}, r"unknown task 'None'"),
        ({"digits": 7}, r"task\.digits: got 7"),
        ({"name": "terms", "terms": 1}, r"task\.terms: got 1"),
        ({"name": "modular", "modulus": 101}, r"task\.modulus: got 101; allowed is 2 to 100"),
        ({"name": "modular", "modulus": 1}, r"task\.modulus: got 1"),
        ({"held_out": 0.0}, r"task\.held_out: got 0\.0"),
        ({"held_out": 1.0}, r"task\.held_out: got 1\.0"),
        ({"held_out": float("nan")}, r"task\.held_out: got nan"),
        ({"limit": 1}, r"task\.limit: got 1"),
        (
            {"scratchpad": True},
            r"task\.scratchpad: got True; allowed is False, except for the task 'terms'",
        ),
    ],
)
def test_impossible_settings_are_refused(settings: dict, says: str) -> None:
    with pytest.raises(CourseError, match=says):
        TaskSettings(**settings)


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(
        CourseError,
        match=(
            r"task\.held_out: got 0\.001; allowed is a share that leaves both parts of 100"
            r" questions"
        ),
    ):
        make(TaskSettings(digits=1, held_out=0.001))


def test_an_answer_longer_than_the_context_is_refused() -> None:
    with pytest.raises(CourseError, match="context: got 9; allowed is at least 10"):
        make(TaskSettings(), context=9)
    assert make(TaskSettings(), context=10).context == 10
    with pytest.raises(CourseError, match="context: got 10; allowed is at least 12"):
        make(TaskSettings(), context=10, slack=2)


# ---------------------------------------------------------------- a task of one's own


def test_a_new_task_takes_a_few_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "TASKS", dict(tasks.TASKS))

    @tasks.task
    def doubling(settings, generator):  # type: ignore[no-untyped-def]
        for number in range(10**settings.digits):
            yield Question(f"{number:02d}*2=", "", str(2 * number), number // 50)

    task = make(TaskSettings("doubling"))
    assert written(task, 7) == ("07*2=", "14⏎", "14⏎")
    assert task.target.shape == (100, 4)
    reward = ExactMatch()(
        torch.tensor([tokens_of("14⏎", 4), tokens_of("114⏎", 4)]), torch.tensor([7, 57]), task
    )
    assert reward.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("prompts", "says"),
    [
        (["1=", "22="], "prompts of one width"),
        (["1=", "1="], "each question once"),
        (["1=", "x="], "got 'x' in 'x='"),
        ([], "one width"),
    ],
)
def test_a_task_that_cannot_be_is_refused(
    prompts: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        tasks,
        "TASKS",
        {"own": lambda settings, generator: (Question(prompt, "", "1", 0) for prompt in prompts)},
    )
    with pytest.raises(CourseError, match=says):
        make(TaskSettings("own", held_out=0.5))


# ---------------------------------------------------------------- rewards, by hand


def check_rewards(task: Task, prompt: str, cases: dict[str, tuple[float, float, float]]) -> None:
    """Completion → (exact, digits, format) for the question `prompt`; all completions at once, and
    on leading axes.
    """
    row = [decode(tokens) for tokens in task.prompt.tolist()].index(prompt)
    made = torch.tensor([tokens_of(text, task.limit) for text in cases])
    question = torch.full((len(cases),), row)
    for i, reward in enumerate((ExactMatch(), DigitCredit(), Format())):
        got = reward(made, question, task)
        want = torch.tensor([float(values[i]) for values in cases.values()])
        torch.testing.assert_close(
            got,
            want,
            msg=lambda text, r=reward, g=got: (
                f"{r}: {dict(zip(cases, g.tolist(), strict=True))}\n{text}"
            ),
        )
        stacked = reward(made.expand(2, 3, *made.shape), question.expand(2, 3, -1), task)
        assert torch.equal(stacked, got.expand(2, 3, -1))


def test_rewards_of_a_sum() -> None:
    check_rewards(
        make(TaskSettings(), slack=2),  # two tokens of room behind the longest answer
        "12+34=",
        {
            "046⏎": (1, 1, 1),
            "146⏎": (0, 2 / 3, 1),
            "640⏎": (0, 1 / 3, 1),
            "⏎": (0, 0, 0),  # empty
            "0⏎": (0, 1 / 3, 1),
            "04⏎": (0, 2 / 3, 1),
            "0461⏎": (0, 1, 1),  # trailing digit
            "046;⏎": (0, 1, 0),  # trailing garbage
            "046046": (0, 1, 0),  # truncated: no end
            "=46=46": (0, 2 / 3, 0),
            "-46⏎": (0, 2 / 3, 1),  # a minus may lead
            "0-6⏎": (0, 2 / 3, 0),
            "-⏎": (0, 0, 0),
        },
    )


def test_the_end_is_part_of_the_answer_even_without_room_behind_it() -> None:
    check_rewards(
        make(TaskSettings()), "12+34=", {"046⏎": (1, 1, 1), "0460": (0, 1, 0), "04⏎": (0, 2 / 3, 1)}
    )


def test_rewards_of_answers_of_different_length() -> None:
    task = make(TaskSettings("subtraction", digits=1))
    check_rewards(
        task,
        "3-5=",
        {
            "-2⏎": (1, 1, 1),
            "2⏎": (0, 0, 1),
            "-3⏎": (0, 0.5, 1),
            "-2-": (0, 1, 0),
            "--⏎": (0, 0.5, 0),
        },
    )
    check_rewards(
        task,
        "5-3=",
        {"2⏎": (1, 1, 1), "-2⏎": (0, 0, 1), "22⏎": (0, 1, 1), "222": (0, 1, 0), "⏎": (0, 0, 0)},
    )


def test_rewards_behind_a_marker() -> None:
    task = make(TaskSettings("terms", digits=1, scratchpad=True))
    assert task.limit == len("03;#06⏎")
    check_rewards(
        task,
        "1+2+3=",
        {
            "03;#06⏎": (1, 1, 1),
            "99;#06⏎": (1, 1, 1),  # the steps are the model's own business
            "#06⏎": (1, 1, 1),
            "#05#06⏎": (1, 1, 1),  # the last marker counts
            "#06#05⏎": (0, 0.5, 1),
            "#06#⏎": (0, 0, 0),  # nothing behind it
            "03;06⏎": (0, 0, 0),  # missing marker
            "06⏎": (0, 0, 0),
            "⏎": (0, 0, 0),
            "#0⏎": (0, 0.5, 1),
            "#061⏎": (0, 1, 1),
            "#06;⏎": (0, 1, 0),
            "03;;#06": (0, 1, 0),  # truncated
            "03;03;#": (0, 0, 0),  # truncated at the marker itself
        },
    )


def test_weights_multiply_and_sums_add_up() -> None:
    task = make(TaskSettings(), slack=2)
    row = [decode(tokens) for tokens in task.prompt.tolist()].index("12+34=")
    made = torch.tensor([tokens_of(text, task.limit) for text in ("046⏎", "146⏎", "046;⏎", "⏎")])
    question = torch.full((4,), row)
    both = Sum(2.0, parts=(ExactMatch(0.5), DigitCredit(0.3), Format(-0.1)))
    third = 2 / 3
    want = torch.tensor([0.5 + 0.3 - 0.1, 0.3 * third - 0.1, 0.3, 0.0]) * 2
    torch.testing.assert_close(both(made, question, task), want)
    torch.testing.assert_close(
        REWARDS["exact+format"](made, question, task), torch.tensor([1.1, 0.1, 0, 0])
    )
    torch.testing.assert_close(
        REWARDS["exact+digits"](made, question, task), torch.tensor([1.5, 0.5 * third, 0.5, 0])
    )
    # with the end credited there are four characters: 0, 4, 6 and the end
    torch.testing.assert_close(
        REWARDS["exact+digits+end"](made, question, task),
        torch.tensor([1.5, 0.5 * 0.75, 0.5 * 0.75, 0.0]),
    )
    assert torch.equal(REWARDS["exact"](made, question, task), ExactMatch()(made, question, task))
    assert torch.equal(REWARDS["digits"](made, question, task), DigitCredit()(made, question, task))


@pytest.mark.parametrize(
    "make_reward",
    [
        lambda: ExactMatch(float("nan")),
        lambda: Sum(float("inf")),
        lambda: Sum(parts=()),
        lambda: DigitCredit(end="yes"),  # type: ignore[arg-type]
    ],
)
def test_rewards_that_are_none_are_refused(make_reward) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CourseError, match=r"reward\.(weight|parts|end)"):
        make_reward()


def test_every_target_earns_the_full_reward_and_no_other_questions_target_does() -> None:
    for settings in (
        TaskSettings(digits=1),
        TaskSettings("subtraction", digits=1),
        TaskSettings("terms", digits=1, scratchpad=True),
    ):
        task = make(settings)
        rows = torch.arange(len(task.prompt))
        for reward in (ExactMatch(), DigitCredit(), Format()):
            assert isinstance(reward, Reward)
            assert (reward(task.target, rows, task) == 1).all()
        shifted = rows.roll(1)
        same = (task.answer[rows] == task.answer[shifted]).all(-1)
        assert torch.equal(ExactMatch()(task.target[shifted], rows, task), same.float())


def of_length(count: int) -> torch.Tensor:
    """Wrong answers of one-digit sums: `count` tokens of eight, the last one an end token."""
    return torch.tensor([1] * (count - 1) + [END] + [PAD] * (8 - count))


def test_the_soft_overlong_penalty_by_hand() -> None:
    """Free up to 6 − 4 tokens, −1 from 6 on, a quarter for each token between."""
    task, reward = make(TaskSettings(digits=1)), SoftOverlong(2.0, longest=6, cache=4)
    made = torch.stack([of_length(count) for count in range(1, 9)])
    found = reward(made, task.train[:1].expand(8), task)
    assert found.tolist() == [0, 0, -0.5, -1.0, -1.5, -2.0, -2.0, -2.0]


def test_the_cosine_length_reward_by_hand() -> None:
    task = make(TaskSettings(digits=1))
    reward = CosineLength(longest=6, right=1.0, right_long=0.4, wrong=-2.0, wrong_long=-0.8)
    rows = task.train[:1].expand(8)
    made = torch.stack([of_length(count) for count in range(1, 9)])
    for count, found in enumerate(reward(made, rows, task).tolist(), 1):
        angle = math.pi * min(count / 6, 1)
        assert found == pytest.approx(-2.0 + 1.2 * (1 - math.cos(angle)) / 2, rel=1e-6)
    right = torch.nn.functional.pad(task.target[rows[:1]], (0, 5), value=PAD)  # three tokens
    assert reward(right, rows[:1], task).tolist() == pytest.approx([0.7], rel=1e-6)


@pytest.mark.parametrize(
    ("make_reward", "field"),
    [
        (lambda: SoftOverlong(longest=4, cache=5), "cache"),
        (lambda: SoftOverlong(longest=0), "longest"),
        (lambda: SoftOverlong(cache=0), "cache"),
        (lambda: CosineLength(longest=0), "longest"),
        (lambda: CosineLength(wrong_long=math.inf), "wrong_long"),
    ],
)
def test_rewards_of_length_that_are_none_are_refused(make_reward, field: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CourseError, match=rf"reward.{field}: got"):
        make_reward()
