"""The commands on a model as a user types them: exit codes, one line per error, and
what they show.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from course.ladder import RUNGS
from course.train import checkpoint, device
from tinylm import commands
from tinylm.evaluate import accuracy
from tinylm.folder import CHECKPOINT, METRICS
from tinylm.scoring import log_dists
from tinylm.tasks import decode, encode
from tinylm.training import Training, TrainSettings

NANO = (
    "--preset",
    "nano",
    "--digits",
    "1",
    "--warm-lr",
    "0.01",
    "--prompts",
    "8",
    "--group",
    "4",
    "--device",
    "cpu",
)
SHORT = (*NANO, "--warm-target", "0.2", "--rollouts", "20")


def typed(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`python -m tinylm …` in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "tinylm", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Where a short training of nano is, and what it said.

    Its output goes to the default folder.
    """
    place = tmp_path_factory.mktemp("trained")
    return place, typed("train", *SHORT, cwd=place)


def refused(capsys: pytest.CaptureFixture[str], says: str, *arguments: str) -> None:
    """Exit status 2 and one line on stderr, nothing on stdout."""
    assert commands.main(arguments) == 2
    out, err = capsys.readouterr()
    assert re.search(says, err), err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert out == ""


# ---------------------------------------------------------------- train


def test_train_goes_from_nothing_to_a_checkpoint_and_shows_how_long_it_takes(
    trained: tuple,
) -> None:
    place, said = trained
    assert said.returncode == 0, said.stderr
    assert re.search(r"1 × nano model, 9,744 parameters, on cpu; → runs/latest", said.stdout)
    assert re.search(r"warm start: 0\.\d+ of samples right after \d+ steps", said.stdout)
    assert re.search(
        r"greedy answers to 10 held-out questions: [\d.]+ % right; .* of training", said.stdout
    )
    assert "warm start, % of samples right" in said.stderr
    assert re.search(r"grpo: .*0/20 \[\d\d:\d\d<", said.stderr)  # tqdm: elapsed < left
    folder = place / "runs" / "latest"
    assert sorted(os.listdir(folder)) == ["checkpoint.json", CHECKPOINT, METRICS]
    rows = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    assert {row["phase"] for row in rows} == {"warm", "train"}
    assert Training.load(folder / CHECKPOINT).done


def test_what_was_finished_can_be_resumed_and_stays(
    trained: tuple, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trained[0] / "runs" / "latest"
    before, log = checkpoint.read(folder / CHECKPOINT), (folder / METRICS).read_bytes()
    assert commands.main(["train", "--resume", "--out", str(folder)]) == 0
    assert "of training" in capsys.readouterr().out
    after = checkpoint.read(folder / CHECKPOINT)
    assert checkpoint.equal_states(before[0], after[0])
    assert before[1] == after[1]
    assert (folder / METRICS).read_bytes() == log


def test_the_warm_start_alone_and_then_reinforcement_learning_from_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    warm, after = tmp_path / "warm", tmp_path / "after"
    assert commands.main(["train", *SHORT[:-2], "--only", "warm", "--out", str(warm)]) == 0
    assert Training.load(warm / CHECKPOINT).settings.rollouts == 0
    assert (
        commands.main(
            [
                "train",
                *NANO,
                "--rollouts",
                "2",
                "--start",
                str(warm),
                "--rung",
                "rloo",
                "--lr",
                "1e-9",
                "--out",
                str(after),
            ]
        )
        == 0
    )
    began, ended = (
        checkpoint.under("model", checkpoint.read(folder / CHECKPOINT)[0])
        for folder in (warm, after)
    )
    assert all(torch.allclose(began[name], ended[name], atol=1e-7) for name in began)
    rows = [json.loads(line) for line in (after / METRICS).read_text().splitlines()]
    assert [row["phase"] for row in rows] == ["train", "train"]
    capsys.readouterr()
    again = ("train", *NANO, "--rollouts", "1", "--only", "rl", "--out", str(after))
    before = (after / CHECKPOINT).read_bytes(), (after / METRICS).read_bytes()
    for more in ((), ("--start", str(warm))):
        other = again if not more else (*again[:-4], *more, *again[-2:])
        refused(capsys, "^error: --out: got .*after', which holds another training", *other)
    assert before == ((after / CHECKPOINT).read_bytes(), (after / METRICS).read_bytes())
    refused(capsys, "--resume: got '--overwrite'", "train", "--resume", "--overwrite")
    assert commands.main([*again, "--overwrite"]) == 0  # from random weights
    rows = [json.loads(line) for line in (after / METRICS).read_text().splitlines()]
    assert [(row["phase"], row["step"]) for row in rows] == [("train", 1)]
    assert Training.load(after / CHECKPOINT).settings.warm_target == 0


def test_help_shows_every_setting_with_its_default_and_meaning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert commands.main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Warm start (supervised, to --warm-target)" in " ".join(shown.split())
    words = " ".join(shown.replace("│", " ").split())
    for field in dataclasses.fields(TrainSettings):
        default = "none" if field.default is None else str(field.default)
        about = words.partition(f"--{field.name.replace('_', '-')}")[2]
        assert re.match(rf"[^│]*?[a-z:;].*?\(default: {re.escape(default)}\)", about), field.name
    assert "sampled accuracy that ends the warm start; 0: no warm start" in words
    for option in ("--out", "--resume", "--only", "--start", "--save-every"):
        assert option in shown
    for command, options in (
        ("eval", ("--from", "--samples", "--questions", "--top-k")),
        ("sample", ("12+34=", "--temperature", "--seed")),
    ):
        assert commands.main([command, "--help"]) == 0
        shown = capsys.readouterr().out
        assert all(option in shown for option in options)


def test_switches_need_no_value(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[TrainSettings] = []

    def stop(settings: TrainSettings) -> Training:
        seen.append(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "Training", stop)
    for words in (
        ["--compile", "true"],
        ["--bf16", "true", "--scratchpad", "--task", "terms"],
        ["--bf16", "false", "--no-scratchpad"],
    ):
        assert commands.main(["train", *words, "--out", str(tmp_path)]) == 130
    assert [settings.compile for settings in seen] == [True, False, False]
    assert [settings.bf16 for settings in seen] == [False, True, False]
    assert seen[1].scratchpad


def interrupt_step(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Ctrl-C comes at step `number` of all trainings from now on, and never again."""
    step, steps = Training.step, [0]

    def tired(self: Training):  # type: ignore[no-untyped-def]
        steps[0] += 1
        if steps[0] == number:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Training, "step", tired)


def test_ctrl_c_ends_with_130_and_leaves_something_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt_step(monkeypatch, 30)
    assert commands.main(["train", *SHORT, "--out", str(tmp_path)]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert commands.main(["train", "--resume", "--out", str(tmp_path), "--device", "cpu"]) == 0
    assert Training.load(tmp_path / CHECKPOINT).done


def test_a_rung_of_ones_own_trains_and_is_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(
        "from course.estimator import replace\nfrom course.ladder import clip\nfrom course.parts"
        " import GroupMean\nmy_clip = replace(clip, baseline=GroupMean(), entropy_coef=0.01)\n"
    )
    own, out = f"{tmp_path / 'mine.py'}:my_clip", str(tmp_path / "out")
    try:
        assert commands.main(["train", *SHORT, "--rung", own, "--rollouts", "2", "--out", out]) == 0
        assert Training.load(tmp_path / "out" / CHECKPOINT).settings.rung == "my_clip"
        del RUNGS["my_clip"]  # another process
        capsys.readouterr()
        refused(capsys, "unknown rung 'my_clip'", "eval", "--from", out)
        assert (
            commands.main(
                ["eval", "--from", out, "--rung", own, "--samples", "2", "--device", "cpu"]
            )
            == 0
        )
        assert commands.main(["train", "--resume", "--out", out, "--rung", own]) == 0
    finally:
        RUNGS.pop("my_clip", None)


# ---------------------------------------------------------------- TensorBoard


@pytest.mark.parametrize("runs", [1, 2])
def test_tensorboard_shows_the_numbers_of_the_log(
    runs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after Ctrl-C and a resumption, which writes the rows since the checkpoint again."""
    pytest.importorskip("tensorboard", reason='pip install -c constraints.txt -e ".[tensorboard]"')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    where = ["--out", str(tmp_path / "out"), "--tensorboard", str(tmp_path / "board")]
    where += ["--device", "cpu"]
    interrupt_step(monkeypatch, 30)
    words = [*SHORT, "--runs", str(runs), "--save-every", "1000"]
    assert commands.main(["train", *words, *where]) == 130
    assert commands.main(["train", "--resume", *where]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / METRICS).read_text().splitlines()]
    for phase in ("warm", "train"):
        for model in range(runs):
            seen = EventAccumulator(str(tmp_path / "board" / phase / (str(model) * (runs > 1))))
            seen.Reload()
            logged = [row for row in rows if row["phase"] == phase]
            names = {name for row in logged for name in row} - {"phase", "step"}
            assert set(seen.Tags()["scalars"]) == names
            for name in names:
                wanted = [(row["step"], row[name]) for row in logged if name in row]
                wanted = [(step, v[model] if runs > 1 else v) for step, v in wanted]
                found = [(event.step, event.value) for event in seen.Scalars(name)]
                assert [step for step, _ in found] == [step for step, _ in wanted]
                values = [value for _, value in wanted]
                assert [value for _, value in found] == pytest.approx(values, rel=1e-6, nan_ok=True)


def test_without_tensorboard_one_line_says_so_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    refused(capsys, "pip install tensorboard", "train", *SHORT, "--tensorboard", "board")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- eval


def test_eval_shows_greedy_sampled_and_pass_at_k_with_intervals_and_by_difficulty(
    trained: tuple,
) -> None:
    place, _ = trained
    shown = typed("eval", "--samples", "8", "--device", "cpu", cwd=place)
    assert shown.returncode == 0, shown.stderr
    number = r"[01]\.\d{3}"
    rows = dict(
        re.findall(
            rf"(greedy|sampled|pass@\d+|greedy, difficulty \d)  +({number}  +{number} to"
            rf" {number}(?:   *\d+ questions)?)",
            shown.stdout,
        )
    )
    assert rows.keys() == {
        "greedy",
        "sampled",
        "pass@2",
        "pass@4",
        "pass@8",
        "greedy, difficulty 0",
        "greedy, difficulty 1",
    }
    values = {name: tuple(map(float, re.findall(number, row))) for name, row in rows.items()}
    for share, low, high in values.values():
        assert 0 <= low <= share <= high <= 1
    assert values["sampled"][0] <= values["pass@2"][0] <= values["pass@4"][0] <= values["pass@8"][0]
    training = Training.load(place / "runs" / "latest" / CHECKPOINT)
    greedy = accuracy(training.model, training.task)
    assert values["greedy"][0] == pytest.approx(float(greedy.mean()), abs=5e-4)
    hard = training.task.difficulty[training.task.held_out]
    for level in (0, 1):
        name = f"greedy, difficulty {level}"
        assert values[name][0] == pytest.approx(float(greedy[hard == level].mean()), abs=5e-4)
        assert int(re.search(r"(\d+) questions", rows[name]).group(1)) == int((hard == level).sum())  # type: ignore[union-attr]


def test_eval_shows_every_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path)
    assert commands.main(["train", *SHORT, "--runs", "2", "--rollouts", "1", "--out", out]) == 0
    assert re.search(r"held-out questions: [\d.]+ %, [\d.]+ % right", capsys.readouterr().out)
    assert (
        commands.main(
            [
                "eval",
                "--from",
                out,
                "--samples",
                "1",
                "--questions",
                "3",
                "--top-k",
                "4",
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert shown.startswith("3 held-out questions, 1 samples each at temperature 1, top-4")
    assert shown.count("greedy  ") == 2
    assert "model 0" in shown
    assert "model 1" in shown
    assert "pass@" not in shown
    assert commands.main(["sample", "--from", out, "--device", "cpu"]) == 0


# ---------------------------------------------------------------- sample


def test_sample_shows_completions_rewards_and_the_probability_of_each_token(trained: tuple) -> None:
    place, _ = trained
    shown = typed("sample", "3+4=", "9+9=", "--samples", "6", "--device", "cpu", cwd=place)
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()[2:]
    assert len(lines) == 12
    training = Training.load(place / "runs" / "latest" / CHECKPOINT)
    for i, line in enumerate(lines):
        question, answer = (("3+4=", "07"), ("9+9=", "18"))[i // 6]
        assert line.startswith(f"{question}  {'':4}{answer}" if i % 6 == 0 else " " * 10)
        completion, reward, spelled = re.fullmatch(
            r"(?:\S+ +\d+)? *(\S*) +([01]) +(\S.*)", line
        ).groups()  # type: ignore[union-attr]
        told = [
            (token, float(chance))
            for token, _, chance in (word.rpartition(":") for word in spelled.split())
        ]
        assert "".join(token for token, _ in told).replace("⏎", "") == completion
        assert int(reward) == (completion == answer and told[-1][0] == "⏎")
        tokens = torch.tensor([[[*encode(completion), *[18] * (3 - len(completion))]]])
        log_dist = log_dists(training.model, torch.tensor([encode(question)]), tokens)
        for t, (_, chance) in enumerate(told):
            assert chance == pytest.approx(
                float(log_dist[0, 0, t, tokens[0, 0, t]].exp().detach()), abs=0.0051
            )


def test_sample_takes_held_out_questions_where_none_are_given(
    trained: tuple, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trained[0] / "runs" / "latest"
    assert (
        commands.main(["sample", "--from", str(folder), "--samples", "1", "--device", "cpu"]) == 0
    )
    asked = re.findall(r"^(\d\+\d=)", capsys.readouterr().out, re.MULTILINE)
    task = Training.load(folder / CHECKPOINT).task
    assert len(asked) == 5
    assert set(asked) <= {decode(row) for row in task.prompt[task.held_out].tolist()}


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "--rung", "gprpo"], "unknown rung 'gprpo': did you mean 'grpo'"),
        (["train", "--rung", "grpo,rloo"], "unknown rung 'grpo,rloo'"),
        (["train", "--preset", "huge"], "--preset: got 'huge'; allowed is nano, mini, small, gpu"),
        (["train", "--digits", "two"], "--digits: got 'two'; allowed is a whole number"),
        (["train", "--lr", "-1"], "--lr: got -1.0; allowed is a finite number > 0"),
        (["train", "--held-out", "0.00001", "--digits", "1"], "--held-out: got 1e-05"),
        (["train", "--colour", "blue"], "unknown option '--colour'"),
        (["train", "--device", "cuda:9"], "--device: got 'cuda:9'; allowed is what"),
        (["train", "--save-every", "0"], "--save-every: got 0"),
        (["train", "--kl-stop", "0"], "--kl-stop: got 0.0; allowed is a number > 0, or none"),
        (["sample", "--samples", "10000000"], "--samples: got 10000000; allowed is at most 10000"),
        (["eval", "--samples", "10001"], "--samples: got 10001"),
        (["train", "--only", "warm", "--start", "x"], "--start: got '--only warm as well'"),
        (["train", "--start", "nowhere"], "nowhere/checkpoint.safetensors: no such file"),
        (["train", "--resume"], "runs/latest/checkpoint.safetensors: no such file"),
        (["train", "--resume", "--lr", "1"], "--resume: got '--lr'; allowed is no other settings"),
        (["train", "--resume", "--only", "rl"], "--resume: got '--only'"),
        (["train", "--compile", "maybe"], "--compile: got 'maybe'"),
        (["eval", "--from", "nowhere"], "nowhere/checkpoint.safetensors: no such file"),
        (["eval", "--samples", "0"], "--samples: got 0"),
        (["eval", "--temperature", "0"], "--temperature: got 0.0"),
        (["eval", "--top-k", "0"], "--top-k: got 0"),
        (["eval", "--seed", "-1"], "--seed: got -1"),
        (["eval", "--device", "tpu"], "--device: got 'tpu'"),
        (["eval", "--samples", "many"], "--samples: got 'many'; allowed is a whole number"),
        (["sample", "--samples", "-1"], "--samples: got -1"),
        (["eval", "--temperature", "1e-300"], "--temperature: got 1e-300"),
        (["eval", "--temperature", "1e39"], "--temperature: got 1e+39"),
        (["sample", "--temperature", "nan"], "--temperature: got nan"),
        (["train", "--temperature", "1e-39"], "--temperature: got 1e-39"),
        (["train", "--rollouts", "2.5"], "--rollouts: got '2.5'; allowed is a whole number"),
        (["train", "--digits", "9"], "--digits: got 9"),
        (["train", "--seed", "-1"], "--seed: got -1"),
        (["trian"], "unknown command or ablation 'trian': did you mean 'train'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said_in_one_line(
    arguments: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(device, "available", lambda: ["cpu"])
    refused(capsys, re.escape(says), *arguments)
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ("3+x=", "got 'x' in '3+x='"),
        ("13+4=", "question: got '13+4=' of 5 characters; allowed is 4, such as '0+0='"),
        ("3-4=", "question: got '3-4='; allowed is one that the task knows the answer of"),
    ],
)
def test_questions_that_the_task_does_not_know_are_refused(
    question: str, says: str, trained: tuple, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(
        capsys, re.escape(says), "sample", question, "--from", str(trained[0] / "runs" / "latest")
    )


def test_an_error_ends_the_process_with_2_and_one_line(tmp_path: Path) -> None:
    said = typed("train", "--rung", "gprpo", cwd=tmp_path)
    assert said.returncode == 2
    assert said.stderr == "error: --rung: got unknown rung 'gprpo': did you mean 'grpo'?\n"
    assert said.stdout == ""
    assert os.listdir(tmp_path) == []


def test_without_a_command_it_lists_what_there_is(tmp_path: Path) -> None:
    listed = typed(cwd=tmp_path)
    assert listed.returncode == 0
    assert all(f"course tinylm {command}" in listed.stdout for command in commands.COMMANDS)


@pytest.mark.skipif(sys.platform != "linux", reason="the OpenMP of other systems does not tell")
@pytest.mark.parametrize(
    ("asked", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")]
)
def test_threads_that_wait_sleep_unless_told_otherwise(
    asked: dict[str, str], policy: str, tmp_path: Path
) -> None:
    left = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    ran = subprocess.run(
        [sys.executable, "-m", "tinylm", "eval", "--from", str(tmp_path)],
        env={**left, **asked, "OMP_DISPLAY_ENV": "true"},
        capture_output=True,
        text=True,
    )
    assert f"OMP_WAIT_POLICY = '{policy}'" in ran.stderr
