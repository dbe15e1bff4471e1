"""Saved state: to the bit, whole or not at all, and only into a learner of the same make."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from course import ladder
from course.errors import CourseError
from course.estimator import replace
from course.learner import Learner
from course.parts import GAE, TokenWhitening, Value
from course.train import checkpoint
from course.train.critic import RunningMean
from course.train.optim import SGD, Adam, LinearDecay
from course.train.trust_region import TRPO, NaturalGradient
from tests.helpers import bernoulli_bandit, f64, stream

TENSORS = {
    "double": f64([[1.0, -0.0, 5e-324], [float("inf"), float("nan"), 1 / 3]]),
    "single": torch.tensor(0.1),
    "whole": torch.tensor([2**62, -1]),
    "truth": torch.tensor([True, False]),
    "empty": torch.empty(0, 3),
    "turned": torch.arange(6.0).reshape(2, 3).T,
}


def test_tensors_and_description_come_back_to_the_bit(tmp_path: Path) -> None:
    about = {"steps": 3, "shuffle": {"state": 2**120, "inc": 5}, "name": "π‖ref"}
    path = checkpoint.write(tmp_path / "folder" / "state", TENSORS, about)
    tensors, told = checkpoint.read(path)
    assert told == about
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=0, equal_nan=True)
    assert torch.signbit(tensors["double"][0, 1])  # −0.0 stays −0.0
    assert os.listdir(path.parent) == ["state"]


def test_views_of_one_memory_may_be_saved_side_by_side(tmp_path: Path) -> None:
    base = torch.arange(4.0)
    tensors, _ = checkpoint.read(
        checkpoint.write(tmp_path / "s", {"a": base, "b": base[1:], "c": base.expand(2, 4)}, {})
    )
    assert torch.equal(tensors["b"], base[1:])
    assert torch.equal(tensors["c"], base.expand(2, 4))


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint.write(tmp_path / "state", {"x": torch.ones(1)}, {"steps": 1})
    before = path.read_bytes()

    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, no_room)
            with pytest.raises(
                CourseError, match=r"state: cannot be written \(No space left on device\)"
            ):
                checkpoint.write(path, {"x": torch.zeros(1)}, {"steps": 2})
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == ["state"]


def test_damaged_foreign_and_missing_files_are_refused_by_name(tmp_path: Path) -> None:
    whole = checkpoint.write(tmp_path / "whole", TENSORS, {}).read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "none").write_bytes(b"")
    save_file({"x": torch.ones(1)}, tmp_path / "other")
    for name, says in (
        ("cut", "damaged"),
        ("none", "damaged"),
        ("other", "format None"),
        ("missing", "no such file"),
    ):
        with pytest.raises(CourseError, match=f"{name}: .*{says}"):
            checkpoint.read(tmp_path / name)


def test_a_flipped_bit_anywhere_behind_the_header_is_noticed(tmp_path: Path) -> None:
    path = checkpoint.write(
        tmp_path / "state", {"x": torch.arange(20.0), "y": torch.tensor([3])}, {"steps": 3}
    )
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for place in range(header, len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :])
        with pytest.raises(CourseError, match="state: damaged"):
            checkpoint.read(path)
    path.write_bytes(whole.replace(b"steps", b"stepz"))
    with pytest.raises(
        CourseError, match="state: damaged: the checksum is not that of its contents"
    ):
        checkpoint.read(path)


def test_what_was_read_stays_when_the_file_is_written_over_in_place(tmp_path: Path) -> None:
    path = checkpoint.write(tmp_path / "state", {"x": torch.ones(1000)}, {})
    tensors, _ = checkpoint.read(path)
    path.write_bytes(
        checkpoint.write(tmp_path / "other", {"x": torch.zeros(1000)}, {}).read_bytes()
    )
    assert torch.equal(tensors["x"], torch.ones(1000))


@pytest.mark.parametrize("seed", ["0", "1", "2"])
def test_equal_states_give_equal_bytes_in_every_process(tmp_path: Path, seed: str) -> None:
    """Whatever order names and descriptions come in, and however strings are hashed."""
    script = (
        "import sys, torch\nfrom course.train import checkpoint\n"
        "tensors = {name: torch.arange(6.0)[i:] for i, name in enumerate('cabd')}\n"
        "about = {name: name for name in ('z', 'steps', 'a', 'shuffle')}\n"
        "checkpoint.write(sys.argv[1], tensors, about)\n"
    )
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "PYTHONHASHSEED": seed}
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "state")], env=environment)
    tensors, about = checkpoint.read(tmp_path / "state")
    turned = dict(reversed(list(tensors.items()))), dict(reversed(list(about.items())))
    written = (tmp_path / "state").read_bytes()
    for _ in range(5):
        assert checkpoint.as_bytes(*turned) == written


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Callable, tuple[str]]:
            return (os.mkdir, (str(tmp_path / "exploded"),))

    (tmp_path / "state").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CourseError, match="damaged"):
        checkpoint.read(tmp_path / "state")
    assert not (tmp_path / "exploded").exists()


def test_names_are_put_under_a_prefix_and_taken_out_again() -> None:
    both = checkpoint.prefixed("a", {"x": torch.ones(1)}) | checkpoint.prefixed(
        "ab", {"y": torch.ones(2)}
    )
    assert list(both) == ["a.x", "ab.y"]
    assert list(checkpoint.under("a", both)) == ["x"]
    assert list(checkpoint.under("ab", both)) == ["y"]


def test_states_are_equal_to_the_bit_or_not() -> None:
    a = {"x": torch.ones(2)}
    assert checkpoint.equal_states(a, {"x": torch.ones(2)})
    assert not checkpoint.equal_states(a, {"x": torch.tensor([1.0, 1.0 + 2e-7])})
    assert not checkpoint.equal_states(a, {"x": torch.ones(2), "y": torch.ones(1)})


# ---------------------------------------------------------------- a learner's


def falling(update: int) -> float:
    return 1 / (1 + update)


def learner(estimator=ladder.clip, optimizer=None, critic=None, **bandit) -> Learner:  # type: ignore[no-untyped-def]
    runs = bandit.pop("runs", (2,))
    names = ("epochs", "minibatches", "max_grad_norm", "kl_stop")
    settings = {name: bandit.pop(name) for name in names if name in bandit}
    problem = bernoulli_bandit(runs, **bandit)
    noise = stream(runs, dtype=bandit.get("dtype", torch.float64))
    return Learner(problem, estimator, optimizer or SGD(0.1), noise, critic=critic, **settings)


with_critic = replace(ladder.clip, baseline=Value())


@pytest.mark.parametrize(
    ("saver", "loader", "field"),
    [
        (
            lambda: learner(),
            lambda: learner(ladder.group_mean),
            r"estimator\.baseline: got 'BatchMean\(\)'; allowed is GroupMean\(\)",
        ),
        (
            lambda: learner(ladder.group_std),
            lambda: learner(ladder.group_mean),
            r"estimator\.scale: got 'GroupStd\(\)'; allowed is NoScale",
        ),
        # two estimators whose equations read alike
        (
            lambda: learner(replace(with_critic, credit=GAE(1.0, 0.9)), critic=RunningMean()),
            lambda: learner(replace(with_critic, credit=GAE(0.9, 1.0)), critic=RunningMean()),
            r"estimator\.credit: got 'GAE\(gae_lambda=0\.9\)'",
        ),
        (
            lambda: learner(ladder.whitened),
            lambda: learner(replace(ladder.whitened, scale=TokenWhitening(1e-4))),
            r"estimator\.scale",
        ),
        (
            lambda: learner(),
            lambda: learner(replace(ladder.clip, entropy_coef=0.1)),
            r"estimator\.entropy_coef: got '0\.0'",
        ),
        (
            lambda: learner(optimizer=Adam(0.1)),
            lambda: learner(),
            "optimizer: got 'Adam'; allowed is SGD",
        ),
        (
            lambda: learner(),
            lambda: learner(optimizer=Adam(0.1)),
            "optimizer: got 'SGD'; allowed is Adam",
        ),
        (
            lambda: learner(with_critic, critic=RunningMean()),
            lambda: learner(with_critic, critic=None),
            "critic: got 'RunningMean'; allowed is none",
        ),
        (
            lambda: learner(),
            lambda: learner(optimizer=SGD(0.2)),
            r"optimizer\.lr: got '0\.1'; allowed is 0\.2",
        ),
        (
            lambda: learner(optimizer=SGD(f64([0.1, 0.2]))),
            lambda: learner(optimizer=SGD(f64([0.1, 0.3]))),
            r"optimizer\.lr: got '\[0\.1, 0\.2\]'; allowed is \[0\.1, 0\.3\]",
        ),
        (
            lambda: learner(optimizer=Adam(0.1, LinearDecay(100))),
            lambda: learner(optimizer=Adam(0.1, LinearDecay(200))),
            r"optimizer\.schedule: got 'LinearDecay\(steps=100",
        ),
        (
            lambda: learner(optimizer=Adam(0.1)),
            lambda: learner(optimizer=Adam(0.1, falling)),
            r"optimizer\.schedule: got 'Constant\(\)'; allowed is falling",
        ),
        *(
            (
                lambda: learner(optimizer=Adam(0.1)),
                lambda given=given: learner(optimizer=Adam(0.1, **given)),
                says,
            )
            for given, says in (
                ({"betas": (0.9, 0.99)}, r"optimizer\.betas"),
                ({"eps": 1e-7}, r"optimizer\.eps"),
                ({"weight_decay": 0.1}, r"optimizer\.weight_decay"),
            )
        ),
        (
            lambda: learner(optimizer=NaturalGradient(0.1)),
            lambda: learner(optimizer=NaturalGradient(0.1, iterations=3)),
            r"optimizer\.iterations: got '10'; allowed is 3",
        ),
        (
            lambda: learner(optimizer=TRPO(0.01)),
            lambda: learner(optimizer=TRPO(0.02)),
            r"optimizer\.max_kl: got '0\.01'",
        ),
        (
            lambda: learner(with_critic, critic=RunningMean()),
            lambda: learner(with_critic, critic=RunningMean(per_prompt=False)),
            r"critic\.per_prompt: got 'True'; allowed is False",
        ),
        *(
            (lambda: learner(), lambda given=given: learner(**given), f"state: {says}")
            for given, says in (
                ({"epochs": 2}, "epochs: got '1'; allowed is 2"),
                ({"minibatches": 2}, "minibatches: got '1'; allowed is 2"),
                ({"max_grad_norm": 1.0}, r"max_grad_norm: got 'None'; allowed is 1\.0"),
                ({"kl_stop": 0.1}, r"kl_stop: got 'None'; allowed is 0\.1"),
                ({"group": 5}, r"problem\.group: got '4'; allowed is 5"),
            )
        ),
        (lambda: learner(runs=(3,)), lambda: learner(), r"parameter 0: got '\(3, 2, 3\)"),
        (lambda: learner(means=((0.1, 0.2),)), lambda: learner(), r"parameter 0: got '\(2, 1, 2\)"),
        (lambda: learner(dtype=torch.float32), lambda: learner(), "float32"),
    ],
)
def test_a_state_of_another_make_is_refused_and_changes_nothing(
    saver: Callable, loader: Callable, field: str, tmp_path: Path
) -> None:
    saved, fresh = saver(), loader()
    saved.train(1)
    before = {name: tensor.clone() for name, tensor in fresh.state().items()}
    with pytest.raises(CourseError, match=field):
        fresh.load(saved.save(tmp_path / "state"))
    assert checkpoint.equal_states(before, fresh.state())
    assert fresh.steps == 0


def test_a_saved_learner_says_where_it_stands(tmp_path: Path) -> None:
    first = learner(optimizer=Adam(0.1))
    first.train(3)
    _, about = checkpoint.read(first.save(tmp_path / "state"))
    assert about["steps"] == 3
    assert about["optimizer"] == "Adam"
    assert about["estimator.surrogate"] == "Clip()"
