"""The ladder on a small model: paired arms, a noise floor of other streams, and a ranking that a
reader can compute again from the JSON.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from course import ladder
from course.errors import CourseError
from course.lab.result import Result
from course.lab.statistics import interval
from course.lab.terminal import QUIET
from tinylm.ablations import ladder as climbing
from tinylm.curves import train
from tinylm.ranking import AGAIN, crossing
from tinylm.warm_start import Start, warm_start

TINY: dict[str, Any] = {
    "preset": "nano",
    "digits": 1,
    "warm_target": 0.1,
    "warm_lr": 5e-3,
    "warm_batch": 64,
    "prompts": 8,
    "group": 4,
    "judged": 5,
    "log_every": 1,
    "seeds": 3,
    "tuning": 1,
    "lr_warmup": 1,
    "workers": 1,
}
SETTINGS = climbing.Settings(
    **TINY,
    rungs=("reinforce", "ppo", "clip"),
    updates=(1, 2),
    rollouts_of=(4, 3),
    slower=(1.0, 2.0),
    rates=(1e-3, 4e-3, 1.6e-2),
    levels=(0.2, 0.4),
    ranked_at=0.4,
)


@pytest.fixture(scope="module")
def start() -> Start:
    """The warm start of `SETTINGS`."""
    return warm_start(SETTINGS, SETTINGS.models)


def test_a_reader_can_compute_the_ranking_again_from_the_json(tmp_path: Path) -> None:
    made = dataclasses.replace(
        climbing.run(SETTINGS, QUIET), name="made", settings=dataclasses.asdict(SETTINGS)
    )
    made.save(tmp_path, climbing.plot(made))
    found = Result.load(tmp_path / "made.json")
    assert list(found.series) == ["1", "2"]
    for updates, rollouts in zip(("1", "2"), (4, 3), strict=True):
        table = found.series[updates]
        assert sorted(table) == sorted(SETTINGS.names)
        logs, final = {}, {}
        for name in table:
            x, curves = (found.array(updates, name, key) for key in ("completions", "accuracy"))
            assert x.tolist() == [32 * step for step in range(rollouts + 1)]
            assert curves.shape == (rollouts + 1, 3)
            for level in SETTINGS.levels:
                there, reached = crossing(x.tolist(), curves, level)
                key = f"{100 * level:g}"
                np.testing.assert_allclose(found.array(updates, name, "to", key), there, rtol=1e-6)
                assert table[name]["never"][key] == (~reached).sum()
            logs[name], final[name] = np.log2(there), curves[-1]
        for name in table:
            for what, values in (("behind", logs), ("over", final)):
                mean, half = interval(values[name] - values["reinforce"])
                got = [float(found.array(updates, name, key)) for key in (what, f"{what}_half")]
                np.testing.assert_allclose(got, [mean, half], atol=1e-5)
        behind = [table[name]["behind"] for name in table]
        assert behind == sorted(behind)
        assert table["ppo"]["parameters"] > 1.9 * table["clip"]["parameters"]
        assert table["ppo"]["megabytes"] > table["clip"]["megabytes"]


def test_the_noise_floor_has_the_same_weights_and_rate_and_other_streams(start: Start) -> None:
    first, again = (climbing.arm(SETTINGS, start, name, 2) for name in ("reinforce", AGAIN))
    assert first["rate"] == again["rate"]
    assert first["rate"] in (5e-4, 2e-3, 8e-3)  # the rates, halved for two updates
    assert first["swept"] == again["swept"]
    budget = SETTINGS.budget(2)
    assert (budget.epochs, budget.rollouts) == (2, 3)
    for row, seed in ((first, 0), (again, 1)):
        how = dataclasses.replace(budget, seed=seed)
        alone = train(how, ladder.reinforce, start, (row["rate"],), (1, 2, 3))
        assert row["accuracy"] == pytest.approx(alone.values["accuracy"][:, 0].numpy(), abs=1e-6)
    assert first["accuracy"][0] == again["accuracy"][0]
    budget = dataclasses.replace(budget, rollouts=1)
    weights = [
        train(dataclasses.replace(budget, seed=seed), ladder.reinforce, start, (1e-3,), (1, 2, 3))
        .problem.parameters[0]
        .detach()
        for seed in (0, 1)
    ]
    assert float((weights[0] - weights[1]).abs().max()) > 1e-5


def test_rows_may_be_kept_as_json_and_collected_in_any_number(start: Start) -> None:
    tasks = [("clip", 1), ("reinforce", 1), ("clip", 2)]
    rows = [climbing.arm(SETTINGS, start, name, updates) for name, updates in tasks]
    kept = json.loads(json.dumps(rows))
    found = climbing.collected(SETTINGS, kept)
    assert sorted(found.series["1"]) == ["clip", "reinforce"]
    assert list(found.series) == ["1"]  # with two updates the reference is missing
    assert found.text() == climbing.collected(SETTINGS, rows[1::-1] + rows[2:]).text()
    climbing.plot(dataclasses.replace(found, settings=dataclasses.asdict(SETTINGS)))
    with pytest.raises(CourseError, match="rows: got 1; allowed is at least one of reinforce"):
        climbing.collected(SETTINGS, kept[:1])


def test_every_rung_descendant_and_branch_can_be_trained(start: Start) -> None:
    names = climbing.Settings().rungs
    assert len(names) == sum(rung.kind != "own" for rung in ladder.RUNGS.values())
    assert names[0] == "reinforce"
    one = dataclasses.replace(
        SETTINGS, rungs=names, rates=(2e-3,), rollouts_of=(1, 1), seeds=2, judged=4
    )
    for name in names:
        row = climbing.arm(one, start, name, 2)
        assert not any(row["halted"]), name
        assert np.shape(row["accuracy"]) == (2, 2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("updates", (0, 1)),
        ("updates", (8, 1)),
        ("levels", (0.5, 1.0)),
        ("ranked_at", 0.8),
        ("rollouts_of", (10,)),
        ("slower", (1.0, 0.0)),
        ("rates", (0.0,)),
    ],
)
def test_settings_are_refused_at_the_door(field: str, value: object) -> None:
    with pytest.raises(CourseError, match=f"^{field}"):
        climbing.Settings(**{field: value})  # type: ignore[arg-type]
