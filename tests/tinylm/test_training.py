"""Training: killed and resumed to the bit, checkpoints that are refused, full disks, and learning
with a known outcome.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace as with_changes
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from course import ladder
from course.errors import CourseError
from course.estimator import Estimator, uses_critic
from course.learner import Learner
from course.parts import GroupMean, GroupStd
from course.train import checkpoint, device
from course.train.noise import Noise
from course.train.optim import SGD, Adam, LinearDecay
from tests.helpers import bernoulli_bandit, few_ulp, stream
from tests.tinylm.helpers import schooled, tiny
from tinylm.evaluate import accuracy
from tinylm.folder import CHECKPOINT, METRICS, run
from tinylm.model import PRESETS, Transformer
from tinylm.problem import LanguageModel
from tinylm.scoring import log_dists
from tinylm.tasks import Task, TaskSettings, make
from tinylm.training import CHECK_EVERY, Training, TrainSettings

QUICK = TrainSettings(
    preset="nano",
    digits=1,
    warm_target=0.1,
    warm_lr=1e-2,
    warm_batch=32,
    rollouts=12,
    prompts=6,
    group=4,
    minibatches=2,
    sync_reference=5,
    log_every=3,
    eval_every=4,
    device="cpu",
)


def options(settings: TrainSettings) -> list[str]:
    """The settings that are not the default, as a user types them."""
    default = TrainSettings()
    fields = [(name, getattr(settings, name)) for name in TrainSettings.__dataclass_fields__]
    return [
        word
        for name, value in fields
        if value != getattr(default, name)
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]


def same_training(one: Path, two: Path) -> None:
    """The same tensors to the bit, the same description, the same log to the byte."""
    (tensors, about), (others, others_about) = (
        checkpoint.read(folder / CHECKPOINT) for folder in (one, two)
    )
    assert checkpoint.equal_states(tensors, others)
    assert about == others_about
    for name in (CHECKPOINT, METRICS):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    assert about["phase"] == "done"


# ---------------------------------------------------------------- stopping and going on


KILLED = with_changes(QUICK, warm_target=0.3, rollouts=100)


@pytest.fixture(scope="module")
def unstopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that nothing stopped."""
    folder = tmp_path_factory.mktemp("unstopped")
    run(Training(KILLED), folder, save_every=50)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["warm", "train"])
def test_killed_without_warning_and_resumed_it_ends_as_if_never_stopped(
    phase: str, unstopped: Path, tmp_path: Path
) -> None:
    killed = tmp_path / "killed"
    command = [
        sys.executable,
        "-m",
        "tinylm",
        "train",
        "--out",
        str(killed),
        "--save-every",
        "7",
        *options(KILLED),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with open(tmp_path / "said", "w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        rows = (
            (killed / METRICS).read_text().splitlines()[:-1] if (killed / METRICS).exists() else []
        )
        if any(json.loads(row)["phase"] == phase and json.loads(row)["step"] > 10 for row in rows):
            break
        time.sleep(0.003)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, (tmp_path / "said").read_text()
    assert checkpoint.read(killed / CHECKPOINT)[1]["phase"] == phase  # it did not get to its end
    run(Training.load(killed / CHECKPOINT), killed, save_every=7)
    same_training(killed, unstopped)


class Stopped(Exception):
    """What a test stops a training with."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"runs": 2, "warm_target": 0.2},
        {"rung": "ppo", "critic": "own"},
        {"rung": "ppo", "critic": "shared", "runs": 2},
        {"rung": "ppo_kl_adaptive"},
        {"rung": "remax", "sync_reference": 0, "warm_target": 0.0, "reward": "digits"},
        {"rollouts": 0},
        {"bf16": True},
    ],
    ids=lambda changes: " ".join(f"{name}={value}" for name, value in changes.items()) or "grpo",
)
def test_stopped_anywhere_and_resumed_it_ends_as_if_never_stopped(
    changes: dict, tmp_path: Path
) -> None:
    """What is on the disk in the middle of a training, kept at every 13th step and around the
    change of phase, and gone on from.
    """
    whole = tmp_path / "whole"
    phases: list[str] = []

    def keep(now: Training) -> None:
        phases.append(now.phase)
        new = (
            phases[-3:-1] != [now.phase] * 2
        )  # the first two steps, and the two at which a phase begins
        if new or len(phases) % 13 == 0:
            shutil.copytree(whole, tmp_path / f"after {len(phases)}")

    run(Training(with_changes(QUICK, **changes)), whole, save_every=3, tick=keep)
    for stop in range(1, len(phases)):
        cut = tmp_path / f"after {stop}"
        if cut.exists():
            run(Training.load(cut / CHECKPOINT), cut, save_every=5)
            same_training(cut, whole)


@pytest.mark.slow
def test_a_half_written_last_row_is_written_again(tmp_path: Path) -> None:
    run(Training(QUICK), tmp_path / "whole", save_every=3)
    run(Training(QUICK), tmp_path / "cut", save_every=3)
    training = Training(QUICK)
    while training.phase == "warm":
        training.step()
    training.save(tmp_path / "cut" / CHECKPOINT)
    rows = (tmp_path / "whole" / METRICS).read_text().splitlines(keepends=True)
    (tmp_path / "cut" / METRICS).write_text("".join(rows[:-2]) + rows[-2][:17])
    run(Training.load(tmp_path / "cut" / CHECKPOINT), tmp_path / "cut")
    same_training(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize("changes", [{"seed": 1}, {"warm_target": 0.0}], ids=str)
def test_a_training_begins_in_a_folder_of_its_own_or_replaces_all(
    changes: dict, tmp_path: Path
) -> None:
    """Also one without a warm start, whose first step comes after all rows of the other's."""
    one, two = tmp_path / "one", tmp_path / "two"
    other = with_changes(QUICK, **changes)
    run(Training(other), one)
    run(Training(QUICK), two)
    before = {path.name: path.read_bytes() for path in two.iterdir()}
    holds = "two', which holds another training .* --resume to go on with it, --overwrite"
    with pytest.raises(CourseError, match=holds):
        run(Training(other), two)
    with pytest.raises(CourseError, match=holds):  # one that was loaded from elsewhere
        run(Training.load(one / CHECKPOINT), two)
    assert {path.name: path.read_bytes() for path in two.iterdir()} == before
    run(Training(other), two, overwrite=True)
    same_training(one, two)


def test_a_folder_that_changed_since_it_was_loaded_is_not_gone_on_with(tmp_path: Path) -> None:
    run(Training(QUICK), tmp_path)
    loaded = Training.load(tmp_path / CHECKPOINT)
    run(Training(with_changes(QUICK, seed=1)), tmp_path, overwrite=True)
    with pytest.raises(CourseError, match="which holds another training"):
        run(loaded, tmp_path)


ROW = b'{"phase": "warm", "step": 1}\n'


@pytest.mark.parametrize(
    ("log", "says"),
    [
        (b"\xff\xfe\x00PNG", "utf-8"),
        (b"name,value\n1,2\n", "line 1 is no row of it"),
        (ROW + b'{"phase": "war\n' + ROW, "line 2"),
        (b'{"phase": "cooling", "step": 1}\n', "line 1"),
        (b"[" * 100_000 + b"\n", "line 1"),
    ],
    ids=["binary", "csv", "hole", "foreign", "deep"],
)
@pytest.mark.parametrize("how", ["fresh", "overwrite", "resume"])
def test_a_log_that_is_none_is_refused_before_anything_is_written(
    log: bytes, says: str, how: str, tmp_path: Path
) -> None:
    training = Training(with_changes(QUICK, warm_target=0.0))
    training.save(tmp_path / CHECKPOINT)
    (tmp_path / METRICS).write_bytes(log)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    again = Training.load(tmp_path / CHECKPOINT) if how == "resume" else Training(QUICK)
    with pytest.raises(
        CourseError, match=rf"{METRICS}: got a file that is no log of a training .*{says}"
    ) as refused:
        run(again, tmp_path, overwrite=how == "overwrite")
    assert len(str(refused.value).splitlines()) == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_second_training_in_a_folder_is_refused_while_the_first_runs(tmp_path: Path) -> None:
    """In another process; after a kill -9 of the first its folder can be gone on with."""
    long = options(with_changes(KILLED, rollouts=100_000))  # it outlives the refused commands
    command = [sys.executable, "-m", "tinylm", "train", "--out", str(tmp_path), *long]
    with open(tmp_path.parent / "said", "w") as said:
        first = subprocess.Popen(command, stdout=said, stderr=said)
    deadline = time.monotonic() + 60
    try:
        while not (tmp_path / METRICS).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        for more in ((), ("--overwrite",)):
            second = subprocess.run([*command, *more], capture_output=True, text=True)
            assert first.poll() is None
            assert (second.returncode, second.stdout) == (2, "")
            assert second.stderr == (
                f"error: --out: got '{tmp_path}', where another training is running; allowed is"
                " another folder\n"
            )
    finally:
        first.kill()
        first.wait()
    assert ".training.lock" in os.listdir(tmp_path)  # what a killed process leaves
    loaded = Training.load(tmp_path / CHECKPOINT)
    begun = loaded.learner.steps

    def stop(now: Training) -> None:
        if now.learner.steps == begun + 2:
            raise Stopped

    with pytest.raises(Stopped):
        run(loaded, tmp_path, tick=stop)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint.json", CHECKPOINT, METRICS]


def test_a_training_that_was_interrupted_goes_on_where_it_is(tmp_path: Path) -> None:
    """The same object in the same process, as in a notebook."""

    def stop(now: Training) -> None:
        if now.learner.steps == 9:
            raise Stopped

    training = Training(QUICK)
    with pytest.raises(Stopped):
        run(training, tmp_path / "one", tick=stop)
    run(training, tmp_path / "one")
    run(Training(QUICK), tmp_path / "two")
    same_training(tmp_path / "one", tmp_path / "two")


def test_a_saved_training_goes_on_from_a_model_of_that_moment(tmp_path: Path) -> None:
    """The reference too: a snapshot from where reinforcement learning began, or was last
    synchronised.
    """
    training = Training(with_changes(QUICK, warm_target=0.0, reward="digits"))
    for _ in range(7):
        training.step()
    loaded = Training.load(training.save(tmp_path / "state"))
    assert training.reference is not None
    assert loaded.reference is not None
    for mine, saved in ((training.model, loaded.model), (training.reference, loaded.reference)):
        assert all(
            torch.equal(weight, saved.weights[name]) for name, weight in mine.weights.items()
        )
    assert not torch.equal(loaded.model.weights["head"], loaded.reference.weights["head"])
    assert loaded.learner.steps == 7
    described = json.loads((tmp_path / "state.json").read_text())
    assert described["settings"]["rung"] == "grpo"
    assert (described["phase"], described["step"]) == ("train", 7)


def test_the_reference_is_synchronised_when_asked(tmp_path: Path) -> None:
    settings = with_changes(QUICK, warm_target=0.0, reward="digits", lr=1e-2)
    for every in (0, 3):
        training = Training(with_changes(settings, sync_reference=every))
        assert training.reference is not None
        first = training.reference.weights["head"].clone()
        for step in range(1, 6):
            training.step()
            same = torch.equal(training.reference.weights["head"], first)
            assert same == (not every or step < 3)
            assert torch.equal(
                training.reference.weights["head"], training.model.weights["head"]
            ) == (step == every)


def test_reinforcement_learning_can_begin_from_another_trainings_model(tmp_path: Path) -> None:
    run(Training(with_changes(QUICK, rollouts=0)), tmp_path)
    warm = checkpoint.under("model", checkpoint.read(tmp_path / CHECKPOINT)[0])
    for rung in ("rloo", "grpo", "ppo"):
        training = Training(with_changes(QUICK, warm_target=0.0, rung=rung, critic="shared"))
        training.adopt(tmp_path / CHECKPOINT)
        for network in (training.model, training.reference):
            assert network is None or all(
                torch.equal(network.weights[name], weight) for name, weight in warm.items()
            )
        training.step()
    with pytest.raises(
        CourseError,
        match=rf"{CHECKPOINT}: model\.embedding: got \(19, 24\); allowed is \(2, 19, 24\)",
    ):
        Training(with_changes(QUICK, warm_target=0.0, runs=2)).adopt(tmp_path / CHECKPOINT)


# ---------------------------------------------------------------- what is refused


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the middle of reinforcement learning."""
    training = Training(with_changes(QUICK, warm_target=0.0))
    training.step()
    return training.save(tmp_path_factory.mktemp("saved") / CHECKPOINT)


def rewritten(
    saved: Path,
    path: Path,
    *,
    drop: str = "",
    tensors: dict[str, Tensor] | None = None,
    **about: object,
) -> Path:
    """The checkpoint with something else in it, whole as a file."""
    kept, told = checkpoint.read(saved)
    kept = {name: tensor for name, tensor in kept.items() if not drop or not name.startswith(drop)}
    return checkpoint.write(path, kept | (tensors or {}), {**told, **about})


def test_damaged_and_foreign_checkpoints_are_refused_by_name(saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    path = tmp_path / "state"
    told = checkpoint.read(saved)[1]

    def refused(says: str) -> None:
        with pytest.raises(CourseError, match=rf"state: .*{says}"):
            Training.load(path)

    refused("no such file")
    for size in (0, 7, 1000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused("damaged")
    for place in (
        len(whole) - 1,
        len(whole) // 2,
        2 * len(whole) // 3,
    ):  # one bit among the numbers
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        refused("damaged: the checksum")
    path.write_bytes(whole.replace(b"warm_lr", b"warm_lt", 1))
    refused("damaged: the checksum")
    save_file({"x": torch.ones(1)}, path)
    refused("format None")
    Learner(bernoulli_bandit(), ladder.grpo, SGD(0.1), stream()).save(path)
    refused("no training of a tiny language model")
    rewritten(saved, path, drop="model.head")
    refused("damaged, or written by another version")
    rewritten(saved, path, drop="learner.noise")
    refused("damaged, or written by another version")
    rewritten(saved, path, drop="reference")
    refused("damaged, or written by another version")
    rewritten(saved, path, tensors={"model.head": torch.zeros(3, 5)})
    refused("damaged, or written by another version")
    rewritten(saved, path, settings={**told["settings"], "colour": "blue"})
    refused("another version .*colour")
    rewritten(saved, path, settings={**told["settings"], "rung": "my_own"})
    refused("unknown rung 'my_own'")
    rewritten(saved, path, settings={**told["settings"], "rung": "rloo"})
    refused(r"estimator\.")
    rewritten(saved, path, phase="cooling")
    refused("another version")
    rewritten(saved, path, numbers=[])
    refused("another version")
    rewritten(saved, path)
    assert Training.load(path).learner.steps == 1


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No room when it is written, when it is put in place, and for the log."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(Training(QUICK), whole)
    for step in ("fsync", "replace"):
        training = Training(QUICK)
        with pytest.raises(Stopped):
            run(
                training,
                cut,
                overwrite=True,
                save_every=4,
                tick=lambda now: (_ for _ in ()).throw(Stopped) if now.learner.steps == 9 else None,
            )
        before = (cut / CHECKPOINT).read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, step, full)
            with pytest.raises(
                CourseError, match=rf"{CHECKPOINT}: cannot be written \(No space left on device\)"
            ):
                run(Training.load(cut / CHECKPOINT), cut, save_every=4)
        assert (cut / CHECKPOINT).read_bytes() == before
        assert not [name for name in os.listdir(cut) if name.endswith(".tmp")]
        run(Training.load(cut / CHECKPOINT), cut)
        same_training(cut, whole)

    import builtins

    real = builtins.open
    with monkeypatch.context() as patch:
        patch.setattr(
            builtins,
            "open",
            lambda path, mode="r", *rest, **more: (
                full() if mode == "a" else real(path, mode, *rest, **more)
            ),
        )
        with pytest.raises(
            CourseError, match=rf"{METRICS}: cannot be written \(No space left on device\)"
        ):
            run(Training(QUICK), cut, overwrite=True)
    assert Training.load(cut / CHECKPOINT).learner.steps == 0


def test_a_device_that_is_not_there_is_refused_and_the_default_is_what_there_is(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "available", lambda: ["cpu"])
    assert TrainSettings().device == "cpu"
    with pytest.raises(
        CourseError,
        match=r"device: got 'cuda:3'; allowed is what this machine has: cpu \(or auto\)",
    ):
        TrainSettings(device="cuda:3")
    elsewhere = rewritten(
        saved,
        tmp_path / "state",
        settings={**checkpoint.read(saved)[1]["settings"], "device": "cuda"},
    )
    with pytest.raises(CourseError, match=r"state: device: got 'cuda'"):
        Training.load(elsewhere)
    assert Training.load(elsewhere, "cpu").learner.steps == 1  # on another machine
    monkeypatch.setattr(device, "available", lambda: ["cpu", "cuda", "cuda:0"])
    assert TrainSettings().device == "cuda"
    assert TrainSettings(device="cpu").device == "cpu"
    assert (TrainSettings().compile, TrainSettings().bf16) == (False, False)
    assert (TrainSettings(preset="gpu").compile, TrainSettings(preset="gpu").bf16) == (True, True)
    assert (
        TrainSettings(preset="gpu", bf16=False).compile,
        TrainSettings(preset="gpu", bf16=False).bf16,
    ) == (True, False)
    assert (
        TrainSettings(preset="gpu", device="cpu").compile,
        TrainSettings(preset="gpu", device="cpu").bf16,
    ) == (False, False)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"preset": "large"}, "preset: got 'large'; allowed is nano, mini, small, gpu"),
        ({"task": "additoin"}, "unknown task 'additoin'"),
        ({"digits": 9}, r"task\.digits: got 9"),
        ({"reward": "nice"}, "reward: got 'nice'"),
        ({"rung": "gprpo"}, "unknown rung 'gprpo': did you mean 'grpo'"),
        ({"critic": "other"}, "critic: got 'other'"),
        ({"warm_target": 1.0}, "warm_target: got 1"),
        (
            {"warm_target": 0.0, "rollouts": 0},
            "rollouts: got 0; allowed is more than 0 where there is no warm start",
        ),
        ({"lr": 0.0}, "lr: got 0"),
        ({"lr": float("nan")}, "lr: got nan"),
        ({"max_grad_norm": -1.0}, "max_grad_norm"),
        ({"temperature": 0.0}, "temperature: got 0"),
        ({"runs": 0}, "runs: got 0"),
        ({"seed": -1}, "seed: got -1"),
        ({"sync_reference": -1}, "sync_reference: got -1"),
        ({"warm_limit": 10**6}, "warm_limit: got 1000000"),
        ({"minibatches": 65}, "minibatches: got 65; allowed is at most the 64 prompts"),
        ({"group": 1}, r"GroupMean\(\): got G = 1"),  # at once, and not after the warm start
        ({"group": 1, "rung": "rloo"}, r"LeaveOneOut\(\): got G = 1"),
        ({"group": 1, "prompts": 1, "rung": "clip"}, "BatchMean: got 1"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, says: str) -> None:
    with pytest.raises(CourseError, match=says):
        TrainSettings(**settings)


def test_a_warm_start_that_does_not_get_there_says_so() -> None:
    training = Training(with_changes(QUICK, warm_target=0.99, warm_limit=20))
    for _ in range(19):
        training.step()
    with pytest.raises(
        CourseError, match=r"warm_target: got 0\.99; after 20 steps the accuracy is 0\.\d\d"
    ):
        training.step()


def test_measuring_the_warm_start_does_not_disturb_it() -> None:
    looked, left = Training(QUICK), Training(QUICK)
    for _ in range(3):
        looked.warm_accuracy()
        looked.step()
        left.step()
    assert checkpoint.equal_states(looked.learner.state(), left.learner.state())


def test_a_longer_task_gets_a_longer_context() -> None:
    training = Training(
        with_changes(QUICK, task="terms", terms=4, scratchpad=True, warm_target=0.0)
    )
    assert training.task.context > PRESETS["nano"].context
    assert training.model.settings.context == training.task.context
    training.step()


# ---------------------------------------------------------------- the log


def test_rows_of_the_log_hold_what_they_should(tmp_path: Path) -> None:
    run(Training(QUICK), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    warm, train = ([row for row in rows if row["phase"] == phase] for phase in ("warm", "train"))
    assert [row["step"] for row in train] == [
        1,
        3,
        4,
        6,
        8,
        9,
        12,
    ]  # every third, every fourth for its accuracy
    assert [row["step"] for row in train if "accuracy" in row] == [4, 8, 12]
    assert {"cross_entropy", "entropy", "gradient_norm", "length"} <= warm[0].keys()
    assert not {"reward", "kl_old", "ratio_max"} & warm[0].keys()  # mean nothing there
    assert [row["step"] for row in warm if "warm_accuracy" in row] == list(
        range(CHECK_EVERY, warm[-1]["step"] + 1, CHECK_EVERY)
    )
    assert warm[-1]["warm_accuracy"] >= 0.1
    names = {
        "reward",
        "silent_groups",
        "length",
        "truncated",
        "entropy",
        "kl_old",
        "kl_ref",
        "clip_fraction",
        "ratio_min",
        "ratio_max",
    }
    assert names | {"gradient_norm", "phase", "step"} == train[0].keys()


def test_several_models_are_logged_one_by_one(tmp_path: Path) -> None:
    run(Training(with_changes(QUICK, runs=3, rollouts=4)), tmp_path)
    for line in (tmp_path / METRICS).read_text().splitlines():
        row = json.loads(line)
        for name in row.keys() - {"phase", "step"}:
            assert len(row[name]) == 3
    assert len(set(row["reward"])) > 1


# ---------------------------------------------------------------- several models


@pytest.mark.slow
def test_a_training_alone_gives_what_it_gives_among_others() -> None:
    """Two of three models reach the target of the warm start before the last one and stand still
    until it does.
    """
    settings = with_changes(QUICK, warm_target=0.15, warm_batch=16, rollouts=3)
    together = Training(with_changes(settings, runs=3))
    ended: dict[int, int] = {}
    while together.phase == "warm":
        together.step()
        halted = together.learner.halted
        if together.phase == "warm" and halted is not None:
            for number in halted.nonzero().flatten().tolist():
                ended.setdefault(number, together.learner.steps)
    assert ended  # not all at once, or the test shows nothing
    starts = [weight[0].detach().clone() for weight in together.model.parameters]
    together.step()
    for number in range(3):
        alone = Training(settings, numbers=range(number, number + 1))
        while alone.phase == "warm":
            alone.step()
        if number in ended:
            assert alone.learner.steps == 0  # the learner of the next phase
        if number == 0:
            for mine, theirs in zip(alone.model.parameters, starts, strict=True):
                few_ulp(mine, theirs, 3000)
        alone.step()
        for mine, theirs in zip(
            alone.learner.problem.parameters, together.learner.problem.parameters, strict=True
        ):
            few_ulp(mine, theirs[number], 3000)


# ---------------------------------------------------------------- every rung


@pytest.mark.parametrize("runs", [1, 2])
@pytest.mark.parametrize(
    "name", [name for name, rung in ladder.RUNGS.items() if rung.kind != "own"]
)
def test_every_rung_takes_a_step_and_moves_the_policy(name: str, runs: int) -> None:
    settings = with_changes(
        QUICK,
        rung=name,
        warm_target=0.0,
        reward="digits",
        rollouts=1,
        log_every=1,
        epochs=2,
        runs=runs,
        group=6,
    )
    training = Training(settings)
    before = [weight.detach().clone() for weight in training.model.parameters]
    row = training.step()
    assert row is not None
    assert training.done
    values = [value for name, value in row.items() if name not in ("phase", "step")]
    assert torch.isfinite(torch.tensor(values)).all()
    assert all(bool(torch.isfinite(weight).all()) for weight in training.learner.problem.parameters)
    moved = [
        not torch.equal(weight, old)
        for weight, old in zip(training.model.parameters, before, strict=True)
    ]
    assert any(moved)
    assert (training.reference is not None) == ("kl_ref" in row)
    assert ("value_error" in row) == uses_critic(settings.estimator)


@pytest.mark.parametrize("name", ["grpo", "dapo", "gspo", "reinforce_pp", "ppo"])
def test_a_rollout_in_which_nothing_is_right_is_survived(name: str) -> None:
    """Random weights never write an end behind two right digits here: all groups are silent."""
    training = Training(with_changes(QUICK, rung=name, warm_target=0.0, rollouts=2, log_every=1))
    for _ in range(2):
        row = training.step()
        assert row is not None
        assert row["reward"] == 0
        assert row["silent_groups"] == 1
    assert all(bool(torch.isfinite(weight).all()) for weight in training.model.parameters)


# ---------------------------------------------------------------- precision


def test_the_second_update_in_bfloat16_sees_the_weights_that_the_first_one_left() -> None:
    """Casts that are kept from one update to the next would leave KL(π_old‖π) where
    it was: at 0.
    """
    settings = with_changes(
        QUICK,
        warm_target=0.0,
        reward="digits",
        minibatches=1,
        epochs=4,
        lr=1e-2,
        lr_warmup=0,
        prompts=32,
        log_every=1,
    )
    exact, rounded = (Training(with_changes(settings, bf16=on)).step() for on in (False, True))
    assert exact is not None
    assert rounded is not None
    assert exact["kl_old"] > 0.01
    assert 0.5 < rounded["kl_old"] / exact["kl_old"] < 2
    assert rounded["ratio_max"] != exact["ratio_max"]  # it did compute in bfloat16


# ---------------------------------------------------------------- learning, with a known outcome


def one_question() -> tuple[Task, int]:
    """A task with a single training question."""
    task = make(TaskSettings(digits=1, limit=2, held_out=0.5))
    return task, int(task.train[0])


def chance(model: Transformer, task: Task, row: int) -> Tensor:
    """[*runs] the probability of the right completion, exactly: Π π over its tokens."""
    target = task.target[row].expand(*model.runs, 1, 1, -1)
    log_dist = log_dists(model, task.prompt[row].expand(*model.runs, 1, -1), target)
    return log_dist.gather(-1, target.unsqueeze(-1)).flatten(len(model.runs)).sum(-1).exp()


def std_weight(p: float, group: int) -> float:
    """w_G(p) = E[√(N(G − N))] / (G p (1 − p)), N ~ Bin(G, p): what dividing by the group's std does
    to ∇p.
    """
    tail = sum(
        math.comb(group, n) * p**n * (1 - p) ** (group - n) * math.sqrt(n * (group - n))
        for n in range(group + 1)
    )
    return tail / (group * p * (1 - p))


@pytest.mark.slow
def test_the_group_stds_gradient_follows_its_exact_flow_on_a_transformer() -> None:
    """One question, G = 8, sum aggregation: E[ĝ] = w_G(p)∇p.

    Twelve models × 48 groups a step, twelve steps from p = .04.

    The exact path is θ ← θ + η·w_G(p)·∇p, with ∇p of the real transformer. Stated error: four
    standard errors over the models, and 0.01 for what noise does through the curvature of p (the
    second order of the step).
    """
    (task, row), group, steps, rate = one_question(), 8, 12, 0.14

    def flow(weight) -> list[float]:  # type: ignore[no-untyped-def]
        model, path = schooled(), []
        for _ in range(steps):
            p = chance(model, task, row)
            path.append(p.item())
            with torch.no_grad():
                for parameter, slope in zip(
                    model.parameters, torch.autograd.grad(p, model.parameters), strict=True
                ):
                    parameter += rate * weight(path[-1]) * slope
        return [*path, chance(model, task, row).item()]

    exact, unscaled = flow(lambda p: std_weight(p, group)), flow(lambda p: (group - 1) / group)
    start, model = schooled(), tiny((12,))
    with torch.no_grad():
        for name, weight in start.weights.items():
            model.weights[name].copy_(weight.expand_as(model.weights[name]))
    estimator = Estimator(baseline=GroupMean(), scale=GroupStd(eps=0.0))
    learner = Learner(
        LanguageModel(model, task, prompts=48, group=group), estimator, SGD(rate), stream((12,))
    )
    path = [chance(model, task, row).detach()]
    for _ in range(steps):
        learner.step()
        path.append(chance(model, task, row).detach())
    assert exact[0] < 0.1
    assert exact[-1] > 0.5
    for step, (measured, want) in enumerate(zip(path, exact, strict=True)):
        error = float(measured.std()) / len(measured) ** 0.5
        assert abs(float(measured.mean()) - want) < 4 * error + 0.01, step
    assert exact[-1] - unscaled[-1] > 0.3  # without the std it is another path altogether


@pytest.mark.slow
def test_grpo_on_six_questions_answers_all_six() -> None:
    """The whole of GRPO on the preset nano, two seeds.

    Every right answer is sampled now and then at the start, and six questions can be learned by
    heart, so nothing less than all six will do.
    """
    task = make(TaskSettings(digits=1, limit=8, held_out=0.25))
    warm = Training(with_changes(QUICK, runs=2, rollouts=0, warm_target=0.3))
    while not warm.done:
        warm.step()
    model = warm.model
    before = torch.stack([chance(model, task, row) for row in task.train.tolist()]).detach()
    assert float(before.min()) > 0.05
    assert float(before.mean()) < 0.4
    rollouts = 120
    problem = LanguageModel(model, task, prompts=12, group=8, reference=model.copy())
    adam = Adam(1e-2, LinearDecay(2 * rollouts, warmup=10), betas=(0.9, 0.98))
    Learner(problem, ladder.grpo, adam, Noise((2,)), epochs=2, max_grad_norm=1.0).train(rollouts)
    assert accuracy(model, task, questions=task.train).tolist() == [[1.0] * 6] * 2
    for row in task.train.tolist():
        assert float(chance(model, task, row).detach().min()) > 0.9  # and it is sure of them
