"""The ladder and the updates per rollout on a small model: paired ends, and facts that are written
whatever they say.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from course.errors import CourseError
from course.lab.statistics import interval
from course.lab.terminal import QUIET
from tinylm.ablations import ladder as climbing
from tinylm.ablations import staleness

SMALL = {
    "preset": "nano",
    "digits": 1,
    "warm_target": 0.1,
    "rollouts": 3,
    "prompts": 8,
    "group": 4,
    "judged": 5,
    "log_every": 1,
    "seeds": 3,
}


def test_a_rung_is_compared_with_the_first_model_by_model() -> None:
    settings = climbing.Settings(
        **SMALL, rungs=("reinforce", "ppo", "clip"), rates=(1e-3, 3e-3, 1e-2), tuning=1
    )
    found = climbing.run(settings, QUIET)
    ends = {name: found.array("rungs", name, "final_seeds") for name in settings.rungs}
    for name, end in ends.items():
        over, half = interval(end - ends["reinforce"])
        assert float(found.array("rungs", name, "over_first")) == pytest.approx(over, abs=1e-6)
        assert float(found.array("rungs", name, "over_first_half")) == pytest.approx(half, abs=1e-6)
        assert found.array("rungs", name, "samples").tolist() == [0, 32, 64, 96]
        assert float(found.array("rungs", name, "rate")) in settings.rates
    assert float(found.array("rungs", "ppo", "parameters")) > 1.9 * float(
        found.array("rungs", "clip", "parameters")
    )
    climbing.plot(dataclasses.replace(found, settings=settings))


def test_one_update_is_one_curve_and_every_claim_is_written() -> None:
    settings = staleness.Settings(
        **SMALL, updates=(1, 3), rates=(1e-3, 3e-3, 1e-2), max_kls=(0.01, 0.1), tuning=1
    )
    found = staleness.run(settings, QUIET)
    assert len(found.facts) == 6
    same, *others = found.facts
    assert same.holds
    assert all((fact.runs, fact.relation) == (3, "above") for fact in others)
    start = found.array("start")
    assert start.shape == (3,)
    assert not np.allclose(start, found.array("sampled")[1:])  # greedy, not sampled
    ends = {name: found.array("estimators", name, "accuracy") for name in settings.rungs}
    for name, end in ends.items():
        assert end.shape == (2, 3)
        gain, half = interval(end - start)
        np.testing.assert_allclose(found.array("estimators", name, "gain"), gain, atol=1e-6)
        np.testing.assert_allclose(found.array("estimators", name, "gain_half"), half, atol=1e-6)
    for more, less in staleness.EFFECTS:
        mean, half = interval(ends[more] - ends[less])
        effect = f"{more} − {less}"
        np.testing.assert_allclose(found.array("effects", effect, "mean"), mean, atol=1e-6)
        np.testing.assert_allclose(found.array("effects", effect, "mean_half"), half, atol=1e-6)
    assert float(found.array("rate")) in settings.rates
    assert float(found.array("trpo", "max_kl")) in settings.max_kls
    staleness.plot(dataclasses.replace(found, settings=settings))


@pytest.mark.parametrize(
    ("field", "value"), [("max_kls", (0.0, 1.0)), ("updates", (0,)), ("rates", (0.0,))]
)
def test_settings_are_refused_at_the_door(field: str, value: object) -> None:
    with pytest.raises(CourseError, match=field):
        staleness.Settings(**{field: value})  # type: ignore[arg-type]
