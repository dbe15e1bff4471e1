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
    rungs=("reinforce", "baseline", "ppo", "clip"),
    rungs_of_several=("ppo", "clip"),
    updates=(1, 4),
    epochs_of=(1, 2),
    rollouts_of=(4, 3),
    slower=(1.0, 2.0),
    rates=(1e-3, 4e-3, 1.6e-2),
    levels=(0.2, 0.4),
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
    assert list(found.series) == ["1", "4"]
    for updates, rollouts, rungs in (("1", 4, ["baseline", "ppo"]), ("4", 3, ["clip", "ppo"])):
        table = found.series[updates]
        assert sorted(table) == sorted([*rungs, "reinforce", AGAIN])
        along, final, logs = {}, {}, {}
        for name in table:
            x, curves = (found.array(updates, name, key) for key in ("completions", "accuracy"))
            assert x.tolist() == [32 * step for step in range(rollouts + 1)]
            assert curves.shape == (rollouts + 1, 3)
            for level in SETTINGS.levels:
                there, reached = crossing(x.tolist(), curves, level)
                key = f"{100 * level:g}"
                np.testing.assert_allclose(found.array(updates, name, "to", key), there, rtol=1e-6)
                assert table[name]["never"][key] == (~reached).sum()
            along[name], final[name], logs[name] = curves.mean(0), curves[-1], np.log2(there)
        for name in table:
            for what, values in (("ahead", along), ("over", final)):
                mean, half = interval(values[name] - values["reinforce"])
                got = [float(found.array(updates, name, key)) for key in (what, f"{what}_half")]
                np.testing.assert_allclose(got, [mean, half], atol=1e-5)
            later = [table[name][key]["40"] for key in ("later", "later_half")]
            np.testing.assert_allclose(later, interval(logs[name] - logs["reinforce"]), atol=1e-5)
        ahead = [table[name]["ahead"] for name in table]
        assert ahead == sorted(ahead, reverse=True)
        assert table["ppo"]["parameters"] > 1.9 * table[rungs[0]]["parameters"]
        assert table["ppo"]["megabytes"] > table[rungs[0]]["megabytes"]
    assert found.series["1"]["baseline"]["alike"] == ["clip"]
    [same] = [fact for fact in found.facts if "do the same as baseline" in fact.claim]
    assert same.measured == "clip"
    assert same.holds


def test_the_noise_floor_has_the_same_weights_and_rate_and_other_streams(start: Start) -> None:
    first, again = (climbing.arm(SETTINGS, start, 4, (name,)) for name in ("reinforce", AGAIN))
    assert first["rate"] == again["rate"]
    rates = (5e-4, 2e-3, 8e-3)  # those of the settings, halved for several updates
    assert set(rates) <= set(first["rates"])
    assert first["rate"] == first["rates"][int(np.argmax(first["swept"]))]
    assert first["interior"] or len(first["rates"]) == len(rates) + SETTINGS.wider
    assert first["swept"] == again["swept"]
    budget = SETTINGS.budget(4)
    assert (budget.epochs, budget.minibatches, budget.rollouts) == (2, 2, 3)
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


def test_rungs_that_do_the_same_with_one_update_share_a_row_and_part_with_several(
    start: Start,
) -> None:
    """With one update ρ = 1 and π = π_old, so ratio, clip and PPO's KL change nothing; rloo is 4/3
    of the group mean, which a clipped gradient does not notice. The reference is left at once.
    """
    rungs = ("reinforce", "baseline", "surrogate", "clip", "ppo_kl", "group_mean", "rloo", "grpo")
    settings = dataclasses.replace(
        SETTINGS, rungs=rungs, rungs_of_several=rungs, max_grad_norm=0.01
    )
    assert climbing.alike(settings, start, 1) == [
        ("reinforce",),
        ("baseline", "surrogate", "clip", "ppo_kl"),
        ("group_mean", "rloo"),
        ("grpo",),
    ]
    assert ("baseline",) in climbing.alike(settings, start, 4)  # it has no ratio


def test_rows_may_be_kept_as_json_and_collected_in_any_number(start: Start) -> None:
    tasks = [(1, "clip"), (1, "reinforce"), (4, "clip")]
    rows = [climbing.arm(SETTINGS, start, updates, (name,)) for updates, name in tasks]
    kept = json.loads(json.dumps(rows))
    found = climbing.collected(SETTINGS, kept)
    assert sorted(found.series["1"]) == ["clip", "reinforce"]
    assert list(found.series) == ["1"]  # with four updates the reference is missing
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
        row = climbing.arm(one, start, 4, (name,))
        assert not any(row["halted"]), name
        assert np.shape(row["accuracy"]) == (2, 2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("updates", (0, 1)),
        ("updates", (8, 1)),
        ("epochs_of", (1, 3)),
        ("levels", (0.5, 1.0)),
        ("rollouts_of", (10,)),
        ("slower", (1.0, 0.0)),
        ("rates", (0.0,)),
    ],
)
def test_settings_are_refused_at_the_door(field: str, value: object) -> None:
    with pytest.raises(CourseError, match=f"^{field}"):
        climbing.Settings(**{field: value})  # type: ignore[arg-type]
